"""One arm's number with its uncertainty: over seeds, over items, or over both.

Three different questions, never mixed:

* *over seeds* (:func:`t_interval`): how would the score on these very items vary if training were repeated?
* *over items* (:func:`wilson`, :func:`exact`): how would this very model score on other items of the kind?
* *over both* (:func:`crossed_bootstrap`): when seeds and items are both drawn anew.

Everything takes and returns plain numbers; randomness comes in as an explicit generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from steelyard.errors import StudyError


@dataclass(frozen=True, slots=True)
class Summary:
    """What a test needs to know about one arm.

    Attributes:
        mean: average over the runs, in the unit of the score.
        sd: sample standard deviation over the runs, divisor n - 1 (``ddof=1``); ``None`` when it is not
            defined (one run) or would be no measure of precision (``fixed``).
        n: number of runs.
        fixed: the runs are one and the same model (untrained, evaluated deterministically): the mean is a
            constant of the comparison and its repetition carries no information.
    """

    mean: float
    sd: float | None
    n: int
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval and what it is an interval over.

    Attributes:
        low: lower end.
        high: upper end.
        level: nominal coverage (0.95).
        method: how it was computed, in words.
        over: what is thought to be drawn anew: ``seeds``, ``items`` or ``seeds and items``.
    """

    low: float
    high: float
    level: float
    method: str
    over: str


def summarise(values: Sequence[float], *, fixed: bool = False) -> Summary:
    """Mean, sd (``ddof=1``) and n of the runs of one arm.

    Raises:
        StudyError: no value, or one that is not finite.
    """
    array = np.asarray(values, dtype=float)
    if array.size == 0:
        raise StudyError("an arm without a single finished run has no mean")
    if not np.isfinite(array).all():
        raise StudyError(f"an arm's scores are not all finite: {array.tolist()}")
    undefined = fixed or array.size < 2
    # Equal values must give an sd of exactly zero, which rounding in the mean can spoil.
    sd = 0.0 if np.ptp(array) == 0 else float(array.std(ddof=1)) if array.size > 1 else None
    return Summary(float(array.mean()), None if undefined else sd, int(array.size), fixed)


def t_interval(summary: Summary, *, level: float = 0.95) -> Interval | None:
    """Student's interval of the mean over seeds, ``mean ± t(n-1) sd / sqrt(n)``.

    Source: Student (1908), "The probable error of a mean", Biometrika 6.  ``None`` with fewer than two runs,
    for fixed arms, and when all runs agree exactly: a spread of zero in a handful of runs does not show
    that there is none.
    """
    if summary.sd is None or summary.sd == 0.0 or summary.n < 2:
        return None
    half = stats.t.ppf(0.5 + level / 2, summary.n - 1) * summary.sd / np.sqrt(summary.n)
    return Interval(float(summary.mean - half), float(summary.mean + half), level, "Student's t", "seeds")


def wilson(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion over n items.

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference", JASA 22;
    recommended over the normal interval by Brown, Cai & DasGupta (2001), Statistical Science 16.
    """
    found = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    return Interval(float(found.low), float(found.high), level, "Wilson", "items")


def exact(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """Clopper and Pearson's exact interval of a proportion over n items; never covers less than ``level``.

    Source: Clopper & Pearson (1934), "The use of confidence or fiducial limits illustrated in the case of
    the binomial", Biometrika 26.
    """
    found = stats.binomtest(successes, n).proportion_ci(level, method="exact")
    return Interval(float(found.low), float(found.high), level, "Clopper-Pearson", "items")


def item_interval(scores: ArrayLike, *, level: float = 0.95) -> Interval | None:
    """Interval over items of one model's mean score.

    Args:
        scores: ``[items]`` per-item scores, NaN where an item could not be scored (left out).

    Returns:
        :func:`wilson` when every score is 0 or 1, else Student's interval over the items; ``None`` without
        items.
    """
    array = np.asarray(scores, dtype=float)
    array = array[np.isfinite(array)]
    if array.size == 0:
        return None
    if np.isin(array, (0.0, 1.0)).all():
        return wilson(int(array.sum()), array.size, level=level)
    interval = t_interval(summarise(array.tolist()), level=level)
    return interval and Interval(interval.low, interval.high, level, interval.method, "items")


def crossed_bootstrap(
    scores: ArrayLike, *, rng: np.random.Generator, resamples: int = 2000, level: float = 0.95
) -> Interval | None:
    """Percentile interval of the mean when seeds and items are both drawn anew.

    Every seed answers the same items, so the two are crossed: rows and columns are resampled independently
    and each resample is the mean over the product of the two (the "pigeonhole" bootstrap).

    Source: Owen (2007), "The pigeonhole bootstrap", Annals of Applied Statistics 1; mildly conservative in
    the items' part.  In the seeds' part it is *not*: resampling n seeds shrinks their variance to (n-1)/n,
    at three seeds to two thirds.  Treat it as a description of spread there, not as a 95 % guarantee.

    Args:
        scores: ``[seeds, items]``; NaN marks an item that could not be scored in that run.

    Returns:
        The interval, or ``None`` with fewer than two seeds or items, or when all scores are the same.
    """
    matrix = np.asarray(scores, dtype=float)
    seeds, items = matrix.shape
    scored = np.isfinite(matrix)
    if seeds < 2 or items < 2 or not scored.any() or np.ptp(matrix[scored]) == 0:
        return None
    values = np.where(scored, matrix, 0.0)
    row, column = _counts(seeds, resamples, rng), _counts(items, resamples, rng)
    total = ((row @ values) * column).sum(axis=1)
    weight = ((row @ scored.astype(float)) * column).sum(axis=1)
    means = total[weight > 0] / weight[weight > 0]
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(low), float(high), level, "pigeonhole bootstrap", "seeds and items")


def _counts(n: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """``[resamples, n]`` how often each of n things is drawn when n are drawn with replacement."""
    drawn = rng.integers(n, size=(resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n).astype(float)
