"""A study's evidence as one tidy table, read from run directories alone.

:func:`load_study` reads ``study.json`` and, for every cell that it lists, the run directory.  What is missing
or failed is listed, never guessed; what cannot count as evidence is refused
(:class:`~steelyard.errors.StudyError`):

* two runs of a cell whose final weights are identical although their seeds differ (the seed reached nothing,
  so their spread is not a spread; untrained baselines are exempt and treated as one fixed model),
* runs that were measured on unequal items, or on different versions of a task,
* records that changed after the run finished, or that contradict the run's own summary.

What can count but has to be said (one seed, mixed code versions, ...) is collected in :attr:`Results.notes`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from steelyard.errors import StudyError
from steelyard.rundir import RunDir
from steelyard.stats.rows import RowUse, leaks, row_uses

SEED = "seed"
"""The axis along which runs are repetitions of each other."""

UNTRAINED = "base"
"""The algorithm name of an untrained model that is only evaluated."""

MEASURES = {
    "score": "score",
    "accuracy_logprob": "correct_logprob",
    "accuracy_logratio": "correct_logratio",
    "accuracy": "correct",
}
"""What a task may be ranked by, and the records' column that it is the mean of: ``score`` (strict exact
match, or accuracy of the choice), or the held-out preference accuracies by log-probability, by log-ratio to
the reference, and by a reward head."""

AGREEMENT = 1e-6
"""Largest difference between a run's summary and the mean of its records."""


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """What was measured: one task, the same items for every run.

    Attributes:
        role: ``development`` (may have been trained or selected on) or ``unseen`` (only reported).
        kind: ``generative``, ``choice`` or ``preference``.
        items: item ids, sorted; empty when no run kept records.
    """

    name: str
    version: str
    role: str
    kind: str
    split: str
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One run on one task: a row of the tidy table.

    Attributes:
        metrics: everything that the run reports about the task, by name (``score``, ``strict``, ``flexible``,
            ``truncated``, ``empty``, ``unscored``, ``length``, ...).
    """

    run: str
    cell: Mapping[str, str]
    algorithm: str
    model: str
    seed: str
    task: str
    role: str
    n_items: int
    metrics: Mapping[str, float]

    @property
    def score(self) -> float | None:
        """The task's main score."""
        return self.metrics.get("score")

    @property
    def strict(self) -> float | None:
        """Share of items answered right in the asked form."""
        return self.metrics.get("strict")

    @property
    def flexible(self) -> float | None:
        """Share of items whose right answer stands anywhere."""
        return self.metrics.get("flexible")

    @property
    def truncated(self) -> float | None:
        """Share of items cut at the length limit."""
        return self.metrics.get("truncated")

    @property
    def empty(self) -> float | None:
        """Share of items answered with nothing."""
        return self.metrics.get("empty")


@dataclass(frozen=True, slots=True)
class Gap:
    """A cell of the study without a usable run."""

    cell: Mapping[str, str]
    run: str
    status: str
    reason: str


@dataclass(frozen=True, eq=False)
class Run:
    """One finished run of the study.

    Attributes:
        cell: displayed value of every axis, the seed's included.
        facts: the content of ``run.json``.
        metrics: final metrics by task and name.
        columns: numeric columns of the records by task and name, ``[items]`` in sorted order of the items.
        tasks: what the records say about the tasks.
    """

    id: str
    cell: Mapping[str, str]
    directory: RunDir
    facts: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float]]
    columns: Mapping[str, Mapping[str, np.ndarray]]
    tasks: Mapping[str, TaskInfo]

    @property
    def seed(self) -> str:
        """The seed as displayed."""
        return self.cell.get(SEED, str(self.facts.get("seed", "")))

    @property
    def untrained(self) -> bool:
        """Whether the run only evaluates the model that others start from."""
        return self.facts.get("algorithm") == UNTRAINED

    @property
    def threads(self) -> int | None:
        """Threads of the tensor library; part of the run's identity."""
        return self.facts.get("identity", {}).get("config", {}).get("threads")

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved config; read when asked for."""
        return self.directory.config()

    @cached_property
    def curves(self) -> list[dict[str, Any]]:
        """Rows of ``metrics.jsonl``; read when asked for."""
        return self.directory.metrics()

    def records(self, task: str) -> list[dict[str, Any]]:
        """Full per-item records with prompts and completions; read from disk at every call."""
        return self.directory.records(task)


@dataclass(frozen=True, eq=False)
class Results:
    """A study as it stands on disk.

    Attributes:
        path: the study's directory.
        study: the content of ``study.json``.
        axes: displayed values of every axis in the order of the study file (``base`` added where it ran).
        runs: finished runs, in the order of the cells.
        rows: one :class:`Row` per run and task.
        tasks: what was measured, by name.
        gaps: cells without a usable run.
        notes: what a reader has to know about the evidence, one sentence each.
        data: what became of the rows that were read.
        warnings: what makes a number something else than its name says.
    """

    path: Path
    study: Mapping[str, Any]
    axes: Mapping[str, tuple[str, ...]]
    runs: tuple[Run, ...]
    rows: tuple[Row, ...]
    tasks: Mapping[str, TaskInfo]
    gaps: tuple[Gap, ...]
    notes: tuple[str, ...] = field(default=())
    data: tuple[RowUse, ...] = field(default=())
    warnings: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.study.get("name") or self.path.name)

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved study file."""
        return self.study.get("config") or {}

    def measures(self, task: str) -> list[str]:
        """Which of :data:`MEASURES` the runs report for ``task``."""
        present = {name for row in self.rows if row.task == task for name in row.metrics}
        return [measure for measure in MEASURES if measure in present]

    def item_scores(self, runs: Sequence[Run], task: str, column: str = "score") -> np.ndarray | None:
        """Per-item scores ``[runs, items]`` in the order of :attr:`TaskInfo.items`; NaN where unscored.

        ``None`` when any of the runs kept no such column.
        """
        stacked = [run.columns.get(task, {}).get(column) for run in runs]
        if not stacked or any(values is None for values in stacked):
            return None
        return np.stack([values for values in stacked if values is not None])


