"""Tiny random models of several families, a word-level tokenizer, and ragged groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from steelyard.types import Group

# Tiny tensors on many threads wait for each other, above all when several processes share the cores.
torch.set_num_threads(1)

VOCABULARY = 97
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_SHAPE),
    "qwen3": lambda: Qwen3Config(**_SHAPE, tie_word_embeddings=True),
    "gemma2": lambda: Gemma2Config(
        **_SHAPE,
        sliding_window=5,
        query_pre_attn_scalar=8,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **_SHAPE,
        sliding_window=5,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
}
"""One config per family; the sliding windows are shorter than the sequences of :func:`ragged_groups`."""


def build_model(family: str = "llama", dtype: torch.dtype = torch.float64, seed: int = 0) -> PreTrainedModel:
    """A tiny random causal language model in eval mode (large initial weights, so that attention matters)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=dtype)
    if dtype == torch.float64:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                norm_in_double(module)
    return model.eval()


def norm_in_double(module: torch.nn.Module) -> None:
    """transformers computes norms in float32 whatever the model's type; tests to 1e-10 need float64."""
    epsilon = getattr(module, "eps", None) or module.variance_epsilon
    offset = 1.0 if type(module).__name__.startswith("Gemma") else 0.0

    def forward(x: torch.Tensor) -> torch.Tensor:
        scale = (x.pow(2).mean(-1, keepdim=True) + epsilon).rsqrt()
        return x * scale * (module.weight + offset)

    module.forward = forward


def make_group(prompt: Sequence[int], *completions: Sequence[int], key: str = "", **changes: object) -> Group:
    """A group with every completion token scored."""
    arrays = tuple(np.array(ids, dtype=np.int32) for ids in completions)
    masks = tuple(np.ones(len(a), dtype=bool) for a in arrays)
    return Group(np.array(prompt, dtype=np.int32), arrays, masks, key=key).replace(**changes)


def ragged_groups(seed: int = 0, n: int = 6, *, vocabulary: int = VOCABULARY) -> list[Group]:
    """``n`` groups with k in {1, 2, 4}, prompts up to 12 and completions up to 15, some masked."""
    rng = np.random.default_rng(seed)
    groups = []
    for i in range(n):
        k = (1, 2, 4)[i % 3]
        lengths = rng.integers(1, 16, k)
        completions = tuple(rng.integers(3, vocabulary, t).astype(np.int32) for t in lengths)
        masks = tuple(rng.random(t) < 0.8 for t in lengths)
        prompt = rng.integers(3, vocabulary, rng.integers(1, 13)).astype(np.int32)
        groups.append(Group(prompt, completions, masks, key=f"test:{i}"))
    return groups


def build_tokenizer(words: Sequence[str] = (), *, template: str | None = None) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with ``<pad> <bos> <eos> <unk>`` as ids 0-3."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = words or [f"w{i}" for i in range(VOCABULARY - 4)]
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *words])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer without a chat template."""
    return build_tokenizer()


@pytest.fixture
def groups() -> list[Group]:
    """Ragged groups with k in {1, 2, 4}."""
    return ragged_groups()


@pytest.fixture
def llama() -> PreTrainedModel:
    """A tiny random Llama in float64."""
    return build_model("llama")


@pytest.fixture
def model_directory(tmp_path: Path) -> Path:
    """A Hugging Face directory with a tiny random Llama (float32) and its tokenizer."""
    directory = tmp_path / "tiny-llama"
    build_model("llama", torch.float32).save_pretrained(directory)
    build_tokenizer().save_pretrained(directory)
    return directory
