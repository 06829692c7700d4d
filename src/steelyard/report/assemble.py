"""Everything that a report shows, gathered from run directories: facts and numbers, no words and no drawing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steelyard.stats.analyse import Analysis, analyse, arm_name, condition_of
from steelyard.stats.ranks import Swap, swaps
from steelyard.stats.table import Results, Run, describe_cell, load_study

BOOTSTRAP_SEED = 20260
"""Seed of the bootstrap's generator; written into ``results.json``."""

SIGNALS = (
    "reward",
    "rewards/accuracies",
    "logps/accuracies",
    "mean_token_accuracy",
    "rewards/margins",
    "rewards/chosen",
)
"""What a method tries to raise: the first of these that its runs logged is drawn beside the loss."""

LIKELIHOODS = ("logps/chosen", "logps/mean")
"""Log-probability of what should become likely: the first that was logged is drawn."""

COSTS = (
    "seconds",
    "train_seconds",
    "eval_seconds",
    "generate_seconds",
    "tokens",
    "generated_tokens",
    "peak_memory_mib",
)

SAMPLES_PER_TASK = 2
"""Items per task whose answers are shown side by side."""


@dataclass(frozen=True)
class Method:
    """One arm of the study: what it is, what it was given, how it was set.

    Attributes:
        rates: learning rate by condition.
        hyperparameters: by condition where they differ, else one entry under the empty text.
        steps: optimizer steps (least, most over runs).
    """

    name: str
    algorithm: str
    family: str
    given: tuple[str, ...]
    rates: Mapping[str, float]
    hyperparameters: Mapping[str, Mapping[str, Any]]
    steps: tuple[int, int]
    prompts_per_step: int | None
    adapter: str


@dataclass(frozen=True)
class Cost:
    """Mean cost of a run of one arm under one condition; ``None`` where it was not recorded."""

    arm: str
    condition: Mapping[str, str]
    runs: int
    values: Mapping[str, float | None]

    @property
    def generation_share(self) -> float | None:
        """Share of the run's seconds that went into generating training data (charged in full to each run)."""
        seconds, generated = self.values["seconds"], self.values["generate_seconds"]
        return None if not seconds or generated is None else generated / seconds


@dataclass(frozen=True)
class CurveSet:
    """One metric of one arm: a curve per run."""

    arm: str
    metric: str
    runs: tuple[tuple[int, str, tuple[float, ...], tuple[float, ...]], ...]
    """(index of the condition, seed, steps, values)"""


@dataclass(frozen=True)
class Answer:
    """What one arm said to one item."""

    arm: str
    text: str
    verdict: str
    right: bool | None


@dataclass(frozen=True)
class Sample:
    """One item with the answers of all arms under one condition and seed."""

    task: str
    role: str
    item: str
    condition: Mapping[str, str]
    seed: str
    prompt: str
    gold: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Failure:
    """A job that failed or never ran."""

    title: str
    status: str
    error: str


@dataclass(frozen=True)
class Report:
    """What ``report.html`` and ``results.json`` are made of.

    Attributes:
        scale_axis: the condition axis that scores are drawn over (``model``), or ``None``.
        swaps: pairs of arms that change places along it, by (task, measure).
        provenance: hashes, versions, threads and times.
    """

    results: Results
    analysis: Analysis
    methods: tuple[Method, ...]
    costs: tuple[Cost, ...]
    curves: tuple[CurveSet, ...]
    samples: tuple[Sample, ...]
    failures: tuple[Failure, ...]
    scale_axis: str | None
    swaps: Mapping[tuple[str, str], tuple[Swap, ...]]
    provenance: Mapping[str, Any]


def assemble(study_dir: str | Path, *, resamples: int = 2000) -> Report:
    """Load and analyse a study.

    Raises:
        StudyError: the evidence is degenerate (:mod:`steelyard.stats.table`).
    """
    results = load_study(study_dir)
    analysis = analyse(results, rng=np.random.default_rng(BOOTSTRAP_SEED), resamples=resamples)
    axis = _scale_axis(analysis)
    arms = _arms(analysis)
    return Report(
        results=results,
        analysis=analysis,
        methods=tuple(_method(name, analysis, runs) for name, runs in arms.items()),
        costs=tuple(_costs(analysis, arms)),
        curves=tuple(_curves(analysis, arms)),
        samples=tuple(_samples(analysis)),
        failures=tuple(_failures(results)),
        scale_axis=axis,
        swaps={key: tuple(swaps(analysis.of(*key))) for key in analysis.measures} if axis else {},
        provenance=_provenance(results),
    )


