"""Evaluation: what is counted, against plain transformers and by hand."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from conftest import build_model, build_tokenizer, make_group
from steelyard.config import EvalConfig
from steelyard.data.render import completion_ids, prompt_ids
from steelyard.errors import ConfigError, DataError, NumericalError
from steelyard.evals import runner
from steelyard.evals.runner import evaluate_preferences, evaluate_tasks
from steelyard.evals.task import Item, Task, Verdict, tasks
from steelyard.evals.tasks import get_task
from steelyard.models.attention import PACKED, standard_attention
from steelyard.models.load import Policy
from steelyard.rewards.verifiers import verify_number
from steelyard.types import Group

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}w90 {{ m['content'] }} w91 "
    "{% else %}{{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)


def make_policy(*, packed: bool = True, template: str | None = TEMPLATE, **options: object) -> Policy:
    model = build_model(**options)  # type: ignore[arg-type]
    if packed:
        model.set_attn_implementation(PACKED)
    return Policy(model, build_tokenizer(template=template), packed, "", {}, Path("tiny"))


@pytest.fixture(scope="module")
def policy() -> Policy:
    return make_policy()


@pytest.fixture
def task(request: pytest.FixtureRequest):
    """Registers tasks for one test."""
    names: list[str] = []

    def register(task: Task) -> Task:
        names.append(task.name)
        return tasks.register(task.name, task)

    yield register
    for name in names:
        tasks._entries.pop(name)


class Records:
    """A writer that keeps what it is given."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict]] = {}

    def __call__(self, name: str, rows: list[dict]) -> None:
        assert name not in self.rows
        self.rows[name] = json.loads(json.dumps(rows))  # records must be plain JSON


def choice_task(count: int = 7, **changes: object) -> Task:
    rng = np.random.default_rng(0)
    items = []
    for i in range(count):
        words = [" ".join(f"w{w}" for w in rng.integers(0, 80, n)) for n in (3, 1, 2, 4, 2)]
        items.append(Item(f"c{i}", words[0], words[1 + i % 4], choices=tuple(words[1:])))
    task = Task("test-choice", "1", "choice", "development", load=lambda split: items)
    return replace(task, **changes)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------
# Multiple choice


@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_choices_are_scored_by_loglikelihood(task, template: str | None) -> None:
    items = task(choice_task()).load("test")
    cfg = EvalConfig(tasks=["test-choice"])
    results = []
    for packed in (True, False):
        policy, records = make_policy(packed=packed, template=template), Records()
        metrics = evaluate_tasks(policy, cfg, seed=0, writer=records, purpose="report")
        results.append(records.rows["test-choice"])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one["logps"], other["logps"], atol=1e-9)
    rows = results[0]
    for row, item in zip(rows, items, strict=True):
        expected = []
        for choice in item.choices:
            prompt = prompt_ids(policy.tokenizer, item.prompt)
            answer = completion_ids(policy.tokenizer, item.prompt, choice, eos=False)
            assert len(answer) == len(choice.split())
            ids = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))
            with standard_attention(policy.model), torch.no_grad():
                logp = policy.model(input_ids=ids[None]).logits[0].log_softmax(-1)
            expected.append(float(logp[len(prompt) - 1 : -1].gather(1, ids[len(prompt) :, None]).sum()))
        np.testing.assert_allclose(row["logps"], expected, atol=1e-6)
        per_token = [v / len(c.split()) for v, c in zip(expected, item.choices, strict=True)]
        gold = item.choices.index(item.answer)
        assert row["gold"] == gold and row["score"] == int(np.argmax(expected) == gold)
        assert row["acc_norm"] == int(np.argmax(per_token) == gold)
        assert row["item"] == item.id and row["role"] == "development" and row["split"] == "test"
    assert metrics["eval/test-choice/score"] == pytest.approx(np.mean([row["score"] for row in rows]))
    assert metrics["eval/test-choice/acc_norm"] == pytest.approx(np.mean([row["acc_norm"] for row in rows]))
    assert metrics["eval/test-choice/n"] == 7 and metrics["eval/test-choice/unscored"] == 0


