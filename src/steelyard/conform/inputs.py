"""Random inputs of every family view, in the form of its constructor's keyword arguments.

A *kind* is a family, or a family with another head: ``RankedScores`` (lists scored by a reward head),
``TokenLabels`` (two label logits per token).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from steelyard.algorithms.core import AlgorithmSpec, Extra
from steelyard.types import Distill, Pairs, Ranked, Rollouts, Scores, Tokens, TokenScores, Unpaired

Raw = dict[str, Tensor]
"""``[b]`` values, and ``[b, t]`` or ``[b, t, v]`` values with masks."""


def _pairs(**raw: Tensor) -> Pairs:
    """Pairs; inputs such as ``log_sum_p2_chosen`` are extras."""
    extras = {
        f"extras_{side}": {name: raw.pop(f"{name}_{side}") for name in get_args(Extra) if f"{name}_{side}" in raw}
        for side in ("chosen", "rejected")
    }
    return Pairs.from_logps(**raw, **extras)


def _ranked(*, mask: Tensor, **raw: Tensor) -> Ranked:
    return Ranked.from_logps(**raw, present=mask)


def _ranked_scores(*, mask: Tensor, **raw: Tensor) -> Ranked:
    return Ranked.from_scores(**raw, present=mask)


BUILD: dict[str, Callable[..., Any]] = {
    "Tokens": Tokens.from_logps,
    "Pairs": _pairs,
    "Unpaired": Unpaired.from_logps,
    "Ranked": _ranked,
    "RankedScores": _ranked_scores,
    "Rollouts": Rollouts.from_logps,
    "Scores": Scores.from_scores,
    "TokenScores": TokenScores.from_scores,
    "TokenLabels": TokenScores.from_scores,
    "Distill": Distill.from_logits,
}
POLICY = {
    "Tokens": ("logp",),
    "Pairs": ("policy_chosen", "policy_rejected"),
    "Unpaired": ("policy",),
    "Ranked": ("policy",),
    "RankedScores": ("scores",),
    "Rollouts": ("logp",),
    "Scores": ("chosen", "rejected"),
    "TokenScores": ("scores", "logp"),
    "TokenLabels": ("scores",),
    "Distill": ("student",),
}
"""The inputs that carry a gradient."""
REFERENCE = {
    "Tokens": {},
    "Pairs": {"ref_chosen": "policy_chosen", "ref_rejected": "policy_rejected"},
    "Unpaired": {"ref": "policy", "mismatched_ref": "mismatched"},
    "Ranked": {"ref": "policy"},
    "RankedScores": {},
    "Rollouts": {"ref": "logp", "old": "logp"},
    "Scores": {},
    "TokenScores": {},
    "TokenLabels": {},
    "Distill": {"teacher": "student"},
}
"""Frozen log-probabilities, and the policy's of the same tokens."""


def kind_of(spec: AlgorithmSpec) -> str:
    """Which inputs an algorithm takes."""
    special = {("Ranked", "score"): "RankedScores", ("TokenScores", "token_labels"): "TokenLabels"}
    return special.get((spec.family, spec.head), spec.family)


def build(spec: AlgorithmSpec, raw: Raw) -> Any:
    """The view of ``raw`` for an algorithm."""
    return BUILD[kind_of(spec)](**raw)


def policy_inputs(spec: AlgorithmSpec) -> tuple[str, ...]:
    """The inputs that carry a gradient: extras count where a loss may not treat them as constants."""
    differentiable = [f"{name}_{side}" for name in spec.extras if name == "ref_kl" for side in ("chosen", "rejected")]
    return (*POLICY[kind_of(spec)], *differentiable)


