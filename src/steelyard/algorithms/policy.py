"""Policy-gradient losses on sampled completions: ratio × surrogate, with an optional KL term.

Every function returns ``[b, t]`` terms; the advantage is already spread over the tokens.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from steelyard.algorithms.core import algorithm
from steelyard.types import Rollouts


def clipped_surrogate(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """-min(rho A, clip(rho, 1-low, 1+high) A) (Schulman et al., 1707.06347, eq. 7), elementwise."""
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def kl_k3(logp: Tensor, ref: Tensor) -> Tensor:
    """exp(-d) - 1 + d with d = logp - ref: unbiased and non-negative (Schulman, 2020), elementwise.

    d is cut at ±20 (as in verl), so that a token that one of the two all but excludes gives no overflow.
    """
    difference = (logp - ref).clamp(-20.0, 20.0)
    return torch.expm1(-difference) + difference


@algorithm(
    paper="2402.03300",
    reference=True,
    reference_unless_zero="beta",
    advantage="group_norm",
    reduce="seq-mean-token-mean",
    length_normalized=True,
)
def grpo(
    rollouts: Rollouts,
    *,
    beta: Annotated[float, Ge(0.0)] = 0.04,
    epsilon: Annotated[float, Gt(0.0)] = 0.2,
    epsilon_high: Annotated[float, Gt(0.0)] | None = None,
) -> dict[str, Tensor]:
    r"""Group Relative Policy Optimization (Shao et al., 2024, eq. 3).

    $-\min(\rho A,\mathrm{clip}(\rho,1-\epsilon,1+\epsilon)A)+\beta\,k_3$, averaged over the tokens of a
    completion, then over completions; $A=(R-\mathrm{mean}_G)/(\mathrm{std}_G+10^{-4})$.  TRL's default has no
    KL term and a token mean.  The trainer makes one update per rollout batch, so there $\rho=1$ and nothing is
    clipped.

    Args:
        beta: weight of the KL term to the reference; 0 needs no reference.
        epsilon: clip range of the ratio below one.
        epsilon_high: clip range above one; default: epsilon.
    """
    high = epsilon if epsilon_high is None else epsilon_high
    terms = {"policy": clipped_surrogate(rollouts.ratio, rollouts.advantage, epsilon, high)}
    if beta:
        terms["kl_penalty"] = beta * kl_k3(rollouts.logp, rollouts.ref)
    return terms
