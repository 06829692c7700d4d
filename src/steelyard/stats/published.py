"""What the printed, rounded numbers of a table imply: ranges of differences, p-values and effect sizes.

Printed numbers are rounded, so a mean of 53.89 stands for anything between 53.885 and 53.895.  That is
carried through the test: each recomputed quantity is a *range*, and a printed value holds when its own
rounding meets it.  A cell that does not hold is reported; no tolerance is ever widened.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import special, stats

from steelyard.errors import StudyError, unknown
from steelyard.stats.compare import Test, student, welch
from steelyard.stats.estimate import Summary

Range = tuple[float, float]
"""Smallest and largest value that something rounded may stand for."""

TINY = 1e-12
"""What an sd that is printed as zero is at least: a t test of no spread at all does not exist."""


# --------------------------------------------------------------------------------------------------
# Ranges


def extremes(f: Callable[..., Any], *axes: Range, points: int = 7, zooms: int = 3) -> Range:
    """Smallest and largest value of ``f`` over a box.

    The box is covered by a grid that holds its corners (and zero, where a difference changes its sign); the
    neighbourhood of the best point is then covered again, ``zooms`` times in all.  p-values and effect sizes
    over rounding errors are nearly linear, and then the corners decide.

    Args:
        f: takes one array per axis, all of one shape, and returns an array of that shape; NaN is left out.
        axes: the ends of each axis.
        points: grid points per axis.

    Raises:
        StudyError: ``f`` is NaN everywhere.
    """
    ends, whole = [], [_line(low, high, points) for low, high in axes]
    start = _over(f, whole)
    for sign in (1.0, -1.0):
        lines, values, best, corners = whole, sign * start, np.inf, 0
        for zoom in range(zooms):
            values = np.where(np.isnan(values), np.inf, values)
            at = np.unravel_index(int(values.argmin()), values.shape)
            best = min(best, float(values[at]))
            corners += all(i in (0, len(line) - 1) for line, i in zip(lines, at, strict=True))
            if corners == 2 or zoom == zooms - 1:  # the corner of the box, and still that of its neighbourhood
                break
            near = [(line[max(i - 1, 0)], line[min(i + 1, len(line) - 1)]) for line, i in zip(lines, at, strict=True)]
            lines = [_line(low, high, points) for low, high in near]
            values = sign * _over(f, lines)
        ends.append(sign * best)
    if not np.isfinite(ends[0]) and ends[0] > 0 and ends[1] < 0:
        raise StudyError("nothing can be recomputed: the quantity is not defined for any of the possible inputs")
    return ends[0], ends[1]


def _over(f: Callable[..., Any], lines: Sequence[np.ndarray]) -> np.ndarray:
    """``f`` on the grid of these lines."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # scipy says aloud that an sd of zero has no t test
        return np.asarray(f(*np.meshgrid(*lines, indexing="ij")), dtype=float)


def _line(low: float, high: float, points: int) -> np.ndarray:
    if low == high:
        return np.array([low])
    line = np.linspace(low, high, points)
    return np.union1d(line, [0.0]) if low < 0 < high else line


@dataclass(frozen=True, slots=True)
class Arm:
    """One row of a table as far as rounding leaves it known.

    Attributes:
        mean: range of the mean.
        sd: range of the sample sd (divisor n - 1); ``None`` for a constant or one run.
        n: number of runs.
    """

    mean: Range
    sd: Range | None
    n: int


def minus(a: Range, b: Range) -> Range:
    """Range of a difference."""
    return a[0] - b[1], a[1] - b[0]


def _spread(sd: Range) -> Range:
    return max(sd[0], TINY), max(sd[1], TINY)


# --------------------------------------------------------------------------------------------------
# p-values.  Each takes the difference and the two sds as arrays.

_Formula = Callable[..., Any]


def _welch(d: Any, s: Any, r: Any, a: int, b: int, side: str) -> Any:
    return stats.ttest_ind_from_stats(d, s, a, 0.0, r, b, equal_var=False, alternative=side)[1]


def _student(d: Any, s: Any, r: Any, a: int, b: int, side: str) -> Any:
    return stats.ttest_ind_from_stats(d, s, a, 0.0, r, b, equal_var=True, alternative=side)[1]


