"""Pairs with a reference: where the reward is recovered, and where the link has its minimum."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations

import torch
from scipy.special import expit, logit
from torch import Tensor

import bandit
from bandit import Policy, follow, settle
from optima.tools import (
    BT,
    CLOSED,
    DUELS,
    KINK,
    LENGTHS,
    ODDS,
    ORDERS,
    PER_PAIR,
    REWARD,
    SHARES,
    SIX,
    SPLIT,
    SURE,
    UNIFORM_ORDERS,
    WINS,
    Case,
    Target,
    ahead,
    case,
    dpo_optimum,
    duels,
    fight,
    gap,
    log_odds,
    near,
    ordering,
    recovers,
    root,
    stationary,
    train,
)


def f_score(divergence: str, alpha: float = 0.5) -> Callable[[Policy], Tensor]:
    """max E[r] - beta D_f(pi || ref) has r = beta f'(pi / ref) + constant; f' as in Wang et al., table 1."""
    scores = {
        "reverse_kl": lambda u: u.log(),
        "forward_kl": lambda u: -1 / u,
        "js": lambda u: (u / (1 + u)).log(),
        "alpha": lambda u: -(u**-alpha) / alpha,
    }
    return lambda policy: 0.5 * scores[divergence](policy.logratio.exp())


def focal_slope(g: float) -> Callable[[float], float]:
    """phi'(h) of -p^g log p, p = sigmoid(h), undetached: -p^g (1-p) (1 + g log p)."""
    return lambda h: -(expit(h) ** g) * expit(-h) * (1 + g * math.log(expit(h)))


def discopop_far(p: float, _: float) -> float:
    """Beyond the modulation phi(h) = exp(-h) for h > 0 and log(1 + exp(-h)) for h < 0: with z = exp(-h) the population
    minimum is p z (1 + z) = 1 - p."""
    return -math.log((-1 + math.sqrt(1 + 4 * (1 - p) / p)) / 2)


def psi_po(tau: float) -> Tensor:
    """IPO, opponents uniform: least squares of u_i - u_j on (p_ij - 1/2)/tau gives u_i = P(i beats one)/tau, so
    that pi = pi_ref exp(P/tau)/Z (Azar et al., theorem 1 with the identity)."""
    return WINS.mean(1) / tau


def ipo_reaches_psi_po() -> None:
    weight = WINS[UNIFORM_ORDERS[:, 0], UNIFORM_ORDERS[:, 1]]
    policy = train("ipo", UNIFORM_ORDERS, weight=weight, beta=0.5, average=False)
    near(policy.logp[0], (policy.ref[0] + psi_po(0.5)).log_softmax(0))


def flips_do_not_move_robust_dpo() -> None:
    # A flip rate of 1/4 turns e_i : e_j into (3 e_i + e_j) : (e_i + 3 e_j); the estimator undoes it.
    rows = [(i, j) for i, j in permutations(range(6), 2) for _ in range(int(3 * ODDS[i] + ODDS[j]))]
    policy = train("robust_dpo", torch.tensor(rows), beta=0.5, label_smoothing=0.25)
    near(policy.logp[0], (policy.ref[0] + REWARD / 0.5).log_softmax(0))


def discopop_waits_before_the_barrier() -> None:
    # phi'(0) = (1 - log 2)/(4 tau) - 3/4 > 0 at tau = 0.05: from the reference the winner first *falls* into a local
    # minimum; beyond the barrier the margin grows.
    policy = fight("discopop", beta=0.5, tau=0.05)
    assert bool((gap(policy.logratio) < 0).all()), gap(policy.logratio)


def tdpo2_stationary(beta: float, alpha: float) -> Target:
    """Two answers of one token share their KL, so h = beta (x - x0); but the stop-gradient leaves the loser's, and the
    rows' slopes p sig(-h)(1 - alpha K') = (1-p) sig(h)(1 + alpha K') balance with K' = sig(x) - sig(x0)."""

    def target(p: float, x0: float) -> float:
        def slope(x: float) -> float:
            h, pull = beta * (x - x0), alpha * (expit(x) - expit(x0))
            return (1 - p) * expit(h) * (1 + pull) - p * expit(-h) * (1 - pull)

        return root(slope)

    return target


