"""``steelyard compare A B ...``: finished runs (or whole studies) as arms of one comparison."""

from __future__ import annotations

import json
import tempfile
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard.commands.parser import Arguments, as_json
from steelyard.errors import ConfigError, StudyError, unknown

if TYPE_CHECKING:
    from steelyard.stats.analyse import Analysis, Comparison, Table
    from steelyard.stats.compare import Test
    from steelyard.stats.contrast import Contrasted
    from steelyard.stats.outcomes import Outcomes
    from steelyard.stats.table import Run

ARM, SEED = "algorithm", "seed"
"""Axes of the comparison; what names an arm stands on the first."""


@dataclass(frozen=True)
class _Found:
    """A run that was named on the command line, directly or through its study."""

    path: Path
    id: str
    facts: Mapping[str, Any]
    config: Mapping[str, Any]
    label: str = ""


def main(verb: str, words: Sequence[str]) -> int:
    """Run the verb."""
    arguments = Arguments(
        "compare",
        "Compare finished runs: runs that differ only in their seed are one arm; the first arm is the baseline.",
        epilog="examples:\n"
        "  steelyard compare runs/3f2a... runs/77b0...\n"
        "  steelyard compare runs/quick --baseline sft\n"
        "  steelyard compare runs/quick --test auto --equivalence 2.0 --letters\n"
        "  steelyard compare scores.csv --test mcnemar --correction hochberg\n",
    )
    arguments.add(
        "runs", nargs="+", metavar="DIR", help="run or study directories, or per-item tables (CSV, JSON lines)"
    )
    arguments.add("--baseline", metavar="ARM", help="what the others are compared with; default: the first arm")
    arguments.add(
        "--test",
        metavar="NAME",
        help="auto (by the design), mixed, paired-permutation, seed-permutation, mcnemar, welch, paired-t, wilcoxon, "
        "items-t; default for run directories: Welch's t over seeds, for tables: auto",
    )
    arguments.add(
        "--correction",
        metavar="NAME",
        help="holm (default), bonferroni, hochberg, bh, none; dunnett, tukey (over runs)",
    )
    arguments.add(
        "--equivalence",
        type=float,
        metavar="POINTS",
        help="smallest difference that would matter: also test whether arms are tied within it",
    )
    arguments.add("--letters", action="store_true", help="also test all pairs, and show groups as letters")
    arguments.add("--out", type=Path, metavar="DIR", help="also write report.html and results.json there")
    arguments.add("--json", action="store_true", help="print the comparison as JSON")
    args = arguments.parse(words)
    if any((args.test, args.correction, args.equivalence is not None, args.letters, _tables(args.runs))):
        return _contrast(args)
    analysis = compare_runs(args.runs, baseline=args.baseline, out=args.out)
    page = None
    if args.out is not None:
        from steelyard.report import build

        page = build(args.out)
    if args.json:
        print(as_json([_row for table in analysis.tables for _row in _rows(analysis, table)]))
    else:
        _print(analysis)
        confounds = _confounds(list(found_runs(args.runs).values()))
        if confounds:
            print(f"the runs also differ in {', '.join(confounds)}: see config.resolved.yaml of each")
        if page is not None:
            print(f"report: {page}")
    return 0


def _contrast(args: Namespace) -> int:
    """The comparison with the named test, correction, margin and letters."""
    from steelyard.commands import contrast_table

    if args.out is not None:
        raise ConfigError("--out: the report has its own fixed tests; leave it out beside --test, or take --json")
    found = contrast_runs(
        args.runs,
        baseline=args.baseline,
        test=args.test,
        correction=args.correction or "holm",
        equivalence=args.equivalence,
        letters=args.letters,
    )
    if args.json:
        print(as_json([row for table in found for row in contrast_table.rows(table)]))
    else:
        contrast_table.show(found)
    return 0


def _tables(paths: Sequence[str | Path]) -> bool:
    """Whether per-item tables are named, and nothing else; a mixture is an error."""
    from steelyard.stats.outcomes import is_table

    kinds = [is_table(path) for path in paths]
    if any(kinds) and not all(kinds):
        raise ConfigError(
            f"{paths[kinds.index(False)]}: per-item tables and run directories cannot be compared together"
        )
    return any(kinds)


