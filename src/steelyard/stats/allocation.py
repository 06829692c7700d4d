"""How many seeds and how many items, for what effect, at what cost?

The variance of a paired difference with both seeds and items drawn anew is

``var = seed/n + item/m + rest/(n m)``,

with the components of the *differences* (from a pilot: :func:`components_of`).  Seeds cost a training run each, items
an evaluation in every run.  More items cannot make up for few seeds, nor the other way round: each term has a floor.

Sources: Brennan (2001), "Generalizability theory", ch. 2 and 3 (variance of a mean over crossed facets); Cochran
(1977), "Sampling techniques", §10.6 (optimal allocation in two stages).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from steelyard.errors import StudyError
from steelyard.stats.intervals import components


@dataclass(frozen=True, slots=True)
class Components:
    """Variance components of a difference between two arms, in the squared unit of the score.

    Attributes:
        seed: how much the difference varies with the training run.
        item: how much it varies with the item.
        rest: what is left in a single cell.
    """

    seed: float
    item: float
    rest: float

    def variance(self, seeds: int, items: int) -> float:
        """Variance of the mean difference over so many seeds and items."""
        return self.seed / seeds + self.item / items + self.rest / (seeds * items)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a design costs, in any one unit (seconds, say): training per run, and evaluation per item of a run."""

    run: float
    item: float

    def of(self, seeds: int, items: int, arms: int = 2) -> float:
        """Cost of a whole design."""
        return arms * seeds * (self.run + items * self.item)


@dataclass(frozen=True, slots=True)
class Plan:
    """A design: seeds per arm, items, its power for the effect, and its cost."""

    seeds: int
    items: int
    power: float
    cost: float


def components_of(a: ArrayLike, b: ArrayLike) -> Components:
    """Components of the difference from a pilot: ``[seeds, items]`` of both arms with the same seeds and items.

    Estimates below zero become zero.  A pilot of three seeds knows the seeds' component within a factor of about six
    (95 % interval of a variance with two degrees of freedom: 0.27 to 39 times): plan with its upper end too.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.shape != y.shape:
        raise StudyError(f"a paired pilot needs two matrices of the same shape, got {x.shape} and {y.shape}")
    seed, item, rest = components(x - y)
    return Components(max(0.0, seed), max(0.0, item), rest)


def power(difference: float, parts: Components, seeds: int, items: int, *, alpha: float = 0.05) -> float:
    """Chance that the two-sided mixed-effects test finds a true difference with so many paired seeds and items.

    The test is :func:`steelyard.stats.tests.mixed` with Cochran's critical value.  The seeds' part of the variance is
    estimated from few runs, so the chance is averaged over what that estimate may be (chi-squared); the items' part
    is taken as known, which a hundred items justify.  Simulated power agrees within 2 points
    (``docs/statistics.md``); putting expected variances into a noncentral t is off by 5 points at three seeds.
    """
    if seeds < 2 or items < 2:
        return 0.0
    seed_part = parts.seed / seeds + parts.rest / (seeds * items)
    item_part = parts.item / items
    if seed_part + item_part == 0:
        raise StudyError("the pilot's differences do not vary at all: no power can be computed")
    shift = abs(difference) / math.sqrt(seed_part + item_part)
    estimates = seed_part * _ratios(seeds - 1)
    total = estimates + item_part
    critical = estimates * stats.t.isf(alpha / 2, seeds - 1) + item_part * stats.t.isf(alpha / 2, items - 1)
    edge = critical / np.sqrt(total * (seed_part + item_part))
    return float((stats.norm.sf(edge - shift) + stats.norm.cdf(-edge - shift)).mean())


def welch_power(d: float, n: int, *, alpha: float = 0.05) -> float | None:
    """Chance that Welch's two-sided test finds a true effect of d between two arms of n runs with equal spreads.

    Exact: given the ratio of the two variances (an F variable) Welch's critical value is fixed, and the statistic is
    noncentral t with 2n - 2 degrees of freedom; averaged over the ratio by quadrature.
    :func:`steelyard.stats.design.power` is that of Student's test, which is 10 points more at three runs and 2 at five.
    ``None`` with fewer than two runs.
    """
    if n < 2:
        return None
    ratio = stats.f.ppf(_MIDPOINTS, n - 1, n - 1)
    freedom = (n - 1) * (1 + ratio) ** 2 / (1 + ratio**2)
    critical, shift = stats.t.isf(alpha / 2, freedom), abs(d) * math.sqrt(n / 2)
    found = stats.nct.sf(critical, 2 * n - 2, shift)
    if shift < 5:
        found = found + stats.nct.cdf(-critical, 2 * n - 2, shift)
    return float(found.mean())


_MIDPOINTS = (np.arange(400) + 0.5) / 400


def _ratios(df: int) -> np.ndarray:
    """Equally likely values of an estimated over a true variance."""
    return stats.chi2.ppf(_MIDPOINTS, df) / df


def detectable(parts: Components, seeds: int, items: int, *, alpha: float = 0.05, target: float = 0.8) -> float | None:
    """The smallest true difference found with probability ``target``; ``None`` with fewer than two seeds."""
    if seeds < 2:
        return None
    low, high = 0.0, math.sqrt(parts.variance(seeds, items))
    while power(high, parts, seeds, items, alpha=alpha) < target:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        if power(middle, parts, seeds, items, alpha=alpha) < target:
            low = middle
        else:
            high = middle
    return high


def cheapest(
    difference: float,
    parts: Components,
    cost: Cost,
    *,
    max_items: int,
    max_seeds: int = 200,
    alpha: float = 0.05,
    target: float = 0.8,
    arms: int = 2,
) -> Plan | None:
    """The cheapest design that finds a difference with probability ``target``.

    Args:
        difference: the smallest effect of interest, in the unit of the score.
        max_items: items that exist (a test set cannot be made longer).
        alpha: the level of one comparison; divide it by the family's size for Bonferroni.

    Returns:
        ``None`` when even the largest design does not suffice: then the items' (or the seeds') floor is too high.
    """
    best: Plan | None = None
    for seeds in range(2, max_seeds + 1):
        if best is not None and cost.of(seeds, 2, arms) >= best.cost:
            break
        if power(difference, parts, seeds, max_items, alpha=alpha) < target:
            continue
        low, high = 1, max_items
        while high - low > 1:
            middle = (low + high) // 2
            if power(difference, parts, seeds, middle, alpha=alpha) >= target:
                high = middle
            else:
                low = middle
        plan = Plan(seeds, high, power(difference, parts, seeds, high, alpha=alpha), cost.of(seeds, high, arms))
        if best is None or plan.cost < best.cost:
            best = plan
    return best