# --------------------------------------------------------------------------------------------------
# Reading


def label(value: Any) -> str:
    """How an axis value is displayed: its ``label`` or ``name`` if it is a mapping, else as text."""
    if isinstance(value, Mapping):
        for key in ("label", "name", "name_or_path"):
            if value.get(key):
                return str(value[key])
        return json.dumps(value, sort_keys=True)
    return value if isinstance(value, str) else json.dumps(value)


def load_study(path: str | Path) -> Results:
    """Read a study directory; finished cells become evidence, the others :attr:`Results.gaps`.

    Raises:
        StudyError: there is no readable ``study.json``, no finished run, or the evidence is degenerate
            (see the module's list).
    """
    path = Path(path)
    study = _read_study(path)
    runs: list[Run] = []
    gaps: list[Gap] = []
    names: dict[str, str] = {}
    jobs = {job.get("id"): job for job in study.get("jobs") or []}
    for entry in study["cells"]:
        cell = {axis: label(value) for axis, value in entry["cell"].items()}
        name = describe_cell(cell)
        if names.setdefault(name, entry["run"]) != entry["run"]:
            raise StudyError(f"{path / 'study.json'}: two different runs are both called '{name}': label them apart")
        found = _read_run(path / entry["path"], entry["run"], cell, jobs.get(entry["run"], {}))
        if isinstance(found, Run):
            runs.append(found)
        else:
            gaps.append(found)
    if not runs:
        reason = f"; the first: {gaps[0].reason}" if gaps else ""
        raise StudyError(f"{path}: none of the {len(study['cells'])} runs of this study has finished{reason}")
    tasks = _check_items(path, runs)
    _check_seeds(path, runs)
    rows = tuple(_rows(runs, tasks))
    axes = _axes(study, [*(run.cell for run in runs), *(gap.cell for gap in gaps)])
    data = row_uses((run.cell.get("algorithm", ""), run.directory.path, run.facts) for run in runs)
    warnings = leaks(run.facts for run in runs)
    notes = [*warnings, *_notes(runs, rows), *(f"{use.line()}." for use in data if use.lost)]
    return Results(path, study, axes, tuple(runs), rows, tasks, tuple(gaps), tuple(notes), data, tuple(warnings))


def _read_study(path: Path) -> dict[str, Any]:
    file = path / "study.json"
    if not file.is_file():
        raise StudyError(f"{path}: not a study directory (it has no study.json)")
    try:
        study = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise StudyError(f"{file}:{error.lineno}: not JSON ({error.msg})") from error
    if not isinstance(study, dict) or not isinstance(study.get("cells"), list):
        raise StudyError(f"{file}: expected an object with a list of `cells`")
    return study


