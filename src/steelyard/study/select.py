"""Choosing by one study what another study uses: rates are selected on other seeds and another split.

A selection study (``eval.split: selection``) sweeps keys such as ``optim.learning_rate`` per algorithm and
model.  :func:`write_record` condenses its runs into one small JSON file, which is committed; a reported study
names that file and its hash under ``select:``, and :func:`apply_record` hands every arm its chosen values.

Rule: the value with the highest mean score over seeds; of equal means the smaller value (the change to the
model that needs less).  A value at which a run stopped with NaN is never chosen.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard.errors import ConfigError, NumericalError, StudyError
from steelyard.files import atomic_write, sha256_file
from steelyard.rundir import RunDir

if TYPE_CHECKING:
    from steelyard.study.axes import Cell

SCHEMA = 1
KIND = "selection record"
RULE = (
    "highest mean selection score over seeds; of equal means the smaller value; "
    "values at which a run stopped with NaN are not eligible"
)

IRRELEVANT = ("seed", "threads", "eval.", "schema", "model.name_or_path", "algorithm.name")
"""Settings that may differ between the selecting and the selected study without a note."""

Arm = tuple[str, str]
"""(model label, algorithm label)"""


# --------------------------------------------------------------------------------------------------
# Writing a record


def write_record(study_dir: str | Path, out_file: str | Path, *, metric: str | None = None) -> dict[str, Any]:
    """Condense a finished selection study into a record and write it to ``out_file``.

    Args:
        study_dir: the directory of a study whose runs were scored on the selection split.
        out_file: where the record goes (JSON; equal studies write equal bytes).
        metric: a metric of the runs to maximise; default: the mean of ``eval/<task>/score`` over its tasks.

    Raises:
        StudyError: the study read the test split, is not finished, or swept nothing.
    """
    study_dir = Path(study_dir)
    study = read_study(study_dir)
    if study["purpose"] != "select":
        raise StudyError(
            f"{study_dir}: this study was scored on the test split, which nothing may be selected on; "
            "set `eval: {split: selection}`"
        )
    cells = [cell for cell in study["cells"] if cell["cell"]["algorithm"] != "base"]
    keys = sorted({key for cell in cells for key in cell["cell"]} - {"algorithm", "model", "seed"})
    if not keys:
        raise StudyError(f"{study_dir}: this study sweeps no key, so there is nothing to select")
    runs = [_Run.read(study_dir, cell, keys, metric) for cell in cells]
    seeds = sorted({run.seed for run in runs})
    arms: dict[Arm, list[_Run]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    settings = {arm: _settings(members[0].config, keys) for arm, members in arms.items()}
    first = next(iter(settings.values()))
    common = {k: v for k, v in first.items() if all(k in s and s[k] == v for s in settings.values())}
    record = {
        "schema": SCHEMA,
        "kind": KIND,
        "study": {"name": study["name"], "sha256": study["sha256"], "source": study["code_sha256"]},
        "rule": RULE,
        "metric": runs[0].metric,
        "split": "selection",
        "tasks": runs[0].config["eval"]["tasks"],
        "keys": keys,
        "seeds": seeds,
        "settings": common,
        "cells": [
            _choose(arm, members, keys, seeds, {k: v for k, v in settings[arm].items() if k not in common})
            for arm, members in arms.items()
        ],
    }
    atomic_write(out_file, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return record


def read_study(study_dir: Path) -> dict[str, Any]:
    """The content of ``study.json``; raises :class:`StudyError` when there is none."""
    path = study_dir / "study.json"
    if not path.is_file():
        raise StudyError(f"{study_dir}: not a study directory (it has no study.json)")
    return json.loads(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class _Run:
    arm: Arm
    values: tuple[Any, ...]
    seed: int
    score: float | None
    """None: the run stopped with NaN."""
    metric: str
    config: dict[str, Any]

    @classmethod
    def read(cls, study_dir: Path, cell: Mapping[str, Any], keys: Sequence[str], metric: str | None) -> _Run:
        labels = cell["cell"]
        title = ", ".join(f"{key}={value}" for key, value in labels.items())
        path = study_dir / cell["path"]
        if not (path / "run.json").is_file():
            raise StudyError(f"{study_dir}: the run of {title} has not been made; continue the study first")
        run = RunDir.open(path)
        facts, config = run.facts(), run.config()
        name = metric or "mean of " + ", ".join(f"eval/{task}/score" for task in config["eval"]["tasks"])
        score = None
        if facts["status"] == "finished":
            names = [metric] if metric else [f"eval/{task}/score" for task in config["eval"]["tasks"]]
            if not names:
                raise StudyError(f"{study_dir}: its runs evaluate no task; name the metric to maximise")
            values = [facts["metrics"].get(name) for name in names]
            if any(value is None for value in values):
                present = ", ".join(sorted(facts["metrics"]))
                raise StudyError(f"{path}: no metric {' or '.join(names)}; it has {present}")
            score = statistics.fmean(values)
        elif facts["status"] != "failed" or not str(facts["error"]).startswith(NumericalError.__name__):
            raise StudyError(
                f"{study_dir}: the run of {title} is {facts['status']}"
                + (f" ({facts['error']})" if facts["error"] else "")
                + "; continue the study first"
            )
        values = tuple(labels.get(key) for key in keys)
        return cls((labels["model"], labels["algorithm"]), values, labels["seed"], score, name, config)


def _choose(
    arm: Arm, runs: list[_Run], keys: Sequence[str], seeds: list[int], settings: dict[str, Any]
) -> dict[str, Any]:
    points: dict[tuple[Any, ...], list[_Run]] = {}
    for run in runs:
        points.setdefault(run.values, []).append(run)
    tried = []
    for values in sorted(points, key=_order):
        members = sorted(points[values], key=lambda run: run.seed)
        if [run.seed for run in members] != seeds:
            raise StudyError(f"{arm[1]} on {arm[0]}: not every value was run with every seed")
        scores = [run.score for run in members if run.score is not None]
        complete = len(scores) == len(members)
        tried.append(
            {
                **dict(zip(keys, values, strict=True)),
                "mean": round(statistics.fmean(scores), 6) if complete else None,
                "scores": {str(run.seed): None if run.score is None else round(run.score, 6) for run in members},
            }
        )
    eligible = [entry for entry in tried if entry["mean"] is not None]
    if not eligible:
        raise StudyError(f"{arm[1]} on {arm[0]}: every value tried stopped with NaN; extend the grid downwards")
    best = max(eligible, key=lambda entry: entry["mean"])  # the first of equals: tried is sorted upwards
    chosen = {key: best[key] for key in keys if best[key] is not None}
    return {
        "algorithm": arm[1],
        "model": arm[0],
        "chosen": chosen,
        "mean": best["mean"],
        "at_edge": _at_edge(best, tried, keys),
        "tried": tried,
        "settings": settings,
    }


def _order(values: tuple[Any, ...]) -> list[tuple[int, float, str]]:
    return [(0, v, "") if isinstance(v, (int, float)) else (1, 0.0, str(v)) for v in values]


def _at_edge(best: Mapping[str, Any], tried: list[dict[str, Any]], keys: Sequence[str]) -> list[str]:
    """Keys whose chosen value is the smallest or largest number tried: a better one may lie outside."""
    edges = []
    for key in keys:
        values = {entry[key] for entry in tried if isinstance(entry[key], (int, float))}
        if best[key] in values and best[key] in (min(values), max(values)):
            edges.append(key)
    return edges


def _usual(algorithm: str) -> dict[str, Any]:
    """A run's config with everything at its default."""
    from steelyard.config import RunConfig

    plain = {"algorithm": algorithm, "data": {"task": "arithmetic", "generate": {}}}
    return RunConfig.model_validate(plain).model_dump(mode="json")


