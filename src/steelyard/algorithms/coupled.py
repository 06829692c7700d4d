"""Pairwise losses whose pairs look at each other, over the whole optimizer step or, by a running state, over all.

Every loss has a function that computes its statistics from the detached view of the step.  They are constants to
the loss, chosen so that the sum of the micro-batches' gradients is the gradient of the joint loss.

Notation of the catalogue: S and R are the summed log-probabilities of policy and reference, A the average, l = S - R,
D = l_w - l_l.  Every function returns one term per pair, ``[b]``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor

from steelyard.algorithms.core import algorithm
from steelyard.algorithms.links import NonNegative, Positive, Share, Smoothing, logistic, margin, mean_margin, smooth
from steelyard.types import Pairs

State = Mapping[str, Tensor]
Momentum = Annotated[float, Ge(0.0), Lt(1.0)]

SMALLEST_SPREAD = 1e-6
"""Below this spread of the gaps they count as equal: at the start, policy and reference differ by rounding only."""


def zeros(*names: str) -> dict[str, Tensor]:
    """A running state of zeros."""
    return {name: torch.zeros((), dtype=torch.float64) for name in names}


# --------------------------------------------------------------------------------------------------
# The mean reward


def reward_shift(pairs: Pairs, *, state: State, beta: float, shift: bool) -> dict[str, Tensor]:
    """delta: the mean of all rewards so far, this step's included; and the number of pairs it is over."""
    if not shift:
        return zeros("delta", "seen")
    rewards = beta * (pairs.chosen.logratio + pairs.rejected.logratio) / 2
    seen = state["seen"] + pairs.items
    return {"delta": state["delta"] + (rewards - state["delta"]).sum() / seen, "seen": seen}


@algorithm(
    paper="2404.04656",
    reference=True,
    coupled=reward_shift,
    state=lambda: zeros("delta", "seen"),
    beta_scale="sum",
)
def bco_pair(pairs: Pairs, *, beta: Positive = 0.1, shift: bool = True) -> Tensor:
    r"""Binary classifier optimization on pairs, BCO (Jung et al., 2024).

    $-\log\sigma(r_w-\delta)-\log\sigma(-(r_l-\delta))$ with $r=\beta l$ and $\delta$ the running mean of all rewards,
    $\tfrac12(E[r_w]+E[r_l])$, detached.

    Watch: delta is a mean over the whole run, so it lags behind rewards that drift.

    Differs: TRL's `bco_pair` and oxRL keep delta at 0 (`shift: false`), which drops the point of the paper.

    Args:
        beta: strength of the pull towards the reference; the paper uses 0.01 to 0.1.
        shift: measure rewards from their running mean.
    """
    delta = pairs.stats["delta"]
    return logistic(beta * pairs.chosen.logratio - delta) + logistic(delta - beta * pairs.rejected.logratio)


# --------------------------------------------------------------------------------------------------
# Optimal transport


def same_rank(values: Tensor, others: Tensor) -> Tensor:
    """``[b]`` for each of ``values`` the one of ``others`` that has the same rank among its own."""
    return others.sort().values[values.argsort(stable=True).argsort()]


def reference_quantiles(pairs: Pairs) -> dict[str, Tensor]:
    """For each pair the reference's margin of the same rank."""
    margins = pairs.chosen.logp - pairs.rejected.logp
    return {"quantile": same_rank(margins, pairs.chosen.ref - pairs.rejected.ref)}


@algorithm(paper="2406.05882", reference=True, coupled=reference_quantiles, beta_scale="sum")
def aot(pairs: Pairs, *, beta: Positive = 0.01, label_smoothing: Smoothing = 0.0) -> Tensor:
    r"""Alignment via optimal transport, paired, AOT (Melnyk et al., 2024).

    $-\log\sigma(\beta(u-v))$ with $u$ the sorted $S_w-S_l$ of the step and $v$ the sorted $R_w-R_l$: the
    distribution of the policy's margins should dominate the reference's.

    Watch: the sort is over the whole optimizer step; small steps are noisy, and a step of one pair is DPO.

    Differs: oxRL has only the unpaired formula, sorted within micro-batches.

    Args:
        beta: strength of the pull towards the reference.
        label_smoothing: share of flipped labels, as in cDPO.
    """
    margins = pairs.chosen.logp - pairs.rejected.logp
    return smooth(beta * (margins - pairs.stats["quantile"]), label_smoothing)


