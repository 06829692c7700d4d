"""Number extraction, verification (all gold answers of GSM8K), and the combination of rewards."""

from __future__ import annotations

import gzip
import json
import os
from fractions import Fraction
from pathlib import Path

import pytest

from steelyard.errors import ConfigError, DataError
from steelyard.rewards.core import get_reward, reward, rewards, score
from steelyard.rewards.verifiers import extract_number, is_empty, parse_number, verify_number

SHARED = Path(os.environ.get("STEELYARD_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42),
        (" 42. ", 42),
        ("1,234", 1234),
        ("1,00,000", 100000),
        ("$1,234.50", Fraction(2469, 2)),
        ("-$5", -5),
        ("$-5", -5),
        ("$ 5", 5),
        ("\N{MINUS SIGN}7", -7),
        ("+7", 7),
        ("50%", 50),
        ("50 %.", 50),
        ("$20.00$", 20),
        (".5", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        ("-3/4", Fraction(-3, 4)),
        ("0.30", Fraction(3, 10)),
        ("42 apples", None),
        ("4 2", None),
        ("1,2", None),
        ("12,34", None),
        ("3/0", None),
        ("x", None),
        ("", None),
        ("-", None),
        ("9" * 5000, None),
    ],
)
def test_parse_number(text: str, number: Fraction | None) -> None:
    assert parse_number(text) == number


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("2 + 3 = 5\n#### 5", 5, 5),
        ("#### 4\nno, wait\n#### 5", 5, 5),  # the last marker counts
        ("so #### 5\nQuestion: 7 apples", 5, 5),  # running on after the answer
        ("#### 5 apples", None, 5),
        ("####\n5", None, 5),
        ("The answer is 1,234.", None, 1234),
        ("10-5", None, 5),
        ("10 - 5 = -5", None, -5),
        ("(3)-2", None, 2),
        ("it costs $-3.50 or -$4", None, -4),
        ("It weighs 5kg.", None, 5),
        ("5, 6, 7", None, 7),
        ("half is 3/4", None, Fraction(3, 4)),
        ("5/0", None, None),
        ("seven", None, None),
        ("", None, None),
        ("6 then " + "9" * 5000, None, 6),
    ],
)
def test_extract_number(text: str, strict: Fraction | None, flexible: Fraction | None) -> None:
    assert extract_number(text, "strict") == strict
    assert extract_number(text, "flexible") == flexible


def test_verdicts_are_three_valued() -> None:
    right, lucky, wrong = (verify_number(text, "5") for text in ("#### 5.0", "it is 5", "#### 6"))
    assert (right.strict, right.flexible) == (True, True)
    assert (lucky.strict, lucky.flexible) == (False, True)
    assert (wrong.strict, wrong.flexible) == (False, False)
    unscorable = verify_number("#### 5", "a few")
    assert (unscorable.strict, unscorable.flexible) == (None, None)
    empty = verify_number("", "5")
    assert (empty.strict, empty.flexible) == (False, False) and is_empty(" \n") and not is_empty("#### 5")


@pytest.mark.parametrize(("name", "count"), [("train", 7473), ("test", 1319)])
def test_every_gold_answer_of_gsm8k(name: str, count: int) -> None:
    path = SHARED / "data" / "gsm8k" / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is absent (set STEELYARD_SHARED)")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        golds = [json.loads(line)["answer"] for line in file]
    assert len(golds) == count
    for gold in golds:
        number = extract_number(gold)
        assert number is not None, gold
        reasoning, answer = gold.rsplit("####", 1)
        for reference in (gold, answer.strip()):
            assert verify_number(gold, reference).strict and verify_number(gold, reference).flexible, gold
        # the same reasoning with a wrong number, and the right number without its marker
        assert verify_number(f"{reasoning}#### {number + 1}", answer).flexible is False
        assert verify_number(f"{reasoning}#### {-number - 1}", answer).strict is False
        bare = verify_number(f"The answer is {answer.strip()}.", answer)
        assert bare.flexible and bare.strict is False