def _z(d: Any, s: Any, r: Any, a: int, b: int, side: str) -> Any:
    return _tail(d / np.sqrt(s**2 / a + r**2 / b), stats.norm, side)


def _tail(t: Any, law: Any, side: str) -> Any:
    return {"two-sided": 2 * law.sf(np.abs(t)), "greater": law.sf(t), "less": law.cdf(t)}[side]


TWO_SAMPLE: Mapping[str, _Formula] = {"welch": _welch, "student": _student, "z": _z}
"""Tests of two independent arms that summaries suffice for."""

TESTS = (*TWO_SAMPLE, "one-sample", "paired")
"""Tests that :func:`p_range` knows."""


@lru_cache(maxsize=20_000)
def p_range(a: Arm, b: Arm, test: str = "welch", *, side: str = "two-sided") -> Range | None:
    """Range of the p-value of ``a`` against ``b``.

    ``paired`` without the single values: over every correlation between the arms from -1 to 1, so the range is
    wide.  ``None`` when the test needs an sd or runs that are not there.

    Args:
        test: one of :data:`TESTS`.
        side: ``two-sided``, ``greater`` (a above b) or ``less``.
    """
    shift = minus(a.mean, b.mean)
    if a.sd is None or a.n < 2:
        return None
    if test == "one-sample":
        df = a.n - 1
        return extremes(lambda d, s: _tail(d / (s / np.sqrt(a.n)), stats.t(df), side), shift, _spread(a.sd))
    if b.sd is None or b.n < 2:
        return None
    spreads = _spread(a.sd), _spread(b.sd)
    if test == "paired":
        if a.n != b.n:
            return None

        def p(d: Any, s: Any, r: Any, rho: Any) -> Any:
            spread = np.sqrt(np.maximum(s**2 + r**2 - 2 * rho * s * r, TINY**2))
            return _tail(d / (spread / np.sqrt(a.n)), stats.t(a.n - 1), side)

        return extremes(p, shift, *spreads, (-1.0, 1.0))
    formula = TWO_SAMPLE[test]
    return extremes(lambda d, s, r: formula(d, s, r, a.n, b.n, side), shift, *spreads)


@lru_cache(maxsize=20_000)
def t_range(a: Arm, b: Arm, test: str = "welch") -> Range | None:
    """Range of the test statistic; ``None`` where :func:`p_range` is, and for ``paired`` (it needs the values)."""
    shift = minus(a.mean, b.mean)
    if a.sd is None or a.n < 2 or test == "paired":
        return None
    if test == "one-sample":
        return extremes(lambda d, s: d / (s / np.sqrt(a.n)), shift, _spread(a.sd))
    if b.sd is None or b.n < 2:
        return None
    if test == "student":
        scale = np.sqrt(1 / a.n + 1 / b.n)
        return extremes(lambda d, s, r: d / (pooled(s, r, a.n, b.n) * scale), shift, _spread(a.sd), _spread(b.sd))
    return extremes(lambda d, s, r: d / np.sqrt(s**2 / a.n + r**2 / b.n), shift, _spread(a.sd), _spread(b.sd))


# --------------------------------------------------------------------------------------------------
# Effect sizes


def pooled(s: Any, r: Any, a: int, b: int) -> Any:
    """Pooled sd of two arms; arrays."""
    return np.sqrt(((a - 1) * s**2 + (b - 1) * r**2) / (a + b - 2))


def hedges_factor(df: int) -> float:
    """What Cohen's d is multiplied by to be Hedges' g (Hedges, 1981, eq. 6e)."""
    return float(np.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2)) / np.sqrt(df / 2))


EFFECTS = ("cohen", "hedges", "glass", "average")
"""Effect sizes that :func:`d_range` knows; see there."""


