"""Intervals of one arm's mean from its scores ``[seeds, items]``, over seeds, items, or both.

Every interval names what is thought to be drawn anew.  How often each covers the truth was simulated
(:mod:`steelyard.stats.coverage`, printed in ``docs/statistics.md``); :func:`interval` refuses one that covers less
than 92 % at the given number of seeds.  The functions themselves compute what they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from steelyard.errors import StudyError, unknown
from steelyard.stats import coverage
from steelyard.stats.estimate import Interval, crossed_bootstrap, item_interval, summarise, t_interval
from steelyard.stats.pivot import Pivot


def components(scores: ArrayLike) -> tuple[float, float, float]:
    """Variance components of a complete matrix ``[seeds, items]``: seed, item, and the rest (one cell).

    Anova estimates of the two-way crossed random model ``y = mean + seed + item + rest``; they may be negative.
    Source: Searle, Casella & McCulloch (1992), "Variance components", §4.3.

    Raises:
        StudyError: fewer than two seeds or items, or a missing score.
    """
    n, m, seed_ms, item_ms, rest_ms = mean_squares(scores)
    return (seed_ms - rest_ms) / m, (item_ms - rest_ms) / n, rest_ms


def mean_squares(scores: ArrayLike) -> tuple[int, int, float, float, float]:
    """Seeds, items, and the mean squares of seeds, items and the rest of a complete two-way table.

    Raises:
        StudyError: fewer than two seeds or items, or a missing score.
    """
    y = np.asarray(scores, dtype=float)
    if y.ndim != 2 or min(y.shape) < 2:
        raise StudyError(
            f"variance components need at least two seeds and two items, got {' x '.join(map(str, y.shape))}"
        )
    if not np.isfinite(y).all():
        raise StudyError(
            f"{int((~np.isfinite(y)).sum())} of {y.size} scores are missing: the two-way table is not complete"
        )
    n, m = y.shape
    rows, columns, mean = y.mean(axis=1), y.mean(axis=0), y.mean()
    rest = ((y - rows[:, None] - columns[None, :] + mean) ** 2).sum() / ((n - 1) * (m - 1))
    seed_ms = 0.0 if np.ptp(rows) == 0 else m * float(rows.var(ddof=1))
    item_ms = 0.0 if np.ptp(columns) == 0 else n * float(columns.var(ddof=1))
    return n, m, seed_ms, item_ms, float(rest)


def crossed_parts(scores: ArrayLike) -> list[tuple[float, float]]:
    """The two parts of the variance of a mean over crossed seeds and items, with their degrees of freedom.

    Over seeds ``MS_seed / nm`` (n - 1), over items ``(MS_item - MS_rest) / nm`` (m - 1): together the unbiased
    estimate of ``var(seed)/n + var(item)/m + var(rest)/nm``, cut so that the items' part is not negative.
    """
    n, m, seed_ms, item_ms, rest_ms = mean_squares(scores)
    return [(seed_ms / (n * m), n - 1), (max(0.0, item_ms - rest_ms) / (n * m), m - 1)]


def crossed(scores: ArrayLike, *, level: float = 0.95) -> Interval | None:
    """The default: seeds and items are both drawn anew; two-way random effects with Cochran's critical value.

    Source: Searle, Casella & McCulloch (1992), §4.3, for the variance; :mod:`steelyard.stats.pivot` for the
    critical value.  Simulated coverage: see the generated table of ``docs/statistics.md``.

    Returns:
        ``None`` when nothing varies.
    """
    parts = crossed_parts(scores)
    if not any(variance > 0 for variance, _ in parts):
        return None
    low, high = Pivot.of(float(np.asarray(scores, dtype=float).mean()), parts).interval(level)
    return Interval(low, high, level, "crossed random effects, Cochran's t", "seeds and items")


def over_seeds(scores: ArrayLike, *, level: float = 0.95) -> Interval | None:
    """Student's t over the seeds' means, for these very items (:func:`steelyard.stats.estimate.t_interval`)."""
    return t_interval(summarise(np.asarray(scores, dtype=float).mean(axis=1).tolist()), level=level)


def clustered(scores: ArrayLike, *, level: float = 0.95) -> Interval | None:
    """Items drawn anew, the seeds as they are: t over the items' means, so that repeats of an item are one cluster.

    Source: Liang & Zeger (1986), Biometrika 73 (cluster-robust variance; for a mean with clusters of equal size it
    is the variance of the cluster means); Miller (2024), arXiv 2411.00640, for evaluations.
    """
    found = t_interval(summarise(np.nanmean(np.asarray(scores, dtype=float), axis=0).tolist()), level=level)
    return found and Interval(found.low, found.high, level, "t over items, clustered by item", "items")


def seed_bootstrap(
    scores: ArrayLike, *, rng: np.random.Generator, resamples: int = 2000, level: float = 0.95
) -> Interval | None:
    """Percentile bootstrap over the seeds' means.  It covers far too little with few seeds, and is refused there.

    Source: Efron (1979), "Bootstrap methods: another look at the jackknife", Annals of Statistics 7.
    """
    means = np.asarray(scores, dtype=float).mean(axis=1)
    if means.size < 2 or np.ptp(means) == 0:
        return None
    drawn = means[rng.integers(means.size, size=(resamples, means.size))].mean(axis=1)
    low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(low), float(high), level, "percentile bootstrap", "seeds")


def bca_bootstrap(
    scores: ArrayLike, *, rng: np.random.Generator, resamples: int = 2000, level: float = 0.95
) -> Interval | None:
    """Bias-corrected and accelerated bootstrap over items of the items' means.

    Source: Efron (1987), "Better bootstrap confidence intervals", JASA 82; computed by ``scipy.stats.bootstrap``.
    It helps with many items and a skewed score (lengths, rewards); seeds are taken as they are.
    """
    values = np.nanmean(np.asarray(scores, dtype=float), axis=0)
    if values.size < 2 or np.ptp(values) == 0:
        return None
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=resamples, confidence_level=level, method="BCa", rng=rng, batch=200
    ).confidence_interval
    return Interval(float(found.low), float(found.high), level, "BCa bootstrap", "items")


Method = Callable[..., Interval | None]
METHODS: dict[str, Method] = {
    "crossed": crossed,
    "t": over_seeds,
    "clustered": clustered,
    "seed-bootstrap": seed_bootstrap,
    "pigeonhole": crossed_bootstrap,
    "bca-items": bca_bootstrap,
}
"""Intervals by name; the first is the default."""

_RANDOM = ("seed-bootstrap", "pigeonhole", "bca-items")


def interval(
    scores: ArrayLike, method: str = "crossed", *, rng: np.random.Generator | None = None, level: float = 0.95
) -> Interval | None:
    """An interval of an arm's mean, by name; refused where its simulated coverage is below 92 %.

    Args:
        scores: ``[seeds, items]``.
        method: a key of :data:`METHODS`.
        rng: needed by the bootstraps.

    Raises:
        StudyError: unknown method, no generator for a bootstrap, or an interval that does not cover.
    """
    if method not in METHODS:
        raise StudyError(unknown("interval", method, METHODS))
    y = np.asarray(scores, dtype=float)
    coverage.require(method, y.shape[0])
    if method not in _RANDOM:
        return METHODS[method](y, level=level)
    if rng is None:
        raise StudyError(f"the interval '{method}' draws random numbers: pass rng=numpy.random.default_rng(...)")
    return METHODS[method](y, rng=rng, level=level)


def one_model(scores: ArrayLike, *, level: float = 0.95) -> Interval | None:
    """One model, other items of the kind: :func:`steelyard.stats.estimate.item_interval` of ``[items]``."""
    return item_interval(scores, level=level)
