"""Selections from judged samples, on groups made by hand: words are tokens, and a full stop ends a step."""

from __future__ import annotations

import numpy as np
import pytest

from steelyard.config import GenerateConfig
from steelyard.data.steps import step_ends
from steelyard.trainer import select
from steelyard.trainer.needs import PAIR_COLUMNS, SELECTED
from steelyard.types import Group

WORDS: list[str] = []


def ids(text: str) -> np.ndarray:
    """One token per word; every completion ends with ``$``, which decodes to nothing."""
    for word in text.split():
        if word not in WORDS:
            WORDS.append(word)
    return np.array([WORDS.index(word) for word in text.split()], np.int32)


def words(tokens: np.ndarray) -> str:
    return " ".join(WORDS[i] for i in tokens)


def ends(tokens: np.ndarray) -> list[int]:
    return step_ends(tokens.tolist(), lambda part: " ".join(WORDS[i] for i in part if WORDS[i] != "$"))


GOLD = "a . b . c $"


def group(*samples: tuple[str, int]) -> Group:
    """A judged group of (completion, verdict)."""
    completions = tuple(ids(text) for text, _ in samples)
    verdict = np.array([v for _, v in samples])
    scores = [select.score_of(c, v, ids(GOLD)) for c, v in zip(completions, verdict.tolist(), strict=True)]
    return Group(
        prompt=ids("why ?"),
        completions=completions,
        masks=tuple(np.ones(len(c), bool) for c in completions),
        columns={"answer": "c"},
        completion_columns={"verdict": verdict, "finished": verdict >= 0, "score": np.array(scores)},
        token_columns={"behaviour": tuple(np.arange(len(c), dtype=np.float32) for c in completions)},
        key="item",
    )


