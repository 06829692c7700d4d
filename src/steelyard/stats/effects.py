"""How large is a difference?  Effect sizes, each with an interval.

Two kinds.  *Over seeds* (:func:`cohens_d`, :func:`hedges_g`, :func:`paired_d`, :func:`cliffs_delta`): the values are
one mean per run, and the unit is the spread between runs.  *Over items* (:func:`risk_difference`,
:func:`odds_ratio`, paired and unpaired): the values are right and wrong answers of one model each, so the intervals
speak of these very models on other items of the kind.

Intervals of g and of Cliff's delta at three to ten seeds are wide or too narrow; their simulated coverage stands in
``docs/statistics.md``, and :func:`steelyard.stats.coverage.require` refuses what is below 92 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats
from scipy.stats import contingency

from steelyard.errors import StudyError
from steelyard.stats import compare
from steelyard.stats.estimate import Summary, wilson


@dataclass(frozen=True, slots=True)
class Effect:
    """An effect size of a over b.

    Attributes:
        name: what it is.
        value: the estimate; may be infinite for an odds ratio.
        low, high: interval of nominal coverage ``level``.
        method: how the interval was computed.
    """

    name: str
    value: float
    low: float
    high: float
    level: float
    method: str


# --------------------------------------------------------------------------------------------------
# Over seeds


def noncentrality(t: float, df: float, level: float = 0.95) -> tuple[float, float]:
    """The noncentrality parameters under which ``t`` is the upper and the lower end of what t would be.

    Source: Steiger & Fouladi (1997), "Noncentrality interval estimation", in Harlow et al., "What if there were no
    significance tests?"; Cumming & Finch (2001), Educational and Psychological Measurement 61.
    """
    tail = 0.5 - level / 2

    spread = _spread(df)

    def root(target: float) -> float:
        reach = 5.0 + abs(t) * (1 + 10 / math.sqrt(df))

        def excess(shift: float) -> float:
            return _below(t, shift, spread) - target

        found = optimize.brentq(excess, t - reach, t + reach, full_output=False)
        assert isinstance(found, float)
        return found

    return root(1 - tail), root(tail)


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(800)


def _spread(df: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for averages over an estimated sd, in units of the true one."""
    low, high = np.sqrt(stats.chi2.ppf([1e-14, 1 - 1e-14], df) / df)
    nodes = low + (high - low) * (_NODES + 1) / 2
    return nodes, (high - low) / 2 * _WEIGHTS * stats.chi2.pdf(nodes**2 * df, df) * 2 * df * nodes


def _below(t: float, shift: float, spread: tuple[np.ndarray, np.ndarray]) -> float:
    """Distribution function of noncentral t, which scipy leaves NaN in parts of the tails."""
    nodes, weights = spread
    return float(weights @ special.ndtr(t * nodes - shift))


def cohens_d(a: Summary, b: Summary, *, level: float = 0.95) -> Effect | None:
    """Cohen's d with the exact interval from the noncentral t (normal runs, equal variances).

    Against a fixed arm it is the one-sample d.  ``None`` where d is not defined.  Sources:
    :func:`steelyard.stats.compare.cohens_d` and :func:`noncentrality`.
    """
    value = compare.cohens_d(a, b)
    arms = [arm for arm in (a, b) if not arm.fixed]
    df = sum(arm.n - 1 for arm in arms)
    if value is None or df < 1:
        return None
    scale = math.sqrt(sum(1 / arm.n for arm in arms))
    low, high = noncentrality(value / scale, df, level)
    return Effect("Cohen's d", value, low * scale, high * scale, level, "noncentral t")


def _correction(df: float) -> float:
    """Hedges' (1981) exact factor J(df)."""
    return math.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2)) / math.sqrt(df / 2)


def hedges_g(a: Summary, b: Summary, *, level: float = 0.95) -> Effect | None:
    """Hedges' g with the noncentral-t interval of the same population effect as d's.

    The estimate is corrected for bias; the interval is that of d, which is exact for the population's effect and
    needs no correction (Goulet-Pelletier & Cousineau 2018, "A review of effect sizes and their confidence
    intervals", TQMP 14, discuss both).  ``None`` where g is not defined.
    """
    found, value = cohens_d(a, b, level=level), compare.hedges_g(a, b)
    if found is None or value is None:
        return None
    return Effect("Hedges' g", value, found.low, found.high, level, found.method)


