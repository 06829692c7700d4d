"""Are two arms the same for all that matters?  Two one-sided tests against a margin named in advance.

A large p-value of a difference says "not resolved".  "Tied" is another finding: the data exclude every difference
as large as the margin, the smallest effect of interest.  Both can be asked together:

=================  ==========================  =============================
\\                  equivalence shown           equivalence not shown
=================  ==========================  =============================
difference shown   ``tied, but different``     ``higher`` or ``lower``
not shown          ``tied``                    ``not resolved``
=================  ==========================  =============================

Source: Schuirmann (1987), "A comparison of the two one-sided tests procedure and the power approach", Journal of
Pharmacokinetics and Biopharmaceutics 15.  Each one-sided test runs at ``alpha``, no correction between the two; it
is the same as asking whether the interval of level ``1 - 2 alpha`` lies within the margin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from steelyard.errors import StudyError
from steelyard.stats.effects import Discordance, tango_variance, tango_z
from steelyard.stats.estimate import Summary
from steelyard.stats.pivot import Pivot

Finding = Literal["higher", "lower", "tied", "tied, but different", "not resolved", "not testable"]


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Two one-sided tests.

    Attributes:
        margin: the smallest difference that would matter, in the unit of the score.
        difference: a minus b.
        p_above: p of "the difference is at most minus the margin".
        p_below: p of "the difference is at least the margin".
        method: the test.
    """

    margin: float
    difference: float
    p_above: float
    p_below: float
    method: str

    @property
    def p(self) -> float:
        """The larger of the two: equivalence is shown when it is below alpha."""
        return max(self.p_above, self.p_below)


def finding(difference: float, p: float | None, p_equivalence: float | None, *, alpha: float = 0.05) -> Finding:
    """What the two (corrected) p-values say together; see the module's table."""
    if p is None:
        return "not testable"
    apart = p < alpha
    if p_equivalence is not None and p_equivalence < alpha:
        return "tied, but different" if apart else "tied"
    if not apart:
        return "not resolved"
    return "higher" if difference > 0 else "lower"


def tost(pivot: Pivot, margin: float, *, method: str = "TOST") -> Equivalence:
    """Two one-sided tests on any estimate with a standard error.

    Raises:
        StudyError: the margin is not above zero.
    """
    _check(margin)
    return Equivalence(margin, pivot.estimate, pivot.greater(-margin), pivot.less(margin), method)


def tost_binary(pivot: Pivot, margin: float, only_a: float, only_b: float, items: int, *, method: str) -> Equivalence:
    """:func:`tost` for right and wrong answers: the variance is that under each margin, not that at the estimate.

    With few discordant items, most of them in one direction, a small difference comes with a small estimate of its own
    variance, and a tie is claimed too often.  The estimate is enlarged by the factor by which Tango's variance
    under the margin exceeds the plain one (never made smaller), as his score test does for single runs.

    Args:
        only_a, only_b: discordant items, averaged over the runs.
    """
    _check(margin, proportion=True)
    plain = only_a + only_b - (only_a - only_b) ** 2 / items
    p = []
    for null, tail in ((-margin, Pivot.greater), (margin, Pivot.less)):
        factor = max(1.0, float(tango_variance(only_a, only_b, items, null)) / plain) if plain > 0 else 1.0
        p.append(tail(Pivot.of(pivot.estimate, [(part.variance * factor, part.df) for part in pivot.parts]), null))
    return Equivalence(margin, pivot.estimate, p[0], p[1], method)


def paired_means(a: Sequence[float], b: Sequence[float], margin: float) -> Equivalence:
    """Paired t; agrees with ``statsmodels.stats.weightstats.ttost_paired``."""
    if len(a) != len(b) or len(a) < 2:
        raise StudyError(f"a paired test needs at least two pairs, got {len(a)} and {len(b)} values")
    d = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    return tost(Pivot.of(d.mean(), [(_variance(d) / d.size, d.size - 1)]), margin, method="TOST, paired t")