@lru_cache(maxsize=20_000)
def d_range(a: Arm, b: Arm, kind: str = "cohen") -> Range | None:
    """Range of the standardised difference; ``None`` without the sds that it needs.

    Args:
        kind: ``cohen`` divides by the pooled sd, ``hedges`` corrects that for small samples, ``glass`` divides
            by the sd of ``b``, ``average`` by the root of the two variances' plain mean.  Against a constant
            (``b`` without an sd) the divisor is the sd of ``a``.
    """
    shift = minus(a.mean, b.mean)
    if a.sd is None or a.n < 2:
        return None
    if b.sd is None or b.n < 2:
        factor = hedges_factor(a.n - 1) if kind == "hedges" and a.n > 2 else 1.0
        return None if kind == "glass" else extremes(lambda d, s: factor * d / s, shift, _spread(a.sd))
    spreads = _spread(a.sd), _spread(b.sd)
    if kind == "glass":
        return extremes(lambda d, r: d / r, shift, spreads[1])
    if kind == "average":
        return extremes(lambda d, s, r: d / np.sqrt((s**2 + r**2) / 2), shift, *spreads)
    factor = hedges_factor(a.n + b.n - 2) if kind == "hedges" and a.n + b.n > 3 else 1.0
    return extremes(lambda d, s, r: factor * d / pooled(s, r, a.n, b.n), shift, *spreads)


# --------------------------------------------------------------------------------------------------
# A whole table of plain numbers


@dataclass(frozen=True, slots=True)
class Cell:
    """One printed number against what its inputs imply.

    Attributes:
        row: name of the table's row.
        quantity: ``delta``, ``p`` or ``d``.
        printed: the number in the table.
        low, high: range of values that the rounded means and sds allow.
        holds: whether the printed number, give or take its own rounding, lies in that range.
    """

    row: str
    quantity: str
    printed: float
    low: float
    high: float
    holds: bool


@dataclass(frozen=True, slots=True)
class Decimals:
    """Digits after the point that the table prints."""

    mean: int = 2
    sd: int = 2
    delta: int = 2
    p: int = 4
    d: int = 2


_NAMES: Mapping[Callable[[Summary, Summary], Test], str] = {welch: "welch", student: "student"}


def recompute(
    rows: Sequence[Mapping[str, Any]],
    baseline: str,
    *,
    n: int,
    test: Callable[[Summary, Summary], Test] = welch,
    decimals: Decimals | None = None,
) -> list[Cell]:
    """Every printed Δ, p and d of a table against its printed means and sds.

    :func:`steelyard.stats.audit.audit` does this and more for files; here the digits are given by column.

    Args:
        rows: mappings with ``name``, ``mean``, ``sd`` and any of ``delta``, ``p``, ``d`` (``None``: not
            printed).
        baseline: name of the row that the others are compared with.
        n: runs per row.
        test: :func:`~steelyard.stats.compare.welch` or :func:`~steelyard.stats.compare.student`; the sds are
            taken to have ``ddof=1``.
        decimals: printed digits.

    Raises:
        StudyError: there is no row called ``baseline``, or fewer than two runs.
    """
    digits = decimals or Decimals()
    by_name = {row["name"]: row for row in rows}
    if baseline not in by_name:
        raise StudyError(unknown("baseline row", baseline, by_name))
    reference = _arm(by_name[baseline], n, digits)
    cells: list[Cell] = []
    for row in rows:
        if row["name"] == baseline:
            continue
        arm = _arm(row, n, digits)
        values = {
            "delta": minus(arm.mean, reference.mean),
            "p": p_range(arm, reference, _NAMES[test]),
            "d": d_range(arm, reference),
        }
        for quantity, found in values.items():
            printed = row.get(quantity)
            if printed is None:
                continue
            if found is None:
                raise StudyError(f"row '{row['name']}': no test can be recomputed from n={n}")
            slack = half(getattr(digits, quantity)) + TINY
            holds = bool(found[0] - slack <= printed <= found[1] + slack)
            cells.append(Cell(row["name"], quantity, float(printed), found[0], found[1], holds))
    return cells


def half(decimals: int) -> float:
    """Half a unit in the last printed place."""
    return 0.5 * 10.0**-decimals


def _arm(row: Mapping[str, Any], n: int, digits: Decimals) -> Arm:
    mean, sd = half(digits.mean), half(digits.sd)
    return Arm((row["mean"] - mean, row["mean"] + mean), (row["sd"] - sd, row["sd"] + sd), n)
