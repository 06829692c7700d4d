"""Single completions: labelled ones, ones to imitate, and a teacher's distributions."""

from __future__ import annotations

from typing import Any

import torch
from scipy.special import logit
from torch import Tensor

import bandit
from bandit import Policy, follow, minimise, population, settle
from optima.tools import (
    BT,
    CLOSED,
    DUELS,
    ODDS,
    ONE,
    ORDERS,
    PER_PAIR,
    Case,
    Check,
    case,
    constant,
    duels,
    gap,
    log_odds,
    near,
)
from steelyard.types import Distill, Rollouts

LABELLED = (0.2, 0.4, 0.6, 0.8)


def labelled(name: str, solver: Any, shares: tuple[float, ...] = LABELLED, **hp: Any) -> Policy:
    """The first answer of every prompt is desirable with its share, out of ten."""
    which = torch.arange(4).repeat_interleave(10) * DUELS.answers
    label = torch.cat([torch.arange(10) < round(10 * p) for p in shares])

    def view(theta: Tensor) -> Any:
        return DUELS.unpaired(DUELS.policy(theta), which, label)

    return DUELS.policy(solver(population(name, view, **hp), DUELS.reference))


def majority(name: str, **hp: Any) -> Check:
    """The risk is linear in sigmoid(r - z0): an answer rises if lamD P > lamU (1 - P), and falls otherwise."""

    def check() -> None:
        weight = hp.get("desirable_weight", 1.0)
        policy = labelled(name, lambda f, start: follow(f, start, steps=60, lr=0.05), **hp)
        for p, found in zip(LABELLED, policy.logratio[:, 0].tolist(), strict=True):
            assert (found > 0.01) if weight * p > 1 - p else (found < -0.01), (p, found)

    return check


def label_odds(name: str, beta: float, anchored: bool, solver: Any = minimise) -> Check:
    """-P lsig(r - delta) - (1-P) lsig(delta - r) is least at r - delta = logit(P)."""

    def check() -> None:
        policy = labelled(name, solver, beta=beta)
        excess = beta * policy.logratio[:, 0] - torch.tensor(logit(LABELLED))
        constant(excess)
        if anchored:
            near(excess, 0.0)

    return check


COUNTS = torch.arange(6).repeat_interleave(ODDS.long())


def imitates(name: str, **hp: Any) -> Check:
    """The policy is the empirical distribution of the answers."""

    def check() -> None:
        def view(theta: Tensor) -> Any:
            return BT.supervised(BT.policy(theta), COUNTS)

        policy = BT.policy(minimise(population(name, view, **hp), BT.reference))
        near(policy.logp[0], (ODDS / ODDS.sum()).log())

    return check


def dft_reaches_the_mode() -> None:
    # sg(p) grad log p = grad p: DFT maximises the mean probability, which is linear, so the mode takes all; here
    # of one-token answers, from a uniform start.
    def view(theta: Tensor) -> Any:
        return ONE.supervised(ONE.policy(theta), COUNTS)

    policy = ONE.policy(follow(population("dft", view), torch.zeros(6).double(), steps=400, lr=0.2))
    assert policy.logp[0].argmax() == ODDS.argmax() and policy.logp[0].max().exp() > 0.99


def unlikelihood_balances() -> None:
    # Shares q of the chosen and m of the rejected rows, one-token answers.  The slope in a logit of -sum q log pi is
    # pi_k - q_k, that of -alpha sum m log(1 - pi) is alpha (o_k - pi_k sum o) with o = m pi / (1 - pi): their sum is 0.
    # (With all Bradley-Terry rows both would be zero at pi = q; of two in three rows neither is.)
    rows = ORDERS[torch.arange(len(ORDERS)) % 3 != 0]
    q, m = (torch.bincount(side, minlength=6).double() / len(rows) for side in rows.unbind(-1))

    def view(theta: Tensor) -> Any:
        return ONE.pairs(ONE.policy(theta), rows[:, 0], rows[:, 1])

    pi = ONE.policy(minimise(population("unlikelihood", view, alpha=0.7), ONE.reference)).logp[0].exp()
    odds = m * pi / (1 - pi)
    near(pi - q + 0.7 * (odds - pi * odds.sum()), 0.0)


TEACHER = torch.tensor([[1.0, -0.5, 0.3, 0.0], [0.2, 0.1, -1.0, 1.5]]).double()


def distil(student: Tensor, labels: Tensor, **given: Any) -> Distill:
    """Rows of one token: row i at the context ``i % 2`` of a table of two distributions over four tokens."""
    context = torch.arange(len(labels)) % 2
    return Distill.from_logits(
        student.view(2, 4)[context][:, None], TEACHER[context][:, None], labels[:, None], **given
    )


def becomes_the_teacher(name: str, part: str | None = None, **hp: Any) -> Check:
    """The divergence is zero only where the student is the teacher."""

    def check() -> None:
        def objective(theta: Tensor) -> Tensor:
            terms = bandit.evaluate(name, distil(theta, torch.zeros(2, dtype=torch.long), own=[True, True]), **hp)
            parts = [terms] if isinstance(terms, Tensor) else [terms[part]] if part else list(terms.values())
            return torch.stack(parts).sum()

        student = minimise(objective, torch.zeros(8).double()).view(2, 4)
        near(student.log_softmax(-1), TEACHER.log_softmax(-1))

    return check


