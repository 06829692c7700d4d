"""What the checks of optima are made of: exact populations, training on them, and factories of checks.

The population is exact: with odds e_i = exp(r_i) that are integers, a data set with e_i copies of every ordered
pair (i, j) has Bradley-Terry labels.  A link that is no proper loss has an optimum per pair only; it is checked on
*duels*, prompts with one pair each (ten rows, shares p of 6, 7, 8 and 9 in 10), where other answers take up what
probability is left.  Methods without a finite optimum must order right and show what they promise beside it.

A check is a function without arguments that raises AssertionError.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from scipy.optimize import brentq
from scipy.special import expit, logit
from torch import Tensor

from bandit import Bandit, Policy, follow, minimise, population

Check = Callable[[], None]
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Case:
    """What a method reaches, in words, and the functions that raise AssertionError when it does not."""

    statement: str
    how: str
    checks: tuple[Check, ...]
    ordering: bool = False
    """Only an order (or a limit at infinity) is promised, not a place; a wrong beta then goes unnoticed."""


def case(statement: str, how: str, *checks: Check, ordering: bool = False) -> Case:
    """A case by its words and its checks."""
    return Case(statement, how, checks, ordering)


SIX = "six answers, Bradley-Terry labels in exact shares, all probabilities"
PER_PAIR = "four duels with shares 0.6 to 0.9, the margin of each"
INFINITE = "four duels with sure winners, where it goes in a short training"
KINK = 2e-3
"""Adam stops this close to a kink."""


def near(found: Tensor, expected: Tensor | float, tolerance: float = TOLERANCE) -> None:
    """Equal within ``tolerance``, NaN never."""
    error = (found - expected).abs().max()
    assert error < tolerance, f"off by {error:.3g}: {found.tolist()}"


def constant(values: Tensor, tolerance: float = TOLERANCE) -> None:
    """All the same within ``tolerance``."""
    near(values, values.mean(), tolerance)


def root(f: Callable[[float], float]) -> float:
    """Where an increasing function is zero."""
    return float(brentq(f, -60.0, 60.0, xtol=1e-13))  # type: ignore[arg-type]


def gap(values: Tensor) -> Tensor:
    """``[prompts]`` first answer less second."""
    return values[:, 0] - values[:, 1]


BT = Bandit(seed=1)
ONE = Bandit(short=6, long=0, seed=1)
"""Six answers of one token."""
ODDS = torch.tensor([3, 1, 6, 2, 8, 4], dtype=torch.float64)
REWARD = ODDS.log()
ORDERS = torch.tensor([(i, j) for i, j in permutations(range(6), 2) for _ in range(int(ODDS[i]))])
UNIFORM_ORDERS = torch.tensor(list(permutations(range(6), 2)))
WINS = ODDS[:, None] / (ODDS[:, None] + ODDS)
"""P(i beats j); 1/2 on the diagonal."""


def train(name: str, orders: Tensor = ORDERS, solver: Any = minimise, weight: Any = None, **hp: Any) -> Policy:
    """The policy on :data:`BT` that the loss leads to from the reference."""
    columns = hp.pop("columns", {})

    def view(theta: Tensor) -> Any:
        return BT.pairs(BT.policy(theta), orders[:, 0], orders[:, 1], **columns)

    return BT.policy(solver(population(name, view, weight, **hp), BT.reference))


def recovers(name: str, implicit: Callable[[Policy], Tensor], tolerance: float = TOLERANCE, **hp: Any) -> Check:
    """The implicit reward is the reward up to a constant: with sum(pi) = 1 that determines the policy."""

    def check() -> None:
        constant(implicit(train(name, **hp))[0] - REWARD, tolerance)

    return check


def dpo_optimum(name: str, beta: float = 0.5, sharper: float = 1.0, tolerance: float = TOLERANCE, **hp: Any) -> Check:
    """pi = pi_ref exp(sharper r / beta) / Z."""

    def check() -> None:
        policy = train(name, beta=beta, **hp)
        near(policy.logp[0], (policy.ref[0] + sharper * REWARD / beta).log_softmax(0), tolerance)

    return check


SHARES = (0.6, 0.7, 0.8, 0.9)
SURE = (1.0, 1.0, 1.0, 1.0)
DUELS = Bandit(prompts=4, short=6, long=0, seed=2)
"""The first two answers meet; four others hold the rest of the probability, so that both log-ratios are free."""
CLOSED = Bandit(prompts=4, short=2, long=0, seed=3)
"""Nothing but the two answers: one number per prompt, x = log(pi_0 / pi_1) = S_0 - S_1 of one token each."""
LENGTHS = Bandit(prompts=4, short=1, long=1, seed=4)
"""One answer of one token against one of two; a third, of two, is not in the data."""
SPLIT = Bandit(prompts=4, short=0, long=2, seed=5)
"""Answers of two tokens."""
EVEN = Bandit(prompts=4, short=6, long=0, seed=2)
"""Duels where a bystander, the third answer, is as likely as the second."""
EVEN.reference.view(4, -1)[:, 2] = EVEN.reference.view(4, -1)[:, 1]
Target = Callable[[float, float], float]
"""Share p and the reference's gap R_0 - R_1 -> where the margin goes."""


