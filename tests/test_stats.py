"""Estimators against scipy, statsmodels and published numbers; what a study's evidence must look like."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower, TTestPower
from statsmodels.stats.proportion import proportion_confint

from steelyard.errors import StudyError
from steelyard.stats import compare, design, estimate
from steelyard.stats.analyse import Analysis, analyse
from steelyard.stats.compare import Test as Found
from steelyard.stats.decompose import split_format
from steelyard.stats.estimate import Summary, summarise
from steelyard.stats.groups import letters
from steelyard.stats.published import recompute
from steelyard.stats.ranks import swaps
from steelyard.stats.table import Results, load_study
from study_factory import PREFERENCES, TASKS, edit_json, make_study, write_json

A, B = [0.61, 0.64, 0.58, 0.66, 0.60], [0.52, 0.59, 0.49, 0.55, 0.50]
COLUMNS = ("name", "class", "mean", "sd", "delta", "p", "d")


def study_analysis(path: Path, **changes: int) -> Analysis:
    return analyse(load_study(path), rng=np.random.default_rng(0), resamples=changes.get("resamples", 50))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def results(toy: Path) -> Results:
    return load_study(toy)


@pytest.fixture(scope="module")
def analysis(results: Results) -> Analysis:
    return analyse(results, rng=np.random.default_rng(0), resamples=200)


# --------------------------------------------------------------------------------------------------
# The published table


def published() -> list[dict[str, object]]:
    raw = json.loads((Path(__file__).parent / "data" / "variants_20.json").read_text())
    return [dict(zip(COLUMNS, row, strict=True)) for row in raw]


def test_every_printed_delta_p_and_d_follows_from_the_printed_means_and_sds():
    cells = recompute(published(), "DPO", n=5)
    assert len(cells) == 3 * 19
    assert [cell for cell in cells if not cell.holds] == []


def test_the_published_test_is_welch_and_not_student_and_the_sds_have_ddof_one():
    student = [c for c in recompute(published(), "DPO", n=5, test=compare.student) if c.quantity == "p"]
    assert sum(cell.holds for cell in student) == 10
    ddof0 = [{**row, "sd": row["sd"] * math.sqrt(5 / 4)} for row in published()]  # type: ignore[operator]
    assert sum(c.holds for c in recompute(ddof0, "DPO", n=5) if c.quantity in "pd") == 2


def test_the_copy_of_the_published_table_is_the_shared_one(shared_published: Path):
    copy = Path(__file__).parent / "data" / "variants_20.json"
    assert json.loads(shared_published.read_text()) == json.loads(copy.read_text())


@pytest.fixture
def shared_published() -> Path:
    import os

    root = Path(os.environ.get("STEELYARD_SHARED", Path(__file__).parents[2] / "shared"))
    path = root / "data" / "published" / "variants_20.json"
    if not path.is_file():
        pytest.skip(f"shared data are missing: {path}")
    return path


def test_a_wrong_cell_is_reported_not_tolerated():
    rows = published()
    rows[0]["p"] = 0.0136
    (cell,) = [cell for cell in recompute(rows, "DPO", n=5) if not cell.holds]
    assert (cell.row, cell.quantity, cell.printed) == ("ORPO", "p", 0.0136)
    assert cell.low < cell.high < 0.0136
    with pytest.raises(StudyError, match="Did you mean 'Hinge'"):
        recompute(rows, "hing", n=5)


def test_the_published_design_has_a_fifth_of_the_power_that_it_claims():
    assert design.power(0.8, 5) == pytest.approx(0.2007, abs=1e-4)
    assert design.power(0.8, 5, alpha=0.05 / 19) == pytest.approx(0.0202, abs=1e-4)
    detectable = design.detectable(5)
    assert detectable is not None
    # 4.6 points are the detectable difference at the baseline's own sd; pooled over all 20 rows it is 5.2.
    sds = np.array([row["sd"] for row in published()], dtype=float)
    assert detectable * 2.27 == pytest.approx(4.60, abs=0.005)
    assert detectable * np.sqrt(np.mean(sds**2)) == pytest.approx(5.22, abs=0.005)


# --------------------------------------------------------------------------------------------------
# Estimates


def test_sd_has_divisor_n_minus_one_and_equal_runs_have_exactly_none():
    assert summarise([1.0, 2.0, 4.0]).sd == pytest.approx(math.sqrt(7 / 3))
    assert summarise([0.1, 0.1, 0.1]).sd == 0.0  # naive rounding gives 1.7e-17
    assert summarise([0.3]).sd is None
    assert summarise([0.3, 0.4], fixed=True).sd is None
    for bad in ([], [float("nan")]):
        with pytest.raises(StudyError):
            summarise(bad)


def test_t_interval_agrees_with_scipy():
    interval = estimate.t_interval(summarise(A))
    low, high = stats.t.interval(0.95, len(A) - 1, np.mean(A), stats.sem(A))
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((low, high))
    assert estimate.t_interval(summarise([0.5, 0.5])) is None
    assert estimate.t_interval(summarise([0.5])) is None


@pytest.mark.parametrize(("k", "n"), [(0, 20), (3, 20), (20, 20), (57, 120)])
def test_proportion_intervals_agree_with_statsmodels(k: int, n: int):
    for ours, method in ((estimate.wilson, "wilson"), (estimate.exact, "beta")):
        interval = ours(k, n)
        expected = [
            np.nan_to_num(x, nan=edge) for x, edge in zip(proportion_confint(k, n, method=method), (0, 1), strict=True)
        ]
        assert (interval.low, interval.high) == pytest.approx(expected, abs=1e-9)


def test_item_interval_is_wilson_for_binary_scores_and_skips_what_was_not_scored():
    interval = estimate.item_interval([1, 0, 1, np.nan])
    assert interval is not None and interval.method == "Wilson" and interval.over == "items"
    assert (interval.low, interval.high) == pytest.approx(proportion_confint(2, 3, method="wilson"))
    half = estimate.item_interval([0.5, 1.0, 0.0])
    assert half is not None and half.method == "Student's t" and half.over == "items"
    assert estimate.item_interval([np.nan]) is None


def test_crossed_bootstrap_has_the_variance_of_both_draws():
    rng = np.random.default_rng(3)
    seeds, items = 40, 200
    scores = rng.normal(0, 1.0, (seeds, 1)) + rng.normal(0, 2.0, (1, items)) + rng.normal(0, 0.5, (seeds, items))
    interval = estimate.crossed_bootstrap(scores, rng=np.random.default_rng(0), resamples=4000)
    assert interval is not None and interval.over == "seeds and items"
    both = math.sqrt(1.0**2 / seeds + 2.0**2 / items)
    assert (interval.high - interval.low) / (2 * 1.96) == pytest.approx(both, rel=0.2)
    again = estimate.crossed_bootstrap(scores, rng=np.random.default_rng(0), resamples=4000)
    assert again == interval
    scores[0, :] = np.nan
    assert estimate.crossed_bootstrap(scores, rng=rng) is not None
    assert estimate.crossed_bootstrap(scores[:1], rng=rng) is None
    assert estimate.crossed_bootstrap(np.full((3, 9), 0.5), rng=rng) is None


# --------------------------------------------------------------------------------------------------
# Tests and effect sizes


def agrees(found: Found, expected: object) -> None:
    interval = expected.confidence_interval(0.95)  # type: ignore[attr-defined]
    ours = (found.statistic, found.p, found.df, found.low, found.high)
    theirs = (expected.statistic, expected.pvalue, expected.df, interval.low, interval.high)  # type: ignore[attr-defined]
    assert ours == pytest.approx(theirs)


def test_tests_agree_with_scipy_including_their_intervals():
    a, b = summarise(A), summarise(B[:4])
    agrees(compare.welch(a, b), stats.ttest_ind(A, B[:4], equal_var=False))
    agrees(compare.student(a, b), stats.ttest_ind(A, B[:4], equal_var=True))
    agrees(compare.paired(A, B), stats.ttest_rel(A, B))
    one = compare.one_sample(a, 0.55)
    agrees(replace(one, low=0.55 + (one.low or 0), high=0.55 + (one.high or 0)), stats.ttest_1samp(A, 0.55))


def test_tests_from_summaries_agree_with_scipy():
    found = compare.welch(Summary(53.89, 0.6, 5), Summary(49.76, 2.27, 5))
    assert found.p == pytest.approx(stats.ttest_ind_from_stats(53.89, 0.6, 5, 49.76, 2.27, 5, equal_var=False).pvalue)


def test_a_fixed_arm_is_a_constant_from_either_side():
    fixed, arm = Summary(0.5, None, 1, fixed=True), summarise(A)
    one, other = compare.independent(arm, fixed), compare.independent(fixed, arm)
    assert one.method == other.method == "one-sample t"
    assert (other.difference, other.low, other.high, other.p) == pytest.approx(
        (-one.difference, -one.high, -one.low, one.p)
    )
    assert compare.independent(fixed, fixed).p is None
    assert compare.cohens_d(arm, fixed) == pytest.approx((np.mean(A) - 0.5) / np.std(A, ddof=1))


def test_what_cannot_be_tested_says_why_and_has_no_p():
    flat, single, arm = summarise([0.5, 0.5]), summarise([0.4]), summarise(A)
    assert "no run-to-run variation" in compare.welch(flat, flat).note
    assert "at least two" in compare.welch(arm, single).note
    assert "agree exactly" in compare.welch(arm, flat).note
    for found in (compare.welch(flat, flat), compare.welch(arm, single), compare.student(flat, flat)):
        assert found.p is None and found.low is None
    assert compare.paired([0.5], [0.4]).p is None
    assert compare.paired([], []).p is None
    assert "equal" in compare.paired([0.5, 0.25], [0.25, 0.0]).note
    assert compare.one_sample(flat, 0.4).p is None
    with pytest.raises(StudyError, match="equally many"):
        compare.paired([0.5], [])


def test_effect_sizes_by_hand():
    a, b = Summary(1.0, 0.3, 3), Summary(0.7, 0.5, 3)
    d = compare.cohens_d(a, b)
    assert d == pytest.approx(0.3 / math.sqrt((0.09 + 0.25) / 2))
    g = compare.hedges_g(a, b)
    assert d is not None and g is not None
    assert g / d == pytest.approx(0.7979, abs=1e-4)  # Hedges (1981), table of J(m), m = 4
    assert compare.hedges_g(Summary(1, 1, 11), Summary(0, 1, 11)) == pytest.approx(1 - 3 / (4 * 20 - 1), abs=1e-3)
    assert compare.cohens_d(summarise([0.5, 0.5]), summarise([0.4, 0.4])) is None
    assert compare.hedges_g(summarise([0.5]), summarise(A)) is None


def test_corrections_by_hand_and_untestable_ones_do_not_count():
    ps = [0.01, None, 0.04, 0.03, 0.005]
    assert compare.bonferroni(ps) == pytest.approx([0.04, None, 0.16, 0.12, 0.02])
    assert compare.holm(ps) == pytest.approx([0.03, None, 0.06, 0.06, 0.02])
    many = np.random.default_rng(5).uniform(0, 0.2, 30).tolist()
    assert compare.holm(many) == pytest.approx(multipletests(many, method="holm")[1])
    assert compare.holm([None]) == [None]
    assert compare.holm([]) == []


# --------------------------------------------------------------------------------------------------
# Groups, design, decomposition, swaps


def test_letters_of_a_textbook_case():
    # Piepho (2004): treatments 1-2-3 chained, first and last apart.
    assert letters(["x", "y", "z"], {("x", "z")}) == {"x": "a", "y": "ab", "z": "b"}
    assert letters(["x", "y"], set()) == {"x": "a", "y": "a"}
    assert letters(["x", "y"], {("y", "x")}) == {"x": "a", "y": "b"}


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 8).flatmap(lambda k: st.tuples(st.just(k), st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7)))))
)
def test_arms_share_a_letter_exactly_when_they_are_not_separated(case: tuple[int, set[tuple[int, int]]]):
    size, raw = case
    names = [f"arm{i}" for i in range(size)]
    separated = {(names[i], names[j]) for i, j in raw if i < j < size}
    shown = letters(names, separated)
    assert shown[names[0]].startswith("a")
    for a, b in combinations(names, 2):
        assert bool(set(shown[a]) & set(shown[b])) == ((a, b) not in separated)


def test_power_agrees_with_statsmodels_where_that_is_finite():
    for d in (0.2, 0.8, 1.2):
        for n in (3, 5, 12):
            for alpha in (0.05, 0.05 / 9):
                assert design.power(d, n, alpha=alpha) == pytest.approx(TTestIndPower().power(d, n, alpha), abs=1e-6)
                one = design.power(d, n, alpha=alpha, against_constant=True)
                assert one == pytest.approx(TTestPower().power(d, n, alpha), abs=1e-6)


@pytest.mark.parametrize("against_constant", [False, True])
def test_power_is_finite_and_rises_where_libraries_give_nan(against_constant: bool):
    for n in (2, 3, 5, 100):
        for alpha in (0.05, 0.05 / 19, 0.05 / 200):
            found = [design.power(d, n, alpha=alpha, against_constant=against_constant) for d in np.linspace(0, 40, 41)]
            values = np.array(found, dtype=float)
            assert np.isfinite(values).all() and (np.diff(values) > -2e-7).all()
            assert values[0] == pytest.approx(alpha) and values[-1] <= 1 + 1e-9
            smallest = design.detectable(n, alpha=alpha, against_constant=against_constant)
            assert smallest is not None
            assert design.power(smallest, n, alpha=alpha, against_constant=against_constant) == pytest.approx(0.8)


def test_seeds_needed_is_the_smallest_number_that_suffices():
    assert design.seeds_needed(0.8) == 26  # Cohen (1988), table 2.4.1
    assert design.seeds_needed(0.5) == 64
    assert design.seeds_needed(0.0) is None
    assert design.seeds_needed(1e-4) is None
    assert design.power(0.8, 1) is None and design.detectable(1) is None


def test_design_of_a_table_pools_the_spread_and_corrects_its_level():
    arms = [Summary(0.5, 0.03, 3), Summary(0.6, 0.04, 3), Summary(0.4, None, 1, fixed=True)]
    found = design.describe(arms, comparisons=4, against_constant=False)
    assert found.n == 3 and found.sd == pytest.approx(0.0353553, abs=1e-6)
    assert found.detectable == pytest.approx((found.sd or 0) * (design.detectable(3) or 0))
    assert (found.power_corrected or 1) < (found.power or 0)
    flat = design.describe([summarise([0.5, 0.5])], comparisons=1, against_constant=False)
    assert flat.detectable is None


shares = st.floats(0, 1)


@given(shares, shares, shares, shares)
def test_answer_and_format_add_up_to_the_difference(
    flexible: float, keep: float, base_flexible: float, base_keep: float
):
    found = split_format(flexible * keep, flexible, base_flexible * base_keep, base_flexible)
    assert found.answer + found.format == pytest.approx(found.strict, abs=1e-12)
    if found.share is not None:
        assert 0 <= found.share <= 1


def test_share_of_format_by_hand():
    found = split_format(0.70, 0.80, 0.40, 0.60)
    assert (found.answer, found.format) == pytest.approx((0.2, 0.1))
    assert found.share == pytest.approx(1 / 3)
    assert split_format(0.5, 0.5, 0.3, 0.5).share == pytest.approx(1.0)  # only the form improved
    assert split_format(0.4, 0.8, 0.5, 0.6).share is None  # better answers, worse form
    assert split_format(0.5, 0.6, 0.5, 0.6).share is None


# --------------------------------------------------------------------------------------------------
# Reading a study


def test_rows_are_runs_by_tasks_with_their_metrics(results: Results):
    assert len(results.runs) == 4 * 2 * 3 + 2
    assert len(results.rows) == len(results.runs) * len(TASKS)
    row = next(
        r for r in results.rows if (r.algorithm, r.model, r.seed, r.task) == ("dpo", "builtin:0.1m", "1", "chains")
    )
    assert (row.role, row.n_items) == ("unseen", 80)
    assert row.score == row.strict and row.flexible is not None and row.strict is not None
    assert row.strict <= row.flexible and row.truncated is not None and row.empty == 0
    assert results.axes["algorithm"] == ("base", "sft", "dpo", "simpo", "grpo")
    assert results.notes == () and results.gaps == ()
    matrix = results.item_scores(results.runs[:2], "facts")
    assert matrix is not None and matrix.shape == (2, 90)
    assert matrix.mean(axis=1) == pytest.approx([run.metrics["facts"]["score"] for run in results.runs[:2]])


def test_failed_and_missing_cells_are_listed(tmp_path: Path):
    path = make_study(tmp_path, failed=[("dpo", "builtin:0.1m", 1)], include_base=False)
    study = json.loads((path / "study.json").read_text())
    gone = study["cells"][0]["path"]
    for file in sorted((path / gone).rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    found = load_study(path)
    assert len(found.runs) == 22
    assert [(gap.cell["algorithm"], gap.status) for gap in found.gaps] == [("sft", "finished"), ("dpo", "failed")]
    assert "loss is nan" in found.gaps[1].reason


def edit_run(path: Path, index: int, **changes: object) -> Path:
    cell = json.loads((path / "study.json").read_text())["cells"][index]
    edit_json(path / cell["path"] / "run.json", **changes)
    return path / cell["path"]


def test_identical_weights_under_different_seeds_are_refused(tmp_path: Path):
    path = make_study(tmp_path, include_base=False)
    for index in (0, 1):
        edit_run(path, index, weights_sha256="same")
    with pytest.raises(StudyError, match=r"sft · builtin:0.1m: seeds 0 and 1 ended with identical weights"):
        load_study(path)


def test_the_untrained_baseline_may_repeat_itself_and_is_one_fixed_model(tmp_path: Path):
    path = make_study(tmp_path, base_runs=3, baseline="base")
    found = study_analysis(path)
    base = found.tables[0].arm("base")
    assert base.summary.fixed and base.summary.sd is None and base.summary.n == 3
    assert base.interval is not None and base.interval.over == "items"
    assert {c.test.method for c in found.tables[0].comparisons} == {"one-sample t"}
    assert found.tables[0].design.against_constant
    assert all(c.paired is None for c in found.tables[0].comparisons)


def test_an_untrained_model_that_moves_is_noted(tmp_path: Path):
    path = make_study(tmp_path, base_runs=2)
    directory = edit_run(path, 0)
    facts = json.loads((directory / "run.json").read_text())
    facts["metrics"]["eval/arithmetic/score"] += 0.1
    write_json(directory / "run.json", facts)
    (directory / "eval" / "arithmetic.jsonl").unlink()
    assert any("not deterministic" in note for note in load_study(path).notes)


def rewrite_records(directory: Path, task: str, change) -> None:
    file = directory / "eval" / f"{task}.jsonl"
    rows = change([json.loads(line) for line in file.read_text().splitlines()])
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], r"task 'facts': .* unequal items \(90 and 89, 1 not in common\)"),
        (lambda rows: [{**row, "version": "9"} for row in rows], "versions 2 and 9"),
        (lambda rows: rows + rows[:1], "item 'facts-0000' occurs twice"),
        (lambda rows: [{**row, "score": 1} for row in rows], "run.json reports score .* its records average 1.000000"),
        (lambda rows: [{"score": 1}], "expected one record with an `item` per line"),
        (lambda rows: [], "expected one record"),
    ],
)
def test_evidence_that_cannot_be_compared_is_refused(tmp_path: Path, change, message: str):
    path = make_study(tmp_path, models=["builtin:0.1m"], algorithms=["dpo"])
    rewrite_records(edit_run(path, 2), "facts", change)
    with pytest.raises(StudyError, match=message):
        load_study(path)


def test_records_that_changed_after_the_run_are_refused(tmp_path: Path):
    path = make_study(tmp_path, models=["builtin:0.1m"], algorithms=["dpo"])
    edit_run(path, 1, files={"eval/facts.jsonl": "0" * 64})
    with pytest.raises(StudyError, match="facts.jsonl: changed since the run finished"):
        load_study(path)


def test_unusable_directories_give_one_sentence(tmp_path: Path):
    with pytest.raises(StudyError, match="not a study directory"):
        load_study(tmp_path)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(StudyError, match=r"study.json:1: not JSON"):
        load_study(tmp_path)
    (tmp_path / "study.json").write_text("[]")
    with pytest.raises(StudyError, match="list of `cells`"):
        load_study(tmp_path)
    path = make_study(tmp_path / "x", models=["builtin:0.1m"], algorithms=["dpo"], seeds=[0], include_base=False)
    edit_run(path, 0, status="failed", error="NumericalError: nan")
    with pytest.raises(StudyError, match="none of the 1 runs .* NumericalError: nan"):
        load_study(path)
    study = json.loads((path / "study.json").read_text())
    write_json(path / "study.json", {**study, "cells": [*study["cells"], {**study["cells"][0], "run": "another"}]})
    with pytest.raises(StudyError, match="label them apart"):
        load_study(path)


def test_one_seed_and_identical_methods_are_said(tmp_path: Path):
    path = make_study(tmp_path, models=["builtin:0.1m"], seeds=[0], include_base=False)
    for index in (1, 2):
        edit_run(path, index, weights_sha256="same")
    notes = load_study(path).notes
    assert any("one seed" in note for note in notes)
    assert any("dpo · builtin:0.1m and simpo · builtin:0.1m ended with identical weights" in note for note in notes)
    found = study_analysis(path)
    assert {c.verdict for table in found.tables for c in table.comparisons} == {"not testable"}
    assert found.tables[0].design.power is None and found.comparisons == 0


# --------------------------------------------------------------------------------------------------
# Analysing a study


def test_tables_compare_within_conditions_development_first(analysis: Analysis):
    assert [(t.task.name, t.condition["model"]) for t in analysis.tables] == [
        (task, model) for task in TASKS for model in ("builtin:0.1m", "builtin:0.5m")
    ]
    table = analysis.tables[0]
    assert table.baseline == "dpo" and [arm.name for arm in table.arms][0] == "sft"
    assert [arm.summary.mean for arm in table.arms] == sorted((a.summary.mean for a in table.arms), reverse=True)
    assert len(table.comparisons) == 4 and table.design.comparisons == 4
    assert table.comparison("dpo") is None


def test_comparisons_are_those_of_the_raw_values(results: Results, analysis: Analysis):
    table = analysis.of("chains", "score")[1]

    def values(name: str) -> list[float]:
        return [
            r.score or 0.0 for r in results.rows if (r.algorithm, r.model, r.task) == (name, "builtin:0.5m", "chains")
        ]

    found = table.comparison("grpo")
    assert found is not None and found.paired is not None and found.parts is not None
    expected = stats.ttest_ind(values("grpo"), values("dpo"), equal_var=False)
    assert found.test.p == pytest.approx(expected.pvalue)
    assert found.paired.p == pytest.approx(stats.ttest_rel(values("grpo"), values("dpo")).pvalue)
    assert found.parts.strict == pytest.approx(found.test.difference)
    ps = [c.test.p for c in table.comparisons]
    assert [c.p_holm for c in table.comparisons] == pytest.approx(compare.holm(ps))
    assert [c.p_bonferroni for c in table.comparisons] == pytest.approx(compare.bonferroni(ps))
    assert all((c.p_holm_study or 0) >= (c.p_holm or 0) for t in analysis.tables for c in t.comparisons)
    assert analysis.comparisons == 24


def test_the_two_families_do_not_overlap_so_they_cannot_disagree(analysis: Analysis):
    for table in analysis.tables:
        assert all(table.baseline not in (pair.better, pair.worse) for pair in table.pairs)
        assert table.arm("dpo").letters == ""
        for pair in table.pairs:
            shared = set(table.arm(pair.better).letters) & set(table.arm(pair.worse).letters)
            assert bool(shared) != pair.resolved
        assert len(table.all_pairs) == 10
        best = table.arms[0].name
        assert best not in table.unresolved_from(best)


def test_unresolved_comparisons_say_how_many_seeds_would_resolve_them(analysis: Analysis):
    unresolved = [c for t in analysis.tables for c in t.comparisons if c.verdict == "not resolved"]
    assert unresolved
    for found in unresolved:
        assert found.seeds_needed is None or found.seeds_needed > 3
    assert all(c.seeds_needed is None for t in analysis.tables for c in t.comparisons if c.verdict == "higher")


def test_baselines_that_do_not_exist_are_refused_with_the_nearest(tmp_path: Path):
    path = make_study(tmp_path, models=["builtin:0.1m"], seeds=[0, 1])
    for baseline, message in (
        ({"algorithm": "dop"}, "unknown algorithm 'dop'.*Did you mean 'dpo'"),
        ({"algoritm": "dpo"}, "unknown axis 'algoritm'.*Did you mean 'algorithm'"),
    ):
        edit_json(path / "study.json", baseline=baseline)
        with pytest.raises(StudyError, match=message):
            study_analysis(path)
    edit_json(path / "study.json", baseline=None, config={})
    assert study_analysis(path).baseline == "base"


def relabel(path: Path, change) -> None:
    study = json.loads((path / "study.json").read_text())
    for cell in study["cells"]:
        cell["cell"] = change(dict(cell["cell"]))
    write_json(path / "study.json", study)


def test_an_axis_of_one_method_makes_arms_and_not_conditions(tmp_path: Path):
    path = make_study(tmp_path, models=["builtin:0.1m"], algorithms=["sft", "dpo", "simpo"], baseline="sft")

    def change(cell: dict) -> dict:
        if cell["algorithm"] in ("dpo", "simpo"):
            cell["algorithm.beta"] = 0.1 if cell["algorithm"] == "dpo" else 0.5
            cell["algorithm"] = "dpo"
        return cell

    relabel(path, change)
    found = study_analysis(path)
    assert found.treatments == ("base", "sft", "dpo · beta=0.1", "dpo · beta=0.5")
    assert found.conditions == ({"model": "builtin:0.1m"},)
    edit_json(path / "study.json", baseline={"algorithm": "dpo"})
    with pytest.raises(StudyError, match="selects 2 arms: dpo · beta=0.1, dpo · beta=0.5"):
        study_analysis(path)


def test_the_untrained_model_belongs_to_every_value_of_a_training_axis(tmp_path: Path):
    path = make_study(tmp_path, algorithms=["sft", "dpo"])

    def change(cell: dict) -> dict:
        decay = 0.1 if cell["model"] == "builtin:0.5m" else 0.0
        cell["model"] = "builtin:0.1m"
        return cell if cell["algorithm"] == "base" else {**cell, "optim.weight_decay": decay}

    study = json.loads((path / "study.json").read_text())
    kept = [c for c in study["cells"] if c["cell"]["algorithm"] != "base" or c["cell"]["model"] == "builtin:0.1m"]
    write_json(path / "study.json", {**study, "cells": kept})
    relabel(path, change)
    found = study_analysis(path)
    assert found.conditions == (
        {"model": "builtin:0.1m", "optim.weight_decay": "0.0"},
        {"model": "builtin:0.1m", "optim.weight_decay": "0.1"},
    )
    assert all({arm.name for arm in table.arms} == {"base", "sft", "dpo"} for table in found.tables)


def test_preferences_are_measured_by_log_prob_log_ratio_and_reward_head(tmp_path: Path):
    path = make_study(tmp_path, algorithms=["sft", "dpo", "rm"], models=["builtin:0.1m"], tasks=PREFERENCES)
    found = study_analysis(path)
    assert found.measures == [
        ("preferences", "accuracy_logprob"),
        ("preferences", "accuracy_logratio"),
        ("preferences", "accuracy"),
    ]
    by_measure = {table.measure: table for table in found.tables}
    assert by_measure["accuracy_logprob"].absent == ("rm",)
    assert by_measure["accuracy_logratio"].absent == ("base", "rm")
    assert by_measure["accuracy"].baseline is None and by_measure["accuracy"].comparisons == ()
    assert by_measure["accuracy_logprob"].task.role == "held-out"


def test_swaps_count_as_inversions_only_when_both_orders_are_resolved(tmp_path: Path):
    noisy = make_study(tmp_path / "noisy", algorithms=["sft", "dpo"], skill={"sft": 0.5, "dpo": 0.5}, spread=0.3)
    found = [swap for task in TASKS for swap in swaps(study_analysis(noisy).of(task, "score"))]
    assert found and not any(swap.resolved for swap in found)

    def exchange(cell: dict) -> dict:
        other = {"sft": "dpo", "dpo": "sft"}
        if cell["model"] == "builtin:0.5m":
            cell["algorithm"] = other.get(cell["algorithm"], cell["algorithm"])
        return cell

    clear = make_study(tmp_path / "clear", algorithms=["sft", "dpo"], skill={"sft": 1.2, "dpo": -0.8}, spread=0.0)
    relabel(clear, exchange)
    (swap,) = [s for s in swaps(study_analysis(clear).of("facts", "score")) if {s.a, s.b} == {"sft", "dpo"}]
    assert swap.resolved and (swap.a, swap.b) == ("sft", "dpo")


# --------------------------------------------------------------------------------------------------
# By simulation


def test_t_intervals_cover_and_families_keep_their_level():
    rng = np.random.default_rng(11)
    studies, arms, n = 1500, 5, 3
    spread = np.array([0.5, 1.0, 1.0, 2.0, 4.0])[:, None]
    covered = false_alarms = pair_alarms = 0
    for _ in range(studies):
        found = [summarise(row) for row in (rng.normal(size=(arms, n)) * spread).tolist()]
        intervals = [estimate.t_interval(arm) for arm in found]
        covered += sum(interval is not None and interval.low <= 0 <= interval.high for interval in intervals)
        against = compare.holm([compare.welch(arm, found[1]).p for i, arm in enumerate(found) if i != 1])
        false_alarms += any(p is not None and p < 0.05 for p in against)
        pairs = compare.holm([compare.welch(a, b).p for a, b in combinations(found, 2)])
        pair_alarms += any(p is not None and p < 0.05 for p in pairs)
    assert covered / (studies * arms) == pytest.approx(0.95, abs=0.01)
    assert false_alarms / studies <= 0.055
    assert pair_alarms / studies <= 0.055
