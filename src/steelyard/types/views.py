"""Views of completions by their log-probabilities: supervised, paired, labelled, ranked, sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from steelyard.errors import DataError
from steelyard.types.base import Masked, Sequences, View, alike, as_columns, masked, needed, numbers, truth


class _OfCompletions(View):
    """Views whose items are the completions themselves."""

    completions: Sequences

    @property
    def items(self) -> int:
        """b"""
        return len(self.completions.logp)

    @property
    def token_mask(self) -> Tensor:
        """``[b, t]`` all trained tokens: what ``[b, t]`` terms of these families are reduced over."""
        return self.completions.mask

    @property
    def token_mask_or_none(self) -> Tensor | None:
        return self.completions.mask_or_none


@dataclass(frozen=True, eq=False)
class Tokens(_OfCompletions):
    """Supervised completions: ``completions`` with b sequences."""

    completions: Sequences
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    stats: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_logps(cls, logp: Any, mask: Any = None, length: Any = None, **columns: Any) -> Tokens:
        """From ``[b, t]`` values with a mask, or ``[b]`` sums with lengths."""
        return cls(Sequences.build(logp, mask, length), as_columns(columns))


@dataclass(frozen=True, eq=False)
class Pairs(View):
    """Preference pairs: item i prefers ``chosen[i]`` to ``rejected[i]``."""

    chosen: Sequences
    rejected: Sequences
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    stats: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_logps(
        cls,
        policy_chosen: Any,
        policy_rejected: Any,
        ref_chosen: Any = None,
        ref_rejected: Any = None,
        len_chosen: Any = None,
        len_rejected: Any = None,
        *,
        mask_chosen: Any = None,
        mask_rejected: Any = None,
        extras_chosen: Mapping[str, Any] | None = None,
        extras_rejected: Mapping[str, Any] | None = None,
        **columns: Any,
    ) -> Pairs:
        """From ``[b]`` sums with lengths, or from ``[b, t]`` values with masks; ``columns`` are ``[b]``.

        ``extras``: further ``[b, t]`` quantities of the forward pass, such as ``{"log_sum_p2": ...}``.
        """
        chosen = Sequences.build(policy_chosen, mask_chosen, len_chosen, ref_chosen, extras_chosen)
        rejected = Sequences.build(policy_rejected, mask_rejected, len_rejected, ref_rejected, extras_rejected)
        named = as_columns(columns)
        alike("the chosen side", chosen.logp.shape, rejected=rejected.logp, **named)
        return cls(chosen, rejected, named)

    @property
    def items(self) -> int:
        """b"""
        return len(self.chosen.logp)

    @property
    def token_mask(self) -> Tensor:
        """``[b, t]`` tokens of the chosen completions (the NLL terms of ORPO, CPO, ...)."""
        return self.chosen.mask

    @property
    def token_mask_or_none(self) -> Tensor | None:
        return self.chosen.mask_or_none


@dataclass(frozen=True, eq=False)
class Unpaired(_OfCompletions):
    """Completions with a boolean label; ``mismatched`` holds each prompt with another row's completion."""

    completions: Sequences
    label: Tensor
    """``[b]`` boolean: desirable."""
    mismatched: Sequences | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    stats: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_logps(
        cls,
        policy: Any,
        label: Any,
        ref: Any = None,
        length: Any = None,
        *,
        mask: Any = None,
        mismatched: Any = None,
        mismatched_ref: Any = None,
        mismatched_mask: Any = None,
        **columns: Any,
    ) -> Unpaired:
        """From ``[b]`` sums or ``[b, t]`` values with masks; the mismatched pass may be of another size."""
        pair = None
        if mismatched is not None:
            pair = Sequences.build(mismatched, mismatched_mask, None, mismatched_ref)
        completions, labels, named = (
            Sequences.build(policy, mask, length, ref),
            truth(label, "label"),
            as_columns(columns),
        )
        alike("the completions", completions.logp.shape, label=labels, **named)
        return cls(completions, labels, pair, named)


