"""Quality reports of reward models, checked by hand, by brute force, and against scipy where it has the measure."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats

from steelyard.errors import DataError
from steelyard.evals.quality import (
    auc,
    calibration,
    correctness,
    headline,
    lines,
    outcome_quality,
    pair_quality,
    proportion,
    rank_correlation,
    step_quality,
)


def test_proportions_have_wilson_intervals() -> None:
    found = proportion([1.0] * 7 + [0.0] * 3)
    expected = stats.binomtest(7, 10).proportion_ci(0.95, method="wilson")
    assert found["value"] == 0.7 and found["n"] == 10
    assert found["low"] == pytest.approx(expected.low) and found["high"] == pytest.approx(expected.high)
    assert proportion([]) == {"value": None, "n": 0, "low": None, "high": None}


def test_a_difference_within_rounding_is_a_tie() -> None:
    chosen, rejected = np.array([1.0, 1.0, 1e8, 0.0]), np.array([0.5, 1.0 + 1e-8, 1e8 - 1, 1e-3])
    assert correctness(chosen, rejected).tolist() == [1.0, 0.5, 0.5, 0.0]


def test_auc_is_the_share_of_ordered_pairs() -> None:
    rng = np.random.default_rng(0)
    score, label = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(score[label], score[~label])]
    assert auc(score, label) == pytest.approx(np.mean(pairs))
    assert auc(score, np.ones(60, bool)) is None


def test_calibration_by_hand() -> None:
    found = calibration([0.05, 0.08, 0.95, 0.95], [0.0, 1.0, 1.0, 1.0])
    assert [(b["n"], b["outcome"]) for b in found["bins"]] == [(2, 0.5), (2, 1.0)]
    assert found["ece"] == pytest.approx(0.5 * abs(0.065 - 0.5) + 0.5 * abs(0.95 - 1.0))
    assert calibration([1.0], [1.0])["bins"][0]["high"] == pytest.approx(1.0)  # the last bin holds its upper edge
    assert calibration([], [])["ece"] is None


def test_a_calibrated_reward_model_has_a_small_error_and_a_loud_one_a_large_one() -> None:
    rng = np.random.default_rng(1)
    difference = rng.normal(0, 2, 20_000)
    better = rng.random(20_000) < 1 / (1 + np.exp(-difference))
    chosen = np.where(better, difference, -difference)  # the chosen side's lead, as the model sees it
    zero, length = np.zeros(20_000), np.ones(20_000)
    honest, loud = (pair_quality(scale * chosen, zero, length, length) for scale in (1.0, 4.0))
    assert honest["calibration"]["ece"] < 0.01 < 0.1 < loud["calibration"]["ece"]
    assert honest["accuracy"]["value"] == pytest.approx(loud["accuracy"]["value"], abs=1e-6)


def test_length_bias_is_seen() -> None:
    """A model that scores by length alone is right exactly where the chosen completion is the longer one."""
    rng = np.random.default_rng(2)
    long, short = rng.integers(1, 50, 400), rng.integers(1, 50, 400)
    report = pair_quality(0.1 * long, 0.1 * short, long, short)
    length = report["length"]
    assert length["chosen_longer"]["value"] == 1.0 and length["chosen_shorter"]["value"] == 0.0
    assert length["same_length"]["value"] in (0.5, None)
    assert length["prefers_longer"]["value"] == 1.0 and length["correlation"] == pytest.approx(1.0)
    assert length["chosen_is_longer"] == pytest.approx((long > short).sum() / (long != short).sum())


@pytest.mark.parametrize("margin", [[0, 1 / 3, 2 / 3, 1] * 25, np.linspace(0, 1, 100)])
def test_accuracy_by_margin(margin: Any) -> None:
    """Few values stand alone, many are cut into quarters; together they are the accuracy."""
    margin = np.asarray(margin, dtype=float)
    chosen = margin - 0.3
    report = pair_quality(chosen, np.zeros(100), np.ones(100), np.ones(100), margin)
    groups = report["by_margin"]
    assert [g["n"] for g in groups] == [25] * 4
    assert sum(g["n"] * g["value"] for g in groups) == pytest.approx(100 * report["accuracy"]["value"])
    assert groups[0]["value"] < groups[-1]["value"] == 1.0


def test_outcomes_by_hand() -> None:
    report = outcome_quality([0.9, 0.4, 0.6, 0.2], [0.9, 0.4, 0.6, 0.2], [1, 1, 0, 0], [3, 4, 5, 6])
    assert report["accuracy"]["value"] == 0.5 and report["majority"] == 0.5 and report["auc"] == 0.75
    assert report["brier"] == pytest.approx(np.mean([0.01, 0.36, 0.36, 0.04]))
    assert report["length"]["correlation"] == pytest.approx(stats.spearmanr([0.9, 0.4, 0.6, 0.2], [3, 4, 5, 6])[0])


def test_squared_error_heads_may_leave_the_unit_interval() -> None:
    report = outcome_quality([1.2, -0.3], [1.2, -0.3], [1, 0], [1, 2])
    assert report["brier"] == 0.0 and report["calibration"]["ece"] == 0.0


def test_steps_by_hand() -> None:
    # two completions: mistakes at step 1 of the first, none in the second
    label = [1, 0, 1, 1, 1]
    said = [0.9, 0.2, 0.8, 0.4, 0.7]
    report = step_quality(said, label, ["a", "a", "b", "b", "b"])
    assert (report["precision"], report["recall"]) == (0.5, 1.0)
    assert report["f1"] == pytest.approx(2 / 3)
    right = 2 * 1.0 * 0.75 / 1.75
    assert report["f1_macro"] == pytest.approx((2 / 3 + right) / 2)
    assert report["accuracy"]["value"] == 0.8
    majority = report["majority"]
    assert majority["f1"] == 0.0 and majority["f1_macro"] == pytest.approx(0.5 * (2 * 0.8 / 1.8))
    assert report["always_wrong"]["f1"] == pytest.approx(2 * 0.2 / 1.2)
    assert report["first_mistake"]["value"] == 0.5 and report["first_mistake"]["most_frequent"] == 0.5
    assert report["f1_low"] <= report["f1"] <= report["f1_high"]


def test_f1_against_its_definition() -> None:
    rng = np.random.default_rng(3)
    label, said = rng.random(300) < 0.7, rng.random(300)
    report = step_quality(said, label, np.repeat(np.arange(60), 5))
    hits = sum((p < 0.5) and not y for p, y in zip(said, label, strict=True))
    expected = 2 * hits / ((said < 0.5).sum() + (~label).sum())
    assert report["f1"] == pytest.approx(expected)
    assert report["f1_low"] < expected < report["f1_high"]


def test_soft_step_labels_are_cut_at_one_half() -> None:
    hard = step_quality([0.9, 0.1, 0.6], [1, 0, 1], [0, 0, 0])
    soft = step_quality([0.9, 0.1, 0.6], [0.75, 0.25, 0.5], [0, 0, 0])
    assert hard["f1"] == soft["f1"] and hard["n"] == soft["n"]


def test_constant_scores_are_no_opinion() -> None:
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
    report = pair_quality([1.0, 1.0], [1.0, 1.0], [1, 2], [2, 1])
    assert report["accuracy"]["value"] == 0.5 and report["calibration"]["ece"] == 0.0


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(DataError, match="not finite"):
        pair_quality([np.nan], [0.0], [1], [1])


@pytest.mark.parametrize(
    "report",
    [
        pair_quality([1.0, 0.0], [0.0, 1.0], [3, 1], [2, 2], [1.0, 0.0]),
        outcome_quality([0.9, 0.2], [0.9, 0.2], [1, 1], [1, 2]),  # one class only: no AUC
        step_quality([0.9, 0.2], [1, 0], [0, 0]),
    ],
    ids=lambda report: report["kind"],
)
def test_every_report_can_be_printed_and_summed_up(report: dict[str, Any]) -> None:
    text = "\n".join(lines(report))
    assert f"{100 * report['accuracy']['value']:.1f} %" in text and "nan" not in text and "None" not in text
    numbers = headline(report)
    assert numbers["n"] == 2.0 and all(np.isfinite(value) for value in numbers.values())
