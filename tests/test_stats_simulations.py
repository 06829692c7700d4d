"""What ``docs/statistics.md`` says about coverage, levels and power, simulated again (slow), and kept up to date.

The intervals of the simulation are vectorised; that they are the package's is checked on single studies (fast).
"""

from __future__ import annotations

import numpy as np
import pytest

from simulations import __main__ as page
from simulations import coverage, errors
from simulations.populations import POPULATIONS, Draw, draw
from steelyard.stats import coverage as stored
from steelyard.stats import estimate, intervals, tests
from steelyard.stats.outcomes import Sides


@pytest.fixture(scope="module")
def drawn() -> Draw:
    return next(iter(draw(POPULATIONS[2], 6, 4, 300, 0.05, np.random.default_rng(0))))


def test_the_vectorised_intervals_are_the_packages(drawn: Draw):
    rng = np.random.default_rng(0)
    crossed, paired = coverage.crossed(drawn.a), coverage.crossed((drawn.a - drawn.b).astype(float))
    apart, items = coverage.independent(drawn.a, drawn.c), coverage.t_over((drawn.a - drawn.b).mean(axis=1))
    welch = coverage.welch(drawn.a.mean(axis=2), drawn.c.mean(axis=2))
    wilson, exact = coverage.wilson(drawn.a[:, 0].mean(axis=1), 300), coverage.clopper(drawn.a[:, 0].mean(axis=1), 300)
    for k in range(len(drawn.a)):
        a, b, c = (y[k].astype(float) for y in (drawn.a, drawn.b, drawn.c))
        same, own = Sides(a, b, seeds_paired=True), Sides(a, c, seeds_paired=False)
        right = int(a[0].sum())
        expected = {
            "crossed": (intervals.crossed(a), crossed),
            "mixed": (tests.run("mixed", same, rng=rng).test, paired),
            "mixed, independent seeds": (tests.run("mixed", own, rng=rng).test, apart),
            "items-t": (tests.run("items-t", same, rng=rng).test, items),
            "welch": (tests.run("welch", own, rng=rng).test, welch),
            "wilson": (estimate.wilson(right, 300), wilson),
            "exact": (estimate.exact(right, 300), exact),
        }
        for name, (ours, (low, high)) in expected.items():
            assert ours is not None
            assert (ours.low, ours.high) == pytest.approx((low[k], high[k]), abs=2e-6), name


def test_the_bootstraps_are_the_packages_up_to_chance(drawn: Draw):
    rng = np.random.default_rng(1)
    pigeonhole, bca = coverage.pigeonhole(drawn.a, rng), coverage.bca_items(drawn.a, rng)
    flips = coverage.flips((drawn.a - drawn.b).mean(axis=1), rng)
    for k in range(len(drawn.a)):
        a, b = drawn.a[k].astype(float), drawn.b[k].astype(float)
        for ours, found in (
            (estimate.crossed_bootstrap(a, rng=rng, resamples=8000), pigeonhole),
            (intervals.bca_bootstrap(a, rng=rng, resamples=8000), bca),
            (tests.run("paired-permutation", Sides(a, b, seeds_paired=True), rng=rng).test, flips),
        ):
            assert ours is not None and ours.low is not None and ours.high is not None
            slack = 0.12 * (ours.high - ours.low)
            assert (ours.low, ours.high) == pytest.approx((found[0][k], found[1][k]), abs=slack)


def test_populations_have_the_measured_means_and_components():
    for population in POPULATIONS:
        rng = np.random.default_rng(2)
        d = next(iter(draw(population, 1, 30, 20_000, 0.0, rng)))
        seed, item, _ = intervals.components(d.a[0])
        apart = intervals.components(d.a[0].astype(float) - d.b[0])
        assert d.a[0].mean() == pytest.approx(population.mean, abs=0.02)
        assert item == pytest.approx(population.item, rel=0.04)
        assert seed == pytest.approx(population.seed, rel=0.8, abs=2e-5)
        assert apart[1] == pytest.approx(population.item_apart, rel=0.1, abs=5e-4)


def test_the_page_and_the_module_hold_the_same_numbers():
    text = page.PAGE.read_text(encoding="utf-8")
    for name, by in stored.SIMULATED.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {page.WORDS[name]} |")]
        for worst in (value for n, value in by.items() if n in (0, *coverage.SEEDS)):
            assert f"{100 * worst:.1f} – " in line, name
        assert ("refused" in line) == any(worst < stored.REFUSED_BELOW for n, worst in by.items() if n)


# --------------------------------------------------------------------------------------------------
# Slow


@pytest.mark.slow
def test_intervals_cover_as_often_as_the_page_says():
    table = coverage.simulate(studies=2_000, seed=1)
    for name, by in coverage.worst(table).items():
        for n, value in by.items():
            assert value == pytest.approx(stored.SIMULATED[name][n], abs=0.02), (name, n)
    for (population, n, m), value in table["crossed"].items():
        assert 0.93 <= value <= 0.985, (population, n, m)  # nominal 95 %; one cell's standard error is half a point
    for name in ("mixed", "mixed, independent seeds"):
        assert min(table[name].values()) >= 0.91 and max(table[name].values()) <= 0.99


@pytest.mark.slow
def test_effect_sizes_and_aggregates_cover_as_often_as_the_page_says():
    found: dict[tuple[str, int], float] = {}
    for (name, n, _), value in errors.effect_coverage(seed=17).items():
        key = name, n if n <= 10 else 0
        found[key] = min(found.get(key, 1.0), value)
    for (_, n, _), value in errors.aggregate_coverage(seed=18).items():
        found["stratified", n] = min(found.get(("stratified", n), 1.0), value)
    for (name, n), value in found.items():
        assert value == pytest.approx(stored.SIMULATED[name][n], abs=0.02), (name, n)


@pytest.mark.slow
def test_no_procedure_claims_too_much():
    families = errors.families(seed=11)
    for (name, n), rate in families.items():
        if "*" not in name:
            assert rate <= 0.055 + 0.004, (name, n)
        else:
            assert rate > 0.08, "pooling unequal spreads is what the page warns of"
    assert max(errors.mixed_level(studies=4_000, seed=12).values()) <= 0.065
    assert max(errors.equivalence_size(seed=13).values()) <= 0.065
    assert max(errors.score_size(seed=14).values()) <= 0.06
    looks = errors.sequential_level(seed=15)
    assert looks["no plan", "t"] > 0.12
    assert max(rate for (plan, _), rate in looks.items() if plan != "no plan") <= 0.058


@pytest.mark.slow
def test_the_planner_knows_its_power():
    for cell, (planned, simulated) in errors.planned_power(studies=10_000, seed=16).items():
        assert planned == pytest.approx(simulated, abs=0.02), cell
