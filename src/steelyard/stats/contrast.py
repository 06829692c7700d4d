"""Arms against arms on per-item outcomes: one declared test, one correction, and what the two say together.

:func:`contrast` is what ``steelyard compare --test ...`` prints.  Each comparison carries a test (chosen by the design
or asked for), a p-value corrected in a declared family, optionally an equivalence test against a margin, effect
sizes, and a finding (:func:`steelyard.stats.equivalence.finding`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from steelyard.errors import StudyError, unknown
from steelyard.stats import coverage, effects, letters, tests
from steelyard.stats.compare import Test
from steelyard.stats.effects import Discordance, Effect
from steelyard.stats.equivalence import Equivalence, Finding, finding, paired_proportions, tost, tost_binary
from steelyard.stats.estimate import summarise
from steelyard.stats.families import CORRECTIONS, SIMULTANEOUS, Family, declare, dunnett, tukey
from steelyard.stats.outcomes import Outcomes, Sides, sides

CHOICES = ("auto", *tests.TESTS)
"""What may be asked for as a test."""

PROCEDURES = (*CORRECTIONS, *SIMULTANEOUS)
"""What may be asked for as a correction."""


@dataclass(frozen=True)
class Contrast:
    """One comparison, a minus b.

    Attributes:
        result: the test, with what it speaks about.
        p: corrected within its family; ``None`` where there is no test.
        equivalence: two one-sided tests against the margin, if one was given and the test has a standard error.
        p_equivalence: its p, corrected by the same procedure over the same comparisons.
        effects: effect sizes with intervals.
        coverage: simulated coverage of the test's interval, in words.
        notes: what was left out, refused, or has to be said.
    """

    a: str
    b: str
    result: tests.Result
    p: float | None
    equivalence: Equivalence | None
    p_equivalence: float | None
    effects: tuple[Effect, ...]
    finding: Finding
    coverage: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contrasted:
    """All comparisons on one task.

    Attributes:
        design: which test, and why, one sentence for each rule that applied.
        family: the comparisons with the baseline (or all pairs, for Tukey), corrected together.
        comparisons: the members of ``family``.
        pairs: all pairs of arms; empty unless letters were asked for.  A family of its own.
        unresolved: letters of arms that are not resolved from each other; empty likewise.
        tied: letters of arms shown to be equivalent; empty without a margin.
    """

    outcomes: Outcomes
    baseline: str
    margin: float | None
    design: tuple[str, ...]
    family: Family
    comparisons: tuple[Contrast, ...]
    pairs_family: Family | None
    pairs: tuple[Contrast, ...]
    unresolved: dict[str, str]
    tied: dict[str, str]


def contrast(
    outcomes: Outcomes,
    *,
    rng: np.random.Generator,
    baseline: str | None = None,
    test: str = "auto",
    correction: str = "holm",
    margin: float | None = None,
    with_letters: bool = False,
    alpha: float = 0.05,
    level: float = 0.95,
) -> Contrasted:
    """Compare every arm with the baseline, and with letters every arm with every other.

    Args:
        rng: used by permutation tests and Dunnett's integral.
        baseline: default: the first arm.
        test: one of :data:`CHOICES`; ``auto`` follows :func:`steelyard.stats.tests.default_test`.
        correction: one of :data:`PROCEDURES`.
        margin: smallest effect of interest, in the unit of the score (2 points of a share are 0.02).
        with_letters: also test all pairs, as a second family.

    Raises:
        StudyError: fewer than two arms, an unknown name, or a test that does not fit the design.
    """
    names = list(outcomes.arms)
    base = baseline if baseline is not None else names[0]
    if len(names) < 2:
        raise StudyError(f"compare: expected at least two arms, got {', '.join(names)}")
    outcomes.arm(base)
    if correction not in PROCEDURES:
        raise StudyError(unknown("correction", correction, PROCEDURES))
    if correction in SIMULTANEOUS and test not in ("auto", "welch"):
        raise StudyError(
            f"'{correction}' is a test of its own over the runs' means: it cannot correct '{test}'; try holm"
        )
    work = _Work(outcomes, rng, test, correction, margin, alpha, level)
    against = [(name, base) for name in names if name != base]
    everyone = list(combinations(sorted(names, key=lambda name: -outcomes.arms[name].mean), 2))
    family, comparisons = work.family(
        "every arm against the baseline", everyone if correction == "tukey" else against, base
    )
    pairs_family, pairs, groups, same = None, (), {}, {}
    if with_letters:
        pairs_family, pairs = work.family("all pairs of arms", everyone, None)
        groups, same = _groups(pairs, sorted(names, key=lambda name: -outcomes.arms[name].mean), margin)
    return Contrasted(
        outcomes,
        base,
        margin,
        tuple(dict.fromkeys(work.reasons)),
        family,
        comparisons,
        pairs_family,
        pairs,
        groups,
        same,
    )


@dataclass
class _Work:
    """What one call of :func:`contrast` shares between its families."""

    outcomes: Outcomes
    rng: np.random.Generator
    test: str
    correction: str
    margin: float | None
    alpha: float
    level: float

    def __post_init__(self) -> None:
        self.reasons: list[str] = []

    def family(
        self, name: str, members: Sequence[tuple[str, str]], base: str | None
    ) -> tuple[Family, tuple[Contrast, ...]]:
        pairs = [sides(self.outcomes.arm(a), self.outcomes.arm(b)) for a, b in members]
        if self.correction in SIMULTANEOUS:
            results, ps = self.simultaneous(members, base)
            name = "all pairs of arms" if base is None or self.correction == "tukey" else name
            procedure = "tukey" if base is None else self.correction
            family = Family(name, procedure, tuple(members), tuple(ps), tuple(ps))
        else:
            results = self.each(pairs)
            family = declare(name, members, [r.test.p for r in results], self.correction)
        equal = [self.equivalence(both, result) for both, result in zip(pairs, results, strict=True)]
        correct: Callable[..., list[float | None]] = CORRECTIONS.get(self.correction, CORRECTIONS["holm"])
        equal_ps = correct([None if e is None else e.p for e in equal])
        done = []
        for (a, b), both, result, p, same, p_same in zip(
            members, pairs, results, family.adjusted, equal, equal_ps, strict=True
        ):
            result, covered, notes = _covered(both, result)
            sizes, refused = _effects(both, self.level)
            notes = [*filter(None, (both.note, result.test.note)), *notes, *refused]
            found = finding(result.test.difference, p, p_same, alpha=self.alpha)
            done.append(Contrast(a, b, result, p, same, p_same, sizes, found, covered, tuple(notes)))
        return family, tuple(done)

    def each(self, pairs: Sequence[Sides]) -> list[tests.Result]:
        """The test of every pair; what does not fit one pair is said there, what fits none is an error."""
        results, errors = [], []
        for both in pairs:
            name, why = tests.rule(both) if self.test == "auto" else (self.test, "asked for")
            try:
                results.append(tests.run(name, both, rng=self.rng, level=self.level))
                self.reasons.append(f"{name}: {why}")
            except StudyError as error:
                errors.append(error)
                results.append(tests.Result(name, "", Test(name, both.difference, note=str(error))))
        if len(errors) == len(results):
            raise errors[0]
        return results

    def simultaneous(
        self, members: Sequence[tuple[str, str]], base: str | None
    ) -> tuple[list[tests.Result], list[float | None]]:
        """Dunnett against ``base``, Tukey for all pairs; both on the runs' means with one pooled variance."""
        fixed = [name for name, arm in self.outcomes.arms.items() if arm.fixed]
        if fixed:
            raise StudyError(
                f"'{self.correction}' pools the spread between runs, and '{fixed[0]}' is one untrained model"
            )
        values = {name: arm.means.tolist() for name, arm in self.outcomes.arms.items()}
        if base is not None and self.correction == "dunnett":
            found, label = dunnett(values, base, rng=self.rng, level=self.level), "Dunnett"
        else:
            found, label = tukey(values, level=self.level), "Tukey-Kramer"
        self.reasons.append(f"{label}: asked for; one variance pooled over all arms, simultaneous intervals")
        by_pair = {(f.a, f.b): f for f in found}
        results: list[tests.Result] = []
        for a, b in members:
            f, sign = (by_pair[a, b], 1.0) if (a, b) in by_pair else (by_pair[b, a], -1.0)
            ends = sorted((sign * f.low, sign * f.high))
            results.append(tests.Result(label.lower(), "seeds", Test(label, sign * f.difference, *ends, p=f.p)))
        return results, [r.test.p for r in results]

    def equivalence(self, both: Sides, result: tests.Result) -> Equivalence | None:
        """By the test's own standard error; McNemar's by Tango's score test; none for rank and permutation tests."""
        if self.margin is None:
            return None
        if result.name == "mixed" and both.binary and result.pivot is not None and self.margin < 1:
            mine, theirs = both.a.mean(axis=0), both.b.mean(axis=0)
            counts = float((mine * (1 - theirs)).sum()), float((theirs * (1 - mine)).sum())
            if both.seeds_paired:
                counts = float((both.a > both.b).sum(axis=1).mean()), float((both.a < both.b).sum(axis=1).mean())
            return tost_binary(
                result.pivot, self.margin, *counts, both.items, method=f"TOST, {result.test.method}, Tango's variance"
            )
        if result.pivot is not None:
            return tost(result.pivot, self.margin, method=f"TOST, {result.test.method}")
        if result.name == "mcnemar":
            return paired_proportions(Discordance.of(both.a[0], both.b[0]), self.margin)
        if result.name == "paired-permutation" and both.items >= 2 and np.ptp(both.by_item) > 0:
            pivot = tests.items_t(both, self.rng, self.level).pivot
            return pivot and tost(pivot, self.margin, method="TOST, paired t over items")
        return None


