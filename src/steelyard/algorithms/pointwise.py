"""Pairwise losses that also, or only, look at the two completions' implicit rewards one by one.

Notation of the catalogue: l = S - R is the summed log-ratio of policy and reference, r = beta l, D = l_w - l_l.
Every function returns one term per pair, ``[b]``, or named terms.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from steelyard.algorithms.core import algorithm
from steelyard.algorithms.links import NonNegative, Positive, logistic, margin
from steelyard.types import Pairs, Sequences


@algorithm(paper="2402.05369", reference=True, beta_scale="sum")
def nca_pair(pairs: Pairs, *, beta: Positive = 0.01) -> Tensor:
    r"""Noise contrastive alignment on pairs, NCA (Chen et al., 2024).

    $-\log\sigma(r_w)-\tfrac12\log\sigma(-r_w)-\tfrac12\log\sigma(-r_l)$ with $r=\beta l$.

    Watch: the chosen reward is drawn to $\sigma(r_w)=2/3$ and pulled back beyond, so its likelihood cannot fall.

    Args:
        beta: strength of the pull towards the reference.
    """
    chosen, rejected = beta * pairs.chosen.logratio, beta * pairs.rejected.logratio
    return logistic(chosen) + 0.5 * logistic(-chosen) + 0.5 * logistic(-rejected)


@algorithm(paper="2408.06266", reference=True, beta_scale="sum")
def apo_zero(pairs: Pairs, *, beta: Positive = 0.1) -> Tensor:
    r"""Anchored preference optimization, zero (D'Oosterlinck et al., 2024, eq. 7).

    $(1-\sigma(r_w))+\sigma(r_l)$ with $r=\beta l$: the chosen rises and the rejected falls, each against zero.

    Watch: meant for chosen completions that are better than what the policy writes.

    Args:
        beta: strength of the pull towards the reference.
    """
    return torch.sigmoid(-beta * pairs.chosen.logratio) + torch.sigmoid(beta * pairs.rejected.logratio)


@algorithm(paper="2408.06266", reference=True, beta_scale="sum")
def apo_down(pairs: Pairs, *, beta: Positive = 0.1) -> Tensor:
    r"""Anchored preference optimization, down (D'Oosterlinck et al., 2024, eq. 8).

    $\sigma(r_w)+(1-\sigma(r_w-r_l))$ with $r=\beta l$: both sides fall, the rejected one more.

    Watch: meant for chosen completions that are worse than what the policy writes; it makes them unlikelier.

    Args:
        beta: strength of the pull towards the reference.
    """
    return torch.sigmoid(beta * pairs.chosen.logratio) + torch.sigmoid(-beta * margin(pairs))


@algorithm(paper="2412.14516", reference=True, beta_scale="sum")
def cal_dpo(pairs: Pairs, *, beta: Positive = 1e-3) -> Tensor:
    r"""Calibrated DPO, Cal-DPO (Xiao et al., 2024).

    $-\log\sigma(l_w-l_l)+\tfrac12[(l_w-\tfrac1{2\beta})^2+(l_l+\tfrac1{2\beta})^2]$; the logistic term has no beta.

    Watch: the targets are $\pm1/(2\beta)$, i.e. $\pm500$ by default: the squares are nearly a constant pull.

    Differs: oxRL leaves out the 1/2 and uses beta 0.1 (targets of $\pm5$).

    Args:
        beta: sets the targets of the two log-ratios; the authors use 0.001 to 0.002.
    """
    target = 1 / (2 * beta)
    squares = (pairs.chosen.logratio - target) ** 2 + (pairs.rejected.logratio + target) ** 2
    return logistic(margin(pairs)) + 0.5 * squares


def sppo_terms(pairs: Pairs, *, beta: float, hard: bool = False) -> Tensor:
    r"""Self-play preference optimization's loss (Wu et al., 2024): ``[b]``, the unhalved sum of two squares.

    $(l_w-\tfrac1\beta(P_w-\tfrac12))^2+(l_l-\tfrac1\beta(P_l-\tfrac12))^2$, where $P_y$ is the probability that y beats
    a fresh sample of the policy: the columns ``p_chosen`` and ``p_rejected``, or 1 and 0 when ``hard``.  The
    authors' code halves the sum.
    """
    p_chosen, p_rejected = (1.0, 0.0) if hard else (pairs.column("p_chosen"), pairs.column("p_rejected"))
    chosen = pairs.chosen.logratio - (p_chosen - 0.5) / beta
    rejected = pairs.rejected.logratio - (p_rejected - 0.5) / beta
    return chosen**2 + rejected**2


@algorithm(
    paper="2502.17507",
    reference=True,
    beta_scale="sum",
    provisional="the form of the penalty (square or hinge), its normalisation, and lam",
)
def c2_dpo(pairs: Pairs, *, beta: Positive = 0.1, lam: NonNegative = 2e-4) -> Tensor:
    r"""Constrained controlled DPO, C2-DPO, in its log form (Asadi et al., 2025).

    $-\log\sigma(\beta(l_w-l_l))+\lambda(l_w+l_l)^2$: what one side gains the other should lose.

    Watch: the penalty grows with the square of the completions' length.

    Args:
        beta: strength of the pull towards the reference.
        lam: weight of the constraint; 0 is DPO.
    """
    return logistic(beta * margin(pairs)) + lam * (pairs.chosen.logratio + pairs.rejected.logratio) ** 2


NLL = Literal["sequence", "token", "sum"]


def nll(completions: Sequences, norm: NLL) -> Tensor:
    """-log p: mean per completion ``[b]`` (sequence), of every token ``[b, t]`` (token), or summed ``[b]`` (sum)."""
    if norm == "token":
        return completions.token_nll
    return -completions.mean if norm == "sequence" else -completions.logp


@algorithm(paper="2404.19733", reference=True, beta_scale="sum")
def rpo_nll(
    pairs: Pairs, *, beta: Positive = 0.1, alpha: NonNegative = 1.0, nll_norm: NLL = "sequence"
) -> dict[str, Tensor]:
    r"""DPO with an NLL term: iterative reasoning PO, RPO, DPNLL (Pang et al., 2024; Liu et al., 2024).

    $-\log\sigma(\beta(l_w-l_l))+\alpha\,NLL_w$ on the chosen completion, so that its likelihood does not fall.

    Watch: three norms of the NLL are in use: the mean per completion (Pang et al.; OAT), the mean over all tokens
    of the step (TRL's `sft`), and the sum (Liu et al., 2405.16436, with alpha 0.005).

    Differs: here only the completion's own tokens count; oxRL's DPNLL is the token mean.

    Args:
        beta: strength of the pull towards the reference.
        alpha: weight of the NLL; 0 is DPO.
        nll_norm: what the NLL is averaged over.
    """
    terms = {"preference": logistic(beta * margin(pairs))}
    return terms | ({"nll": alpha * nll(pairs.chosen, nll_norm)} if alpha else {})
