"""Pairs with a reference, where more than the difference of two log-ratios counts: offsets, sides, transport."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from scipy.special import expit, logit
from torch import Tensor

from bandit import Objective, Policy, descend, follow, population, settle
from optima.tools import (
    BT,
    CLOSED,
    DUELS,
    EVEN,
    INFINITE,
    KINK,
    PER_PAIR,
    SHARES,
    SIX,
    SURE,
    WINS,
    Case,
    Check,
    both,
    case,
    constant,
    dpo_optimum,
    duel,
    duel_rows,
    duels,
    fight,
    gap,
    moves_of,
    near,
    nll_stationary,
    ordering,
    root,
    shifted,
    train,
)


def nca_pair_reaches_the_winning_odds() -> None:
    # Pairs of two reference samples, y wins with P(y): -P lsig(r) - lsig(-r)/2 is least at exp(r) = 2 P(y); with
    # beta = 1 that is normalised as it stands: sum_y ref(y) 2 P(y) = 1.
    first, second = torch.cartesian_prod(torch.arange(6), torch.arange(6)).unbind(-1)
    ref = BT.policy(BT.reference).ref[0].exp()
    weight = ref[first] * ref[second] * WINS[first, second]
    policy = train("nca_pair", torch.stack([first, second], -1), weight=weight, beta=1.0)
    near(policy.logp[0], (ref * 2 * (WINS @ ref)).log())


OFFSETS = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)


def gaps_of(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """Scores whose gap is the same for both orders of a duel: 0.5, 1, 2, 4."""
    return {"score_chosen": 1 + OFFSETS[chosen // DUELS.answers], "score_rejected": torch.ones(len(chosen)).double()}


def odpo_reaches_shifted_margins() -> None:
    policy = fight("odpo", columns=gaps_of, beta=2.0, alpha=0.7)
    expected = [shifted(p, 0.7 * math.log(g)) for p, g in zip(SHARES, OFFSETS.tolist(), strict=True)]
    near(2.0 * gap(policy.logratio), torch.tensor(expected, dtype=torch.float64))


def aot_shifts_every_quantile(name: str, values: Callable[[Policy], tuple[Tensor, Tensor]]) -> Check:
    """The smoothed link is least at h* = log((1-eps)/eps): beta times the distance of the sorted values is h* at every
    quantile, while the pairs themselves keep other distances (that is what sets it apart from cDPO)."""

    def check() -> None:
        start = DUELS.reference.view(4, -1).flip(0).flatten()
        chosen, rejected = duel_rows(DUELS, SURE)
        once = torch.arange(0, len(chosen), 10)

        def view(theta: Tensor) -> Any:
            return DUELS.pairs(DUELS.policy(theta), chosen[once], rejected[once])

        policy = DUELS.policy(settle(population(name, view, beta=2.0, label_smoothing=0.1), start))
        upper, lower = values(policy)
        near(2.0 * (upper.sort().values - lower.sort().values), math.log(9))
        assert (2.0 * (upper - lower) - math.log(9)).abs().max() > 0.1, "the pairs are matched, not the quantiles"

    return check


def shift_keeps_the_chosen_up() -> None:
    chosen = {f: moves_of("dpo_shift", beta=0.5, f=f).logratio[:, 0] for f in (0.5, 1.0)}
    margin = {f: gap(moves_of("dpo_shift", beta=0.5, f=f).logratio) for f in (0.5, 1.0)}
    assert bool((margin[0.5] > 0.01).all()) and bool((margin[1.0] > margin[0.5]).all()), margin
    assert bool((chosen[0.5] > chosen[1.0] - 1e-3).all()), chosen


def minor_leaves_the_fallen_alone() -> None:
    # The loser is not touched below the reference: it moves as the bystander does.
    policy = moves_of("minor_dpo", where=EVEN, beta=0.5)
    near(policy.logratio[:, 1], policy.logratio[:, 2])
    assert bool((gap(policy.logratio) > 0.01).all())
    # Above the reference it is pushed down.
    start = EVEN.reference.view(4, -1).clone()
    start[:, 1] += 1.0
    policy = moves_of("minor_dpo", where=EVEN, beta=0.5, start=start.flatten())
    assert bool((policy.logratio[:, 1] < policy.logratio[:, 2] + 1.0 - 0.05).all())


def cal_dpo_reached(policy: Any) -> None:
    # l_1 = -l_0 by symmetry, and sigmoid(2 l_0) - p + l_0 - (2p - 1)/(2 beta) = 0.
    first = [root(lambda x, p=p: expit(2 * x) - p + x - (2 * p - 1) * 0.5) for p in SHARES]
    both(policy, first, [-x for x in first])


def bco_reached(anchored: bool) -> Any:
    def holds(policy: Any) -> None:
        odds = torch.tensor(logit(SHARES))
        excess = 2.0 * policy.logratio[:, :2] - torch.stack([odds, -odds], -1)
        constant(excess)
        if anchored:
            near(excess, 0.0)

    return holds


def border(objective: Objective, start: Tensor) -> Tensor:
    """Plain descent in short steps, which stops soon after the gradient does."""
    return descend(objective, start, lr=0.1)


def bpo_stops_at_the_border(policy: Policy) -> Tensor:
    # Only the side that lags behind moves: both arrive at 1 together.
    arrived = torch.stack([2.0 * policy.logratio[:, 0], -0.5 * 2.0 * policy.logratio[:, 1]])
    return (arrived > 1 - KINK) & (arrived < 1.1)


CASES: dict[str, Case] = {
    "odpo": case(
        "the logistic link's minimum when both orders ask for a margin of alpha log(gap)",
        PER_PAIR,
        odpo_reaches_shifted_margins,
        dpo_optimum("odpo", alpha=0.0, columns={"score_chosen": torch.ones(120), "score_rejected": torch.zeros(120)}),
    ),
    "dpop": case(
        "h = logit(p), and neither answer below the reference",
        PER_PAIR,
        duel("dpop", lambda q: near(2.0 * gap(q.logratio), torch.tensor(logit(SHARES))), SHARES, beta=2.0, lam=5.0),
        duel("dpop", lambda q: q.logratio[:, :2] > -1e-6, SHARES, beta=2.0, lam=5.0),
    ),
    "dpo_shift": case(
        "f = 1: as dpo; f < 1: no finite optimum, a smaller margin, a higher chosen answer",
        SIX + "; " + INFINITE,
        dpo_optimum("dpo_shift", f=1.0),
        dpo_optimum("dpo_shift", f=0.5, f_end=1.0, progress=1.0),
        shift_keeps_the_chosen_up,
    ),
    "c2_dpo": case(
        "h = logit(p), halved between the sides: l_0 = -l_1",
        PER_PAIR,
        duel(
            "c2_dpo",
            lambda q: both(q, [logit(p) / 4 for p in SHARES], [-logit(p) / 4 for p in SHARES]),
            SHARES,
            beta=2.0,
            lam=0.5,
        ),
    ),
    "cal_dpo": case(
        "l_0 = -l_1, and sigmoid(2 l_0) - p + l_0 = (2p - 1)/(2 beta)",
        PER_PAIR,
        duel("cal_dpo", cal_dpo_reached, SHARES, beta=1.0),
    ),
    "nca_pair": case(
        "exp(beta l) = 2 P(wins): at beta = 1, and pairs of two reference samples, pi = 2 P pi_ref",
        SIX + "; " + PER_PAIR,
        nca_pair_reaches_the_winning_odds,
        duel(
            "nca_pair",
            lambda q: both(
                q,
                [float(torch.tensor(2 * p).log()) / 2 for p in SHARES],
                [float(torch.tensor(2 - 2 * p).log()) / 2 for p in SHARES],
            ),
            SHARES,
            beta=2.0,
        ),
    ),
    "bco_pair": case(
        "beta l = delta + logit(P(wins))",
        PER_PAIR,
        duel("bco_pair", bco_reached(False), SHARES, solver=settle, beta=2.0),
        duel("bco_pair", bco_reached(True), SHARES, beta=2.0, shift=False),
    ),
    "rpo_nll": case(
        "two answers, x = S_0 - S_1: beta (sigmoid(h) - p) + alpha (sigmoid(x) - p) = 0",
        PER_PAIR,
        *(
            duels(
                "rpo_nll",
                nll_stationary(2.0, 0.7, reference=True),
                lambda q: gap(q.logp),
                where=CLOSED,
                beta=2.0,
                alpha=0.7,
                nll_norm=norm,
            )
            for norm in ("sequence", "token", "sum")
        ),
    ),
    "aot": case(
        "smoothed by eps: every quantile of the margins is log((1 - eps)/eps)/beta above the reference's",
        "four pairs with sure winners, from a start in another order",
        aot_shifts_every_quantile("aot", lambda q: (gap(q.logp), gap(q.ref))),
        ordering("aot", beta=2.0),
    ),
    "aot_unpaired": case(
        "smoothed by eps: every quantile of the chosen log-ratios is log((1 - eps)/eps)/beta above the rejected ones'",
        "four pairs with sure winners, from a start in another order",
        aot_shifts_every_quantile("aot_unpaired", lambda q: (q.logratio[:, 0], q.logratio[:, 1])),
        ordering("aot_unpaired", beta=2.0),
    ),
    "bpo": case(
        "hinge: the loss is 0 from beta l_w = 1 and -alpha beta l_l = 1 on, and descent stops there",
        "four duels with sure winners, both log-ratios to 0.1",
        duel("bpo", bpo_stops_at_the_border, solver=border, beta=2.0, alpha=0.5),
        ordering("bpo", lambda q: (q.logratio[:, 0] > 0) & (q.logratio[:, 1] < 0), beta=2.0, link="logistic"),
    ),
    "minor_dpo": case(
        "no finite optimum: the winner rises; the loser is pushed only while above the reference",
        INFINITE,
        minor_leaves_the_fallen_alone,
        ordering=True,
    ),
    "apo_zero": case(
        "no finite optimum: whoever wins more often rises above the reference, whoever loses falls below",
        INFINITE + "; four duels with shares 0.6 to 0.9, in a long one",
        ordering("apo_zero", lambda q: (q.logratio[:, 0] > 0) & (q.logratio[:, 1] < 0), beta=2.0),
        duel("apo_zero", lambda q: 2.0 * gap(q.logratio) > 4.0, SHARES, solver=follow, beta=2.0),
        ordering=True,
    ),
    "apo_down": case(
        "no finite optimum: both fall below the reference, the loser more",
        INFINITE,
        ordering("apo_down", lambda q: q.logratio[:, 0] < 0, steps=300, beta=2.0),
        ordering=True,
    ),
}
"""What each method reaches."""
