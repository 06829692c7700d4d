"""Random inputs of every family view, in the form of its constructor's keyword arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steelyard.types import Pairs, Rollouts, Scores, Tokens, Unpaired

Raw = dict[str, Tensor]
"""``[b]`` values, and ``[b, t]`` values with masks."""

BUILD: dict[str, Callable[..., Any]] = {
    "Tokens": Tokens.from_logps,
    "Pairs": Pairs.from_logps,
    "Unpaired": Unpaired.from_logps,
    "Rollouts": Rollouts.from_logps,
    "Scores": Scores.from_scores,
}
POLICY = {
    "Tokens": ("logp",),
    "Pairs": ("policy_chosen", "policy_rejected"),
    "Unpaired": ("policy",),
    "Rollouts": ("logp",),
    "Scores": ("chosen", "rejected"),
}
"""The inputs that carry a gradient."""
REFERENCE = {
    "Tokens": {},
    "Pairs": {"ref_chosen": "policy_chosen", "ref_rejected": "policy_rejected"},
    "Unpaired": {"ref": "policy", "mismatched_ref": "mismatched"},
    "Rollouts": {"ref": "logp", "old": "logp"},
    "Scores": {},
}
"""Frozen log-probabilities, and the policy's log-probabilities of the same tokens."""


def mask_of(key: str) -> str:
    """The name of the mask that belongs to a ``[b, t]`` input."""
    if key.startswith("mismatched"):
        return "mismatched_mask"
    side = key.rpartition("_")[2]
    return f"mask_{side}" if side in ("chosen", "rejected") else "mask"


def tokens_of(raw: Raw) -> list[str]:
    """The names of the ``[b, t]`` inputs that are not masks."""
    return [key for key, value in raw.items() if value.dim() == 2 and value.is_floating_point()]


def random_inputs(family: str, *, items: int = 5, seed: int = 0) -> Raw:
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

    if family == "Tokens":
        return {"logp": logps(6), "mask": mask(6)}
    if family == "Pairs":
        chosen, rejected = logps(7), logps(5)
        return {
            "policy_chosen": chosen,
            "policy_rejected": rejected,
            "ref_chosen": near(chosen),
            "ref_rejected": near(rejected),
            "mask_chosen": mask(7),
            "mask_rejected": mask(5),
        }
    if family == "Unpaired":
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
    if family == "Rollouts":
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
    return {"chosen": rand(items) * 4 - 2, "rejected": rand(items) * 4 - 2}


def take(raw: Raw, index: list[int]) -> Raw:
    """The items ``index``, trimmed to the width that they need (as a micro-batch would be)."""
    part = {key: value[index] for key, value in raw.items()}
    for key in list(part):
        if part[key].dim() == 2:
            used = part[mask_of(key) if "mask" not in key else key].any(0).nonzero()
            part[key] = part[key][:, : int(used.max()) + 1 if len(used) else 0]
    return part
