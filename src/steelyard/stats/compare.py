"""Is one arm better than another?  Tests, corrections for many comparisons, and effect sizes.

Every test works from summaries (mean, sd, n), so that a published table can be examined with the same code
as our own runs; :func:`paired` alone needs the values.  A p-value that is not defined is ``None`` with a note
that says why, never a number that looks like one.  A large p-value means *not resolved*: it is never read as
equality.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special, stats

from steelyard.errors import StudyError
from steelyard.stats.estimate import Summary, summarise


@dataclass(frozen=True, slots=True)
class Test:
    """A difference ``a - b`` with its interval and two-sided p-value.

    Attributes:
        method: name of the test.
        difference: mean of a minus mean of b.
        low, high: ends of the confidence interval of the difference; ``None`` when not defined.
        statistic: t; ``None`` when not defined.
        df: degrees of freedom.
        p: two-sided p-value; ``None`` when not defined.
        note: why something is not defined or should be read with care, else empty.
    """

    __test__ = False  # pytest: a result, not a test case

    method: str
    difference: float
    low: float | None = None
    high: float | None = None
    statistic: float | None = None
    df: float | None = None
    p: float | None = None
    note: str = ""


# --------------------------------------------------------------------------------------------------
# Tests


def _from_t(method: str, difference: float, se: float, df: float, level: float) -> Test:
    t = difference / se
    half = float(stats.t.ppf(0.5 + level / 2, df)) * se
    p = float(2 * stats.t.sf(abs(t), df))
    return Test(method, difference, difference - half, difference + half, t, df, p)


def welch(a: Summary, b: Summary, *, level: float = 0.95) -> Test:
    """Welch's t-test: two independent arms whose variances may differ.

    Source: Welch (1947), "The generalization of Student's problem when several different population variances
    are involved", Biometrika 34; degrees of freedom after Satterthwaite (1946), Biometrics Bulletin 2.
    Agrees with ``scipy.stats.ttest_ind_from_stats(..., equal_var=False)``, which gives no interval.
    """
    name, difference = "Welch t", a.mean - b.mean
    if a.sd is None or b.sd is None:
        return Test(name, difference, note="needs at least two independent runs in each arm")
    va, vb = a.sd**2 / a.n, b.sd**2 / b.n
    if va + vb == 0.0:
        return Test(name, difference, note="no run-to-run variation in either arm: no t test exists")
    df = (va + vb) ** 2 / (va**2 / (a.n - 1) + vb**2 / (b.n - 1))
    found = _from_t(name, difference, float(np.sqrt(va + vb)), df, level)
    if va * vb == 0.0:
        return replace(found, note="one arm's runs agree exactly, so the test rests on the other's spread alone")
    return found


def student(a: Summary, b: Summary, *, level: float = 0.95) -> Test:
    """Student's two-sample t-test with a common variance.

    Source: Student (1908); agrees with ``scipy.stats.ttest_ind_from_stats(..., equal_var=True)``.
    """
    name, difference = "Student t", a.mean - b.mean
    if a.sd is None or b.sd is None:
        return Test(name, difference, note="needs at least two independent runs in each arm")
    pooled = pooled_sd([a, b])
    if not pooled:
        return Test(name, difference, note="no run-to-run variation in either arm: no t test exists")
    se = pooled * float(np.sqrt(1 / a.n + 1 / b.n))
    return _from_t(name, difference, se, a.n + b.n - 2, level)


def one_sample(a: Summary, constant: float, *, level: float = 0.95) -> Test:
    """One-sample t-test of an arm against a constant: the score of an untrained, deterministic baseline.

    Source: Student (1908).  It asks whether repeated training would beat that very model on these very items;
    the baseline's uncertainty over items is no part of it.
    """
    name, difference = "one-sample t", a.mean - constant
    if a.sd is None:
        return Test(name, difference, note="needs at least two independent runs")
    if a.sd == 0.0:
        return Test(name, difference, note="no run-to-run variation: no t test exists")
    return _from_t(name, difference, a.sd / float(np.sqrt(a.n)), a.n - 1, level)


def paired(a: Sequence[float], b: Sequence[float], *, level: float = 0.95) -> Test:
    """Paired t-test: ``a[i]`` and ``b[i]`` come from the same seed (same generated data, same order).

    Source: Student (1908), applied to the differences; agrees with ``scipy.stats.ttest_rel``.
    """
    if len(a) != len(b):
        raise StudyError(f"a paired test needs equally many values, not {len(a)} and {len(b)}")
    if not len(a):
        return Test("paired t", float("nan"), note="no seed is common to both arms")
    differences = summarise([x - y for x, y in zip(a, b, strict=True)])
    if differences.sd is None:
        return Test("paired t", differences.mean, note="needs at least two seeds common to both arms")
    if differences.sd == 0.0:
        return Test("paired t", differences.mean, note="all paired differences are equal: no t test exists")
    se = differences.sd / float(np.sqrt(differences.n))
    return _from_t("paired t", differences.mean, se, differences.n - 1, level)


def independent(a: Summary, b: Summary, *, level: float = 0.95) -> Test:
    """The test that fits the two arms: :func:`welch`, or :func:`one_sample` when one of them is fixed."""
    if a.fixed and b.fixed:
        note = "both arms are single untrained models: there are no seeds to test over"
        return Test("none", a.mean - b.mean, note=note)
    if b.fixed:
        return one_sample(a, b.mean, level=level)
    if a.fixed:
        found = one_sample(b, a.mean, level=level)
        if found.low is None or found.high is None or found.statistic is None:
            return replace(found, difference=-found.difference)
        turned = {"difference": -found.difference, "statistic": -found.statistic}
        return replace(found, **turned, low=-found.high, high=-found.low)
    return welch(a, b, level=level)


# --------------------------------------------------------------------------------------------------
# Many comparisons


def bonferroni(ps: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values ``min(1, m p)``; ``None`` (not testable) stays ``None`` and is not counted in m.

    Source: Dunn (1961), "Multiple comparisons among means", JASA 56.
    """
    m = sum(p is not None for p in ps)
    return [None if p is None else min(1.0, m * p) for p in ps]


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p-values: the same guarantee as Bonferroni's, never weaker.

    The i-th smallest of m becomes the largest of ``(m - j + 1) p_(j)`` over ``j <= i``, at most 1; ``None`` stays
    ``None`` and is not counted.  Source: Holm (1979), "A simple sequentially rejective multiple test procedure",
    Scandinavian Journal of Statistics 6.  Equal to ``statsmodels.stats.multitest.multipletests``, which
    collects garbage at every call and so takes a thousand times as long.
    """
    known = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    reached = 0.0
    for rank, (p, i) in enumerate(known):
        reached = max(reached, min(1.0, (len(known) - rank) * p))
        adjusted[i] = reached
    return adjusted


# --------------------------------------------------------------------------------------------------
# Effect sizes


def pooled_sd(arms: Sequence[Summary]) -> float | None:
    """Root of the variances' mean weighted by degrees of freedom; arms without an sd do not count.

    ``None`` when no arm has one.
    """
    usable = [(arm.n - 1, arm.sd**2) for arm in arms if arm.sd is not None]
    df = sum(weight for weight, _ in usable)
    return float(np.sqrt(sum(weight * variance for weight, variance in usable) / df)) if df else None


def cohens_d(a: Summary, b: Summary) -> float | None:
    """Difference in units of the pooled sd (``ddof=1``); against a fixed arm, of the other arm's sd.

    Source: Cohen (1988), "Statistical power analysis for the behavioral sciences", 2nd ed., §2.2 and §2.3
    (one sample: d = (mean - constant) / sd).  ``None`` when the sd is zero or not defined.
    """
    arms = [arm for arm in (a, b) if not arm.fixed]
    if not arms or any(arm.sd is None for arm in arms):
        return None
    sd = pooled_sd(arms)
    return (a.mean - b.mean) / sd if sd else None


def hedges_g(a: Summary, b: Summary) -> float | None:
    """Cohen's d with Hedges' exact small-sample correction (``cohens_d`` is biased upwards at small n).

    ``g = d Γ(m/2) / (sqrt(m/2) Γ((m-1)/2))`` with m the degrees of freedom of the sd.  With three runs per
    arm (m = 4) that is 0.80 d.  Source: Hedges (1981), "Distribution theory for Glass's estimator of effect
    size and related estimators", Journal of Educational Statistics 6, eq. 6e.  ``None`` where d is, or with
    m < 2.
    """
    d = cohens_d(a, b)
    df = sum(arm.n - 1 for arm in (a, b) if not arm.fixed)
    if d is None or df < 2:
        return None
    return float(d * np.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2)) / np.sqrt(df / 2))
