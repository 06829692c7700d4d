"""Rounds on rows whose answers cannot be verified, or are not there at all; and the rows that every step writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import make_group
from steelyard.algorithms import load as load_algorithms
from steelyard.algorithms import rounds
from steelyard.algorithms.core import algorithms
from steelyard.config import RunConfig
from steelyard.errors import ConfigError, DataError, RunError
from steelyard.evals.tasks import get_task
from steelyard.files import read_jsonl
from steelyard.models.load import load_policy
from steelyard.rundir import RunDir
from steelyard.trainer.judge import Judge
from steelyard.trainer.needs import check_needs
from steelyard.trainer.rounds import StepRows
from steelyard.trainer.rows import read_group, write_groups
from steelyard.trainer.run import execute
from steelyard.trainer.writing import Writers
from test_rounds import Stop, config, facts, judged, logprobs, rng, same, tokens, weights

load_algorithms()

SCORE_FREE = sorted(name for name, spec in algorithms.items() if spec.rounds is not None and not spec.rounds.judged)
EVERY_STEP = sorted(name for name, spec in algorithms.items() if spec.rounds is not None and spec.rounds.rounds is None)
NAN = float("nan")


def rows_of(path: Path, answers: list[str | None], *, pairs: bool = False) -> dict[str, Any]:
    """Rows of the arithmetic task as a file, with these answers: None is right, "" is no answer."""
    items = get_task("arithmetic").items("train", purpose="train", limit=len(answers) + 1)
    rows = []
    for item, other, answer in zip(items, items[1:], answers, strict=False):
        gold = {"chosen": item.completion, "rejected": other.completion} if pairs else {"completion": item.completion}
        given = {"answer": item.answer if answer is None else answer} if answer != "" else {}
        rows.append({"prompt": item.prompt, **gold, **given})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    how = {"num_generations": 4, "temperature": 3.0, "max_completion_length": 48}  # warm: not every sample is gold
    return {"path": str(path), "generate": {"prompts": len(rows), **how}}


def short(algorithm: str, data: dict[str, Any], **changes: Any) -> RunConfig:
    """Two steps (with hyperparameter `rounds` there is one round) on the rows of a file."""
    hp = {"rounds": 1} if "rounds" in algorithms.get(algorithm).hyperparameters else {}
    train = {"prompts_per_step": 2, "max_steps": 2, "tokens_per_microbatch": 2048}
    return config(algorithm, hp, data=data, train=train, **changes)


# --------------------------------------------------------------------------------------------------
# The judge and the selections


def test_a_rows_own_completion_is_never_left_out(tokenizer: Any) -> None:
    rows = [make_group([1], key=key).replace(columns={"answer": a}) for key, a in (("a", "1"), ("b", "none"))]
    written = [make_group([1], [4, 5], [6], key=key) for key in "ab"]
    written = [group.replace(completion_columns={"finished": np.ones(2, bool)}) for group in written]
    judge = Judge(tokenizer, [("answer", 1.0)], verifying=True, gold={"b": np.array([4])})
    one, other = judge(rows, written)
    assert one.k == 2 and one.completion_columns["verdict"].tolist() == [0, 0] and other.k == 0
    one, other = judge(rows, written, keep=True)
    assert one.k == other.k == 2 and other.completion_columns["verdict"].tolist() == [-1, -1]
    assert np.isnan(other.completion_columns["score"]).all()  # likeness to gold is no verdict
    assert [group.k for group in judge(rows[1:], written[1:])] == [0] and "none of 2 completions" in judge.reason
    free = Judge(tokenizer, [("answer", 1.0)], verifying=True, required=False)
    rows[1] = rows[1].replace(columns={})  # one row has an answer, the other has not even the column
    assert [g.completion_columns["verdict"].tolist() for g in free(rows, written)] == [[0, 0], [-1, -1]]


@pytest.mark.parametrize(
    ("scores", "kept"),
    [([0.5, 0.2, 1.0], []), ([NAN, 0.2, 1.0], [3, 4]), ([0.5, NAN, 1.0], []), ([0.5, 0.2, NAN], [3, 4])],
)
def test_a_pair_that_cannot_be_compared_stays(scores: list[float], kept: list[int]) -> None:
    made = rounds.filtered(judged(scores, [0, 0, 1]), rng=rng(), threshold=0.0)
    assert [token for pair in made for token in tokens(pair)] == kept
    made = rounds.filtered(judged(scores[:2], [0, 0]), rng=rng(), threshold=0.0)  # the sample was left out
    assert [tokens(pair) for pair in made] == [[3, 4]]


def test_unknown_scores_survive_the_disk() -> None:
    group = judged([0.5, NAN])
    read = read_group(json.loads(write_groups([group], str)))
    for name, values in group.completion_columns.items():
        np.testing.assert_array_equal(read.completion_columns[name], values)
    assert rounds.keep_all(read, rng=rng())[0].completion_columns["reward"].tolist() == [0.5, 0.0]


# --------------------------------------------------------------------------------------------------
# Whole runs on a file


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared inputs of all runs of this module."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("algorithm", [*SCORE_FREE, "filtered_dpo", "rest", "raft", "nash_md"])
def test_one_answer_that_is_no_number(algorithm: str, cache: Path, tmp_path: Path) -> None:
    data = rows_of(tmp_path / "rows.jsonl", [None, "many"], pairs=algorithm == "filtered_dpo")
    run = execute(short(algorithm, data), tmp_path / "run", cache=cache)
    last = [row for row in run.metrics() if "loss" in row][-1]
    assert run.status == "finished" and last["rewards/unscored"] > 0
    if algorithm in ("spin", "filtered_dpo"):  # the row that cannot be judged is trained on, gold side first
        rows = read_jsonl(run.path / "rounds" / "round-1" / "rows.jsonl")
        assert {row["columns"]["answer"] for row in rows} >= {"many"}
        name = "chosen" if algorithm == "filtered_dpo" else "completion"
        assert all(row["completions"][0].strip() == row["columns"][name].strip() for row in rows)


@pytest.mark.parametrize("answer", ["many", ""])
@pytest.mark.parametrize("algorithm", SCORE_FREE)
def test_methods_without_scores_need_no_answers(algorithm: str, answer: str, cache: Path, tmp_path: Path) -> None:
    data = rows_of(tmp_path / "rows.jsonl", [answer, answer])
    run = execute(short(algorithm, data), tmp_path / "run", cache=cache)
    rows = [row for row in run.metrics() if "loss" in row]
    assert len(rows) == 2 and all(np.isfinite(row["loss"]) and "reward" not in row for row in rows)
    made = [json.loads(line) for f in (run.path / "rounds").rglob("rows.jsonl") for line in f.open()]
    assert made and {v for row in made for v in row["completion_columns"]["verdict"]} == {-1}


@pytest.mark.parametrize("algorithm", ["raft", "filtered_dpo", "online_dpo"])
def test_methods_that_need_scores_say_so(algorithm: str, cache: Path, tmp_path: Path) -> None:
    data = rows_of(tmp_path / "rows.jsonl", ["many", "few"], pairs=algorithm == "filtered_dpo")
    message = rf"(round|step) 1.*'{algorithm}' needs scores, and no completion of \d+ prompts.*none of \d+ completions"
    with pytest.raises(DataError, match=message):
        execute(short(algorithm, data), tmp_path / "run", cache=cache)


def only_gold(group: Any) -> Any:
    """The group as if all its completions had said what the first, its own, says."""
    unknown = (np.full(len(group.completions[0]), NAN, np.float32),) * group.k
    same_text = {"completions": group.completions[:1] * group.k, "masks": group.masks[:1] * group.k}
    return group.replace(**same_text, token_columns={"behaviour": unknown})


def gold_from(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """From round ``first`` (counted from 0) on, every sample of a score-free method is the row's own completion."""
    real = Writers.sample

    def sample(self: Writers, rows: Any, policy: Any, *, number: int, version: int) -> Any:
        groups, found = real(self, rows, policy, number=number, version=version)
        if number < first:
            return groups, found
        return [only_gold(group) for group in groups], found

    monkeypatch.setattr(Writers, "sample", sample)


