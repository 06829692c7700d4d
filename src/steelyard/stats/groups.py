"""Which arms are not resolved from each other: a compact letter display.

Two arms share a letter if and only if the test did not separate them.  Sharing a letter is *not resolved*,
which says as much about the number of seeds as about the arms; it is never equality.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from string import ascii_lowercase


def letters(ranked: Sequence[str], separated: Collection[tuple[str, str]]) -> dict[str, str]:
    """Letters for each arm, by insertion and absorption.

    Source: Piepho (2004), "An algorithm for a letter-based representation of all-pairwise comparisons",
    Journal of Computational and Graphical Statistics 13.

    Args:
        ranked: the arms, best first; the best arm's group is called ``a``.
        separated: pairs (in either order) that the test separates.

    Returns:
        Letters in alphabetical order for every arm.  Pairs in ``separated`` share none; all others share one.

    >>> letters(["x", "y", "z"], {("x", "z")})
    {'x': 'a', 'y': 'ab', 'z': 'b'}
    """
    columns: list[frozenset[str]] = [frozenset(ranked)]
    for first, second in separated:
        inserted: list[frozenset[str]] = []
        for column in columns:
            if first in column and second in column:
                inserted += [column - {first}, column - {second}]
            else:
                inserted.append(column)
        columns = _absorb(inserted)
    order = {arm: rank for rank, arm in enumerate(ranked)}
    columns.sort(key=lambda column: sorted(order[arm] for arm in column))
    names = [_name(index) for index in range(len(columns))]
    return {arm: "".join(n for n, c in zip(names, columns, strict=True) if arm in c) for arm in ranked}


def _absorb(columns: list[frozenset[str]]) -> list[frozenset[str]]:
    """Drop columns that another one contains: they say nothing new."""
    unique = list(dict.fromkeys(columns))
    return [c for c in unique if not any(c < other for other in unique)]


def _name(index: int) -> str:
    """a … z, then a', b', …"""
    return ascii_lowercase[index % 26] + "'" * (index // 26)
