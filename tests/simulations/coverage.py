"""Coverage of every interval, vectorised over studies; single studies are checked against the package's functions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
from scipy import special, stats

from simulations.populations import POPULATIONS, Draw, Population, draw

SEEDS, ITEMS = (2, 3, 5, 10), (200, 500, 2000)
STUDIES, RESAMPLES, SHIFT = 4_000, 1_000, 0.05
Bounds = tuple[np.ndarray, np.ndarray]
Cell = tuple[str, int, int]
"""Population, seeds, items."""


def covers(bounds: Bounds, truth: np.ndarray | float) -> np.ndarray:
    """Whether each study's interval holds the truth; NaN where nothing varied, so that no interval is given."""
    low, high = bounds
    return np.where(high - low > 1e-12, (low <= truth) & (truth <= high), np.nan)


def around(middle: np.ndarray, half: np.ndarray) -> Bounds:
    """``middle ± half``."""
    return middle - half, middle + half


def cochran(middle: np.ndarray, parts: list[tuple[np.ndarray, np.ndarray | float]], level: float = 0.95) -> Bounds:
    """The interval of :class:`steelyard.stats.pivot.Pivot` for many studies at once."""
    total = np.maximum(sum(v for v, _ in parts), 1e-300)
    critical = sum(v * stats.t.ppf(0.5 + level / 2, df) for v, df in parts) / total
    return around(middle, critical * np.sqrt(total))


