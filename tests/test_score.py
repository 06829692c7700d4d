"""Scoring text: the same number from text, from plain transformers and from the command; reward models as rewards;
best of n on tasks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from conftest import build_tokenizer
from steelyard.cli import main
from steelyard.config import EvalConfig, ModelConfig, RewardConfig
from steelyard.data.steps import join_steps, split_steps, step_ends
from steelyard.errors import ConfigError, DataError, ModelError
from steelyard.evals.reward import evaluate_by_choosing, judge_rows
from steelyard.evals.runner import evaluate_tasks
from steelyard.files import read_jsonl
from steelyard.models.heads import RewardFacts, save_facts
from steelyard.models.load import Policy, load_policy, save_policy
from steelyard.rewards.core import get_reward, score
from steelyard.rewards.models import ModelReward, RewardModel, reward_of

PROMPTS = ["w1 w2 w3", "w4", "w5 w6"]
COMPLETIONS = ["w7 w8", "w9", "w10 w11 w12"]


def saved(head: Any, source: Path, place: Path, facts: RewardFacts | None = None) -> Path:
    """A saved reward model with a fresh head that has opinions."""
    policy = load_policy(ModelConfig(name_or_path=str(source)), head=head, seed=1)
    save_policy(policy, place)
    if facts is not None:
        save_facts(facts, place)
    return place


def plain_rows(directory: Path) -> list[torch.Tensor]:
    """Prompt, completion and end token as anyone would tokenize them."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    texts = [f"{p} {c}" for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    return [torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]) for text in texts]


# --------------------------------------------------------------------------------------------------
# Text in, a number out


def test_a_score_head_is_what_plain_transformers_says(model_directory: Path, tmp_path: Path) -> None:
    place = saved("score", model_directory, tmp_path / "rm")
    plain = AutoModelForSequenceClassification.from_pretrained(place).eval()
    with torch.no_grad():
        expected = [float(plain(input_ids=row).logits[0, 0]) for row in plain_rows(place)]
    model = RewardModel.load(place)
    assert model.score(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)
    costs = RewardModel.load(saved("score", model_directory, tmp_path / "cost", RewardFacts("cost_model", cost=True)))
    assert costs.score(PROMPTS, COMPLETIONS) == pytest.approx([-value for value in expected], abs=1e-5)


def test_an_outcome_head_is_read_at_the_last_token(model_directory: Path, tmp_path: Path) -> None:
    place = saved("token_score", model_directory, tmp_path / "orm")
    plain = AutoModelForTokenClassification.from_pretrained(place).eval()
    with torch.no_grad():
        expected = [float(plain(input_ids=row).logits[0, -1, 0]) for row in plain_rows(place)]
    assert RewardModel.load(place).score(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("aggregate", ["min", "product"])
def test_a_process_head_is_read_at_the_ends_of_steps(aggregate: Any, tmp_path: Path) -> None:
    directory = arithmetic_model(tmp_path / "base")
    place = saved("token_labels", directory, tmp_path / "prm", RewardFacts("prm", "token_labels"))
    model = RewardModel.load(place, aggregate=aggregate)
    text = "5 + 3 = 8 . 8 * 2 = 16 . #### 16"
    ((total, steps),) = model.judge(["how many ?"], [text])
    plain = AutoModelForTokenClassification.from_pretrained(place).eval()
    group = model.group("how many ?", [text])
    row = torch.from_numpy(np.concatenate([group.prompt, group.completions[0]]).astype(np.int64))[None]
    with torch.no_grad():
        right = plain(input_ids=row).logits[0].softmax(-1)[len(group.prompt) :, 1]
    stop = model.policy.tokenizer.convert_tokens_to_ids(".")
    places = [*np.flatnonzero(group.completions[0] == stop).tolist(), len(group.completions[0]) - 1]
    assert len(steps) == 3 and steps == pytest.approx(right[places].tolist(), abs=1e-5)
    assert total == pytest.approx(min(steps) if aggregate == "min" else np.prod(steps))


def test_an_implicit_reward_needs_its_reference(model_directory: Path, tmp_path: Path) -> None:
    facts = RewardFacts("implicit_prm", "lm", beta=0.5)
    policy = load_policy(ModelConfig(name_or_path=str(model_directory)), seed=0)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.02)
    save_policy(policy, tmp_path / "prm")
    save_facts(facts, tmp_path / "prm")
    with pytest.raises(ModelError, match="reference was a stage of the run; name it"):
        RewardModel.load(tmp_path / "prm")
    found = RewardModel.load(tmp_path / "prm", reference=model_directory).score(PROMPTS, COMPLETIONS)
    named = RewardFacts("implicit_prm", "lm", beta=0.5, reference=str(model_directory))
    save_facts(named, tmp_path / "prm")
    assert RewardModel.load(tmp_path / "prm").score(PROMPTS, COMPLETIONS) == found
    double = RewardModel.load(tmp_path / "prm", reference=model_directory, beta=1.0).score(PROMPTS, COMPLETIONS)
    assert double == pytest.approx([2 * value for value in found], rel=1e-5)
    same = RewardModel.load(model_directory, reference=model_directory, beta=1.0)
    assert same.score(PROMPTS, COMPLETIONS) == [0.0] * 3


