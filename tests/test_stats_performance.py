"""Aggregates against rliable's recorded numbers; avg@k, pass@k and maj@k against enumeration."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.errors import StudyError
from steelyard.stats import performance, samples

RECORDS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "rliable.json").read_text())


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: f"{len(r['a'])}x{len(r['a'][0])}")
def test_aggregates_are_those_of_rliable(record: dict[str, Any]):
    a, b = np.array(record["a"]), np.array(record["b"])
    for name, aggregate in performance.AGGREGATES.items():
        assert float(aggregate(a)) == pytest.approx(record[name], abs=1e-12), name
        assert aggregate(np.stack([a, a + 1])).shape == (2,)
    assert performance.performance_profile(a, record["thresholds"]) == pytest.approx(record["profile"])
    assert float(performance.probability_of_improvement(a, b)) == pytest.approx(record["improvement"])
    back = float(performance.probability_of_improvement(b, a))
    assert float(performance.probability_of_improvement(a, b)) + back == pytest.approx(1)


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: f"{len(r['a'])}x{len(r['a'][0])}")
def test_the_stratified_bootstrap_has_the_intervals_of_rliable(record: dict[str, Any]):
    rng = np.random.default_rng(0)
    for index, aggregate in enumerate((performance.iqm, performance.mean)):
        found = performance.stratified_bootstrap(aggregate, record["a"], rng=rng, resamples=10_000, describe=True)
        low, high = np.array(record["interval"])[:, index]
        slack = 0.04 * (high - low)
        assert float(found.low) == pytest.approx(low, abs=slack)
        assert float(found.high) == pytest.approx(high, abs=slack)
    better = performance.stratified_bootstrap(
        performance.probability_of_improvement, record["a"], record["b"], rng=rng, resamples=10_000, describe=True
    )
    low, high = np.array(record["improvement interval"])[:, 0]
    assert (float(better.low), float(better.high)) == pytest.approx((low, high), abs=0.04 * (high - low))


def test_the_stratified_bootstrap_of_a_profile_and_of_tasks():
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(4, 30)) + 3 * rng.normal(size=(1, 30))
    profile = performance.stratified_bootstrap(
        lambda y: performance.performance_profile(y, [-1.0, 0.0, 1.0]), scores, rng=rng, resamples=700, describe=True
    )
    assert profile.value.shape == profile.low.shape == (3,)
    assert (profile.low <= profile.value).all() and (profile.value <= profile.high).all()
    runs = performance.stratified_bootstrap(performance.mean, scores, rng=rng, resamples=700, describe=True)
    tasks = performance.stratified_bootstrap(
        performance.mean, scores, rng=rng, resamples=700, tasks_too=True, describe=True
    )
    assert tasks.high - tasks.low > 2 * (runs.high - runs.low)
    with pytest.raises(StudyError, match="'stratified' covered the truth in only"):
        performance.stratified_bootstrap(performance.mean, scores, rng=rng)
    assert performance.stratified_bootstrap(performance.mean, np.tile(scores, (5, 1)), rng=rng, resamples=100).low < 1
    with pytest.raises(StudyError, match="3 and 2 tasks"):
        performance.stratified_bootstrap(
            performance.probability_of_improvement, np.zeros((2, 3)), np.zeros((2, 2)), rng=rng
        )
    with pytest.raises(StudyError, match="finite"):
        performance.stratified_bootstrap(performance.mean, [[np.nan, 1.0]], rng=rng)


# --------------------------------------------------------------------------------------------------
# Several samples per item


def vote(subset: tuple[str | None, ...], right: str) -> float:
    """Chance that the right answer wins the vote of one subset, ties by lot; no answer never wins."""
    counts = Counter(answer for answer in subset if answer is not None)
    if not counts:
        return 0.0
    best = [answer for answer, count in counts.items() if count == max(counts.values())]
    return (right in best) / len(best)


answer_lists = st.lists(st.sampled_from(["1", "2", "3", "4", None]), min_size=1, max_size=8)


@settings(deadline=None, max_examples=150)
@given(answer_lists, st.integers(1, 8))
def test_maj_at_k_is_the_mean_over_all_subsets(answers: list[str | None], k: int):
    k = min(k, len(answers))
    subsets = list(combinations(answers, k))
    expected = sum(vote(subset, "1") for subset in subsets) / len(subsets)
    assert samples.maj_at([answers], ["1"], k)[0] == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(1, 8))
def test_pass_at_k_is_the_mean_over_all_subsets(right: list[bool], k: int):
    k = min(k, len(right))
    subsets = list(combinations(right, k))
    expected = sum(any(subset) for subset in subsets) / len(subsets)
    assert samples.pass_at([right], k)[0] == pytest.approx(expected, abs=1e-12)
    assert samples.pass_at([right], 1)[0] == pytest.approx(samples.avg_at([right])[0])


def test_sampling_measures_refuse_what_they_cannot_estimate():
    assert samples.avg_at([[1.0, np.nan, 0.0], [1, 1, 1]]) == pytest.approx([0.5, 1.0])
    with pytest.raises(StudyError, match="k = 3 needs between 1 and n = 2"):
        samples.pass_at([[1, 0]], 3)
    with pytest.raises(StudyError, match="zeros and ones"):
        samples.pass_at([[0.5, 0]], 1)
    with pytest.raises(StudyError, match="k = 0"):
        samples.maj_at([["1"]], ["1"], 0)
    with pytest.raises(StudyError, match="1 items and 2"):
        samples.maj_at([["1"]], ["1", "2"], 1)
