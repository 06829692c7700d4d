"""Pairwise losses that change DPO's margin or the scores that it is made of; the link stays simple.

Notation of the catalogue: S and R are the summed log-probabilities of policy and reference, n the number of
tokens, l = S - R, D = l_w - l_l, h = beta D.  Every function returns one term per pair, ``[b]``.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from steelyard.algorithms.core import algorithm
from steelyard.algorithms.links import (
    CLASSIFICATION,
    NonNegative,
    Positive,
    Share,
    bounded_exp,
    logistic,
    margin,
)
from steelyard.errors import DataError
from steelyard.types import Pairs

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


def divergence_score(logratio: Tensor, divergence: Divergence, alpha: float) -> Tensor:
    """f'(u) at u = exp(l), up to constants; exponentials are cut at :data:`links.MAX_EXPONENT`."""
    if divergence == "forward_kl":
        return -bounded_exp(-logratio)
    if divergence == "js":
        return F.logsigmoid(logratio)
    return -bounded_exp(-alpha * logratio) / alpha if divergence == "alpha" else logratio


@algorithm(paper="2309.16240", reference=True, beta_scale="sum")
def fdpo(pairs: Pairs, *, beta: Positive = 0.1, divergence: Divergence = "js", alpha: Share = 0.5) -> Tensor:
    r"""DPO under other f-divergences (Wang et al., 2023).

    $-\log\sigma(\beta(s_w-s_l))$ with $s=f'(e^l)$: $l$ for reverse KL (DPO), $-e^{-l}$ for forward KL, $\log\sigma(l)$
    for Jensen-Shannon, $-e^{-\alpha l}/\alpha$ for the alpha-divergence.

    Watch: for forward KL and alpha the score of a completion far below the reference explodes; beyond $e^{40}$ it is
    cut and has no gradient.

    Differs: TRL's coefficient is $1-\alpha$, and it cuts at $e^{80}$; oxRL is wrong for all but reverse KL.

    Args:
        beta: strength of the pull towards the reference.
        divergence: what holds the policy at the reference.
        alpha: of the alpha-divergence: towards 0 it is reverse KL, at 1 forward KL; otherwise unused.
    """
    chosen, rejected = (divergence_score(x.logratio, divergence, alpha) for x in (pairs.chosen, pairs.rejected))
    return logistic(beta * (chosen - rejected))


@algorithm(paper="2403.19159", reference=True, beta_scale="sum")
def rdpo(pairs: Pairs, *, beta: Positive = 0.1, alpha: NonNegative = 0.01) -> Tensor:
    r"""Length-regularised DPO, R-DPO (Park et al., 2024, eq. 9).

    $-\log\sigma(\beta(l_w-l_l)+\alpha(n_w-n_l))$: the optimum's reward is $r^*-\alpha n$, a price per token.

    Watch: published values of alpha lie between 0.005 and 1, each with its beta.

    Differs: oxRL has the opposite sign, which rewards long completions.

    Args:
        beta: strength of the pull towards the reference.
        alpha: price of a token; 0 is DPO.
    """
    longer = (pairs.chosen.n - pairs.rejected.n).to(pairs.chosen.logp.dtype)
    return logistic(beta * margin(pairs) + alpha * longer)


@algorithm(
    paper="2402.10571",
    reference=True,
    beta_scale="sum",
    columns=("score_chosen", "score_rejected"),
    ordered=("score_chosen", "score_rejected"),
)
def odpo(
    pairs: Pairs, *, beta: Positive = 0.1, alpha: NonNegative = 1.0, f: Literal["log_gap", "log_ratio"] = "log_gap"
) -> Tensor:
    r"""DPO with an offset (Amini et al., 2024).

    $-\log\sigma(\beta(l_w-l_l)-\alpha f)$ with $f=\log(s_w-s_l)$ of the rows' scores, or $\log(s_w/s_l)$: the more
    one completion is better, the wider the margin.

    Watch: the log of a gap below 1 is negative and asks for less than no margin; mind the scale of the scores.

    Differs: oxRL has a constant offset and no scores.

    Args:
        beta: strength of the pull towards the reference.
        alpha: weight of the offset; 0 is DPO.
        f: the log of the scores' difference or of their ratio.
    """
    if not alpha:
        return logistic(beta * margin(pairs))
    better, worse = pairs.column("score_chosen"), pairs.column("score_rejected")
    if not bool((better > worse).all()):
        raise DataError("odpo needs score_chosen above score_rejected in every pair")
    if f == "log_ratio" and not bool((worse > 0).all()):
        raise DataError("odpo with f=log_ratio takes the log of the scores' ratio: they must be positive")
    difference = better / worse if f == "log_ratio" else better - worse
    return logistic(beta * margin(pairs) - alpha * difference.log())


@algorithm(paper="2402.13228", reference=True, beta_scale="sum")
def dpop(pairs: Pairs, *, beta: Positive = 0.3, lam: NonNegative = 50.0) -> Tensor:
    r"""DPO-Positive, Smaug (Pal et al., 2024).

    $-\log\sigma(\beta(D-\lambda\max(0,-l_w)))$: the chosen completion may not fall below the reference.

    Watch: the penalty is inside the sigmoid and multiplied by beta.

    Differs: oxRL uses lambda = 5.

    Args:
        beta: strength of the pull towards the reference.
        lam: weight of the penalty, inside the sigmoid; 0 is DPO.
    """
    return logistic(beta * (margin(pairs) - lam * F.relu(-pairs.chosen.logratio)))