def test_neighbours_do_not_matter(model_directory: Path, tmp_path: Path) -> None:
    model = RewardModel.load(saved("score", model_directory, tmp_path / "rm"))
    together = model.score(PROMPTS, COMPLETIONS)
    alone = [model.score([p], [c])[0] for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)


def test_what_cannot_be_scored(model_directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a language model, not a reward model"):
        RewardModel.load(model_directory)
    with pytest.raises(ModelError, match="no such directory"):
        RewardModel.load(tmp_path / "nowhere")
    model = RewardModel.load(saved("score", model_directory, tmp_path / "rm"))
    with pytest.raises(DataError, match="3 prompts for 1 completions"):
        model.score(PROMPTS, COMPLETIONS[:1])


# --------------------------------------------------------------------------------------------------
# Steps


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("w1 w2 . w3 . w4", ["w1 w2", "w3", "w4"]),
        ("w1 w2", ["w1 w2"]),
        ("w1 . w2 .", ["w1", "w2"]),
        (". w1", ["w1"]),
    ],
)
def test_steps_of_text_and_of_tokens_are_the_same(text: str, steps: list[str]) -> None:
    tokenizer = build_tokenizer([".", "w1", "w2", "w3", "w4"])
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    decode = lambda part: str(tokenizer.decode(part, skip_special_tokens=True))  # noqa: E731
    ends = step_ends(ids, decode)
    assert split_steps(text) == steps and len(ends) == len(steps)
    parts = [decode(ids[a:b]) for a, b in zip([0, *(e + 1 for e in ends)], [e + 1 for e in ends], strict=False)]
    assert [part.strip(" .") for part in parts] == steps


def test_lines_are_steps() -> None:
    steps = ["First, 3.5 . of it", "then\nthe rest", "the answer is 7"]
    text = join_steps(steps)
    assert split_steps(text) == ["First, 3.5 . of it", "then the rest", "the answer is 7"]
    ids = [ord(c) for c in text]
    ends = step_ends(ids, lambda part: "".join(map(chr, part)))
    assert [text[e] for e in ends[:2]] == ["\n", "\n"] and ends[2] == len(text) - 1


# --------------------------------------------------------------------------------------------------
# Rewards of recipes


def test_a_reward_model_is_a_reward(model_directory: Path, tmp_path: Path) -> None:
    place = saved("score", model_directory, tmp_path / "runs" / "rm" / "model")
    reward = reward_of(RewardConfig(name="model", path=str(place)))
    assert isinstance(reward, ModelReward) and reward.model is None  # not before it is asked
    expected = RewardModel.load(place).score(PROMPTS, COMPLETIONS)
    totals, parts = score([(reward, 2.0)], PROMPTS, COMPLETIONS, [[]] * 3)
    assert totals == pytest.approx([2 * value for value in expected], abs=1e-5)
    assert list(parts) == ["model:rm"]
    assert reward(PROMPTS, ["", *COMPLETIONS[1:]], [[]] * 3)[0] is None
    assert reward_of(RewardConfig(name="answer")) == "answer"


def test_the_reward_model_of_a_recipe_needs_a_path() -> None:
    with pytest.raises(ValueError, match="needs `path`"):
        RewardConfig(name="model")
    with pytest.raises(ValueError, match="belong to the reward `model`"):
        RewardConfig(name="answer", path="runs/rm")
    with pytest.raises(ConfigError, match="needs a path"):
        get_reward("model")([], [], [])


def test_rewards_import_no_torch() -> None:
    code = "import sys, steelyard.rewards.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --------------------------------------------------------------------------------------------------
# Best of n