def _covered(both: Sides, result: tests.Result) -> tuple[tests.Result, str, list[str]]:
    """The result, without its interval where simulation refuses it; and the coverage in words."""
    name = {"mcnemar": "paired-risk-difference"}.get(result.name, result.name)
    if name == "mixed" and not both.seeds_paired:
        name = "mixed, independent seeds"
    seeds = min((n for n, fixed in zip(both.runs, (both.a_fixed, both.b_fixed), strict=True) if not fixed), default=0)
    try:
        coverage.require(name, seeds)
    except StudyError as error:
        return replace(result, test=replace(result.test, low=None, high=None)), "", [str(error)]
    return result, "" if result.test.low is None else coverage.shown(name, seeds), []


def _effects(both: Sides, level: float) -> tuple[tuple[Effect, ...], list[str]]:
    """Effect sizes that the design allows, and why others are not shown."""
    a, b = both.a.mean(axis=1).tolist(), both.b.mean(axis=1).tolist()
    found: list[Effect] = []
    if max(both.runs) == 1 and both.binary:
        table = Discordance.of(both.a[0], both.b[0])
        found = [effects.paired_odds_ratio(table, level=level)] if table.only_a + table.only_b else []
        return tuple(found), []
    if min(both.runs) < 2:
        return (), []
    refused = []
    for name, make in (
        ("hedges-g", lambda: effects.hedges_g(summarise(a), summarise(b), level=level)),
        ("cliffs-delta", lambda: effects.cliffs_delta(a, b, level=level)),
    ):
        try:
            coverage.require(name, min(both.runs))
        except StudyError as error:
            refused.append(str(error))
            continue
        effect = make()
        found += [effect] if effect is not None else []
    return tuple(found), refused


def _groups(
    pairs: Sequence[Contrast], ranked: Sequence[str], margin: float | None
) -> tuple[dict[str, str], dict[str, str]]:
    place = {name: index for index, name in enumerate(ranked)}
    apart, same = np.zeros((2, len(ranked), len(ranked)), dtype=bool)
    for pair in pairs:
        cell = (place[pair.a], place[pair.b])
        for i, j in (cell, cell[::-1]):
            apart[i, j] = pair.finding in ("higher", "lower", "tied, but different")
            same[i, j] = pair.finding in ("tied", "tied, but different")
    return letters.not_resolved(ranked, apart), {} if margin is None else letters.tied(ranked, same)
