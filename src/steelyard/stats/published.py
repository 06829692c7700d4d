"""Recompute a published table of means, sds, differences, p-values and effect sizes from its own numbers.

Printed numbers are rounded, so a mean of 53.89 stands for anything between 53.885 and 53.895.  That is
carried through the test: each recomputed quantity is an *interval*, and a printed value holds when its own
rounding interval meets it.  A cell that does not hold is reported; no tolerance is ever widened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from steelyard.errors import StudyError, unknown
from steelyard.stats.compare import Test, cohens_d, welch
from steelyard.stats.estimate import Summary


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


def _half(decimals: int) -> float:
    return 0.5 * 10.0**-decimals


def _box(printed: float, decimals: int, points: int, *, floor: float | None = None) -> np.ndarray:
    values = np.linspace(printed - _half(decimals), printed + _half(decimals), points)
    return values if floor is None else np.maximum(values, floor)


def recompute(
    rows: Sequence[Mapping[str, Any]],
    baseline: str,
    *,
    n: int,
    test: Callable[[Summary, Summary], Test] = welch,
    decimals: Decimals | None = None,
) -> list[Cell]:
    """Every printed Δ, p and d of a table against its printed means and sds.

    Args:
        rows: mappings with ``name``, ``mean``, ``sd`` and any of ``delta``, ``p``, ``d`` (``None``: not
            printed).
        baseline: name of the row that the others are compared with.
        n: runs per row.
        test: the two-sample test that is tried; the sds are taken to have ``ddof=1``.
        decimals: printed digits.

    Raises:
        StudyError: there is no row called ``baseline``.
    """
    digits = decimals or Decimals()
    by_name = {row["name"]: row for row in rows}
    if baseline not in by_name:
        raise StudyError(unknown("baseline row", baseline, by_name))
    reference = by_name[baseline]
    cells: list[Cell] = []
    for row in rows:
        if row["name"] == baseline:
            continue
        values = _possible(row, reference, n, test, digits)
        for quantity, (low, high) in values.items():
            printed = row.get(quantity)
            if printed is None:
                continue
            slack = _half(getattr(digits, quantity)) + 1e-12
            holds = bool(low - slack <= printed <= high + slack)
            cells.append(Cell(row["name"], quantity, float(printed), low, high, holds))
    return cells


def _possible(
    row: Mapping[str, Any],
    reference: Mapping[str, Any],
    n: int,
    test: Callable[[Summary, Summary], Test],
    digits: Decimals,
) -> dict[str, tuple[float, float]]:
    """Ranges of delta, p and d over the box of inputs that round to the printed ones.

    In the difference both p and d are monotone, so its ends (and zero, where it may change sign) suffice;
    in the two sds a grid that includes the corners is evaluated.
    """
    difference = row["mean"] - reference["mean"]
    widest = 2 * _half(digits.mean)
    shifts = [difference - widest, difference + widest]
    if shifts[0] < 0 < shifts[1]:
        shifts.append(0.0)
    spreads = [_box(r["sd"], digits.sd, 9, floor=1e-12) for r in (row, reference)]
    ps, ds = [], []
    for shift, first, second in product(shifts, *spreads):
        a, b = Summary(shift, float(first), n), Summary(0.0, float(second), n)
        p, d = test(a, b).p, cohens_d(a, b)
        if p is None or d is None:
            raise StudyError(f"row '{row['name']}': no test can be recomputed from n={n}")
        ps.append(p)
        ds.append(d)
    return {
        "delta": (difference - widest, difference + widest),
        "p": (min(ps), max(ps)),
        "d": (min(ds), max(ds)),
    }