def arithmetic_model(place: Path) -> Path:
    """The shipped model as a directory of its own."""
    save_policy(load_policy(ModelConfig(name_or_path="builtin:0.1m"), seed=0), place)
    return place


class Oracle(RewardModel):
    """Scores by the answer that it is told: an upper bound, in place of a model."""

    def __init__(self, policy: Policy, answers: dict[str, str], sign: float = 1.0) -> None:
        super().__init__(policy, RewardFacts())
        self.answers, self.sign = answers, sign

    def scores(self, groups: Any) -> list[np.ndarray]:
        from steelyard.data.render import completion_text
        from steelyard.rewards.verifiers import verify_number

        return [
            np.array(
                [
                    self.sign
                    * bool(verify_number(completion_text(self.policy.tokenizer, ids), self.answers[g.key]).strict)
                    for ids in g.completions
                ],
                dtype=float,
            )
            for g in groups
        ]


def test_choosing_by_the_truth_finds_every_right_sample() -> None:
    from steelyard.evals.tasks import get_task

    start = load_policy(ModelConfig(name_or_path="builtin:0.1m"), seed=0)
    cfg = EvalConfig(tasks=["arithmetic"], limit=40, best_of=4, max_completion_length=64)
    answers = {item.id: item.answer for item in get_task("arithmetic").items("test", purpose="report", limit=40)}
    records: dict[str, list[dict[str, Any]]] = {}
    best, reports = evaluate_by_choosing(
        Oracle(start, answers), start, cfg, seed=0, writer=records.__setitem__, purpose="report"
    )
    worst, _ = evaluate_by_choosing(Oracle(start, answers, -1.0), start, cfg, seed=0, writer=None, purpose="report")
    name = "eval/arithmetic/"
    assert best[f"{name}score"] == best[f"{name}any"] == worst[f"{name}any"]
    assert worst[f"{name}score"] < best[f"{name}mean"] == worst[f"{name}mean"] < best[f"{name}score"]
    assert reports["arithmetic"]["accuracy"]["value"] == 1.0
    # the same measures and records as a policy's, item by item
    greedy: dict[str, list[dict[str, Any]]] = {}
    metrics = evaluate_tasks(start, cfg, seed=0, writer=greedy.__setitem__, purpose="report")
    assert metrics.keys() <= best.keys() and [r["item"] for r in records["arithmetic"]] == [
        r["item"] for r in greedy["arithmetic"]
    ]
    assert greedy["arithmetic"][0].keys() <= records["arithmetic"][0].keys()


def test_a_head_scores_every_choice() -> None:
    cfg = EvalConfig(tasks=["facts"], limit=10)
    policy = load_policy(ModelConfig(name_or_path="builtin:0.1m"), head="score", seed=0)
    model, records = RewardModel(policy, RewardFacts()), {}
    metrics, reports = evaluate_by_choosing(model, policy, cfg, seed=0, writer=records.__setitem__, purpose="report")
    assert not reports and metrics["eval/facts/n"] == 10.0
    for row in records["facts"]:
        scores = model.score([row["prompt"]] * len(row["choices"]), row["choices"])
        assert row["scores"] == pytest.approx(scores, abs=1e-5)
        assert row["score"] == int(int(np.argmax(scores)) == row["gold"])


def test_held_out_rows_of_every_kind(model_directory: Path, tmp_path: Path) -> None:
    from conftest import make_group

    pairs = [make_group([5, 6], [7, i], [8], key=f"p{i}", columns={"margin": i / 10}) for i in range(9, 20)]
    model = RewardModel.load(saved("score", model_directory, tmp_path / "rm"))
    report, records = judge_rows(model, pairs)
    assert report["kind"] == "pairs" and len(report["by_margin"]) == 4 and len(records) == 11
    assert np.mean([r["correct"] for r in records]) == report["accuracy"]["value"]
    lists = [make_group([5], [7], [8], [9], key="l", completion_columns={"score": np.array([2.0, 1.0, 1.0])})]
    report, records = judge_rows(model, lists)
    assert [r["item"] for r in records] == ["l/0>1", "l/0>2"] and report["by_margin"][0]["margin"] == [1.0, 1.0]

    outcomes = [g.replace(completion_columns={"label": np.array([True, False])}) for g in pairs]
    orm = RewardModel.load(saved("token_score", model_directory, tmp_path / "orm"))
    report, records = judge_rows(orm, outcomes)
    assert report["kind"] == "outcomes" and report["share_right"] == 0.5 and len(records) == 22

    nan = np.nan
    steps = [
        make_group([5], [7, 8, 9, 10], key="s", token_columns={"step_label": (np.array([nan, 1.0, nan, 0.0]),)}),
        make_group([5], [7, 8], key="t", token_columns={"step_label": (np.array([nan, 1.0]),)}),
    ]
    prm = RewardModel.load(saved("token_labels", model_directory, tmp_path / "prm"))
    report, records = judge_rows(prm, steps)
    assert [r["label"] for r in records] == [1.0, 0.0, 1.0] and report["completions"] == 2
    values = prm.values(steps)
    assert [r["probability"] for r in records] == [values[0][0][1], values[0][0][3], values[1][0][1]]
    with pytest.raises(DataError, match="no step labels"):
        judge_rows(prm, pairs)
    with pytest.raises(DataError, match="no held-out rows"):
        judge_rows(prm, [])


