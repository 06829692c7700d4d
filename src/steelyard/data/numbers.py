"""Numbers that an algorithm declares (``AlgorithmSpec.columns``): are they in the rows, and are they usable?

Every problem is a :class:`~steelyard.errors.DataError` that names the file, the line (or row), the column, and what
was expected.  This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from steelyard.data.rows import Table
from steelyard.errors import DataError, nearest

_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "p_chosen": ("a probability", lambda value: 0 <= value <= 1),
    "p_rejected": ("a probability", lambda value: 0 <= value <= 1),
    "sign_chosen": ("1 (unsafe) or -1 (safe)", lambda value: value in (1, -1)),
    "sign_rejected": ("1 (unsafe) or -1 (safe)", lambda value: value in (1, -1)),
}
"""What the columns mean whose numbers have a range; all others are any finite number."""


def check_numbers(table: Table, columns: Sequence[str], who: str = "the algorithm") -> None:
    """Check that every row has a usable number in each of ``columns``.

    Raises:
        DataError: a column is missing (the nearest column of numbers is named), or a value is no such number
            (``file:line``).
    """
    present = table.columns
    for column in columns:
        if column not in present:
            guess = nearest(column, [name for name in present if name not in columns and _all_numbers(table, name)])
            hint = f" Perhaps rename with `data.columns: {{{column}: {guess}}}`." if guess else ""
            raise DataError(
                f"{table.source}: {who} needs {_expected(column)} in a column '{column}' of every row; it is missing; "
                f"columns: {', '.join(present)}.{hint}"
            )
        _check_column(table, column)


def check_optional_numbers(table: Table, columns: Sequence[str]) -> list[str]:
    """Those of ``columns`` that the rows carry; null, or nothing between two commas, is not carried.

    Raises:
        DataError: some rows carry a column and others do not (the first without it is named), or a value is no such
            number.
    """
    carried = [name for name in columns if any(is_given(row.get(name)) for row in table.rows)]
    for column in carried:
        missing = next((i for i, row in enumerate(table.rows) if not is_given(row.get(column))), None)
        if missing is not None:
            raise DataError(
                f"{table.where(missing)}: column '{column}': expected {_expected(column)}, because other rows have "
                "one: give it in every row or in none"
            )
        _check_column(table, column)
    return carried


def check_order(table: Table, ordered: Sequence[str], who: str = "the algorithm") -> None:
    """Check that in every row the number of the first of two columns exceeds that of the second.

    Both are checked numbers already.

    Raises:
        DataError: they do not; names ``file:line`` and the two values.
    """
    higher, lower = ordered
    for index, row in enumerate(table.rows):
        if not as_number(row[higher]) > as_number(row[lower]):
            raise DataError(
                f"{table.where(index)}: {who} needs '{higher}' above '{lower}' in every row, got {row[higher]} and "
                f"{row[lower]}"
            )


def as_number(value: Any) -> float:
    """A finite number, also as CSV spells it; anything else (truth values too) is a ``ValueError``."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"not a number: {value!r}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"not finite: {value!r}")
    return number


def is_given(value: Any) -> bool:
    """Whether a row says anything in a column: null and an empty cell do not."""
    return value is not None and value != ""


def _expected(column: str) -> str:
    return _RANGES[column][0] if column in _RANGES else "a finite number"


def _check_column(table: Table, column: str) -> None:
    for index, row in enumerate(table.rows):
        value = row.get(column)
        if not _fits(column, value):
            got = "nothing" if column not in row else "null" if value is None else repr(value)
            raise DataError(f"{table.where(index)}: column '{column}': expected {_expected(column)}, got {got}")


def _fits(column: str, value: Any) -> bool:
    try:
        number = as_number(value)
    except ValueError:
        return False
    return column not in _RANGES or _RANGES[column][1](number)


def _all_numbers(table: Table, column: str) -> bool:
    """Whether a column holds numbers wherever it holds anything."""
    try:
        return bool([as_number(row[column]) for row in table.rows if is_given(row.get(column))])
    except ValueError:
        return False