def ld_ratio(alpha: float) -> Callable[[Policy], Tensor]:
    """The shorter answer against the first token of the longer one plus alpha times the second."""

    def margin(policy: Policy) -> Tensor:
        token = policy.token_logp - policy.token_ref
        return token[:, 0, 0] - token[:, 1, 0] - alpha * token[:, 1, 1]

    return margin


def beta_dpo_settles_at_its_base() -> None:
    # With all pairs kept, the batch's mean gap is the running one once training rests: beta_b = beta, and so DPO's
    # optimum.
    state: dict[str, Tensor] = {}

    def objective(theta: Tensor) -> Tensor:
        view = BT.pairs(BT.policy(theta), ORDERS[:, 0], ORDERS[:, 1])
        value, after = bandit.evaluate(
            "beta_dpo", view, state=state or None, reduce=True, return_state=True, beta=0.5, keep=1.0
        )
        state.update(after)
        return value

    policy = BT.policy(follow(objective, BT.reference, steps=400))
    near(policy.logp[0], (policy.ref[0] + REWARD / 0.5).log_softmax(0), 1e-4)


def sampo_evens_the_tokens_out() -> None:
    # Against a short answer either token of a long one is kept, whichever label: each of them alone is to be logit(p)
    # behind.  The draws are random; a thousand rows per duel leave some noise, and DPO would be off by 1.
    policy = fight("sampo", LENGTHS, copies=100, beta=2.0)
    token = policy.token_logp - policy.token_ref
    near(2.0 * (token[:, 0, :1] - token[:, 1]), torch.tensor(logit(SHARES))[:, None], 0.2)


