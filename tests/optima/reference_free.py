"""Pairs without a reference."""

from __future__ import annotations

import torch
from scipy.special import expit, lambertw

from bandit import follow, settle
from optima.tools import (
    CLOSED,
    KINK,
    LENGTHS,
    PER_PAIR,
    SHARES,
    SIX,
    SURE,
    TOLERANCE,
    Case,
    case,
    duels,
    fight,
    gap,
    nll_stationary,
    ordering,
    recovers,
    root,
    shifted,
    stationary,
)


def silu_slope(h: float) -> float:
    """phi'(h) of -h sigmoid(-h)."""
    return -expit(-h) * (1 - h * expit(h))


def simper_gives_all_to_the_majority() -> None:
    # The population risk is (1 - 2p)(pi_0 - pi_1): linear, so that all probability goes to the majority's answer.
    policy = fight("simper", CLOSED, solver=lambda f, start: follow(f, start, steps=400, lr=0.3))
    assert bool((policy.logp[:, 0].exp() > 0.99).all()), policy.logp.exp()


def alpha_dpo_asks_for_its_own_margins() -> None:
    # A fixed point: every row's margin is gamma + beta alpha z with z of the gaps that the policy then has.
    beta, gamma, alpha = 2.0, 0.5, 0.3
    policy = fight("alpha_dpo", LENGTHS, solver=settle, beta=beta, gamma=gamma, alpha=alpha, momentum=0.0)
    gaps = gap(policy.logratio / policy.n)
    rows = torch.cat(
        [torch.tensor([g] * round(10 * p) + [-g] * round(10 - 10 * p)) for g, p in zip(gaps, SHARES, strict=True)]
    )
    for p, g, found in zip(SHARES, gaps.tolist(), (beta * gap(policy.mean)).tolist(), strict=True):
        ask = [gamma + beta * alpha * float((row - rows.mean()) / rows.std()) for row in (g, -g)]
        expected = root(lambda x: -p * expit(ask[0] - x) + (1 - p) * expit(ask[1] + x))  # noqa: B023
        assert abs(found - expected) < TOLERANCE, (found, expected)


CASES: dict[str, Case] = {
    "simpo": case(
        "the logistic link's minimum in beta (A_0 - A_1) when both orders ask for gamma; gamma = 0: "
        "log pi = n (r/beta + c)",
        PER_PAIR + "; " + SIX,
        duels("simpo", lambda p, _: shifted(p, 0.5), lambda q: 2.0 * gap(q.mean), where=LENGTHS, beta=2.0, gamma=0.5),
        recovers("simpo", lambda policy: 2.0 * policy.mean, beta=2.0, gamma=0.0),
    ),
    "alphapo": case(
        "as simpo, of (1 - exp(-alpha A))/alpha in place of A",
        PER_PAIR,
        *(
            duels(
                "alphapo",
                lambda p, _: shifted(p, 0.5),
                lambda q, alpha=alpha: 2.0 * gap((1 - (-alpha * q.mean).exp()) / alpha),
                where=LENGTHS,
                beta=2.0,
                gamma=0.5,
                alpha=alpha,
            )
            for alpha in (0.25, -0.5)
        ),
        recovers("alphapo", lambda policy: 2.0 * policy.mean, beta=2.0, gamma=0.0, alpha=0.0),
    ),
    "alpha_dpo": case(
        "as simpo, each row asking for gamma + beta alpha z of the policy then reached; alpha = 0: simpo",
        PER_PAIR,
        alpha_dpo_asks_for_its_own_margins,
        duels(
            "alpha_dpo",
            lambda p, _: shifted(p, 0.5),
            lambda q: 2.0 * gap(q.mean),
            where=LENGTHS,
            beta=2.0,
            gamma=0.5,
            alpha=0.0,
        ),
    ),
    "cpo": case(
        "two answers, x = S_0 - S_1: beta (sigmoid(beta x) - p) + alpha (sigmoid(x) - p) = 0",
        PER_PAIR,
        duels("cpo", nll_stationary(0.5, 0.7), lambda q: gap(q.logp), where=CLOSED, beta=0.5, alpha=0.7),
    ),
    "cpo_simpo": case(
        "two answers: the slope of simpo's term plus alpha (sigmoid(x) - p) is 0",
        PER_PAIR,
        duels(
            "cpo_simpo",
            nll_stationary(2.0, 0.7, gamma=0.5),
            lambda q: gap(q.logp),
            where=CLOSED,
            beta=2.0,
            gamma=0.5,
            alpha=0.7,
        ),
    ),
    "orpo": case(
        "two answers, x = S_0 - S_1 is half the log odds ratio: sigmoid(x) - p + 2 lam (sigmoid(2x) - p) = 0",
        PER_PAIR,
        duels(
            "orpo",
            lambda p, _: root(lambda x: expit(x) - p + 2 * 0.6 * (expit(2 * x) - p)),
            lambda q: gap(q.logp),
            where=CLOSED,
            lam=0.6,
        ),
    ),
    "simper": case(
        "all probability to whoever wins more often (the risk is linear)",
        "four closed duels with shares 0.6 to 0.9, in a long training",
        simper_gives_all_to_the_majority,
        ordering=True,
    ),
    "spo": case(
        "a sure winner stops at h = 1 + W(1/e) = 1.27846; otherwise the zero of p phi'(h) - (1 - p) phi'(-h)",
        PER_PAIR,
        duels(
            "spo",
            lambda p, _: 1 + float(lambertw(expit(0) * 2 / 2.718281828459045).real),
            lambda q: 2.0 * gap(q.logp),
            shares=SURE,
            beta=2.0,
        ),
        duels("spo", lambda p, _: stationary(silu_slope, p), lambda q: 2.0 * gap(q.logp), beta=2.0),
    ),
    "slic_hf": case(
        "S_0 - S_1 = delta for whoever wins more often (lam = 0); beside the pull, the right order",
        PER_PAIR,
        duels("slic_hf", lambda p, _: 1.5, lambda q: gap(q.logp), tolerance=KINK, solver=follow, delta=1.5, lam=0.0),
        ordering("slic_hf", lambda q: q.logratio[:, 0] > 0),
    ),
}
"""What each method reaches."""
