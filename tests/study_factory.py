"""Writes a small study directory in the exact layout that a real study leaves behind; trains nothing.

Scores come from a toy model of answering: an item is right when skill + seed effect + noise exceeds its
difficulty.  Everything is a function of the arguments, so tests can state what the numbers must be.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ALGORITHMS = ("sft", "dpo", "simpo", "grpo")
MODELS = ("builtin:0.1m", "builtin:0.5m")
TASKS = {
    "arithmetic": {"version": "1", "role": "development", "kind": "generative", "items": 120},
    "chains": {"version": "1", "role": "unseen", "kind": "generative", "items": 80},
    "facts": {"version": "2", "role": "unseen", "kind": "choice", "items": 90},
}
PREFERENCES = {"preferences": {"kind": "preference", "items": 150}}
SKILL = {"base": 0.0, "sft": 1.6, "dpo": 0.5, "simpo": 0.35, "grpo": 1.3}
FAMILY = {"base": "none", "sft": "Tokens", "dpo": "Pairs", "simpo": "Pairs", "grpo": "Rollouts"}
GIVEN = {
    "base": [],
    "sft": ["gold answers"],
    "dpo": ["own samples", "verifier", "preference pairs"],
    "simpo": ["own samples", "verifier", "preference pairs"],
    "grpo": ["prompts", "verifier", "online samples"],
}
RATES = {"base": 0.0, "sft": 3e-4, "dpo": 1e-4, "simpo": 2e-4, "grpo": 3e-4}


def make_study(
    root: Path,
    *,
    algorithms: Sequence[str] = ALGORITHMS,
    models: Sequence[str] = MODELS,
    seeds: Sequence[int] = (0, 1, 2),
    tasks: Mapping[str, Mapping[str, Any]] = TASKS,
    baseline: str | None = "dpo",
    include_base: bool = True,
    base_runs: int = 1,
    steps: int = 24,
    spread: float = 0.12,
    failed: Sequence[tuple[str, str, int]] = (),
    skill: Mapping[str, float] = SKILL,
    unformatted: Mapping[str, float] | None = None,
) -> Path:
    """Write ``root/study.json`` and one run directory per cell; returns ``root``.

    ``failed`` lists (algorithm, model, seed) of cells whose run stops with an error; ``unformatted`` is the
    share of answers by algorithm that are not put in the asked form (0.06 unless given).
    """
    cells, jobs = [], []
    arms = (["base"] if include_base else []) + list(algorithms)
    for model in models:
        for algorithm in arms:
            # A pretrained model is the same for every seed, so a study evaluates it once.
            for seed in seeds if algorithm != "base" else seeds[:base_runs]:
                cell = {"algorithm": algorithm, "model": model, "seed": seed}
                run_id = hashlib.sha256(json.dumps(cell).encode()).hexdigest()[:16]
                path = f"runs/{run_id}"
                error = "NumericalError: loss is nan at step 7" if (algorithm, model, seed) in failed else None
                _write_run(
                    root / path,
                    run_id,
                    cell,
                    tasks,
                    steps,
                    spread,
                    skill,
                    (unformatted or {}).get(algorithm, 0.06),
                    error,
                )
                cells.append({"cell": cell, "run": run_id, "path": path})
                jobs.append(
                    {
                        "id": run_id,
                        "kind": "run",
                        "title": f"{algorithm} · {model} · seed {seed}",
                        "deps": [],
                        "status": "failed" if error else "finished",
                        "seconds": 4.2 + seed,
                        "error": error,
                    }
                )
    config: dict[str, Any] = {
        "name": "toy",
        "description": "Four methods on two sizes of a toy ladder.",
        "include_base": include_base,
        "axes": {"algorithm": list(algorithms), "model": list(models), "seed": list(seeds)},
        "data": {"task": "arithmetic"},
    }
    if baseline:
        config["baseline"] = {"algorithm": baseline}
    study = {
        "schema": 1,
        "name": "toy",
        "description": config["description"],
        "purpose": "report",
        "sha256": "5d" * 32,
        "config": config,
        "baseline": config.get("baseline"),
        "axes": config["axes"],
        "selection": _selection(algorithms, models),
        "cells": cells,
        "jobs": jobs,
        "notes": [],
        "version": "0.1.0",
        "code_sha256": "c0de" * 16,
        "status": "failed" if failed else "finished",
    }
    write_json(root / "study.json", study)
    return root


def _selection(algorithms: Sequence[str], models: Sequence[str]) -> dict[str, Any]:
    key = "optim.learning_rate"
    cells = []
    for model in models:
        for algorithm in algorithms:
            best = RATES.get(algorithm, 1e-4)
            tried = [{key: best / 3, "mean": 0.41}, {key: best, "mean": 0.52}, {key: best * 3, "mean": 0.47}]
            edge = [key] if algorithm == "simpo" else []
            chosen = {"algorithm": algorithm, "model": model, "chosen": {key: best}, "mean": 0.52}
            cells.append({**chosen, "at_edge": edge, "tried": tried})
    return {
        "record": "quick-select.record.json",
        "sha256": "ab" * 32,
        "study": {"name": "quick-select", "sha256": "cd" * 32},
        "rule": "highest mean selection score over seeds; of equal means the smaller value",
        "metric": "eval/arithmetic/score",
        "seeds": [100, 101],
        "keys": [key],
        "cells": cells,
    }


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, making parent directories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Change top-level keys of a JSON file."""
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **changes})


