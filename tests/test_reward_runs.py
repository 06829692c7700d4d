"""Whole runs of reward models on the embedded default: resumed exactly, saved, reported, and scored again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steelyard.config import RunConfig
from steelyard.errors import ConfigError, DataError
from steelyard.rewards.models import RewardModel
from steelyard.rundir import RunDir
from steelyard.trainer.run import execute

METHODS = ["rm", "rm_listwise", "orm", "prm", "implicit_prm", "cost_model"]
KINDS = {"orm": "outcomes", "prm": "outcomes", "implicit_prm": "outcomes"}
HEADS = {"orm": "token_score", "prm": "token_labels", "implicit_prm": "lm"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples of the start, made once."""
    return tmp_path_factory.mktemp("cache")


def config(algorithm: str, **changes: Any) -> RunConfig:
    """Four steps on the smallest model, and a short look at one task."""
    plain: dict[str, Any] = {
        "algorithm": algorithm,
        "data": {
            "task": "arithmetic",
            "limit": 64,
            "generate": {"prompts": 24, "num_generations": 6, "max_completion_length": 64},
        },
        "optim": {"learning_rate": 1e-3},
        "train": {"prompts_per_step": 4, "max_steps": 4, "tokens_per_microbatch": 4096, "save_steps": 2},
        "eval": {"tasks": ["arithmetic"], "limit": 12, "best_of": 4, "max_completion_length": 64},
    }
    return RunConfig.model_validate(plain | changes)


@pytest.mark.parametrize("algorithm", METHODS)
def test_a_reward_run(algorithm: str, cache: Path, tmp_path: Path) -> None:
    cfg = config(algorithm)
    run = execute(cfg, tmp_path / "run", cache=cache)
    facts = run.facts()
    assert facts["evaluated_by"] == "best of 4 samples of the start"
    assert 0 <= facts["metrics"]["eval/arithmetic/score"] <= facts["metrics"]["eval/arithmetic/any"]
    quality = json.loads((run.path / "quality.json").read_text())
    assert quality["reports"]["arithmetic"]["kind"] == KINDS.get(algorithm, "pairs")
    assert quality["model"]["cost"] == (algorithm == "cost_model")
    assert quality["model"]["head"] == HEADS.get(algorithm, "score")
    # what was saved scores as what was trained: the picked sample has the highest score of its item's record
    model = RewardModel.load(run.path)
    row = run.records("arithmetic")[0]
    assert len(model.score([row["prompt"]], [row["completion"]])) == 1

    class Stop(Exception):
        """Stands for a crash."""

    def crash(event: dict[str, Any]) -> None:
        if event["phase"] == "train" and event["step"] == 3:  # after the checkpoint of step 2
            raise Stop

    with pytest.raises(Stop):
        execute(cfg, tmp_path / "again", cache=cache, progress=crash)
    again = execute(cfg, tmp_path / "again", cache=cache)
    assert again.facts()["weights_sha256"] == facts["weights_sha256"]
    assert again.records("arithmetic") == run.records("arithmetic")


def steps_file(place: Path, rows: int = 60) -> Path:
    """Made-up rows with a first mistake: the step that says `bad`."""
    lines = []
    for i in range(rows):
        wrong = i % 3 if i % 2 else None
        steps = [f"step {k} is {'bad' if k == wrong else 'good'} ." for k in range(3)]
        lines.append(json.dumps({"input": f"question {i}", "steps": steps, "mistake_index": wrong}) + "\n")
    place.write_text("".join(lines))
    return place