def contrast_runs(
    paths: Sequence[str | Path],
    *,
    baseline: str | None = None,
    test: str | None = None,
    correction: str = "holm",
    equivalence: float | None = None,
    letters: bool = False,
) -> list[Contrasted]:
    """Compare runs, studies or per-item tables by a named test; one result per task and measure.

    Args:
        paths: run or study directories, or tables (:func:`steelyard.stats.outcomes.read_tables`).
        baseline: name of the arm that the others are compared with; default: the first.
        test: a name of :data:`steelyard.stats.contrast.CHOICES`; default: ``auto``.
        correction: a name of :data:`steelyard.stats.contrast.PROCEDURES`.
        equivalence: smallest effect of interest, in points where scores are shares, else in the score's own unit.
        letters: also compare all pairs.

    Raises:
        ConfigError: fewer than two arms, an unknown name, runs beside tables, or no per-item records.
        DataError, StudyError: a table that cannot be read, or evidence that is degenerate.
    """
    import numpy as np

    from steelyard.stats.contrast import CHOICES, PROCEDURES, contrast
    from steelyard.stats.outcomes import read_tables

    for flag, word, choices in (("--test", test, CHOICES), ("--correction", correction, PROCEDURES)):
        if word is not None and word not in choices:
            raise ConfigError(unknown(flag[2:], word, choices, where=flag))
    found = read_tables(paths) if _tables(paths) else _outcomes(paths, baseline)
    for outcomes in found:
        if baseline is not None and baseline not in outcomes.arms:
            raise ConfigError(unknown("arm", baseline, outcomes.arms, where="--baseline"))
    return [
        contrast(
            outcomes,
            rng=np.random.default_rng(0),
            baseline=baseline,
            test=test or "auto",
            correction=correction,
            margin=None if equivalence is None else equivalence / (100 if outcomes.proportion else 1),
            with_letters=letters,
        )
        for outcomes in found
    ]


def _outcomes(paths: Sequence[str | Path], baseline: str | None) -> list[Outcomes]:
    """Per-item scores of run directories, arms in the order of the command line."""
    from steelyard.stats.analyse import is_fixed
    from steelyard.stats.outcomes import from_results

    analysis, found = compare_runs(paths, baseline=baseline), []
    for table in analysis.tables:
        runs: dict[str, list[Run]] = {}
        for run in analysis.results.runs:
            if table.measure in run.metrics.get(table.task.name, {}):
                runs.setdefault(run.cell[ARM], []).append(run)
        fixed = [name for name, of_arm in runs.items() if is_fixed(of_arm)]
        outcomes = from_results(analysis.results, runs, table.task.name, table.measure, fixed=fixed)
        if outcomes is not None and len(runs) > 1:
            found.append(outcomes)
    if not found:
        raise ConfigError("compare: these runs share no task with per-item records, which the named tests need")
    return found


def compare_runs(
    paths: Sequence[str | Path], *, baseline: str | None = None, out: Path | None = None, resamples: int = 0
) -> Analysis:
    """Compare finished runs, or the runs of studies.

    Args:
        paths: run or study directories.  Runs that differ only in their seed become one arm.
        baseline: name of the arm that the others are compared with; default: the first.
        out: keep the comparison's ``study.json`` there, for a report.
        resamples: bootstrap resamples over seeds and items; 0 leaves the bootstrap out.

    Raises:
        ConfigError: fewer than two arms, or an unknown baseline.
        RunError, StudyError: what is named is no run, or the evidence is degenerate.
    """
    import numpy as np

    from steelyard.files import atomic_write
    from steelyard.stats.analyse import analyse
    from steelyard.stats.table import load_study

    found = found_runs(paths)
    cells = _cells(list(found.values()))
    arms = list(dict.fromkeys(cell[ARM] for cell in cells))
    if len(arms) < 2:
        raise ConfigError(f"compare: expected runs of at least two arms, got {len(found)} of '{arms[0]}'")
    if baseline is not None and baseline not in arms:
        raise ConfigError(unknown("arm", baseline, arms, where="--baseline"))
    study = {
        "name": "comparison",
        "description": f"Finished runs: {', '.join(map(str, paths))}.",
        "baseline": {ARM: baseline or arms[0]},
        "axes": {ARM: arms, SEED: list(dict.fromkeys(cell[SEED] for cell in cells))},
        "cells": [
            {"cell": cell, "run": run.id, "path": str(run.path.resolve())}
            for cell, run in zip(cells, found.values(), strict=True)
        ],
    }
    if out is not None and (out / "study.json").is_file():
        known = json.loads((out / "study.json").read_text(encoding="utf-8"))
        if known.get("name") != "comparison":
            raise ConfigError(f"--out: {out} holds the study '{known.get('name')}'; name another directory")
    with tempfile.TemporaryDirectory() as scratch:
        directory = out or Path(scratch)
        atomic_write(directory / "study.json", json.dumps(study, indent=1) + "\n")
        try:
            results = load_study(directory)
        except StudyError as error:
            raise StudyError(str(error).replace(f"{directory}:", "compare:")) from None
        return analyse(results, rng=np.random.default_rng(0), resamples=resamples)


