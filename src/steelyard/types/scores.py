"""Views of what heads and teachers say: scalar scores, scores of tokens, distributions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from steelyard.errors import DataError
from steelyard.types.base import Masked, View, alike, as_columns, masked, needed, numbers, truth

IGNORED = -100
"""The label that says "no label" in transformers."""


@dataclass(frozen=True, eq=False)
class Scores(View):
    """Scalar scores of a reward head for the two sides of preference pairs, ``[b]`` each."""

    chosen: Tensor
    rejected: Tensor
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    stats: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_scores(cls, chosen: Any, rejected: Any, **columns: Any) -> Scores:
        """From ``[b]`` scores."""
        better, worse, named = numbers(chosen, "scores"), numbers(rejected, "scores"), as_columns(columns)
        alike("the chosen side", better.shape, rejected=worse, **named)
        return cls(better, worse, named)

    @property
    def items(self) -> int:
        """b"""
        return len(self.chosen)

    @property
    def token_mask(self) -> Tensor:
        """Scores have no tokens."""
        raise DataError("reward-model losses have no token-level terms")


@dataclass(frozen=True, eq=False)
class TokenScores(Masked):
    """Outputs of a head on the tokens of single completions, with labels: outcome and process reward models."""

    scores: Tensor
    """``[b, t, c]`` c outputs per token (one, or one per label), zero outside the mask."""
    labels: Tensor
    """``[b, t]`` the label of each labelled token (of its completion, or of its step), zero elsewhere."""
    mask: Tensor
    """``[b, t]`` boolean: labelled tokens."""
    logp_or_none: Tensor | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    stats: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_scores(cls, scores: Any, labels: Any, mask: Any, logp: Any = None, **columns: Any) -> TokenScores:
        """From ``[b, t]`` or ``[b, t, c]`` scores; labels ``[b]`` (of completions) or ``[b, t]`` (of tokens).

        Labels of -100 are no labels, as everywhere in transformers.
        """
        scores, labels, mask = numbers(scores, "scores"), torch.as_tensor(labels), torch.as_tensor(mask).bool()
        scores = scores[..., None] if scores.dim() == 2 else scores
        labels = labels[:, None].expand(mask.shape) if labels.dim() == 1 else labels
        mask = mask & (labels != IGNORED)
        alike("the mask", mask.shape, scores=scores[..., 0], labels=labels)
        return cls(
            scores=masked(scores, mask),
            labels=masked(labels.to(scores.dtype), mask).detach(),
            mask=mask,
            logp_or_none=None if logp is None else masked(numbers(logp, "log-probabilities"), mask),
            columns=as_columns(columns),
        )

    @property
    def score(self) -> Tensor:
        """``[b, t]`` the output of a head with one output."""
        if self.scores.shape[-1] != 1:
            raise DataError(f"this loss needs a head with one output per token, this one has {self.scores.shape[-1]}")
        return self.scores[..., 0]

    @property
    def logp(self) -> Tensor:
        """``[b, t]`` the language model's log-probabilities of the labelled tokens."""
        return needed(self.logp_or_none, "token-level log-probabilities")

    @property
    def last(self) -> Tensor:
        """``[b, 1]`` index of the last labelled token."""
        place = torch.arange(self.mask.shape[1], device=self.mask.device)
        return torch.nn.functional.pad(place * self.mask, (1, 0)).amax(-1, keepdim=True)  # padded: t may be 0


@dataclass(frozen=True, eq=False)
class Distill(Masked):
    """Next-token distributions of teacher and student at the same positions, over the vocabulary or a part of it.

    ``v`` is the vocabulary, or the support that the teacher's top-k gives; log-probabilities are then only known
    up to a constant, which :meth:`at` removes on both sides.
    """

    student: Tensor
    """``[b, t, v]`` log-probabilities (up to a constant per position), zero outside the mask."""
    teacher: Tensor
    """``[b, t, v]`` the teacher's, detached."""
    logp: Tensor
    """``[b, t]`` the student's log-probability of the token itself."""
    teacher_logp: Tensor
    """``[b, t]`` the teacher's log-probability of the token itself, detached."""
    old: Tensor
    """``[b, t]`` the student's log-probability when the update started, detached."""
    mask: Tensor
    """``[b, t]`` boolean: trained tokens."""
    own: Tensor
    """``[b]`` boolean: sampled by the student (or from a mixture with it), not read from the data."""
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    stats: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_logits(
        cls,
        student: Any,
        teacher: Any,
        labels: Any,
        mask: Any = None,
        *,
        old: Any = None,
        own: Any = None,
        top_k: int | None = None,
        **columns: Any,
    ) -> Distill:
        """From logits ``[b, t, v]`` and the tokens ``[b, t]`` themselves.

        Args:
            top_k: keep only the teacher's k most probable tokens at every position.
        """
        student, teacher = numbers(student, "logits"), numbers(teacher, "the teacher's logits").detach()
        labels = torch.as_tensor(labels)
        mask = (labels != IGNORED) if mask is None else torch.as_tensor(mask).bool() & (labels != IGNORED)
        alike("the student", student.shape, teacher=teacher)
        alike("the labels", labels.shape, mask=mask, logits=student[..., 0])
        student, teacher = (masked(x, mask).log_softmax(-1) for x in (student, teacher))
        ids = masked(labels, mask)[..., None]
        logp, teacher_logp = (masked(x.gather(-1, ids)[..., 0], mask) for x in (student, teacher))
        if top_k is not None:
            teacher, support = teacher.topk(top_k, dim=-1)
            student = student.gather(-1, support)
        return cls(
            student=masked(student, mask),
            teacher=masked(teacher, mask),
            logp=logp,
            teacher_logp=teacher_logp,
            old=logp.detach() if old is None else masked(numbers(old, "old log-probabilities"), mask).detach(),
            mask=mask,
            own=torch.zeros(len(mask), dtype=torch.bool) if own is None else truth(own, "own"),
            columns=as_columns(columns),
        )

    def at(self, tau: float = 1.0) -> tuple[Tensor, Tensor]:
        """``[b, t, v]`` log-probabilities of (student, teacher) at temperature tau, normalised on the support."""
        if not self.student.shape[-1]:
            raise DataError("this view has no distributions: coupled functions see the values of tokens only")
        return (self.student / tau).log_softmax(-1), (self.teacher / tau).log_softmax(-1)