def _read_run(directory: Path, run_id: str, cell: dict[str, str], job: Mapping[str, Any]) -> Run | Gap:
    if not (directory / "run.json").is_file():
        status = str(job.get("status") or "missing")
        blocked = "an input that it needs could not be made" if status == "blocked" else "it was never started"
        return Gap(cell, run_id, status, str(job.get("error") or blocked))
    opened = RunDir.open(directory)
    facts = opened.facts()
    if facts.get("id") != run_id:
        raise StudyError(f"{directory}: study.json expects run {run_id} here, but this is {facts.get('id')}")
    if facts.get("status") != "finished":
        reason = facts.get("error") or job.get("error") or "it stopped before the end"
        status = "interrupted" if reason == "interrupted" else str(facts.get("status"))
        return Gap(cell, run_id, status, str(reason))
    metrics: dict[str, dict[str, float]] = defaultdict(dict)
    for name, value in (facts.get("metrics") or {}).items():
        prefix, _, rest = name.partition("/")
        task, _, measure = rest.rpartition("/")
        if prefix == "eval" and task and isinstance(value, int | float):
            metrics[task][measure] = float(value)
    columns, tasks = {}, {}
    for task in opened.tasks():
        columns[task], tasks[task] = _read_records(directory, task, facts)
        for measure, column in MEASURES.items():  # preference records carry what run.json may not
            values = columns[task].get(column)
            if measure not in metrics[task] and values is not None and np.isfinite(values).any():
                metrics[task][measure] = float(np.nanmean(values))
    return Run(run_id, cell, opened, facts, dict(metrics), columns, tasks)


