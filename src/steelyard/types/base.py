"""What the family views are made of: :class:`View` and :class:`Sequences`.

Shapes: ``p`` prompt tokens, ``k`` completions of a prompt, ``t`` tokens of a completion, ``b`` items of a
view (pairs, completions, ...).  Token-level tensors of a view are right-padded ``[b, t]`` with a boolean
mask; everything that a view hands out is already masked, so an algorithm never meets a padding value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from steelyard.errors import DataError


def needed(value: Tensor | None, what: str) -> Tensor:
    """``value``, or :class:`DataError` when the view was built without it."""
    if value is None:
        raise DataError(f"this loss needs {what}, and the view has none")
    return value


def numbers(values: Any, what: str) -> Tensor:
    """Numbers as a floating-point tensor; :class:`DataError` when they are ragged or no numbers."""
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what}: expected numbers in rows of one length (pad them and give a mask): {error}") from None
    return tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())


def alike(what: str, shape: torch.Size, **others: Tensor | None) -> None:
    """Raise :class:`DataError` unless every tensor has ``shape``: nothing is broadcast."""
    for name, value in others.items():
        if value is not None and value.shape != shape:
            raise DataError(f"{name} has the shape {list(value.shape)}, {what} has {list(shape)}; they must agree")


def truth(values: Any, what: str) -> Tensor:
    """Labels as booleans: True/False, 1/0 or 1/-1; anything else is a :class:`DataError`."""
    tensor = torch.as_tensor(values)
    if tensor.dtype != torch.bool and not bool(((tensor == 1) | (tensor == 0) | (tensor == -1)).all()):
        raise DataError(
            f"{what}: expected labels (true or false, 1 or 0, 1 or -1), got {tensor.flatten()[:4].tolist()}"
        )
    return tensor > 0


def as_columns(columns: Mapping[str, Any]) -> dict[str, Tensor]:
    """Named numbers as tensors."""
    return {name: numbers(value, f"the column '{name}'") for name, value in columns.items()}


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` ``[b, t, ...]`` with zeros outside ``mask`` ``[b, t]``, whatever stood there."""
    mask = mask.view(*mask.shape, *[1] * (values.dim() - mask.dim()))
    return torch.where(mask, values, torch.zeros_like(values))


def _pad_cat(tensors: Sequence[Tensor]) -> Tensor:
    if tensors[0].dim() < 2:
        return torch.cat(list(tensors))
    width = max(x.shape[1] for x in tensors)
    return torch.cat([_widen(x, width) for x in tensors])


def _widen(x: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, 0) * (x.dim() - 2) + (0, width - x.shape[1]))


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

    columns: Mapping[str, Tensor]
    stats: Mapping[str, Tensor]

    @property
    def progress(self) -> Tensor:
        """How much of the training is over, in [0, 1]: a scalar that schedules may use; 0 outside training."""
        return self.stats.get("progress", torch.zeros(()))

    def column(self, name: str) -> Tensor:
        """A declared column ``[b]`` of the rows, detached; :class:`DataError` when the view was built without it.

        The catalogue's suffixes ``_w`` and ``_l`` stand for ``_chosen`` and ``_rejected``.
        """
        short = name.replace("_chosen", "_w").replace("_rejected", "_l")
        return needed(self.columns.get(name, self.columns.get(short)), f"the column '{name}'").detach()

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
        """The same view carrying statistics of the whole optimizer step (see ``coupled`` algorithms).

        Scalars belong to the step; tensors ``[b, ...]`` to the items of this view.
        """
        return dataclasses.replace(self, stats=dict(stats))  # type: ignore[type-var]


class Masked(View):
    """Views of token values ``[b, t]`` under one mask."""

    mask: Tensor

    @property
    def items(self) -> int:
        """b"""
        return len(self.mask)

    @property
    def token_mask(self) -> Tensor:
        """``[b, t]`` the tokens that the loss is about."""
        return self.mask

    @property
    def token_mask_or_none(self) -> Tensor | None:
        return self.mask


def _first(length: Tensor) -> Tensor:
    """``[b, t]`` boolean: the first ``length`` positions of every row."""
    width = int(length.max()) if length.numel() else 0
    return torch.arange(width, device=length.device) < length[:, None]