def _settings(config: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """The settings under which a value was selected, by dotted key."""
    flat = _flatten(config)
    swept = set(keys)
    return {key: value for key, value in flat.items() if key not in swept and not key.startswith(IRRELEVANT)}


def _flatten(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


# --------------------------------------------------------------------------------------------------
# Using a record


@dataclass(frozen=True)
class Selection:
    """A record that was read, verified and found to cover every arm of a study."""

    path: str
    sha256: str
    record: Mapping[str, Any]
    chosen: Mapping[Arm, Mapping[str, Any]]

    @property
    def keys(self) -> list[str]:
        """The keys that were selected, for example ``optim.learning_rate``."""
        return list(self.record["keys"])

    def summary(self) -> dict[str, Any]:
        """What ``study.json`` and the report say about where the chosen values come from."""
        cells = {f"{c['algorithm']} on {c['model']}": c for c in self.record["cells"]}
        used = {f"{algorithm} on {model}" for model, algorithm in self.chosen}
        return {
            "record": self.path,
            "sha256": self.sha256,
            "study": self.record["study"],
            "rule": self.record["rule"],
            "metric": self.record["metric"],
            "seeds": self.record["seeds"],
            "keys": self.keys,
            "cells": [
                {key: cell[key] for key in ("algorithm", "model", "chosen", "mean", "at_edge", "tried")}
                for name, cell in cells.items()
                if name in used
            ],
        }

    def differing_settings(self, cells: Iterable[Cell]) -> tuple[str, ...]:
        """Notes on settings under which the values were selected that are not those of this study."""
        by_arm = {(c["model"], c["algorithm"]): c for c in self.record["cells"]}
        seen: dict[str, list[str]] = {}
        for cell in cells:
            arm = (cell.labels["model"], cell.labels["algorithm"])
            if arm not in self.chosen:
                continue
            then = {**self.record["settings"], **by_arm[arm]["settings"]}
            here = _settings(cell.config.model_dump(mode="json"), self.keys)
            usual = _settings(_usual(cell.config.algorithm.name), self.keys)
            for key in sorted(set(then) | set(here)):
                if key not in then and here[key] == usual.get(key):
                    continue  # a setting that did not exist then, at the value that changes nothing
                if then.get(key) != here.get(key):
                    text = f"selected with {key}={then.get(key)}, used with {key}={here.get(key)}"
                    arms = seen.setdefault(text, [])
                    name = f"{arm[1]} on {arm[0]}"
                    if name not in arms:
                        arms.append(name)
        notes = [f"{text} ({', '.join(arms)})" for text, arms in seen.items()]
        edges = [
            f"{key} of {algorithm} on {model} lies on the edge of the values tried"
            for (model, algorithm) in self.chosen
            for key in by_arm[model, algorithm]["at_edge"]
        ]
        return tuple(notes + edges)


def apply_record(given: Any, arms: Sequence[Arm], *, seeds: Sequence[int], where: str, folder: Path) -> Selection:
    """Read the record that a study's ``select:`` names, and check that it may be used for ``arms``.

    Raises:
        ConfigError: missing file, another hash than the study states, seeds in common, or an arm without
            a chosen value.
    """
    where = f"{where}: select"
    if not isinstance(given, Mapping) or not isinstance(given.get("record"), str):
        raise ConfigError(f"{where}: expected {{record: FILE, sha256: HASH}}, got {given!r}")
    extra = set(given) - {"record", "sha256"}
    if extra:
        raise ConfigError(f"{where}: unknown key '{sorted(extra)[0]}'; choices: record, sha256.")
    path = folder / given["record"]
    if not path.is_file():
        raise ConfigError(
            f"{where}: {path} does not exist; run the selection study, then `steelyard study select DIR --out {path}`"
        )
    digest = sha256_file(path)
    if given.get("sha256") != digest:
        stated = given.get("sha256") or "no hash"
        raise ConfigError(
            f"{where}: {path} has the hash {digest}, but the study states {stated}; "
            "if the new record is the one you mean, state its hash"
        )
    record = json.loads(path.read_text(encoding="utf-8"))
    if record.get("kind") != KIND or record.get("schema") != SCHEMA:
        raise ConfigError(f"{where}: {path} is not a {KIND} of schema {SCHEMA}")
    shared = sorted(set(record["seeds"]) & set(seeds))
    if shared:
        raise ConfigError(
            f"{where}: seeds {', '.join(map(str, shared))} were used to select, so they may not be reported; "
            f"{path} used {', '.join(map(str, record['seeds']))}"
        )
    cells = {(cell["model"], cell["algorithm"]): cell["chosen"] for cell in record["cells"]}
    missing = [f"{algorithm} on {model}" for model, algorithm in arms if (model, algorithm) not in cells]
    if missing:
        present = ", ".join(f"{algorithm} on {model}" for model, algorithm in cells)
        raise ConfigError(f"{where}: {path} has no value for {', '.join(missing)}; it has {present}")
    return Selection(path=given["record"], sha256=digest, record=record, chosen={arm: cells[arm] for arm in arms})


# --------------------------------------------------------------------------------------------------
# The command


def select_command(directory: str | Path, out: str | Path, *, metric: str | None = None) -> int:
    """``steelyard study select DIR --out FILE``: write the record, show it, return the exit code."""
    from rich.console import Console
    from rich.table import Table

    record = write_record(directory, out, metric=metric)
    keys = record["keys"]
    table = Table(title=f"{record['study']['name']}: {record['metric']}, seeds {record['seeds']}")
    for column in ("algorithm", "model", "chosen", "mean", "tried (mean)"):
        table.add_column(column)
    for cell in record["cells"]:
        means = ["NaN" if entry["mean"] is None else f"{entry['mean']:.3f}" for entry in cell["tried"]]
        tried = [f"{_values_text(entry, keys)} ({mean})" for entry, mean in zip(cell["tried"], means, strict=True)]
        edge = "  [yellow]edge[/]" if cell["at_edge"] else ""
        chosen = _values_text(cell["chosen"], keys) + edge
        table.add_row(cell["algorithm"], cell["model"], chosen, f"{cell['mean']:.3f}", ", ".join(tried))
    console = Console()
    console.print(table)
    few = [cell for cell in record["cells"] if len(cell["tried"]) < 3]
    for cell in few:
        console.print(f"note: only {len(cell['tried'])} value(s) tried for {cell['algorithm']} on {cell['model']}")
    if any(cell["at_edge"] for cell in record["cells"]):
        console.print("note: a value on the edge of its grid may not be the best; extend the grid there")
    console.print(f"written: {out}\nto use it, put into the study file:", highlight=False)
    console.print(f"select: {{record: {Path(out).name}, sha256: {sha256_file(out)}}}", highlight=False, soft_wrap=True)
    return 0


def _values_text(entry: Mapping[str, Any], keys: Sequence[str]) -> str:
    values = [(key, entry[key]) for key in keys if entry.get(key) is not None]
    if len(keys) == 1:
        return ", ".join(_number(value) for _, value in values)
    return ", ".join(f"{key}={_number(value)}" for key, value in values)


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)
