"""Does the order of the arms change along an axis (model size, say)?

A pair of means that swaps places between two conditions is what noise produces all the time.  It counts as
an inversion only when the pair is resolved in both conditions, in opposite directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from steelyard.stats.analyse import Pair, Table


@dataclass(frozen=True, slots=True)
class Swap:
    """A pair of arms whose means stand in opposite order under two conditions.

    Attributes:
        first, second: the conditions: the arm ``a`` has the higher mean under ``first``, ``b`` under
            ``second``.
        resolved: both orders are resolved, each Holm-corrected within its family.
    """

    a: str
    b: str
    first: Mapping[str, str]
    second: Mapping[str, str]
    resolved: bool


def swaps(tables: Sequence[Table]) -> list[Swap]:
    """All pairs that swap places between any two of the conditions of one measure."""
    found = []
    for one, other in combinations(tables, 2):
        there = {frozenset((pair.better, pair.worse)): pair for pair in other.all_pairs}
        for here in one.all_pairs:
            opposite = there.get(frozenset((here.better, here.worse)))
            if opposite and _differ(here, opposite):
                resolved = here.resolved and opposite.resolved
                found.append(Swap(here.better, here.worse, one.condition, other.condition, resolved))
    return found


def _differ(one: Pair, other: Pair) -> bool:
    return one.better == other.worse and one.difference > 0 and other.difference > 0