def transport_plan(pairs: Pairs, *, beta: float, label_smoothing: float) -> dict[str, Tensor]:
    """Each completion's partner, of the same rank on the other side; and the rejected side's share of the value."""
    chosen, rejected = pairs.chosen.logratio, pairs.rejected.logratio
    for_chosen, for_rejected = same_rank(chosen, rejected), same_rank(rejected, chosen)
    again = smooth(beta * (for_rejected - rejected), label_smoothing)
    return {"for_chosen": for_chosen, "for_rejected": for_rejected, "again": again}


@algorithm(paper="2406.05882", reference=True, coupled=transport_plan, beta_scale="sum")
def aot_unpaired(pairs: Pairs, *, beta: Positive = 0.01, label_smoothing: Smoothing = 0.0) -> Tensor:
    r"""Alignment via optimal transport, unpaired, AOT (Melnyk et al., 2024).

    $-\log\sigma(\beta(u-v))$ with $u$ the sorted $l_w$ and $v$ the sorted $l_l$ of the step: chosen completions should
    dominate rejected ones, of whatever prompt.

    Watch: the sort is over the whole optimizer step; a step of one pair is DPO.

    Args:
        beta: strength of the pull towards the reference.
        label_smoothing: share of flipped labels, as in cDPO.
    """
    # Partners may live in different micro-batches: each side meets the other's detached value and keeps its own
    # gradient.  Every matched pair is then counted twice; `again` takes the second value away.
    chosen = smooth(beta * (pairs.chosen.logratio - pairs.stats["for_chosen"]), label_smoothing)
    rejected = smooth(beta * (pairs.stats["for_rejected"] - pairs.rejected.logratio), label_smoothing)
    return chosen + (rejected - pairs.stats["again"])


# --------------------------------------------------------------------------------------------------
# Distributional robustness


def worst_case_weights(pairs: Pairs, *, beta: float, b_prime: float) -> dict[str, Tensor]:
    """The log of each pair's weight, softmax(log sigmoid(h) / b') times the number of pairs."""
    scores = F.logsigmoid(beta * margin(pairs)) / b_prime
    return {"log_weight": scores.log_softmax(0) + math.log(max(pairs.items, 1))}


@algorithm(paper="2407.07880", reference=True, coupled=worst_case_weights, beta_scale="sum")
def dr_dpo(pairs: Pairs, *, beta: Positive = 0.1, b_prime: Positive = 1.0) -> Tensor:
    r"""Distributionally robust DPO, Dr.DPO (Wu et al., 2024).

    $-b'\log\frac1B\sum_ie^{\log\sigma(h_i)/b'}$ with $h=\beta(l_w-l_l)$: pairs that the policy orders wrong, and
    which may be mislabelled, weigh less.

    Watch: the mean is over the whole optimizer step; a step of one pair is DPO.

    Differs: oxRL's runs had micro-batches of one, which is DPO.

    Args:
        beta: strength of the pull towards the reference.
        b_prime: the smaller, the more the weights differ; towards infinity it is DPO.
    """
    # The weights are the joint loss's derivative; with b' log(weight) the mean of the terms is its value, too.
    log_weight = pairs.stats["log_weight"]
    return log_weight.exp() * (b_prime * log_weight + logistic(beta * margin(pairs)))


# --------------------------------------------------------------------------------------------------
# Running mean and spread of the gap