def test_a_model_without_an_opinion_gets_no_choice_right(task) -> None:
    items = [Item(f"t{i}", "w1", "w2", choices=("w2", "w3")) for i in range(4)]
    task(replace(choice_task(), load=lambda split: items))
    policy = make_policy()
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.zero_()
    metrics = evaluate_tasks(policy, EvalConfig(tasks=["test-choice"]), seed=0, writer=None, purpose="report")
    assert metrics["eval/test-choice/score"] == 0 and metrics["eval/test-choice/acc_norm"] == 0


def test_choice_items_that_make_no_sense_are_refused(task, policy: Policy) -> None:
    cfg = EvalConfig(tasks=["test-choice"])
    bad = [Item("a", "w1", "w9", choices=("w2", "w3"))]
    task(choice_task(load=lambda split: bad))
    with pytest.raises(DataError, match="item a: the answer 'w9' is not among its choices"):
        evaluate_tasks(policy, cfg, seed=0, writer=None, purpose="report")
    bad[:] = []
    with pytest.raises(DataError, match="'test' has no items"):
        evaluate_tasks(policy, cfg, seed=0, writer=None, purpose="report")


def test_nan_is_an_error_and_not_a_wrong_answer(task) -> None:
    task(choice_task())
    policy = make_policy()
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(NumericalError, match="item c0"):
        evaluate_tasks(policy, EvalConfig(tasks=["test-choice"]), seed=0, writer=None, purpose="report")


# --------------------------------------------------------------------------------------------------
# Generative


def test_answers_are_greedy_and_the_model_is_untouched(task) -> None:
    items = [Item(f"g{i}", " ".join(f"w{i + j}" for j in range(i + 1)), "5") for i in range(5)]
    task(
        Task(
            "test-generative",
            "2",
            "generative",
            "development",
            lambda split: items,
            lambda t, i: Verdict(False, True),
        )
    )
    policy, records = make_policy(dtype=torch.float32), Records()
    policy.model.train()
    cfg = EvalConfig(tasks=["test-generative"], max_completion_length=9, limit=4)
    metrics = evaluate_tasks(policy, cfg, seed=0, writer=records, purpose="report")
    assert policy.model.training and policy.model.config._attn_implementation == PACKED
    policy.model.eval()
    rows = records.rows["test-generative"]
    assert [row["item"] for row in rows] == ["g0", "g1", "g2", "g3"]
    for row, item in zip(rows, items, strict=False):
        ids = torch.from_numpy(prompt_ids(policy.tokenizer, item.prompt).astype(np.int64))[None]
        with standard_attention(policy.model):
            out = policy.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=9)
        reference = out[0, ids.shape[1] :]
        assert row["completion"] == policy.tokenizer.decode(reference, skip_special_tokens=True)
        assert row["length"] == len(reference) and row["truncated"] == int(reference[-1] != 2)
        assert row["prompt"] == item.prompt and row["answer"] == "5" and row["version"] == "2"
    assert metrics["eval/test-generative/score"] == 0 and metrics["eval/test-generative/flexible"] == 1


def canned(tokenizer, answers: dict[str, tuple[str, bool]]) -> type:
    """A sampler that gives prepared answers, in order: text and whether the end token came."""

    class Canned:
        @classmethod
        def of(cls, policy: object) -> object:
            return cls()

        def generate(self, prompts, params, *, seed, keys) -> list[Group]:
            groups = []
            for prompt, key in zip(prompts, keys, strict=True):
                text, finished = answers[key]
                ids = tokenizer.convert_tokens_to_ids(text.split()) + [2] * finished
                group = make_group(prompt, ids, key=key)
                groups.append(group.replace(completion_columns={"finished": np.array([finished])}))
            return groups

    return Canned