def found_runs(paths: Sequence[str | Path]) -> dict[str, _Found]:
    """Every finished run in run and study directories, by its id."""
    places = [Path(path) for path in paths]
    several = sum((place / "study.json").is_file() for place in places) > 1
    return {run.id: run for place in places for run in _runs(place, named=several)}


def _runs(path: Path, *, named: bool) -> Iterator[_Found]:
    """The runs of one directory; ``named`` puts the study's name into their labels."""
    from steelyard.rundir import RunDir

    if not (path / "study.json").is_file():
        run = RunDir.open(path)
        facts = run.facts()
        if facts["status"] != "finished":
            raise ConfigError(f"{path}: this run is {facts['status']}, not finished")
        yield _Found(path, facts["id"], facts, run.config())
        return
    study = json.loads((path / "study.json").read_text(encoding="utf-8"))
    values: dict[str, set[str]] = {}
    for entry in study["cells"]:
        for axis, value in entry["cell"].items():
            values.setdefault(axis, set()).add(str(value))
    varying = [axis for axis, found in values.items() if len(found) > 1 and axis != SEED] or [ARM]
    for entry in study["cells"]:
        directory = path / entry["path"]
        if not (directory / "run.json").is_file():
            continue
        run = RunDir.open(directory)
        if run.finished:
            label = ", ".join(str(entry["cell"][axis]) for axis in varying if axis in entry["cell"])
            yield _Found(directory, run.id, run.facts(), run.config(), f"{study['name']}: {label}" if named else label)


def _cells(runs: Sequence[_Found]) -> list[dict[str, str]]:
    """``{algorithm, seed}`` of every run: arms are named by what tells them apart."""
    if not runs:
        raise ConfigError("compare: none of these directories holds a finished run")
    models = {run.facts["model"] for run in runs}
    groups: dict[tuple[str, str], list[_Found]] = {}
    for run in runs:
        groups.setdefault((run.facts["algorithm"], run.facts["model"]), []).append(run)
    cells = []
    for run in runs:
        alike = groups[run.facts["algorithm"], run.facts["model"]]
        parts = [run.facts["algorithm"], *([Path(run.facts["model"]).name] if len(models) > 1 else [])]
        parts += [f"{key.rpartition('.')[2]}={value}" for key, value in _differing(alike, run)]
        cells.append({ARM: run.label or " ".join(parts), SEED: str(run.facts["seed"])})
    twice = Counter((cell[ARM], cell[SEED]) for cell in cells)
    for cell, run in zip(cells, runs, strict=True):
        if twice[cell[ARM], cell[SEED]] > 1:
            cell[ARM] = f"{cell[ARM]} ({run.path.name})"
    return cells


_NAMED_ELSEWHERE = ("seed", "sft.seed", "algorithm.name", "model.name_or_path")


def _differing(runs: Sequence[_Found], run: _Found) -> Iterator[tuple[str, Any]]:
    """Settings of ``run`` that are not the same in all of ``runs``; seeds and places of files aside."""
    flat = [dict(_flat(other.config)) for other in runs]
    for key, value in _flat(run.config):
        if key not in _NAMED_ELSEWHERE and not key.endswith("path") and any(f.get(key) != value for f in flat):
            yield key, json.loads(value)