def paired_d(differences: Sequence[float], *, level: float = 0.95) -> Effect | None:
    """Mean paired difference in units of the sd of the differences (d_z), with Hedges' correction and exact interval.

    Source: Cohen (1988), §2.3.5; :func:`noncentrality`.  Not comparable with d: pairing makes its unit smaller.
    """
    values = np.asarray(differences, dtype=float)
    n = values.size
    if n < 3 or np.ptp(values) == 0:
        return None
    d = float(values.mean() / values.std(ddof=1))
    low, high = noncentrality(d * math.sqrt(n), n - 1, level)
    scale = 1 / math.sqrt(n)
    return Effect("paired d", d * _correction(n - 1), low * scale, high * scale, level, "noncentral t")


def cliffs_delta(a: Sequence[float], b: Sequence[float], *, level: float = 0.95) -> Effect:
    """P(a > b) - P(a < b) over independent runs, with Feng and Cliff's asymmetric interval.

    Source: Cliff (1993), "Dominance statistics", Psychological Bulletin 114; interval from Feng & Cliff (2004), "Monte
    Carlo evaluation of ordinal d with improved confidence interval", JMASM 3, with the unbiased variance (not below
    ``(1 - delta²) / (n_a n_b - 1)``) and the t quantile of n_a + n_b - 2.  If no run of one arm overlaps the other
    (delta = ±1) the variance vanishes; then the bound is that of Wilson's interval with ``min(n_a, n_b)`` trials,
    as they suggest.

    Raises:
        StudyError: fewer than two runs in an arm.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if min(x.size, y.size) < 2:
        raise StudyError("Cliff's delta needs at least two runs in each arm for its interval")
    dominance = np.sign(x[:, None] - y[None, :])
    delta = float(dominance.mean())
    name, how = "Cliff's delta", "Feng and Cliff"
    if abs(delta) == 1.0:
        n = min(x.size, y.size)
        bound = 2 * wilson(n, n, level=level).low - 1
        low, high = (bound, 1.0) if delta > 0 else (-1.0, -bound)
        return Effect(name, delta, low, high, level, f"{how}, Wilson's bound at no overlap")
    n, m = x.size, y.size
    rows, columns = dominance.mean(axis=1) - delta, dominance.mean(axis=0) - delta
    between = float(((dominance - delta) ** 2).sum())
    variance = (m**2 * float((rows**2).sum()) + n**2 * float((columns**2).sum()) - between) / (
        n * m * (n - 1) * (m - 1)
    )
    variance = max(variance, (1 - delta**2) / (n * m - 1))
    t = float(stats.t.ppf(0.5 + level / 2, n + m - 2))
    root = t * math.sqrt(variance) * math.sqrt((1 - delta**2) ** 2 + t**2 * variance)
    middle, scale = delta - delta**3, 1 - delta**2 + t**2 * variance
    return Effect(name, delta, max(-1.0, (middle - root) / scale), min(1.0, (middle + root) / scale), level, how)


# --------------------------------------------------------------------------------------------------
# Over items: one model against one model


@dataclass(frozen=True, slots=True)
class Discordance:
    """A 2 x 2 table of two models on the same items: both right, only a, only b, neither."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def items(self) -> int:
        """Number of items."""
        return self.both + self.only_a + self.only_b + self.neither

    @classmethod
    def of(cls, a: Sequence[float], b: Sequence[float]) -> Discordance:
        """From two lists of zeros and ones over the same items.

        Raises:
            StudyError: unequal lengths, or scores other than 0 and 1.
        """
        x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
        if x.shape != y.shape or x.ndim != 1:
            raise StudyError(f"paired outcomes need equally many items, not {x.size} and {y.size}")
        if not (np.isin(x, (0.0, 1.0)).all() and np.isin(y, (0.0, 1.0)).all()):
            raise StudyError("paired proportions need scores of 0 and 1: other scores are compared by their means")
        counts = np.bincount((2 * x + y).astype(int), minlength=4).tolist()
        return cls(both=counts[3], only_a=counts[2], only_b=counts[1], neither=counts[0])