def test_self_play_ends_when_every_sample_is_gold(monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path) -> None:
    cfg = config("spin", {"rounds": 3}, train__save_steps=1)
    gold_from(monkeypatch, 2)
    run = execute(cfg, tmp_path / "straight", cache=cache)
    found = run.facts()
    why = "round 3 of 3 gave no rows (no sample differs from its row's own completion)"
    assert found["ended_early"] == f"{why}: training ended after step 4 of 6" and found["steps"] == 4
    assert (run.path / "model").is_dir() and "ended_early" not in run.path.joinpath("metrics.jsonl").read_text()
    assert read_jsonl(run.path / "rounds" / "round-3" / "rows.jsonl") == []
    RunDir.open(run.path).verify()

    def crash(event: dict[str, Any]) -> None:
        if event["phase"] == "evaluate":  # the last checkpoint is that of the last step
            raise Stop

    with pytest.raises(Stop):
        execute(cfg, tmp_path / "broken", cache=cache, progress=crash)
    again = execute(cfg, tmp_path / "broken", cache=cache)
    assert same(weights(run.path), weights(again.path)) and facts(run.path) == facts(again.path)
    same_facts = ("ended_early", "steps", "weights_sha256")
    assert all(found[name] == again.facts()[name] for name in same_facts)
    assert found["cost"]["generated_tokens"] == again.facts()["cost"]["generated_tokens"]


