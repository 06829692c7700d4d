"""Reward-model losses: on the scores of a head, and on the implicit reward of a policy."""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from steelyard.algorithms.core import algorithm
from steelyard.algorithms.listwise import kwise, plackett_luce
from steelyard.errors import DataError
from steelyard.types import Ranked, Scores, TokenScores, Unpaired

NonNegative = Annotated[float, Ge(0.0)]


@algorithm(paper="2009.01325")
def rm(scores: Scores, *, centering: NonNegative = 0.0) -> dict[str, Tensor]:
    r"""Bradley-Terry reward model (Stiennon et al., 2020; Ouyang et al., 2022).

    $-\log\sigma(r_w-r_l)+\eta(r_w+r_l)^2$ with a scalar head on the last token of the completion; the
    centring term is Eisenstein et al.'s (2312.09244).

    Watch: only differences of scores mean anything; without centring their level drifts.

    Differs: oxRL's head gets no reduced gradient across ranks.

    Args:
        centering: eta; keeps the scores near zero (0.01 is usual; off by default as in the paper).
    """
    terms = {"bradley_terry": -F.logsigmoid(scores.chosen - scores.rejected)}
    if centering:
        terms["centering"] = centering * (scores.chosen + scores.rejected) ** 2
    return terms


@algorithm(paper="2307.09288", columns=("margin",))
def rm_margin(scores: Scores) -> Tensor:
    r"""Bradley-Terry reward model with margins (Touvron et al., 2023).

    $-\log\sigma(r_w-r_l-m)$ with the pair's margin m, larger where the preference is stronger.

    Watch: the paper's margins are 1, 2/3, 1/3 and 0 by strength (3, 2, 1, 0 were tried as well); with m = 0 it is `rm`.
    """
    return -F.logsigmoid(scores.chosen - scores.rejected - scores.column("margin"))


@algorithm(paper="2203.02155", head="score")
def rm_listwise(ranked: Ranked, *, form: Literal["plackett_luce", "kwise"] = "plackett_luce") -> Tensor:
    r"""Reward model of ranked lists (Plackett, 1975; Ouyang et al., 2022).

    `plackett_luce`: $\sum_k[\log\sum_{j\ge k}e^{r_{(j)}}-r_{(k)}]$, completions best first; `kwise`: the mean of
    $-\log\sigma(r_i-r_j)$ over all ordered pairs of the list.  One term per list.

    Watch: tied completions count in list order (`plackett_luce`), or give no pair (`kwise`).

    Args:
        form: likelihood of the whole ranking, or InstructGPT's mean over pairs.
    """
    return plackett_luce(ranked, ranked.score) if form == "plackett_luce" else kwise(ranked, ranked.score)


@algorithm(paper="2110.14168")
def orm(
    scores: TokenScores,
    *,
    lm_weight: NonNegative = 1.0,
    form: Literal["mse", "bce"] = "mse",
    level: Literal["token", "solution"] = "token",
) -> dict[str, Tensor]:
    r"""Outcome reward model, verifier (Cobbe et al., 2021, section 4.2).

    $(z_t-y)^2-\lambda\log\pi_\theta(y_t)$, averaged over all tokens of the solutions; $y=1$ if the final answer is
    right.  `solution` judges the last token only; `bce` replaces the square by
    $-y\log\sigma(z)-(1-y)\log(1-\sigma(z))$.

    Watch: the language-model term learns from every judged solution, right or wrong; 0 switches it off.

    Differs: the paper does not print the reduction; peers divide the sum over tokens by the number of solutions, so
    that long ones weigh more.

    Args:
        lm_weight: weight of the language-model term.
        form: squared error, or cross-entropy where calibrated probabilities are wanted.
        level: judge every token of a solution, or its last token.
    """
    score, label = scores.score, scores.labels
    if level == "solution":
        score, label = (x.gather(1, scores.last)[:, 0] for x in (score, label))
    error = (score - label) ** 2 if form == "mse" else cross_entropy(score, label)
    return {"verifier": error} | ({"language_model": -lm_weight * scores.logp} if lm_weight else {})


@algorithm(paper="2305.20050", head="token_labels", data="steps")
def prm(scores: TokenScores) -> Tensor:
    r"""Process reward model (Lightman et al., 2023; Wang et al., 2023).

    $-y\log p(\mathrm{right})-(1-y)\log p(\mathrm{wrong})$ of two label logits at the last token of every labelled step,
    averaged over the steps.  Hard labels are 0 (wrong) or 1 (right), soft ones the share of right continuations.

    Watch: steps must end at the same tokens in training and in scoring.
    """
    if scores.scores.shape[-1] != 2:
        raise DataError(f"prm needs a head with two logits per token (wrong, right), not {scores.scores.shape[-1]}")
    wrong, right = scores.scores.log_softmax(-1).unbind(-1)
    return -scores.labels * right - (1 - scores.labels) * wrong


@algorithm(paper="2412.01981", reference=True, data="judged", beta_scale="sum")
def implicit_prm(unpaired: Unpaired, *, beta: Annotated[float, Gt(0.0)] = 0.05) -> Tensor:
    r"""Implicit process reward model (Yuan et al., 2024).

    $-y\log\sigma(r)-(1-y)\log\sigma(-r)$ with $r=\beta l$, $l=\log\pi_\theta(y|x)-\log\pi_{ref}(y|x)$ summed over
    tokens: an outcome reward model whose token rewards are $\beta$ times the tokens' log-ratios.

    Watch: only outcomes are learned from; the token rewards come for free and are only as good as the outcomes allow.

    Args:
        beta: scale of the implicit reward.
    """
    reward = beta * unpaired.completions.logratio
    return cross_entropy(reward, unpaired.label.to(reward.dtype))


@algorithm(costs=True, paper="2310.12773", columns=("sign_chosen", "sign_rejected"))
def cost_model(scores: Scores, *, k: NonNegative = 1.0, eta: NonNegative = 0.0) -> dict[str, Tensor]:
    r"""Cost model of Safe RLHF (Dai et al., 2023).

    $-\log\sigma(c_{hi}-c_{lo})-k[\log\sigma(s_{hi}c_{hi})+\log\sigma(s_{lo}c_{lo})]+\eta(c_{hi}^2+c_{lo}^2)/2$: the
    rejected completion is the more harmful one and costs more (hi), and costs are above zero where a completion is
    unsafe ($s=+1$), below where it is safe ($s=-1$).

    Watch: the score is a cost: the chosen, safer completion gets the lower one, against the order of `rm`.

    Differs: align-anything takes the signs from columns whose names suggest the opposite.

    Args:
        k: weight of the signs.
        eta: weight of the squared costs; off by default as in the paper.
    """
    high, low = scores.rejected, scores.chosen
    signed = F.logsigmoid(scores.column("sign_rejected") * high) + F.logsigmoid(scores.column("sign_chosen") * low)
    terms = {"order": -F.logsigmoid(high - low), "sign": -k * signed}
    return terms | ({"square": eta * (high**2 + low**2) / 2} if eta else {})


def cross_entropy(logit: Tensor, label: Tensor) -> Tensor:
    """-y log sigmoid(z) - (1-y) log(1 - sigmoid(z)), elementwise."""
    return F.binary_cross_entropy_with_logits(logit, label, reduction="none")
