"""The one batch unit (:class:`Group`) and the family views that algorithms see.

Shapes: ``p`` prompt tokens, ``k`` completions of a prompt, ``t`` tokens of a completion, ``b`` items of a
view (pairs, completions, ...).  Token-level tensors of a view are right-padded ``[b, t]`` with a boolean
mask; everything that a view hands out is already masked, so an algorithm never meets a padding value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from steelyard.errors import DataError

# --------------------------------------------------------------------------------------------------
# Group


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """One prompt with k completions, and named columns: the only unit that the data path knows.

    Attributes:
        prompt: token ids ``int32[p]``; never empty (an empty prompt is the BOS token).
        completions: k arrays of token ids ``int32[t_k]``; may interleave tool and user tokens.
        masks: k arrays ``bool[t_k]``: True where the token is trained and scored.
        columns: values per group (``{"answer": "42"}``).
        completion_columns: arrays ``[k]`` per completion (``label``, ``score``, ``reward``).
        token_columns: k arrays ``float32[t_k]`` per name (``ref``, ``old``, ``advantage``).
        trained: ``[k]`` booleans; False marks a leaf that is only measured (KTO's mismatched completion).
        policy_version: optimizer steps that the writing policy had taken (-1: not written by a policy).
        key: a stable name of the row that this came from, for messages and records.
    """

    prompt: np.ndarray
    completions: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)
    completion_columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    token_columns: Mapping[str, tuple[np.ndarray, ...]] = field(default_factory=dict)
    trained: tuple[bool, ...] = ()
    policy_version: int = -1
    key: str = ""

    def __post_init__(self) -> None:
        if len(self.prompt) == 0:
            raise DataError(f"group {self.key or '?'}: the prompt has no token (an empty prompt is BOS)")
        if not self.trained:
            object.__setattr__(self, "trained", (True,) * len(self.completions))
        if not len(self.completions) == len(self.masks) == len(self.trained):
            raise DataError(f"group {self.key or '?'}: completions, masks and trained differ in number")
        for ids, mask in zip(self.completions, self.masks, strict=True):
            if len(ids) != len(mask):
                raise DataError(f"group {self.key or '?'}: a mask of {len(mask)} for {len(ids)} tokens")
        for name, values in self.token_columns.items():
            if [len(v) for v in values] != [len(c) for c in self.completions]:
                raise DataError(f"group {self.key or '?'}: token column '{name}' does not fit the tokens")

    @property
    def k(self) -> int:
        """Number of completions."""
        return len(self.completions)

    @property
    def tokens(self) -> int:
        """Tokens that a forward pass computes: the prompt once and every completion."""
        return len(self.prompt) + sum(len(c) for c in self.completions)

    @property
    def scored(self) -> int:
        """Tokens whose log-probability is computed (mask True, over all completions)."""
        return int(sum(int(m.sum()) for m in self.masks))

    def replace(self, **changes: Any) -> Group:
        """A copy with some attributes replaced."""
        return dataclasses.replace(self, **changes)


# --------------------------------------------------------------------------------------------------
# Views


def _pad_cat(tensors: Sequence[Tensor]) -> Tensor:
    if tensors[0].dim() < 2:
        return torch.cat(list(tensors))
    width = max(x.shape[1] for x in tensors)
    return torch.cat([torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in tensors])


def _map(value: Any, others: Sequence[Any], fn: Any) -> Any:
    """Apply ``fn([tensor, ...])`` over the same place of several views (tensors, nested views, dicts)."""
    if any((other is None) != (value is None) for other in others):
        raise DataError("views that carry different things (a reference, a mismatched pass) cannot be joined")
    if isinstance(value, Tensor):
        return fn([value, *others])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value,
            **{
                f.name: _map(getattr(value, f.name), [getattr(o, f.name) for o in others], fn)
                for f in dataclasses.fields(value)
            },
        )
    if isinstance(value, Mapping):
        return {key: _map(item, [o[key] for o in others], fn) for key, item in value.items()}
    return value


class View:
    """What all family views share: detaching, joining the micro-batches of a step, coupled statistics."""

    stats: Mapping[str, Tensor]

    @property
    def token_mask_or_none(self) -> Tensor | None:
        """``[b, t]`` the mask that token-level terms are reduced over; None when built from sums."""
        return None

    def detach(self) -> Self:
        """The same values without a graph."""
        return _map(self, [], lambda xs: xs[0].detach())

    @staticmethod
    def concat(views: Sequence[Any]) -> Any:
        """Join views of the same family along ``b`` (token tensors are re-padded)."""
        return _map(views[0], list(views[1:]), _pad_cat)

    def with_stats(self, stats: Mapping[str, Tensor]) -> Self:
        """The same view carrying statistics of the whole optimizer step (see ``coupled`` algorithms)."""
        return dataclasses.replace(self, stats=dict(stats))  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class Sequences(View):
    """b completions with the policy's (and the reference's) log-probabilities of their trained tokens.

    Built by :meth:`of_tokens` from ``[b, t]`` values or by :meth:`of_sums` from ``[b]`` sums with lengths.
    """

    logp: Tensor
    """``[b]`` sum of log p over trained tokens: S(y)."""
    length: Tensor
    """``[b]`` number of trained tokens: n(y)."""
    ref_or_none: Tensor | None = None
    token_logp_or_none: Tensor | None = None
    token_ref_or_none: Tensor | None = None
    mask_or_none: Tensor | None = None
    stats: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of_tokens(cls, logp: Tensor, mask: Tensor, ref: Tensor | None = None) -> Sequences:
        """From token values ``[b, t]`` and a boolean mask; values outside the mask are ignored."""
        mask = mask.bool()
        logp = torch.where(mask, logp, torch.zeros_like(logp))
        ref = None if ref is None else torch.where(mask, ref, torch.zeros_like(ref)).detach()
        return cls(
            logp=logp.sum(-1),
            length=mask.sum(-1),
            ref_or_none=None if ref is None else ref.sum(-1),
            token_logp_or_none=logp,
            token_ref_or_none=ref,
            mask_or_none=mask,
        )

    @classmethod
    def of_sums(cls, logp: Any, length: Any = None, ref: Any = None) -> Sequences:
        """From sums ``[b]``; without ``length`` anything length-normalised raises."""
        logp = torch.as_tensor(logp)
        return cls(
            logp=logp,
            length=torch.zeros_like(logp) if length is None else torch.as_tensor(length),
            ref_or_none=None if ref is None else torch.as_tensor(ref).detach(),
        )

    @classmethod
    def build(cls, logp: Any, mask: Any = None, length: Any = None, ref: Any = None) -> Sequences:
        """:meth:`of_tokens` when a mask is given, :meth:`of_sums` otherwise."""
        if mask is None:
            return cls.of_sums(logp, length, ref)
        as_tensor = torch.as_tensor
        return cls.of_tokens(as_tensor(logp), as_tensor(mask), None if ref is None else as_tensor(ref))

    @property
    def mean(self) -> Tensor:
        """``[b]`` average log-probability A = S/n."""
        return self.logp / self._lengths

    @property
    def ref(self) -> Tensor:
        """``[b]`` the reference's summed log-probability R(y), detached."""
        return self._need(self.ref_or_none, "reference log-probabilities")

    @property
    def logratio(self) -> Tensor:
        """``[b]`` l = S - R."""
        return self.logp - self.ref

    @property
    def mean_logratio(self) -> Tensor:
        """``[b]`` l / n."""
        return self.logratio / self._lengths

    @property
    def token_logp(self) -> Tensor:
        """``[b, t]`` log p of trained tokens, zero elsewhere."""
        return self._need(self.token_logp_or_none, "token-level log-probabilities")

    @property
    def token_ref(self) -> Tensor:
        """``[b, t]`` the reference's log p of trained tokens, zero elsewhere, detached."""
        return self._need(self.token_ref_or_none, "token-level reference log-probabilities")

    @property
    def mask(self) -> Tensor:
        """``[b, t]`` boolean: trained tokens."""
        return self._need(self.mask_or_none, "a token mask")

    @property
    def _lengths(self) -> Tensor:
        if self.mask_or_none is None and not bool((self.length > 0).all()):
            raise DataError("this loss divides by completion lengths: give the lengths (or masks)")
        return self.length

    @staticmethod
    def _need(value: Tensor | None, what: str) -> Tensor:
        if value is None:
            raise DataError(f"this loss needs {what}, and the view has none")
        return value


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
        return cls(Sequences.build(logp, mask, length), _columns(columns))


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
        **columns: Any,
    ) -> Pairs:
        """From ``[b]`` sums with lengths, or from ``[b, t]`` values with masks; ``columns`` are ``[b]``."""
        return cls(
            Sequences.build(policy_chosen, mask_chosen, len_chosen, ref_chosen),
            Sequences.build(policy_rejected, mask_rejected, len_rejected, ref_rejected),
            _columns(columns),
        )

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
        return cls(Sequences.build(policy, mask, length, ref), torch.as_tensor(label).bool(), pair, _columns(columns))