def test_rows_are_held_out_and_reported(tmp_path: Path, cache: Path) -> None:
    file = steps_file(tmp_path / "steps.jsonl")
    changes = {
        "model": {"name_or_path": "builtin:0.1m", "init": "random", "train_tokenizer": {"vocab_size": 300}},
        "data": {"path": str(file), "columns": {"prompt": "input"}, "holdout": 0.3},
        "train": {"prompts_per_step": 16, "max_steps": 30},
        "optim": {"learning_rate": 3e-3},
        "eval": {},
    }
    run = execute(config("prm", **changes), tmp_path / "run", cache=cache)
    facts, report = run.facts(), json.loads((run.path / "quality.json").read_text())["reports"]["held_out"]
    assert report["kind"] == "steps" and "evaluated_by" not in facts
    assert facts["rows"]["rows"] + report["completions"] == 60 and 5 < report["completions"] < 35
    # what distinguishes a wrong step is one word, so it is learned: well above both baselines
    assert report["f1"] > 0.9 > report["always_wrong"]["f1"]
    assert facts["metrics"]["eval/held_out/f1"] == report["f1"]
    assert {r["item"].split("/")[0] for r in run.records("held_out")} & {f"steps.jsonl:{i}" for i in range(1, 61)}

    # the saved model alone, on a file: by `eval`, the same report; a task needs samples, which it cannot make
    base = config(
        "base",
        model=str(run.path / "model"),
        data={"path": str(file), "columns": {"prompt": "input"}},
        eval={"quality_path": str(file)},
    )
    again = execute(base, tmp_path / "eval", cache=cache)
    whole = json.loads((again.path / "quality.json").read_text())["reports"]["held_out"]
    assert whole["completions"] == 60 and whole["f1"] > 0.9
    with pytest.raises(ConfigError, match="is a reward model, which answers no task by itself"):
        execute(config("base", model=str(run.path / "model")), tmp_path / "no", cache=cache)


def test_the_split_is_a_matter_of_the_prompt(tmp_path: Path) -> None:
    from steelyard.config import DataConfig
    from steelyard.data.sources import load_table

    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"q{i % 50}", "completion": f"c{i}", "label": True} for i in range(100)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = DataConfig(path=str(file), holdout=0.25)
    train, held_out = load_table(cfg), load_table(cfg, "held_out")
    assert len(train) + len(held_out) == 100 and 10 < len(held_out) < 45
    assert not {row["prompt"] for row in train.rows} & {row["prompt"] for row in held_out.rows}
    assert [train.rows[i]["completion"] for i in range(3)] == [rows[n - 1]["completion"] for n in train.lines[:3]]
    file.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))  # their order does not matter
    assert {r["prompt"] for r in load_table(cfg, "held_out").rows} == {r["prompt"] for r in held_out.rows}
    assert len(load_table(DataConfig(path=str(file)), "held_out")) == 0
    with pytest.raises(DataError, match="not one row is kept out"):
        load_table(DataConfig(path=str(file), limit=1, holdout=1e-9), "held_out")


def test_a_run_with_a_reward_model_is_known_by_its_weights(tmp_path: Path, cache: Path) -> None:
    from steelyard.trainer.plan import run_identity_of

    for name in ("one", "two"):
        execute(config("rm", eval={}), tmp_path / name, cache=cache)
    other = execute(config("rm", eval={}, seed=1), tmp_path / "other", cache=cache)

    def identity(place: Path) -> dict[str, Any]:
        plain = {"rewards": [{"name": "model", "path": str(place)}], "data": {"task": "arithmetic"}}
        return run_identity_of(config("grpo", **plain))

    assert identity(tmp_path / "one") == identity(tmp_path / "two/model") != identity(other.path)


def test_a_policy_learns_from_a_reward_model(tmp_path: Path, cache: Path) -> None:
    reward = execute(config("rm", eval={}), tmp_path / "rm", cache=cache)
    cfg = config(
        "grpo",
        data={"task": "arithmetic", "limit": 16},
        rewards=[{"name": "model", "path": str(reward.path)}, {"name": "answer", "weight": 0.5}],
        rollout={"num_generations": 4, "max_completion_length": 48},
        train={"prompts_per_step": 4, "max_steps": 2},
        eval={},
    )
    run = execute(cfg, tmp_path / "grpo", cache=cache)
    rows = [row for row in RunDir.open(run.path).metrics() if "reward" in row]
    assert len(rows) == 2 and all("rewards/model:rm/mean" in row and "rewards/answer/mean" in row for row in rows)
