"""From a packed batch and its per-token outputs to the family view that an algorithm sees; and diagnostics.

The flat order everywhere is: groups in order, their completions in order, trained tokens in order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steelyard.algorithms.core import AlgorithmSpec, Counts
from steelyard.data.numbers import is_given
from steelyard.data.packing import PackedBatch
from steelyard.errors import DataError
from steelyard.models.logprobs import Distributions
from steelyard.types import Distill, Group, Pairs, Ranked, Rollouts, Scores, Sequences, Tokens, TokenScores, Unpaired

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

    def pad_rows(self, values: Tensor, chosen: np.ndarray) -> Tensor:
        """Flat rows ``[n, v]`` -> ``[b, t, v]`` of the chosen completions, zero-padded."""
        lengths = self.lengths[chosen]
        shown = np.arange(lengths.max(initial=0))[None, :] < lengths[:, None]
        starts = self.starts[chosen]
        source = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)] or [[]])
        rows = values.index_select(0, torch.from_numpy(source.astype(np.int64)).to(values.device))
        empty = values.new_zeros(shown.size, values.shape[-1])
        place = torch.from_numpy(np.flatnonzero(shown)).to(values.device)
        return empty.index_copy(0, place, rows).view(*shown.shape, values.shape[-1])

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

    def number_column(self, name: str, like: Tensor, chosen: np.ndarray | None, *, optional: bool) -> Tensor | None:
        """A declared column: of the groups ``[groups]``, or of the chosen completions ``[b]``.

        A completion without a number of its own has its group's.  None: optional, and nobody has it.
        """
        items = [(g, None) for g in self.groups]
        if chosen is not None:
            items = [(self.groups[int(self.owner[i])], int(self.index[i])) for i in chosen.tolist()]
        values = [
            g.completion_columns[name][i] if i is not None and name in g.completion_columns else g.columns.get(name)
            for g, i in items
        ]
        if optional and not any(is_given(value) for value in values):
            return None
        return self.tensor([_number(g.key, name, value) for (g, _), value in zip(items, values, strict=True)], like)

    @staticmethod
    def tensor(values: Any, like: Tensor) -> Tensor:
        """Numbers on the device and of the type of ``like``."""
        return torch.as_tensor(np.asarray(values)).to(device=like.device, dtype=like.dtype)


def _number(key: str, name: str, value: Any) -> float:
    """The number of a row in a declared column."""
    if not is_given(value):
        raise DataError(f"group {key}: the column '{name}' is missing")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise DataError(f"group {key}: column '{name}': expected a number, got {value!r}") from None


@dataclass(frozen=True, eq=False)
class Micro:
    """One micro-batch after its forward pass; token values ``[n]`` in the flat order."""

    spec: AlgorithmSpec
    flat: Flat
    logp: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    scores: Tensor | None = None
    """``[K]`` of completions, or ``[n, c]`` of tokens."""
    distributions: Distributions | None = None

    def sequences(self, chosen: np.ndarray, *, detach: bool = False) -> Sequences:
        """The :class:`Sequences` of the chosen completions, with reference log-probabilities where attached."""
        assert self.logp is not None
        logp = self.logp.detach() if detach else self.logp
        padded, mask = self.flat.pad(logp, chosen)
        ref = self.flat.token_column("ref", logp)
        extras = {name: self.flat.pad(values, chosen)[0] for name, values in self.extras.items()}
        return Sequences.of_tokens(padded, mask, None if ref is None else self.flat.pad(ref, chosen)[0], extras)

    def columns(self, like: Tensor, chosen: np.ndarray | None = None) -> dict[str, Tensor]:
        """The declared columns, one value per group or per chosen completion; optional ones where rows carry them."""
        declared = {**dict.fromkeys(self.spec.columns, False), **dict.fromkeys(self.spec.optional_columns, True)}
        found = {n: self.flat.number_column(n, like, chosen, optional=optional) for n, optional in declared.items()}
        return {name: values for name, values in found.items() if values is not None}


# --------------------------------------------------------------------------------------------------
# Views


def build_view(
    spec: AlgorithmSpec,
    batch: PackedBatch,
    *,
    logp: Tensor | None = None,
    extras: Mapping[str, Tensor] | None = None,
    scores: Tensor | None = None,
    distributions: Distributions | None = None,
) -> Any:
    """The view of one micro-batch.

    Args:
        logp: ``[n]`` log-probabilities of the trained tokens, in the flat order; ``extras`` likewise.
        scores: a head's scores: ``[K]`` of completions, or ``[n, c]`` of tokens.
        distributions: of student and teacher.
    """
    return _BUILDERS[spec.family](Micro(spec, Flat(batch.groups), logp, extras or {}, scores, distributions))


def _tokens(micro: Micro) -> Tokens:
    trained = np.flatnonzero(micro.flat.trained)
    completions = micro.sequences(trained)
    return Tokens(completions, micro.columns(completions.logp, trained))


def _pairs(micro: Micro) -> Pairs:
    chosen, rejected = (micro.sequences(side) for side in _sides(micro.flat))
    return Pairs(chosen, rejected, micro.columns(chosen.logp))


def _scores(micro: Micro) -> Scores:
    assert micro.scores is not None
    sides = (torch.from_numpy(side).to(micro.scores.device) for side in _sides(micro.flat))
    chosen, rejected = (micro.scores.index_select(0, side) for side in sides)
    return Scores(chosen, rejected, micro.columns(chosen))


def _sides(flat: Flat) -> tuple[np.ndarray, np.ndarray]:
    for group in flat.groups:
        if sum(group.trained) != 2:
            raise DataError(f"group {group.key}: a preference pair has two completions, this has {group.k}")
    return np.flatnonzero(flat.index == 0), np.flatnonzero(flat.index == 1)


def _unpaired(micro: Micro) -> Unpaired:
    flat = micro.flat
    trained, other = np.flatnonzero(flat.trained), np.flatnonzero(~flat.trained)
    completions = micro.sequences(trained)
    return Unpaired(
        completions=completions,
        label=torch.from_numpy(flat.completion_column("label", trained).astype(bool)).to(completions.logp.device),
        mismatched=micro.sequences(other, detach=True) if len(other) else None,
        columns=micro.columns(completions.logp, trained),
    )


def _ranked(micro: Micro) -> Ranked:
    """Lists ``[b, k]`` of the groups' completions, padded to the longest."""
    flat = micro.flat
    trained = np.flatnonzero(flat.trained)
    sizes = np.array([sum(g.trained) for g in flat.groups], dtype=np.int64)
    present = np.arange(sizes.max(initial=0))[None, :] < sizes[:, None]
    place = torch.from_numpy(np.flatnonzero(present))

    def spread(values: Tensor) -> Tensor:
        empty = values.new_zeros(present.size)
        return empty.index_copy(0, place.to(values.device), values).view(present.shape)

    one = micro.scores if micro.scores is not None else micro.logp
    assert one is not None
    rewards = spread(flat.tensor(flat.completion_column("score", trained), one))
    shown = torch.from_numpy(present).to(one.device)
    columns = micro.columns(one)
    if micro.scores is not None:
        index = torch.from_numpy(trained).to(one.device)
        return Ranked.from_scores(spread(one.index_select(0, index)), rewards, present=shown, **columns)
    found = micro.sequences(trained)
    ref = None if found.ref_or_none is None else spread(found.ref)
    length = spread(found.length.to(one.dtype))
    return Ranked.from_logps(spread(found.logp), ref, length=length, rewards=rewards, present=shown, **columns)


