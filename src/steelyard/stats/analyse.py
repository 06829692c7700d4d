"""From a study's results to its tables: one per (task, measure, condition), all arms against the baseline.

The study's ``baseline`` names the *treatment* axes (usually ``algorithm``): along them arms are compared.
All other axes except the seed are *conditions*: arms are compared within one, never across.

Two families of comparisons are corrected in each table, and stated with it: all arms against the baseline
(:attr:`Table.comparisons`), and all pairs of the other arms (:attr:`Table.pairs`, shown as letters).  No pair
is in both, so that the two can never disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

from steelyard.errors import StudyError, unknown
from steelyard.stats import compare, design, estimate
from steelyard.stats.decompose import Decomposition, split_format
from steelyard.stats.design import Design
from steelyard.stats.estimate import Interval, Summary
from steelyard.stats.groups import letters
from steelyard.stats.table import (
    MEASURES,
    SEED,
    UNTRAINED,
    Results,
    Run,
    TaskInfo,
    describe_cell,
    label,
)

Verdict = Literal["higher", "lower", "not resolved", "not testable"]

EXTRAS = ("strict", "flexible", "truncated", "empty", "unscored", "length", "acc_norm")
"""Further metrics of a task that tables show as means over runs."""


@dataclass(frozen=True)
class Arm:
    """One arm of a table.

    Attributes:
        name: value of the treatment axes (``dpo``).
        summary: mean, sd and n over runs.
        interval: over seeds; over items for a fixed (untrained) arm; ``None`` when not defined.
        crossed: bootstrap over seeds and items, where records exist.
        values: score by seed.
        extras: means over runs of :data:`EXTRAS`, where reported.
        letters: arms that share a letter are not resolved from each other; empty for the baseline.
    """

    name: str
    summary: Summary
    interval: Interval | None
    crossed: Interval | None
    values: Mapping[str, float]
    extras: Mapping[str, float]
    letters: str = ""


@dataclass(frozen=True)
class Comparison:
    """One arm against the baseline.

    Attributes:
        test: Welch's t-test (one-sample where the baseline or the arm is fixed); the test that decides.
        paired: paired t-test by seed, for information; ``None`` against a fixed arm.
        p_bonferroni, p_holm: corrected within this table.
        p_holm_study: corrected over all such comparisons of the study.
        d, g: Cohen's d and Hedges' g.
        parts: answer and format parts of the difference, where strict and flexible scores exist.
        verdict: by ``p_holm`` at the analysis' alpha; "not resolved" is never equality.
        seeds_needed: runs per arm that would find a true effect as large as the observed g with 80 % power at
            Bonferroni's level; only for comparisons that are not resolved; ``None`` if that is out of reach.
    """

    arm: str
    test: compare.Test
    paired: compare.Test | None
    p_bonferroni: float | None
    p_holm: float | None
    d: float | None
    g: float | None
    parts: Decomposition | None
    verdict: Verdict
    seeds_needed: int | None
    p_holm_study: float | None = None


@dataclass(frozen=True)
class Pair:
    """Two arms, the better one first, and the Holm-corrected p-value of its family."""

    better: str
    worse: str
    difference: float
    p_holm: float | None
    resolved: bool


@dataclass(frozen=True)
class Table:
    """All arms of one condition on one measure of one task, best first.

    Attributes:
        condition: values of the axes that are held fixed.
        baseline: the arm that the others are compared with; ``None`` when it has no run here.
        pairs: every pair of arms other than the baseline.
        proportion: all scores lie in [0, 1] (shown as per cent).
        absent: arms of the study without a result here.
    """

    task: TaskInfo
    measure: str
    condition: Mapping[str, str]
    arms: tuple[Arm, ...]
    baseline: str | None
    comparisons: tuple[Comparison, ...]
    pairs: tuple[Pair, ...]
    design: Design
    proportion: bool
    absent: tuple[str, ...]

    def arm(self, name: str) -> Arm:
        """The arm called ``name``."""
        return next(arm for arm in self.arms if arm.name == name)

    def comparison(self, name: str) -> Comparison | None:
        """The comparison of ``name`` with the baseline; ``None`` for the baseline itself."""
        return next((found for found in self.comparisons if found.arm == name), None)

    @property
    def all_pairs(self) -> list[Pair]:
        """:attr:`pairs`, and the comparisons with the baseline as pairs; each corrected in its own family."""
        against = []
        for c in self.comparisons:
            assert self.baseline is not None
            resolved = c.verdict in ("higher", "lower")
            up = c.test.difference >= 0
            better, worse = (c.arm, self.baseline) if up else (self.baseline, c.arm)
            against.append(Pair(better, worse, abs(c.test.difference), c.p_holm, resolved))
        return [*self.pairs, *against]

    def unresolved_from(self, name: str) -> list[str]:
        """Arms that are not separated from ``name``, best first."""
        resolved = [{pair.better, pair.worse} for pair in self.all_pairs if pair.resolved]
        separated = set().union(*(pair for pair in resolved if name in pair))
        return [arm.name for arm in self.arms if arm.name != name and arm.name not in separated]


@dataclass(frozen=True)
class Analysis:
    """Every table of a study, and what they were made with.

    Attributes:
        treatment: names of the axes along which arms are compared.
        treatments: arm names in the order of the study file.
        conditions: the conditions in the order of the study file.
        comparisons: number of tested comparisons with the baseline over all tables.
    """

    results: Results
    alpha: float
    level: float
    treatment: tuple[str, ...]
    treatments: tuple[str, ...]
    baseline: str
    conditions: tuple[Mapping[str, str], ...]
    tables: tuple[Table, ...]
    comparisons: int

    def of(self, task: str, measure: str) -> list[Table]:
        """The tables of one measure, one per condition."""
        return [t for t in self.tables if t.task.name == task and t.measure == measure]

    @property
    def measures(self) -> list[tuple[str, str]]:
        """``(task, measure)`` of all tables, once each, in order."""
        return list(dict.fromkeys((t.task.name, t.measure) for t in self.tables))


def arm_name(cell: Mapping[str, str], treatment: Sequence[str]) -> str:
    """The displayed name of a cell's treatment: ``dpo``, ``dpo · beta=0.3``."""
    return describe_cell({axis: cell[axis] for axis in treatment if axis in cell})