CASES: dict[str, Case] = {
    "dpo": case(
        "pi = pi_ref exp(r / beta) / Z",
        SIX,
        dpo_optimum("dpo"),
        dpo_optimum("dpo", beta=2.0),
    ),
    "step_dpo": case("as dpo, of the disputed step", SIX, dpo_optimum("step_dpo")),
    "robust_dpo": case(
        "the optimum of clean labels, though a share eps of them is flipped",
        SIX + ", a quarter flipped",
        flips_do_not_move_robust_dpo,
        dpo_optimum("robust_dpo", label_smoothing=0.0),
    ),
    "dpo_norm": case(
        "beta l/n = r + constant",
        SIX + ", of one or two tokens",
        recovers("dpo_norm", lambda policy: 2.0 * policy.logratio / policy.n, beta=2.0),
    ),
    "rdpo": case(
        "beta l = r - alpha n + constant: a price per token",
        SIX + ", of one or two tokens",
        recovers("rdpo", lambda policy: 0.5 * policy.logratio + 0.3 * policy.n, beta=0.5, alpha=0.3),
    ),
    "h_dpo": case(
        "pi = pi_ref^(1/alpha) exp(r / (alpha beta)) / Z",
        SIX,
        recovers("h_dpo", lambda policy: 0.5 * (0.8 * policy.logp - policy.ref), beta=0.5, alpha=0.8),
    ),
    "fdpo": case(
        "beta f'(pi / pi_ref) = r + constant, f of each divergence",
        SIX,
        *(
            recovers("fdpo", f_score(name), beta=0.5, divergence=name, alpha=0.5)
            for name in ("reverse_kl", "forward_kl", "js", "alpha")
        ),
    ),
    "chi_po": case(
        "beta (exp(l) + l) = r + constant",
        SIX,
        recovers("chi_po", lambda policy: 0.5 * (policy.logratio.exp() + policy.logratio), beta=0.5),
    ),
    "tdpo": case(
        "TDPO1: beta (l + K) = r + constant, K the sequential KL of the answer; TDPO2: nearer to the reference, since "
        "only the loser's K has a gradient: p - sigmoid(h) = alpha K' (p + sigmoid(h) - 2 p sigmoid(h))",
        SIX + ", of one or two tokens; " + PER_PAIR,
        recovers("tdpo", lambda policy: 0.5 * (policy.logratio + policy.kl), beta=0.5, variant="tdpo1"),
        duels(
            "tdpo",
            tdpo2_stationary(2.0, 0.4),
            lambda q: gap(q.logp),
            where=CLOSED,
            solver=settle,
            beta=2.0,
            alpha=0.4,
        ),
    ),
    "wpo": case(
        "as dpo: a pair weighs the same in both orders",
        SIX,
        dpo_optimum("wpo", solver=settle),
        dpo_optimum("wpo", solver=settle, cap=False),
    ),
    "dr_dpo": case(
        "pi = pi_ref exp(r b' / ((b' - 1) beta)) / Z for b' > 1: doubtful labels weigh less, so it is sharper; none "
        "for b' <= 1",
        SIX,
        dpo_optimum("dr_dpo", b_prime=2.0, sharper=2.0),
        dpo_optimum("dr_dpo", b_prime=4.0, sharper=4 / 3),
        ordering("dr_dpo", beta=0.5),
    ),
    "beta_dpo": case(
        "as dpo at its base beta, when every pair is kept and the running means have settled",
        SIX,
        beta_dpo_settles_at_its_base,
    ),
    "ipo": case(
        "sums: pi = pi_ref exp(P / tau) / Z with P = P(beats a uniform opponent); averages: l/n differs by "
        "(p - 1/2)/tau",
        SIX + "; " + PER_PAIR,
        ipo_reaches_psi_po,
        duels("ipo", lambda p, _: (p - 0.5) / 2.0, lambda q: gap(q.logratio / q.n), where=LENGTHS, beta=2.0),
    ),
    "cdpo": case(
        "h = logit(p (1 - eps) + (1 - p) eps); log((1 - eps)/eps) for a sure winner",
        PER_PAIR,
        duels("cdpo", lambda p, _: log_odds(0.9 * p + 0.1 * (1 - p), 0), beta=2.0, label_smoothing=0.1),
        duels("cdpo", lambda p, _: log_odds(0.9, 0), shares=SURE, beta=2.0, label_smoothing=0.1),
    ),
    "hinge": case(
        "h = 1 for whoever wins more often",
        PER_PAIR,
        duels("hinge", lambda p, _: 1.0, tolerance=KINK, solver=follow, beta=2.0),
    ),
    "gpo": case(
        "logistic and savage: h = logit(p); square and trunc_quad: 2p - 1; exp: logit(p)/2; hinge: 1",
        PER_PAIR,
        duels("gpo", log_odds, beta=2.0, link="logistic"),
        duels("gpo", log_odds, beta=2.0, link="savage"),
        duels("gpo", lambda p, _: 2 * p - 1, beta=2.0, link="square"),
        duels("gpo", lambda p, _: 2 * p - 1, beta=2.0, link="trunc_quad"),
        duels("gpo", lambda p, _: log_odds(p, 0) / 2, beta=2.0, link="exp"),
        duels("gpo", lambda p, _: 1.0, tolerance=KINK, solver=follow, beta=2.0, link="hinge"),
    ),
    "exo_pair": case(
        "h = (2p - 1) log((1 - eps)/eps)",
        PER_PAIR,
        duels("exo_pair", lambda p, _: (2 * p - 1) * log_odds(0.9, 0), beta=2.0, eps=0.1),
        duels("exo_pair", lambda p, _: log_odds(0.9, 0), shares=SURE, beta=2.0, eps=0.1),
    ),
    "focalpo": case(
        "the zero of p phi'(h) - (1 - p) phi'(-h), phi' = -s^g (1 - s)(1 + g log s), s = sigmoid(h)",
        PER_PAIR,
        duels("focalpo", lambda p, _: stationary(focal_slope(0.05), p), beta=2.0, g=0.05),
        dpo_optimum("focalpo", g=0.0),
    ),
    "discopop": case(
        "exp(-h) = (sqrt(1 + 4(1 - p)/p) - 1)/2 beyond the barrier; from the reference it stops before it",
        PER_PAIR + ", from h = 1 and from h = 0",
        duels("discopop", discopop_far, start=ahead(DUELS, 0.5), beta=2.0, tau=0.02),
        discopop_waits_before_the_barrier,
    ),
    "ld_dpo": case(
        "h = logit(p) with alpha as the weight of tokens past the shared length",
        PER_PAIR,
        duels("ld_dpo", log_odds, lambda q: 2.0 * ld_ratio(0.3)(q), where=LENGTHS, beta=2.0, alpha=0.3),
    ),
    "sampo": case(
        "h = logit(p) at equal lengths; at unequal ones of each token that may be kept",
        PER_PAIR + " (to 0.2 where tokens are drawn)",
        duels("sampo", log_odds, where=SPLIT, beta=2.0),
        sampo_evens_the_tokens_out,
    ),
}
"""What each method reaches."""