# --------------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Rows of every form that can be scored."""
    file = tmp_path / "rows.jsonl"
    content = [
        {"prompt": "w1 w2 w3", "completion": "w7 w8", "id": 1},
        {"prompt": "w4", "completions": ["w9", "w10 w11"]},
        {"prompt": "w5 w6", "chosen": "w12", "rejected": "w13 w14"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in content))
    return file


def test_score_adds_columns(model_directory: Path, tmp_path: Path, rows: Path, capsys: Any) -> None:
    place = saved("score", model_directory, tmp_path / "rm")
    assert main(["score", str(place), str(rows), "--json"]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    model = RewardModel.load(place)
    assert printed[0]["id"] == 1 and printed[0]["score"] == pytest.approx(model.score(["w1 w2 w3"], ["w7 w8"])[0])
    assert printed[1]["scores"] == pytest.approx(model.score(["w4"] * 2, ["w9", "w10 w11"]))
    sides = model.score(["w5 w6"] * 2, ["w12", "w13 w14"])
    assert [printed[2]["score_chosen"], printed[2]["score_rejected"]] == pytest.approx(sides)
    out = tmp_path / "scored.jsonl"
    assert main(["score", str(place), str(rows), "--out", str(out)]) == 0
    assert read_jsonl(out) == printed
    capsys.readouterr()
    assert main(["score", str(place), str(rows)]) == 0
    assert "1 pairs: the chosen completion scores higher" in capsys.readouterr().out
    assert main(["score", str(place), str(rows), "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_score_of_steps(model_directory: Path, tmp_path: Path, capsys: Any) -> None:
    place = saved("token_labels", model_directory, tmp_path / "prm")
    file = tmp_path / "steps.jsonl"
    file.write_text(json.dumps({"prompt": "w1", "steps": ["w2 w3", "w4"]}) + "\n")
    assert main(["score", str(place), str(file), "--json"]) == 0
    (row,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert row["score"] == min(row["step_scores"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "w1"}, "rows.jsonl:1: expected a column 'completion', 'completions' or 'steps'"),
        ({"completion": "w1"}, "rows.jsonl:1: column 'prompt': expected a string or a list of messages"),
        ({"chosen": "w1", "rejected": "w2"}, "rows.jsonl:1: no prompt, and the two sides begin differently"),
    ],
)
def test_rows_that_cannot_be_scored(
    row: dict[str, str], message: str, model_directory: Path, tmp_path: Path, capsys: Any
) -> None:
    place = saved("score", model_directory, tmp_path / "rm")
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    assert main(["score", str(place), str(file)]) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_way_of_joining_steps(capsys: Any) -> None:
    assert main(["score", "rm", "rows.jsonl", "--aggregate", "prod"]) == 2
    assert "Did you mean 'product'" in capsys.readouterr().err


@pytest.mark.parametrize("head", ["score", "token_labels"])
def test_an_empty_completion_has_a_score_too(head: str, tmp_path: Path, capsys: Any) -> None:
    place = saved(head, arithmetic_model(tmp_path / "base"), tmp_path / "rm", RewardFacts("rm", head))  # type: ignore[arg-type]
    rows = tmp_path / "rows.jsonl"
    forms = [{"completion": ""}, {"completions": ["", "#### 1"]}, {"completion": "", "steps": ["1 .", "#### 1"]}]
    rows.write_text("".join(json.dumps({"prompt": "how many ?", **form}) + "\n" for form in forms))
    assert main(["score", str(place), str(rows)]) == 0
    assert capsys.readouterr().out.count("#### 1") == 2