def condition_of(cell: Mapping[str, str], treatment: Sequence[str]) -> dict[str, str]:
    """What a cell has in common with the arms that it is compared with."""
    return {axis: value for axis, value in cell.items() if axis != SEED and axis not in treatment}


def analyse(
    results: Results,
    *,
    rng: np.random.Generator,
    alpha: float = 0.05,
    level: float = 0.95,
    resamples: int = 2000,
) -> Analysis:
    """All tables of a study.

    Args:
        results: what :func:`steelyard.stats.table.load_study` read.
        rng: used by the bootstrap only.
        alpha: two-sided level at which a corrected p-value counts as resolved.
        level: nominal coverage of every interval.
        resamples: bootstrap resamples; 0 leaves the bootstrap out.

    Raises:
        StudyError: the study's baseline names an axis or a value that does not exist.
    """
    baseline = _baseline(results)
    treatment = _treatment(results, baseline)
    reference = _reference(results, baseline, treatment)
    names = _treatments(results, treatment)
    conditions = _conditions(results, treatment)
    tables = []
    for task in _task_order(results):
        for measure in results.measures(task):
            builder = _Builder(results, results.tasks[task], measure, alpha, level, rng, resamples)
            for condition in conditions:
                grouped = _grouped(results, treatment, condition, task, measure)
                ordered = {name: grouped[name] for name in names if name in grouped}
                if ordered:
                    absent = tuple(name for name in names if name not in ordered)
                    tables.append(builder.table(condition, ordered, reference, absent))
    tables, count = _across_tables(tables)
    return Analysis(results, alpha, level, treatment, tuple(names), reference, tuple(conditions), tuple(tables), count)


# --------------------------------------------------------------------------------------------------
# What is compared with what


def _baseline(results: Results) -> dict[str, str]:
    """The baseline's value on every treatment axis."""
    given = results.study.get("baseline") or results.config.get("baseline")
    if not given:
        axis = "algorithm" if "algorithm" in results.axes else next(a for a in results.axes if a != SEED)
        values = results.axes[axis]
        return {axis: UNTRAINED if UNTRAINED in values else values[0]}
    if isinstance(given, str):
        given = {"algorithm": given}
    selector = {axis: label(value) for axis, value in given.items() if axis != SEED}
    for axis, value in selector.items():
        if axis not in results.axes:
            raise StudyError(unknown("axis", axis, results.axes, where=f"{results.path}: baseline"))
        if value not in results.axes[axis]:
            raise StudyError(unknown(axis, value, results.axes[axis], where=f"{results.path}: baseline.{axis}"))
    return selector


