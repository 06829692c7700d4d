"""Which inputs a run needs before it can train, as content-addressed stages.  Imports no torch.

::

    sft ─► generate ─► (a selection) ─► reference ─► (the run itself)

The selections (pairs, correct, step_pairs, ranked, judged, steps) are :mod:`steelyard.trainer.select`.

A stage's id hashes what its result depends on and nothing else, so that all runs of a study that need the
same input share it: every offline method of a (model, seed) trains on the same generated data, and the
reference is computed once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from steelyard.algorithms.catalogue import describe
from steelyard.config import ModelConfig, RunConfig
from steelyard.data.sources import resolve_path
from steelyard.errors import ModelError
from steelyard.evals.tasks import get_task
from steelyard.plugins import loaded_plugins, plugin_of
from steelyard.rundir import sha256_file, sha256_json, source_hash
from steelyard.trainer.needs import SELECTED, check_needs

Kind = Literal["sft", "generate", "pairs", "correct", "step_pairs", "ranked", "judged", "steps", "reference"]

GIVEN = {
    "none": [],
    "gold": ["gold answers"],
    "correct": ["own samples", "verifier"],
    "pairs": ["own samples", "verifier", "preference pairs"],
    "step_pairs": ["own samples", "verifier", "pairs of steps"],
    "ranked": ["own samples", "verifier", "ranked lists"],
    "judged": ["own samples", "verifier", "labelled completions"],
    "steps": ["own samples", "verifier", "labelled steps"],
    "prompts": ["prompts", "verifier", "online samples"],
}
"""What a method of each data stage was given on a task (reports state it)."""

_LIMITS = {
    "pairs": "max_pairs_per_prompt",
    "step_pairs": "max_pairs_per_prompt",
    "correct": "max_correct_per_prompt",
    "ranked": "max_list_length",
}
"""The setting of ``data.generate`` that a selection, and nothing before it, depends on."""

_WRITERS = {"teacher": "teacher's samples", "gold": "gold answers"}


def given_of(entry: Mapping[str, Any], *, task: bool = True) -> list[str]:
    """What a method with this catalogue entry was given, in words: on a task, or (in rounds) on a file's rows."""
    rounds = entry["rounds"]
    if rounds is None:
        return [*GIVEN[entry["data"]], *with_teacher(entry)]
    if rounds["base"] == "pairs":
        return [*(GIVEN["pairs"] if task else ["preference pairs", "verifier"]), "online samples", *with_teacher(entry)]
    writers = ["prompts", *(_WRITERS.get(name, "online samples") for name in rounds["samplers"])]
    teacher = [] if "teacher" in rounds["samplers"] else with_teacher(entry)
    return list(dict.fromkeys(writers)) + ["verifier"] * rounds["judged"] + teacher


def with_teacher(entry: Mapping[str, Any]) -> list[str]:
    """What a method was given besides its rows: a teacher, if it has one."""
    return ["teacher"] if entry["teacher"] else []


@dataclass(frozen=True)
class StageSpec:
    """One shared input: its kind, its id (16 hex digits), the ids it depends on, and what the id hashes."""

    kind: Kind
    id: str
    deps: tuple[str, ...] = ()
    spec: dict[str, Any] = field(default_factory=dict)

    def directory(self, cache: Path) -> Path:
        """Where the stage's result lies under ``cache``."""
        return cache / f"{self.kind}-{self.id}"


def _stage(kind: Kind, spec: dict[str, Any], deps: tuple[str, ...] = ()) -> StageSpec:
    spec = {"kind": kind, "source": source_hash(), "plugins": loaded_plugins(), "deps": list(deps), **spec}
    return StageSpec(kind=kind, id=sha256_json(spec)[:16], deps=deps, spec=spec)