@dataclass(frozen=True, eq=False)
class Sequences:
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
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """``[b, t]`` further quantities of the forward pass, zero outside the mask (see :meth:`extra`)."""

    @classmethod
    def of_tokens(
        cls, logp: Tensor, mask: Tensor, ref: Tensor | None = None, extras: Mapping[str, Tensor] | None = None
    ) -> Sequences:
        """From token values ``[b, t]`` and a boolean mask; values outside the mask are ignored."""
        mask = mask.bool()
        logp = masked(logp, mask)
        ref = None if ref is None else masked(ref, mask).detach()
        return cls(
            logp=logp.sum(-1),
            length=mask.sum(-1),
            ref_or_none=None if ref is None else ref.sum(-1),
            token_logp_or_none=logp,
            token_ref_or_none=ref,
            mask_or_none=mask,
            extras={name: masked(values, mask) for name, values in (extras or {}).items()},
        )

    @classmethod
    def of_sums(cls, logp: Any, length: Any = None, ref: Any = None) -> Sequences:
        """From sums ``[b]``; without ``length`` anything length-normalised raises."""
        logp = numbers(logp, "log-probabilities")
        if logp.dim() != 1:
            raise DataError(f"log-probabilities of shape {list(logp.shape)}: values of tokens need a mask")
        ref = None if ref is None else numbers(ref, "reference log-probabilities").detach()
        length = None if length is None else torch.as_tensor(length)
        alike("the sum of log-probabilities", logp.shape, reference=ref, length=length)
        return cls(
            logp=logp,
            length=torch.zeros_like(logp) if length is None else length,
            ref_or_none=ref,
            mask_or_none=None if length is None else _first(length),
        )

    @classmethod
    def build(
        cls,
        logp: Any,
        mask: Any = None,
        length: Any = None,
        ref: Any = None,
        extras: Mapping[str, Any] | None = None,
    ) -> Sequences:
        """:meth:`of_tokens` when a mask is given, :meth:`of_sums` otherwise (which has no extras)."""
        if mask is None:
            if extras:
                raise DataError(f"{', '.join(extras)}: token-level values need a mask")
            return cls.of_sums(logp, length, ref)
        logp, mask = numbers(logp, "log-probabilities"), torch.as_tensor(mask)
        ref = None if ref is None else numbers(ref, "reference log-probabilities")
        named = as_columns(extras or {})
        alike("the mask", mask.shape, log_probabilities=logp, reference=ref, **named)
        return cls.of_tokens(logp, mask, ref, named)

    @property
    def mean(self) -> Tensor:
        """``[b]`` average log-probability A = S/n."""
        return self.logp / self.n

    @property
    def ref(self) -> Tensor:
        """``[b]`` the reference's summed log-probability R(y), detached."""
        return needed(self.ref_or_none, "reference log-probabilities")

    @property
    def logratio(self) -> Tensor:
        """``[b]`` l = S - R."""
        return self.logp - self.ref

    @property
    def mean_logratio(self) -> Tensor:
        """``[b]`` l / n."""
        return self.logratio / self.n

    @property
    def token_logp(self) -> Tensor:
        """``[b, t]`` log p of trained tokens, zero elsewhere."""
        return needed(self.token_logp_or_none, "token-level log-probabilities")

    @property
    def token_nll(self) -> Tensor:
        """``[b, t]`` -log p of trained tokens; of a view built from sums with lengths, every token's mean share.

        For losses that are linear in it, and for no others.
        """
        if self.token_logp_or_none is None and self.mask_or_none is not None:
            return masked((-self.mean)[:, None].expand(self.mask_or_none.shape), self.mask_or_none)
        return -self.token_logp

    @property
    def token_ref(self) -> Tensor:
        """``[b, t]`` the reference's log p of trained tokens, zero elsewhere, detached."""
        return needed(self.token_ref_or_none, "token-level reference log-probabilities")

    @property
    def mask(self) -> Tensor:
        """``[b, t]`` boolean: trained tokens."""
        return needed(self.mask_or_none, "a token mask")

    @property
    def n(self) -> Tensor:
        """``[b]`` number of trained tokens; raises when the view was built from sums without lengths."""
        if self.token_logp_or_none is None and not bool((self.length > 0).all()):
            raise DataError("this loss uses completion lengths: give the lengths (or masks)")
        return self.length

    def extra(self, name: str) -> Tensor:
        """``[b, t]`` a declared quantity of the forward pass (``log_sum_p2``, ``entropy``, ``ref_kl``)."""
        return needed(self.extras.get(name), f"'{name}' of every token")

    def weighted_logratio(self, weight: Tensor) -> Tensor:
        """``[b]`` sum over tokens of weight ``[b, t]`` times the token's log-ratio (policy less reference)."""
        return ((self.token_logp - self.token_ref) * weight).sum(-1)
