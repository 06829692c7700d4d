"""Which inputs a run needs before it can train, as content-addressed stages.  Imports no torch.

::

    sft ─► generate ─► pairs | correct ─► reference ─► (the run itself)

A stage's id hashes what its result depends on and nothing else, so that all runs of a study that need the
same input share it: every offline method of a (model, seed) trains on the same generated data, and the
reference is computed once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from steelyard.algorithms.catalogue import describe
from steelyard.config import ModelConfig, RunConfig
from steelyard.errors import ConfigError, ModelError
from steelyard.rundir import sha256_file, sha256_json, source_hash

Kind = Literal["sft", "generate", "pairs", "correct", "reference"]

GIVEN = {
    "none": [],
    "gold": ["gold answers"],
    "correct": ["own samples", "verifier"],
    "pairs": ["own samples", "verifier", "preference pairs"],
    "prompts": ["prompts", "verifier", "online samples"],
}
"""What a method of each data stage was given on a task (reports state it)."""


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
    spec = {"kind": kind, "source": source_hash(), "deps": list(deps), **spec}
    return StageSpec(kind=kind, id=sha256_json(spec)[:16], deps=deps, spec=spec)


def plan_stages(cfg: RunConfig) -> list[StageSpec]:
    """The stages of a run in the order in which they must be made (dependencies first).

    Raises:
        ConfigError: the algorithm needs rows that the data section cannot provide.
    """
    entry = describe(cfg.algorithm.name)
    start: dict[str, Any] = {"model": model_fingerprint(cfg.model), "dtype": cfg.model.dtype}
    if cfg.model.init == "random":
        start["init_seed"] = cfg.seed
        start["tokenizer"] = cfg.model.train_tokenizer.model_dump() if cfg.model.train_tokenizer else None
    common = {"seed": cfg.seed, "threads": cfg.threads}
    stages: list[StageSpec] = []

    if cfg.sft is not None:
        spec = {"start": start, "sft": cfg.sft.model_dump(mode="json"), "data": data_fingerprint(cfg), **common}
        stages.append(_stage("sft", spec))
        start = {"stage": stages[-1].id}
    start_deps = (stages[-1].id,) if stages else ()

    own_samples = entry["data"] in ("correct", "pairs") and cfg.data.generate is not None
    if entry["data"] in ("correct", "pairs"):
        check_rows(cfg)
    if own_samples:
        generate = cfg.data.generate
        assert generate is not None
        selection = {"max_pairs_per_prompt", "max_correct_per_prompt"}
        spec = {
            "start": start,
            "data": data_fingerprint(cfg),
            "generate": generate.model_dump(exclude=selection),
            **common,
        }
        stages.append(_stage("generate", spec, start_deps))
        kind: Kind = "pairs" if entry["data"] == "pairs" else "correct"
        limit = generate.max_pairs_per_prompt if kind == "pairs" else generate.max_correct_per_prompt
        stages.append(_stage(kind, {"limit": limit, "seed": cfg.seed}, (stages[-1].id,)))
    if entry["reference"] == "frozen" and not entry["online"]:
        rows = {"stage": stages[-1].id} if own_samples else {"data": data_fingerprint(cfg)}
        deps = (stages[-1].id,) if own_samples else start_deps
        stages.append(_stage("reference", {"start": start, "rows": rows, "threads": cfg.threads}, deps))
    return stages


def check_rows(cfg: RunConfig) -> None:
    """A method that learns from pairs or verified samples needs ``data.generate`` on a task."""
    entry = describe(cfg.algorithm.name)
    if cfg.data.task is not None and cfg.data.generate is None:
        what = "preference pairs" if entry["data"] == "pairs" else "verified samples of the model"
        raise ConfigError(
            f"algorithm '{cfg.algorithm.name}' learns from {what}, and the task '{cfg.data.task}' has gold rows "
            "only: add a `data.generate` section, or give `data.path`"
        )


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
    """SHA-256 over the files that decide what a model computes (config, weights, tokenizer, template).

    Shapes of the ladder with random weights need no files: they are part of the package's source.
    """
    if cfg.init == "random" and cfg.name_or_path.startswith("builtin:"):
        return sha256_json({"shape": cfg.name_or_path})
    directory = model_directory(cfg)
    names = ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    if cfg.init == "pretrained":
        names += sorted(p.name for p in directory.glob("*.safetensors"))
    extra = {}
    for key in ("tokenizer", "chat_template"):
        value = getattr(cfg, key)
        if value is not None:
            place = Path(value)
            extra[key] = sha256_file(place / "tokenizer.json" if place.is_dir() else place)
    files = {name: sha256_file(directory / name) for name in names if (directory / name).is_file()}
    return sha256_json({"files": files, "init": cfg.init, **extra})


def data_fingerprint(cfg: RunConfig) -> dict[str, Any]:
    """What the training rows depend on: the task's name or the file's content, and how they are rendered.

    A built-in task's generator is part of :func:`steelyard.rundir.source_hash`.
    """
    plain = cfg.data.model_dump(mode="json", exclude={"generate", "path"})
    if cfg.data.path is not None:
        from steelyard.data.sources import resolve_path

        plain["sha256"] = sha256_file(resolve_path(cfg.data.path))
    return plain


def data_hashes(cfg: RunConfig) -> dict[str, str]:
    """Content hashes of every input file by dotted config key, for a run's identity."""
    from steelyard.data.sources import resolve_path

    files = {
        "data.path": cfg.data.path,
        "eval.preference_path": cfg.eval.preference_path,
    }
    return {key: sha256_file(resolve_path(path)) for key, path in files.items() if path is not None}


def run_identity_of(cfg: RunConfig, plugins: dict[str, str] | None = None) -> dict[str, Any]:
    """The identity of a run (see :func:`steelyard.rundir.run_identity`), without loading anything."""
    from steelyard.rundir import run_identity

    return run_identity(cfg, data=data_hashes(cfg), weights=model_fingerprint(cfg.model), plugins=plugins)
