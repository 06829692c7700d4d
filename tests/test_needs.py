"""What an algorithm needs is compared with what the recipe offers before anything is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steelyard.algorithms import catalogue, load
from steelyard.algorithms.core import algorithms
from steelyard.config import RunConfig
from steelyard.errors import ConfigError, SteelyardError
from steelyard.trainer.needs import check_needs
from steelyard.trainer.plan import plan_stages

PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
ANSWERED = {"prompt": "p", "answer": "1"}
GENERATE = {"prompts": 4, "num_generations": 2}


def config(algorithm: str, data: dict[str, Any], **sections: Any) -> RunConfig:
    return RunConfig.model_validate({"algorithm": algorithm, "data": data, **sections})


def file(path: Path, *rows: dict[str, Any]) -> dict[str, str]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"path": str(path)}


@pytest.mark.parametrize(
    ("algorithm", "row", "message"),
    [
        ("odpo", PAIR, r"rows.jsonl: algorithm 'odpo' needs a finite number in a column 'score_chosen'.*is missing"),
        ("odpo", {**PAIR, "score_chosen": 1, "scores_rejected": 0}, r"\{score_rejected: scores_rejected\}"),
        (
            "odpo",
            {**PAIR, "score_chosen": 1, "score_rejected": "high"},
            r"rows.jsonl:1: column 'score_rejected': expected a finite number, got 'high'",
        ),
        ("rm_margin", {**PAIR, "margin": None}, r"rows.jsonl:1: column 'margin': expected a finite number, got null"),
        ("sppo", {**PAIR, "answer": "1"}, r"`data.generate`"),
        (
            "cost_model",
            {**PAIR, "sign_chosen": -1, "sign_rejected": 2},
            r"'sign_rejected': expected 1 \(unsafe\) or -1",
        ),
        (
            "odpo",
            {**PAIR, "score_chosen": 0.2, "score_rejected": "0.5"},
            r"rows.jsonl:1: algorithm 'odpo' needs 'score_chosen' above 'score_rejected' in every row, got 0.2 and 0.5",
        ),
        ("odpo", {**PAIR, "score_chosen": 1, "score_rejected": 1}, r"in every row, got 1 and 1$"),
        ("odpo", PAIR, r"columns: prompt, chosen, rejected\.$"),  # `chosen` is near, but no number
        ("cost_model", {**PAIR, "sign_chosn": 1}, r"columns: {sign_chosen: sign_chosn}"),
        ("bco", {**PAIR, "density_ratio": "high"}, r"rows.jsonl:1: column 'density_ratio': expected a finite number"),
        (
            "prm",
            PAIR,
            r"stepwise rows need prompt, completions, labels; 'completions' is missing.*reward models \(prm\)",
        ),
        ("orm", {"prompt": "p", "completion": "c"}, r"'label' is missing"),
        ("pl_dpo", {"prompt": "p", "completions": ["a", "b"]}, r"'scores' is missing"),
        ("dpo", {"prompt": "p", "completion": "c"}, r"need preference rows, got prompt-completion rows"),
        ("sft", {"question": "p", "answer": "c"}, r"Perhaps rename.*prompt: question"),
    ],
)
def test_rows_that_lack_what_is_needed(algorithm: str, row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SteelyardError, match=message):
        plan_stages(config(algorithm, file(tmp_path / "rows.jsonl", row)))


@pytest.mark.parametrize(
    ("algorithm", "row"),
    [
        ("odpo", {**PAIR, "score_chosen": 1, "score_rejected": "0.5"}),
        ("cost_model", {**PAIR, "sign_chosen": -1, "sign_rejected": 1}),
        ("bco", {**PAIR, "density_ratio": 2}),
        ("bco", {**PAIR, "density_ratio": None}),
        ("bco", PAIR),
        ("prm", {"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}),
        ("prm", {"prompt": "p", "steps": ["a", "b"], "mistake_index": None}),
        ("orm", {"prompt": "p", "completion": "c", "label": True}),
        ("orm", PAIR),
        ("pl_dpo", {"prompt": "p", "completions": ["a", "b"], "ranks": [2, 1]}),
        ("cpt", {"text": "t"}),
        ("grpo", {"prompt": "p", "answer": "1"}),
        ("base", {"whatever": 1}),
    ],
)
def test_rows_that_offer_it(algorithm: str, row: dict[str, Any], tmp_path: Path) -> None:
    check_needs(config(algorithm, file(tmp_path / "rows.jsonl", row)))


def test_an_optional_column_is_in_every_row_or_in_none(tmp_path: Path) -> None:
    rows = file(tmp_path / "rows.jsonl", {**PAIR, "density_ratio": 2}, PAIR, {**PAIR, "density_ratio": None})
    with pytest.raises(SteelyardError, match=r"rows.jsonl:2: column 'density_ratio': .* in every row or in none"):
        check_needs(config("bco", rows))


@pytest.fixture
def weighted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Names a method like the given one that also declares a column ``weight``, as a plugin would."""
    load()
    monkeypatch.setattr(catalogue, "_plugins", {})

    def make(like: str) -> str:
        catalogue.add_plugin_entry("mine", replace(algorithms.get(like), columns=("weight",)).describe())
        return "mine"

    yield make