def plan_stages(cfg: RunConfig) -> list[StageSpec]:
    """The stages of a run in the order in which they must be made (dependencies first).

    Raises:
        ConfigError, DataError: the algorithm needs what the recipe does not offer (:mod:`steelyard.trainer.needs`).
    """
    check_needs(cfg)
    entry = describe(cfg.algorithm.name)
    seed = cfg.seed if cfg.sft is None or cfg.sft.seed is None else cfg.sft.seed
    start: dict[str, Any] = {"model": model_fingerprint(cfg.model), "dtype": cfg.model.dtype, "attn": cfg.model.attn}
    if cfg.model.init == "random":
        start["init_seed"] = seed
        start["tokenizer"] = cfg.model.train_tokenizer.model_dump() if cfg.model.train_tokenizer else None
    common = {"seed": cfg.seed, "threads": cfg.threads}
    stages: list[StageSpec] = []

    if cfg.sft is not None:
        stage = cfg.sft.model_dump(mode="json", exclude={"seed"})
        spec = {"start": start, "sft": stage, "data": data_fingerprint(cfg), "seed": seed, "threads": cfg.threads}
        stages.append(_stage("sft", spec))
        start = {"stage": stages[-1].id}
    start_deps = (stages[-1].id,) if stages else ()

    rounds = entry["rounds"]
    # Rounds that start from pairs take a file's as they are: there `data.generate` is about the rounds alone.
    makes_pairs = rounds is not None and rounds["base"] == "pairs" and cfg.data.task is not None
    own_samples = (entry["data"] in SELECTED and cfg.data.generate is not None) or makes_pairs
    if own_samples:
        generate = cfg.data.generate
        assert generate is not None
        spec = {
            "start": start,
            "data": data_fingerprint(cfg),
            "generate": generate.model_dump(exclude=set(_LIMITS.values())),
            **common,
        }
        stages.append(_stage("generate", spec, start_deps))
        kind = "pairs" if makes_pairs else entry["data"]
        limit = getattr(generate, _LIMITS[kind]) if kind in _LIMITS else None
        stages.append(_stage(kind, {"limit": limit, "seed": cfg.seed}, (stages[-1].id,)))
    if entry["reference"] == "frozen" and not entry["online"] and rounds is None:
        rows = {"stage": stages[-1].id} if own_samples else {"data": data_fingerprint(cfg)}
        deps = (stages[-1].id,) if own_samples else start_deps
        spec = {"start": start, "rows": rows, "budget": cfg.train.tokens_per_microbatch, "threads": cfg.threads}
        stages.append(_stage("reference", spec, deps))
    return stages


def rows_stage(directories: Mapping[str, Path]) -> Path | None:
    """Of a run's stages by kind, the one whose rows it trains on; None when they come from the file or task."""
    return next((directories[kind] for kind in SELECTED if kind in directories), None)


def model_directory(cfg: ModelConfig) -> Path:
    """The local directory of a model (``builtin:SIZE`` or a path); hub names raise until downloaded."""
    name = cfg.name_or_path
    if name.startswith("builtin:"):
        from steelyard.builtin.ladder import path

        return path(name.removeprefix("builtin:"))
    directory = Path(name)
    if not directory.is_dir():
        raise ModelError(f"model.name_or_path: '{name}' is neither `builtin:SIZE` nor a directory with a config.json")
    return directory


def model_fingerprint(cfg: ModelConfig) -> str:
    """SHA-256 over what decides what a model computes: config, weights, adapter, tokenizer, template, stop tokens.

    Shapes of the ladder with random weights need no files: they are part of the package's source.
    """
    parts: dict[str, Any] = {"init": cfg.init}
    if cfg.init == "random" and cfg.name_or_path.startswith("builtin:"):
        parts["shape"] = cfg.name_or_path
    else:
        parts["files"] = _directory_hashes(model_directory(cfg), weights=cfg.init == "pretrained")
    if cfg.tokenizer is not None:
        parts["tokenizer"] = _directory_hashes(Path(cfg.tokenizer), weights=False)
    if cfg.chat_template is not None:
        if not Path(cfg.chat_template).is_file():
            raise ModelError(f"model.chat_template: {cfg.chat_template}: no such file")
        parts["chat_template"] = sha256_file(cfg.chat_template)
    return sha256_json(parts)