def name_condition(condition: Mapping[str, str]) -> str:
    """``builtin:0.1m`` without what every reader knows: ``0.1m``; paths shortened to their last part."""
    short = {
        axis: value.removeprefix("builtin:").rstrip("/").rpartition("/")[2] if axis == "model" else value
        for axis, value in condition.items()
    }
    return describe_cell(short) or "all runs"


def _arms(analysis: Analysis) -> dict[str, list[Run]]:
    arms: dict[str, list[Run]] = {name: [] for name in analysis.treatments}
    for run in analysis.results.runs:
        arms[arm_name(run.cell, analysis.treatment)].append(run)
    return {name: runs for name, runs in arms.items() if runs}


def _scale_axis(analysis: Analysis) -> str | None:
    """The axis along which the study asks whether the order of methods holds: the model if it varies."""
    varying = {
        axis: len({condition.get(axis) for condition in analysis.conditions})
        for condition in analysis.conditions
        for axis in condition
    }
    candidates = [axis for axis, count in varying.items() if count > 1]
    return "model" if "model" in candidates else next(iter(candidates), None)


def _method(name: str, analysis: Analysis, runs: Sequence[Run]) -> Method:
    first = runs[0]
    trained = not first.untrained
    rates: dict[str, float] = {}
    hyper: dict[str, dict[str, Any]] = {}
    for run in runs:
        condition = name_condition(condition_of(run.cell, analysis.treatment))
        if condition in hyper:
            continue
        algorithm = run.config.get("algorithm") or {}
        hyper[condition] = {key: value for key, value in algorithm.items() if key != "name"}
        if trained:
            rates[condition] = float(run.config.get("optim", {}).get("learning_rate", float("nan")))
    alike = all(values == next(iter(hyper.values())) for values in hyper.values())
    steps = [int(run.facts.get("steps") or 0) for run in runs]
    lora = first.config.get("lora")
    train = first.config.get("train") or {}
    return Method(
        name=name,
        algorithm=str(first.facts.get("algorithm", "")),
        family=str(first.facts.get("family", "")),
        given=(*(first.facts.get("given") or ()), *_judged(first.facts)),
        rates=rates,
        hyperparameters={"": next(iter(hyper.values()))} if alike else hyper,
        steps=(min(steps), max(steps)),
        prompts_per_step=train.get("prompts_per_step") if trained else None,
        adapter=f"LoRA r={lora['r']}" if lora and trained else "full" if trained else "",
    )