@pytest.mark.parametrize(
    ("like", "row"),
    [
        ("sft", {"prompt": "p", "completion": "c"}),
        ("kd", {"prompt": "p", "completion": "c"}),
        ("kto", {"prompt": "p", "completion": "c", "label": True}),
        ("orm", PAIR),
        ("prm", {"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}),
        ("dpo", PAIR),
        ("rm", PAIR),
        ("pl_dpo", {"prompt": "p", "completions": ["a", "b"], "scores": [1, 2]}),
    ],
)
def test_a_column_that_a_plugin_declares(
    like: str, row: dict[str, Any], weighted: Callable[[str], str], tmp_path: Path
) -> None:
    name, teacher = weighted(like), {"teacher": "builtin:0.5m"} if like == "kd" else {}
    check_needs(config(name, file(tmp_path / "good.jsonl", {**row, "weight": 0.5}), **teacher))
    with pytest.raises(SteelyardError, match=r"lack.jsonl: algorithm 'mine' needs a finite number in .* 'weight'"):
        check_needs(config(name, file(tmp_path / "lack.jsonl", row), **teacher))
    rows = file(tmp_path / "bad.jsonl", {**row, "weight": 1}, {**row, "weight": "much"})
    with pytest.raises(SteelyardError, match=r"bad.jsonl:2: column 'weight': expected a finite number, got 'much'"):
        check_needs(config(name, rows, **teacher))


def test_a_column_that_samples_or_gold_rows_do_not_have(weighted: Callable[[str], str], tmp_path: Path) -> None:
    with pytest.raises(SteelyardError, match=r"task 'arithmetic': algorithm 'mine' needs .* 'weight'"):
        check_needs(config(weighted("sft"), {"task": "arithmetic"}))
    data = {**file(tmp_path / "rows.jsonl", {**ANSWERED, "weight": 1}), "generate": GENERATE}
    with pytest.raises(ConfigError, match=r"'weight' in every row, which preference pairs made from .*rows.jsonl"):
        check_needs(config(weighted("kto"), data))


def test_samples_of_a_file_need_prompts_and_answers(tmp_path: Path) -> None:
    good = file(tmp_path / "good.jsonl", ANSWERED)
    assert [s.kind for s in plan_stages(config("simpo", {**good, "generate": GENERATE}))] == ["generate", "pairs"]
    bad = file(tmp_path / "bad.jsonl", ANSWERED, {"prompt": "p", "solution": "1"})
    with pytest.raises(SteelyardError, match=r"bad.jsonl:2: sampling and verifying .* needs a column 'answer'"):
        plan_stages(config("simpo", {**bad, "generate": GENERATE}))
    with pytest.raises(SteelyardError, match=r"'completion' is missing"):  # of the supervised stage
        plan_stages(config("simpo", {**good, "generate": GENERATE}, sft={}))


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    cfg = config("rm_margin", file(tmp_path / "rows.jsonl", {**PAIR, "margin": 1}))
    check_needs(cfg)
    file(tmp_path / "rows.jsonl", {**PAIR, "margin": "large"})
    with pytest.raises(SteelyardError, match="'margin'"):
        check_needs(cfg)


@pytest.mark.parametrize("algorithm", ["kd", "gkd", "seqkd"])
def test_a_teacher_is_named_by_the_recipe(algorithm: str) -> None:
    data = {"task": "arithmetic", "generate": GENERATE}
    with pytest.raises(ConfigError, match=rf"teacher: algorithm '{algorithm}' .* add `teacher: MODEL`"):
        plan_stages(config(algorithm, data))
    plan_stages(config(algorithm, data, teacher="builtin:0.5m"))


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        ("dpo", "preference pairs"),
        ("rft", "verified samples"),
        ("step_dpo", "pairs of steps"),
        ("lipo_lambda", "ranked lists"),
        ("orm", "completions with a verdict"),
        ("prm", "labelled steps"),
        ("online_dpo", "samples while it trains"),
    ],
)
def test_on_a_task_samples_must_be_asked_for(algorithm: str, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"{words}.*`data.generate`"):
        plan_stages(config(algorithm, {"task": "arithmetic"}))