def test_registered_rewards() -> None:
    texts = ["#### 5", "it is 5", "", "#### 6"]
    call = {"prompts": ["q"] * 4, "completions": texts, "completion_ids": [[]] * 4}
    assert get_reward("answer")(**call, answer=["5", 5, "5", None]) == [1.0, 0.0, 0.0, None]
    assert get_reward("answer_flexible")(**call, answer=["5"] * 4) == [1.0, 1.0, 0.0, 0.0]
    assert get_reward("format")(**call) == [1.0, 0.0, 0.0, 1.0]
    assert get_reward("answer")(**call) == [None] * 4
    with pytest.raises(ConfigError, match="Did you mean 'format'"):
        get_reward("formt")


def test_score_sums_with_weights_and_masks_what_cannot_be_scored() -> None:
    def length(prompts, completions, completion_ids, **columns):
        return [len(ids) / 10 for ids in completion_ids]

    totals, each = score(
        [("answer", 1.0), (length, 0.5)],
        ["p", "p", "q"],
        ["#### 5", "#### 6", "#### 7"],
        [[1, 2], [1], [1, 2, 3]],
        answer=["5", "5", None],
    )
    # `answer` does not apply to prompt q at all, so q is scored by the other reward alone
    assert totals == pytest.approx([1.1, 0.05, 0.15])
    assert each["answer"].unscored == 1 and each["length"].unscored == 0 and not each["answer"].failures


def test_a_reward_that_breaks_is_counted_and_never_a_zero() -> None:
    def fragile(prompts, completions, completion_ids, **columns):
        if "bad" in completions:
            raise TimeoutError("no")
        return [float("nan") if text == "nan" else 1.0 for text in completions]

    def fine(prompts, completions, completion_ids, **columns):
        return [2.0] * len(completions)

    totals, each = score([(fragile, 1.0), (fine, 1.0)], ["p", "p", "q"], ["good", "bad", "nan"], [[], [], []])
    assert totals == [3.0, None, None]
    assert each["fragile"].failures == {"TimeoutError": 1, "non-finite": 1}
    assert each["fine"].values == (2.0, 2.0, 2.0)
    # a reward that is only watched (weight 0) spoils nothing
    totals, each = score([(fragile, 0.0), (fine, 1.0)], ["p", "p"], ["good", "bad"], [[], []])
    assert totals == [2.0, 2.0] and each["fragile"].unscored == 1
    with pytest.raises(DataError, match="none of 1 completions could be scored.*TimeoutError"):
        score([(fragile, 1.0)], ["p"], ["bad"], [[]])


def test_none_for_one_completion_of_a_prompt_masks_its_total() -> None:
    def sometimes(prompts, completions, completion_ids, **columns):
        return [None if text == "?" else 1.0 for text in completions]

    totals, _ = score([(sometimes, 1.0), ("format", 1.0)], ["p", "p"], ["?", "x"], [[], []])
    assert totals == [None, 1.0]


def test_score_refuses_ill_formed_calls() -> None:
    def short(prompts, completions, completion_ids, **columns):
        return [1.0]

    with pytest.raises(ConfigError, match="'short' returned 1 values for 2 completions"):
        score([(short, 1.0)], ["p", "p"], ["a", "b"], [[], []])
    with pytest.raises(DataError, match="column 'answer' has 1 values for 2"):
        score([("answer", 1.0)], ["p", "p"], ["a", "b"], [[], []], answer=["5"])
    with pytest.raises(ConfigError, match="listed twice"):
        score([("format", 1.0), ("format", 1.0)], ["p"], ["a"], [[]])


def test_the_decorator_registers() -> None:
    @reward("test_only_reward")
    def constant(prompts, completions, completion_ids, **columns):
        return [1.0] * len(completions)

    assert rewards.get("test_only_reward") is constant