def duel_rows(where: Bandit, shares: tuple[float, ...], copies: int = 1) -> tuple[Tensor, Tensor]:
    rows = []
    for prompt, share in enumerate(shares):
        first, wins = prompt * where.answers, round(10 * share)
        rows += [(first, first + 1)] * wins + [(first + 1, first)] * (10 - wins)
    table = torch.tensor(rows * copies)
    return table[:, 0], table[:, 1]


def fight(
    name: str,
    where: Bandit = DUELS,
    shares: tuple[float, ...] = SHARES,
    solver: Any = minimise,
    start: Tensor | None = None,
    columns: Callable[[Tensor, Tensor], dict[str, Tensor]] = lambda chosen, rejected: {},
    copies: int = 1,
    **hp: Any,
) -> Policy:
    """The policy on duels that the loss leads to."""
    chosen, rejected = duel_rows(where, shares, copies)
    given = columns(chosen, rejected)

    def view(theta: Tensor) -> Any:
        return where.pairs(where.policy(theta), chosen, rejected, **given)

    start = where.reference if start is None else start
    return where.policy(solver(population(name, view, **hp), start))


def duels(
    name: str,
    target: Target,
    margin: Callable[[Policy], Tensor] | None = None,
    tolerance: float = TOLERANCE,
    shares: tuple[float, ...] = SHARES,
    **given: Any,
) -> Check:
    """The margin (by default beta (l_0 - l_1)) of every duel is the target of its share."""

    def check() -> None:
        policy = fight(name, shares=shares, **given)
        found = given["beta"] * gap(policy.logratio) if margin is None else margin(policy)
        expected = [target(p, float(r)) for p, r in zip(shares, gap(policy.ref), strict=True)]
        near(found, torch.tensor(expected, dtype=torch.float64), tolerance)

    return check


def duel(name: str, holds: Callable[[Policy], Any], shares: tuple[float, ...] = SURE, **given: Any) -> Check:
    """``holds(policy)`` raises, or is a tensor of truths, after training on duels (by default of sure winners)."""

    def check() -> None:
        truths = holds(fight(name, shares=shares, **given))
        assert truths is None or bool(truths.all()), truths

    return check


def moves_of(name: str, steps: int = 40, **given: Any) -> Policy:
    """A short training on sure winners, for methods whose optimum lies at infinity."""
    return fight(name, shares=SURE, solver=lambda f, start: follow(f, start, steps=steps, lr=0.05), **given)


def ordering(name: str, holds: Callable[[Policy], Tensor] | None = None, **given: Any) -> Check:
    """The margin of sure winners has grown in every duel, and ``holds``."""

    def check() -> None:
        policy = moves_of(name, **given)
        assert bool((gap(policy.logratio) > 0.01).all()), gap(policy.logratio)
        if holds is not None:
            assert bool(holds(policy).all())

    return check


def both(policy: Policy, first: list[float], second: list[float], tolerance: float = TOLERANCE) -> None:
    """The log-ratios of the two answers."""
    near(policy.logratio[:, 0], torch.tensor(first, dtype=torch.float64), tolerance)
    near(policy.logratio[:, 1], torch.tensor(second, dtype=torch.float64), tolerance)


def ahead(where: Bandit, by: float) -> Tensor:
    """The reference with the first answer's log-ratio gap at ``by``."""
    table = where.reference.view(where.prompts, -1).clone()
    table[:, 0] += by
    return table.flatten()


def log_odds(p: float, _: float) -> float:
    return float(logit(p))


def shifted(p: float, offset: float) -> float:
    """Minimises -p lsig(x - offset) - (1-p) lsig(-x - offset): the logistic link with a margin asked of both orders."""
    return root(lambda x: -p * expit(offset - x) + (1 - p) * expit(offset + x))


def stationary(slope: Callable[[float], float], p: float) -> float:
    """Where p phi'(h) = (1-p) phi'(-h) for h > 0: the population minimum of a link with the slope phi'."""
    grid = [0.05 * i for i in range(1, 200)]
    risk = [p * slope(h) - (1 - p) * slope(-h) for h in grid]
    first = next(i for i, value in enumerate(risk) if value > 0)
    f = lambda h: p * slope(h) - (1 - p) * slope(-h)  # noqa: E731
    return float(brentq(f, grid[first] - 0.05 or 1e-9, grid[first], xtol=1e-13))  # type: ignore[arg-type]


def columns_of(**values: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    """Columns ``<name>_chosen`` and ``<name>_rejected`` of a function of the flat index."""
    return lambda chosen, rejected: {
        f"{name}_{side}": f(index)
        for name, f in values.items()
        for side, index in (("chosen", chosen), ("rejected", rejected))
    }


def wins_at(where: Bandit) -> Callable[[Tensor], Tensor]:
    """P(beats the other) of the answer with a flat index."""
    share = torch.tensor(SHARES, dtype=torch.float64)
    return lambda index: torch.where(
        index % where.answers == 0, share[index // where.answers], 1 - share[index // where.answers]
    )


def nll_stationary(beta: float, alpha: float, gamma: float = 0.0, reference: bool = False) -> Target:
    """Two answers of one token, x = S_0 - S_1: the slope of the preference term plus alpha (sigmoid(x) - p) is 0."""

    def target(p: float, gap_of_reference: float) -> float:
        x0 = gap_of_reference if reference else 0.0

        def slope(x: float) -> float:
            h = beta * (x - x0)
            return beta * (-p * expit(gamma - h) + (1 - p) * expit(gamma + h)) + alpha * (expit(x) - p)

        return root(slope)

    return target