def _read_records(directory: Path, task: str, facts: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], TaskInfo]:
    """Numeric columns of a records file, sorted by item, and what the task is; texts are not kept."""
    file = directory / "eval" / f"{task}.jsonl"
    content = file.read_bytes()
    expected = (facts.get("files") or {}).get(f"eval/{task}.jsonl")
    if expected is not None and hashlib.sha256(content).hexdigest() != expected:
        raise StudyError(f"{file}: changed since the run finished")
    try:
        records = [json.loads(line) for line in content.splitlines()]
    except json.JSONDecodeError as error:
        raise StudyError(f"{file}: not JSON lines ({error.msg})") from error
    if not records or any("item" not in record for record in records):
        raise StudyError(f"{file}: expected one record with an `item` per line")
    records.sort(key=lambda record: str(record["item"]))
    items = tuple(str(record["item"]) for record in records)
    twice = [item for item, count in Counter(items).items() if count > 1]
    if twice:
        raise StudyError(f"{file}: item '{twice[0]}' occurs twice")
    first = records[0]
    numeric = [key for key in first if any(isinstance(r.get(key), int | float) for r in records)]
    columns = {key: np.array([_number(record.get(key)) for record in records]) for key in numeric if key != "item"}
    kind = str(first.get("kind") or ("preference" if "logp_chosen" in first or "score_chosen" in first else ""))
    known = {key: str(first.get(key) or "") for key in ("version", "role", "split")}
    return columns, TaskInfo(task, known["version"], known["role"] or "held-out", kind, known["split"], items)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _axes(study: Mapping[str, Any], cells: Iterable[Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
    """Displayed axis values: the study file's order first, then whatever else the cells hold (``base``)."""
    axes: dict[str, list[str]] = {
        axis: [label(value) for value in values] for axis, values in (study.get("axes") or {}).items()
    }
    for cell in cells:
        for axis, value in cell.items():
            known = axes.setdefault(axis, [])
            if value not in known:
                known.insert(0 if value == UNTRAINED else len(known), value)
    return {axis: tuple(values) for axis, values in axes.items()}


def _rows(runs: Sequence[Run], tasks: Mapping[str, TaskInfo]) -> Iterable[Row]:
    for run in runs:
        for task, metrics in run.metrics.items():
            info = tasks.get(task)
            n_items = len(info.items) if info and info.items else int(metrics.get("n", 0))
            yield Row(
                run=run.id,
                cell=run.cell,
                algorithm=run.cell.get("algorithm", str(run.facts.get("algorithm", ""))),
                model=run.cell.get("model", str(run.facts.get("model", ""))),
                seed=run.seed,
                task=task,
                role=info.role if info else "held-out",
                n_items=n_items,
                metrics=metrics,
            )


# --------------------------------------------------------------------------------------------------
# Evidence checks


def arm_of(cell: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """A cell without its seed: runs with the same arm repeat each other."""
    return tuple((axis, value) for axis, value in cell.items() if axis != SEED)


def describe_cell(cell: Mapping[str, str]) -> str:
    """``dpo · builtin:0.1m · seed 2``, with other axes as ``key=value`` (the last part of a dotted key)."""
    return " · ".join(_describe(axis, value) for axis, value in cell.items())


def _describe(axis: str, value: str) -> str:
    if axis in ("algorithm", "model"):
        return value
    return f"seed {value}" if axis == SEED else f"{axis.rpartition('.')[2]}={value}"


def _check_items(path: Path, runs: Sequence[Run]) -> dict[str, TaskInfo]:
    """One version and one item set per task, and records that agree with the run's own summary."""
    tasks: dict[str, TaskInfo] = {}
    owner: dict[str, Run] = {}
    for run in runs:
        for name, info in run.tasks.items():
            if name not in tasks:
                tasks[name], owner[name] = info, run
                continue
            first = tasks[name]
            pair = f"{describe_cell(owner[name].cell)} and {describe_cell(run.cell)}"
            if info.version != first.version:
                raise StudyError(
                    f"{path}: task '{name}' was measured in versions {first.version} and {info.version} "
                    f"({pair}): scores of different versions cannot be compared"
                )
            if info.items != first.items or info.split != first.split:
                differ = len(set(info.items) ^ set(first.items))
                raise StudyError(
                    f"{path}: task '{name}': {pair} were measured on unequal items "
                    f"({len(first.items)} and {len(info.items)}, {differ} not in common)"
                )
        _check_summary(path, run)
    for run in runs:
        for name in run.metrics:
            tasks.setdefault(name, TaskInfo(name, "", "held-out", "", "", ()))
    return tasks


def _check_summary(path: Path, run: Run) -> None:
    for task, columns in run.columns.items():
        for measure, column in MEASURES.items():
            reported = run.metrics.get(task, {}).get(measure)
            values = columns.get(column)
            if reported is None or values is None or not np.isfinite(values).any():
                continue
            mean = float(np.nanmean(values))
            if abs(mean - reported) > AGREEMENT:
                raise StudyError(
                    f"{path}: {describe_cell(run.cell)}: run.json reports {measure} {reported:.6f} "
                    f"on '{task}', its records average {mean:.6f}"
                )


def _check_seeds(path: Path, runs: Sequence[Run]) -> None:
    seen: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        weights = run.facts.get("weights_sha256")
        if not weights or run.untrained:
            continue
        other = seen.setdefault((arm_of(run.cell), weights), run)
        if other is not run and other.seed != run.seed:
            raise StudyError(
                f"{path}: {describe_cell(dict(arm_of(run.cell)))}: seeds {other.seed} and {run.seed} ended "
                "with identical weights: the seed reached nothing, so these runs are one run and not evidence "
                "of how much repetition varies"
            )


def _notes(runs: Sequence[Run], rows: Sequence[Row]) -> list[str]:
    notes = _identical_arms(runs) + _moving_baselines(runs)
    arms = Counter(arm_of(run.cell) for run in runs if not run.untrained)
    if arms and max(arms.values()) == 1:
        notes.append("Every arm has one seed: nothing here says how much the numbers would vary if repeated.")
    for what, values in (
        ("code versions", {str(run.facts.get("identity", {}).get("source", "")) for run in runs}),
        ("thread counts", {str(run.threads) for run in runs}),
    ):
        if len(values - {"", "None"}) > 1:
            notes.append(f"The runs mix {len(values)} {what}: {', '.join(sorted(v[:12] for v in values))}.")
    unscored = [(row, row.metrics["unscored"]) for row in rows if row.metrics.get("unscored")]
    if unscored:
        worst, share = max(unscored, key=lambda pair: pair[1])
        notes.append(
            f"{len(unscored)} of {len(rows)} results leave out items that could not be scored; at most "
            f"{100 * share:.1f} % ({worst.task}, {describe_cell(worst.cell)})."
        )
    return notes


def _moving_baselines(runs: Sequence[Run]) -> list[str]:
    """An untrained model that scores differently in different runs was not evaluated deterministically."""
    notes = []
    scores: dict[tuple[Any, ...], set[float]] = defaultdict(set)
    for run in runs:
        for task, metrics in run.metrics.items():
            if run.untrained and "score" in metrics:
                scores[arm_of(run.cell), run.facts.get("weights_sha256"), task].add(metrics["score"])
    for (arm, _, task), values in scores.items():
        if len(values) > 1:
            notes.append(
                f"The untrained {describe_cell(dict(arm))} scores between {min(values):.4f} and "
                f"{max(values):.4f} on {task} with the same weights: evaluation is not deterministic here."
            )
    return notes


def _identical_arms(runs: Sequence[Run]) -> list[str]:
    """Different arms with the same weights are one method under two names, in these settings."""
    by_weights: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        weights = run.facts.get("weights_sha256")
        if weights and not run.untrained:
            by_weights[weights].append(run)
    pairs: Counter[tuple[str, str]] = Counter()
    for same in by_weights.values():
        for other in same[1:]:
            if arm_of(other.cell) != arm_of(same[0].cell):
                names = (dict(arm_of(same[0].cell)), dict(arm_of(other.cell)))
                pairs[describe_cell(names[0]), describe_cell(names[1])] += 1
    return [
        f"{a} and {b} ended with identical weights in {count} run{'s' * (count > 1)}: in these settings "
        "they are the same method."
        for (a, b), count in pairs.items()
    ]
