"""Looking early and planning: published boundaries, martingales, and the exact power of Welch's test."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from steelyard.errors import StudyError
from steelyard.stats import allocation, design, sequential
from steelyard.stats.allocation import Components, Cost
from steelyard.stats.compare import paired

FIFTHS = [0.2, 0.4, 0.6, 0.8, 1.0]


def test_boundaries_are_the_published_ones():
    # R's ldbounds and Jennison & Turnbull (2000), tables of Lan-DeMets boundaries, two-sided 0.05, five equal looks
    found = {
        kind: [look.z for look in sequential.boundaries(FIFTHS, kind=kind)] for kind in ("obrien-fleming", "pocock")
    }
    assert found["obrien-fleming"] == pytest.approx([4.8769, 3.3569, 2.6803, 2.2898, 2.0310], abs=2e-4)
    assert found["pocock"] == pytest.approx([2.4380, 2.4268, 2.4101, 2.3966, 2.3859], abs=2e-4)


@pytest.mark.parametrize("kind", ["obrien-fleming", "pocock"])
def test_the_whole_level_is_spent_at_the_end_and_no_more(kind: sequential.Spending):
    assert sequential.spent(kind, 1.0) == pytest.approx(0.05)
    assert sequential.spent(kind, 0.0) == 0.0
    (only,) = sequential.boundaries([1.0], kind=kind)
    assert only.z == pytest.approx(stats.norm.isf(0.025), abs=1e-6)
    looks = sequential.boundaries([0.3, 0.35, 1.0], kind=kind, alpha=0.01)
    assert looks[-1].spent == pytest.approx(0.01)
    steps = np.random.default_rng(0).standard_normal((200_000, 3)) * np.sqrt([0.3, 0.05, 0.65])
    z = np.cumsum(steps, axis=1) / np.sqrt([0.3, 0.35, 1.0])
    crossed = (np.abs(z) > [look.z for look in looks]).any(axis=1).mean()
    assert crossed == pytest.approx(0.01, abs=0.001)


def test_plans_that_are_none_are_refused():
    for bad in ([], [0.5, 0.5], [0.5, 0.4], [0.0, 1.0], [0.5, 1.2]):
        with pytest.raises(StudyError, match="rising shares"):
            sequential.boundaries(bad)
    looks = sequential.boundaries([0.5, 1.0])
    assert sequential.stop([0.004, 0.03], looks) == 1 and sequential.stop([0.001], looks) == 0
    assert sequential.stop([0.4, 0.06], looks) is None


def test_the_always_valid_interval_inverts_its_e_value():
    values = np.random.default_rng(3).normal(0.4, 1.0, 12)
    found = sequential.always_valid(values.tolist(), prior=0.7)
    assert found is not None
    n, mean, sd = 12, values.mean(), values.std(ddof=1)

    def e_value(mu: float) -> float:
        """The Bayes factor by integration over the effect, not by its closed form."""
        t = (mean - mu) / (sd / math.sqrt(n))
        effects, weights = np.polynomial.hermite_e.hermegauss(80)
        prior = effects * math.sqrt(0.7)
        return float(
            (weights @ stats.nct.pdf(t, n - 1, prior * math.sqrt(n))) / math.sqrt(2 * math.pi) / stats.t.pdf(t, n - 1)
        )

    assert e_value(found.low) == pytest.approx(20, rel=1e-6)
    assert e_value(found.high) == pytest.approx(20, rel=1e-6)
    assert e_value(float(mean)) < 1
    fixed = paired(values.tolist(), [0.0] * n)
    assert fixed.low is not None and found.low < fixed.low
    assert sequential.always_valid([0.1, 0.2]) is None and sequential.always_valid([0.1, 0.1, 0.1]) is None
    assert sequential.always_valid_t(1) == math.inf


# --------------------------------------------------------------------------------------------------
# Allocation


def test_welch_power_is_exact_where_students_is_too_high():
    rng = np.random.default_rng(0)
    for d, n in ((2.0, 3), (1.5, 4)):
        a, b = rng.standard_normal((2, 100_000, n))
        simulated = (stats.ttest_ind(a + d, b, axis=1, equal_var=False).pvalue < 0.05).mean()
        planned = allocation.welch_power(d, n)
        assert planned == pytest.approx(simulated, abs=0.006)
        assert (design.power(d, n) or 0) > (planned or 0)
    large = allocation.welch_power(0.4, 100)
    assert large == pytest.approx(design.power(0.4, 100), abs=0.001)
    assert allocation.welch_power(0.8, 1) is None


def test_with_many_items_or_seeds_the_power_is_that_of_one_t_test():
    over_seeds = allocation.power(1.0, Components(1.0, 0.0, 0.0), 8, 10_000)
    assert over_seeds == pytest.approx(design.power(1.0, 8, against_constant=True), abs=2e-3)
    none = allocation.power(0.0, Components(0.3, 0.5, 1.0), 5, 200)
    assert none <= 0.05
    assert allocation.power(1.0, Components(1.0, 1.0, 1.0), 1, 100) == 0.0
    with pytest.raises(StudyError, match="do not vary"):
        allocation.power(1.0, Components(0.0, 0.0, 0.0), 3, 100)


def test_the_smallest_detectable_difference_has_the_power_that_was_asked_for():
    parts = Components(0.0005, 0.03, 0.06)
    found = allocation.detectable(parts, 4, 400)
    assert found is not None
    assert allocation.power(found, parts, 4, 400) == pytest.approx(0.8, abs=1e-6)
    assert allocation.detectable(parts, 1, 400) is None


def test_the_cheapest_plan_is_no_dearer_than_any_on_a_grid():
    parts, cost = Components(0.0005, 0.05, 0.05), Cost(run=60, item=0.05)
    plan = allocation.cheapest(0.05, parts, cost, max_items=1000)
    assert plan is not None and plan.power >= 0.8 and plan.items <= 1000
    grid = [
        cost.of(n, m) for n in range(2, 30) for m in range(50, 1001, 10) if allocation.power(0.05, parts, n, m) >= 0.8
    ]
    assert plan.cost <= min(grid) + 1e-9
    assert allocation.power(0.05, parts, plan.seeds, plan.items - 1) < 0.8
    # no number of seeds makes up for too few items
    assert allocation.cheapest(0.01, parts, cost, max_items=200) is None


def test_components_of_a_pilot_are_those_it_was_made_with():
    rng = np.random.default_rng(5)
    n, m = 60, 800
    gap = rng.normal(0, 0.05, (n, 1)) + rng.normal(0, 0.3, (1, m)) + rng.normal(0, 0.4, (n, m))
    base = rng.normal(0, 1, (n, m))
    found = allocation.components_of(base + gap, base)
    assert (found.seed, found.item, found.rest) == pytest.approx((0.0025, 0.09, 0.16), rel=0.25)
    with pytest.raises(StudyError, match="same shape"):
        allocation.components_of(base, base[:, 1:])
