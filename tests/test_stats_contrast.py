"""Tests on per-item outcomes against scipy and statsmodels, plain tables, and ``steelyard compare`` with them."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

import steelyard.cli
from steelyard.errors import DataError, StudyError
from steelyard.stats import coverage, intervals, tests
from steelyard.stats.contrast import Contrasted, contrast
from steelyard.stats.outcomes import Arm, Outcomes, Sides, read_tables, sides
from study_factory import make_study

RNG = np.random.default_rng(0)


def crossed_scores(n: int = 4, m: int = 40, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return shift + 0.3 * rng.normal(size=(n, 1)) + 0.5 * rng.normal(size=(1, m)) + rng.normal(size=(n, m))


def paired_sides(n: int = 4, m: int = 40, shift: float = 0.5) -> Sides:
    return Sides(crossed_scores(n, m, 1, shift), crossed_scores(n, m, 2), seeds_paired=True)


def outcomes(**scores: np.ndarray) -> Outcomes:
    m = next(iter(scores.values())).shape[1]
    arms = {k: Arm(k, tuple(str(s) for s in range(len(v))), v) for k, v in scores.items()}
    return Outcomes("task", "score", tuple(str(i) for i in range(m)), arms)


def run(name: str, both: Sides) -> tests.Result:
    return tests.run(name, both, rng=np.random.default_rng(0))


# --------------------------------------------------------------------------------------------------
# Intervals and the mixed test


def test_components_and_mixed_effects_are_those_of_reml():
    both = paired_sides()
    gaps = both.a - both.b
    n, m = gaps.shape
    frame = pd.DataFrame({"y": gaps.ravel(), "seed": np.repeat(np.arange(n), m), "item": np.tile(np.arange(m), n)})
    fit = sm.MixedLM.from_formula(
        "y ~ 1", frame, groups=np.ones(n * m), vc_formula={"seed": "0 + C(seed)", "item": "0 + C(item)"}
    ).fit(reml=True)
    item, seed = fit.vcomp  # in alphabetical order
    assert intervals.components(gaps) == pytest.approx((seed, item, fit.scale), rel=2e-3)
    found = run("mixed", both)
    assert found.pivot is not None and found.pivot.se == pytest.approx(float(fit.bse["Intercept"]), rel=2e-3)
    assert found.test.difference == pytest.approx(float(fit.params["Intercept"]))
    assert found.over == "seeds and items" and found.test.p is not None


def test_mixed_with_independent_seeds_adds_up_what_varies():
    a, b = crossed_scores(3, 2000, 1), crossed_scores(5, 2000, 2)
    found = run("mixed", Sides(a, b, seeds_paired=False))
    assert found.pivot is not None
    seeds, items = found.pivot.parts
    welch = stats.ttest_ind(a.mean(axis=1), b.mean(axis=1), equal_var=False)
    assert seeds.df == pytest.approx(welch.df)
    assert seeds.variance == pytest.approx(a.mean(axis=1).var(ddof=1) / 3 + b.mean(axis=1).var(ddof=1) / 5)
    assert items.variance == pytest.approx((0.5**2 + 0.5**2) / 2000, rel=0.15)
    fixed = run("mixed", Sides(a, b[:1], seeds_paired=False, b_fixed=True))
    assert fixed.pivot is not None and fixed.pivot.parts[0].df == 2


def test_an_arms_default_interval_and_its_parts():
    y = (crossed_scores(3, 300, 7) > 0).astype(float)
    found, over_seeds = intervals.crossed(y), intervals.over_seeds(y)
    assert found is not None and over_seeds is not None
    assert found.over == "seeds and items" and found.high - found.low > over_seeds.high - over_seeds.low
    assert intervals.crossed(np.full((3, 5), 0.5)) is None
    clustered = intervals.clustered(y)
    assert clustered is not None
    assert (clustered.low, clustered.high) == pytest.approx(
        stats.t.interval(0.95, 299, y.mean(), stats.sem(y.mean(axis=0)))
    )
    with pytest.raises(StudyError, match="missing"):
        intervals.components([[1.0, np.nan], [0.0, 1.0]])
    with pytest.raises(StudyError, match="two seeds"):
        intervals.components([[1.0, 0.0]])


def test_intervals_that_do_not_cover_are_refused_with_words():
    y = (crossed_scores(3, 300, 7) > 0).astype(float)
    for name in ("seed-bootstrap", "pigeonhole"):
        with pytest.raises(StudyError, match="covered the truth in only .* refused; use 'crossed'"):
            intervals.interval(y, name, rng=RNG)
    assert intervals.interval(y) == intervals.crossed(y)
    assert intervals.interval(y, "bca-items", rng=np.random.default_rng(1)) is not None
    with pytest.raises(StudyError, match="pass rng"):
        intervals.interval(y, "bca-items")
    with pytest.raises(StudyError, match="unknown interval"):
        intervals.interval(y, "crosed")
    assert intervals.interval(np.repeat(y, 5, axis=0) + RNG.normal(size=(15, 1)), "pigeonhole", rng=RNG) is not None
    assert coverage.simulated("crossed", 7) == coverage.SIMULATED["crossed"][5]
    assert coverage.simulated("wilson", 3) == coverage.SIMULATED["wilson"][0]
    assert coverage.simulated("nothing", 3) is None and "not simulated" in coverage.shown("nothing", 3)
    assert coverage.shown("crossed", 5).startswith("simulated coverage of 95 %: 9")


# --------------------------------------------------------------------------------------------------
# The other tests


def test_tests_over_seeds_are_scipys():
    both = paired_sides(7)
    a, b = both.a.mean(axis=1), both.b.mean(axis=1)
    assert run("welch", both).test.p == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue)
    paired = stats.ttest_rel(a, b)
    found = run("paired-t", both).test
    ends = paired.confidence_interval(0.95)
    assert (found.p, found.low, found.high) == pytest.approx((paired.pvalue, ends.low, ends.high))
    assert run("wilcoxon", both).test.p == pytest.approx(stats.wilcoxon(a, b).pvalue)
    permuted = stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True
    )
    assert run("seed-permutation", both).test.p == pytest.approx(permuted.pvalue)
    loose = Sides(both.a[:4], both.b[:4], seeds_paired=False)
    dealt = stats.permutation_test(
        (a[:4], b[:4]),
        lambda x, y, axis: np.mean(x, axis=axis) - np.mean(y, axis=axis),
        permutation_type="independent",
        vectorized=True,
    )
    assert run("seed-permutation", loose).test.p == pytest.approx(dealt.pvalue)


def test_wilcoxons_interval_is_the_published_one():
    # Hollander & Wolfe (1973), depression data (R: wilcox.test(x, y, paired=TRUE, conf.int=TRUE), 96.1 % achieved)
    x = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
    y = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
    both = Sides(np.array(x)[:, None], np.array(y)[:, None], seeds_paired=True)
    found = run("wilcoxon", both).test
    assert found.p == pytest.approx(0.03906, abs=1e-5)
    assert (found.low, found.high) == pytest.approx((0.010, 0.786), abs=5e-4)


def test_few_seeds_say_how_small_their_p_value_can_be():
    both = paired_sides(3, shift=5.0)
    found = run("seed-permutation", both).test
    assert found.p == 0.25 and "below 0.25" in found.note and found.low is None
    assert "below 0.25" in run("wilcoxon", both).test.note and run("wilcoxon", both).test.low is None


def test_sign_flips_by_enumeration_and_their_interval_inverts_them():
    d = np.random.default_rng(4).normal(0.4, 1.0, 9)

    def p_of(values: np.ndarray) -> float:
        means = [abs((values * signs).mean()) for signs in product((-1, 1), repeat=len(values))]
        return float(np.mean(np.array(means) >= abs(values.mean()) - 1e-12))

    found = tests.sign_flips(d, rng=RNG)
    assert found.p == pytest.approx(p_of(d))
    assert found.low is not None and found.high is not None
    for end, outwards in ((found.low, -1), (found.high, 1)):
        assert p_of(d - (end + 1e-9 * outwards)) <= 0.05 < p_of(d - (end - 1e-9 * outwards))
    many = np.random.default_rng(5).normal(0.1, 1.0, 400)
    drawn, t = tests.sign_flips(many, rng=np.random.default_rng(0)), stats.ttest_1samp(many, 0)
    ends = t.confidence_interval()
    assert drawn.p == pytest.approx(t.pvalue, abs=0.02)
    assert (drawn.low, drawn.high) == pytest.approx((ends.low, ends.high), abs=0.015)
    assert tests.sign_flips(np.zeros(5), rng=RNG).p is None


def test_clusters_are_flipped_together():
    d = np.repeat(np.random.default_rng(6).normal(0.5, 1.0, 8), 5)
    clustered = tests.sign_flips(d, rng=RNG, clusters=np.repeat(np.arange(8), 5))
    alone = tests.sign_flips(d[::5], rng=RNG)
    assert clustered.p == pytest.approx(alone.p)
    assert (clustered.low, clustered.high) == pytest.approx((alone.low, alone.high))
    naive = tests.sign_flips(d, rng=np.random.default_rng(0))
    assert naive.p is not None and clustered.p is not None and naive.p < clustered.p


def test_mcnemar_and_the_items_of_one_run():
    rng = np.random.default_rng(8)
    a, b = (rng.random((1, 200)) < 0.6).astype(float), (rng.random((1, 200)) < 0.5).astype(float)
    both = Sides(a, b, seeds_paired=False)
    counts = [[int(((a == i) & (b == j)).sum()) for j in (1, 0)] for i in (1, 0)]
    found = run("mcnemar", both).test
    assert found.p == pytest.approx(mcnemar(counts, exact=True).pvalue)
    assert found.low is not None and found.high is not None and found.low < found.difference < found.high
    assert run("items-t", both).test.p == pytest.approx(stats.ttest_rel(a[0], b[0]).pvalue)
    assert run("mcnemar", Sides(a, a, seeds_paired=False)).test.p is None
    with pytest.raises(StudyError, match="repeats of an item are not independent"):
        run("mcnemar", paired_sides())


def test_the_rule_follows_the_design():
    def named(runs_a: int, runs_b: int, **facts: bool) -> str:
        given = {"binary": True, "seeds_paired": True, **facts}
        return tests.default_test(runs_a, runs_b, items=100, **given)[0]  # type: ignore[arg-type]

    assert named(3, 3) == named(3, 5, seeds_paired=False) == named(2, 2, binary=False) == "mixed"
    assert named(1, 1) == "mcnemar" and named(1, 1, binary=False) == "paired-permutation"
    assert named(1, 3) == "paired-permutation" and named(1, 3, one_fixed=True) == "mixed"
    assert tests.default_test(3, 3, binary=True, seeds_paired=True, items=1)[0] == "paired-t"
    assert tests.default_test(3, 3, binary=True, seeds_paired=False, items=0)[0] == "welch"
    assert "paired by item and seed" in tests.default_test(3, 3, binary=True, seeds_paired=True, items=50)[1]
    with pytest.raises(StudyError, match="Did you mean 'mcnemar'"):
        run("mcnemer", paired_sides())
    with pytest.raises(StudyError, match="try mcnemar"):
        run("mixed", Sides(np.ones((1, 4)), np.ones((1, 4)), seeds_paired=False))
    with pytest.raises(StudyError, match="no common seeds"):
        run("paired-t", Sides(crossed_scores(), crossed_scores(), seeds_paired=False))


def test_pairing_says_what_it_leaves_out():
    y = crossed_scores(3, 6)
    holes = y.copy()
    holes[1, 2] = np.nan
    both = sides(Arm("a", ("0", "1", "2"), holes), Arm("b", ("0", "1", "2", "3"), crossed_scores(4, 6, 9)))
    assert both.seeds_paired and both.items == 5
    assert "1 runs whose seed" in both.note and "1 of 6 items" in both.note
    own = sides(Arm("a", ("0", "1"), y[:2]), Arm("b", ("7", "8"), y[1:]))
    assert not own.seeds_paired and own.runs == (2, 2)
    fixed = sides(Arm("a", ("0", "1"), y[:2]), Arm("b", ("0", "1"), y[:2], fixed=True))
    assert fixed.runs == (2, 1) and len(fixed.b) == 1
    with pytest.raises(StudyError, match="no item was scored"):
        sides(Arm("a", ("0",), np.full((1, 2), np.nan)), Arm("b", ("0",), np.ones((1, 2))))


# --------------------------------------------------------------------------------------------------
# All of it together


def three_arms() -> Outcomes:
    rng = np.random.default_rng(11)
    hard = rng.normal(size=(1, 600))

    def arm(skill: float) -> np.ndarray:
        return ((skill + 0.05 * rng.normal(size=(5, 1)) + 0.3 * rng.normal(size=(5, 600)) - hard) > 0).astype(float)

    return outcomes(base=arm(0.0), same=arm(0.0), better=arm(0.8))


def test_higher_tied_and_not_resolved_are_three_findings():
    found = contrast(three_arms(), rng=RNG, margin=0.05, with_letters=True)
    findings = {c.a: c.finding for c in found.comparisons}
    assert findings == {"same": "tied", "better": "higher"}
    assert found.unresolved["base"] == found.unresolved["same"] != found.unresolved["better"] == "a"
    assert found.tied["base"] == found.tied["same"] != found.tied["better"]
    narrow = contrast(three_arms(), rng=RNG, margin=0.001)
    assert narrow.comparisons[0].finding == "not resolved" and not narrow.unresolved and narrow.pairs_family is None
    (rule,) = found.design
    assert rule.startswith("mixed: 5 and 5 runs on 600 common items")
    assert found.comparisons[0].coverage.startswith("simulated coverage")
    assert {e.name for e in found.comparisons[0].effects} == {"Hedges' g", "Cliff's delta"}
    plain = contrast(three_arms(), rng=RNG)
    assert plain.comparisons[0].equivalence is None and plain.comparisons[0].finding == "not resolved"


@pytest.mark.parametrize("name", tests.TESTS)
def test_every_test_turns_over_with_its_arms(name: str):
    both = paired_sides(8) if name != "mcnemar" else sides(*list(single_run().arms.values()))
    turned = Sides(both.b, both.a, both.seeds_paired)
    one, other = run(name, both).test, run(name, turned).test
    assert one.difference == pytest.approx(-other.difference)
    assert one.p == pytest.approx(other.p)
    if one.low is not None and other.high is not None:
        assert one.low == pytest.approx(-other.high, abs=0.02)


def single_run() -> Outcomes:
    found = three_arms()
    return outcomes(base=found.arms["base"].scores[:1], better=found.arms["better"].scores[:1])


@pytest.mark.parametrize("correction", ["dunnett", "tukey"])
def test_simultaneous_procedures_bring_their_own_test(correction: str):
    found = contrast(three_arms(), rng=np.random.default_rng(0), correction=correction, with_letters=True)
    assert len(found.comparisons) == (2 if correction == "dunnett" else 3) and len(found.pairs) == 3
    for c in found.comparisons:
        assert c.result.over == "seeds" and c.result.test.low is not None
        assert c.result.test.difference == pytest.approx(found.outcomes.arms[c.a].mean - found.outcomes.arms[c.b].mean)
    with pytest.raises(StudyError, match="a test of its own"):
        contrast(three_arms(), rng=RNG, correction=correction, test="mixed")
    arms = dict(three_arms().arms)
    arms["base"] = Arm("base", arms["base"].seeds, arms["base"].scores, fixed=True)
    with pytest.raises(StudyError, match="'base' is one untrained model"):
        contrast(Outcomes("t", "score", three_arms().items, arms), rng=RNG, correction=correction)


def test_contrast_refuses_what_it_cannot_do():
    with pytest.raises(StudyError, match="at least two arms"):
        contrast(outcomes(a=np.ones((2, 2))), rng=RNG)
    with pytest.raises(StudyError, match="unknown arm 'bse'"):
        contrast(three_arms(), rng=RNG, baseline="bse")
    with pytest.raises(StudyError, match="unknown correction"):
        contrast(three_arms(), rng=RNG, correction="hom")


# --------------------------------------------------------------------------------------------------
# Tables and the command line


def write_csv(path: Path, head: str, rows: list[list[object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head.split(","))
        writer.writerows(rows)
    return path


def test_long_and_wide_tables_hold_the_same(tmp_path: Path):
    found = three_arms()
    long = [
        [arm.name, seed, item, arm.scores[s, i]]
        for arm in found.arms.values()
        for s, seed in enumerate(arm.seeds)
        for i, item in enumerate(found.items)
    ]
    (one,) = read_tables([write_csv(tmp_path / "long.csv", "algorithm,seed,item,score", long)])
    wide = [
        [seed, item, *(arm.scores[s, i] for arm in found.arms.values())]
        for s, seed in enumerate(found.arms["base"].seeds)
        for i, item in enumerate(found.items)
    ]
    (other,) = read_tables([write_csv(tmp_path / "wide.csv", "seed,item,base,same,better", wide)])
    for name, arm in found.arms.items():
        assert (one.arms[name].scores == arm.scores).all() and (other.arms[name].scores == arm.scores).all()
        assert one.arms[name].seeds == other.arms[name].seeds == arm.seeds
    files = []
    for name, arm in found.arms.items():
        lines = [json.dumps({"item": i, "score": bool(arm.scores[0, i])}) for i in range(len(found.items))]
        files.append(tmp_path / f"{name}.jsonl.gz")
        files[-1].write_bytes(gzip.compress("\n".join(lines).encode()))
    (named,) = read_tables(files)
    assert list(named.arms) == ["base", "same", "better"] and named.binary


def test_samples_are_averaged_tasks_kept_apart_and_gaps_are_gaps(tmp_path: Path):
    rows: list[list[object]] = [
        [task, arm, item, sample, score]
        for task in ("t1", "t2")
        for arm in ("a", "b")
        for item in ("x", "y")
        for sample, score in (("0", 1), ("1", 0))
    ]
    rows[0][-1] = ""
    first, second = read_tables([write_csv(tmp_path / "s.csv", "task,arm,item,sample,score", rows)])
    assert (first.task, second.task) == ("t1", "t2") and (second.arms["a"].scores == 0.5).all()
    assert np.isnan(first.arms["a"].scores[0, 0]) and first.proportion and not second.binary


@pytest.mark.parametrize(
    ("head", "rows", "message"),
    [
        ("arm,score", [["a", 1]], "no column `item`"),
        ("item,task", [["x", "t"]], "no column `score`, and no columns of arms"),
        ("arm,item,score", [["a", "x", "good"]], "row 1, column `score`: expected a number, got 'good'"),
        ("arm,item,score", [["a", "", 1]], "row 1, column `item`"),
        ("arm,item,score", [["", "x", 1]], "row 1, column `arm`"),
        ("arm,item,score", [], "an empty table"),
        ("arm,item,score", [["a", "x", 1], ["a", "x", 0]], "occurs twice \\(add a column"),
        ("arm,item,score", [["a", "x", 1], ["b", "x", 1], ["b", "y", 1]], "unequal items \\(1 and 2, 1 not in common"),
    ],
)
def test_bad_tables_say_where(tmp_path: Path, head: str, rows: list[list[object]], message: str):
    with pytest.raises((DataError, StudyError), match=message):
        read_tables([write_csv(tmp_path / "t.csv", head, rows)])


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", "200")
        code = steelyard.cli.main(list(words))
        out, err = capsys.readouterr()
        return code, out, err

    return call


def wide_table(path: Path, found: Outcomes) -> Path:
    rows = [[i, *(arm.scores[0, i] for arm in found.arms.values())] for i in range(len(found.items))]
    return write_csv(path, ",".join(["item", *found.arms]), rows)


def test_compare_on_a_plain_table(tmp_path: Path, typed: Callable[..., tuple[int, str, str]]):
    table = str(wide_table(tmp_path / "t.csv", three_arms()))
    code, out, _ = typed("compare", table, "--equivalence", "8", "--letters", "--correction", "hochberg")
    assert code == 0
    for part in (
        "mcnemar: one run in an arm",
        "Hochberg",
        "8.0 or more is excluded",
        "tied",
        "higher",
        "paired odds ratio",
    ):
        assert part in out, part
    code, out, _ = typed("compare", table, "--json", "--baseline", "better", "--test", "paired-permutation")
    rows = json.loads(out)
    assert code == 0 and {row["a"] for row in rows} == {"base", "same"}
    assert rows[0]["finding"] == "lower" and rows[0]["over"] == "items" and rows[0]["b"] == "better"
    for words, message in (
        (("--baseline", "bettr"), "Did you mean 'better'"),
        (("--test", "mcnemer"), "--test: unknown test 'mcnemer'"),
        (("--correction", "hom"), "Did you mean 'holm'"),
        (("--out", str(tmp_path / "x")), "--out"),
        (("--equivalence", "-1"), "above zero"),
    ):
        code, _, err = typed("compare", table, *words)
        assert code != 0 and message in err, (words, err)
    code, _, err = typed("compare", table, str(tmp_path), "--test", "auto")
    assert code != 0 and "cannot be compared together" in err


def test_compare_on_run_directories_and_its_default_stays(tmp_path: Path, typed: Callable[..., tuple[int, str, str]]):
    study = str(make_study(tmp_path / "toy", models=("builtin:0.1m",)))
    code, plain, _ = typed("compare", study)
    assert code == 0 and "over seeds (95 %)" in plain and "finding" not in plain
    code, out, _ = typed("compare", study, "--test", "auto", "--equivalence", "3", "--letters", "--baseline", "sft")
    assert (
        code == 0
        and "mixed: 3 and 3 runs on 120 common items" in out
        and "intervals: mixed: simulated" in out
        and "an untrained model against 3 runs" in out
    )
    assert "Not resolved: neither" in out
    code, out, _ = typed("compare", study, "--correction", "tukey", "--json")
    assert code != 0, "the untrained model has no spread to pool"
    rows = json.loads(typed("compare", study, "--test", "welch", "--json")[1])
    rows_by_seed = json.loads(typed("compare", study, "--test", "paired-t", "--baseline", "sft", "--json")[1])
    untrained = next(row for row in rows_by_seed if row["a"] == "base")
    assert untrained["finding"] == "not testable" and "no common seeds" in untrained["notes"][0]
    welch = next(row for row in rows if row["task"] == "arithmetic" and row["a"] == "grpo")
    assert welch["method"] == "one-sample t" and welch["over"] == "seeds"


def contrasted_gsm8k(path: Path) -> Contrasted:
    (found,) = read_tables([path])
    return contrast(found, rng=RNG, baseline="6b_verification", margin=0.1)


def test_real_systems_are_told_apart_by_pairing(shared_matrix: Path):
    """The 6B verifier against the 175B fine-tuned model on GSM8K: paired tests resolve what unpaired ones hardly do."""
    found = contrasted_gsm8k(shared_matrix)
    close = next(c for c in found.comparisons if c.a == "175b_finetuning")
    assert close.result.name == "mcnemar" and close.finding == "tied, but different"
    a, b = (int(found.outcomes.arms[name].scores.sum()) for name in (close.a, close.b))
    unpaired = stats.fisher_exact([[a, 1319 - a], [b, 1319 - b]]).pvalue
    assert close.result.test.p is not None and close.result.test.p < 0.005 < unpaired / 4


@pytest.fixture
def shared_matrix() -> Path:
    import os

    root = Path(os.environ.get("STEELYARD_SHARED", Path(__file__).parents[2] / "shared"))
    path = root / "data" / "gsm8k" / "item_correctness.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"shared data are missing: {path}")
    return path