def squares(y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Means, and the mean squares of seeds, items and the rest of ``[studies, seeds, items]``."""
    y = y.astype(np.float64) if y.dtype != np.float64 else y
    _, n, m = y.shape
    rows, columns = y.mean(axis=2), y.mean(axis=1)
    mean = rows.mean(axis=1)
    seed_ms, item_ms = m * rows.var(axis=1, ddof=1), n * columns.var(axis=1, ddof=1)
    total = np.einsum("ksi,ksi->k", y, y) - n * m * mean**2
    rest = (total - (n - 1) * seed_ms - (m - 1) * item_ms) / ((n - 1) * (m - 1))
    return mean, seed_ms, item_ms, np.maximum(rest, 0.0)


def crossed(y: np.ndarray, level: float = 0.95) -> Bounds:
    """:func:`steelyard.stats.intervals.crossed`, and ``mixed`` of paired differences."""
    _, n, m = y.shape
    mean, seed_ms, item_ms, rest = squares(y)
    return cochran(mean, [(seed_ms / (n * m), n - 1), (np.maximum(0.0, item_ms - rest) / (n * m), m - 1)], level)


def independent(a: np.ndarray, c: np.ndarray, level: float = 0.95) -> Bounds:
    """``mixed`` of arms with independent seeds."""
    _, n, m = a.shape
    (mean_a, seed_a, _, rest_a), (mean_c, seed_c, _, rest_c) = squares(a), squares(c)
    va, vc = seed_a / (n * m), seed_c / (n * m)
    df = (va + vc) ** 2 / np.maximum(va**2 / (n - 1) + vc**2 / (n - 1), 1e-300)
    items = (a.mean(axis=1) - c.mean(axis=1)).var(axis=1, ddof=1) / m
    over_items = np.maximum(0.0, items - (rest_a + rest_c) / (n * m))
    return cochran(mean_a - mean_c, [(va + vc, np.maximum(df, 1.0)), (over_items, m - 1)], level)


def t_over(values: np.ndarray) -> Bounds:
    """Student's t over the last axis."""
    k = values.shape[-1]
    half = stats.t.ppf(0.975, k - 1) * values.std(axis=-1, ddof=1) / np.sqrt(k)
    return around(values.mean(axis=-1), half)


def welch(a: np.ndarray, b: np.ndarray) -> Bounds:
    """Welch's interval over the last axis."""
    n = a.shape[-1]
    va, vb = a.var(axis=-1, ddof=1) / n, b.var(axis=-1, ddof=1) / n
    df = np.maximum((va + vb) ** 2 / np.maximum((va**2 + vb**2) / (n - 1), 1e-300), 1.0)
    return around(a.mean(axis=-1) - b.mean(axis=-1), stats.t.ppf(0.975, df) * np.sqrt(va + vb))


def quantiles(found: np.ndarray) -> Bounds:
    """2.5 % and 97.5 % over the last axis."""
    low, high = np.quantile(found, [0.025, 0.975], axis=-1)
    return low, high


def drawn_weights(n: int, rng: np.random.Generator) -> np.ndarray:
    """``[resamples, n]`` shares of a bootstrap over n things."""
    return rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n


def pigeonhole(y: np.ndarray, rng: np.random.Generator) -> Bounds:
    """Bootstrap over seeds and items; given the seeds, the items' part by its normal limit (200 items and more)."""
    y = y.astype(np.float64)
    _, n, m = y.shape
    rows, weights = y.mean(axis=2), drawn_weights(n, rng)
    covariance = np.einsum("ksi,kti->kst", y, y) / m - rows[:, :, None] * rows[:, None, :]
    spread = np.einsum("rs,kst,rt->kr", weights, covariance, weights, optimize=True)
    noise = rng.standard_normal(spread.shape)
    return quantiles(rows @ weights.T + np.sqrt(np.maximum(spread, 0.0) / m) * noise)


def bca_items(y: np.ndarray, rng: np.random.Generator) -> Bounds:
    """BCa over the items' means: they take few values, so a resample is a multinomial draw of their counts."""
    k, n, m = y.shape
    right = y.sum(axis=1).astype(int)
    counts = np.stack([(right == value).sum(axis=1) for value in range(n + 1)], axis=1) / m
    values = np.arange(n + 1) / n
    found = rng.multinomial(m, counts[:, None, :], size=(k, RESAMPLES)) @ values / m
    mean = counts @ values
    bias = special.ndtri(
        np.clip((found < mean[:, None]).mean(axis=1) + (found == mean[:, None]).mean(axis=1) / 2, 1e-6, 1 - 1e-6)
    )
    third, second = (
        (counts * (values - mean[:, None]) ** 3).sum(axis=1),
        (counts * (values - mean[:, None]) ** 2).sum(axis=1),
    )
    speed = third / np.maximum(second, 1e-300) ** 1.5 / (6 * np.sqrt(m))
    ends = []
    for z in (-1.959964, 1.959964):
        share = special.ndtr(bias + (bias + z) / (1 - speed * (bias + z)))
        ends.append(np.take_along_axis(np.sort(found, axis=1), (share * (RESAMPLES - 1)).astype(int)[:, None], 1)[:, 0])
    return ends[0], ends[1]


def flips(d: np.ndarray, rng: np.random.Generator) -> Bounds:
    """The interval of :func:`steelyard.stats.tests.sign_flips` with the same :data:`RESAMPLES` flips in every study."""
    flipped = rng.integers(0, 2, (RESAMPLES, d.shape[-1])).astype(np.float32)
    means = np.sort((d.astype(np.float32) @ flipped.T) / flipped.sum(axis=1), axis=-1)
    k = int(0.025 * (RESAMPLES + 1))
    return means[:, k - 1], means[:, -k]


def wilson(share: np.ndarray, m: int) -> Bounds:
    """Wilson's interval of many shares."""
    z2 = 1.959964**2
    middle = (share + z2 / (2 * m)) / (1 + z2 / m)
    return around(middle, 1.959964 / (1 + z2 / m) * np.sqrt(share * (1 - share) / m + z2 / (4 * m**2)))


def clopper(share: np.ndarray, m: int) -> Bounds:
    """Clopper and Pearson's interval of many shares."""
    k = np.rint(share * m)
    low = np.where(k > 0, stats.beta.ppf(0.025, np.maximum(k, 1), m - k + 1), 0.0)
    return low, np.where(k < m, stats.beta.ppf(0.975, k + 1, np.maximum(m - k, 1)), 1.0)


def measured(d: Draw, population: Population, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """For every interval, whether each study of a block covers."""
    _, n, m = d.a.shape
    rows = {name: y.mean(axis=2, dtype=np.float64) for name, y in (("a", d.a), ("b", d.b), ("c", d.c))}
    gaps = (d.a - d.b).astype(np.float64)
    by_item = gaps.mean(axis=1)
    found = {
        "crossed": covers(crossed(d.a), population.mean),
        "pigeonhole": covers(pigeonhole(d.a, rng), population.mean),
        "t": covers(t_over(rows["a"]), d.a_items),
        "seed-bootstrap": covers(quantiles(rows["a"] @ drawn_weights(n, rng).T), d.a_items),
        "clustered": covers(t_over(d.a.mean(axis=1, dtype=np.float64)), d.a_seeds),
        "mixed": covers(crossed(gaps), SHIFT),
        "mixed, independent seeds": covers(independent(d.a, d.c), SHIFT),
        "welch": covers(welch(rows["a"], rows["c"]), d.a_items - d.c_items),
        "paired-t": covers(t_over(rows["a"] - rows["b"]), d.a_items - d.b_items),
        "items-t": covers(t_over(by_item), d.a_seeds - d.b_seeds),
    }
    if n == 3:
        found["wilson"] = covers(wilson(rows["a"][:, 0], m), d.a_model)
        found["exact"] = covers(clopper(rows["a"][:, 0], m), d.a_model)
        if m <= 500:
            found["bca-items"] = covers(bca_items(d.a, rng), d.a_seeds)
            found["paired-permutation"] = covers(flips(by_item, rng), d.a_seeds - d.b_seeds)
    return found


ITEM_ONLY = ("wilson", "exact", "bca-items", "paired-permutation")
"""Intervals over items alone: their coverage does not depend on the number of seeds."""


def simulate(studies: int = STUDIES, seed: int = 0) -> dict[str, dict[Cell, float]]:
    """Coverage by interval and cell of :data:`POPULATIONS` x :data:`SEEDS` x :data:`ITEMS`.

    A study in which nothing varies (seeds that agree exactly) gets no interval and is left out; a cell in which that
    happens to more than half of the studies is not judged.
    """
    table: dict[str, dict[Cell, float]] = defaultdict(dict)
    for index, population in enumerate(POPULATIONS):
        for n in SEEDS:
            for m in ITEMS:
                rng = np.random.default_rng([seed, index, n, m])
                blocks = [measured(d, population, rng) for d in draw(population, studies, n, m, SHIFT, rng)]
                for name in blocks[0]:
                    given = np.concatenate([block[name] for block in blocks])
                    if np.isfinite(given).mean() >= 0.5:
                        table[name][population.name, n, m] = float(np.nanmean(given))
    return dict(table)


def worst(table: dict[str, dict[Cell, float]]) -> dict[str, dict[int, float]]:
    """Worst coverage by number of seeds; under 0 for intervals over items alone."""
    found: dict[str, dict[int, float]] = {}
    for name, cells in table.items():
        key: Callable[[Cell], int] = (lambda _: 0) if name in ITEM_ONLY else (lambda cell: cell[1])
        by_seeds: dict[int, list[float]] = defaultdict(list)
        for cell, value in cells.items():
            by_seeds[key(cell)].append(value)
        found[name] = {n: min(values) for n, values in sorted(by_seeds.items())}
    return found
