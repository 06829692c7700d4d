"""Families of comparisons: which ones are corrected together, by which procedure, with what guarantee.

Bonferroni, Holm and Hochberg bound the chance of *any* false claim in the family, Benjamini-Hochberg the expected
share of false ones among the claims (weaker; said wherever it is used).  Dunnett and Tukey are tests of their own:
they pool one variance over all arms, which a handful of seeds makes attractive and unequal spreads make wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from steelyard.errors import StudyError, unknown
from steelyard.stats.compare import bonferroni, holm

Ps = Sequence[float | None]


def hochberg(ps: Ps) -> list[float | None]:
    """Hochberg's step-up: the i-th smallest of m becomes the least of ``(m - j + 1) p_(j)`` over ``j >= i``.

    Never larger than Holm's; valid for independent or positively dependent tests (arms that share a baseline are).
    Source: Hochberg (1988), "A sharper Bonferroni procedure for multiple tests of significance", Biometrika 75.
    """
    return _step_up(ps, lambda m, rank: m - rank)


def benjamini_hochberg(ps: Ps) -> list[float | None]:
    """False discovery rate: the i-th smallest of m becomes the least of ``m p_(j) / j`` over ``j >= i``.

    Source: Benjamini & Hochberg (1995), "Controlling the false discovery rate", JRSS B 57.
    """
    return _step_up(ps, lambda m, rank: m / (rank + 1))


def uncorrected(ps: Ps) -> list[float | None]:
    """The p-values as they are: no guarantee over the family."""
    return list(ps)


def _step_up(ps: Ps, factor: Callable[[int, int], float]) -> list[float | None]:
    known = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    reached = 1.0
    for rank in range(len(known) - 1, -1, -1):
        p, i = known[rank]
        reached = min(reached, factor(len(known), rank) * p)
        adjusted[i] = reached
    return adjusted


CORRECTIONS: dict[str, Callable[[Ps], list[float | None]]] = {
    "holm": holm,
    "bonferroni": bonferroni,
    "hochberg": hochberg,
    "bh": benjamini_hochberg,
    "none": uncorrected,
}
"""Procedures on p-values, by name; the first is the default."""

SIMULTANEOUS = ("dunnett", "tukey")
"""Procedures that test and correct at once, from the runs' means."""


@dataclass(frozen=True)
class Family:
    """Comparisons that are corrected together.

    Attributes:
        name: what they are, in words.
        correction: key of :data:`CORRECTIONS` or :data:`SIMULTANEOUS`.
        members: ``(a, b)`` of each comparison.
        raw: p-values before, ``None`` where there is no test.
        adjusted: after.
    """

    name: str
    correction: str
    members: tuple[tuple[str, str], ...]
    raw: tuple[float | None, ...]
    adjusted: tuple[float | None, ...]

    @property
    def statement(self) -> str:
        """One sentence for the report."""
        tested = sum(p is not None for p in self.raw)
        guarantee = {
            "none": "no correction: each comparison alone has its level",
            "bh": "Benjamini-Hochberg: the expected share of false claims among the claims is bounded",
        }.get(
            self.correction, f"{self.correction.capitalize()}: the chance of any false claim in the family is bounded"
        )
        return f"{self.name}: {tested} tested comparison{'s' * (tested != 1)}; {guarantee}."


def declare(name: str, members: Sequence[tuple[str, str]], ps: Ps, correction: str = "holm") -> Family:
    """Correct a declared family.

    Raises:
        StudyError: unknown procedure, or as many p-values as members are not given.
    """
    if correction not in CORRECTIONS:
        raise StudyError(unknown("correction", correction, CORRECTIONS))
    if len(members) != len(ps):
        raise StudyError(f"{name}: {len(members)} comparisons and {len(ps)} p-values")
    return Family(name, correction, tuple(members), tuple(ps), tuple(CORRECTIONS[correction](ps)))


@dataclass(frozen=True, slots=True)
class Simultaneous:
    """One comparison of a simultaneous procedure: difference, adjusted p and simultaneous interval."""

    a: str
    b: str
    difference: float
    p: float
    low: float
    high: float


def dunnett(
    values: Mapping[str, Sequence[float]], baseline: str, *, rng: np.random.Generator, level: float = 0.95
) -> list[Simultaneous]:
    """All arms against one baseline, with a variance pooled over all arms.

    Source: Dunnett (1955), "A multiple comparison procedure for comparing several treatments with a control", JASA
    50; ``scipy.stats.dunnett`` (its integral is quasi-random: the generator makes it repeatable).

    Args:
        values: one number per run by arm; at least two runs each.
        baseline: the arm that the others are compared with.

    Raises:
        StudyError: an unknown baseline, an arm with one run, or no variance in any arm.
    """
    if baseline not in values:
        raise StudyError(unknown("baseline", baseline, values))
    _check_runs(values, "Dunnett's test")
    others = [name for name in values if name != baseline]
    found = stats.dunnett(*(values[name] for name in others), control=values[baseline], rng=rng)
    ends = found.confidence_interval(level)
    means = {name: float(np.mean(runs)) for name, runs in values.items()}
    return [
        Simultaneous(name, baseline, means[name] - means[baseline], float(p), float(low), float(high))
        for name, p, low, high in zip(others, found.pvalue, ends.low, ends.high, strict=True)
    ]


def tukey(
    values: Mapping[str, Sequence[float]], *, level: float = 0.95, equal_variances: bool = True
) -> list[Simultaneous]:
    """All pairs: Tukey-Kramer, or Games-Howell where the variances may differ.

    Source: Tukey (1953); Kramer (1956), Biometrics 12; Games & Howell (1976), Journal of Educational Statistics 1;
    ``scipy.stats.tukey_hsd``.

    Raises:
        StudyError: an arm with one run, or no variance in any arm.
    """
    _check_runs(values, "Tukey's test")
    names = list(values)
    found = stats.tukey_hsd(*(values[name] for name in names), equal_var=equal_variances)
    ends = found.confidence_interval(level)
    return [
        Simultaneous(
            names[i],
            names[j],
            float(found.statistic[i, j]),
            float(found.pvalue[i, j]),
            float(ends.low[i, j]),
            float(ends.high[i, j]),
        )
        for i, j in combinations(range(len(names)), 2)
    ]


def _check_runs(values: Mapping[str, Sequence[float]], what: str) -> None:
    if len(values) < 2:
        raise StudyError(f"{what} needs at least two arms")
    for name, runs in values.items():
        if len(runs) < 2:
            raise StudyError(
                f"{what} pools the spread between runs: arm '{name}' has {len(runs)} run, at least two needed"
            )
    if all(np.ptp(np.asarray(runs, dtype=float)) == 0 for runs in values.values()):
        raise StudyError(f"{what}: no run-to-run variation in any arm: no test exists")
