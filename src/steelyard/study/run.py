"""``steelyard study FILE-or-NAME``: plan, run what is missing, check the evidence, report.

The same command again continues: after Ctrl-C, after ``kill -9``, after a failure was repaired, after the
study file got more seeds.  Nothing that is finished is done twice.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from steelyard.errors import RunError, StudyError
from steelyard.files import Lock, atomic_write, plain_json, remove_stale_temporaries
from steelyard.plugins import load_plugins
from steelyard.rundir import now, source_hash
from steelyard.study.axes import Study, load_study
from steelyard.study.backend import TRAINER, load_backend
from steelyard.study.display import StudyDisplay, clock
from steelyard.study.executor import Executor, JobState, available_cores
from steelyard.study.plan import Job, Plan, cache_directory, make_plan, run_directory

SCHEMA = 1
"""Version of ``study.json``."""


@dataclass(frozen=True)
class StudyOutcome:
    """What a call of :func:`run_study` led to.

    Attributes:
        out: the study's directory.
        counts: number of jobs by status (``finished``, ``failed``, ``blocked``; ``waiting`` on a dry run).
        failures: (job title, error, log file) of every failed job.
        report: the HTML report, or None on a dry run.
        exit_code: 0, or 4 when a job failed.
    """

    out: Path
    counts: Mapping[str, int]
    failures: tuple[tuple[str, str, Path], ...] = ()
    report: Path | None = None
    exit_code: int = 0


def run_study(
    spec: str | Path,
    out: str | Path | None = None,
    workers: int | None = None,
    dry_run: bool = False,
    plugins: Sequence[str] = (),
    *,
    backend: str = TRAINER,
    console: Console | None = None,
    report: bool = True,
) -> StudyOutcome:
    """Run (or continue) a study and report it.

    Args:
        spec: a study file, or the name of one (``./studies/NAME.yaml``, then those that come with Steelyard).
        out: where everything goes; default ``runs/<name of the study>``.
        workers: processes; default: one per physical core.  Never changes a number.
        dry_run: print the plan and do nothing.
        plugins: Python files that register algorithms, rewards or tasks.
        backend: ``module:attribute`` of what does the work.
        console: where progress and results are printed.
        report: build ``report.html`` and print the ranking at the end.

    Raises:
        ConfigError: the study file or a cell of it is invalid.
        RunError: another process works on this study, or ``out`` holds another one.
        StudyError: the evidence is degenerate (identical seeds), or no worker can be started.
        KeyboardInterrupt: Ctrl-C; workers are stopped and ``study.json`` is up to date.
    """
    console = console or Console()
    hashes = dict(load_plugins(plugins))  # first: a study may name what they register
    study = load_study(spec)
    chosen = load_backend(backend)
    plan = make_plan(study, chosen, hashes)
    directory = Path(out) if out is not None else Path("runs") / study.name
    _refuse_other(study, directory)
    if dry_run:
        remaining = plan.remaining(directory, chosen)
        print_plan(plan, directory, {job.id for job in remaining}, console)
        done = len(plan.jobs) - len(remaining)
        return StudyOutcome(directory, {"finished": done, "waiting": len(remaining)})
    directory.mkdir(parents=True, exist_ok=True)
    lock = Lock(directory / "lock")
    lock.acquire("study")
    try:
        _refuse_other(study, directory)  # again: under the lock nobody can have put one there since
        for folder in (directory, cache_directory(directory), directory / "runs"):
            remove_stale_temporaries(folder)
        return _Session(plan, directory, workers, backend, plugins, hashes, console).run(report)
    finally:
        lock.release()


def _refuse_other(study: Study, out: Path) -> None:
    path = out / "study.json"
    if (out / "run.json").is_file():
        raise RunError(f"{out}: holds a single run (it has a run.json), not a study; choose another --out")
    if path.is_file():
        name = json.loads(path.read_text(encoding="utf-8"))["name"]
        if name != study.name:
            raise RunError(f"{out}: holds the study '{name}', not '{study.name}'; choose another --out")


class _Session:
    """One call of :func:`run_study` that really runs."""

    def __init__(
        self,
        plan: Plan,
        out: Path,
        workers: int | None,
        backend: str,
        plugins: Sequence[str],
        hashes: Mapping[str, str],
        console: Console,
    ) -> None:
        threads = max(cell.config.threads for cell in plan.study.cells)
        self.plan, self.out, self.console = plan, out, console
        self.workers = workers or max(1, available_cores() // threads)
        self.backend, self.plugins, self.hashes = backend, plugins, hashes
        self.started = now()
        self.states: dict[str, JobState] = {}

    def run(self, report: bool) -> StudyOutcome:
        remaining = self.plan.remaining(self.out, load_backend(self.backend))
        before = time.monotonic()
        self._announce(len(remaining))
        display = StudyDisplay(self.console, self.plan, already_done=len(self.plan.jobs) - len(remaining))
        executor = Executor(
            self.plan, self.out, self.workers, display, self._changed, self.backend, self.plugins, self.hashes
        )
        try:
            with display:
                self.states = executor.run()
        except KeyboardInterrupt:
            self._write("interrupted")
            self._print(f"Interrupted; the same command continues ({self.out}).")
            raise
        except StudyError:
            self._write("failed")
            raise
        failures = tuple(
            (
                self.plan.jobs[job].title,
                state.error or "",
                self.plan.jobs[job].directory(self.out) / "error.log",
            )
            for job, state in self.states.items()
            if state.status == "failed"
        )
        counts = Counter(state.status for state in self.states.values())
        self._write("failed" if failures else "finished")
        self._print(f"{_summary(counts)} in {clock(time.monotonic() - before)}")
        for title, error, log in failures:  # the last word on them; the ranking does not repeat it
            self._print(f"FAILED {title}: {error} ({log})")
        page = self._report() if report else None
        return StudyOutcome(self.out, dict(counts), failures, page, StudyError.exit_code if failures else 0)

    def _report(self) -> Path:
        from steelyard.report import build
        from steelyard.report.terminal import print_ranking

        page = build(self.out)
        print_ranking(self.out, self.console, failed=False)
        self._print(f"report: {page}")
        return page

    def _announce(self, remaining: int) -> None:
        jobs, cells = len(self.plan.jobs), len(self.plan.study.cells)
        done = f", {jobs - remaining} already done" if jobs > remaining else ""
        workers = min(self.workers, remaining)
        self._print(
            f"study {self.plan.study.name}: {cells} cells, {jobs} jobs{done}; "
            + (f"{workers} worker{'s' * (workers > 1)} -> {self.out}" if remaining else f"nothing to do in {self.out}")
        )
        for note in self.plan.study.notes:
            self._print(f"note: {note}")

    def _print(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def _changed(self, states: dict[str, JobState]) -> None:
        self.states = states
        self._write("running")

    def _write(self, status: str) -> None:
        facts = study_facts(self.plan, self.states)
        facts |= {"status": status, "workers": self.workers, "started": self.started, "updated": now()}
        atomic_write(self.out / "study.json", json.dumps(plain_json(facts), indent=1, ensure_ascii=False) + "\n")


def _summary(counts: Mapping[str, int]) -> str:
    return ", ".join(
        f"{counts[status]} jobs {status}" for status in ("finished", "failed", "blocked") if counts.get(status)
    )


def study_facts(plan: Plan, states: Mapping[str, JobState]) -> dict[str, Any]:
    """The content of ``study.json``: the resolved study, its cells with their runs, its jobs."""
    study = plan.study
    return {
        "schema": SCHEMA,
        "name": study.name,
        "description": study.description,
        "purpose": study.purpose,
        "sha256": study.sha256,
        "config": study.plain,
        "baseline": study.baseline,
        "axes": study.axes,
        "selection": study.selection.summary() if study.selection else None,
        "cells": [
            {"cell": cell.labels, "run": run, "path": run_directory(Path(), run).as_posix()}
            for cell, run in zip(study.cells, plan.runs, strict=True)
        ],
        "jobs": [_job_facts(job, states.get(job.id, JobState())) for job in plan.jobs.values()],
        "notes": list(study.notes),
        "version": _version(),
        "code_sha256": source_hash(),
    }


def _job_facts(job: Job, state: JobState) -> dict[str, Any]:
    return {
        "id": job.id,
        "kind": job.kind,
        "title": job.title,
        "deps": list(job.deps),
        "status": state.status,
        "seconds": None if state.seconds is None else round(state.seconds, 3),
        "error": state.error,
    }


def _version() -> str | None:
    try:
        return version("steelyard")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return None


def print_plan(plan: Plan, out: Path, remaining: set[str], console: Console) -> None:
    """What ``--dry-run`` shows: the resolved base config, the cells, the jobs, and what is already done."""
    study = plan.study
    first = study.cells[0].config.model_dump(mode="json")
    title = f"# the resolved config of the first cell ({study.cells[0].title})"
    console.print(title, highlight=False, markup=False, soft_wrap=True)
    console.print(yaml.safe_dump(first, sort_keys=False).rstrip(), highlight=False, markup=False, soft_wrap=True)
    axes = [key for key in dict.fromkeys(k for cell in study.cells for k in cell.labels) if key != "seed"]
    selected = study.selection.keys if study.selection else []
    table = Table(title=f"{study.name}: {len(study.cells)} cells, baseline {_selector(study.baseline)}")
    for column in (*axes, *selected, "seeds", "done"):
        table.add_column(column)
    arms: dict[tuple[str, ...], list[tuple[int, bool]]] = {}
    for cell, run in zip(study.cells, plan.runs, strict=True):
        arm = (cell.labels["model"], cell.labels["algorithm"])
        chosen = study.selection.chosen.get(arm, {}) if study.selection else {}
        values = [cell.labels.get(axis, "") for axis in axes] + [chosen.get(key, "") for key in selected]
        arms.setdefault(tuple(map(str, values)), []).append((cell.labels["seed"], run not in remaining))
    for row, runs in arms.items():
        seeds = ", ".join(str(seed) for seed, _ in runs)
        table.add_row(*row, seeds, f"{sum(done for _, done in runs)}/{len(runs)}")
    console.print(table)
    counts, left = plan.count(), plan.count(job for job in plan.jobs.values() if job.id in remaining)
    jobs = Table(title="jobs")
    for column in ("kind", "jobs", "done", "to do"):
        jobs.add_column(column, justify="left" if column == "kind" else "right")
    for kind, number in counts.items():
        jobs.add_row(kind, str(number), str(number - left.get(kind, 0)), str(left.get(kind, 0)))
    console.print(jobs)
    for note in study.notes:
        console.print(f"note: {note}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"would write to {out}", soft_wrap=True, highlight=False, markup=False)


def _selector(labels: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())
