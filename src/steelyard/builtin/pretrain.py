"""How a ladder base is made: Muon on the matrices, AdamW on the rest, equal tokens for every size.

On the same CPU, build and number of threads the result is the same bit for bit; elsewhere rounding differs
and accuracy is equal within its interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from steelyard.builtin import corpus, ladder
from steelyard.builtin import tokenizer as tokenizers
from steelyard.files import atomic_directory

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

STEPS = 1500
_OTHER_RATE = 0.25
"""AdamW's learning rate, as a share of Muon's."""
_WARM_UP = 50
_COOL_DOWN = 0.5
_MICRO_BATCHES = 2


def initialise(size: str, seed: int) -> LlamaForCausalLM:
    """A model of ``size`` with fresh float32 weights drawn from ``seed``."""
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(ladder.config(size))


def optimizers(model: LlamaForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices; AdamW for embeddings (tied with the head) and norms."""
    matrices = [value for name, value in model.named_parameters() if value.ndim == 2 and "layers" in name]
    ids = {id(value) for value in matrices}
    others = [value for value in model.parameters() if id(value) not in ids]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.0),
        torch.optim.AdamW(others, lr=_OTHER_RATE * rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def schedule(step: int, steps: int) -> float:
    """Factor of both learning rates: linear warm-up, constant, linear to zero over the last half."""
    warm = min(1.0, (step + 1) / _WARM_UP)
    return warm * min(1.0, (steps - step) / (_COOL_DOWN * steps))


def micro_batches(
    batch: list[list[corpus.Message]], tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids and their mask, each [rows, width]; documents of similar length together, to pad little."""
    texts = [str(tokenizer.apply_chat_template(messages, tokenize=False)) for messages in batch]
    rendered = sorted(tokenizer(texts, add_special_tokens=False).input_ids, key=len)
    pad = tokenizers.vocabulary()[tokenizers.PAD]
    size = -(-len(rendered) // _MICRO_BATCHES)
    for first in range(0, len(rendered), size):
        rows = [torch.tensor(ids) for ids in rendered[first : first + size]]
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        yield pad_sequence(rows, batch_first=True, padding_value=pad), mask


def loss_of(model: LlamaForCausalLM, ids: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of every token that follows another, summed.  ``ids``, ``mask``: [rows, width]."""
    # Right padding needs no attention mask: no real token looks ahead at it, and its own loss is left out.
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    targets = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="sum")


def train(
    size: str,
    out: Path,
    *,
    seed: int = 0,
    steps: int = STEPS,
    threads: int = 1,
    progress: Callable[[int, float], None] | None = None,
) -> Path:
    """Pretrain a base of ``size`` and write its Hugging Face directory (float16) to ``out``.

    Args:
        seed: reaches the initial weights and the corpus.
        steps: optimizer steps of 64 documents.
        threads: of torch; another number rounds otherwise.
        progress: called after every step with (steps done, loss per token in nats).

    Raises:
        ModelError: unknown size.
    """
    tokenizer = tokenizers.build()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = initialise(size, seed)
        parts = optimizers(model, ladder.shape(size).rate)
        rates = [part.param_groups[0]["lr"] for part in parts]
        source = corpus.batches(seed)
        for step in range(steps):
            pieces = list(micro_batches(next(source), tokenizer))
            tokens = sum(int(mask[:, 1:].sum()) for _, mask in pieces)
            total = 0.0
            for ids, mask in pieces:
                loss = loss_of(model, ids, mask) / tokens
                loss.backward()
                total += loss.item()
            for part, rate in zip(parts, rates, strict=True):
                part.param_groups[0]["lr"] = rate * schedule(step, steps)
                part.step()
                part.zero_grad()
            if progress is not None:
                progress(step + 1, total)
    finally:
        torch.set_num_threads(before)
    with atomic_directory(out) as directory:
        model.half().save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    return out