def risk_difference(k_a: int, n_a: int, k_b: int, n_b: int, *, level: float = 0.95) -> Effect:
    """Difference of two independent proportions, with Newcombe's hybrid score interval.

    Source: Newcombe (1998), "Interval estimation for the difference between independent proportions", Statistics
    in Medicine 17, 873-890, method 10.
    """
    a, b = wilson(k_a, n_a, level=level), wilson(k_b, n_b, level=level)
    p, q = k_a / n_a, k_b / n_b
    low = p - q - math.hypot(p - a.low, b.high - q)
    high = p - q + math.hypot(a.high - p, q - b.low)
    return Effect("risk difference", p - q, low, high, level, "Newcombe")


def tango_z(table: Discordance, null: float) -> float:
    """Score statistic of "the paired risk difference is ``null``"; standard normal under it.

    Source: Tango (1998), "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17, 891-908, eq. 6 and 10.  At ``null = 0`` it is McNemar's.
    """
    numerator = table.only_a - table.only_b - table.items * null
    variance = float(tango_variance(table.only_a, table.only_b, table.items, null))
    if variance <= 0:
        return 0.0 if numerator == 0 else math.copysign(math.inf, numerator)
    return numerator / math.sqrt(variance)


def tango_variance(only_a: ArrayLike, only_b: ArrayLike, items: int, null: float) -> np.ndarray:
    """Variance of the count ``only_a - only_b``, estimated where the risk difference is ``null`` (Tango 1998, eq. 6).

    Counts may be averages over runs, and arrays.
    """
    b, c, n = np.asarray(only_a, dtype=float), np.asarray(only_b, dtype=float), items
    # The maximum-likelihood estimate of the probability of "only b" under the null.
    linear, constant = -b - c + (2 * n - b + c) * null, -c * null * (1 - null)
    q = (np.sqrt(np.maximum(0.0, linear**2 - 8 * n * constant)) - linear) / (4 * n)
    return n * (2 * q + null * (1 - null))


def paired_risk_difference(table: Discordance, *, level: float = 0.95) -> Effect:
    """Difference of the proportions of two models on the same items, with Tango's score interval.

    Source: :func:`tango_z`, inverted numerically.
    """
    n = table.items
    value, z = (table.only_a - table.only_b) / n, float(stats.norm.ppf(0.5 + level / 2))

    def end(sign: float) -> float:
        edge = sign * (1 - 1e-12)
        excess: Callable[[float], float] = lambda null: tango_z(table, null) + sign * z  # noqa: E731
        inside = value + sign * 1e-12
        if sign * excess(edge) > 0 or abs(value) == 1 and sign * value > 0:
            return sign
        found = optimize.brentq(excess, min(inside, edge), max(inside, edge), full_output=False)
        assert isinstance(found, float)
        return found

    return Effect("paired risk difference", value, end(-1.0), end(1.0), level, "Tango")


def odds_ratio(k_a: int, n_a: int, k_b: int, n_b: int, *, level: float = 0.95) -> Effect:
    """Odds ratio of two independent proportions: conditional estimate and exact interval.

    Source: Cornfield (1956), Proc. Third Berkeley Symposium 4; ``scipy.stats.contingency.odds_ratio``.
    """
    found = contingency.odds_ratio([[k_a, n_a - k_a], [k_b, n_b - k_b]], kind="conditional")
    ends = found.confidence_interval(level)
    return Effect("odds ratio", float(found.statistic), float(ends.low), float(ends.high), level, "exact conditional")


def paired_odds_ratio(table: Discordance, *, level: float = 0.95) -> Effect:
    """Conditional odds ratio of two models on the same items: only a / only b, with an exact interval.

    Source: the discordant items are binomial given their number; Clopper and Pearson's ends carried through
    ``p / (1 - p)`` (Breslow & Day 1980, "Statistical methods in cancer research" I, §5.2).
    """
    b, c = table.only_a, table.only_b
    if b + c == 0:
        raise StudyError("both models answer every item alike: there is no odds ratio of the discordant items")
    ends = stats.binomtest(b, b + c).proportion_ci(level, method="exact")

    def odds(p: float) -> float:
        return math.inf if p >= 1 else p / (1 - p)

    value = b / c if c else math.inf
    return Effect("paired odds ratio", value, odds(ends.low), odds(ends.high), level, "exact conditional")
