"""False claims and power: families under the null, equivalence at its margin, sequential looks, planned power."""

from __future__ import annotations

import numpy as np
from scipy import stats

from simulations.coverage import Bounds, crossed, independent
from simulations.populations import POPULATIONS, Population, draw
from steelyard.stats import allocation, effects, sequential
from steelyard.stats.effects import Discordance
from steelyard.stats.equivalence import paired_proportions, proportions
from steelyard.stats.families import CORRECTIONS

STUDIES = 10_000


def _welch_p(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Two-sided p over the last axis."""
    return stats.ttest_ind(a, b, axis=-1, equal_var=False).pvalue


def families(arms: int = 5, studies: int = STUDIES, seed: int = 1) -> dict[tuple[str, int], float]:
    """Chance of any false claim among equal arms, against the first, by procedure and number of runs.

    Welch's p-values under each correction; Dunnett against the first arm, Tukey over all pairs (normal runs, equal
    spreads, as both assume; critical values from the same distributions as scipy's tests).  Unequal spreads: ``*``.
    """
    found = {}
    for n in (3, 5, 10):
        rng = np.random.default_rng([seed, n])
        runs = rng.standard_normal((studies, arms, n))
        p = _welch_p(runs[:, 1:], runs[:, :1])
        for name in ("bonferroni", "holm", "hochberg", "bh"):
            adjusted = np.array([CORRECTIONS[name](row) for row in p.tolist()], dtype=float)
            found[name, n] = float((adjusted < 0.05).any(axis=1).mean())
        for label, scale in (("", np.ones(arms)), ("*", np.array([3.0, *([1.0] * (arms - 1))]))):
            scaled = runs * scale[:, None]
            pooled = np.sqrt(scaled.var(axis=2, ddof=1).mean(axis=1))
            means = scaled.mean(axis=2)
            against = np.abs(means[:, 1:] - means[:, :1]) / (pooled * np.sqrt(2 / n))[:, None]
            found[f"dunnett{label}", n] = float((against.max(axis=1) > dunnett_critical(arms, n)).mean())
            wide = stats.studentized_range.ppf(0.95, arms, arms * (n - 1))
            found[f"tukey{label}", n] = float((np.ptp(means, axis=1) / (pooled / np.sqrt(n)) > wide).mean())
    return found


def dunnett_critical(arms: int, n: int) -> float:
    """The two-sided 5 % point of Dunnett's statistic with equal numbers of runs, by quadrature.

    ``P(max |T| <= c) = E_s E_z [Φ(√2 c s + z) - Φ(-√2 c s + z)]^(arms - 1)`` with z the baseline's own error.
    """
    df = arms * (n - 1)
    z, weight = np.polynomial.hermite_e.hermegauss(60)
    u = (np.arange(400) + 0.5) / 400
    s = np.sqrt(stats.chi2.ppf(u, df) / df)

    def inside(c: float) -> float:
        edge = np.sqrt(2) * c * s[:, None]
        return float(((stats.norm.cdf(edge + z) - stats.norm.cdf(z - edge)) ** (arms - 1) @ weight).mean()) / np.sqrt(
            2 * np.pi
        )

    low, high = 1.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < 0.95 else (low, middle)
    return high


def mixed_level(studies: int = 5_000, seed: int = 2) -> dict[tuple[str, int, int], float]:
    """False claims of the mixed test among equal arms, alone: worst population, by pairing, seeds and items."""
    found: dict[tuple[str, int, int], float] = {}
    for n in (3, 5, 10):
        for m in (200, 2000):
            rates: dict[str, list[float]] = {"same seeds": [], "own seeds": []}
            for index, population in enumerate(POPULATIONS[1:]):
                rng = np.random.default_rng([seed, index, n, m])
                outside: dict[str, list[np.ndarray]] = {"same seeds": [], "own seeds": []}
                for d in draw(population, studies, n, m, 0.0, rng):
                    for name, (low, high) in (
                        ("same seeds", crossed((d.a - d.b).astype(float))),
                        ("own seeds", independent(d.a, d.c)),
                    ):
                        outside[name].append((low > 0) | (high < 0))
                for name, values in outside.items():
                    rates[name].append(float(np.concatenate(values).mean()))
            for name, values in rates.items():
                found[name, n, m] = max(values)
    return found


def equivalence_size(
    studies: int = 2_000, seed: int = 3, margin: float = 0.05
) -> dict[tuple[str, str, int, int], float]:
    """How often "tied" is claimed when the true difference is exactly the margin (at most 5 % is allowed)."""
    found = {}
    for index, population in enumerate(POPULATIONS):
        for n, m in ((3, 500), (5, 2000), (10, 2000)):
            rng = np.random.default_rng([seed, index, n])
            claims: dict[str, list[np.ndarray]] = {"mixed": [], "mixed, independent seeds": []}
            for d in draw(population, studies, n, m, margin, rng):
                gaps = (d.a - d.b).astype(float)
                mine, theirs = d.a.mean(axis=1), d.c.mean(axis=1)
                same = (gaps > 0).sum(axis=(1, 2)) / n, (gaps < 0).sum(axis=(1, 2)) / n
                own = (mine * (1 - theirs)).sum(axis=1), (theirs * (1 - mine)).sum(axis=1)
                for name, bounds, counts in (
                    ("mixed", crossed(gaps, level=0.9), same),
                    ("mixed, independent seeds", independent(d.a, d.c, level=0.9), own),
                ):
                    claims[name].append(tied(bounds, counts, m, margin))
            for name, values in claims.items():
                found[name, population.name, n, m] = float(np.concatenate(values).mean())
    return found


def tied(bounds: Bounds, counts: tuple[np.ndarray, np.ndarray], items: int, margin: float) -> np.ndarray:
    """:func:`steelyard.stats.equivalence.tost_binary` at 5 %, from 90 % intervals of many studies."""
    low, high = bounds
    middle, half = (low + high) / 2, (high - low) / 2
    plain = np.maximum(counts[0] + counts[1] - (counts[0] - counts[1]) ** 2 / items, 1e-300)
    above, below = (
        np.sqrt(np.maximum(1.0, effects.tango_variance(*counts, items, null) / plain)) for null in (-margin, margin)
    )
    return (middle - above * half > -margin) & (middle + below * half < margin) & (half > 0)


def score_size(studies: int = 4_000, seed: int = 4, margin: float = 0.05) -> dict[tuple[str, int], float]:
    """The same for the score tests of proportions: independent (Farrington-Manning) and paired (Tango)."""
    found = {}
    for m in (200, 500, 2000):
        rng = np.random.default_rng([seed, m])
        k_a, k_b = rng.binomial(m, 0.75, studies), rng.binomial(m, 0.75 - margin, studies)
        two = [proportions(int(a), m, int(b), m, margin).p < 0.05 for a, b in zip(k_a, k_b, strict=True)]
        cells = rng.multinomial(m, [0.65, 0.10, 0.10 - margin, 0.15 + margin], studies)
        paired = [paired_proportions(Discordance(*map(int, row)), margin).p < 0.05 for row in cells]
        found["Farrington-Manning", m] = float(np.mean(two))
        found["Tango", m] = float(np.mean(paired))
    return found


def sequential_level(studies: int = STUDIES, seed: int = 5) -> dict[tuple[str, str], float]:
    """Chance that any look claims a difference where there is none: z and paired t, four looks, up to 20 runs.

    Always-valid: a look after every run, up to 100.
    """
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((studies, 100))
    sizes = np.array([5, 10, 15, 20])
    found = {}
    for kind in ("obrien-fleming", "pocock"):
        looks = sequential.boundaries(list(sizes / sizes[-1]), kind=kind)
        nominal = np.array([look.nominal for look in looks])
        z = np.stack([values[:, :n].sum(axis=1) / np.sqrt(n) for n in sizes], axis=1)
        t = np.stack([stats.ttest_1samp(values[:, :n], 0.0, axis=1).pvalue for n in sizes], axis=1)
        found[kind, "z"] = float((2 * stats.norm.sf(np.abs(z)) < nominal).any(axis=1).mean())
        found[kind, "t"] = float((t < nominal).any(axis=1).mean())
        found["no plan", "t"] = float((t < 0.05).any(axis=1).mean())
    counts = np.arange(1, 101)
    mean = np.cumsum(values, axis=1) / counts
    spread = np.sqrt(np.maximum(np.cumsum(values**2, axis=1) - counts * mean**2, 0) / np.maximum(counts - 1, 1))
    limit = np.array([sequential.always_valid_t(int(n)) for n in counts])
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(mean) / (spread / np.sqrt(counts))
    found["always valid", "t"] = float((t[:, 1:] > limit[1:]).any(axis=1).mean())
    return found


def planned_power(studies: int = 4_000, seed: int = 6) -> dict[tuple[str, int, int], tuple[float, float]]:
    """Planned and simulated power: the mixed test on normal outcomes, and Welch's test over seeds (items = 0)."""
    found = {}
    for index, population in enumerate(POPULATIONS[1:]):
        parts = _components(population)
        for n, m in ((3, 200), (5, 500), (10, 1000), (20, 200)):
            rng = np.random.default_rng([seed, index, n])
            effect = 3.2 * np.sqrt(parts.variance(n, m))
            planned = allocation.power(effect, parts, n, m)
            hits = []
            for start in range(0, studies, 200):
                k = min(200, studies - start)
                d = effect + np.sqrt(parts.seed) * rng.standard_normal((k, n, 1))
                d = d + np.sqrt(parts.item) * rng.standard_normal((k, 1, m))
                d = d + np.sqrt(parts.rest) * rng.standard_normal((k, n, m))
                low, high = crossed(d)
                hits.append((low > 0) | (high < 0))
            found[population.name, n, m] = planned, float(np.concatenate(hits).mean())
    for n, d in ((3, 2.0), (5, 0.8), (5, 2.0), (20, 0.9)):
        rng = np.random.default_rng([seed, n])
        a, b = rng.standard_normal((2, studies * 5, n))
        planned = allocation.welch_power(d, n)
        assert planned is not None
        found[f"Welch, d = {d:g}", n, 0] = planned, float((_welch_p(a + d, b) < 0.05).mean())
    return found


def _components(population: Population) -> allocation.Components:
    """Components of the differences; a cell's own part is what the arms' totals leave."""
    rest = 2 * (population.mean * (1 - population.mean) - population.seed - population.item)
    return allocation.Components(population.seed_apart, population.item_apart, rest)


def effect_coverage(studies: int = 2_000, seed: int = 7) -> dict[tuple[str, int, str], float]:
    """Coverage of the intervals of effect sizes, by number of runs (or items) and the true effect."""
    found: dict[tuple[str, int, str], float] = {}
    for n in (2, 3, 5, 10):
        for d in (0.0, 0.8, 2.0):
            rng = np.random.default_rng([seed, n, int(10 * d)])
            a, b = rng.standard_normal((2, 4 * studies, n))
            a = a + d
            pooled = np.sqrt((a.var(axis=1, ddof=1) + b.var(axis=1, ddof=1)) / 2)
            t = (a.mean(axis=1) - b.mean(axis=1)) / pooled / np.sqrt(2 / n)
            # the interval holds d exactly when t is no surprise under d
            below = stats.nct.cdf(t, 2 * n - 2, d / np.sqrt(2 / n))
            found["hedges-g", n, f"d = {d:g}"] = float(((below >= 0.025) & (below <= 0.975)).mean())
            truth = 2 * stats.norm.cdf(d / np.sqrt(2)) - 1
            cliff = [effects.cliffs_delta(x, y) for x, y in zip(a, b, strict=True)]
            found["cliffs-delta", n, f"d = {d:g}"] = float(np.mean([e.low <= truth <= e.high for e in cliff]))
    for m in (200, 500, 2000):
        rng = np.random.default_rng([seed, m])
        p, q = 0.80, 0.72
        k_a, k_b = rng.binomial(m, p, studies).tolist(), rng.binomial(m, q, studies).tolist()
        newcombe = [effects.risk_difference(x, m, y, m) for x, y in zip(k_a, k_b, strict=True)]
        found["risk-difference", m, "0.80 against 0.72"] = float(np.mean([e.low <= p - q <= e.high for e in newcombe]))
        cells = rng.multinomial(m, [0.66, 0.14, 0.06, 0.14], studies).tolist()
        tables = [effects.Discordance(*row) for row in cells]
        tango = [effects.paired_risk_difference(table) for table in tables]
        found["paired-risk-difference", m, "0.14 against 0.06"] = float(
            np.mean([e.low <= 0.08 <= e.high for e in tango])
        )
        odds = [effects.paired_odds_ratio(table) for table in tables if table.only_a + table.only_b]
        found["paired-odds-ratio", m, "0.14 against 0.06"] = float(
            np.mean([e.low <= 0.14 / 0.06 <= e.high for e in odds])
        )
    return found


def aggregate_coverage(studies: int = 8_000, seed: int = 8) -> dict[tuple[str, int, int], float]:
    """The stratified bootstrap of the mean and the IQM over runs and tasks, normal runs (true value 0)."""
    found = {}
    for n in (3, 5, 10, 20):
        for tasks in (3, 10):
            rng = np.random.default_rng([seed, n, tasks])
            scores = rng.standard_normal((studies, n, tasks))
            hits: dict[str, list[bool]] = {"mean": [], "iqm": []}
            trim = int(0.25 * n * tasks)
            rows = np.empty(0, dtype=int)
            for index, y in enumerate(scores):
                if index % 20 == 0:  # the same draws in all studies would err in all of them alike
                    rows = rng.integers(n, size=(500, n, tasks))
                drawn = np.take_along_axis(np.broadcast_to(y, rows.shape), rows, axis=1).reshape(500, -1)
                middle = np.sort(drawn, axis=1)[:, trim : n * tasks - trim].mean(axis=1)
                for name, values in (("mean", drawn.mean(axis=1)), ("iqm", middle)):
                    low, high = np.quantile(values, [0.025, 0.975])
                    hits[name].append(bool(low <= 0 <= high))
            for name, values in hits.items():
                found[name, n, tasks] = float(np.mean(values))
    return found
