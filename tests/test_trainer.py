"""The loop: any split of a step gives the same gradient; a killed and resumed run equals the uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from steelyard.algorithms import load as load_algorithms
from steelyard.algorithms.core import algorithms
from steelyard.config import RunConfig
from steelyard.errors import ConfigError, NumericalError, RunError
from steelyard.files import read_jsonl
from steelyard.models.load import load_policy
from steelyard.rundir import RunDir
from steelyard.trainer.plan import rows_stage
from steelyard.trainer.rows import training_rows
from steelyard.trainer.run import execute
from steelyard.trainer.sources import OfflineSource
from steelyard.trainer.stages import ensure_stages
from steelyard.trainer.step import StepInput, accumulate, learning_rate

load_algorithms()

FAMILY_METHODS = ["sft", "rft", "dpo", "kto", "rm", "grpo"]
"""One method of every family, and both kinds of self-made supervised rows."""

REMEMBERING: list[str | dict[str, Any]] = [
    "alpha_dpo",
    {"name": "tr_dpo", "tau": 2},
    "sampo",
    "neftune",
    {"name": "dpo_shift", "f": 0.5, "f_end": 1.0},
]
"""Methods whose step depends on more than its rows: running state, a moving reference, draws, noise, a schedule."""


def config(algorithm: str | dict[str, Any], **changes: Any) -> RunConfig:
    """A run of a few seconds: six steps on the smallest model."""
    tasks = [] if algorithm == "rm" else ["arithmetic"]
    plain: dict[str, Any] = {
        "model": {"name_or_path": "builtin:0.1m"},
        "algorithm": algorithm,
        "data": {
            "task": "arithmetic",
            "limit": 64,
            "generate": {"prompts": 24, "num_generations": 6, "max_completion_length": 64},
        },
        "optim": {"learning_rate": 1e-3},
        "train": {"prompts_per_step": 4, "max_steps": 6, "tokens_per_microbatch": 2048, "save_steps": 2},
        "rollout": {"num_generations": 4, "max_completion_length": 48},
        "eval": {"tasks": tasks, "limit": 8},
    }
    for key, value in changes.items():
        section, _, leaf = key.partition("__")
        if leaf:
            plain[section] = {**plain.get(section, {}), leaf: value}
        else:
            plain[section] = value
    return RunConfig.model_validate(plain)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared inputs of all runs of this module, made once."""
    return tmp_path_factory.mktemp("cache")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def metrics(run: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without what depends on the clock."""
    clock = {"step_time", "tokens_per_second"}
    return [{k: v for k, v in row.items() if k not in clock} for row in RunDir.open(run).metrics()]


@pytest.mark.parametrize("algorithm", ["sft", "dpo", "orpo", "kto", "rm"])
def test_any_split_of_a_step_gives_the_same_gradient(algorithm: str, cache: Path) -> None:
    cfg = config(algorithm, model__dtype="float64")
    stages = ensure_stages(cfg, cache)
    spec = algorithms.get(algorithm)
    head = "score" if spec.family == "Scores" else "lm"
    policy = load_policy(cfg.model, None, head=head, seed=0)
    rows = training_rows(cfg, spec, policy.tokenizer, stages.get("pairs"))
    attach = None
    if spec.reference == "frozen":
        from steelyard.models.reference import ReferenceCache, attach_reference

        store = ReferenceCache(cache / "logps")

        def attach(groups: Any) -> Any:
            return attach_reference(groups, store.logps(policy, groups, tokens_per_microbatch=4096))

    source = OfflineSource(rows.groups[:24], cfg.train, seed=0, attach=attach, mismatch=spec.mismatched)
    groups, _ = source.groups(0, policy)
    # Move the policy off the reference, so that no loss sits at its symmetric point.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))

    def gradient(budget: int) -> tuple[float, torch.Tensor]:
        policy.model.zero_grad()
        inputs = StepInput(policy, spec, cfg.algorithm.hyperparameters, budget)
        loss = accumulate(inputs, groups)["loss"]
        return loss, torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])

    whole_loss, whole = gradient(100_000)
    largest = max(group.tokens for group in groups)
    for budget in (largest, 2 * largest):
        loss, split = gradient(budget)
        assert loss == pytest.approx(whole_loss, rel=1e-12)
        assert float((split - whole).norm() / whole.norm()) < 1e-12


@pytest.mark.parametrize("algorithm", [*FAMILY_METHODS, *REMEMBERING], ids=str)
def test_resumed_equals_uninterrupted(algorithm: str | dict[str, Any], cache: Path, tmp_path: Path) -> None:
    cfg = config(algorithm)
    straight = execute(cfg, tmp_path / "straight", cache=cache).path

    class Stop(Exception):
        """Stands for a crash."""

    def crash(event: dict[str, Any]) -> None:
        if event["phase"] == "train" and event["step"] == 5:  # after the checkpoint of step 4
            raise Stop

    with pytest.raises(Stop):
        execute(cfg, tmp_path / "broken", cache=cache, progress=crash)
    assert RunDir.open(tmp_path / "broken").status == "failed"
    resumed = execute(cfg, tmp_path / "broken", cache=cache).path
    assert same(weights(straight), weights(resumed))
    assert metrics(straight) == metrics(resumed)


def test_lora_resumed_equals_uninterrupted_and_leaves_the_base_alone(cache: Path, tmp_path: Path) -> None:
    cfg = config("dpo", lora={"r": 4, "lora_dropout": 0.1})
    straight = execute(cfg, tmp_path / "straight", cache=cache).path

    def crash(event: dict[str, Any]) -> None:
        if event["phase"] == "train" and event["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(cfg, tmp_path / "broken", cache=cache, progress=crash)
    resumed = execute(cfg, tmp_path / "broken", cache=cache).path
    a, b = (load_file(run / "model" / "adapter_model.safetensors") for run in (straight, resumed))
    assert same(a, b)
    assert not (straight / "model" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", FAMILY_METHODS)
def test_killed_and_resumed_equals_uninterrupted(algorithm: str, cache: Path, tmp_path: Path) -> None:
    cfg = config(algorithm)
    straight = execute(cfg, tmp_path / "straight", cache=cache).path
    out = tmp_path / "killed"
    (tmp_path / "config.json").write_text(cfg.model_dump_json(by_alias=True), encoding="utf-8")
    code = (
        "import sys, json; from pathlib import Path; from steelyard.config import RunConfig; "
        "from steelyard.trainer.run import execute; "
        "cfg = RunConfig.model_validate(json.loads(Path(sys.argv[1]).read_text())); "
        "execute(cfg, Path(sys.argv[2]), cache=Path(sys.argv[3]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "config.json"), str(out), str(cache)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not (out / "checkpoint-2" / "trainer_state.json").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint within two minutes"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert RunDir.open(out).status == "running"
    resumed = execute(cfg, out, cache=cache).path
    assert same(weights(straight), weights(resumed))
    assert metrics(straight) == metrics(resumed)


def test_same_seed_same_run_other_seed_other_run(cache: Path, tmp_path: Path) -> None:
    runs = [
        execute(config("sft", seed=seed), tmp_path / name, cache=cache).path
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert same(weights(runs[0]), weights(runs[1]))
    assert not same(weights(runs[0]), weights(runs[2]))


def test_gradient_checkpointing_changes_memory_only(cache: Path, tmp_path: Path) -> None:
    runs = [
        execute(config("dpo", train__gradient_checkpointing=on), tmp_path / str(on), cache=cache).path
        for on in (False, True)
    ]
    plain, recomputed = (weights(run) for run in runs)
    assert all(torch.allclose(plain[k], recomputed[k], atol=1e-6) for k in plain)


def test_a_finished_run_is_returned_and_never_overwritten(cache: Path, tmp_path: Path) -> None:
    cfg = config("sft", train__max_steps=1)
    first = execute(cfg, tmp_path / "run", cache=cache)
    stamp = (first.path / "run.json").stat().st_mtime_ns
    again = execute(cfg, tmp_path / "run", cache=cache)
    assert (again.path / "run.json").stat().st_mtime_ns == stamp
    with pytest.raises(RunError, match="another"):
        execute(config("sft", train__max_steps=2), tmp_path / "run", cache=cache)


def test_base_only_evaluates(cache: Path, tmp_path: Path) -> None:
    run = execute(config("base"), tmp_path / "base", cache=cache)
    facts = run.facts()
    assert facts["steps"] == 0 and facts["given"] == []
    assert "eval/arithmetic/score" in facts["metrics"]
    assert len(run.records("arithmetic")) == 8


def test_nan_stops_the_run_and_marks_it(cache: Path, tmp_path: Path) -> None:
    cfg = config("sft", optim__learning_rate=1e30, train__max_steps=6)
    with pytest.raises(NumericalError, match="not finite|norm is"):
        execute(cfg, tmp_path / "nan", cache=cache)
    facts = json.loads((tmp_path / "nan" / "run.json").read_text())
    assert facts["status"] == "failed" and "NumericalError" in facts["error"]
    assert not (tmp_path / "nan" / "model").exists()


@pytest.mark.parametrize("algorithm", ["odpo", "step_dpo", "pl_dpo", "rm_listwise", "orm", "implicit_prm", "prm"])
def test_every_selection_can_be_trained_on(algorithm: str, cache: Path, tmp_path: Path) -> None:
    cfg = config(algorithm, eval={}, train__max_steps=2)
    run = execute(cfg, tmp_path / "run", cache=cache)
    rows = run.facts()["rows"]
    assert rows["source"] == "own samples" and rows["kept"] > 4
    spec = algorithms.get(algorithm)
    tokenizer = load_policy(cfg.model, None, head="lm", seed=0).tokenizer
    made = training_rows(cfg, spec, tokenizer, rows_stage(ensure_stages(cfg, cache)))
    assert made.sha256 == run.facts()["data_sha256"]
    if algorithm == "prm":  # labels survive the way to disk and back
        labels = np.concatenate([values for group in made.groups for values in group.token_columns["step_label"]])
        assert {0.0, 1.0} == set(labels[~np.isnan(labels)].tolist())


def test_whole_texts_train_on_prompts_too(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "one two ?", "completion": "three"}\n' * 4, encoding="utf-8")
    tokenizer = load_policy(config("sft").model, None, head="lm", seed=0).tokenizer
    prompts = {
        name: training_rows(config(name, data={"path": str(tmp_path / "rows.jsonl")}), spec, tokenizer, None).groups[0]
        for name in ("sft", "cpt")
        for spec in [algorithms.get(name)]
    }
    assert len(prompts["sft"].prompt) > 1 == len(prompts["cpt"].prompt)
    assert prompts["sft"].tokens == prompts["cpt"].tokens == prompts["cpt"].scored + 1


def test_pairs_on_a_task_need_generation() -> None:
    from steelyard.trainer.plan import plan_stages

    with pytest.raises(ConfigError, match="data.generate"):
        plan_stages(config("dpo", data={"task": "arithmetic"}))


def test_offline_methods_of_a_seed_share_their_inputs() -> None:
    from steelyard.trainer.plan import plan_stages

    def ids(algorithm: str, seed: int = 0) -> dict[str, str]:
        return {stage.kind: stage.id for stage in plan_stages(config(algorithm, seed=seed))}

    assert ids("dpo") == ids("ipo") == ids("kto")
    assert ids("simpo") == {k: v for k, v in ids("dpo").items() if k != "reference"}
    assert ids("rft")["generate"] == ids("dpo")["generate"]
    assert ids("dpo", seed=1)["generate"] != ids("dpo")["generate"]


def test_whatever_changes_an_input_changes_its_id(tmp_path: Path) -> None:
    from steelyard.trainer.plan import plan_stages, run_identity_of

    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0].content }}", encoding="utf-8")
    plain = {
        "model": {"name_or_path": "builtin:0.5m", "init": "random", "train_tokenizer": {"vocab_size": 300}},
        "data": {"path": "data:hh_harmless_base_train"},
        "sft": {"train": {"max_steps": 1}},
    }

    def ids(**changes: Any) -> tuple[list[str], str]:
        cfg = config("dpo", **{**plain, **changes})
        return [stage.id for stage in plan_stages(cfg)], json.dumps(run_identity_of(cfg), sort_keys=True)

    first = ids()
    templated = ids(model={**plain["model"], "chat_template": str(template)})
    assert templated[0][0] != first[0][0] and templated[1] != first[1]
    template.write_text("{{ messages[-1].content }}", encoding="utf-8")
    assert ids(model={**plain["model"], "chat_template": str(template)}) != templated
    shared = ids(sft={"train": {"max_steps": 1}, "seed": 5})[0][0]
    assert ids(sft={"train": {"max_steps": 1}, "seed": 5}, seed=3)[0][0] == shared  # one start for all seeds


def test_generated_rows_do_not_depend_on_where_the_file_lies(cache: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"tom has {n} apples .", "answer": str(n)} for n in range(2, 10)]
    results = []
    for folder in ("a", "b"):
        path = tmp_path / folder / f"{folder}.jsonl"
        path.parent.mkdir()
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        data = {"path": str(path), "generate": {"prompts": 8, "num_generations": 4, "max_completion_length": 24}}
        stages = ensure_stages(config("rft", data=data), tmp_path / folder / "cache")
        results.append([row["completion_ids"] for row in read_jsonl(stages["generate"] / "rows.jsonl")])
    assert results[0] == results[1]


def test_unscorable_completions_are_no_items_of_the_loss(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steelyard.rewards.core import rewards

    def picky(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float | None]:
        """Judges no completion of every second prompt, and not the first one of the others."""
        return [None if i % 8 < 5 else float(i % 2) for i in range(len(completions))]

    rewards.register("picky", picky)
    found = {}
    for budget in (16384, 400):  # the second budget makes micro-batches without a single judged completion
        cfg = config("grpo", rewards=[{"name": "picky"}], train__tokens_per_microbatch=budget, train__max_steps=2)
        found[budget] = metrics(execute(cfg, tmp_path / str(budget), cache=cache).path)
    for whole, split in zip(found[16384], found[400], strict=True):
        assert split.keys() == whole.keys()
        for key, value in whole.items():
            assert split[key] == pytest.approx(value, rel=1e-3, abs=1e-5), key
    assert found[400][0]["rewards/unscored"] == 10


def test_online_methods_are_judged_by_the_tasks_own_verifier(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    from steelyard.evals.task import Verdict, tasks

    task = tasks.get("arithmetic")
    verdicts: list[str] = []

    def never(text: str, item: Any) -> Verdict:
        verdicts.append(item.id)
        return Verdict(False, False)

    monkeypatch.setitem(tasks._entries, "arithmetic", dataclasses.replace(task, verify=never))
    run = execute(config("grpo", train__max_steps=1, eval__tasks=[]), tmp_path / "run", cache=cache)
    assert run.metrics()[0]["reward"] == 0.0 and len(verdicts) == 16


def test_learning_rate_shapes() -> None:
    from steelyard.config import OptimConfig

    linear = OptimConfig(learning_rate=1.0, lr_scheduler_type="linear", warmup_ratio=0.2)
    assert [round(learning_rate(linear, s, 10), 4) for s in (0, 1, 2, 6, 9)] == [0.5, 1.0, 1.0, 0.5, 0.125]
    cosine = OptimConfig(learning_rate=1.0, warmup_ratio=0.0)
    assert learning_rate(cosine, 5, 10) == pytest.approx(0.5)
    constant = OptimConfig(learning_rate=1.0, lr_scheduler_type="constant", warmup_ratio=0.0)
    assert {learning_rate(constant, s, 10) for s in range(10)} == {1.0}
