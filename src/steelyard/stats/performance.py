"""Aggregates over runs and tasks that a few outliers do not decide: scores ``[runs, tasks]``.

Source of all of them: Agarwal, Schwarzer, Castro, Courville & Bellemare (2021), "Deep reinforcement learning at the
edge of the statistical precipice", arXiv 2108.13264; values agree with the authors' library rliable 1.2.0 (recorded in
``tests/data/rliable.json``), save for one stated difference in :func:`probability_of_improvement`.

Their stratified bootstrap draws runs anew within each task.  With few runs it is much too narrow, whatever it is
applied to (``docs/statistics.md``), and refused unless it is asked for as a description.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from steelyard.errors import StudyError
from steelyard.stats import coverage

Aggregate = Callable[[np.ndarray], np.ndarray]
"""From scores ``[..., runs, tasks]`` to ``[...]``."""


def mean(scores: np.ndarray) -> np.ndarray:
    """Mean over runs and tasks."""
    return scores.mean(axis=(-2, -1))


def median(scores: np.ndarray) -> np.ndarray:
    """Median over tasks of the means over runs."""
    return np.median(scores.mean(axis=-2), axis=-1)


def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean: the mean of the middle half of all runs of all tasks (§4.3)."""
    flat = scores.reshape(*scores.shape[:-2], -1)
    return stats.trim_mean(flat, 0.25, axis=-1)


def optimality_gap(scores: np.ndarray, gamma: float = 1.0) -> np.ndarray:
    """How far the runs stay below ``gamma`` on average; what exceeds it does not make up for others (§4.3)."""
    return gamma - np.minimum(scores, gamma).mean(axis=(-2, -1))


AGGREGATES: dict[str, Aggregate] = {"iqm": iqm, "mean": mean, "median": median, "optimality gap": optimality_gap}
"""By name; the first is what the source recommends."""


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> np.ndarray:
    """Share of runs (over all tasks) that score above each threshold: ``[..., thresholds]`` (§4.2).

    Args:
        scores: ``[..., runs, tasks]``.
    """
    y, tau = np.asarray(scores, dtype=float), np.asarray(thresholds, dtype=float)
    return (y[..., None] > tau).mean(axis=(-3, -2))


def probability_of_improvement(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Chance that a run of a beats a run of b on a task, averaged over tasks; ties count one half (§4.3).

    Args:
        a, b: ``[..., runs, tasks]``; the runs may differ in number.

    rliable computes the same from the Mann-Whitney statistic, but returns one half for a task on which both arrays
    are equal element by element, which this definition gives as well.
    """
    above = np.sign(a[..., :, None, :] - b[..., None, :, :])
    return (0.5 + 0.5 * above).mean(axis=(-3, -2, -1))


@dataclass(frozen=True, slots=True)
class Estimate:
    """An aggregate with its bootstrap interval; arrays for profiles, else numbers."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    level: float


def stratified_bootstrap(
    statistic: Callable[..., np.ndarray],
    *scores: ArrayLike,
    rng: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
    tasks_too: bool = False,
    describe: bool = False,
) -> Estimate:
    """Percentile interval when the runs of every task are drawn anew (§4.1), independently for every array.

    Args:
        statistic: from one or more arrays ``[..., runs, tasks]`` to ``[..., ...]``.
        scores: ``[runs, tasks]`` each, all with the same tasks.
        tasks_too: draw tasks as well (the same for all arrays): how sensitive is it to the choice of tasks?
        describe: give it even where it is known to cover less than 92 %, as a description of spread.

    Raises:
        StudyError: too few runs for it to cover (refused below 92 %), unless ``describe``.
        StudyError: an array that is not ``[runs, tasks]``, holds what is not finite, or has other tasks.
    """
    arrays = [np.asarray(values, dtype=float) for values in scores]
    for values in arrays:
        if values.ndim != 2 or not values.size or not np.isfinite(values).all():
            raise StudyError("expected finite scores [runs, tasks], one column per task")
        if values.shape[1] != arrays[0].shape[1]:
            raise StudyError(f"arms on {arrays[0].shape[1]} and {values.shape[1]} tasks cannot be aggregated together")
    if not describe:
        coverage.require("stratified", min(len(values) for values in arrays))
    tasks = arrays[0].shape[1]
    found = []
    for start in range(0, resamples, 500):
        block = min(500, resamples - start)
        picked = rng.integers(tasks, size=(block, tasks)) if tasks_too else np.arange(tasks)[None, :]
        drawn = []
        for values in arrays:
            rows = rng.integers(len(values), size=(block, *values.shape))
            drawn.append(values[rows, picked[:, None, :]])
        found.append(np.asarray(statistic(*drawn)))
    low, high = np.quantile(np.concatenate(found), [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return Estimate(np.asarray(statistic(*arrays)), low, high, level)
