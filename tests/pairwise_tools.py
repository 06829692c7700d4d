"""What the tests of pairwise losses share: inputs, gradients, slopes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steelyard.algorithms import load
from steelyard.algorithms.core import AlgorithmSpec, algorithms, loss
from steelyard.conform.inputs import Raw, build, inputs_of, random_inputs
from steelyard.types import Pairs

load()

same = torch.testing.assert_close
POLICY = ("policy_chosen", "policy_rejected")


def inputs(**changes: Tensor) -> Raw:
    """Random pairs with every column and extra that a pairwise loss may ask for."""
    raw: Raw = {}
    for name in ("wpo", "tdpo", "odpo"):
        raw |= inputs_of(algorithms.get(name))
    return raw | changes


def take_needed(spec: AlgorithmSpec, raw: Raw) -> Raw:
    """``raw`` without the columns and extras that ``spec`` does not declare."""
    used = (*spec.columns, *(f"{extra}_{side}" for extra in spec.extras for side in ("chosen", "rejected")))
    return {key: value for key, value in raw.items() if key in random_inputs("Pairs") or key in used}


def evaluated(name: str, raw: Raw, hp: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The loss of the step, and its gradient by the policy's token log-probabilities, flattened."""
    spec = algorithms.get(name)
    leaves = take_needed(spec, raw) | {key: raw[key].clone().requires_grad_() for key in POLICY}
    value = loss(name, build(spec, leaves), reduce=True, **hp)
    value.backward()
    return value.detach(), torch.cat([leaves[key].grad.flatten() for key in POLICY])  # type: ignore[union-attr]


def of_logratios(chosen: Any, rejected: Any, **columns: Any) -> Pairs:
    """Pairs with the given summed log-ratios (the reference is at zero)."""
    chosen, rejected = (torch.as_tensor(x, dtype=torch.float64) for x in (chosen, rejected))
    return Pairs.from_logps(chosen, rejected, torch.zeros_like(chosen), torch.zeros_like(rejected), **columns)


def slope(name: str, chosen: float, rejected: float, **hp: Any) -> tuple[float, float]:
    """The derivatives of one pair's loss by its two log-ratios."""
    leaves = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (chosen, rejected)]
    loss(name, of_logratios(*leaves), **hp).sum().backward()
    found = [0.0 if leaf.grad is None else float(leaf.grad) for leaf in leaves]
    return found[0], found[1]


def exactly(values: Any) -> Tensor:
    """Numbers as a float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


def pairs_of(raw: dict[str, Any]) -> Pairs:
    """The view of inputs without extras."""
    return Pairs.from_logps(**raw)
