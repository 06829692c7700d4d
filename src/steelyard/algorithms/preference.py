"""Pairwise preference losses, with and without a reference model.

Notation of the catalogue: S and R are the summed log-probabilities of policy and reference, n the number of
tokens, A = S/n, l = S - R, D = l_w - l_l.  Every function returns one term per pair, ``[b]``.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from steelyard.algorithms.core import algorithm
from steelyard.types import Pairs

Positive = Annotated[float, Gt(0.0)]
NonNegative = Annotated[float, Ge(0.0)]


@algorithm(paper="2305.18290", reference=True, beta_scale="sum")
def dpo(pairs: Pairs, *, beta: Positive = 0.1) -> Tensor:
    r"""Direct Preference Optimization (Rafailov et al., 2023, eq. 7).

    $-\log\sigma(\beta(l_w-l_l))$ with $l=\log\pi_\theta(y|x)-\log\pi_{ref}(y|x)$, summed over tokens.

    Args:
        beta: strength of the pull towards the reference.
    """
    return -F.logsigmoid(beta * (pairs.chosen.logratio - pairs.rejected.logratio))


@algorithm(paper="2407.15229", reference=True, length_normalized=True, beta_scale="avg")
def dpo_norm(pairs: Pairs, *, beta: Positive = 5.0) -> Tensor:
    r"""Length-normalised DPO (LN-DPO; Ahrabian et al., 2024; Lambert et al., 2024).

    $-\log\sigma(\beta(l_w/n_w-l_l/n_l))$.  The default is Tülu 3's; TRL calls the loss `sigmoid_norm`.

    Args:
        beta: multiplies averages, so useful values are 2 to 10, not 0.1.
    """
    return -F.logsigmoid(beta * (pairs.chosen.mean_logratio - pairs.rejected.mean_logratio))


@algorithm(paper="2310.12036", reference=True, length_normalized=True, beta_scale="avg")
def ipo(pairs: Pairs, *, beta: Positive = 0.1, average: bool = True) -> Tensor:
    r"""Identity Preference Optimization (Azar et al., 2023, eq. 17).

    $(D-1/(2\tau))^2$ with $\tau$ = `beta`.  The paper prints sums; its authors confirmed averages over
    tokens, which is the default here and in TRL.  oxRL uses sums.

    Args:
        beta: the paper's tau; the target margin is 1/(2 beta).
        average: log-ratios per token (True) or summed over the completion (False).
    """
    if average:
        margin = pairs.chosen.mean_logratio - pairs.rejected.mean_logratio
    else:
        margin = pairs.chosen.logratio - pairs.rejected.logratio
    return (margin - 1 / (2 * beta)) ** 2


@algorithm(paper="2402.13228", reference=True, beta_scale="sum")
def dpop(pairs: Pairs, *, beta: Positive = 0.3, lam: NonNegative = 50.0) -> Tensor:
    r"""DPO-Positive, Smaug (Pal et al., 2024).

    $-\log\sigma(\beta(D-\lambda\max(0,-l_w)))$: the chosen completion may not fall below the reference.
    oxRL uses lambda = 5.

    Args:
        beta: strength of the pull towards the reference.
        lam: weight of the penalty, inside the sigmoid.
    """
    margin = pairs.chosen.logratio - pairs.rejected.logratio
    return -F.logsigmoid(beta * (margin - lam * F.relu(-pairs.chosen.logratio)))


@algorithm(paper="2405.14734", length_normalized=True, beta_scale="avg")
def simpo(pairs: Pairs, *, beta: Positive = 2.0, gamma: float = 1.0) -> Tensor:
    r"""Simple Preference Optimization (Meng et al., 2024, eq. 6).

    $-\log\sigma(\beta(A_w-A_l)-\gamma)$, without a reference.  TRL's and oxRL's beta of 0.1 is degenerate:
    the target gap gamma/beta would be 5 nats per token.

    Args:
        beta: multiplies average log-probabilities.
        gamma: the target margin in total, i.e. the paper's gamma (gamma/beta is 0.5 by default).
    """
    return -F.logsigmoid(beta * (pairs.chosen.mean - pairs.rejected.mean) - gamma)


@algorithm(paper="2403.07691", length_normalized=True)
def orpo(pairs: Pairs, *, lam: NonNegative = 0.1) -> dict[str, Tensor]:
    r"""Odds Ratio Preference Optimization (Hong et al., 2024, eq. 6-7).

    $NLL_w-\lambda\log\sigma(\mathrm{logit}(A_w)-\mathrm{logit}(A_l))$, $\mathrm{logit}(A)=A-\log(1-e^A)$.
    The NLL is the token mean over chosen completions; TRL includes the prompt, the authors' code averages
    over padding.

    Args:
        lam: weight of the odds-ratio term.
    """
    odds = log_odds(pairs.chosen.mean) - log_odds(pairs.rejected.mean)
    return {"nll": -pairs.chosen.token_logp, "odds_ratio": -lam * F.logsigmoid(odds)}


def log_odds(mean_logp: Tensor) -> Tensor:
    """log(p / (1 - p)) of an average log-probability, stable as p tends to one."""
    a = mean_logp.clamp(max=-1e-6)
    near_one = a > -0.6931471805599453
    # Each branch sees only arguments on which it is accurate, so that no gradient is NaN.
    small = torch.log(-torch.expm1(torch.where(near_one, a, -1.0)))
    large = torch.log1p(-torch.exp(torch.where(near_one, -1.0, a)))
    return a - torch.where(near_one, small, large)