def kd_mixes_labels_and_teacher() -> None:
    # At tau = 1 both parts are cross-entropies: the student is alpha * labels + (1 - alpha) * teacher.
    labels = torch.tensor([0, 3, 0, 3, 1, 2, 2, 3, 0, 3])

    def objective(theta: Tensor) -> Tensor:
        terms = bandit.evaluate("kd", distil(theta, labels), alpha=0.3, tau=1.0)
        return torch.stack(list(terms.values())).sum()

    student = minimise(objective, torch.zeros(8).double()).view(2, 4).softmax(-1)
    shares = torch.tensor([[0.6, 0.2, 0.2, 0.0], [0.0, 0.0, 0.2, 0.8]]).double()
    near(student, 0.3 * shares + 0.7 * TEACHER.softmax(-1))


def minillm_follows_the_reverse_kl() -> None:
    # Of one sampled token per row the whitened return is the log-ratio up to shift and scale: over tokens in the
    # student's own shares (uniform) the policy term's gradient is that of KL(S || T), divided by one number.
    labels = torch.arange(8) // 2
    theta = torch.zeros(8).double().requires_grad_()
    terms = bandit.evaluate("minillm", distil(theta, labels, own=[True] * 8))
    found = torch.autograd.grad(terms["policy"].sum(), theta)[0]
    student = theta.view(2, 4).log_softmax(-1)
    divergence = (student.exp() * (student - TEACHER.log_softmax(-1))).sum()
    expected = torch.autograd.grad(divergence, theta)[0]
    near(found / found.norm(), expected / expected.norm())


def opd_reaches_the_teacher() -> None:
    # On tokens in the student's own shares the gradient of -rho sg(log T - log S) is that of KL(S || T).
    teacher = TEACHER.log_softmax(-1).flatten()[:, None]

    def objective(theta: Tensor) -> Tensor:
        logp = theta.view(2, 4).log_softmax(-1).flatten()[:, None]
        every = torch.ones(8, 1, dtype=torch.bool)
        view = Rollouts.from_logps(logp, logp.detach(), every, torch.zeros(8), torch.zeros(8), ref=teacher)
        return (bandit.evaluate("opd", view) * logp.detach().exp()).sum()

    near(settle(objective, torch.zeros(8).double()).view(2, 4).log_softmax(-1), TEACHER.log_softmax(-1))


CASES: dict[str, Case] = {
    "kto": case(
        "no finite optimum: an answer rises if lamD P > lamU (1 - P), and falls otherwise",
        "answers desirable with shares 0.2 to 0.8, where they go in a short training",
        majority("kto", beta=2.0),
        majority("kto", beta=2.0, desirable_weight=2.0),
        ordering=True,
    ),
    "kto_pair": case(
        "as kto",
        "answers desirable with shares 0.2 to 0.8, where they go in a short training",
        majority("kto_pair", beta=2.0),
        majority("kto_pair", beta=2.0, desirable_weight=2.0),
        ordering=True,
    ),
    "apo_zero_unpaired": case(
        "no finite optimum: an answer rises if P > 1/2, and falls otherwise",
        "answers desirable with shares 0.2 to 0.8, where they go in a short training",
        majority("apo_zero_unpaired", beta=2.0),
        ordering=True,
    ),
    "bco": case(
        "beta l = delta + logit(P)",
        "answers desirable with shares 0.2 to 0.8",
        label_odds("bco", beta=2.0, anchored=False, solver=settle),
    ),
    "implicit_prm": case(
        "sigmoid(beta l) = P",
        "answers right with shares 0.2 to 0.8",
        label_odds("implicit_prm", beta=2.0, anchored=True),
    ),
    "sft": case("pi is the empirical distribution", "six answers of one or two tokens", imitates("sft")),
    "rft": case("pi is the distribution of the rows kept", "six answers of one or two tokens", imitates("rft")),
    "cpt": case("pi is the empirical distribution", "six answers of one or two tokens", imitates("cpt")),
    "neftune": case(
        "pi is the empirical distribution (the noise is the model's)",
        "six answers of one or two tokens",
        imitates("neftune"),
    ),
    "dft": case(
        "all probability to the mode (the mean probability is maximised)",
        "six answers, in a long training",
        dft_reaches_the_mode,
        ordering=True,
    ),
    "unlikelihood": case(
        "two answers: both terms push alike, x = logit(p); six: pi - q + alpha (o - pi sum o) = 0, o = m pi/(1 - pi), "
        "of the shares q of positives and m of negatives",
        PER_PAIR + "; six answers",
        duels("unlikelihood", log_odds, lambda q: gap(q.logp), where=CLOSED, alpha=0.7),
        unlikelihood_balances,
    ),
    "kd": case(
        "alpha = 0: the teacher; tau = 1: alpha labels + (1 - alpha) teacher",
        "two distributions over four tokens",
        becomes_the_teacher("kd", alpha=0.0, tau=2.0),
        kd_mixes_labels_and_teacher,
    ),
    "gkd": case(
        "the teacher, for every b",
        "two distributions over four tokens",
        *(becomes_the_teacher("gkd", b=b) for b in (0.0, 0.1, 0.5, 1.0)),
    ),
    "minillm": case(
        "the single-step term: the teacher; the policy term follows the gradient of KL(S || T)",
        "two distributions over four tokens",
        becomes_the_teacher("minillm", part="single_step"),
        minillm_follows_the_reverse_kl,
    ),
    "opd": case(
        "the teacher", "two distributions over four tokens, on the student's own shares", opd_reaches_the_teacher
    ),
}
"""What each method reaches."""
