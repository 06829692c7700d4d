"""Ranked lists, and reward models: a table of scores in the place of a policy."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, permutations
from typing import Any

import torch
from scipy.special import expit, logit
from torch import Tensor

from bandit import follow, minimise, population
from optima.completions import LABELLED
from optima.tools import (
    BT,
    CLOSED,
    DUELS,
    ODDS,
    ONE,
    ORDERS,
    PER_PAIR,
    REWARD,
    SHARES,
    Case,
    Check,
    case,
    constant,
    duel_rows,
    gap,
    near,
    shifted,
)
from steelyard.types import Ranked, Scores, TokenScores

TRIPLES = torch.tensor([order for triple in combinations(range(6), 3) for order in permutations(triple)])
"""Every ranking of every three answers, best first."""


def luce(order: Tensor) -> Tensor:
    """``[b]`` the Plackett-Luce probability of rankings: odds among those that are left."""
    odds = ODDS[order]
    return (odds / odds.flip(1).cumsum(1).flip(1)).prod(1)


def ranking(name: str, beta: float = 0.5) -> Check:
    """Rankings drawn from Plackett-Luce with odds exp(r): Luce's choice axiom makes every subset consistent, and pairs
    of a ranking are Bradley-Terry."""

    def check() -> None:
        rewards = torch.tensor([3.0, 2.0, 1.0]).double().expand(len(TRIPLES), -1)

        def view(theta: Tensor) -> Any:
            return BT.ranked(BT.policy(theta), TRIPLES, rewards)

        policy = BT.policy(minimise(population(name, view, luce(TRIPLES), beta=beta), BT.reference))
        near(policy.logp[0], (policy.ref[0] + REWARD / beta).log_softmax(0))

    return check


def matches_rewards(name: str, temperature: float, beta: float = 0.5, **hp: Any) -> Check:
    """softmax(beta l) = softmax(reward / temperature) over all answers: pi = ref exp(reward/(temperature beta))/Z."""

    def check() -> None:
        def view(theta: Tensor) -> Any:
            return BT.ranked(BT.policy(theta), torch.arange(6)[None], REWARD[None])

        policy = BT.policy(minimise(population(name, view, beta=beta, **hp), BT.reference))
        near(policy.logp[0], (policy.ref[0] + REWARD / (temperature * beta)).log_softmax(0))

    return check


def nca_reaches_absolute_rewards() -> None:
    # Per answer -q lsig(r) - lsig(-r)/K is least at exp(r) = K q, q = softmax(reward / a).
    lists = torch.arange(4)[:, None] * DUELS.answers + torch.arange(3)
    rewards = torch.tensor([1.0, 0.5, 0.0]).double().expand(4, -1)

    def view(theta: Tensor) -> Any:
        return DUELS.ranked(DUELS.policy(theta), lists, rewards)

    policy = DUELS.policy(minimise(population("nca", view, beta=2.0, a=0.8), DUELS.reference))
    near(2.0 * policy.logratio[:, :3], (3 * (rewards / 0.8).softmax(-1)).log())


def lipo_lists_of_two() -> None:
    # The weight of a list of two is the same in either order: the logistic link remains, h* = logit(p).
    chosen, rejected = duel_rows(DUELS, SHARES)
    lists, rewards = torch.stack([chosen, rejected], -1), torch.tensor([1.0, 0.0]).double().expand(40, -1)

    def view(theta: Tensor) -> Any:
        return DUELS.ranked(DUELS.policy(theta), lists, rewards)

    policy = DUELS.policy(minimise(population("lipo_lambda", view, beta=2.0), DUELS.reference))
    near(2.0 * gap(policy.logratio), torch.tensor(logit(SHARES)))


def lipo_orders_lists() -> None:
    rewards = torch.tensor([2.0, 0.0, 3.0, 1.0, 5.0, 4.0]).double()

    def view(theta: Tensor) -> Any:
        return ONE.ranked(ONE.policy(theta), torch.arange(6)[None], rewards[None])

    theta = follow(population("lipo_lambda", view, beta=0.5), ONE.reference, steps=300)
    assert ONE.policy(theta).logratio[0].argsort().tolist() == rewards.argsort().tolist()


def rm_recovers(name: str, **hp: Any) -> Check:
    """Differences of scores are differences of rewards."""

    def check() -> None:
        def view(theta: Tensor) -> Any:
            return Scores.from_scores(theta[ORDERS[:, 0]], theta[ORDERS[:, 1]])

        scores = minimise(population(name, view, **hp), torch.zeros(6).double())
        constant(scores - REWARD)

    return check


def centring_keeps_scores_at_zero() -> None:
    # The centring term is least at s_0 + s_1 = 0 and does not touch s_0 - s_1 = logit(p).
    chosen, rejected = duel_rows(CLOSED, SHARES)

    def view(theta: Tensor) -> Any:
        return Scores.from_scores(theta[chosen], theta[rejected])

    start = torch.linspace(-1, 1, 8).double()
    scores = minimise(population("rm", view, centering=0.1), start).view(4, 2)
    odds = torch.tensor(logit(SHARES)) / 2
    near(scores, torch.stack([odds, -odds], -1))


def rm_margin_shifts() -> None:
    margins = torch.tensor([0.0, 1 / 3, 2 / 3, 1.0]).double()
    chosen, rejected = duel_rows(CLOSED, SHARES)

    def view(theta: Tensor) -> Any:
        return Scores.from_scores(theta[chosen], theta[rejected], margin=margins[chosen // 2])

    scores = minimise(population("rm_margin", view), torch.zeros(8).double()).view(4, 2)
    expected = [shifted(p, m) for p, m in zip(SHARES, margins.tolist(), strict=True)]
    near(gap(scores), torch.tensor(expected, dtype=torch.float64))


def rm_listwise_recovers(form: str) -> Check:
    """Plackett-Luce rankings, or their pairs, give back the rewards."""

    def check() -> None:
        rewards = torch.tensor([3.0, 2.0, 1.0]).double().expand(len(TRIPLES), -1)

        def view(theta: Tensor) -> Any:
            return Ranked.from_scores(theta[TRIPLES], rewards)

        objective = population("rm_listwise", view, luce(TRIPLES), form=form)
        constant(minimise(objective, torch.zeros(6).double()) - REWARD)

    return check


def outcome_scores(name: str, to_share: Callable[[Tensor], Tensor], outputs: int = 1, **hp: Any) -> Check:
    """The head's probability is the share of right labels, at every token of a solution."""

    def check() -> None:
        labels = torch.cat([torch.arange(10) < round(10 * p) for p in LABELLED]).double()
        mask = torch.ones(40, 2, dtype=torch.bool)

        def view(theta: Tensor) -> Any:
            table = theta.view(4, 2, outputs).repeat_interleave(10, 0)
            return TokenScores.from_scores(table, labels[:, None].expand(-1, 2), mask, logp=torch.zeros(40, 2).double())

        table = minimise(population(name, view, **hp), torch.zeros(8 * outputs).double()).view(4, 2, outputs)
        near(to_share(table), torch.tensor(LABELLED, dtype=torch.float64)[:, None])

    return check


