"""The audit of published tables: what is wrong is found, and nothing that is right is accused."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower
from statsmodels.stats.weightstats import ttost_ind

import steelyard
from steelyard.cli import main
from steelyard.errors import DataError
from steelyard.stats import compare
from steelyard.stats.audit import Audit, audit
from steelyard.stats.audit_family import best_of
from steelyard.stats.audit_findings import Finding
from steelyard.stats.audit_grain import mean_of, sd_of, sd_possible, totals
from steelyard.stats.audit_table import KINDS, Document
from steelyard.stats.estimate import summarise, t_interval
from steelyard.stats.published import Arm, d_range, extremes, p_range, t_range

VARIANTS = Path(__file__).parent / "data" / "variants_20.json"
HEADER = ["name", "class", "mean", "sd", "delta", "p", "d"]


def variants(**settings: Any) -> Audit:
    return audit(VARIANTS, **({"header": HEADER, "n": 5} | settings))


def only(found: Audit, check: str) -> Finding:
    (finding,) = [finding for finding in found.findings if finding.check == check]
    return finding


# --------------------------------------------------------------------------------------------------
# The published 20-variant table


def test_every_p_and_d_and_difference_of_the_published_table_holds():
    found = variants()
    assert found.wrong == ()
    for column in ("delta", "p", "d"):
        cells = [finding for finding in found.findings if finding.check == column]
        assert len(cells) == 19
        assert {finding.verdict for finding in cells} <= {"holds", "within rounding"}


def test_its_conventions_and_its_baseline_are_found_and_its_power_is_a_fifth_of_the_claim():
    found = variants(claims=[{"kind": "power", "power": 0.8, "d": 0.8}])
    test, effect, power = (found.fact(name) for name in ("test", "effect", "power"))
    assert test is not None and test.values == {"convention": "welch", "ddof": 1, "fits": 19, "cells": 19}
    assert effect is not None and effect.values["convention"] == "cohen"
    assert power is not None
    assert (round(power.values["power"], 2), round(power.values["power_corrected"], 2)) == (0.20, 0.02)
    assert power.values["power"] == pytest.approx(TTestIndPower().power(0.8, 5, 0.05), abs=1e-6)
    detectable = [fact.values for fact in found.facts if fact.name == "detectable"]
    assert [round(each["detectable"], 1) for each in detectable] == [4.6, 5.2]
    assert [round(each["detectable_corrected"], 1) for each in detectable] == [7.7, 8.8]
    (wrong,) = found.wrong
    assert (wrong.check, wrong.column, wrong.severity) == ("power", "claims[0]", "serious")
    assert wrong.true == "power 0.20; 26 runs per arm would have it"


def test_without_the_number_of_runs_p_cannot_be_checked_but_the_number_that_fits_is_named():
    found = variants(n=None)
    p = only(found, "p")
    assert (p.verdict, p.claimed) == ("cannot be checked", "19 cells")
    assert "follow by Welch's t from n = 5, and from no other up to 30" in p.needed
    assert all(finding.verdict != "cannot be checked" for finding in found.findings if finding.check == "delta")


@pytest.mark.parametrize(
    ("column", "value", "severity", "hint"),
    [
        (5, 0.0136, "minor", ""),
        (5, 0.0812, "serious", ""),
        (5, 0.0066, "minor", "one-sided"),
        (6, 2.77, "minor", "sds with divisor n"),
        (4, 4.22, "minor", ""),
        (4, -4.12, "serious", "baseline minus row"),
    ],
)
def test_one_wrong_cell_of_the_published_table_is_found(column: int, value: float, severity: str, hint: str):
    rows = json.loads(VARIANTS.read_text())
    if hint == "sds with divisor n":
        value = round(rows[0][6] * math.sqrt(4 / 5), 2)
    rows[0][column] = value
    (wrong,) = audit(rows, header=HEADER, n=5).wrong
    assert (wrong.row, wrong.column, wrong.severity) == ("ORPO", HEADER[column], severity)
    assert hint in wrong.how


def test_claims_about_the_published_table():
    found = variants(
        claims=[
            {"kind": "equal", "rows": ["IPO", "DPO"], "text": "IPO matches DPO"},
            {"kind": "best", "row": "ORPO"},
            {"kind": "corrected", "method": "bonferroni", "significant": ["SimPO"]},
            {"kind": "corrected", "method": "holm", "significant": ["SimPO", "ORPO"]},
            {"kind": "range", "value": "15.66"},
            {"kind": "difference", "rows": ["ORPO", "SimPO"], "value": "15.66"},
            {"kind": "relative", "rows": ["ORPO", "DPO"], "value": "8.3"},
            {"kind": "relative", "rows": ["ORPO", "DPO"], "value": "8.6"},
            {"kind": "order", "rows": ["ORPO", "DPO", "SimPO"]},
            {"kind": "order", "rows": ["DPO", "ORPO"]},
            {"kind": "significant", "rows": ["ORPO", "DPO"]},
            {"kind": "significant", "rows": ["ORPO", "DPO"], "corrected": True},
            {"kind": "detectable", "difference": "2.5", "power": 0.8},
            {"kind": "average", "value": "49.11"},
        ]
    )
    verdicts = {finding.column: finding for finding in found.findings if finding.column.startswith("claims")}
    assert [verdicts[f"claims[{i}]"].verdict for i in range(14)] == [
        *("does not hold", "cannot be checked", "holds", "does not hold", "holds", "holds", "holds", "does not hold"),
        *("holds", "does not hold", "holds", "does not hold", "does not hold", "holds"),
    ]
    equal = verdicts["claims[0]"]
    assert equal.claimed == "IPO matches DPO" and equal.true.startswith("not resolved")
    assert "17 of 19 steps are not resolved" in verdicts["claims[1]"].true
    assert verdicts["claims[12]"].true == "difference 5.22"
    assert found.counts()["arithmetic"] == {"does not hold": 1, "holds": 4}


# --------------------------------------------------------------------------------------------------
# Ranges


def test_ranges_of_exact_inputs_are_scipys_numbers():
    a, b = Arm((61.8, 61.8), (3.2, 3.2), 5), Arm((53.0, 53.0), (4.1, 4.1), 4)
    for test, equal in (("welch", False), ("student", True)):
        t, p = stats.ttest_ind_from_stats(61.8, 3.2, 5, 53.0, 4.1, 4, equal_var=equal)
        assert p_range(a, b, test) == pytest.approx((p, p))
        assert t_range(a, b, test) == pytest.approx((t, t))
        for side in ("greater", "less"):
            one = stats.ttest_ind_from_stats(61.8, 3.2, 5, 53.0, 4.1, 4, equal_var=equal, alternative=side)[1]
            assert p_range(a, b, test, side=side) == pytest.approx((one, one))
    summaries = summarise([1.0, 2.0, 4.0]), summarise([2.0, 2.5, 7.0, 3.0])
    arms = [Arm((s.mean, s.mean), (s.sd or 0.0, s.sd or 0.0), s.n) for s in summaries]
    for kind, oracle in (("cohen", compare.cohens_d), ("hedges", compare.hedges_g)):
        assert d_range(arms[0], arms[1], kind) == pytest.approx((oracle(*summaries),) * 2)


def test_a_range_holds_every_value_inside_the_box_and_its_ends_are_reached():
    a, b = Arm((3.05, 3.15), (0.35, 0.45), 4), Arm((2.95, 3.05), (0.55, 0.65), 3)
    found = p_range(a, b)
    assert found is not None
    rng, ps = np.random.default_rng(0), []
    assert a.sd and b.sd
    for _ in range(2000):
        x = [rng.uniform(*ends) for ends in (a.mean, a.sd, b.mean, b.sd)]
        ps.append(stats.ttest_ind_from_stats(x[0], x[1], 4, x[2], x[3], 3, equal_var=False)[1])
    assert found[0] <= min(ps) and max(ps) <= found[1]
    assert found[1] == pytest.approx(1.0) and found[0] > min(ps) - 0.02


def test_extremes_inside_a_box_are_found():
    assert extremes(lambda x, y: (x - 0.3) ** 2 + (y - 0.7) ** 2, (0.0, 1.0), (0.0, 1.0)) == pytest.approx(
        (0.0, 0.98), abs=1e-3
    )


# --------------------------------------------------------------------------------------------------
# Grains


def test_grim_agrees_with_the_vectors_of_the_scrutiny_package():
    possible = [bool(totals(((k - 0.5) / 100, (k + 0.5) / 100), 28, 1.0)) for k in range(519, 531)]
    assert possible == [False, False, True, False, False, False, True, False, False, False, True, False]
    per_cent = [bool(totals((k - 0.5, k + 0.5), 50, 100.0)) for k in range(6, 17)]
    assert per_cent == [True, False] * 5 + [True]
    assert sd_possible((5.205, 5.215), (1.595, 1.605), 28, 1.0) is not False
    assert sd_possible((3.435, 3.445), (2.465, 2.475), 18, 1.0) is False


@pytest.mark.parametrize(("n", "top"), [(2, 12), (3, 10), (4, 7), (5, 5)])
@pytest.mark.parametrize("ddof", [0, 1])
def test_grimmer_agrees_with_all_runs_there_are(n: int, top: int, ddof: int):
    runs = list(itertools.combinations_with_replacement(range(top + 1), n))
    all_runs = [(float(np.mean(run)), float(np.std(run, ddof=ddof))) for run in runs]
    rng = random.Random(n)
    cases = [(round(mean, 2), round(sd, 2)) for mean, sd in all_runs]
    cases += [(round(rng.randrange(n * top + 1) / n, 2), round(rng.uniform(0, top / 2), 2)) for _ in range(300)]
    truths = set()
    for mean, sd in cases:
        expected = any(abs(m - mean) <= 0.005 + 1e-9 and abs(s - sd) <= 0.005 + 1e-9 for m, s in all_runs)
        box = (mean - 0.005, mean + 0.005), (sd - 0.005, sd + 0.005)
        assert sd_possible(*box, n, 1.0, ddof=ddof, top=top) is expected, (mean, sd)
        truths.add(expected)
    assert truths == {True, False}


@given(st.lists(st.floats(0, 100), min_size=2, max_size=7), st.sampled_from([0.005, 0.5, 5.0]), st.integers(0, 1))
@settings(max_examples=60, deadline=None)
def test_the_sd_of_rounded_values_covers_the_sd_of_the_values(values: list[float], half: float, ddof: int):
    rounded = [round(value / (2 * half)) * 2 * half for value in values]
    ends = [(value - half, value + half) for value in rounded]
    low, high = sd_of(ends, ddof)
    assert low - 1e-5 <= np.std(values, ddof=ddof) <= high + 1e-9
    below, above = mean_of(ends)
    assert below - 1e-9 <= np.mean(values) <= above + 1e-9
    corners = [float(np.std(corner, ddof=ddof)) for corner in itertools.product(*ends)]
    assert high == pytest.approx(max(corners))


def row(name: str, **cells: Any) -> dict[str, Any]:
    return {"name": name, **cells}


def test_an_impossible_mean_is_found_for_one_run_and_for_several():
    assert only(audit([row("a", mean="53.25")], items=200, unit="percent"), "grim").verdict == "does not hold"
    assert only(audit([row("a", mean="53.5")], items=200, unit="percent"), "grim").true == "107 of 200"
    five = audit([row("a", mean="0.5325", n=5)], items=40, unit="fraction")
    wrong = only(five, "grim")
    assert (wrong.severity, wrong.true) == ("serious", "0.53000 or 0.53500")
    assert "200 answers (5 runs × 40)" in wrong.how
    # Per-run scores are held to their own items, and the steps of 1,319 items are finer than a tenth of a point.
    runs = audit([row("a", mean="53.25", seeds=["53.0", "53.5"])], items=200)
    assert [finding.verdict for finding in runs.findings if finding.check == "grim"] == ["holds"] * 3
    coarse = only(audit([row("a", mean="53.2")], items=1319), "grim")
    assert coarse.verdict == "cannot be checked" and "more digits" in coarse.needed


def test_an_impossible_sd_is_found():
    table = [row("a", mean="50.0", sd="3.00", n=2)]
    # Two shares of 20 items that average 50 % differ by an even number of items: sds are multiples of 7.07.
    assert only(audit(table, items=20), "grimmer").verdict == "does not hold"
    assert only(audit([row("a", mean="50.0", sd="7.07", n=2)], items=20), "grimmer").verdict == "holds"
    bound = only(audit([row("a", mean="97.0", sd="40.0", n=5)]), "possible")
    assert (bound.column, bound.true) == ("sd", "at most 19.2")
    assert only(audit([row("a", mean="97.0", p="1.2"), row("b", mean="90.0")]), "possible").true == "0 to 1"


def test_right_answers_are_held_against_the_mean():
    found = audit([row("a", mean="53.0", correct=107), row("b", mean="53.5", correct="107")], items=200)
    assert [finding.verdict for finding in found.findings if finding.check == "right answers"] == [
        "does not hold",
        "holds",
    ]


# --------------------------------------------------------------------------------------------------
# Runs and sds

RUNS = {"a": [52.1, 55.3, 50.4, 53.9, 51.2], "b": [48.3, 47.1, 49.9, 46.2, 48.8]}


def from_runs(divisor: int, **settings: Any) -> Audit:
    rows = [
        row(name, seeds=runs, mean=f"{np.mean(runs):.2f}", sd=f"{np.std(runs, ddof=divisor):.2f}")
        for name, runs in RUNS.items()
    ]
    return audit(rows, **settings)


def test_the_divisor_of_an_sd_is_seen_from_the_runs():
    for ddof in (0, 1):
        assert from_runs(ddof).ok and from_runs(ddof, ddof=ddof).ok
        wrong = from_runs(ddof, ddof=1 - ddof).wrong
        assert {finding.check for finding in wrong} == {"sd convention"}
        assert f"this one has divisor {'n - 1' if ddof else 'n'}" in wrong[0].how


def test_a_mean_that_is_not_that_of_its_runs_is_found():
    (wrong,) = audit([row("a", seeds=RUNS["a"], mean="52.68")]).wrong
    assert (wrong.check, wrong.true) == ("mean of seeds", "52.530 to 52.630")


def test_runs_that_agree_exactly_are_one_run():
    others = [row("b", mean="48.06", sd="1.42"), row("c", mean="51.00", sd="2.10")]
    found = audit([row("a", mean="50.10", sd="0.00"), *others], n=5)
    (wrong,) = found.wrong
    assert (wrong.check, wrong.claimed, wrong.severity) == ("copies", "sd 0.00 over 5 seeds", "serious")
    # One decimal leaves room for a small spread among three runs; an untrained model has no seeds at all.
    coarse = audit([row("a", mean="50.1", sd="0.0"), row("b", mean="48.1", sd="0.2")], n=2)
    assert only(coarse, "copies").verdict == "cannot be checked"
    assert audit([row("a", mean="50.10", sd="0.00", fixed="yes"), *others], n=5).ok
    assert only(audit([row("a", mean="50.10", sd="0.00")], n=5), "copies").verdict == "cannot be checked"
    seeds = audit([row("a", seeds=[50.10] * 3), row("b", seeds=RUNS["b"][:3])])
    assert only(seeds, "copies").claimed == "3 seeds that all score 50.1"


def test_the_runs_of_another_row_are_found():
    (wrong,) = audit([row("a", seeds=RUNS["a"]), row("b", seeds=RUNS["b"]), row("c", seeds=RUNS["a"][::-1])]).wrong
    assert (wrong.check, wrong.row, wrong.true) == ("copies", "c", "the runs of a")
    same = audit([row("a", mean="50.10", sd="1.25"), row("b", mean="50.10", sd="1.25")], n=3)
    assert only(same, "copies").verdict == "cannot be checked"


def test_intervals_are_recognised_and_the_normal_one_covers_less_than_it_says():
    summary = summarise(RUNS["a"])
    student = t_interval(summary)
    assert student is not None and summary.sd is not None
    cells = {"mean": f"{summary.mean:.2f}", "sd": f"{summary.sd:.2f}"}
    right = audit([row("a", low=f"{student.low:.2f}", high=f"{student.high:.2f}", **cells)], n=5)
    assert right.ok and only(right, "interval").how == "Student's t over the runs"
    half = 1.96 * summary.sd / math.sqrt(5)
    low, high = f"{summary.mean - half:.2f}", f"{summary.mean + half:.2f}"
    normal = only(audit([row("a", low=low, high=high, **cells)], n=5), "interval")
    covers = 100 * (1 - 2 * stats.t.sf(1.959964, 4))
    assert (normal.verdict, normal.true) == ("does not hold", f"covers {covers:.1f} % with 5 runs")
    wilson = only(audit([row("a", mean="5.0", low="2.15", high="11.18")], items=100), "interval")
    assert (wilson.verdict, wilson.how) == ("within rounding", "Wilson's interval over the items")
    se = audit([row("a", mean="52.58", sd="1.95", se="1.95")], n=5)
    assert "what is printed is the sd itself" in only(se, "standard error").how


# --------------------------------------------------------------------------------------------------
# Comparisons and corrections


def test_a_stated_test_is_binding_and_paired_tests_use_the_runs():
    a, b = RUNS["a"], RUNS["b"]
    p = f"{stats.ttest_rel(a, b).pvalue:.5f}"
    table = [row("a", seeds=a, p=p), row("b", seeds=b)]
    assert audit(table, test="paired").ok and audit(table).ok
    wrong = audit(table, test="welch").wrong
    assert wrong and "it would hold with a paired t" in wrong[0].how
    without = [row("a", mean="52.58", sd="1.94", p=p), row("b", mean="48.06", sd="1.44")]
    found = only(audit(without, test="paired", n=5), "p")
    assert found.verdict == "cannot be checked" and "any correlation" in found.needed
    impossible = [row("a", mean="52.58", sd="1.94", p="0.9"), row("b", mean="48.06", sd="1.44")]
    assert only(audit(impossible, test="paired", n=5), "p").verdict == "does not hold"
    assert only(audit(without, test="other", n=5), "p").verdict == "cannot be checked"


def test_p_follows_from_its_own_t_and_df():
    table = [row("a", mean="1", t="2.20", df="8", p="0.059"), row("b", mean="1")]
    assert only(audit(table), "p from t").verdict == "holds"
    table[0]["p"] = "0.048"
    wrong = only(audit(table), "p from t")
    assert (wrong.verdict, wrong.severity) == ("does not hold", "serious")


PS = ["0.010", "0.020", "0.030", "0.400"]


@pytest.mark.parametrize(
    ("method", "oracle"),
    [("bonferroni", "bonferroni"), ("holm", "holm"), ("bh", "fdr_bh"), ("hochberg", "simes-hochberg")],
)
def test_corrected_p_values_against_statsmodels(method: str, oracle: str):
    adjusted = np.asarray(multipletests([float(p) for p in PS], method=oracle)[1], dtype=float).tolist()
    rows = [row(f"m{i}", p=p, p_adjusted=f"{q:.3f}") for i, (p, q) in enumerate(zip(PS, adjusted, strict=True))]
    stated = audit([*rows, row("base")], correction=method)
    assert stated.ok and stated.counts()["correction"] == {"holds": 4}
    assert audit([*rows, row("base")]).ok
    rows[0]["p_adjusted"] = "0.010"
    (wrong,) = audit([*rows, row("base")], correction=method).wrong
    assert (wrong.row, wrong.column) == ("m0", "p_adjusted")


def test_significance_is_held_to_the_stated_correction_and_its_true_family():
    rows = [row(f"m{i}", p=p, significant="yes" if i < 2 else "no") for i, p in enumerate(PS)] + [row("base")]
    plain = audit(rows)
    assert [finding.row for finding in plain.wrong] == ["m2"]  # 0.030 is below 0.05
    strict = audit(rows, correction="bonferroni")
    assert [finding.row for finding in strict.wrong] == ["m1"]
    fact = plain.fact("correction")
    assert fact is not None and fact.values["holm"] == ["m0"]
    family = audit(rows, correction="bonferroni", comparisons=2, threshold=0.025)
    claimed = {finding.column: finding for finding in family.findings if finding.check == "correction"}
    assert claimed["comparisons"].verdict == "does not hold" and claimed["threshold"].verdict == "holds"
    edge = audit([row("m", p="0.05", significant="yes"), row("base")])
    assert only(edge, "significance").verdict == "cannot be checked"


def test_equality_needs_a_margin_and_a_test():
    a, b = RUNS["a"], [value + 0.2 for value in RUNS["a"]]
    table = [row("a", seeds=a, equal="yes"), row("b", seeds=b)]
    naive = only(audit(table, baseline="b"), "equality")
    assert naive.verdict == "does not hold" and "no significant difference is not equality" in naive.true
    p = float(ttost_ind(np.array(a), np.array(b), -3.0, 3.0, usevar="unequal")[0])
    shown = only(audit(table, baseline="b", margin=3), "equality")
    assert shown.verdict == ("holds" if p < 0.05 else "does not hold") == "holds"
    assert f"TOST p = {p:.2g}" in shown.true
    assert only(audit(table, baseline="b", margin=1), "equality").verdict == "does not hold"


def test_selection_on_the_reported_split():
    rows = [row("a", mean="52.0", sd="2.0", settings=10), row("b", mean="50.0", sd="2.0")]
    found = audit(rows, n=5, selected_on="test")
    assert [finding.check for finding in found.wrong] == ["selection", "selection"]
    assert "all 10 settings equal, the best of one run each would be 3.08 too high" in found.wrong[0].true
    assert audit(rows, n=5, selected_on="validation").ok
    assert only(audit(rows, n=5), "selection").verdict == "cannot be checked"
    rng = np.random.default_rng(0)
    assert best_of(10) == pytest.approx(rng.standard_normal((100_000, 10)).max(axis=1).mean(), abs=0.01)


def test_tasks_have_baselines_of_their_own():
    rows = [
        row("dpo", task="x", mean="50.0"),
        row("ipo", task="x", mean="51.0", delta="1.0"),
        row("dpo", task="y", mean="30.0"),
        row("ipo", task="y", mean="33.0", delta="2.0"),
    ]
    (wrong,) = audit(rows).wrong
    assert (wrong.task, wrong.true, wrong.cell) == ("y", "2.90 to 3.10", "ipo (y), delta")


# --------------------------------------------------------------------------------------------------
# Reading


def test_cells_are_read_as_they_are_printed(tmp_path: Path):
    path = tmp_path / "table.csv"
    path.write_text(
        "method,mean,p,seed_1,seed_2,Note\nours,52.60 ± 0.40,<.001,52.2,53.0,x\nDPO,\u221249.1%,1.5e-4***,–,,y\n",
        encoding="utf-8",
    )
    document = Document.read(path, {"columns": {"name": "method"}, "ignore": ["Note"], "n": None})
    ours, dpo = document.table("own").rows
    assert (ours.numbers["mean"].text, ours.numbers["mean"].low, ours.numbers["sd"].decimals) == ("52.60", 52.595, 2)
    assert ours.numbers["p"].below and ours.numbers["p"].range == (0.0, 0.001)
    assert [seed.value for seed in ours.seeds] == [52.2, 53.0] and ours.n == 2
    assert dpo.numbers["mean"].value == -49.1 and dpo.seeds == ()
    assert dpo.numbers["p"].range == pytest.approx((1.45e-4, 1.55e-4))
    (tmp_path / "paper.json").write_text('{"rows": "table.csv", "columns": {"name": "method"}, "ignore": ["Note"]}')
    assert len(Document.read(tmp_path / "paper.json", {}).rows) == 2


@pytest.mark.parametrize(
    ("table", "settings", "message"),
    [
        ([{"name": "a", "maen": 1}], {}, "row 1: unknown column 'maen'.*Did you mean 'mean'"),
        ([{"mean": 1}], {}, "column 'name' is missing"),
        ([{"name": "a", "mean": "high"}], {}, "row 1: column 'mean': expected a number as printed"),
        ([{"name": "a", "n": "2.5"}], {}, "expected a whole number"),
        ([{"name": "a", "equal": "perhaps"}], {}, "expected yes or no"),
        ([{"name": "a", "seeds": [1, 2]}], {"n": 3}, None),
        ([{"name": "a", "seeds": [1, 2], "n": 3}], {}, "2 values under 'seeds', but n = 3"),
        ([{"name": "DPO", "mean": 1}], {"baseline": "dpoo"}, "Did you mean 'DPO'"),
        ([{"name": "a"}], {"bseline": "a"}, "unknown setting 'bseline'.*Did you mean 'baseline'"),
        ([{"name": "a"}], {"test": "welsh"}, "unknown test 'welsh'.*Did you mean 'welch'"),
        ([{"name": "a"}], {"alpha": 5}, "between 0 and 1"),
        ([{"name": "a"}], {"claims": [{"kind": "eqal"}]}, r"claims\[0\].*Did you mean 'equal'"),
        ([{"name": "a"}], {"claims": [{"kind": "power"}]}, "needs 'power'"),
        ([{"name": "a"}], {"claims": [{"kind": "best", "row": "b"}]}, "unknown row 'b'"),
        ([{"name": "a"}], {"claims": [{"kind": "best", "row": "a", "rows": []}]}, "unknown key 'rows'"),
        ([["a", 1]], {}, "name their columns"),
        ([["a", 1]], {"header": ["name"]}, "row 1: expected 1 cells"),
        ([], {}, "at least one row"),
    ],
)
def test_wrong_tables_are_named_with_the_nearest_choice(table: Any, settings: dict[str, Any], message: str | None):
    if message is None:
        assert audit(table, **settings)
        return
    with pytest.raises(DataError, match=message):
        audit(table, **settings)


def test_a_data_frame_is_a_table():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"name": ["a", "b"], "mean": [51.25, 50.05], "delta": [1.2, float("nan")]})
    assert steelyard.audit(frame, baseline="b").ok


# --------------------------------------------------------------------------------------------------
# The verb


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "paper.json"
    claims = [{"kind": "power", "power": 0.8, "d": 0.8, "text": "80 % power | for large effects"}]
    document = {"title": "Twenty variants", "header": HEADER, "n": 5, "rows": str(VARIANTS), "claims": claims}
    path.write_text(json.dumps(document), encoding="utf-8")
    assert main(["audit", str(path)]) == 1
    shown = capsys.readouterr().out
    assert "1 finding does not hold; 24 hold, 33 within rounding; 2 cannot be checked." in shown
    assert "power 0.20" in shown and "--all lists what holds" in shown
    assert main(["audit", str(path), "--no-fail", "--all"]) == 0
    assert "BetaDPO" in capsys.readouterr().out
    assert main(["audit", str(path), "--json"]) == 1
    plain = json.loads(capsys.readouterr().out)
    assert plain["title"] == "Twenty variants" and not plain["ok"]
    assert plain["counts"]["p"] == {"within rounding": 17, "holds": 2}
    assert {"check", "row", "column", "claimed", "true", "verdict", "severity", "how", "needed"} <= set(
        plain["findings"][0]
    )
    assert main(["audit", str(path), "--markdown", "--no-fail"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("# Audit: Twenty variants") and "80 % power &#124; for large effects" in page
    assert all(line.count("|") in (0, 6, 7) for line in page.splitlines())


def test_the_command_line_reads_lists_and_says_what_is_wrong(capsys: pytest.CaptureFixture[str]):
    words = ["audit", str(VARIANTS), "--header", ",".join(HEADER), "--n", "5"]
    assert main(words) == 0
    assert main([*words, "--ddof", "0"]) == 1
    assert "sds with divisor n," in " ".join(capsys.readouterr().out.split())
    for wrong, message in (
        (["audit", "no.csv"], "no.csv: no such file"),
        (["audit", "table.xlsx"], "no such file"),
        ([*words, "--test", "welsh"], "Did you mean 'welch'"),
        ([*words, "--json", "--markdown"], "exclude each other"),
        ([*words, "--basline", "DPO"], "--baseline"),
    ):
        assert main(wrong) == 2
        assert message in capsys.readouterr().err


def test_every_kind_of_claim_is_documented():
    page = (Path(__file__).parents[1] / "docs" / "audit.md").read_text(encoding="utf-8")
    from steelyard.stats.audit_table import COLUMNS, SETTINGS

    for name in (*KINDS, *COLUMNS, *SETTINGS):
        assert f"`{name}`" in page, name