def means(a: Summary, b: Summary, margin: float) -> Equivalence:
    """Welch's t from summaries; one-sample where an arm is fixed."""
    return tost(welch_pivot(a, b), margin, method="TOST, Welch t")


def welch_pivot(a: Summary, b: Summary) -> Pivot:
    """The difference of two independent arms with Welch's standard error and Satterthwaite's degrees of freedom.

    Raises:
        StudyError: an arm that is not fixed has one run, or nothing varies.
    """
    shares = []
    for arm in (a, b):
        if arm.fixed:
            continue
        if arm.sd is None:
            raise StudyError("needs at least two independent runs in each arm")
        shares.append((arm.sd**2 / arm.n, arm.n - 1))
    total = sum(v for v, _ in shares)
    if total == 0:
        return Pivot.of(a.mean - b.mean, [])
    df = total**2 / sum(v**2 / d for v, d in shares)
    return Pivot.of(a.mean - b.mean, [(total, df)])


def proportions(k_a: int, n_a: int, k_b: int, n_b: int, margin: float) -> Equivalence:
    """Two independent proportions: score tests with the variance estimated under each margin.

    Source: Farrington & Manning (1990), "Test statistics and sample size formulae for comparative binomial trials
    with null hypothesis of non-zero risk difference", Statistics in Medicine 9.
    """
    _check(margin, proportion=True)
    above = float(stats.norm.sf(_score_z(k_a, n_a, k_b, n_b, -margin)))
    below = float(stats.norm.cdf(_score_z(k_a, n_a, k_b, n_b, margin)))
    return Equivalence(margin, k_a / n_a - k_b / n_b, above, below, "TOST, Farrington-Manning score")


def paired_proportions(table: Discordance, margin: float) -> Equivalence:
    """Two models on the same items: Tango's score tests at both margins.

    Source: Tango (1998), Statistics in Medicine 17; Liu et al. (2002), "Tests for equivalence or non-inferiority
    for paired binary data", Statistics in Medicine 21.
    """
    _check(margin, proportion=True)
    above, below = float(stats.norm.sf(tango_z(table, -margin))), float(stats.norm.cdf(tango_z(table, margin)))
    return Equivalence(margin, (table.only_a - table.only_b) / table.items, above, below, "TOST, Tango score")


def _score_z(k_a: int, n_a: int, k_b: int, n_b: int, null: float) -> float:
    """(p_a - p_b - null) over its standard error at the maximum of the likelihood under p_a - p_b = null."""
    ratio, p, q = n_b / n_a, k_a / n_a, k_b / n_b
    a = 1 + ratio
    b = -(1 + ratio + p + ratio * q + null * (ratio + 2))
    c = null**2 + null * (2 * p + ratio + 1) + p + ratio * q
    d = -p * null * (1 + null)
    v = b**3 / (3 * a) ** 3 - b * c / (6 * a**2) + d / (2 * a)
    u = math.copysign(math.sqrt(max(0.0, b**2 / (3 * a) ** 2 - c / (3 * a))), v)
    w = (math.pi + math.acos(min(1.0, max(-1.0, v / u**3)))) / 3 if u else math.pi / 2
    first = min(1.0, max(0.0, 2 * u * math.cos(w) - b / (3 * a)))
    second = min(1.0, max(0.0, first - null))
    variance = first * (1 - first) / n_a + second * (1 - second) / n_b
    gap = p - q - null
    if variance <= 0:
        return 0.0 if gap == 0 else math.copysign(math.inf, gap)
    return gap / math.sqrt(variance)


def _variance(values: np.ndarray) -> float:
    return 0.0 if np.ptp(values) == 0 else float(values.var(ddof=1))


def _check(margin: float, *, proportion: bool = False) -> None:
    if not margin > 0 or not math.isfinite(margin):
        raise StudyError(f"the margin of an equivalence test must be above zero, got {margin}")
    if proportion and margin >= 1:
        raise StudyError(f"a margin of {margin} on proportions: expected a share below 1 (2 points are 0.02)")
