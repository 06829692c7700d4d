"""Effect sizes, equivalence and families against statsmodels, scipy, textbook numbers and direct likelihoods."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, tost_proportions_2indep
from statsmodels.stats.weightstats import ttost_ind, ttost_paired

from steelyard.errors import StudyError
from steelyard.stats import compare, effects, equivalence, families, letters
from steelyard.stats.effects import Discordance
from steelyard.stats.estimate import Summary, summarise
from steelyard.stats.pivot import Pivot

A, B = [0.61, 0.64, 0.58, 0.66, 0.60], [0.52, 0.59, 0.49, 0.55, 0.50]

# --------------------------------------------------------------------------------------------------
# Effect sizes


@pytest.mark.parametrize(("t", "df"), [(0.0, 4), (2.1, 4), (-3.5, 8), (5.2, 18), (-30.0, 2), (60.0, 4)])
def test_noncentrality_interval_inverts_the_noncentral_t(t: float, df: float):
    low, high = effects.noncentrality(t, df)
    assert low < t < high or t == 0
    for shift, share in ((low, 0.975), (high, 0.025)):
        expected = stats.nct.cdf(t, df, shift)
        if math.isfinite(expected):  # scipy's is NaN in some tails, which is why ours is computed otherwise
            assert share == pytest.approx(expected, abs=1e-7)
    mirrored = effects.noncentrality(-t, df)
    assert mirrored == pytest.approx((-high, -low), abs=1e-7)


def test_d_of_a_published_example():
    # Cumming & Finch (2001), p. 568: t(18) = 3.0 for two groups of ten has delta between 0.91 and 5.03
    assert effects.noncentrality(3.0, 18) == pytest.approx((0.83, 5.09), abs=0.1)
    found = effects.cohens_d(Summary(1.0, 0.5, 10), Summary(0.4, 0.5, 10))
    assert found is not None and found.value == pytest.approx(1.2)
    low, high = effects.noncentrality(1.2 * math.sqrt(5), 18)
    assert (found.low, found.high) == pytest.approx((low / math.sqrt(5), high / math.sqrt(5)))


def test_g_is_corrected_and_paired_d_has_its_own_unit():
    a, b = summarise(A), summarise(B)
    g, d = effects.hedges_g(a, b), effects.cohens_d(a, b)
    assert g is not None and d is not None and g.value == pytest.approx(compare.hedges_g(a, b)) and g.value < d.value
    assert (g.low, g.high) == (d.low, d.high)
    one = effects.cohens_d(a, Summary(0.5, None, 1, fixed=True))
    assert one is not None and one.value == pytest.approx((np.mean(A) - 0.5) / np.std(A, ddof=1))
    gaps = np.array(A) - B
    paired = effects.paired_d(gaps.tolist())
    assert paired is not None
    raw = gaps.mean() / gaps.std(ddof=1)
    assert 0 < paired.value < raw and paired.low < paired.value < paired.high
    # significance and the interval say the same
    assert (paired.low > 0) == (stats.ttest_rel(A, B).pvalue < 0.05)
    assert effects.paired_d([0.1, 0.1, 0.1]) is None and effects.hedges_g(a, summarise([0.4])) is None


def test_cliffs_delta_by_hand_and_at_its_ends():
    found = effects.cliffs_delta([1, 2, 3], [2, 0, 1.5])
    assert found.value == pytest.approx(4 / 9)
    # Feng & Cliff (2004): rows 0, 1/3, 1 minus 4/9 ...; variance floored at (1 - d²) / (nm - 1)
    back = effects.cliffs_delta([2, 0, 1.5], [1, 2, 3])
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))
    apart = effects.cliffs_delta([4, 5, 6, 7], [1, 2, 3])
    z2 = stats.norm.ppf(0.975) ** 2
    assert (apart.low, apart.high) == pytest.approx(((3 - z2) / (3 + z2), 1.0))
    u = stats.mannwhitneyu(A, B).statistic
    assert effects.cliffs_delta(A, B).value == pytest.approx(2 * u / 25 - 1)
    with pytest.raises(StudyError, match="two runs in each arm"):
        effects.cliffs_delta([1], [2, 3])


def test_risk_difference_is_newcombes():
    for k, n, j, m in ((56, 70, 48, 80), (9, 10, 3, 10), (5, 56, 0, 29)):
        found = effects.risk_difference(k, n, j, m)
        assert (found.low, found.high) == pytest.approx(
            confint_proportions_2indep(k, n, j, m, method="newcomb"), abs=1e-9
        )
    # Newcombe (1998), table II, example (a), method 10
    example = effects.risk_difference(56, 70, 48, 80)
    assert (example.low, example.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def profile_z(table: Discordance, null: float) -> float:
    """Tango's statistic with the nuisance probability maximised numerically instead of in closed form."""
    b, c, n = table.only_a, table.only_b, table.items

    def minus_likelihood(q: float) -> float:
        p = (q + null, q, 1 - 2 * q - null)
        return -sum(k * math.log(x) for k, x in zip((b, c, n - b - c), p, strict=True) if k)

    low, high = max(0.0, -null) + 1e-12, (1 - null) / 2 - 1e-12
    q = optimize.minimize_scalar(minus_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (b - c - n * null) / math.sqrt(n * (2 * q + null * (1 - null)))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 60), st.floats(-0.6, 0.6))
