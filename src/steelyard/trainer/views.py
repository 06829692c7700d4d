"""From a packed batch and its per-token outputs to the family view that an algorithm sees; and diagnostics.

The flat order everywhere is: groups in order, their completions in order, trained tokens in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steelyard.algorithms.core import AlgorithmSpec, Counts
from steelyard.data.packing import PackedBatch
from steelyard.errors import DataError
from steelyard.types import Group, Pairs, Rollouts, Scores, Sequences, Tokens, Unpaired

# --------------------------------------------------------------------------------------------------
# Bookkeeping


class Flat:
    """Where each completion's trained tokens lie in the flat order of a batch."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = groups
        self.lengths = np.array([int(m.sum()) for g in groups for m in g.masks], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])[:-1]
        self.owner = np.array([i for i, g in enumerate(groups) for _ in range(g.k)], dtype=np.int64)
        self.index = np.array([j for g in groups for j in range(g.k)], dtype=np.int64)
        self.trained = np.array([t for g in groups for t in g.trained], dtype=bool)

    def pad(self, values: Tensor, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        """Flat token values -> ``[b, t]`` of the chosen completions, zero-padded, and the boolean mask."""
        if not len(chosen):
            return values[:0].view(0, 0), torch.zeros(0, 0, dtype=torch.bool, device=values.device)
        lengths = self.lengths[chosen]
        width = int(lengths.max())
        mask = torch.from_numpy(np.arange(width)[None, :] < lengths[:, None]).to(values.device)
        source = np.concatenate([np.arange(s, s + n) for s, n in zip(self.starts[chosen], lengths, strict=True)])
        target = np.flatnonzero(np.arange(width)[None, :] < lengths[:, None])
        rows = values.index_select(0, torch.from_numpy(source).to(values.device))
        empty = values.new_zeros(len(chosen) * width)
        padded = empty.index_copy(0, torch.from_numpy(target).to(values.device), rows)
        return padded.view(len(chosen), width), mask

    def token_column(self, name: str, like: Tensor) -> Tensor | None:
        """A token column of all groups as flat values; None when no group has it."""
        have = [name in g.token_columns for g in self.groups]
        if not any(have):
            return None
        if not all(have):
            missing = self.groups[have.index(False)].key
            raise DataError(f"token column '{name}' is missing in group {missing}")
        parts = [values[mask] for g in self.groups for values, mask in zip(g.token_columns[name], g.masks, strict=True)]
        flat = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        return torch.from_numpy(flat).to(device=like.device, dtype=like.dtype)

    def completion_column(self, name: str, chosen: np.ndarray) -> np.ndarray:
        """A completion column ``[b]`` of the chosen completions."""
        values = []
        for i in chosen.tolist():
            group = self.groups[int(self.owner[i])]
            if name not in group.completion_columns:
                raise DataError(f"group {group.key}: completion column '{name}' is missing")
            values.append(group.completion_columns[name][self.index[i]])
        return np.asarray(values)


def sequences(flat: Flat, logp: Tensor, chosen: np.ndarray) -> Sequences:
    """The :class:`Sequences` of the chosen completions, with reference log-probabilities where attached."""
    padded, mask = flat.pad(logp, chosen)
    ref = flat.token_column("ref", logp)
    return Sequences.of_tokens(padded, mask, None if ref is None else flat.pad(ref, chosen)[0])


# --------------------------------------------------------------------------------------------------
# Views


def build_view(family: str, batch: PackedBatch, values: Tensor) -> Any:
    """The view of one micro-batch.

    ``values``: the trained tokens' log-probabilities ``[n]`` in the flat order, or for ``Scores`` the
    completions' scores ``[K]``.
    """
    return _BUILDERS[family](Flat(batch.groups), values)


def _tokens(flat: Flat, logp: Tensor) -> Tokens:
    return Tokens(sequences(flat, logp, np.flatnonzero(flat.trained)))


def _pairs(flat: Flat, logp: Tensor) -> Pairs:
    chosen, rejected = _sides(flat)
    return Pairs(sequences(flat, logp, chosen), sequences(flat, logp, rejected))


def _scores(flat: Flat, scores: Tensor) -> Scores:
    chosen, rejected = (torch.from_numpy(side).to(scores.device) for side in _sides(flat))
    return Scores(scores.index_select(0, chosen), scores.index_select(0, rejected))


def _sides(flat: Flat) -> tuple[np.ndarray, np.ndarray]:
    for group in flat.groups:
        if sum(group.trained) != 2:
            raise DataError(f"group {group.key}: a preference pair has two completions, this has {group.k}")
    return np.flatnonzero(flat.index == 0), np.flatnonzero(flat.index == 1)


def _unpaired(flat: Flat, logp: Tensor) -> Unpaired:
    trained = np.flatnonzero(flat.trained)
    other = np.flatnonzero(~flat.trained)
    return Unpaired(
        completions=sequences(flat, logp, trained),
        label=torch.from_numpy(flat.completion_column("label", trained).astype(bool)).to(logp.device),
        mismatched=sequences(flat, logp.detach(), other) if len(other) else None,
    )


def _rollouts(flat: Flat, logp: Tensor) -> Rollouts:
    chosen = np.flatnonzero(flat.trained)
    padded, mask = flat.pad(logp, chosen)
    ref, old = flat.token_column("ref", logp), flat.token_column("old", logp)
    behaviour = flat.token_column("behaviour", logp)
    to = {"device": logp.device, "dtype": logp.dtype}
    return Rollouts.from_logps(
        logp=padded,
        # One update per rollout batch: the policy that the update starts from is the policy itself.
        old=padded.detach() if old is None else flat.pad(old, chosen)[0],
        mask=mask,
        rewards=torch.as_tensor(flat.completion_column("reward", chosen), **to),
        groups=torch.from_numpy(flat.owner[chosen]).to(logp.device),
        ref=None if ref is None else flat.pad(ref, chosen)[0],
        advantage=torch.as_tensor(flat.completion_column("advantage", chosen), **to),
        **({} if behaviour is None else {"behaviour": flat.pad(behaviour, chosen)[0]}),
    )


_BUILDERS: dict[str, Callable[[Flat, Tensor], Any]] = {
    "Tokens": _tokens,
    "Pairs": _pairs,
    "Scores": _scores,
    "Unpaired": _unpaired,
    "Rollouts": _rollouts,
}


def step_counts(spec: AlgorithmSpec, groups: Sequence[Group]) -> Counts:
    """The global denominators of a step, known before any forward pass."""
    trained = [
        int(mask.sum())
        for group in groups
        for index, (mask, wanted) in enumerate(zip(group.masks, group.trained, strict=True))
        if wanted and (spec.family != "Pairs" or index == 0)
    ]
    items = len(groups) if spec.family in ("Pairs", "Scores") else len(trained)
    return Counts(items=float(items), tokens=float(sum(trained)))


# --------------------------------------------------------------------------------------------------
# Diagnostics: one ruler per family


def diagnostics(view: Any) -> dict[str, Tensor]:
    """Per-item values ``[b]`` whose step means are logged (maxima for names ending in ``/max``).

    Implicit rewards are summed log-ratios to the reference (beta = 1), so that methods with different
    betas, or none, are measured with one ruler.
    """
    with torch.no_grad():
        if isinstance(view, Tokens):
            return {"logps/mean": view.completions.mean}
        if isinstance(view, Pairs):
            return _pair_diagnostics(view)
        if isinstance(view, Unpaired):
            return _unpaired_diagnostics(view)
        if isinstance(view, Rollouts):
            return _rollout_diagnostics(view)
        margin = view.chosen - view.rejected
        return {
            "rewards/chosen": view.chosen,
            "rewards/rejected": view.rejected,
            "rewards/margins": margin,
            "rewards/accuracies": _wins(margin),
        }


def _wins(margin: Tensor) -> Tensor:
    return (margin > 0).to(margin.dtype) + 0.5 * (margin == 0).to(margin.dtype)


def _pair_diagnostics(view: Pairs) -> dict[str, Tensor]:
    chosen, rejected = view.chosen, view.rejected
    values = {
        "logps/chosen": chosen.logp,
        "logps/rejected": rejected.logp,
        "logps/accuracies": _wins(chosen.logp - rejected.logp),
    }
    if chosen.ref_or_none is not None:
        margin = chosen.logratio - rejected.logratio
        values |= {
            "rewards/chosen": chosen.logratio,
            "rewards/rejected": rejected.logratio,
            "rewards/margins": margin,
            "rewards/accuracies": _wins(margin),
        }
    return values


def _unpaired_diagnostics(view: Unpaired) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}
    for side, rows in (("chosen", view.label), ("rejected", ~view.label)):
        where = torch.nonzero(rows).squeeze(-1)
        values[f"logps/{side}"] = view.completions.logp.index_select(0, where)
        if view.completions.ref_or_none is not None:
            values[f"rewards/{side}"] = view.completions.logratio.index_select(0, where)
    if "z0" in view.stats:
        values["kl"] = view.stats["z0"].reshape(1)
    return values


def _rollout_diagnostics(view: Rollouts) -> dict[str, Tensor]:
    if not view.mask.any():
        return {}
    count = view.mask.sum(-1).clamp(min=1)
    values = {"logps/mean": view.logp.sum(-1) / count}
    if view.ref_or_none is not None:
        difference = torch.where(view.mask, view.logp - view.ref, 0.0)
        values["kl"] = (torch.expm1(-difference) + difference).sum(-1) / count
    if "behaviour" in view.columns:
        gap = torch.where(view.mask, (view.logp - view.columns["behaviour"]).abs(), 0.0)
        values["sampling/sampling_logp_difference/mean"] = gap.sum(-1) / count
        values["sampling/sampling_logp_difference/max"] = gap.amax(-1)
    return values