@algorithm(paper="2502.07599", reference=True, beta_scale="sum")
def dpo_shift(pairs: Pairs, *, beta: Positive = 0.01, f: Share = 0.95, f_end: Share | None = None) -> Tensor:
    r"""DPO-Shift (Yang et al., 2025).

    $-\log\sigma(\beta(l_w-f\,l_l))$ with $f\le1$: less of the margin comes from the rejected side, so that the
    chosen likelihood falls less.  $f$ is fixed or goes linearly to `f_end` over the training.

    Watch: the smaller f, the higher the chosen likelihood and the smaller the margin.

    Differs: oxRL's f is 0.5, the extreme of the paper's sweep, and has no schedule.

    Args:
        beta: strength of the pull towards the reference.
        f: weight of the rejected side (at the start); 1 is DPO.
        f_end: its weight at the end of the training; none: f throughout.
    """
    weight = f if f_end is None else f + (f_end - f) * pairs.progress
    return logistic(beta * (pairs.chosen.logratio - weight * pairs.rejected.logratio))


@algorithm(
    paper="2411.07595",
    reference=True,
    beta_scale="sum",
    provisional="the defaults of alpha and beta (the formula agrees with the paper's abstract and introduction)",
)
def h_dpo(pairs: Pairs, *, beta: Positive = 0.1, alpha: Positive = 0.9) -> Tensor:
    r"""Entropy-controlled DPO, H-DPO (Omura et al., 2024).

    $-\log\sigma(\beta[\alpha(S_w-S_l)-(R_w-R_l)])$: the entropy's share of the KL weighs alpha, so that the optimum
    is $\pi\propto\pi_{ref}^{1/\alpha}e^{r/(\alpha\beta)}$, sharper for alpha below 1.

    Watch: at the reference the margin is not zero.

    Differs: oxRL's alpha of 1 makes it DPO.

    Args:
        beta: strength of the pull towards the reference.
        alpha: weight of the entropy, 0.8 to 1.2; 1 is DPO.
    """
    policy, reference = pairs.chosen.logp - pairs.rejected.logp, pairs.chosen.ref - pairs.rejected.ref
    return logistic(beta * (alpha * policy - reference))


@algorithm(paper="2506.03557", reference=True, beta_scale="sum")
def bpo(
    pairs: Pairs,
    *,
    beta: Positive = 0.1,
    alpha: Share = 0.3,
    link: Literal["logistic", "hinge", "square", "exp", "trunc_quad", "savage"] = "hinge",
) -> Tensor:
    r"""Balanced preference optimization, BPO (Sun et al., 2025).

    $\varphi(\beta\min(l_w,-\alpha l_l))$ with the hinge $\max(0,1-b)$, the logistic $-\log\sigma(b)$ or another of
    `gpo`'s links: only the side that lags behind is moved.

    Watch: at the reference both sides tie in every pair; a tie gives each half of the gradient.

    Differs: the authors' configuration uses the hinge, oxRL and the usual citation the logistic link.

    Args:
        beta: strength of the pull towards the reference.
        alpha: how far the rejected side must fall for each nat that the chosen side rises.
        link: the function of the balanced margin.
    """
    # torch.minimum halves the gradient at ties
    return CLASSIFICATION[link](beta * pairs.chosen.logratio.minimum(-alpha * pairs.rejected.logratio))


@algorithm(paper="2407.13399", reference=True, beta_scale="sum")
def chi_po(
    pairs: Pairs, *, beta: Positive = 0.1, r_max: Positive = 10.0, a: Positive = 1.0, g: NonNegative = 1.0
) -> Tensor:
    r"""Chi-squared preference optimization, chi-PO (Huang et al., 2024).

    $-\log\sigma(\mathrm{clip}(\beta(\phi(l_w)-\phi(l_l)),\pm2R_{max}))$ with
    $\phi(l)=e^{\mathrm{clip}(al,-88,20)}+g\,l$: the chi-squared divergence beside the KL.

    Watch: outside the outer clip a pair has no gradient; outside the inner one only the linear part has.

    Differs: oxRL has no clip.  The author of an unmerged TRL version could not reproduce the paper's results.

    Args:
        beta: strength of the pull towards the reference.
        r_max: half the largest margin: the range of the true rewards.
        a: scale of the log-ratio in the exponential.
        g: weight of the log-ratio itself.
    """
    chosen, rejected = (
        (a * x.logratio).clamp(-88.0, 20.0).exp() + g * x.logratio for x in (pairs.chosen, pairs.rejected)
    )
    return logistic((beta * (chosen - rejected)).clamp(-2 * r_max, 2 * r_max))


@algorithm(
    paper="2408.09834",
    reference=True,
    beta_scale="sum",
    provisional="the gate on the rejected side and the default of beta",
)
def minor_dpo(pairs: Pairs, *, beta: Positive = 0.1) -> Tensor:
    r"""MinorDPO (Xie et al., 2024).

    $-\log\sigma(\beta(l_w-\max(0,l_l)))$: the rejected completion is pushed down only while it is likelier than
    under the reference.

    Watch: at the start $l_l=0$ lies on the kink, where the gradient is zero: the rejected side is free until it
    has risen.

    Args:
        beta: strength of the pull towards the reference.
    """
    return logistic(beta * (pairs.chosen.logratio - F.relu(pairs.rejected.logratio)))