def cost_model_recovers() -> None:
    # Pairs with P(i costs more than j) = sigmoid(c_i - c_j) and signs with P(i unsafe) = sigmoid(c_i): both terms are
    # least at c itself, zero included.  Costs log(1, 3, 1/2, 2): shares of twelfths times a common count.
    cost = torch.tensor([1.0, 3.0, 0.5, 2.0]).double().log()
    high, low, signs = [], [], []
    weight = []
    for i, j in permutations(range(4), 2):
        for s in (1.0, -1.0):
            for t in (1.0, -1.0):
                high.append(i)
                low.append(j)
                signs.append((s, t))
                weight.append(expit(float(cost[i] - cost[j])) * expit(s * float(cost[i])) * expit(t * float(cost[j])))
    sign = torch.tensor(signs).double()

    def view(theta: Tensor) -> Any:
        return Scores.from_scores(theta[low], theta[high], sign_rejected=sign[:, 0], sign_chosen=sign[:, 1])

    near(minimise(population("cost_model", view, torch.tensor(weight), k=0.5), torch.zeros(4).double()), cost)


CASES: dict[str, Case] = {
    "pl_dpo": case(
        "pi = pi_ref exp(r / beta) / Z",
        "all rankings of three in six answers, Plackett-Luce shares",
        ranking("pl_dpo"),
    ),
    "kwise_dpo": case(
        "pi = pi_ref exp(r / beta) / Z",
        "all rankings of three in six answers, Plackett-Luce shares",
        ranking("kwise_dpo"),
    ),
    "infonca": case(
        "pi = pi_ref exp(r / (a beta)) / Z", "a list of six answers", matches_rewards("infonca", 0.7, a=0.7)
    ),
    "exo": case(
        "pi = pi_ref exp(r / (beta_r beta)) / Z", "a list of six answers", matches_rewards("exo", 0.7, beta_r=0.7)
    ),
    "nca": case("exp(beta l_k) = K softmax(r / a)_k", "four lists of three answers", nca_reaches_absolute_rewards),
    "lipo_lambda": case(
        "lists of two: h = logit(p); longer ones: the order of the rewards",
        PER_PAIR + "; a list of six answers",
        lipo_lists_of_two,
        lipo_orders_lists,
    ),
    "rm": case(
        "scores are the rewards up to a constant; centring draws the pair's mean to zero",
        "six answers, Bradley-Terry labels in exact shares",
        rm_recovers("rm"),
        centring_keeps_scores_at_zero,
    ),
    "rm_margin": case(
        "the logistic link's minimum when both orders ask for the margin",
        PER_PAIR,
        rm_margin_shifts,
    ),
    "rm_listwise": case(
        "scores are the rewards up to a constant",
        "all rankings of three in six answers, Plackett-Luce shares",
        rm_listwise_recovers("plackett_luce"),
        rm_listwise_recovers("kwise"),
    ),
    "orm": case(
        "the score (mse), or its sigmoid (bce), is the share of right solutions",
        "solutions right with shares 0.2 to 0.8, at every token",
        outcome_scores("orm", lambda z: z[..., 0]),
        outcome_scores("orm", lambda z: z[..., 0].sigmoid(), form="bce"),
        outcome_scores("orm", lambda z: z[:, 1:, 0].sigmoid(), form="bce", level="solution"),
    ),
    "prm": case(
        "the probability of the label is the share of right steps",
        "steps right with shares 0.2 to 0.8",
        outcome_scores("prm", lambda z: z.softmax(-1)[..., 1], outputs=2),
    ),
    "cost_model": case(
        "costs are recovered with their zero, where order and signs follow the same costs",
        "four answers, all ordered pairs with all signs in exact shares",
        cost_model_recovers,
    ),
}
"""What each method reaches."""