@dataclass(frozen=True, eq=False)
class Ranked(View):
    """Lists: k completions of one prompt with a reward each; ragged lists are padded and ``present`` is False there.

    ``logp`` (and ``ref``) for policies, ``score`` for a reward head.
    """

    rewards: Tensor
    """``[b, k]`` what the completions are worth: psi; only its order matters to ranking losses."""
    present: Tensor
    """``[b, k]`` boolean: a completion, not padding."""
    logp_or_none: Tensor | None = None
    length_or_none: Tensor | None = None
    ref_or_none: Tensor | None = None
    score_or_none: Tensor | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    stats: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_logps(
        cls,
        policy: Any,
        ref: Any = None,
        *,
        length: Any = None,
        rewards: Any = None,
        ranks: Any = None,
        present: Any = None,
        mask: Any = None,
        **columns: Any,
    ) -> Ranked:
        """From ``[b, k]`` sums (with lengths), or ``[b, k, t]`` values with a mask.

        Args:
            rewards: ``[b, k]``; or ``ranks``: 1 is the best.  Without either the list is given best first.
        """
        policy = numbers(policy, "log-probabilities")
        ref = None if ref is None else numbers(ref, "reference log-probabilities")
        alike("the list of log-probabilities", policy.shape, reference=ref)
        if mask is not None:
            mask = torch.as_tensor(mask).bool()
            present = mask.any(-1) if present is None else present
            policy, length = masked(policy, mask).sum(-1), mask.sum(-1)
            ref = None if ref is None else masked(ref, mask).sum(-1)
        rewards, present = _ranking(policy, rewards, ranks, present)
        return cls(
            rewards=rewards,
            present=present,
            logp_or_none=masked(policy, present),
            length_or_none=None if length is None else torch.as_tensor(length),
            ref_or_none=None if ref is None else masked(ref, present).detach(),
            columns=as_columns(columns),
        )

    @classmethod
    def from_scores(
        cls, scores: Any, rewards: Any = None, *, ranks: Any = None, present: Any = None, **columns: Any
    ) -> Ranked:
        """From a reward head's scores ``[b, k]``."""
        scores = numbers(scores, "scores")
        rewards, present = _ranking(scores, rewards, ranks, present)
        return cls(rewards, present, score_or_none=masked(scores, present), columns=as_columns(columns))

    @property
    def logp(self) -> Tensor:
        """``[b, k]`` summed log-probabilities S, zero where absent."""
        return needed(self.logp_or_none, "log-probabilities")

    @property
    def ref(self) -> Tensor:
        """``[b, k]`` the reference's summed log-probabilities R, detached."""
        return needed(self.ref_or_none, "reference log-probabilities")

    @property
    def logratio(self) -> Tensor:
        """``[b, k]`` l = S - R, zero where absent."""
        return self.logp - self.ref

    @property
    def score(self) -> Tensor:
        """``[b, k]`` a reward head's scores, zero where absent."""
        return needed(self.score_or_none, "scores of a reward head")

    @property
    def items(self) -> int:
        """b: lists"""
        return len(self.rewards)

    @property
    def token_mask(self) -> Tensor:
        """Lists have no token-level terms."""
        raise DataError("listwise losses have no token-level terms")


def _ranking(like: Tensor, rewards: Any, ranks: Any, present: Any) -> tuple[Tensor, Tensor]:
    """Rewards and presence ``[b, k]``: given, or from ranks, or from the order of the list."""
    if rewards is not None and ranks is not None:
        raise DataError("give rewards or ranks of the completions, not both")
    present = torch.ones(like.shape, dtype=torch.bool) if present is None else torch.as_tensor(present).bool()
    if rewards is None:
        ranks = torch.arange(like.shape[1]).expand(like.shape) if ranks is None else torch.as_tensor(ranks)
        rewards = -ranks
    rewards = numbers(rewards, "rewards")
    alike("the list", like.shape, rewards=rewards, present=present)
    return masked(rewards.to(like.dtype), present).detach(), present


@dataclass(frozen=True, eq=False)
class Rollouts(Masked):
    """Sampled completions with rewards and advantages; item i belongs to prompt ``groups[i]``."""

    logp: Tensor
    """``[b, t]`` the policy now, zero outside the mask."""
    old: Tensor
    """``[b, t]`` the policy that the update started from (trainer engine), detached."""
    mask: Tensor
    """``[b, t]`` boolean: the policy's own tokens."""
    rewards: Tensor
    """``[b]``"""
    groups: Tensor
    """``[b]`` integer: which prompt."""
    advantage: Tensor
    """``[b, t]``"""
    ref_or_none: Tensor | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    stats: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_logps(
        cls,
        logp: Any,
        old: Any,
        mask: Any,
        rewards: Any,
        groups: Any,
        ref: Any = None,
        advantage: Any = None,
        **columns: Any,
    ) -> Rollouts:
        """From ``[b, t]`` values with a mask; ``advantage``: ``[b, t]``, or ``[b]`` (spread over tokens)."""
        logp, mask = numbers(logp, "log-probabilities"), torch.as_tensor(mask).bool()
        old, ref = numbers(old, "old log-probabilities"), None if ref is None else numbers(ref, "reference")
        alike("the log-probabilities", logp.shape, mask=mask, old=old, reference=ref)
        zero = torch.zeros_like(logp)
        adv = zero if advantage is None else numbers(advantage, "advantage").to(logp.dtype)
        adv = adv[:, None].expand_as(logp) if adv.dim() == 1 else adv
        return cls(
            logp=torch.where(mask, logp, zero),
            old=torch.where(mask, old, zero).detach(),
            mask=mask,
            rewards=numbers(rewards, "rewards"),
            groups=torch.as_tensor(groups),
            advantage=torch.where(mask, adv, zero).detach(),
            ref_or_none=None if ref is None else torch.where(mask, ref, zero).detach(),
            columns=as_columns(columns),
        )

    @property
    def ref(self) -> Tensor:
        """``[b, t]`` the reference's log-probabilities, detached."""
        return needed(self.ref_or_none, "reference log-probabilities")

    @property
    def ratio(self) -> Tensor:
        """``[b, t]`` rho = exp(logp - old); one outside the mask.

        Log-ratios are cut at ±20 (as in verl), far outside any clip range, so that no gradient overflows.
        """
        return (self.logp - self.old).clamp(-20.0, 20.0).exp()
