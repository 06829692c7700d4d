"""Losses on ranked lists: K completions of one prompt, each with a reward.

Notation: l = log pi_theta(y|x) - log pi_ref(y|x) summed over tokens, r = beta l, psi the rewards.  Lists may be
ragged: absent completions take no part.  Every function returns one term per list, ``[b]``.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from steelyard.algorithms.core import algorithm
from steelyard.types import Ranked

Positive = Annotated[float, Gt(0.0)]


def places(values: Tensor, present: Tensor) -> Tensor:
    """``[b, k]`` integer: 0 for the highest value of a list; ties in list order, absent ones last."""
    order = values.masked_fill(~present, -math.inf).argsort(dim=-1, descending=True, stable=True)
    return order.argsort(-1)


def better_pairs(ranked: Ranked) -> Tensor:
    """``[b, k, k]`` boolean: completion i has the higher reward than completion j; ties give no pair."""
    rewards, present = ranked.rewards, ranked.present
    both = present[:, :, None] & present[:, None, :]
    return both & (rewards[:, :, None] > rewards[:, None, :])


def pairwise_logistic(scores: Tensor) -> Tensor:
    """``[b, k, k]`` -log sigmoid(s_i - s_j)."""
    return F.softplus(scores[:, None, :] - scores[:, :, None])


def plackett_luce(ranked: Ranked, scores: Tensor) -> Tensor:
    """``[b]`` the negative log-probability of the rewards' order when completions are drawn without replacement,
    each with odds exp(score) among those that are left (Plackett, 1975)."""
    place, present = places(ranked.rewards, ranked.present), ranked.present
    itself = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    left = (place[:, None, :] >= place[:, :, None]) & (present[:, None, :] | itself)
    odds = torch.where(left, scores[:, None, :], -math.inf).logsumexp(-1)
    return ((odds - scores) * present).sum(-1)


def kwise(ranked: Ranked, scores: Tensor) -> Tensor:
    """``[b]`` the mean of -log sigmoid(s_i - s_j) over the ordered pairs of a list; 0 where all rewards tie."""
    better = better_pairs(ranked)
    return (pairwise_logistic(scores) * better).sum((1, 2)) / better.sum((1, 2)).clamp(min=1)


def log_shares(values: Tensor, present: Tensor) -> Tensor:
    """``[b, k]`` log-softmax over the present completions, zero at absent ones."""
    return values.masked_fill(~present, -math.inf).log_softmax(-1).masked_fill(~present, 0.0)


@algorithm(paper="2305.18290", reference=True, beta_scale="sum")
def pl_dpo(ranked: Ranked, *, beta: Positive = 0.1) -> Tensor:
    r"""Plackett-Luce DPO (Rafailov et al., 2023, appendix).

    $\sum_k[\log\sum_{j\ge k}e^{r_{(j)}}-r_{(k)}]$ with $r=\beta l$, completions sorted by reward, best first.

    Watch: a ranking has no ties; completions of equal reward count in the order in which the list holds them.

    Args:
        beta: strength of the pull towards the reference.
    """
    return plackett_luce(ranked, beta * ranked.logratio)


@algorithm(paper="2203.02155", reference=True, beta_scale="sum")
def kwise_dpo(ranked: Ranked, *, beta: Positive = 0.1) -> Tensor:
    r"""DPO on all ordered pairs of a list (Ouyang et al., 2022; Rafailov et al., 2023).

    $\mathrm{mean}_{\psi_i>\psi_j}-\log\sigma(r_i-r_j)$ with $r=\beta l$: one term per list, so that a long list weighs
    as much as a short one.

    Watch: ties give no pair; a list without an ordered pair has loss zero and still counts in the mean.

    Args:
        beta: strength of the pull towards the reference.
    """
    return kwise(ranked, beta * ranked.logratio)


@algorithm(paper="2402.01878", reference=True, beta_scale="sum")
def lipo_lambda(ranked: Ranked, *, beta: Positive = 0.05, norm: Literal["sum", "rax"] = "sum") -> Tensor:
    r"""Listwise Preference Optimization, LiPO-lambda (Liu et al., 2024, eq. 8).

    $-\sum_{\psi_i>\psi_j}|2^{\psi_i}-2^{\psi_j}|\,|1/D_i-1/D_j|\,\log\sigma(r_i-r_j)$ with $r=\beta l$ and
    $D=\log(1+\tau)$, $\tau$ the rank by the current $r$ (1 = best).  The weights are constants.

    Watch: where the policy still is the reference all $r$ tie, and ties rank in list order.  Tied rewards give no
    pair.

    Differs: the authors compute it with RAX, whose value is $K\ln 2/P$ times that of eq. 8 for K completions and P
    ordered pairs (`norm: rax`).

    Args:
        beta: strength of the pull towards the reference.
        norm: sum over the pairs as printed (`sum`), or the authors' library's scale (`rax`).
    """
    scores, better = beta * ranked.logratio, better_pairs(ranked)
    discount = 1 / (places(scores.detach(), ranked.present) + 2).to(scores.dtype).log()
    gain = torch.exp2(ranked.rewards)
    weight = (gain[:, :, None] - gain[:, None, :]).abs() * (discount[:, :, None] - discount[:, None, :]).abs()
    total = (weight * better * pairwise_logistic(scores)).sum((1, 2))
    if norm == "rax":
        total = total * math.log(2) * ranked.present.sum(-1) / better.sum((1, 2)).clamp(min=1)
    return total


@algorithm(paper="2402.05369", reference=True, beta_scale="sum")
def infonca(ranked: Ranked, *, beta: Positive = 0.1, a: Positive = 1e-3) -> Tensor:
    r"""InfoNCA: classify the best of a list by softmax (Chen et al., 2024).

    $-\sum_k\mathrm{softmax}(\psi/a)_k\log\mathrm{softmax}(r)_k$ with $r=\beta l$.

    Watch: `a` belongs to the scale of the rewards; at the default (the authors' trainer's, for rewards from 1 to 10)
    the best completion gets nearly all the weight.

    Args:
        beta: strength of the pull towards the reference.
        a: temperature of the rewards.
    """
    target = log_shares(ranked.rewards / a, ranked.present).exp()
    return -(target * log_shares(beta * ranked.logratio, ranked.present)).sum(-1)


@algorithm(paper="2402.05369", reference=True, beta_scale="sum")
def nca(ranked: Ranked, *, beta: Positive = 0.1, a: Positive = 1e-3) -> Tensor:
    r"""Noise Contrastive Alignment of lists (Chen et al., 2024).

    $-\sum_k[\mathrm{softmax}(\psi/a)_k\log\sigma(r_k)+\frac1K\log\sigma(-r_k)]$ with $r=\beta l$: absolute rewards, so
    that the best completion's probability need not fall.

    Watch: `a` belongs to the scale of the rewards; see `infonca`.

    Args:
        beta: strength of the pull towards the reference.
        a: temperature of the rewards.
    """
    rewards, present = beta * ranked.logratio, ranked.present
    target = log_shares(ranked.rewards / a, present).exp()
    terms = target * F.logsigmoid(rewards) + F.logsigmoid(-rewards) / present.sum(-1, keepdim=True)
    return -(terms * present).sum(-1)


@algorithm(paper="2402.00856", reference=True, beta_scale="sum")
def exo(ranked: Ranked, *, beta: Positive = 0.5, beta_r: Positive = 0.5) -> Tensor:
    r"""Efficient Exact Optimization on K samples (Ji et al., 2024).

    $KL(\mathrm{softmax}(r)\,\|\,\mathrm{softmax}(\psi/\beta_r))$ with $r=\beta l$: reverse-KL matching of the policy to
    the rewards' optimum on the samples.  Defaults of the authors' TL;DR script.

    Watch: the paper's K completions are samples of the SFT policy, which is the reference.  A completion whose share
    is already larger than the target's is pushed down even if it is the best.

    Args:
        beta: scale of the policy's log-ratios (the authors' beta_pi).
        beta_r: temperature of the rewards.
    """
    policy = log_shares(beta * ranked.logratio, ranked.present)
    target = log_shares(ranked.rewards / beta_r, ranked.present)
    return (policy.exp() * (policy - target)).sum(-1)
