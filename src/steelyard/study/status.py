"""``steelyard study status DIR``: how far a study is; reads files only, so it works while the study runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from steelyard.files import Lock
from steelyard.rundir import RunDir
from steelyard.study.select import read_study

STATUSES = ("finished", "running", "waiting", "failed", "blocked")


@dataclass(frozen=True)
class StudyStatus:
    """A study as it stands.

    Attributes:
        alive: a process is working on it.
        jobs: kind -> status -> number.
        cells: (labels, status, main scores: ``{"arithmetic": 0.71, "hh/accuracy": 0.53}``) in order.
        failures: (title, error, log file).
    """

    name: str
    status: str
    alive: bool
    jobs: Mapping[str, Mapping[str, int]]
    cells: tuple[tuple[dict[str, Any], str, dict[str, float | None]], ...]
    failures: tuple[tuple[str, str, Path], ...]


def study_status(directory: str | Path) -> StudyStatus:
    """Read a study's state from ``study.json`` and its run directories; writes nothing."""
    directory = Path(directory)
    study = read_study(directory)
    alive = Lock(directory / "lock").held_by_anyone()
    jobs: dict[str, Counter[str]] = {}
    state = {}
    for job in study["jobs"]:
        # What was running when the parent was killed is not running any more.
        state[job["id"]] = "waiting" if job["status"] == "running" and not alive else job["status"]
        jobs.setdefault(job["kind"], Counter())[state[job["id"]]] += 1
    cells = []
    for entry in study["cells"]:
        cells.append((entry["cell"], state[entry["run"]], _scores(directory / entry["path"])))
    failures = tuple(
        (job["title"], job["error"] or "", directory / "jobs" / f"{job['kind']}-{job['id']}" / "error.log")
        for job in study["jobs"]
        if job["status"] == "failed"
    )
    status = study["status"]
    if status == "running" and not alive:
        status = "interrupted"  # killed before it could say so itself
    return StudyStatus(study["name"], status, alive, jobs, tuple(cells), failures)


def _scores(path: Path) -> dict[str, float | None]:
    if not (path / "run.json").is_file():
        return {}
    metrics = RunDir.open(path).facts().get("metrics") or {}
    scores = {}
    for name, value in metrics.items():
        task, _, measure = name.removeprefix("eval/").rpartition("/")
        if measure == "score" or measure.startswith("accuracy"):
            scores[task if measure == "score" else f"{task}/{measure}"] = value
    return scores


def _header(score: str) -> str:
    """A column's head, short enough that 80 columns hold a study of preferences."""
    task, _, measure = score.rpartition("/")
    if not task:
        return score
    ways = {"accuracy_logprob": "log-prob", "accuracy_logratio": "log-ratio", "accuracy": "reward"}
    return f"{'pairs' if task == 'preferences' else task}\n{ways.get(measure, measure)}"


def status_command(directory: str | Path, *, as_json: bool = False, console: Console | None = None) -> int:
    """Print the state of a study as tables (or as JSON); returns the exit code."""
    console = console or Console()
    found = study_status(directory)
    if as_json:
        cells = [{"cell": labels, "status": status, "scores": scores} for labels, status, scores in found.cells]
        failures = [{"job": title, "error": error, "log": str(log)} for title, error, log in found.failures]
        facts = {"name": found.name, "status": found.status, "alive": found.alive, "jobs": found.jobs}
        print(json.dumps({**facts, "cells": cells, "failures": failures}, indent=2))
        return 0
    total = Counter(status for counts in found.jobs.values() for status in Counter(counts).elements())
    working = "a process is working on it" if found.alive else "no process is working on it"
    done, jobs = total["finished"], sum(total.values())
    console.print(f"{found.name}: {found.status}, {done}/{jobs} jobs finished; {working}", highlight=False)
    table = Table(title="jobs")
    table.add_column("kind")
    for status in STATUSES:
        table.add_column(status, justify="right")
    for kind, counts in found.jobs.items():
        table.add_row(kind, *(str(counts.get(status, 0) or "") for status in STATUSES))
    console.print(table)
    axes = list(dict.fromkeys(key for labels, _, _ in found.cells for key in labels))
    tasks = list(dict.fromkeys(task for _, _, scores in found.cells for task in scores))
    table = Table(title="cells")
    for column in (*axes, "state"):
        table.add_column(column)
    for task in tasks:
        table.add_column(_header(task), justify="right")
    for labels, status, scores in found.cells:
        values = [scores.get(task) for task in tasks]
        texts = ["" if value is None else f"{value:.3f}" for value in values]
        table.add_row(*(str(labels.get(axis, "")) for axis in axes), status, *texts)
    console.print(table)
    for title, error, log in found.failures:
        console.print(f"FAILED {title}: {error} ({log})", soft_wrap=True, highlight=False, markup=False)
    return 0
