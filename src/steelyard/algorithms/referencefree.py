"""Pairwise losses without a reference model.

Notation of the catalogue: S is the summed log-probability of a completion under the policy, n its number of tokens,
A = S/n.  Functions return one term per pair, ``[b]``, or named terms; NLL terms are ``[b, t]`` over the chosen tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from steelyard.algorithms.core import algorithm
from steelyard.algorithms.links import (
    MAX_EXPONENT,
    NonNegative,
    Positive,
    Smoothing,
    hinge,
    logistic,
    mean_margin,
    self_limited,
    smooth,
)
from steelyard.types import Pairs


def summed_margin(pairs: Pairs) -> Tensor:
    """``[b]`` S_w - S_l."""
    return pairs.chosen.logp - pairs.rejected.logp


@algorithm(paper="2405.14734", length_normalized=True, beta_scale="avg")
def simpo(pairs: Pairs, *, beta: Positive = 2.0, gamma: float = 1.0, label_smoothing: Smoothing = 0.0) -> Tensor:
    r"""Simple Preference Optimization (Meng et al., 2024, eq. 6).

    $-\log\sigma(\beta(A_w-A_l)-\gamma)$, without a reference.

    Watch: nothing holds the policy but the learning rate.

    Differs: TRL's and oxRL's beta of 0.1 is degenerate: the target gap gamma/beta would be 5 nats per token.

    Args:
        beta: multiplies average log-probabilities; the paper uses 2 to 10.
        gamma: the target margin in total, i.e. the paper's gamma (gamma/beta is 0.5 by default).
        label_smoothing: share of flipped pairs that is expected, as in cDPO; off in the paper.
    """
    return smooth(beta * mean_margin(pairs) - gamma, label_smoothing)


@algorithm(paper="2401.08417", beta_scale="sum")
def cpo(
    pairs: Pairs, *, beta: Positive = 0.1, alpha: NonNegative = 1.0, label_smoothing: Smoothing = 0.0
) -> dict[str, Tensor]:
    r"""Contrastive Preference Optimization (Xu et al., 2024).

    $-\log\sigma(\beta(S_w-S_l))+\alpha\,NLL_w$: DPO with a uniform reference, and a pull to the chosen completion.

    Watch: sums favour short completions.

    Differs: the NLL is the token mean over chosen completions, as in TRL.

    Args:
        beta: multiplies summed log-probabilities.
        alpha: weight of the NLL.
        label_smoothing: share of flipped pairs that is expected, as in cDPO; off in the paper.
    """
    terms = {"preference": smooth(beta * summed_margin(pairs), label_smoothing)}
    return terms | ({"nll": alpha * pairs.chosen.token_nll} if alpha else {})


@algorithm(paper="fe1ixxu/CPO_SIMPO, 2024", length_normalized=True, beta_scale="avg")
def cpo_simpo(
    pairs: Pairs, *, beta: Positive = 10.0, gamma: float = 5.4, alpha: NonNegative = 0.05
) -> dict[str, Tensor]:
    r"""SimPO with CPO's NLL term, CPO-SimPO (Xu, 2024).

    $-\log\sigma(\beta(A_w-A_l)-\gamma)+\alpha\,NLL_w$; the defaults are the author's scripts'.

    Watch: the NLL is the token mean over chosen completions.

    Differs: oxRL uses beta 2, gamma 0.5, alpha 1.

    Args:
        beta: multiplies average log-probabilities.
        gamma: the target margin in total.
        alpha: weight of the NLL; 0 is SimPO.
    """
    terms = {"preference": logistic(beta * mean_margin(pairs) - gamma)}
    return terms | ({"nll": alpha * pairs.chosen.token_nll} if alpha else {})


@algorithm(paper="2403.07691", length_normalized=True)
def orpo(pairs: Pairs, *, lam: NonNegative = 0.1) -> dict[str, Tensor]:
    r"""Odds Ratio Preference Optimization (Hong et al., 2024, eq. 6-7).

    $NLL_w-\lambda\log\sigma(\mathrm{logit}(A_w)-\mathrm{logit}(A_l))$, $\mathrm{logit}(A)=A-\log(1-e^A)$.

    Watch: the NLL dominates; the rejected side is seen by the odds-ratio term alone.

    Differs: the NLL is the token mean over chosen completions; TRL includes the prompt, the authors' code averages
    over padding.

    Args:
        lam: weight of the odds-ratio term.
    """
    odds = log_odds(pairs.chosen.mean) - log_odds(pairs.rejected.mean)
    return {"nll": pairs.chosen.token_nll, "odds_ratio": -lam * F.logsigmoid(odds)}


def log_odds(mean_logp: Tensor) -> Tensor:
    """log(p / (1 - p)) of an average log-probability, stable as p tends to one."""
    a = mean_logp.clamp(max=-1e-6)
    near_one = a > -0.6931471805599453
    # Each branch sees only arguments on which it is accurate, so that no gradient is NaN.
    small = torch.log(-torch.expm1(torch.where(near_one, a, -1.0)))
    large = torch.log1p(-torch.exp(torch.where(near_one, -1.0, a)))
    return a - torch.where(near_one, small, large)


def alpha_reward(mean_logp: Tensor, alpha: float) -> Tensor:
    """(1 - exp(-alpha A)) / alpha, and A at alpha = 0; the exponential is cut at :data:`links.MAX_EXPONENT`."""
    if alpha == 0:
        return mean_logp
    return torch.expm1((-alpha * mean_logp).clamp(max=MAX_EXPONENT)) / -alpha


@algorithm(paper="2501.03884", length_normalized=True, beta_scale="avg")
def alphapo(pairs: Pairs, *, beta: Positive = 2.5, gamma: float = 0.1, alpha: float = 0.25) -> Tensor:
    r"""AlphaPO, SimPO with a reward of another shape (Gupta et al., 2025).

    $-\log\sigma(\beta(r_w-r_l)-\gamma)$ with $r=(1-e^{-\alpha A})/\alpha$.

    Watch: for alpha above 0 unlikely completions, for alpha below 0 likely ones have the steeper reward.

    Differs: oxRL uses alpha 1 with beta 0.1, which is degenerate as in its SimPO.

    Args:
        beta: multiplies the rewards of averages.
        gamma: the target margin in total.
        alpha: shape of the reward; 0 is SimPO.
    """
    chosen, rejected = alpha_reward(pairs.chosen.mean, alpha), alpha_reward(pairs.rejected.mean, alpha)
    return logistic(beta * (chosen - rejected) - gamma)


@algorithm(paper="2502.00883", length_normalized=True)
def simper(pairs: Pairs) -> Tensor:
    r"""SimPER, by inverse perplexity (Xiao et al., 2025).

    $-e^{A_w}+e^{A_l}$, without a reference and without hyperparameters.

    Watch: completions with a high perplexity have hardly a gradient.
    """
    return pairs.rejected.mean.exp() - pairs.chosen.mean.exp()


@algorithm(
    paper="Sun et al., Findings of EMNLP 2025, pp. 5601-5614",
    beta_scale="sum",
    provisional="whether log-probabilities are summed or averaged, and beta; only the abstract could be read",
)
def spo(pairs: Pairs, *, beta: Positive = 0.1, average: bool = False) -> Tensor:
    r"""Self Preference Optimization, SPO (Sun et al., 2025).

    $\mathrm{silu}(-h)=-h\,\sigma(-h)$ with $h=\beta(S_w-S_l)$: smallest, at -0.27846, where $h=1.27846$, so the margin
    limits itself.

    Watch: past its minimum the loss pulls the pair together again.

    Differs: oxRL has $-h\,\sigma(h)$, which is unbounded below, and uses a reference.

    Args:
        beta: multiplies summed log-probabilities.
        average: average log-probabilities instead of sums (then beta should be 2 to 10).
    """
    return self_limited(beta * (mean_margin(pairs) if average else summed_margin(pairs)))


@algorithm(paper="2305.10425")
def slic_hf(pairs: Pairs, *, delta: Positive = 1.0, lam: NonNegative = 0.1) -> dict[str, Tensor]:
    r"""Sequence likelihood calibration, SLiC-HF (Zhao et al., 2023).

    $\max(0,\delta-S_w+S_l)-\lambda\log\pi(y_w)$: a hinge on log-probabilities without a reference, and a pull to the
    supervised target, here the chosen completion.

    Watch: the pull is a sum over tokens and grows with the completion.

    Differs: what TRL, OAT and oxRL call SLiC or hinge has a reference (`hinge`).

    Args:
        delta: the margin in nats.
        lam: weight of the pull to the chosen completion.
    """
    return {"calibration": hinge(summed_margin(pairs), delta), "nll": -lam * pairs.chosen.logp}