def inputs_of(spec: AlgorithmSpec, *, items: int = 5, seed: int = 0) -> Raw:
    """Random inputs with the columns and extras that the algorithm declares."""
    raw = random_inputs(kind_of(spec), items=items, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    for name in spec.columns:
        value = rand(items)
        if name.endswith("_chosen"):
            value = value + 1.0  # the better side has the higher score
        raw[name] = torch.where(value % 1 < 0.5, -1.0, 1.0).double() if name.startswith("sign") else value
    for name in spec.extras:
        sign = -1.0 if name == "log_sum_p2" else 1.0
        raw |= {f"{name}_{side}": sign * rand(*raw[f"policy_{side}"].shape) for side in ("chosen", "rejected")}
    return raw


def at_reference(spec: AlgorithmSpec, raw: Raw, vocabulary: int) -> Raw:
    """The neutral point: the reference (and the old policy) is the policy; without a reference, uniform."""
    raw = dict(raw)
    if spec.reference == "none" and not spec.teacher:
        uniform = -math.log(vocabulary)
        logps = [key for key in policy_inputs(spec) if raw[key].dim() == 2 and key != "scores"]
        raw |= {key: torch.full_like(raw[key], uniform) for key in logps}
    if spec.family == "Scores":
        raw["rejected"] = raw["chosen"].clone()
    if kind_of(spec) in ("RankedScores", "TokenScores", "TokenLabels"):
        raw["scores"] = torch.zeros_like(raw["scores"])
    return raw | {frozen: raw[live].clone() for frozen, live in REFERENCE[kind_of(spec)].items()}


def directions(spec: AlgorithmSpec, raw: Raw) -> Raw:
    """+1 where a higher input must raise the loss, -1 where it must lower it; empty where nothing says so."""
    one = torch.ones((), dtype=torch.float64)
    known = {
        "Tokens": lambda: {"logp": -one},
        "Pairs": lambda: {"policy_chosen": -one, "policy_rejected": one},
        "Unpaired": lambda: {"policy": torch.where(raw["label"], -one, one)[:, None]},
        "Rollouts": lambda: {"logp": -raw["advantage"].sign()},
        "Scores": lambda: {"chosen": -one, "rejected": one},
        "Ranked": lambda: {"policy": _best_and_worst(raw)},
        "RankedScores": lambda: {"scores": _best_and_worst(raw)},
    }
    return known.get(kind_of(spec), dict)()


def _best_and_worst(raw: Raw) -> Tensor:
    """-1 at the best, +1 at the worst completion of a list, 0 elsewhere."""
    best = raw["rewards"].masked_fill(~raw["mask"], -torch.inf).argmax(-1, keepdim=True)
    worst = raw["rewards"].masked_fill(~raw["mask"], torch.inf).argmin(-1, keepdim=True)
    return torch.zeros_like(raw["rewards"]).scatter(-1, worst, 1.0).scatter(-1, best, -1.0)


def mask_of(key: str) -> str:
    """The name of the mask that belongs to a ``[b, t]`` input."""
    if key.startswith("mismatched"):
        return "mismatched_mask"
    side = key.rpartition("_")[2]
    return f"mask_{side}" if side in ("chosen", "rejected") else "mask"


def tokens_of(raw: Raw) -> list[str]:
    """The names of the ``[b, t, ...]`` inputs that are not masks."""
    return [key for key, value in raw.items() if value.dim() > 1 and value.is_floating_point()]


def widen(value: Tensor, by: int) -> Tensor:
    """``[b, t, ...]`` with ``by`` more positions; anything else as it is."""
    return F.pad(value, (0, 0) * (value.dim() - 2) + (0, by)) if value.dim() > 1 else value


def random_inputs(kind: str, *, items: int = 5, seed: int = 0) -> Raw:
    """Ragged float64 inputs, with holes in the masks (tool tokens) and a policy near its reference."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def mask(width: int) -> Tensor:
        lengths = torch.randint(1, width, (items,), generator=generator)
        lengths[0] = width
        inside = (torch.arange(width) < lengths[:, None]) & (rand(items, width) < 0.8)
        return inside | (torch.arange(width) == lengths[:, None] - 1)

    def near(logp: Tensor, shift: float = 0.0) -> Tensor:
        return logp + shift + 0.4 * (rand(*logp.shape) - 0.5)

    def logps(width: int) -> Tensor:
        return -2.5 * rand(items, width) - 0.05

    if kind == "Tokens":
        return {"logp": logps(6), "mask": mask(6)}
    if kind == "Pairs":
        chosen, rejected = logps(7), logps(5)
        return {
            "policy_chosen": chosen,
            "policy_rejected": rejected,
            "ref_chosen": near(chosen),
            "ref_rejected": near(rejected),
            "mask_chosen": mask(7),
            "mask_rejected": mask(5),
        }
    if kind == "Unpaired":
        policy, mismatched = logps(6), logps(4)
        return {
            "policy": policy,
            "ref": near(policy),
            "label": torch.arange(items) % 3 > 0,
            "mask": mask(6),
            "mismatched": mismatched,
            "mismatched_ref": near(mismatched, -0.2),  # a mean log-ratio above zero: KTO's z0 is not cut
            "mismatched_mask": mask(4),
        }
    if kind == "Rollouts":
        logp = logps(6)
        return {
            "logp": logp,
            "old": near(logp),
            "ref": near(logp),
            "mask": mask(6),
            "rewards": rand(items),
            "groups": torch.arange(items) // 2,
            "advantage": rand(items, 6) * 2 - 1,
        }
    if kind in ("Ranked", "RankedScores"):
        present = torch.arange(4) < torch.tensor([4, 3, 2, 4, 3])[torch.arange(items) % 5, None]
        live = 4 * logps(4)
        named = {"policy": live, "ref": near(live)} if kind == "Ranked" else {"scores": rand(items, 4) * 4 - 2}
        return {**named, "rewards": rand(items, 4), "mask": present}
    if kind in ("TokenScores", "TokenLabels"):
        labels = (torch.arange(items) % 3 > 0).double()
        if kind == "TokenLabels":
            return {"scores": rand(items, 6, 2) * 4 - 2, "labels": (rand(items, 6) < 0.5).double(), "mask": mask(6)}
        return {"scores": rand(items, 6) * 4 - 2, "labels": labels, "mask": mask(6), "logp": logps(6)}
    if kind == "Distill":
        student = rand(items, 6, 7) * 4 - 2
        return {
            "student": student,
            "teacher": near(student),
            "labels": torch.randint(7, (items, 6), generator=generator),
            "mask": mask(6),
            "own": torch.arange(items) % 2 > 0,
        }
    return {"chosen": rand(items) * 4 - 2, "rejected": rand(items) * 4 - 2}


def take(raw: Raw, index: list[int]) -> Raw:
    """The items ``index``, trimmed to the width that they need (as a micro-batch would be)."""
    part = {key: value[index] for key, value in raw.items()}
    for key in list(part):
        if part[key].dim() > 1:
            used = part[mask_of(key) if "mask" not in key else key].any(0).nonzero()
            part[key] = part[key][:, : int(used.max()) + 1 if len(used) else 0]
    return part