def running(state: State, gap: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    """The moving averages of the steps' mean and standard deviation of ``gap`` ``[b]``, this step's included."""
    spread = gap.std() if len(gap) > 1 else gap.new_zeros(())
    mean = momentum * state["gap_mean"] + (1 - momentum) * gap.mean()
    return mean, momentum * state["gap_std"] + (1 - momentum) * spread


def selection(gap: Tensor, mean: Tensor, std: Tensor, keep: float, generator: torch.Generator) -> Tensor:
    """Indices of the pairs kept: drawn without replacement, each with weight exp(-((gap - mean) / std)^2 / 2)."""
    log_weight = -0.5 * ((gap - mean) / std.clamp(min=SMALLEST_SPREAD)) ** 2
    # Relative to the largest, and never zero: the sampler needs as many weights as it is to draw.  A NaN must reach
    # the loss, where it is reported, and not the sampler.
    weight = (log_weight - log_weight.max()).double().exp().clamp(min=1e-300).nan_to_num(1.0)
    count = max(1, int(keep * len(gap) + 1e-9))
    return torch.multinomial(weight.to(generator.device), count, generator=generator).to(gap.device)


def batch_beta(
    pairs: Pairs, *, state: State, generator: torch.Generator, beta: float, a: float, keep: float, momentum: float
) -> dict[str, Tensor]:
    """The step's beta; each pair's weight: 0, or the number of pairs over that of those kept; the running state."""
    gap = margin(pairs)
    mean, std = running(state, gap, momentum)
    kept = selection(gap, mean, std, keep, generator)
    return {
        "beta": (beta * (1 + a * (gap[kept].mean() - mean))).clamp(min=1e-3),
        "weight": torch.zeros_like(gap).index_fill(0, kept, len(gap) / len(kept)),
        "gap_mean": mean,
        "gap_std": std,
    }


@algorithm(
    paper="2407.08639",
    reference=True,
    coupled=batch_beta,
    state=lambda: zeros("gap_mean", "gap_std"),
    beta_scale="sum",
)
def beta_dpo(
    pairs: Pairs, *, beta: Positive = 0.1, a: NonNegative = 0.6, keep: Share = 0.8, momentum: Momentum = 0.9
) -> Tensor:
    r"""DPO with a dynamic beta per step and filtering, beta-DPO (Wu et al., 2024).

    The mean over kept pairs of $-\log\sigma(\beta_bD)$ with $\beta_b=\max(10^{-3},\beta(1+a(\overline M-M_0)))$.
    $M$ is the detached gap $D$, $\overline M$ its mean over the kept pairs, $M_0$ and $s$ are moving averages of its
    mean and spread; a share `keep` of the step is drawn without replacement with weights $e^{-(M-M_0)^2/2s^2}$.

    Watch: the averages start from 0, so the first steps' beta and weights are far off.

    Differs: oxRL has a beta per pair with a gradient through it, no filter, and a = 0.5.

    Args:
        beta: the beta of a step whose mean gap is the average one.
        a: how strongly beta follows the step's mean gap; 0 keeps it.
        keep: share of the step's pairs that is trained on.
        momentum: of the moving averages of the gap's mean and spread.
    """
    return pairs.stats["weight"] * logistic(pairs.stats["beta"] * margin(pairs))


def gap_offset(
    pairs: Pairs, *, state: State, alpha: float, momentum: float, bias_correction: bool
) -> dict[str, Tensor]:
    """alpha times the z-score of each pair's gap under the moving averages; the running state."""
    gap = pairs.chosen.mean_logratio - pairs.rejected.mean_logratio
    mean, std = running(state, gap, momentum)
    steps = state["steps"] + 1
    missing = 1 - momentum**steps if bias_correction else 1.0
    z = (gap - mean / missing) / (std / missing).clamp(min=SMALLEST_SPREAD)
    return {"offset": alpha * z, "gap_mean": mean, "gap_std": std, "steps": steps}


@algorithm(
    paper="2410.10148",
    reference=True,
    coupled=gap_offset,
    state=lambda: zeros("gap_mean", "gap_std", "steps"),
    length_normalized=True,
    beta_scale="avg",
)
def alpha_dpo(
    pairs: Pairs,
    *,
    beta: Positive = 2.5,
    gamma: float = 1.5,
    alpha: NonNegative = 0.2,
    momentum: Momentum = 0.9,
    bias_correction: bool = False,
) -> Tensor:
    r"""DPO with an adaptive margin, alpha-DPO (Wu et al., 2024).

    $-\log\sigma(\beta(A_w-A_l-\mathrm{sg}[\alpha z])-\gamma)$ where $z$ is the z-score of the gap
    $l_w/n_w-l_l/n_l$ under moving averages of its mean and spread: SimPO with a wider margin for pairs that are
    already further apart than under the reference.

    Watch: the averages start from 0, as the authors' do, so the first steps' z-scores are large.

    Differs: oxRL averages the variance with 0.99 and takes it as 1 in micro-batches of one.

    Args:
        beta: multiplies average log-probabilities; the authors use 2.5 to 10.
        gamma: the target margin in total; the authors' gamma/beta is 0.15 to 0.6.
        alpha: weight of the z-score; 0 is SimPO.
        momentum: of the moving averages.
        bias_correction: divide the averages by 1 - momentum^steps, so that they do not start from 0.
    """
    return logistic(beta * (mean_margin(pairs) - pairs.stats["offset"]) - gamma)