def _directory_hashes(directory: Path, *, weights: bool) -> dict[str, Any]:
    """Hashes of a model directory's settings and (if wanted) weights; an adapter's base is included."""
    if not directory.is_dir():
        raise ModelError(f"{directory}: no such directory")
    endings = {".json", ".jinja", ".model", ".txt"} | ({".safetensors"} if weights else set())
    ours = {"trainer_state.json", "optimizer.safetensors", "stage.json"}
    hashes: dict[str, Any] = {
        path.name: sha256_file(path)
        for path in sorted(directory.iterdir())
        if path.suffix in endings and path.name not in ours
    }
    if weights and "adapter_config.json" in hashes:
        adapter = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
        base = Path(adapter.get("base_model_name_or_path") or "")
        if base.parts and base.is_dir():
            hashes["base"] = _directory_hashes(base, weights=True)
    return hashes


def data_fingerprint(cfg: RunConfig) -> dict[str, Any]:
    """What the training rows depend on: the task's version or the file's content, and how they are rendered.

    A built-in task's generator is part of :func:`steelyard.rundir.source_hash`; a task made from files has a
    digest of them in its version.
    """
    plain = cfg.data.model_dump(mode="json", exclude={"generate", "path", "task", "max_dropped"})
    if cfg.data.path is not None:
        plain["sha256"] = sha256_file(resolve_path(cfg.data.path))
    if cfg.data.task is not None:
        plain["task"] = _task_identity(cfg.data.task)
    return plain


def _task_identity(name: str) -> str:
    task = get_task(name)
    return f"{task.name}@{task.version}"


def data_hashes(cfg: RunConfig) -> dict[str, str]:
    """Content hashes of every input file by dotted config key, for a run's identity."""
    files = {
        "data.path": cfg.data.path,
        "eval.preference_path": cfg.eval.preference_path,
        "eval.quality_path": cfg.eval.quality_path,
    }
    hashes = {key: sha256_file(resolve_path(path)) for key, path in files.items() if path is not None}
    for key in ("tokenizer", "chat_template"):  # part of the model's fingerprint; their place does not matter
        if getattr(cfg.model, key) is not None:
            hashes[f"model.{key}"] = "in weights"
    if cfg.teacher is not None:
        hashes["teacher.name_or_path"] = model_fingerprint(ModelConfig(name_or_path=cfg.teacher.name_or_path))
    if cfg.data.task is not None:
        hashes["data.task"] = _task_identity(cfg.data.task)
    for index, reward in enumerate(cfg.rewards):
        for key in ("path", "reference"):
            if (place := getattr(reward, key)) is not None:
                model = ModelConfig(name_or_path=str(reward_directory(place)))
                hashes[f"rewards.{index}.{key}"] = model_fingerprint(model)
    if cfg.eval.tasks:
        hashes["eval.tasks"] = " ".join(map(_task_identity, cfg.eval.tasks))
    return hashes


def reward_directory(place: str) -> str:
    """The model of a run directory; any other place as it is."""
    return str(Path(place) / "model") if (Path(place) / "run.json").is_file() else place


def run_identity_of(cfg: RunConfig, plugins: dict[str, str] | None = None) -> dict[str, Any]:
    """The identity of a run (see :func:`steelyard.rundir.run_identity`), without loading anything."""
    from steelyard.rundir import run_identity

    data = data_hashes(cfg)
    # The same reward model elsewhere is the same one: its hash is among the data, its place does not matter.
    places = {"path": None, "reference": None}
    plain = cfg.model_copy(update={"rewards": [reward.model_copy(update=places) for reward in cfg.rewards]})
    known = {**plugin_of(cfg.algorithm.name), **(plugins or {})}
    return run_identity(plain, data=data, weights=model_fingerprint(cfg.model), plugins=known)
