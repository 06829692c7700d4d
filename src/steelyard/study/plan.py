"""A study's jobs: shared inputs once, then one run per cell; content-addressed and ordered.

::

    sft ─► generate ─► (a selection) ─► reference ─► run (train + evaluate)

Two cells that need the same input share its job, because its id hashes what it depends on and nothing else.
A job that is done is known by its result on disk, so a plan can be made again at any time: what is missing
is what remains.  Paths and the number of workers are no part of any id.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from steelyard.config import RunConfig
from steelyard.errors import RunError, SteelyardError
from steelyard.rundir import RunDir, run_id
from steelyard.study.axes import Cell, Study
from steelyard.study.backend import Backend, Stage

RUN = "run"
KINDS = ("sft", "generate", "pairs", "correct", "step_pairs", "ranked", "judged", "steps", "reference", RUN)
"""Kinds of jobs in the order of the data."""


@dataclass(frozen=True)
class Job:
    """One unit of work.

    Attributes:
        id: 16 hex digits: a stage's id, or the run's.
        deps: ids of the jobs whose results it reads.
        config: a run that it belongs to (any of those that share it).
        title: for people: ``generate · builtin:0.1m · seed 0``.
        weight: rough relative duration, for ordering only.
        stage: the stage, or None for a run.
    """

    id: str
    kind: str
    deps: tuple[str, ...]
    config: RunConfig
    title: str
    weight: float
    stage: Stage | None = None

    @property
    def name(self) -> str:
        """``<kind>-<id>``: the job's directory under ``jobs/``."""
        return f"{self.kind}-{self.id}"

    def directory(self, out: Path) -> Path:
        """Where the job's status and logs are."""
        return out / "jobs" / self.name

    def done(self, out: Path, backend: Backend) -> bool:
        """Whether its result is there, complete."""
        if self.stage is not None:
            return backend.stage_done(self.stage, cache_directory(out))
        path = run_directory(out, self.id)
        return (path / "run.json").is_file() and RunDir.open(path).finished


def cache_directory(out: Path) -> Path:
    """Where a study's shared inputs are."""
    return out / "cache"


def run_directory(out: Path, run: str) -> Path:
    """Where the run called ``run`` is."""
    return out / "runs" / run


@dataclass(frozen=True)
class Plan:
    """All jobs of a study (dependencies before dependents) and the run of every cell."""

    study: Study
    jobs: dict[str, Job]
    runs: tuple[str, ...]
    """Run ids in the order of ``study.cells``."""

    def dependents(self, job: str) -> list[str]:
        """Ids of all jobs that need ``job``, directly or not."""
        found: dict[str, None] = {}
        for other in self.jobs.values():  # dependencies come first, so one pass is enough
            if job in other.deps or any(dep in found for dep in other.deps):
                found[other.id] = None
        return list(found)

    @cached_property
    def priority(self) -> dict[str, float]:
        """Length of the longest path from a job to the end of the study: the longest should start first."""
        length: dict[str, float] = {}
        for job in reversed(self.jobs.values()):
            after = [length[other.id] for other in self.jobs.values() if job.id in other.deps]
            length[job.id] = job.weight + max(after, default=0.0)
        return length

    def remaining(self, out: Path, backend: Backend) -> list[Job]:
        """Jobs whose results are missing: unfinished runs, and the inputs that those need."""
        wanted: dict[str, Job] = {}
        for job in reversed(self.jobs.values()):
            needed = job.kind == RUN or any(job.id in other.deps for other in wanted.values())
            if needed and not job.done(out, backend):
                wanted[job.id] = job
        return list(reversed(wanted.values()))

    def count(self, jobs: Iterable[Job] | None = None) -> dict[str, int]:
        """Number of jobs by kind, in the order of the data."""
        counts = Counter(job.kind for job in (self.jobs.values() if jobs is None else jobs))
        return {kind: counts[kind] for kind in sorted(counts, key=_kind_order)}


def _kind_order(kind: str) -> int:
    return KINDS.index(kind) if kind in KINDS else len(KINDS) - 1


def make_plan(study: Study, backend: Backend, plugins: Mapping[str, str]) -> Plan:
    """Plan a study; every id is computed from configs and content hashes, nothing is loaded or run.

    Raises:
        SteelyardError: a cell cannot be planned (a model is missing, rows that its algorithm needs); the
            message names the cell.
        RunError: two cells are the same run although their configs differ (equal files under two paths).
    """
    stages: dict[str, Job] = {}
    runs: dict[str, Job] = {}
    owner: dict[str, Cell] = {}
    for cell in study.cells:
        try:
            needed = backend.stages(cell.config)
            name = run_id(backend.identity(cell.config, plugins))
        except SteelyardError as error:
            raise type(error)(f"{error} (cell {cell.title})") from error
        if name in owner:
            raise RunError(f"{study.name}: {owner[name].title} and {cell.title} are the same run ({name})")
        owner[name] = cell
        size = model_size(cell.config)
        for stage in needed:
            if stage.id not in stages:
                title = f"{stage.kind} · {cell.labels['model']} · seed {cell.config.seed}"
                weight = size * _stage_work(stage.kind, cell.config)
                stages[stage.id] = Job(stage.id, stage.kind, tuple(stage.deps), cell.config, title, weight, stage)
        deps = tuple(stage.id for stage in needed)
        runs[name] = Job(name, RUN, deps, cell.config, cell.title, size * _run_work(cell.config))
    return Plan(study, {**stages, **runs}, tuple(runs))


# --------------------------------------------------------------------------------------------------
# How long a job may take, very roughly


def model_size(config: RunConfig) -> float:
    """Millions of parameters: read from the model's name or the size of its weights; 1 when unknown."""
    name = config.model.name_or_path
    path = Path(name)
    if path.is_dir():
        size = sum(f.stat().st_size for f in path.glob("*.safetensors")) / 4e6
        return size or 1.0
    match = re.search(r"(\d+(?:\.\d+)?)\s*([mb])\b", name.lower())
    return float(match[1]) * (1000.0 if match[2] == "b" else 1.0) if match else 1.0


def _stage_work(kind: str, config: RunConfig) -> float:
    generate = config.data.generate
    if kind == "generate" and generate is not None:
        return 3.0 * generate.prompts * generate.num_generations
    if kind == "sft" and config.sft is not None:
        return 3.0 * config.sft.train.prompts_per_step * (config.sft.train.max_steps or 100)
    if kind == "reference" and generate is not None:
        return float(generate.prompts)
    return 1.0


def _run_work(config: RunConfig) -> float:
    from steelyard.algorithms.catalogue import describe

    evaluation = 500.0 * len(config.eval.tasks)
    if config.algorithm.name == "base":
        return evaluation
    trained = config.train.prompts_per_step * (config.train.max_steps or 100)
    entry: dict[str, Any] = describe(config.algorithm.name)
    per_prompt = 6.0 * config.rollout.num_generations if entry["online"] else 6.0
    return evaluation + per_prompt * trained