def _seeded(*parts: Any) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256(json.dumps(parts).encode()).digest()))


def _write_run(
    directory: Path,
    run_id: str,
    cell: Mapping[str, Any],
    tasks: Mapping[str, Mapping[str, Any]],
    steps: int,
    spread: float,
    skill: Mapping[str, float],
    unformatted: float,
    error: str | None,
) -> None:
    algorithm, model, seed = cell["algorithm"], cell["model"], cell["seed"]
    untrained = algorithm == "base"
    directory.mkdir(parents=True)
    config = _config(cell, tasks, steps)
    (directory / "config.resolved.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    write_json(
        directory / "env.json",
        {
            "python": "3.11.2",
            "platform": "Linux",
            "cpu": "Example CPU",
            "cpus": 2,
            "threads": {"OMP_NUM_THREADS": "1"},
            "versions": {"torch": "2.13.0", "transformers": "5.23.0", "steelyard": "0.1.0"},
            "git": "0123456789abcdef",
            "source": "50" * 32,
        },
    )
    metrics: dict[str, float] = {}
    if error is None:
        # The untrained model is one model: its seed must not change anything.
        effect = 0.0 if untrained else spread * _seeded("effect", algorithm, model, seed).standard_normal()
        level = skill.get(algorithm, 0.0) + 0.9 * MODELS.index(model) * (model in MODELS) + effect
        noise = _seeded("noise", algorithm, model, 0 if untrained else seed)
        for name, task in tasks.items():
            if task["kind"] == "preference":
                records = _pairs(task, level, noise, reward_head=algorithm == "rm", reference=not untrained)
            else:
                records = _records(name, task, level - 0.8 * (name == "chains"), noise, unformatted)
            lines = "".join(json.dumps(record) + "\n" for record in records)
            (directory / "eval").mkdir(exist_ok=True)
            (directory / "eval" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
            metrics |= _summary(name, task["kind"], records)
        rows = _curve(algorithm, steps, noise)
        (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    weights = json.dumps([model] if untrained else [algorithm, model, seed])
    generated = 0 if algorithm in ("base", "sft") else 40_000
    write_json(
        directory / "run.json",
        {
            "schema": 1,
            "id": run_id,
            "status": "failed" if error else "finished",
            "algorithm": algorithm,
            "family": FAMILY.get(algorithm, "Pairs"),
            "model": model,
            "seed": seed,
            "given": GIVEN.get(algorithm, GIVEN["dpo"]),
            "identity": {
                "config": {"threads": 1},
                "source": "50" * 32,
                "weights": hashlib.sha256(model.encode()).hexdigest(),
                "data": {"data.path": "da" * 32},
            },
            "weights_sha256": hashlib.sha256(weights.encode()).hexdigest(),
            "data_sha256": "da" * 32,
            "steps": 0 if untrained else steps,
            "metrics": metrics,
            "cost": {
                "seconds": 2.0 if untrained else 9.0 + generated / 10_000,
                "train_seconds": 0.0 if untrained else 7.0,
                "eval_seconds": 2.0,
                "generate_seconds": generated / 10_000,
                "tokens": 0 if untrained else 180_000,
                "generated_tokens": generated,
                "peak_memory_mib": 410.0,
            },
            "started": "2026-11-01T10:00:00+00:00",
            "finished": "2026-11-01T10:00:09+00:00",
            "error": error,
        },
    )


def _config(cell: Mapping[str, Any], tasks: Mapping[str, Any], steps: int) -> dict[str, Any]:
    hyper = {"dpo": {"beta": 0.1}, "simpo": {"beta": 2.0, "gamma": 1.0}}.get(cell["algorithm"], {})
    return {
        "schema": 1,
        "model": {"name_or_path": cell["model"], "dtype": "float32"},
        "algorithm": {"name": cell["algorithm"], **hyper},
        "data": {"task": "arithmetic", "generate": {"prompts": 256, "num_generations": 8}},
        "lora": None,
        "optim": {"learning_rate": RATES.get(cell["algorithm"], 1e-4), "lr_scheduler_type": "cosine"},
        "train": {"prompts_per_step": 32, "max_steps": steps},
        "eval": {"tasks": list(tasks), "split": "test"},
        "seed": cell["seed"],
        "threads": 1,
    }


def _records(
    name: str, task: Mapping[str, Any], level: float, noise: np.random.Generator, unformatted: float
) -> list[dict[str, Any]]:
    items = _seeded("items", name)
    difficulty = items.normal(0.4, 1.2, task["items"])
    numbers = items.integers(2, 99, (task["items"], 2))
    right = level + noise.normal(0, 0.4, task["items"]) > difficulty
    loose = noise.random(task["items"]) < unformatted
    cut = noise.random(task["items"]) < 0.03
    records = []
    for i in range(task["items"]):
        a, b = (int(x) for x in numbers[i])
        head = {"task": name, "version": task["version"], "role": task["role"], "kind": task["kind"]}
        row: dict[str, Any] = {**head, "split": "test", "item": f"{name}-{i:04d}"}
        if task["kind"] == "choice":
            logps = [-1.0, -1.4, -2.2] if right[i] else [-1.6, -1.2, -2.0]
            row |= {"prompt": f"Which of them is {a}?", "gold": 0, "choices": [f"{a}", f"{b}", "none"]}
            row |= {
                "choice": int(np.argmax(logps)),
                "logps": logps,
                "score": int(right[i]),
                "acc_norm": int(right[i]),
            }
        else:
            said = a + b if right[i] else a + 2
            tail = "" if cut[i] else (f"The answer is {said}" if loose[i] else f"#### {said}")
            strict = bool(right[i] and not loose[i] and not cut[i])
            row |= {
                "prompt": f"Mia has {a} pears and buys {b} more. How many pears does she have?",
                "completion": f"She starts with {a}. {a} + {b} = {said}. {tail}".strip(),
                "answer": str(a + b),
                "score": int(strict),
                "strict": int(strict),
                "flexible": int(bool(right[i])),
                "truncated": int(cut[i]),
                "empty": 0,
                "length": 24,
            }
        records.append(row)
    return records


def _pairs(
    task: Mapping[str, Any], level: float, noise: np.random.Generator, *, reward_head: bool, reference: bool
) -> list[dict[str, Any]]:
    hard = _seeded("pairs").normal(0, 1, task["items"])
    margins = 0.3 * level - hard + noise.normal(0, 1, task["items"])
    records = []
    for i, margin in enumerate(margins.tolist()):
        row: dict[str, Any] = {"task": "preferences", "kind": "preference", "item": f"pair-{i:04d}"}
        row |= {"length_chosen": 20, "length_rejected": 22}
        if reward_head:
            row |= {"score_chosen": margin, "score_rejected": 0.0, "correct": float(margin > 0)}
        else:
            row |= {"logp_chosen": -40 + margin, "logp_rejected": -40.0, "correct_logprob": float(margin > 0)}
            if reference:
                row |= {
                    "ref_chosen": -40.0,
                    "ref_rejected": -40.0 + hard[i],
                    "correct_logratio": float(margin > hard[i]),
                }
        records.append(row)
    return records


def _summary(name: str, kind: str, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    measures = {"accuracy_logprob": "correct_logprob", "accuracy_logratio": "correct_logratio", "accuracy": "correct"}
    if kind == "preference":
        columns = {measure: column for measure, column in measures.items() if column in records[0]}
        found = {f"eval/{name}/{m}": float(np.mean([r[c] for r in records])) for m, c in columns.items()}
        return found | {f"eval/{name}/n": float(len(records))}
    keys = (
        ("score", "acc_norm") if kind == "choice" else ("score", "strict", "flexible", "truncated", "empty", "length")
    )
    found = {f"eval/{name}/{key}": float(np.mean([float(r[key]) for r in records])) for key in keys}
    return found | {f"eval/{name}/unscored": 0.0, f"eval/{name}/n": float(len(records))}


def _curve(algorithm: str, steps: int, noise: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for step in range(1, (0 if algorithm == "base" else steps) + 1):
        falling = float(np.exp(-step / 10) + 0.03 * noise.standard_normal())
        row: dict[str, Any] = {
            "global_step": step,
            "loss": 0.69 * falling,
            "learning_rate": 1e-4,
            "grad_norm": 1.0,
        }
        if FAMILY.get(algorithm, "Pairs") == "Pairs":
            row |= {
                "rewards/margins": 1 - falling,
                "rewards/accuracies": 1 - 0.5 * falling,
                "logps/chosen": -20.0 - (1 - falling),
            }
        elif algorithm == "grpo":
            row |= {"reward": 0.9 - 0.5 * falling, "kl": 0.02 * step, "completions/mean_length": 24.0}
        elif algorithm == "sft":
            row |= {"mean_token_accuracy": 1 - 0.4 * falling}
        rows.append(row)
    return rows
