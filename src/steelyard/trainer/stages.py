"""Make the shared inputs of runs: a supervised start, generated samples, rows selected from them, reference
log-probabilities.

Each stage is a directory named by its content-addressed id (:mod:`steelyard.trainer.plan`), written under a
temporary name and renamed when complete: it is there as a whole or not at all, and never made twice.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from steelyard.algorithms.core import algorithms
from steelyard.config import AlgorithmConfig, RunConfig
from steelyard.data.chat import Codec
from steelyard.data.render import completion_text, prompt_ids
from steelyard.data.steps import step_ends
from steelyard.errors import ConfigError, DataError, ModelError, RunError
from steelyard.files import atomic_write, read_jsonl
from steelyard.models.load import Policy, load_policy, load_tokenizer, tokenizer_sha256
from steelyard.models.reference import ReferenceCache
from steelyard.rollout.sampler import NativeSampler, SamplingParams
from steelyard.trainer.plan import Kind, StageSpec, plan_stages, rows_stage
from steelyard.trainer.rows import judged_group, read_group, task_items, training_rows, write_groups
from steelyard.trainer.select import SELECTIONS
from steelyard.types import Group

Progress = Callable[[dict[str, Any]], None]
DONE = "stage.json"


def ensure_stages(cfg: RunConfig, cache: Path, progress: Progress | None = None) -> dict[str, Path]:
    """Make every missing stage of ``cfg`` in order; kind -> directory."""
    return {stage.kind: _ensure(cfg, stage, cache, progress) for stage in plan_stages(cfg)}


def run_stage(cfg: RunConfig, kind: Kind, cache: Path, progress: Progress | None = None) -> Path:
    """Make one stage (its dependencies must be there) and return its directory; a finished one is reused."""
    stages = {stage.kind: stage for stage in plan_stages(cfg)}
    if kind not in stages:
        raise RunError(f"this run has no stage '{kind}'; it has {', '.join(stages) or 'none'}")
    return _ensure(cfg, stages[kind], cache, progress)


def stage_directories(cfg: RunConfig, cache: Path) -> dict[str, Path]:
    """kind -> directory of every stage of a run, finished or not."""
    return {stage.kind: stage.directory(cache) for stage in plan_stages(cfg)}


def stage_facts(directory: Path) -> dict[str, Any]:
    """What a finished stage recorded about itself (seconds, tokens, counts)."""
    return json.loads((directory / DONE).read_text(encoding="utf-8"))


def _ensure(cfg: RunConfig, stage: StageSpec, cache: Path, progress: Progress | None) -> Path:
    directory = stage.directory(cache)
    if (directory / DONE).is_file():
        return directory
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=f".{directory.name}.") as holder:
        temporary = Path(holder) / directory.name
        temporary.mkdir()
        started = time.perf_counter()
        facts = _MAKERS[stage.kind](cfg, cache, temporary, progress or (lambda _: None))
        facts |= {"kind": stage.kind, "id": stage.id, "spec": stage.spec}
        facts["seconds"] = time.perf_counter() - started
        atomic_write(temporary / DONE, json.dumps(facts, indent=2) + "\n")
        try:
            temporary.rename(directory)
        except OSError:  # another process finished the same stage first: its result is as good, and may be in use
            if not (directory / DONE).is_file():
                raise
    return directory


def start_directory(cfg: RunConfig, cache: Path) -> Path | None:
    """Where the policy starts from when it is not ``model.name_or_path`` itself: the supervised stage."""
    return stage_directories(cfg, cache)["sft"] / "model" if cfg.sft is not None else None


def load_start(
    cfg: RunConfig, cache: Path, *, adapter: bool = False, head: Any = "lm", lm_head: bool = False
) -> Policy:
    """The policy at step 0, without adapter unless asked for."""
    tokenizer = None
    directory = start_directory(cfg, cache)
    if directory is None and cfg.model.train_tokenizer is not None:
        tokenizer = trained_tokenizer(cfg)
    lora = cfg.lora if adapter else None
    return load_policy(
        cfg.model, lora, head=head, lm_head=lm_head, seed=cfg.seed, directory=directory, tokenizer=tokenizer
    )


def load_teacher(cfg: RunConfig, student: Policy) -> Policy:
    """The recipe's teacher, frozen.

    Raises:
        ConfigError: there is none.
        ModelError: its tokenizer is another one than the student's.
    """
    if cfg.teacher is None:
        raise ConfigError(f"algorithm '{cfg.algorithm.name}' learns from a teacher: add `teacher: MODEL` to the recipe")
    model = cfg.model.model_copy(update={"name_or_path": cfg.teacher.name_or_path, "init": "pretrained"})
    teacher = load_policy(model.model_copy(update={"train_tokenizer": None}), None, head="lm", seed=cfg.seed)
    if tokenizer_sha256(teacher.tokenizer) != tokenizer_sha256(student.tokenizer):
        raise ModelError(
            f"teacher: the tokenizer of '{cfg.teacher.name_or_path}' is not that of the policy; both must name the "
            "same tokens"
        )
    teacher.model.requires_grad_(False)
    return teacher


def trained_tokenizer(cfg: RunConfig) -> Any:
    """A byte-level BPE tokenizer of the training rows' texts (prompts and all completions)."""
    from steelyard.data.bpe import train_bpe
    from steelyard.data.sources import load_table, row_texts

    assert cfg.model.train_tokenizer is not None
    if cfg.data.path is None:
        raise DataError("model.train_tokenizer needs data.path: a built-in task has its own tokenizer")
    return train_bpe(row_texts(load_table(cfg.data)), cfg.model.train_tokenizer.vocab_size)


# --------------------------------------------------------------------------------------------------
# The stages