def test_tangos_statistic_maximises_the_likelihood(b: int, c: int, same: int, null: float):
    table = Discordance(same, b, c, 0)
    if b + c == 0 and abs(null) < 1e-3:
        return
    assert effects.tango_z(table, null) == pytest.approx(profile_z(table, null), rel=1e-3, abs=1e-3)


def test_paired_risk_difference_ends_where_the_statistic_does():
    table = Discordance(both=36, only_a=12, only_b=2, neither=0)
    found = effects.paired_risk_difference(table)
    z = stats.norm.ppf(0.975)
    assert effects.tango_z(table, found.low) == pytest.approx(z) and effects.tango_z(
        table, found.high
    ) == pytest.approx(-z)
    assert effects.tango_z(table, 0.0) ** 2 == pytest.approx((12 - 2) ** 2 / 14)  # McNemar's chi-squared
    same = effects.paired_risk_difference(Discordance(40, 0, 0, 10))
    assert same.value == 0 and same.low == pytest.approx(-same.high) and 0 < same.high < 0.1
    assert effects.paired_risk_difference(Discordance(0, 5, 0, 0)).high == 1.0
    with pytest.raises(StudyError, match="0 and 1"):
        Discordance.of([0.5, 1], [0, 1])
    with pytest.raises(StudyError, match="equally many"):
        Discordance.of([1], [0, 1])
    assert Discordance.of([1, 1, 0, 0, 1], [1, 0, 1, 0, 0]) == Discordance(1, 2, 1, 1)


def test_odds_ratios():
    found = effects.odds_ratio(56, 70, 48, 80)
    expected = stats.contingency.odds_ratio([[56, 14], [48, 32]])
    assert found.value == pytest.approx(expected.statistic)
    # the exact interval ends where Fisher's one-sided test is at 2.5 %
    assert found.low > 1 and stats.fisher_exact([[56, 14], [48, 32]], alternative="greater").pvalue < 0.025
    paired = effects.paired_odds_ratio(Discordance(36, 12, 2, 0))
    assert paired.value == 6 and (paired.low > 1) == (stats.binomtest(12, 14).pvalue < 0.05)
    assert math.isinf(effects.paired_odds_ratio(Discordance(1, 4, 0, 1)).high)
    with pytest.raises(StudyError, match="alike"):
        effects.paired_odds_ratio(Discordance(3, 0, 0, 3))


# --------------------------------------------------------------------------------------------------
# The pivot


@settings(deadline=None, max_examples=100)
@given(st.floats(-3, 3), st.floats(0.01, 4), st.floats(0.01, 4), st.integers(1, 20), st.integers(1, 500))
def test_p_and_interval_of_a_pivot_agree(estimate: float, v: float, w: float, df: int, other: int):
    pivot = Pivot.of(estimate, [(v, df), (w, other)])
    p = pivot.p()
    if 1e-9 < p < 1 - 1e-9:
        low, high = pivot.interval(1 - p)
        assert min(abs(low), abs(high)) == pytest.approx(0, abs=1e-6 * (1 + abs(high - low)))
    assert pivot.greater() + pivot.less() == pytest.approx(1)
    assert pivot.greater(estimate) == pytest.approx(0.5)


def test_a_pivot_with_one_part_is_students():
    pivot = Pivot.of(1.2, [(0.09, 4), (0.0, 100)])
    assert pivot.p() == pytest.approx(2 * stats.t.sf(4.0, 4))
    assert Pivot.of(100.0, [(0.09, 300), (0.01, 20)]).p() < 1e-20
    with pytest.raises(StudyError, match="nothing varies"):
        Pivot.of(1.0, [(0.0, 3)])