def _token_scores(micro: Micro) -> TokenScores:
    flat, scores = micro.flat, micro.scores
    assert scores is not None
    trained = np.flatnonzero(flat.trained)
    padded = torch.stack([flat.pad(channel, trained)[0] for channel in scores.unbind(-1)], -1)
    logp = None if micro.logp is None else flat.pad(micro.logp, trained)[0]
    columns = micro.columns(scores, trained)
    if micro.spec.head == "token_labels":
        found = flat.token_column("step_label", scores)
        if found is None:
            raise DataError(f"group {flat.groups[0].key}: the token column 'step_label' is missing")
        labels, mask = flat.pad(found, trained)
        return TokenScores.from_scores(padded, labels.nan_to_num(0.0), mask & ~labels.isnan(), logp, **columns)
    _, mask = flat.pad(scores[:, 0], trained)
    labels = flat.tensor(flat.completion_column("label", trained), scores)
    return TokenScores.from_scores(padded, labels, mask, logp, **columns)


def _distill(micro: Micro) -> Distill:
    flat, found = micro.flat, micro.distributions
    assert found is not None
    trained = np.flatnonzero(flat.trained)
    logp, mask = flat.pad(found.logp, trained)
    old = flat.token_column("old", found.logp)
    behaviour = flat.token_column("behaviour", found.logp)
    owns = all("own" in g.completion_columns for g in flat.groups)
    own = flat.completion_column("own", trained) if owns else np.zeros(len(trained), dtype=bool)
    columns = micro.columns(found.logp, trained)
    if behaviour is not None:
        columns["behaviour"] = flat.pad(behaviour, trained)[0]
    return Distill(
        student=flat.pad_rows(found.student, trained),
        teacher=flat.pad_rows(found.teacher, trained).detach(),
        logp=logp,
        teacher_logp=flat.pad(found.teacher_logp, trained)[0].detach(),
        old=logp.detach() if old is None else flat.pad(old, trained)[0],
        mask=mask,
        own=torch.from_numpy(own.astype(bool)).to(logp.device),
        columns=columns,
    )