def _make_sft(cfg: RunConfig, cache: Path, out: Path, progress: Progress) -> dict[str, Any]:
    """Train on gold rows (or chosen completions) by the same loop; the result is the method's start."""
    from steelyard.models.load import save_policy
    from steelyard.trainer.loop import Loop
    from steelyard.trainer.sources import OfflineSource

    assert cfg.sft is not None
    seed = cfg.seed if cfg.sft.seed is None else cfg.sft.seed
    inner = cfg.model_copy(
        update={
            "algorithm": AlgorithmConfig.model_validate("sft"),
            "optim": cfg.sft.optim,
            "train": cfg.sft.train,
            "sft": None,
            "lora": None,
            "seed": seed,
        }
    )
    policy = load_start(inner, cache)
    spec = algorithms.get("sft")
    rows = training_rows(inner, spec, policy.tokenizer, None)
    source = OfflineSource(rows.groups, inner.train, seed=seed)
    loop = Loop(inner, spec, policy, source, seed=seed, progress=progress, phase="sft")
    metrics: dict[str, float] = {}
    for row in loop.steps():
        metrics = row
    save_policy(policy, out / "model")
    return {"steps": loop.total, "tokens": loop.tokens, "loss": metrics.get("loss"), "rows": rows.report}


def _make_generate(cfg: RunConfig, cache: Path, out: Path, progress: Progress) -> dict[str, Any]:
    """Sample k completions per prompt from the model under study and verify each of them."""
    settings = cfg.data.generate
    assert settings is not None
    policy = load_start(cfg, cache)
    items, verify = task_items(cfg)
    rng = np.random.default_rng([cfg.seed, 0x6E6E])
    chosen = [items[i] for i in rng.permutation(len(items))[: settings.prompts]]
    sampler = NativeSampler.of(policy)
    params = SamplingParams(
        n=settings.num_generations,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_completion_length=settings.max_completion_length,
    )
    progress({"phase": "generate", "step": 0, "total": len(chosen)})
    prompts = [prompt_ids(policy.tokenizer, item.prompt) for item in chosen]
    sampled = sampler.generate(prompts, params, seed=cfg.seed, keys=[item.id for item in chosen])
    groups, tokens, right, unscored = [], 0, 0, 0
    for item, group in zip(chosen, sampled, strict=True):
        made = judged_group(policy.tokenizer, group, item, verify)
        verdict = made.completion_columns["verdict"]
        tokens += sum(len(ids) for ids in made.completions)
        right += int((verdict == 1).sum())
        unscored += int((verdict == -1).sum())
        groups.append(made)
    text = write_groups(groups, lambda ids: completion_text(policy.tokenizer, ids))
    (out / "rows.jsonl").write_text(text, encoding="utf-8")
    total = len(groups) * settings.num_generations
    return {
        "prompts": len(groups),
        "completions": total,
        "generated_tokens": tokens,
        "right": right / total,
        "not_judged": unscored,
        "score": float(np.mean([g.completion_columns["score"].mean() for g in groups])),
        "pass_at_k": float(np.mean([bool((g.completion_columns["verdict"] == 1).any()) for g in groups])),
    }


def _selection(kind: str) -> Callable[[RunConfig, Path, Path, Progress], dict[str, Any]]:
    """The maker of a stage that selects rows from the generated samples (:mod:`steelyard.trainer.select`)."""

    def make(cfg: RunConfig, cache: Path, out: Path, progress: Progress) -> dict[str, Any]:
        settings = cfg.data.generate
        assert settings is not None
        codec = Codec(_start_tokenizer(cfg))
        directory = stage_directories(cfg, cache)["generate"]
        rows: list[Group] = []
        for index, row in enumerate(read_jsonl(directory / "rows.jsonl")):
            rng = np.random.default_rng([cfg.seed, index, 0x7A17])
            rows += SELECTIONS[kind](
                read_group(row), rng, settings, lambda ids: step_ends(ids.tolist(), codec.decode_each)
            )
        text = write_groups(rows, lambda ids: codec.decode(ids.tolist()))
        (out / "rows.jsonl").write_text(text, encoding="utf-8")
        return {
            "rows": len(rows),
            "prompts": len({group.key.rpartition("#")[0] for group in rows}),
            "completions": sum(group.k for group in rows),
        }

    return make


def _start_tokenizer(cfg: RunConfig) -> Any:
    """The tokenizer of the policy at step 0, without the policy."""
    return load_tokenizer(cfg.model) if cfg.model.train_tokenizer is None else trained_tokenizer(cfg)


def _make_reference(cfg: RunConfig, cache: Path, out: Path, progress: Progress) -> dict[str, Any]:
    """Log-probabilities of the training completions under the policy at step 0, into the shared cache."""
    policy = load_start(cfg, cache)
    stages = stage_directories(cfg, cache)
    spec = algorithms.get(cfg.algorithm.name)
    groups = training_rows(cfg, spec, policy.tokenizer, rows_stage(stages)).groups
    progress({"phase": "reference", "step": 0, "total": len(groups)})
    reference_store(cache).logps(policy, groups, tokens_per_microbatch=cfg.train.tokens_per_microbatch)
    return {"groups": len(groups), "tokens": sum(group.tokens for group in groups)}


_MAKERS: dict[str, Callable[[RunConfig, Path, Path, Progress], dict[str, Any]]] = {
    "sft": _make_sft,
    "generate": _make_generate,
    **{kind: _selection(kind) for kind in SELECTIONS},
    "reference": _make_reference,
}


def reference_store(cache: Path) -> ReferenceCache:
    """The log-prob cache that all runs under ``cache`` share."""
    return ReferenceCache(cache / "logps")