def test_self_play_on_what_the_model_knows_by_heart_is_an_error(
    monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path
) -> None:
    gold_from(monkeypatch, 0)
    with pytest.raises(RunError, match=r"round 1 of 2.*'spin' found nothing.*no sample differs.*does not know yet"):
        execute(config("spin", {"rounds": 2}), tmp_path / "run", cache=cache)


def test_rft_refuses_rows_that_nobody_sampled(tmp_path: Path) -> None:
    data = rows_of(tmp_path / "rows.jsonl", [None, None])
    check_needs(RunConfig.model_validate({"algorithm": "rft", "data": data}))
    del data["generate"]
    with pytest.raises(ConfigError, match=r"own verified samples.*add a `data.generate`.*or use `sft`"):
        check_needs(RunConfig.model_validate({"algorithm": "rft", "data": data}))
    check_needs(RunConfig.model_validate({"algorithm": "sft", "data": data}))


# --------------------------------------------------------------------------------------------------
# The rows of every step


@pytest.mark.parametrize("algorithm", EVERY_STEP)
def test_every_step_writes_what_it_trained_on(algorithm: str, cache: Path, tmp_path: Path) -> None:
    cfg = config(algorithm, train__save_total_limit=None, train__max_steps=4)
    run = execute(cfg, tmp_path / "run", cache=cache)
    rows = read_jsonl(run.path / "rounds" / "rows.jsonl")
    assert [*dict.fromkeys(row["step"] for row in rows)] == [1, 2, 3, 4]
    assert all(row["policy_version"] == row["step"] - 1 for row in rows)
    logged = {row["global_step"]: row["rounds/rows"] for row in run.metrics() if "loss" in row}
    assert {step: sum(row["step"] == step for row in rows) for step in logged} == logged
    assert "rounds/rows.jsonl" in run.facts()["files"]
    # What the policy wrote in step 3 has the log-probabilities of the checkpoint after step 2.
    if algorithm in ("online_dpo", "opd", "nash_md"):
        saved = cfg.model.model_copy(update={"name_or_path": str(run.path / "checkpoint-2")})
        row = next(row for row in rows if row["step"] == 3)
        ids = torch.tensor(row["completion_ids"][0])
        found = logprobs(load_policy(saved, None, seed=0), np.array(row["prompt_ids"]), ids.numpy())
        written = torch.tensor(row["token_columns"]["behaviour"][0]).double()
        torch.testing.assert_close(written, found.gather(-1, ids[:, None])[:, 0], atol=1e-4, rtol=0)
    with (run.path / "rounds" / "rows.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(RunError, match="rows.jsonl: changed"):
        RunDir.open(run.path).verify()


@pytest.mark.parametrize("algorithm", ["online_dpo", "gkd"])
def test_resumed_rows_are_those_of_an_uninterrupted_run(algorithm: str, cache: Path, tmp_path: Path) -> None:
    cfg = config(algorithm, train__save_steps=2, train__max_steps=5)
    straight = execute(cfg, tmp_path / "straight", cache=cache).path

    def crash(event: dict[str, Any]) -> None:
        if event["phase"] == "train" and event["step"] == 4:  # the rows of steps 3 and 4 lie after the checkpoint
            raise Stop

    with pytest.raises(Stop):
        execute(cfg, tmp_path / "broken", cache=cache, progress=crash)
    file = tmp_path / "broken" / "rounds" / "rows.jsonl"
    assert max(row["step"] for row in read_jsonl(file)) == 4
    with file.open("a") as torn:
        torn.write('{"step": 5, "key"')
    resumed = execute(cfg, tmp_path / "broken", cache=cache).path
    assert file.read_bytes() == (straight / "rounds" / "rows.jsonl").read_bytes()
    assert same(weights(straight), weights(resumed)) and facts(straight) == facts(resumed)
    RunDir.open(resumed).verify()


def test_rows_that_are_not_all_there_are_not_continued(tmp_path: Path) -> None:
    group = judged([0.5])
    StepRows(tmp_path / "rows.jsonl").append(1, [group, group], str)
    whole = StepRows(tmp_path / "rows.jsonl")
    whole.append(2, [group], str)
    whole.append(3, [group], str)
    text = (tmp_path / "rows.jsonl").read_text()
    StepRows(tmp_path / "rows.jsonl").append(3, [group], str)
    assert (tmp_path / "rows.jsonl").read_text() == text
    with pytest.raises(RunError, match=r"end after step 3, so the run cannot go on after step 4"):
        StepRows(tmp_path / "rows.jsonl").append(5, [group], str)
    (tmp_path / "rows.jsonl").write_text(re.sub("key", "", text, count=1).replace('"step": 2', "?"))
    with pytest.raises(RunError, match="damaged after step 1"):
        StepRows(tmp_path / "rows.jsonl").append(4, [group], str)
    StepRows(tmp_path / "rows.jsonl").append(1, [group, group], str)  # a run that starts over
    assert text.startswith((tmp_path / "rows.jsonl").read_text())