def _treatment(results: Results, baseline: Mapping[str, str]) -> tuple[str, ...]:
    """The axes along which arms are compared: the baseline's, and those that only some methods have.

    An axis that not every trained cell has (``algorithm.beta`` of one method) cannot be a condition that
    all arms share; it makes arms of that method.  Untrained models lack axes that only matter for training.
    """
    cells = [cell for cell in _cells(results) if cell.get("algorithm") != UNTRAINED]
    partial = [axis for axis in results.axes if any(axis not in cell for cell in cells) and axis != SEED]
    return tuple(dict.fromkeys([*baseline, *partial]))


def _cells(results: Results) -> list[Mapping[str, str]]:
    return [*(run.cell for run in results.runs), *(gap.cell for gap in results.gaps)]


def _reference(results: Results, baseline: Mapping[str, str], treatment: Sequence[str]) -> str:
    """The name of the one arm that the baseline selects."""
    names = {
        arm_name(cell, treatment): None
        for cell in _cells(results)
        if all(cell.get(axis) == value for axis, value in baseline.items())
    }
    if len(names) != 1:
        raise StudyError(f"{results.path}: baseline: {dict(baseline)} selects {len(names)} arms: {', '.join(names)}")
    return next(iter(names))


def _in_order(results: Results, found: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Partial cells in the order of the axes' values, each once."""

    def place(cell: Mapping[str, str]) -> list[int]:
        return [results.axes[a].index(cell[a]) if a in cell else -1 for a in results.axes if a != SEED]

    unique = {tuple(sorted(cell.items())): dict(cell) for cell in found}
    return sorted(unique.values(), key=place)


def _treatments(results: Results, treatment: Sequence[str]) -> list[str]:
    parts = [{axis: cell[axis] for axis in treatment if axis in cell} for cell in _cells(results)]
    return [describe_cell(part) for part in _in_order(results, parts)]


def _conditions(results: Results, treatment: Sequence[str]) -> list[dict[str, str]]:
    """What arms are compared under; an untrained model that lacks an axis is part of all its values."""
    found = _in_order(results, [condition_of(cell, treatment) for cell in _cells(results)])
    return [c for c in found if not any(c.items() < other.items() for other in found)]


def _task_order(results: Results) -> list[str]:
    """Development tasks first, then held-out data, then unseen tasks; as evaluated within each."""
    rank = {"development": 0, "held-out": 1, "unseen": 2}
    return sorted(
        dict.fromkeys(row.task for row in results.rows),
        key=lambda task: rank.get(results.tasks[task].role, 1),
    )


def _grouped(
    results: Results, treatment: Sequence[str], condition: Mapping[str, str], task: str, measure: str
) -> dict[str, list[Run]]:
    grouped: dict[str, list[Run]] = {}
    for run in results.runs:
        fits = condition_of(run.cell, treatment).items() <= condition.items()
        if fits and measure in run.metrics.get(task, {}):
            grouped.setdefault(arm_name(run.cell, treatment), []).append(run)
    return grouped


# --------------------------------------------------------------------------------------------------
# One table


@dataclass(frozen=True)
class _Builder:
    """Makes the tables of one measure."""

    results: Results
    task: TaskInfo
    measure: str
    alpha: float
    level: float
    rng: np.random.Generator
    resamples: int

    def table(
        self,
        condition: Mapping[str, str],
        grouped: Mapping[str, list[Run]],
        reference: str,
        absent: tuple[str, ...],
    ) -> Table:
        arms = [self.arm(name, runs) for name, runs in grouped.items()]
        arms.sort(key=lambda arm: -arm.summary.mean)  # stable: equal means keep the study file's order
        others = [arm for arm in arms if arm.name != reference]
        pairs = self.pairs(others)
        tested = any(p.p_holm is not None for p in pairs)  # arms that were never tested are in no group
        separated = {(p.better, p.worse) for p in pairs if p.resolved}
        shown = letters([arm.name for arm in others], separated) if tested else {}
        arms = [replace(arm, letters=shown.get(arm.name, "")) for arm in arms]
        base = next((arm for arm in arms if arm.name == reference), None)
        comparisons, described = self.against(base, arms)
        values = [value for arm in arms for value in arm.values.values()]
        return Table(
            task=self.task,
            measure=self.measure,
            condition=condition,
            arms=tuple(arms),
            baseline=base.name if base else None,
            comparisons=tuple(comparisons),
            pairs=tuple(pairs),
            design=described,
            proportion=min(values) >= 0.0 and max(values) <= 1.0,
            absent=absent,
        )

    def arm(self, name: str, runs: Sequence[Run]) -> Arm:
        values = {run.seed: run.metrics[self.task.name][self.measure] for run in runs}
        fixed = is_fixed(runs)
        summary = estimate.summarise(list(values.values()), fixed=fixed)
        items = self.results.item_scores(runs, self.task.name, MEASURES[self.measure])
        crossed = None
        if fixed:
            interval = None if items is None else estimate.item_interval(items[0], level=self.level)
        else:
            interval = estimate.t_interval(summary, level=self.level)
            if items is not None and self.resamples:
                crossed = estimate.crossed_bootstrap(items, rng=self.rng, resamples=self.resamples, level=self.level)
        extras = {}
        for extra in EXTRAS:
            found = [r.metrics[self.task.name][extra] for r in runs if extra in r.metrics[self.task.name]]
            if len(found) == len(runs):
                extras[extra] = float(np.mean(found))
        return Arm(name, summary, interval, crossed, values, extras)

    def pairs(self, arms: Sequence[Arm]) -> list[Pair]:
        found = list(combinations(arms, 2))
        tests = [compare.independent(a.summary, b.summary, level=self.level) for a, b in found]
        adjusted = compare.holm([test.p for test in tests])
        return [
            Pair(a.name, b.name, test.difference, p, p is not None and p < self.alpha)
            for (a, b), test, p in zip(found, tests, adjusted, strict=True)
        ]

    def against(self, base: Arm | None, arms: Sequence[Arm]) -> tuple[list[Comparison], Design]:
        """Every other arm against ``base``, and the design behind these comparisons."""
        others = [arm for arm in arms if base and arm.name != base.name]
        fixed = base is not None and base.summary.fixed
        tests = [compare.independent(a.summary, base.summary, level=self.level) for a in others if base]
        tested = sum(test.p is not None for test in tests)
        described = design.describe(
            [arm.summary for arm in arms], comparisons=tested, against_constant=fixed, alpha=self.alpha
        )
        holm = compare.holm([test.p for test in tests])
        bonferroni = compare.bonferroni([test.p for test in tests])
        comparisons = []
        for arm, test, p_holm, p_bonferroni in zip(others, tests, holm, bonferroni, strict=True):
            assert base is not None
            verdict = self.verdict(test, p_holm)
            g = compare.hedges_g(arm.summary, base.summary)
            needed = None
            if verdict == "not resolved" and g is not None:
                one_arm = fixed or arm.summary.fixed
                needed = design.seeds_needed(g, alpha=self.alpha / tested, against_constant=one_arm)
            comparisons.append(
                Comparison(
                    arm=arm.name,
                    test=test,
                    paired=self.paired(arm, base),
                    p_bonferroni=p_bonferroni,
                    p_holm=p_holm,
                    d=compare.cohens_d(arm.summary, base.summary),
                    g=g,
                    parts=self.parts(arm, base),
                    verdict=verdict,
                    seeds_needed=needed,
                )
            )
        return comparisons, described

    def verdict(self, test: compare.Test, p_holm: float | None) -> Verdict:
        if p_holm is None:
            return "not testable"
        if p_holm >= self.alpha:
            return "not resolved"
        return "higher" if test.difference > 0 else "lower"

    def paired(self, arm: Arm, base: Arm) -> compare.Test | None:
        if arm.summary.fixed or base.summary.fixed:
            return None
        common = [seed for seed in arm.values if seed in base.values]
        return compare.paired(
            [arm.values[seed] for seed in common], [base.values[seed] for seed in common], level=self.level
        )

    def parts(self, arm: Arm, base: Arm) -> Decomposition | None:
        if self.measure != "score" or not all({"strict", "flexible"} <= set(a.extras) for a in (arm, base)):
            return None
        return split_format(
            arm.extras["strict"], arm.extras["flexible"], base.extras["strict"], base.extras["flexible"]
        )


def is_fixed(runs: Sequence[Run]) -> bool:
    """Whether an arm's runs are one and the same untrained model."""
    return all(run.untrained for run in runs) and len({run.facts.get("weights_sha256") for run in runs}) == 1


def _across_tables(tables: Sequence[Table]) -> tuple[list[Table], int]:
    """Add Holm's p-values over all comparisons of the study; also returns how many were tested."""
    raw = [comparison.test.p for table in tables for comparison in table.comparisons]
    adjusted = iter(compare.holm(raw))
    done = [
        replace(table, comparisons=tuple(replace(c, p_holm_study=next(adjusted)) for c in table.comparisons))
        for table in tables
    ]
    return done, sum(p is not None for p in raw)
