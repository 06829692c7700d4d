"""Iterative methods, in the limit of exact rounds."""

from __future__ import annotations

from typing import Any

import torch
from scipy.special import expit
from torch import Tensor

import bandit
from bandit import Policy, minimise, population, settle
from optima.completions import imitates
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
    SIX,
    UNIFORM_ORDERS,
    WINS,
    Case,
    Check,
    Target,
    both,
    case,
    columns_of,
    dpo_optimum,
    duel,
    duels,
    gap,
    near,
    root,
    train,
    wins_at,
)
from steelyard.types import Rollouts


def spin_reaches_the_data() -> None:
    # Chosen from the data q, rejected from the previous iterate: P(i chosen, j rejected) has odds (q_i/ref_i) to
    # (q_j/ref_j), so that at beta = 1 the next policy is q itself; and q is where the iteration stays.
    data = ODDS / ODDS.sum()
    first, second = torch.cartesian_prod(torch.arange(6), torch.arange(6)).unbind(-1)
    ref = BT.policy(BT.reference).ref[0].exp()
    policy = train("spin", torch.stack([first, second], -1), weight=data[first] * ref[second], beta=1.0)
    near(policy.logp[0], data.log())


def after_rounds(name: str, rounds: int, share: float = 1.0, beta: float = 2.0) -> Check:
    """Each round moves the reference by ``share`` of the way (in logits) to its optimum pi_ref exp(r / beta), so that
    the last round's is pi_ref exp((1 + share (rounds - 1)) r / beta) / Z."""

    def check() -> None:
        theta, reference = ONE.reference, ONE.reference
        for _ in range(rounds):
            reference = share * theta + (1 - share) * reference

            def view(at: Tensor, reference: Tensor = reference) -> Any:
                return ONE.pairs(ONE.policy(at, reference), ORDERS[:, 0], ORDERS[:, 1])

            theta = minimise(population(name, view, beta=beta), theta)
        policy = ONE.policy(theta)
        near(policy.logp[0], (policy.ref[0] + (1 + share * (rounds - 1)) * REWARD / beta).log_softmax(0))

    return check


def online_dpo_on_its_own_samples() -> None:
    # Pairs of the policy's own samples, judged by Bradley-Terry: whichever pairs are drawn, DPO's optimum is theirs.
    def objective(theta: Tensor) -> Tensor:
        policy = BT.policy(theta)
        shares = policy.logp[0].detach().exp()
        first, second = UNIFORM_ORDERS.unbind(-1)
        terms = bandit.evaluate("online_dpo", BT.pairs(policy, first, second), beta=0.5)
        return (terms * shares[first] * shares[second] * WINS[first, second]).sum()

    policy = BT.policy(settle(objective, BT.reference, steps=300))
    near(policy.logp[0], (policy.ref[0] + REWARD / 0.5).log_softmax(0))


def xpo_target(beta: float, alpha: float) -> Target:
    """Answer 1 is the reference's sample: the optimism's slope in x is that of alpha log sigmoid(-x)."""
    return lambda p, x0: root(lambda x: beta * (expit(beta * (x - x0)) - p) - alpha * expit(x))


def second_from_reference(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """Which side the reference wrote: 1 where it is the chosen one."""
    return {"from_reference": (chosen % 2).double()}


def nash_md_reaches(b: float) -> Check:
    """On own samples, sum_y pi grad S (-(P - 1/2) + beta l) is 0 where pi = pi_ref exp(P / beta)/Z, P the probability
    to beat the mixture pi^(1-b) ref^b; with b = 0 that is the regularised Nash equilibrium."""

    def against(policy: Policy) -> Tensor:
        mixture = ((1 - b) * policy.logp[0].detach() + b * policy.ref[0]).softmax(0)
        return WINS @ mixture

    def check() -> None:
        def objective(theta: Tensor) -> Tensor:
            policy = ONE.policy(theta)
            logp, ref = policy.token_logp[0], policy.token_ref[0]
            view = Rollouts.from_logps(logp, logp.detach(), ONE.mask[0], against(policy), torch.zeros(6), ref=ref)
            terms = bandit.evaluate("nash_md", view, beta=0.5, b=b)
            return sum((term.sum(-1) * policy.logp[0].detach().exp()).sum() for term in terms.values())  # type: ignore

        policy = ONE.policy(settle(objective, ONE.reference, steps=300))
        near(policy.logp[0], (policy.ref[0] + against(policy) / 0.5).log_softmax(0))

    return check


CASES: dict[str, Case] = {
    "tr_dpo": case(
        "as dpo between two moves of the reference; pi_ref exp((1 + a) r / beta) / Z after one",
        SIX,
        dpo_optimum("tr_dpo"),
        after_rounds("tr_dpo", rounds=2, share=0.6),
    ),
    "spin": case(
        "the data's distribution, at beta = 1 in one exact round; there it stays",
        "six answers: chosen from the data, rejected from the previous iterate, exact shares",
        spin_reaches_the_data,
    ),
    "iterative_dpo": case(
        "pi_ref exp(k r / beta) / Z after k rounds",
        SIX,
        after_rounds("iterative_dpo", rounds=3),
    ),
    "online_dpo": case("as dpo, on its own samples", SIX, online_dpo_on_its_own_samples),
    "filtered_dpo": case("as dpo, of the pairs kept", SIX, dpo_optimum("filtered_dpo")),
    "sppo": case(
        "l = eta (P - 1/2) of each answer, whichever of the two a row calls chosen",
        PER_PAIR,
        duel(
            "sppo",
            lambda q: both(q, [2 * (p - 0.5) for p in SHARES], [2 * (0.5 - p) for p in SHARES]),
            SHARES,
            columns=columns_of(p=wins_at(DUELS)),
            beta=0.5,
        ),
        duel(
            "sppo",
            lambda q: both(q, [2 * (p - 0.5) for p in SHARES], [2 * (0.5 - p) for p in SHARES]),
            columns=columns_of(p=wins_at(DUELS)),
            beta=0.5,
        ),
        duel("sppo", lambda q: both(q, [1.0] * 4, [-1.0] * 4), beta=0.5, hard=True),
    ),
    "xpo": case(
        "two answers, one of them the reference's: beta (sigmoid(h) - p) = alpha sigmoid(x); alpha = 0: as dpo",
        PER_PAIR,
        duels(
            "xpo",
            xpo_target(2.0, 0.1),
            lambda q: gap(q.logp),
            where=CLOSED,
            columns=second_from_reference,
            beta=2.0,
            alpha=0.1,
        ),
        dpo_optimum("xpo", alpha=0.0, columns={"from_reference": torch.zeros(120)}),
    ),
    "nash_md": case(
        "pi = pi_ref exp(P / beta) / Z, P the probability to beat the mixture; b = 0: the regularised Nash equilibrium",
        "six answers of one token, on the policy's own shares",
        nash_md_reaches(0.0),
        nash_md_reaches(0.5),
    ),
    **{
        name: case("pi is the distribution of the rows kept", "six answers of one or two tokens", imitates(name))
        for name in ("raft", "best_of_n", "rest", "rest_em", "star", "seqkd")
    },
}
"""What each method reaches."""
