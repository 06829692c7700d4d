"""One micro-batch through the model, as the view that the algorithm sees.

What the algorithm declares decides: token log-probabilities (with a reference's beside them), the scores of a
head, or the distributions of student and teacher.  No algorithm has a forward pass of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from steelyard.algorithms.core import AlgorithmSpec
from steelyard.data.packing import PackedBatch, PaddedLayout
from steelyard.models.attention import base_of
from steelyard.models.heads import keeps_lm_head, token_scores
from steelyard.models.load import Policy
from steelyard.models.logprobs import completion_scores, token_distributions, token_logprobs
from steelyard.trainer.views import build_view
from steelyard.types import Group


@dataclass
class StepInput:
    """What stays the same from step to step.

    Attributes:
        other: the frozen model beside the policy: the teacher, or the reference of ``ref_kl``.
        top_k, tail: how much of the teacher's distribution is kept.
    """

    policy: Policy
    spec: AlgorithmSpec
    hyperparameters: dict[str, Any]
    tokens_per_microbatch: int
    temperature: float = 1.0
    other: Policy | None = None
    top_k: int | None = None
    tail: bool = False
    state: dict[str, Tensor] = field(default_factory=dict)
    """The algorithm's running state, replaced after every optimizer step."""


def forward_view(inputs: StepInput, batch: PackedBatch) -> Any:
    """Forward one micro-batch and build the algorithm's view of it."""
    spec, model = inputs.spec, inputs.policy.model
    if spec.head == "score":
        return build_view(spec, batch, scores=completion_scores(model, batch))
    if spec.family == "TokenScores":
        with_lm = keeps_lm_head(spec.head, inputs.hyperparameters)
        logp = token_logprobs(model, batch).logp if with_lm else None
        return build_view(spec, batch, scores=token_scores(model, batch), logp=logp)
    if spec.family == "Distill":
        assert inputs.other is not None
        found = token_distributions(
            model, inputs.other, batch, temperature=inputs.temperature, top_k=inputs.top_k, tail=inputs.tail
        )
        return build_view(spec, batch, logp=found.logp, distributions=found)
    outputs = token_logprobs(
        model, batch, temperature=inputs.temperature, extras=frozenset(spec.extras), reference=inputs.other
    )
    return build_view(spec, batch, logp=outputs.logp, extras={name: getattr(outputs, name) for name in spec.extras})


@contextmanager
def embedding_noise(model: nn.Module, batch: PackedBatch, alpha: float, seed: Sequence[int]) -> Iterator[None]:
    """While open, the input embeddings carry U(-1, 1) * alpha / sqrt(L d) (NEFTune, 2310.05914).

    L counts the real tokens of a sequence, d is the width.  The noise is a function of ``seed`` and the group's
    key, so that no split into micro-batches changes it.
    """
    embedding = base_of(model).get_input_embeddings()
    weight = embedding.weight
    assert isinstance(weight, Tensor)
    width = weight.shape[1]
    drawn = [_noise_of(group, width, alpha, seed) for group in batch.groups]
    if isinstance(batch.layout, PaddedLayout):  # the prompt stands in the row of every completion
        present = batch.layout.attention_mask.bool().cpu()
        rows = torch.zeros(*present.shape, width)
        pairs = zip(batch.groups, drawn, strict=True)
        rows[present] = torch.cat([row for group, own in pairs for row in _rows_of(group, own)])
    else:
        rows = torch.cat(drawn)
    noise = rows.to(device=batch.input_ids.device)

    def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + noise.view_as(output).to(output.dtype)

    handle = embedding.register_forward_hook(add)  # type: ignore[union-attr]
    try:
        yield
    finally:
        handle.remove()


def _rows_of(group: Group, noise: Tensor) -> list[Tensor]:
    """The noise of a tree, for each of its completions written out with the prompt."""
    prompt, *answers = noise.split([len(group.prompt), *map(len, group.completions)])
    return [torch.cat([prompt, answer]) for answer in answers]


def _noise_of(group: Group, width: int, alpha: float, seed: Sequence[int]) -> Tensor:
    """``[tokens, width]`` noise of the prompt and the completions of a group."""
    digest = hashlib.sha256(f"{list(seed)}:{group.key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)
    uniform = torch.rand(group.tokens, width, generator=generator) * 2 - 1
    return uniform * alpha / (group.tokens * width) ** 0.5
