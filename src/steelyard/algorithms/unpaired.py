"""Losses on single completions with a desirable / undesirable label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from steelyard.algorithms.core import algorithm
from steelyard.errors import DataError
from steelyard.types import Unpaired

Positive = Annotated[float, Gt(0.0)]
NonNegative = Annotated[float, Ge(0.0)]


def kto_reference_point(unpaired: Unpaired) -> dict[str, Tensor]:
    """z0 = max(0, mean log-ratio of mismatched prompt-completion pairs), over the whole optimizer step."""
    if unpaired.mismatched is None:
        raise DataError("kto needs the mismatched completions (mismatched=..., mismatched_ref=...)")
    return {"z0": F.relu(unpaired.mismatched.logratio.mean())}


def prospect(unpaired: Unpaired, beta: float, desirable_weight: float, undesirable_weight: float) -> Tensor:
    """``[b]`` lambda (1 - sigmoid(+-beta (l - z0))): what a completion's gain over the reference point is short of."""
    gain = beta * (unpaired.completions.logratio - unpaired.stats["z0"])
    desirable = desirable_weight * (1 - torch.sigmoid(gain))
    undesirable = undesirable_weight * (1 - torch.sigmoid(-gain))
    return torch.where(unpaired.label, desirable, undesirable)


@algorithm(paper="2402.01306", reference=True, coupled=kto_reference_point, mismatched=True, beta_scale="sum")
def kto(
    unpaired: Unpaired,
    *,
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
) -> Tensor:
    r"""Kahneman-Tversky Optimization (Ethayarajh et al., 2024, eq. 8).

    $\lambda_D(1-\sigma(\beta(l-z_0)))$ for desirable, $\lambda_U(1-\sigma(\beta(z_0-l)))$ for undesirable
    completions, divided by all completions of the step; $z_0$ is detached.

    Watch: a step needs at least two different prompts, and its $z_0$ is noisy below about eight.

    Differs: oxRL takes $-\log\sigma$ for $1-\sigma$ and a moving average of chosen log-ratios for $z_0$.

    Args:
        beta: strength of the pull towards the reference.
        desirable_weight: lambda_D; keep lambda_D n_D / (lambda_U n_U) within [1, 4/3] under imbalance.
        undesirable_weight: lambda_U.
    """
    return prospect(unpaired, beta, desirable_weight, undesirable_weight)


@algorithm(paper="2402.01306", reference=True, coupled=kto_reference_point, mismatched=True, beta_scale="sum")
def kto_pair(
    unpaired: Unpaired,
    *,
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
) -> Tensor:
    r"""KTO on both members of every pair (Ethayarajh et al., 2024, eq. 8).

    $\lambda_D(1-\sigma(\beta(l_w-z_0)))$ for the chosen, $\lambda_U(1-\sigma(\beta(z_0-l_l)))$ for the rejected
    completion: an adapter, the loss is `kto`'s.

    Watch: a step needs at least two different prompts, and its $z_0$ is noisy below about eight.

    Differs: oxRL, under the name KTO, takes the chosen log-ratios for $z_0$; here it comes from mismatched
    completions as in the paper.

    Args:
        beta: strength of the pull towards the reference.
        desirable_weight: lambda_D, of the chosen completions.
        undesirable_weight: lambda_U, of the rejected completions.
    """
    return prospect(unpaired, beta, desirable_weight, undesirable_weight)


@algorithm(paper="2408.06266", reference=True, beta_scale="sum")
def apo_zero_unpaired(unpaired: Unpaired, *, beta: Positive = 0.1) -> Tensor:
    r"""Anchored Preference Optimization on labelled completions (D'Oosterlinck et al., 2024).

    $1-\sigma(\beta l)$ for desirable, $\sigma(\beta l)$ for undesirable completions: `apo_zero` without the pairs, or
    `kto` with $z_0=0$.

    Watch: for answers that are better than the model's own; there is no unpaired `apo_down`.

    Args:
        beta: strength of the pull towards the reference.
    """
    gain = beta * unpaired.completions.logratio
    return torch.sigmoid(torch.where(unpaired.label, -gain, gain))


def no_rewards_yet() -> dict[str, Tensor]:
    """The running means of both classes' rewards, and how many rewards each is the mean of."""
    names = ("mean_desirable", "mean_undesirable", "seen_desirable", "seen_undesirable")
    return {name: torch.zeros((), dtype=torch.float64) for name in names}


def bco_shift(unpaired: Unpaired, *, beta: float, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """delta: the half-sum of the classes' mean rewards over this and all earlier steps (the one class's mean as long as
    the other has not been seen)."""
    rewards, stats = beta * unpaired.completions.logratio, {}
    for name, members in (("desirable", unpaired.label), ("undesirable", ~unpaired.label)):
        seen, mean = state[f"seen_{name}"], state[f"mean_{name}"]
        total = seen + members.sum().to(rewards.dtype)
        surprise = torch.where(members, rewards - mean, 0.0).sum()
        stats |= {f"seen_{name}": total, f"mean_{name}": mean + surprise / total.clamp(min=1)}
    classes = (stats["seen_desirable"] > 0).to(rewards.dtype) + (stats["seen_undesirable"] > 0)
    return stats | {"delta": (stats["mean_desirable"] + stats["mean_undesirable"]) / classes.clamp(min=1)}


@algorithm(
    paper="2404.04656",
    reference=True,
    coupled=bco_shift,
    state=no_rewards_yet,
    optional_columns=("density_ratio",),
    beta_scale="sum",
)
def bco(unpaired: Unpaired, *, beta: Positive = 0.1) -> Tensor:
    r"""Binary Classifier Optimization (Jung et al., 2024).

    $-\log\sigma(r-\delta)$ for desirable, $-w\log\sigma(-(r-\delta))$ for undesirable completions with $r=\beta l$.
    $\delta=(E_D[r]+E_U[r])/2$ is a running mean over this and all earlier steps, detached; w is 1, or the column
    `density_ratio` cut to [0.5, 10] where the rows carry it (a classifier's odds that the prompt is one of the
    desirable completions' prompts).

    Watch: early rewards stay in the mean for ever, as in the peers.

    Differs: TRL (up to 1.9) takes the mean over all rewards, whichever their class.

    Args:
        beta: strength of the pull towards the reference; 0.01 to 0.1 in the paper.
    """
    gain = beta * unpaired.completions.logratio - unpaired.stats["delta"]
    weight = unpaired.columns.get("density_ratio", torch.ones_like(gain)).clamp(0.5, 10.0)
    return torch.where(unpaired.label, -F.logsigmoid(gain), -weight * F.logsigmoid(-gain))