SAMPLES = group(
    ("a . b . c $", 1),
    ("a . x . c $", 1),
    ("a . b . d $", 0),
    ("a . b . d $", 0),
    ("e . f $", 0),
    ("a . b . b . b", -1),
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_score_of_a_completion() -> None:
    gold = ids(GOLD)
    assert select.score_of(gold, 1, gold) == 1.0 and select.score_of(ids("z $"), 1, gold) == 1.0
    assert select.score_of(ids("a . b . d $"), 0, gold) == pytest.approx(0.9 * 4 / 6)
    assert select.score_of(gold, 0, gold) == 0.9, "a wrong one never reaches a right one"
    assert select.score_of(ids("a ."), -1, gold) == pytest.approx(0.9 * 2 / 6)
    assert select.score_of(ids("e $"), 0, gold) == 0.0 and select.score_of(gold, 0, None) == 0.0


def test_pairs_carry_what_is_known_about_their_sides() -> None:
    found = select.pairs(SAMPLES, rng=rng(), limit=10)
    assert {tuple(words(c) for c in pair.completions) for pair in found} == {
        (right, wrong) for right in ("a . b . c $", "a . x . c $") for wrong in ("a . b . d $", "e . f $")
    }, "distinct pairs only; what is not judged is on neither side"
    assert [pair.key for pair in found] == [f"item#{n}" for n in range(4)]
    for pair in found:
        assert pair.completion_columns["verdict"].tolist() == [1, 0] and pair.columns["answer"] == "c"
        assert pair.columns["score_chosen"] == 1.0
        assert pair.columns["margin"] == 1.0 - pair.columns["score_rejected"]
        # of five judged samples two are right: a right one beats three and ties with two
        assert pair.columns["p_chosen"] == pytest.approx((3 + 2 / 2) / 5)
        assert pair.columns["p_rejected"] == pytest.approx((0 + 3 / 2) / 5)
        assert (pair.columns["sign_chosen"], pair.columns["sign_rejected"]) == (-1, 1), (
            "the chosen side is the safe one"
        )
    assert tuple(select.pair_columns(SAMPLES, 0, 2)) == PAIR_COLUMNS


def test_the_first_different_steps_of_right_and_wrong() -> None:
    found = select.step_pairs(SAMPLES, rng=rng(), limit=10, ends=ends)
    seen = {(words(p.prompt), *(words(c) for c in p.completions)) for p in found}
    assert seen == {
        ("why ? a . b .", "c $", "d $"),  # only with the right sample that goes furthest along
        ("why ?", "a .", "e ."),  # no shared step; both right samples give the same pair, once
    }
    longer = next(p for p in found if len(p.prompt) > 2)
    assert [m.tolist() for m in longer.masks] == [[True, True], [True, True]]
    assert [v.tolist() for v in longer.token_columns["behaviour"]] == [[4, 5], [4, 5]]
    assert longer.columns["score_rejected"] == pytest.approx(0.6) and longer.columns["margin"] == pytest.approx(0.4)
    assert len(select.step_pairs(SAMPLES, rng=rng(), limit=1, ends=ends)) == 1


def test_a_step_that_ends_too_early_is_a_different_step() -> None:
    samples = group(("a . b $", 1), ("a . $", 0))
    (pair,) = select.step_pairs(samples, rng=rng(), limit=5, ends=ends)
    assert (words(pair.prompt), [words(c) for c in pair.completions]) == ("why ?", ["a .", "a . $"])


def test_lists_keep_a_best_and_a_worst() -> None:
    (whole,) = select.ranked(SAMPLES, rng=rng(), length=10)
    assert whole.k == 4 and whole.completion_columns["score"].tolist() == pytest.approx([1, 1, 0.6, 0])
    for seed in range(5):
        (short,) = select.ranked(SAMPLES, rng=rng(seed), length=3)
        scores = short.completion_columns["score"].tolist()
        assert len(scores) == 3 and scores[0] == 1.0 and scores[-1] == 0.0 and scores == sorted(scores, reverse=True)
    assert select.ranked(group(("a $", 1), ("b $", 1)), rng=rng(), length=4) == [], "nothing is ranked"


def test_single_completions() -> None:
    assert [words(r.completions[0]) for r in select.correct(SAMPLES, limit=1)] == ["a . b . c $"]
    assert len(select.correct(SAMPLES, limit=9)) == 2
    rows = select.judged(SAMPLES)
    labels = {words(r.completions[0]): bool(r.completion_columns["label"][0]) for r in rows}
    assert labels == {"a . b . c $": True, "a . x . c $": True, "a . b . d $": False, "e . f $": False}
    assert len({r.key for r in rows}) == 4 and all(r.k == 1 for r in rows)


def test_steps_are_good_while_a_right_sample_shares_them() -> None:
    labels = {}
    for row in select.steps(SAMPLES, ends=ends):
        column = row.token_columns["step_label"][0]
        assert len(column) == len(row.completions[0])
        places = np.flatnonzero(~np.isnan(column))
        assert places.tolist() == ends(row.completions[0])
        labels[words(row.completions[0])] = column[places].tolist()
    assert labels == {"a . b . c $": [1, 1, 1], "a . x . c $": [1, 1, 1], "a . b . d $": [1, 1, 0], "e . f $": [0, 0]}
    hopeless = select.steps(group(("a . b $", 0)), ends=ends)
    assert hopeless[0].token_columns["step_label"][0][[1, 3]].tolist() == [0, 0]


@pytest.mark.parametrize("kind", select.SELECTIONS)
def test_every_selection_is_a_function_of_group_and_stream(kind: str) -> None:
    def made(samples: Group) -> list[list[str]]:
        rows = select.SELECTIONS[kind](samples, rng(7), GenerateConfig(max_pairs_per_prompt=1), ends)
        return [[row.key, words(row.prompt), *map(words, row.completions)] for row in rows]

    assert made(SAMPLES) == made(SAMPLES) != []
    assert made(group(("a . b", -1))) == [], "what is not judged teaches nothing"


def test_every_selecting_stage_has_its_selection() -> None:
    assert list(select.SELECTIONS) == list(SELECTED)