# --------------------------------------------------------------------------------------------------
# Equivalence


def test_tost_agrees_with_statsmodels():
    for margin in (0.05, 0.12, 0.3):
        assert equivalence.paired_means(A, B, margin).p == pytest.approx(
            ttost_paired(np.array(A), np.array(B), -margin, margin)[0]
        )
        found = equivalence.means(summarise(A), summarise(B[:4]), margin)
        assert found.p == pytest.approx(ttost_ind(A, B[:4], -margin, margin, usevar="unequal")[0])


@pytest.mark.parametrize(("k", "n", "j", "m"), [(150, 200, 145, 190), (30, 60, 31, 60), (199, 200, 180, 190)])
def test_equivalence_of_proportions_uses_the_maximum_of_the_likelihood(k: int, n: int, j: int, m: int):
    found = equivalence.proportions(k, n, j, m, 0.1)
    for null, p in ((-0.1, found.p_above), (0.1, found.p_below)):

        def minus_likelihood(x: float, null: float = null) -> float:
            return -(
                k * math.log(x) + (n - k) * math.log1p(-x) + j * math.log(x - null) + (m - j) * math.log1p(null - x)
            )

        bounds = (max(0.0, null) + 1e-9, min(1.0, 1 + null) - 1e-9)
        x = optimize.minimize_scalar(minus_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        y = x - null
        z = (k / n - j / m - null) / math.sqrt(x * (1 - x) / n + y * (1 - y) / m)
        assert p == pytest.approx(stats.norm.sf(z) if null < 0 else stats.norm.cdf(z), rel=1e-4)
    # statsmodels' estimate under the margin is not quite the maximum: its z differs in the second decimal
    theirs = tost_proportions_2indep(k, n, j, m, -0.1, 0.1, method="score", correction=False)
    assert found.p == pytest.approx(theirs.pvalue, rel=0.3)


@settings(deadline=None, max_examples=60)
@given(st.floats(-0.2, 0.2), st.floats(0.01, 0.3), st.integers(2, 30))
def test_tost_is_the_shorter_interval_within_the_margin(difference: float, margin: float, df: int):
    pivot = Pivot.of(difference, [(0.002, df), (0.001, 200)])
    low, high = pivot.interval(0.9)
    if min(abs(low + margin), abs(high - margin)) < 1e-9:
        return
    assert (equivalence.tost(pivot, margin).p < 0.05) == (-margin < low and high < margin)


def test_equivalence_of_paired_proportions_turns_over_with_the_sides():
    table, turned = Discordance(60, 8, 5, 27), Discordance(60, 5, 8, 27)
    one, other = equivalence.paired_proportions(table, 0.1), equivalence.paired_proportions(turned, 0.1)
    assert (one.p_above, one.p_below) == pytest.approx((other.p_below, other.p_above))
    interval = effects.paired_risk_difference(table, level=0.9)
    assert (one.p < 0.05) == (interval.low > -0.1 and interval.high < 0.1)


def test_ties_of_sparse_answers_use_the_variance_under_the_margin():
    # one run each, many items: the t statistic with Tango's variance is Tango's z
    table = Discordance(1900, 60, 20, 20)
    n, gap = table.items, (60 - 20) / 2000
    pivot = Pivot.of(gap, [((80 / n - gap**2) / n, n - 1)])
    for margin in (0.025, 0.03):
        found = equivalence.tost_binary(pivot, margin, 60, 20, n, method="")
        assert found.p == pytest.approx(equivalence.paired_proportions(table, margin).p, rel=0.02)
        assert found.p >= equivalence.tost(pivot, margin).p
    # answers that differ in both directions alike are hardly touched
    many = Pivot.of(0.0, [(400 / n / n, n - 1)])
    binary = equivalence.tost_binary(many, 0.02, 200, 200, n, method="")
    assert binary.p == pytest.approx(equivalence.tost(many, 0.02).p, rel=0.05)
    with pytest.raises(StudyError, match="2 points are 0.02"):
        equivalence.tost_binary(pivot, 2.0, 60, 20, n, method="")


def test_a_tie_is_a_finding_of_its_own():
    assert equivalence.finding(0.02, 0.001, None) == "higher" and equivalence.finding(-0.02, 0.001, 0.3) == "lower"
    assert equivalence.finding(0.02, 0.4, 0.4) == "not resolved" == equivalence.finding(0.02, 0.4, None)
    assert (
        equivalence.finding(0.02, 0.4, 0.01) == "tied"
        and equivalence.finding(0.02, 0.01, 0.01) == "tied, but different"
    )
    assert equivalence.finding(0.02, None, None) == "not testable"
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(StudyError, match="above zero"):
            equivalence.paired_means(A, B, bad)
    with pytest.raises(StudyError, match="2 points are 0.02"):
        equivalence.proportions(1, 2, 1, 2, 2.0)
    with pytest.raises(StudyError, match="two independent runs"):
        equivalence.means(summarise([0.1]), summarise(A), 0.1)


# --------------------------------------------------------------------------------------------------
# Families and letters


# statsmodels collects garbage at every call, hence few examples.
@settings(deadline=None, max_examples=8)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_corrections_are_those_of_statsmodels(ps: list[float]):
    for name, theirs in (
        ("hochberg", "simes-hochberg"),
        ("bh", "fdr_bh"),
        ("holm", "holm"),
        ("bonferroni", "bonferroni"),
    ):
        assert families.CORRECTIONS[name](ps) == pytest.approx(multipletests(ps, method=theirs)[1], abs=1e-12)


def test_a_family_is_declared_and_says_what_it_guarantees():
    members = [("x", "base"), ("y", "base"), ("z", "base")]
    family = families.declare("against base", members, [0.01, None, 0.03], "hochberg")
    assert family.adjusted == pytest.approx((0.02, None, 0.03))
    assert "2 tested comparisons" in family.statement and "any false claim" in family.statement
    assert "expected share" in families.declare("f", members, [0.1, 0.2, 0.3], "bh").statement
    assert families.uncorrected([0.1, None]) == [0.1, None]
    with pytest.raises(StudyError, match="Did you mean 'holm'"):
        families.declare("f", members, [0.1, 0.2, 0.3], "hlm")
    with pytest.raises(StudyError, match="3 comparisons and 1"):
        families.declare("f", members, [0.1])


def test_dunnett_and_tukey():
    values = {"base": [0.50, 0.52, 0.49], "x": A, "y": B}
    found = families.dunnett(values, "base", rng=np.random.default_rng(0))
    expected = stats.dunnett(A, B, control=values["base"], rng=np.random.default_rng(0))
    assert [f.p for f in found] == pytest.approx(expected.pvalue)
    assert [(f.a, f.b) for f in found] == [("x", "base"), ("y", "base")]
    assert found[0].difference == pytest.approx(np.mean(A) - np.mean(values["base"]))
    assert found[0].low < found[0].difference < found[0].high
    pairs = families.tukey(values)
    assert {(f.a, f.b) for f in pairs} == set(combinations(values, 2))
    assert pairs[2].p == pytest.approx(stats.tukey_hsd(A, B, values["base"]).pvalue[0, 1])
    with pytest.raises(StudyError, match="'x' has 1 run"):
        families.tukey({"x": [0.1], "y": [0.1, 0.2]})
    with pytest.raises(StudyError, match="no run-to-run variation"):
        families.dunnett({"x": [0.1, 0.1], "y": [0.2, 0.2]}, "x", rng=np.random.default_rng(0))
    with pytest.raises(StudyError, match="unknown baseline"):
        families.dunnett(values, "bse", rng=np.random.default_rng(0))


def test_dunnetts_critical_value_in_the_simulations_is_the_published_one():
    from simulations.errors import dunnett_critical

    # Dunnett (1964), two-sided 5 %: p = 4 comparisons, 10 and 20 degrees of freedom
    assert dunnett_critical(5, 3) == pytest.approx(2.89, abs=0.01)
    assert dunnett_critical(5, 5) == pytest.approx(2.65, abs=0.01)


def test_letters_from_matrices():
    apart = np.zeros((3, 3), dtype=bool)
    apart[0, 2] = apart[2, 0] = True
    assert letters.not_resolved(["x", "y", "z"], apart) == {"x": "a", "y": "ab", "z": "b"}
    # tied is the other way round: only what was shown to be equivalent shares a letter
    assert letters.tied(["x", "y", "z"], apart) == {"x": "a", "y": "b", "z": "a"}
    with pytest.raises(StudyError, match="not symmetric at \\(x, y\\)"):
        letters.not_resolved(["x", "y"], [[0, 1], [0, 0]])
    with pytest.raises(StudyError, match="2 x 2"):
        letters.not_resolved(["x", "y"], [[0]])
    with pytest.raises(StudyError, match="distinct"):
        letters.not_resolved(["x", "x"], np.zeros((2, 2)))
