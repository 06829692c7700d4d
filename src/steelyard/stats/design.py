"""What a design can see: power, the smallest detectable difference, the seeds that would be needed.

All of it is about the *design* (n, alpha, the spread between runs), computed for effects that are named in
advance.  Power "at the observed effect" is not offered: it is the p-value in other clothes (Hoenig & Heisey,
2001, "The abuse of power", American Statistician 55).  Planning the next study from an observed effect is
legitimate, with the warning that small studies overstate the effects that they find.

Source of the power function: the noncentral t distribution, Cohen (1988), chapter 2; through scipy.  It
agrees with ``statsmodels.stats.power`` wherever that is finite; with two or three runs and corrected levels
its solver returns NaN or the end of its bracket, which is just where studies of this kind live.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from scipy import optimize, stats

from steelyard.stats.compare import pooled_sd
from steelyard.stats.estimate import Summary

MAX_SEEDS = 10_000
"""Beyond this many seeds per arm :func:`seeds_needed` gives up (``None``)."""


def power(d: float, n: int, *, alpha: float = 0.05, against_constant: bool = False) -> float | None:
    """Chance that the two-sided t test finds a true effect of d with n runs per arm.

    ``against_constant``: one-sample test against a fixed baseline.  ``None`` with fewer than two runs.

    >>> round(power(0.8, 5), 2), round(power(0.8, 5, alpha=0.05 / 19), 2)
    (0.2, 0.02)
    """
    if n < 2:
        return None
    df = n - 1 if against_constant else 2 * n - 2
    shift = abs(d) * math.sqrt(n if against_constant else n / 2)
    critical = stats.t.isf(alpha / 2, df)
    found = stats.nct.sf(critical, df, shift)
    # Significance in the wrong direction has a chance of at most alpha/2 exp(-shift²/2), since
    # Φ(-x-a) <= Φ(-x) exp(-a²/2); where that is nothing, scipy's lower tail is NaN.
    if alpha / 2 * math.exp(-(shift**2) / 2) > 1e-7:
        found += stats.nct.cdf(-critical, df, shift)
    return float(found)


def detectable(n: int, *, alpha: float = 0.05, target: float = 0.8, against_constant: bool = False) -> float | None:
    """The smallest true effect d that is found with probability ``target``; ``None`` below two runs.

    >>> round(detectable(5), 3)
    2.024
    """
    if n < 2:
        return None

    def excess(d: float) -> float:
        found = power(d, n, alpha=alpha, against_constant=against_constant)
        assert found is not None
        return found - target

    high = 1.0
    while excess(high) < 0:
        high *= 2
    root = optimize.brentq(excess, 0.0, high, xtol=1e-10, full_output=False)
    assert isinstance(root, float)
    return root


def seeds_needed(d: float, *, alpha: float = 0.05, target: float = 0.8, against_constant: bool = False) -> int | None:
    """Runs per arm for which a true effect of d is found with probability ``target``.

    ``None`` when d is zero or more than :data:`MAX_SEEDS` runs would be needed.
    """

    def enough(n: int) -> bool:
        return (power(d, n, alpha=alpha, against_constant=against_constant) or 0.0) >= target

    if d == 0:
        return None
    low, high = 1, 2
    while not enough(high):
        if high >= MAX_SEEDS:
            return None
        low, high = high, min(2 * high, MAX_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


@dataclass(frozen=True, slots=True)
class Design:
    """What one table of comparisons could have found.

    Attributes:
        n: runs per arm (the most common number; of equally common ones the smaller).
        comparisons: size m of the family that is corrected for.
        alpha: two-sided level before correction; Bonferroni's is ``alpha / comparisons``.
        target: the power that "detectable" refers to.
        sd: pooled within-arm sd in the unit of the score; ``None`` when no arm has one.
        against_constant: the baseline is a fixed model, so the test is one-sample.
        reference_d: the effect size that the two powers are computed for.
        power: power at ``reference_d``, uncorrected.
        power_corrected: the same at Bonferroni's level.
        detectable: smallest difference found with ``target`` power, in the unit of the score, uncorrected.
        detectable_corrected: the same at Bonferroni's level.
    """

    n: int
    comparisons: int
    alpha: float
    target: float
    sd: float | None
    against_constant: bool
    reference_d: float
    power: float | None
    power_corrected: float | None
    detectable: float | None
    detectable_corrected: float | None


def describe(
    arms: list[Summary],
    *,
    comparisons: int,
    against_constant: bool,
    alpha: float = 0.05,
    target: float = 0.8,
    reference_d: float = 0.8,
) -> Design:
    """The design behind a table: ``arms`` are those with runs of their own (fixed arms do not count).

    The spread is pooled over all of them, because a handful of runs estimates one arm's sd badly.
    """
    running = [arm for arm in arms if not arm.fixed]
    counts = Counter(arm.n for arm in running)
    n = min(counts, key=lambda runs: (-counts[runs], runs), default=0)
    strict = alpha / max(1, comparisons)
    sd = pooled_sd(running)

    def difference(level: float) -> float | None:
        d = detectable(n, alpha=level, target=target, against_constant=against_constant)
        return None if d is None or not sd else d * sd

    return Design(
        n=n,
        comparisons=comparisons,
        alpha=alpha,
        target=target,
        sd=sd,
        against_constant=against_constant,
        reference_d=reference_d,
        power=power(reference_d, n, alpha=alpha, against_constant=against_constant),
        power_corrected=power(reference_d, n, alpha=strict, against_constant=against_constant),
        detectable=difference(alpha),
        detectable_corrected=difference(strict),
    )