def _confounds(runs: Sequence[_Found]) -> list[str]:
    """Settings other than the algorithm's own in which runs of different arms differ."""
    keys = {key for run in runs for key, _ in _differing(runs, run) if not key.startswith("algorithm.")}
    # Methods that do not sample have no section for it: that is part of the method.
    return sorted(key for key in keys if not key.startswith(("data.generate", "rollout.")))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, json.dumps(value, sort_keys=True)


# --------------------------------------------------------------------------------------------------
# What is shown


def _rows(analysis: Analysis, table: Table) -> Iterator[dict[str, Any]]:
    for arm in table.arms:
        comparison = table.comparison(arm.name)
        row: dict[str, Any] = {"task": table.task.name, "measure": table.measure, "role": table.task.role}
        row |= {"arm": arm.name, "runs": arm.summary.n, "mean": arm.summary.mean, "sd": arm.summary.sd}
        if comparison is not None:
            row |= {"difference": comparison.test.difference, "verdict": comparison.verdict}
            row["seeds"] = _test(comparison.test) | {"p_holm": comparison.p_holm}
            items = _over_items(analysis, table, arm.name)
            row["items"] = None if items is None else _test(items)
        yield row


def _test(test: Test) -> dict[str, Any]:
    return {"low": test.low, "high": test.high, "p": test.p, "method": test.method, "note": test.note}


def _over_items(analysis: Analysis, table: Table, name: str) -> Test | None:
    """Paired over items, each item's score averaged over the arm's runs: *these* models on other such items."""
    import numpy as np

    from steelyard.stats.compare import paired
    from steelyard.stats.table import MEASURES

    results, sides = analysis.results, []
    for arm in (name, table.baseline):
        runs = [run for run in results.runs if run.cell[ARM] == arm and table.task.name in run.tasks]
        scores = results.item_scores(runs, table.task.name, MEASURES[table.measure])
        if scores is None:
            return None
        sides.append(scores.mean(axis=0))
    known = ~(np.isnan(sides[0]) | np.isnan(sides[1]))
    return paired(sides[0][known].tolist(), sides[1][known].tolist())


def _print(analysis: Analysis) -> None:
    from rich.markup import escape
    from rich.table import Table as Grid

    from steelyard.commands.console import wide_console
    from steelyard.report import numbers as n

    console = wide_console()
    for table in analysis.tables:
        unit = "%" if table.proportion else "score"
        title = f"{table.task.name} ({table.task.role}), {table.measure}, {len(table.task.items)} items, {unit}"
        grid = Grid(title=escape(title), title_justify="left", title_style="bold")
        for column in ("arm", "runs", "mean", "difference", "over seeds (95 %)", "p (Holm)", "over items (95 %)", ""):
            grid.add_column(column, justify="left" if column in ("arm", "") else "right")
        for arm in table.arms:
            comparison = table.comparison(arm.name)
            cells = [escape(arm.name), str(arm.summary.n), n.score(arm.summary.mean, table.proportion)]
            cells += ["", "", "", "", "baseline"] if comparison is None else _cells_of(analysis, table, comparison)
            grid.add_row(*cells)
        console.print(grid)
        detectable = table.design.detectable_corrected
        if detectable is not None and table.comparisons:
            seen = n.detectable(detectable, table.proportion)
            console.print(f"found with 80 % power after correction: {seen}", highlight=False)
    notes = dict.fromkeys(c.test.note for table in analysis.tables for c in table.comparisons if c.test.note)
    for note in notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    console.print(
        "Over seeds: would training again give this difference (this decides).  Over items: would these very models "
        "differ on other such items.  Not resolved is not equality.",
        highlight=False,
        soft_wrap=True,
    )


def _cells_of(analysis: Analysis, table: Table, comparison: Comparison) -> list[str]:
    from steelyard.report import numbers as n

    items, test = _over_items(analysis, table, comparison.arm), comparison.test
    return [
        n.difference(test.difference, table.proportion),
        n.span(test.low, test.high, table.proportion, signed=True),
        n.p_value(comparison.p_holm),
        n.NONE if items is None else n.span(items.low, items.high, table.proportion, signed=True),
        str(comparison.verdict),
    ]