def test_a_task_of_choices_has_no_verifier() -> None:
    with pytest.raises(SteelyardError, match="multiple choice"):
        plan_stages(config("dpo", {"task": "facts", "generate": GENERATE}))


@pytest.mark.parametrize(
    ("algorithm", "kinds"),
    [
        ("odpo", ["generate", "pairs", "reference"]),
        ("step_dpo", ["generate", "step_pairs", "reference"]),
        ("pl_dpo", ["generate", "ranked", "reference"]),
        ("rm_listwise", ["generate", "ranked"]),
        ("orm", ["generate", "judged"]),
        ("implicit_prm", ["generate", "judged", "reference"]),
        ("prm", ["generate", "steps"]),
        ("tr_dpo", ["generate", "pairs"]),  # its reference moves: nothing to compute beforehand
        ("spin", []),
        ("sft", []),
    ],
)
def test_the_stages_of_a_task(algorithm: str, kinds: list[str]) -> None:
    data = {"task": "arithmetic", "generate": GENERATE}
    stages = plan_stages(config(algorithm, data))
    assert [stage.kind for stage in stages] == kinds
    if "generate" in kinds:  # every method of a seed shares what was sampled, whatever it selects
        limits = {"max_pairs_per_prompt": 9, "max_correct_per_prompt": 9, "max_list_length": 9}
        other = plan_stages(config("rft", {**data, "generate": {**GENERATE, **limits}}))
        assert stages[0].id == other[0].id


def test_planning_loads_no_tensor_library(tmp_path: Path) -> None:
    rows = file(tmp_path / "rows.jsonl", PAIR)
    program = (
        "import sys\n"
        "from steelyard.config import RunConfig\n"
        "from steelyard.errors import SteelyardError\n"
        "from steelyard.trainer.plan import plan_stages\n"
        f"cfg = RunConfig.model_validate({{'algorithm': 'odpo', 'data': {rows!r}}})\n"
        "try:\n"
        "    plan_stages(cfg)\n"
        "except SteelyardError as error:\n"
        "    print(error, sorted({'torch', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "'score_chosen'" in done.stdout and done.stdout.endswith("[]\n")


@pytest.mark.parametrize("task", [True, False], ids=["task", "file"])
@pytest.mark.parametrize("key", sorted(k for k, entry in catalogue.load_catalogue().items() if entry["teacher"]))
def test_a_teacher_is_among_what_a_method_was_given(key: str, task: bool) -> None:
    from steelyard.trainer.run import _given

    data = {"task": "arithmetic"} if task else {"path": "rows.jsonl"}
    given = _given(config(key, {**data, "generate": GENERATE}, teacher="builtin:0.5m"), algorithms.get(key))
    assert sum("teacher" in words for words in given) == 1, given