def test_every_kind_of_answer_is_counted_where_it_belongs(task, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["####", "5", "6", "it", "is"]
    answers = {
        "right": ("#### 5", True),
        "unformatted": ("it is 5", True),
        "wrong": ("#### 6", True),
        "empty": ("", True),
        "cut": ("it is", False),
        "unjudged": ("#### 5", True),
        "crashed": ("#### 5", True),
    }
    gold = {"unjudged": "?", "crashed": "!"}

    def verify(text: str, item: Item) -> Verdict:
        if item.answer == "!":
            raise TimeoutError("too slow")
        return verify_number(text, item.answer)

    items = [Item(name, "it", gold.get(name, "5")) for name in answers]
    task(Task("test-counts", "1", "generative", "development", lambda split: items, verify))
    policy = make_policy()
    policy.tokenizer = build_tokenizer(words)
    monkeypatch.setattr(runner, "NativeSampler", canned(policy.tokenizer, answers))
    records = Records()
    metrics = evaluate_tasks(policy, EvalConfig(tasks=["test-counts"]), seed=0, writer=records, purpose="report")
    found = {name.split("/")[-1]: value for name, value in metrics.items()}
    assert found == pytest.approx(
        {
            "score": 1 / 5,  # of those that could be judged
            "strict": 1 / 5,
            "flexible": 2 / 5,
            "truncated": 1 / 7,
            "empty": 1 / 7,
            "unscored": 2 / 7,
            "length": np.mean([3, 4, 3, 1, 2, 3, 3]),
            "n": 7,
        }
    )
    rows = {row["item"]: row for row in records.rows["test-counts"]}
    assert rows["unjudged"]["score"] is None and rows["crashed"]["error"] == "TimeoutError: too slow"
    assert rows["empty"]["score"] == 0 and rows["empty"]["empty"] == 1 and rows["cut"]["truncated"] == 1

    items[:] = [item for item in items if item.id in gold]
    with pytest.raises(DataError, match="none of 2 answers could be judged.*TimeoutError"):
        evaluate_tasks(policy, EvalConfig(tasks=["test-counts"]), seed=0, writer=None, purpose="report")


def test_unseen_tasks_and_test_splits_are_only_reported(task, policy: Policy) -> None:
    task(choice_task(role="unseen"))
    selection = EvalConfig(tasks=["test-choice"], split="selection")
    with pytest.raises(ConfigError, match="is unseen"):
        evaluate_tasks(policy, selection, seed=0, writer=None, purpose="select")
    assert evaluate_tasks(policy, selection, seed=0, writer=None, purpose="report")
    with pytest.raises(ConfigError, match="the test split may be reported"):
        evaluate_tasks(policy, EvalConfig(tasks=["arithmetic"]), seed=0, writer=None, purpose="select")
    with pytest.raises(ConfigError, match="eval.tasks: unknown task 'arithmetc'.*Did you mean 'arithmetic'"):
        evaluate_tasks(policy, EvalConfig(tasks=["arithmetc"]), seed=0, writer=None, purpose="report")


# --------------------------------------------------------------------------------------------------
# Preferences


def preference_groups(count: int = 9) -> list[Group]:
    rng = np.random.default_rng(0)
    groups = []
    for i in range(count):
        prompt, chosen, rejected = (rng.integers(3, 97, n).tolist() for n in rng.integers(2, 9, 3))
        group = make_group(prompt, chosen, rejected, key=f"pairs:{i}")
        masks = tuple(np.arange(len(mask)) != 1 for mask in group.masks)  # an unscored token inside
        ref = tuple(np.where(mask, rng.normal(-3, 1, len(mask)), np.nan).astype(np.float32) for mask in masks)
        groups.append(group.replace(masks=masks, token_columns={"ref": ref}))
    twin = make_group([5, 6], [7, 8], [7, 8], key="pairs:tie")
    tie = tuple(np.zeros(2, dtype=np.float32) for _ in range(2))
    return [*groups, twin.replace(token_columns={"ref": tie})]


@pytest.mark.parametrize("packed", [True, False])
def test_preferences_by_logprob_and_by_logratio(packed: bool) -> None:
    policy, records, groups = make_policy(packed=packed), Records(), preference_groups()
    metrics = evaluate_preferences(policy, groups, writer=records, head="lm")
    rows = records.rows["preferences"]
    by_logprob, by_ratio = [], []
    for row, group in zip(rows, groups, strict=True):
        sums, ratios = [], []
        columns = zip(group.completions, group.masks, group.token_columns["ref"], strict=True)
        for completion, mask, ref in columns:
            ids = torch.from_numpy(np.concatenate([group.prompt, completion]).astype(np.int64))
            with standard_attention(policy.model), torch.no_grad():
                logp = policy.model(input_ids=ids[None]).logits[0, len(group.prompt) - 1 : -1].log_softmax(-1)
            values = logp.gather(1, ids[len(group.prompt) :, None])[:, 0].numpy()[mask]
            sums.append(values.sum())
            ratios.append(values.sum() - ref[mask].sum())
        assert row["logp_chosen"] == pytest.approx(sums[0], abs=1e-5)
        assert row["logp_rejected"] == pytest.approx(sums[1], abs=1e-5)
        assert row["length_chosen"] == group.masks[0].sum()
        by_logprob.append(0.5 if row["item"] == "pairs:tie" else float(sums[0] > sums[1]))
        by_ratio.append(0.5 if row["item"] == "pairs:tie" else float(ratios[0] > ratios[1]))
    assert by_logprob != by_ratio  # or the test would not tell them apart
    assert [row["correct_logprob"] for row in rows] == by_logprob
    assert [row["correct_logratio"] for row in rows] == by_ratio
    assert metrics["eval/preferences/accuracy_logprob"] == pytest.approx(np.mean(by_logprob))
    assert metrics["eval/preferences/accuracy_logratio"] == pytest.approx(np.mean(by_ratio))
    plain = [group.replace(token_columns={}) for group in groups]
    metrics = evaluate_preferences(policy, plain, writer=None, head="lm")
    assert set(metrics) == {"eval/preferences/accuracy_logprob", "eval/preferences/n"}


def test_preferences_by_a_reward_head() -> None:
    base = make_policy()
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(base.model.config, dtype=torch.float32).eval()
    model.config.num_labels = 1
    model.score = torch.nn.Linear(32, 1, bias=False)
    model.set_attn_implementation(PACKED)
    policy, records, groups = replace(base, model=model), Records(), preference_groups()
    metrics = evaluate_preferences(policy, groups, writer=records, head="score")
    rows = records.rows["preferences"]
    for row, group in zip(rows, groups, strict=True):
        scores = []
        for completion in group.completions:
            ids = torch.from_numpy(np.concatenate([group.prompt, completion]).astype(np.int64))
            with standard_attention(model), torch.no_grad():
                hidden = model.base_model(input_ids=ids[None]).last_hidden_state[0, -1]
                scores.append(float(model.score(hidden)))
        assert (row["score_chosen"], row["score_rejected"]) == pytest.approx(scores, abs=1e-4)
        assert row["correct"] == (0.5 if row["item"] == "pairs:tie" else float(scores[0] > scores[1]))
    assert metrics["eval/preferences/accuracy"] == pytest.approx(np.mean([row["correct"] for row in rows]))


def test_preferences_need_pairs_and_a_whole_reference(policy: Policy) -> None:
    with pytest.raises(DataError, match="no pair"):
        evaluate_preferences(policy, [], writer=None, head="lm")
    with pytest.raises(DataError, match="group three has 3 completions"):
        evaluate_preferences(policy, [make_group([3], [4], [5], [6], key="three")], writer=None, head="lm")
    group = make_group([3], [4], [5], key="hole")
    hole = group.replace(token_columns={"ref": (np.array([np.nan]), np.array([0.0]))})
    with pytest.raises(NumericalError, match="item hole"):
        evaluate_preferences(policy, [hole], writer=None, head="lm")


# --------------------------------------------------------------------------------------------------
# Tasks from files


def write_rows(path: Path, rows: list[dict]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def gsm8k_rows(count: int, tag: str) -> list[dict]:
    return [{"question": f"{tag} {i} + 1?", "answer": f"{i} + 1 = {i + 1}\n#### {i + 1:,}"} for i in range(count)]


def test_a_directory_of_gsm8k_rows_has_three_disjoint_splits(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl.gz", gsm8k_rows(200, "train"))
    write_rows(tmp_path / "test.jsonl", gsm8k_rows(30, "test"))
    task = get_task(f"gsm8k:{tmp_path}")
    splits = {split: task.load(split) for split in ("train", "selection", "test")}  # type: ignore[arg-type]
    assert len(splits["test"]) == 30 and len(splits["train"]) + len(splits["selection"]) == 200
    assert 8 <= len(splits["selection"]) <= 35
    ids = [item.id for items in splits.values() for item in items]
    assert len(set(ids)) == 230 and task.role == "development" and task.kind == "generative"
    item = splits["test"][3]
    assert item.answer == "4" and task.verify is not None
    assert task.verify(item.completion, item) == Verdict(True, True)
    assert task.verify("#### 5", item) == Verdict(False, False)
    again = get_task(f"gsm8k:{tmp_path}")
    assert again.version == task.version and again.load("selection") == splits["selection"]
    write_rows(tmp_path / "test.jsonl", gsm8k_rows(31, "test"))
    assert get_task(f"gsm8k:{tmp_path}").version != task.version


def test_one_file_is_all_test(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "my set.jsonl", gsm8k_rows(5, "x"))
    task = get_task(f"gsm8k:{file}")
    assert task.name == "gsm8k-my_set" and len(task.load("test")) == 5
    with pytest.raises(ConfigError, match="one file is all test split"):
        task.load("selection")


def test_bad_file_tasks_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown task format 'gsm9k'.*Did you mean 'gsm8k'"):
        get_task("gsm9k:rows.jsonl")
    with pytest.raises(DataError, match="no such file"):
        get_task(f"gsm8k:{tmp_path / 'absent.jsonl'}")
    with pytest.raises(DataError, match="no train file"):
        get_task(f"gsm8k:{tmp_path}")
    file = write_rows(tmp_path / "rows.jsonl", [*gsm8k_rows(1, "x"), {"question": "q", "answer": "five"}])
    with pytest.raises(DataError, match=r"rows.jsonl:2: the answer does not end in '#### N'"):
        get_task(f"gsm8k:{file}").load("test")
    file = write_rows(tmp_path / "rows.jsonl", [{"question": "q", "solution": "#### 5"}])
    with pytest.raises(DataError, match=r"rows.jsonl:1: expected text in the column 'answer'; columns: question"):
        get_task(f"gsm8k:{file}").load("test")


def test_builtin_tasks_run_on_a_ladder_model() -> None:
    from transformers import LlamaForCausalLM

    from steelyard.builtin import ladder, tokenizer

    torch.manual_seed(0)
    model = LlamaForCausalLM(ladder.config("0.1m")).eval()
    model.set_attn_implementation(PACKED)
    policy, records = Policy(model, tokenizer.build(), True, "", {}, Path("builtin")), Records()
    cfg = EvalConfig(tasks=["arithmetic", "chains", "facts"], limit=6, max_completion_length=8)
    metrics = evaluate_tasks(policy, cfg, seed=0, writer=records, purpose="report")
    assert [len(rows) for rows in records.rows.values()] == [6, 6, 6]
    assert {rows[0]["role"] for rows in records.rows.values()} == {"development", "unseen"}
    for name, rows in records.rows.items():
        assert metrics[f"eval/{name}/score"] == pytest.approx(np.mean([row["score"] for row in rows]))