def _judged(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """How a reward model came by scores on tasks that it cannot answer."""
    return (f"its score: {facts['evaluated_by']}",) if facts.get("evaluated_by") else ()


def _costs(analysis: Analysis, arms: Mapping[str, Sequence[Run]]) -> list[Cost]:
    found = []
    for name, runs in arms.items():
        groups: dict[str, list[Run]] = {}
        for run in runs:
            groups.setdefault(name_condition(condition_of(run.cell, analysis.treatment)), []).append(run)
        for group in groups.values():
            values = {key: _mean([(run.facts.get("cost") or {}).get(key) for run in group]) for key in COSTS}
            found.append(Cost(name, condition_of(group[0].cell, analysis.treatment), len(group), values))
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


# --------------------------------------------------------------------------------------------------
# Curves


def _curves(analysis: Analysis, arms: Mapping[str, Sequence[Run]]) -> list[CurveSet]:
    names = [name_condition(condition) for condition in analysis.conditions]
    found = []
    for arm, runs in arms.items():
        logged = [{key.removeprefix("train/"): key for row in run.curves for key in row} for run in runs]
        present = set().union(*logged)
        for metric in ("loss", _first(SIGNALS, present), _first(LIKELIHOODS, present)):
            curves = []
            for run, keys in zip(runs, logged, strict=True):
                rows = [row for row in run.curves if metric and row.get(keys.get(metric, "")) is not None]
                if len(rows) > 1 and metric:
                    condition = name_condition(condition_of(run.cell, analysis.treatment))
                    where = names.index(condition) if condition in names else 0
                    steps = tuple(float(row["global_step"]) for row in rows)
                    curves.append((where, run.seed, steps, tuple(float(row[keys[metric]]) for row in rows)))
            if curves and metric:
                found.append(CurveSet(arm, metric, tuple(curves)))
    return found


def _first(candidates: Sequence[str], present: set[str]) -> str | None:
    return next((name for name in candidates if name in present), None)


# --------------------------------------------------------------------------------------------------
# Answers side by side


def _samples(analysis: Analysis) -> list[Sample]:
    """For every task with texts, the items on which the arms of the first condition and seed differ most."""
    results = analysis.results
    condition = next((c for c in analysis.conditions), {})
    runs = [run for run in results.runs if condition_of(run.cell, analysis.treatment).items() <= condition.items()]
    seeds = Counter(run.seed for run in runs if not run.untrained)
    if not seeds:
        return []
    seed = seeds.most_common(1)[0][0]
    chosen = {arm_name(run.cell, analysis.treatment): run for run in runs if run.seed == seed or run.untrained}
    samples = []
    for task, info in results.tasks.items():
        if info.kind not in ("generative", "choice"):
            continue
        having = {name: chosen[name] for name in analysis.treatments if task in getattr(chosen.get(name), "tasks", {})}
        scores = results.item_scores(list(having.values()), task)
        if scores is None or len(having) < 2:
            continue
        spread = np.nanvar(np.where(np.isfinite(scores), scores, np.nan), axis=0)
        most = np.argsort(-spread, kind="stable")[:SAMPLES_PER_TASK]
        picked = [info.items[i] for i in most if spread[i] > 0]
        records = {name: {str(row["item"]): row for row in run.records(task)} for name, run in having.items()}
        for item in picked:
            rows = {name: found[item] for name, found in records.items()}
            first = next(iter(rows.values()))
            answers = tuple(_answer(name, row, info.kind) for name, row in rows.items())
            gold = str(first.get("answer", "")) if info.kind == "generative" else _choice(first, first.get("gold"))
            samples.append(Sample(task, info.role, item, condition, seed, str(first.get("prompt", "")), gold, answers))
    return samples


def _choice(row: Mapping[str, Any], index: Any) -> str:
    choices = row.get("choices") or []
    return str(choices[index]) if isinstance(index, int) and index < len(choices) else "no single choice"


def _answer(arm: str, row: Mapping[str, Any], kind: str) -> Answer:
    score = row.get("score")
    right = None if score is None else bool(score)
    if kind == "choice":
        return Answer(arm, _choice(row, row.get("choice")), "right" if right else "wrong", right)
    text = str(row.get("completion", ""))
    if right is None:
        verdict = "could not be scored"
    elif right:
        verdict = "right"
    elif row.get("empty"):
        verdict = "empty"
    else:
        verdict = "right, not in the asked form" if row.get("flexible") else "wrong"
    if row.get("truncated") and not right:
        verdict += ", cut at the length limit"
    return Answer(arm, text, verdict, right)


# --------------------------------------------------------------------------------------------------
# What went wrong, and where everything came from


def _failures(results: Results) -> list[Failure]:
    runs = {gap.run for gap in results.gaps}
    found = [
        Failure(
            str(job.get("title") or f"{job.get('kind')} {job.get('id')}"),
            str(job["status"]),
            str(job["error"]),
        )
        for job in results.study.get("jobs") or []
        if job.get("status") == "failed" and job.get("id") not in runs
    ]
    return found + [Failure(describe_cell(gap.cell), gap.status, gap.reason) for gap in results.gaps]


def _provenance(results: Results) -> dict[str, Any]:
    study, runs = results.study, results.runs
    environments = [_environment(run) for run in runs]
    versions: dict[str, set[str]] = {}
    for environment in environments:
        for library, version in (environment.get("versions") or {}).items():
            versions.setdefault(library, set()).add(str(version))
    return {
        "study": results.name,
        "study_sha256": study.get("sha256"),
        "code_sha256": study.get("code_sha256"),
        "steelyard": study.get("version"),
        "versions": {library: sorted(found) for library, found in sorted(versions.items())},
        "python": _distinct(environments, "python"),
        "platform": _distinct(environments, "platform"),
        "cpu": _distinct(environments, "cpu"),
        "git": _distinct(environments, "git"),
        "threads": sorted({str(run.threads) for run in runs}),
        "first_started": min((str(run.facts["started"]) for run in runs if run.facts.get("started")), default=None),
        "last_finished": max((str(run.facts["finished"]) for run in runs if run.facts.get("finished")), default=None),
    }


def _environment(run: Run) -> dict[str, Any]:
    file = run.directory.path / "env.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _distinct(environments: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    return sorted({str(found[key]) for found in environments if found.get(key)})