@dataclass(frozen=True, eq=False)
class Rollouts(View):
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
        logp, mask = torch.as_tensor(logp), torch.as_tensor(mask).bool()
        zero = torch.zeros_like(logp)
        adv = zero if advantage is None else torch.as_tensor(advantage).to(logp.dtype)
        adv = adv[:, None].expand_as(logp) if adv.dim() == 1 else adv
        return cls(
            logp=torch.where(mask, logp, zero),
            old=torch.where(mask, torch.as_tensor(old), zero).detach(),
            mask=mask,
            rewards=torch.as_tensor(rewards),
            groups=torch.as_tensor(groups),
            advantage=torch.where(mask, adv, zero).detach(),
            ref_or_none=None if ref is None else torch.where(mask, torch.as_tensor(ref), zero).detach(),
            columns=_columns(columns),
        )

    @property
    def ref(self) -> Tensor:
        """``[b, t]`` the reference's log-probabilities, detached."""
        return Sequences._need(self.ref_or_none, "reference log-probabilities")

    @property
    def ratio(self) -> Tensor:
        """``[b, t]`` rho = exp(logp - old); one outside the mask.

        Log-ratios are cut at ±20 (as in verl), far outside any clip range, so that no gradient overflows.
        """
        return (self.logp - self.old).clamp(-20.0, 20.0).exp()

    @property
    def items(self) -> int:
        """b"""
        return len(self.logp)

    @property
    def token_mask(self) -> Tensor:
        """``[b, t]`` the policy's own tokens."""
        return self.mask

    @property
    def token_mask_or_none(self) -> Tensor | None:
        return self.mask


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
        return cls(torch.as_tensor(chosen), torch.as_tensor(rejected), _columns(columns))

    @property
    def items(self) -> int:
        """b"""
        return len(self.chosen)

    @property
    def token_mask(self) -> Tensor:
        """Scores have no tokens."""
        raise DataError("reward-model losses have no token-level terms")


FAMILIES: dict[str, type[View]] = {view.__name__: view for view in (Tokens, Pairs, Unpaired, Rollouts, Scores)}
"""Every family view by class name; the annotation of an algorithm's first argument is one of them."""


def _columns(columns: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(value) for name, value in columns.items()}