def _rollouts(micro: Micro) -> Rollouts:
    flat, logp = micro.flat, micro.logp
    assert logp is not None
    chosen = np.flatnonzero(flat.trained)
    padded, mask = flat.pad(logp, chosen)
    token = {name: flat.token_column(name, logp) for name in ("ref", "old", "behaviour")}
    values = {name: flat.pad(column, chosen)[0] for name, column in token.items() if column is not None}
    columns = micro.columns(logp, chosen)
    if "behaviour" in values:
        columns["behaviour"] = values["behaviour"]
    advantage = None
    if micro.spec.advantage is not None:
        advantage = flat.tensor(flat.completion_column("advantage", chosen), logp)
    return Rollouts.from_logps(
        logp=padded,
        # One update per rollout batch: the policy that the update starts from is the policy itself.
        old=values.get("old", padded.detach()),
        mask=mask,
        rewards=flat.tensor(flat.completion_column("reward", chosen), logp),
        groups=torch.from_numpy(flat.owner[chosen]).to(logp.device),
        ref=values.get("ref"),
        advantage=advantage,
        **columns,
    )


_BUILDERS: dict[str, Callable[[Micro], Any]] = {
    "Tokens": _tokens,
    "Pairs": _pairs,
    "Scores": _scores,
    "Unpaired": _unpaired,
    "Ranked": _ranked,
    "Rollouts": _rollouts,
    "TokenScores": _token_scores,
    "Distill": _distill,
}


def step_counts(spec: AlgorithmSpec, groups: Sequence[Group]) -> Counts:
    """The global denominators of a step, known before any forward pass."""
    trained = [
        _labelled(group, index) if spec.head == "token_labels" else int(mask.sum())
        for group in groups
        for index, (mask, wanted) in enumerate(zip(group.masks, group.trained, strict=True))
        if wanted and (spec.family != "Pairs" or index == 0)
    ]
    items = len(groups) if spec.family in ("Pairs", "Scores", "Ranked") else len(trained)
    return Counts(items=float(items), tokens=float(sum(trained)))


def _labelled(group: Group, index: int) -> int:
    """Trained tokens of a completion that carry a step label."""
    labels = np.asarray(group.token_columns["step_label"][index])
    return int((~np.isnan(labels) & np.asarray(group.masks[index], dtype=bool)).sum())


# --------------------------------------------------------------------------------------------------
# Diagnostics: one ruler per family


def diagnostics(view: Any, *, costs: bool = False) -> dict[str, Tensor]:
    """Per-item values ``[b]`` whose step means are logged (maxima for names ending in ``/max``).

    Implicit rewards are summed log-ratios to the reference (beta = 1), so that methods with different
    betas, or none, are measured with one ruler.
    """
    with torch.no_grad():
        if costs:  # a reward is a cost with its sign turned
            view = dataclasses.replace(view, chosen=-view.chosen, rejected=-view.rejected)
        return _DIAGNOSTICS[type(view)](view)


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


def _score_diagnostics(view: Scores) -> dict[str, Tensor]:
    margin = view.chosen - view.rejected
    return {
        "rewards/chosen": view.chosen,
        "rewards/rejected": view.rejected,
        "rewards/margins": margin,
        "rewards/accuracies": _wins(margin),
    }


def _ranked_diagnostics(view: Ranked) -> dict[str, Tensor]:
    """How often the completion with the highest reward has the highest score (or implicit reward)."""
    implicit = view.logp_or_none if view.ref_or_none is None else view.logratio
    values = view.score if implicit is None else implicit
    if not values.numel():
        return {}
    lowest = torch.finfo(values.dtype).min
    best = view.rewards.masked_fill(~view.present, lowest).argmax(-1)
    return {"rewards/accuracies": (values.masked_fill(~view.present, lowest).argmax(-1) == best).to(values.dtype)}


def _token_score_diagnostics(view: TokenScores) -> dict[str, Tensor]:
    """Accuracy of the labels, per completion over its labelled tokens; scores of one output are cut at one half."""
    said = view.scores.argmax(-1) if view.scores.shape[-1] > 1 else view.score > 0.5
    right = ((said == view.labels) & view.mask).to(view.scores.dtype)
    some = view.mask.any(-1)
    return {"rewards/accuracies": (right.sum(-1) / view.mask.sum(-1).clamp(min=1))[some]}


def _distill_diagnostics(view: Distill) -> dict[str, Tensor]:
    student, teacher = view.at()
    count = view.mask.sum(-1).clamp(min=1)
    kl = (teacher.exp() * (teacher - student)).sum(-1) * view.mask
    return {"logps/mean": view.logp.sum(-1) / count, "kl/teacher": kl.sum(-1) / count}


_DIAGNOSTICS: dict[type, Callable[[Any], dict[str, Tensor]]] = {
    Tokens: lambda view: {"logps/mean": view.completions.mean},
    Pairs: _pair_diagnostics,
    Unpaired: _unpaired_diagnostics,
    Ranked: _ranked_diagnostics,
    Rollouts: _rollout_diagnostics,
    Scores: _score_diagnostics,
    TokenScores: _token_score_diagnostics,
    Distill: _distill_diagnostics,
}
