"""Tests of one arm against another from their outcomes ``[seeds, items]``, and the rule that picks one.

They differ in the question that they answer, and that is what each result's ``over`` says:

* *seeds*: would training again, both, give this difference on these items?  (welch, paired-t, wilcoxon,
  seed-permutation)
* *items*: would these very models differ on other such items?  (paired-permutation, mcnemar, items-t)
* *seeds and items*: both at once.  (mixed)

All take :class:`~steelyard.stats.outcomes.Sides`, paired by item, and by seed where the arms share seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from scipy import stats

from steelyard.errors import StudyError, unknown
from steelyard.stats.compare import Test, independent
from steelyard.stats.effects import Discordance, paired_risk_difference
from steelyard.stats.equivalence import welch_pivot
from steelyard.stats.estimate import Summary, summarise
from steelyard.stats.intervals import crossed_parts, mean_squares
from steelyard.stats.outcomes import Sides
from steelyard.stats.pivot import Pivot, as_test_fields

PERMUTATIONS = 9_999
"""Random relabellings where there are too many to enumerate."""

ENUMERATED = 20_000
"""Up to so many relabellings all of them are tried, which makes the test exact."""


@dataclass(frozen=True)
class Result:
    """A test and what it speaks about.

    Attributes:
        name: key of :data:`TESTS`.
        over: ``seeds``, ``items`` or ``seeds and items``.
        test: difference, interval and p-value; ``test.p`` is ``None`` with a note where it does not exist.
        pivot: for equivalence tests; ``None`` for tests that have no standard error.
    """

    name: str
    over: str
    test: Test
    pivot: Pivot | None = None


def default_test(
    runs_a: int, runs_b: int, *, binary: bool, seeds_paired: bool, items: int, one_fixed: bool = False
) -> tuple[str, str]:
    """The test that a design calls for, and why, in words.

    The rule: with at least two runs in each arm, ``mixed`` (seeds and items random; paired by item always, by seed
    where both arms have the same seeds), because a claim about a method must survive both another training run and
    other items.  An untrained model (``one_fixed``) does not vary, so the other arm's runs suffice.  With one
    run in an arm nothing can be said about training again: ``mcnemar`` for right and wrong answers, else
    ``paired-permutation``, and the claim is about these very models.  Without items: ``paired-t`` if
    the seeds are paired, else ``welch``.
    """
    if one_fixed and max(runs_a, runs_b) >= 2 and items >= 2:
        return (
            "mixed",
            f"an untrained model against {max(runs_a, runs_b)} runs on {items} items: seeds and items are random",
        )
    if runs_a >= 2 and runs_b >= 2:
        pairing = "by item and seed" if seeds_paired else "by item, seeds independent"
        if items < 2:
            name = "paired-t" if seeds_paired else "welch"
            return name, f"{runs_a} and {runs_b} runs without items: only the runs' means can be compared"
        return (
            "mixed",
            f"{runs_a} and {runs_b} runs on {items} common items: seeds and items are random, paired {pairing}",
        )
    few = (
        "one run in an arm: nothing says how much another training run would differ, so the claim is about these models"
    )
    return ("mcnemar" if binary and runs_a == runs_b == 1 else "paired-permutation"), few


def run(name: str, both: Sides, *, rng: np.random.Generator, level: float = 0.95) -> Result:
    """The test called ``name``.

    Args:
        name: a key of :data:`TESTS`, or ``auto`` for :func:`default_test`.
        rng: used by permutation tests only.

    Raises:
        StudyError: unknown name, or a test that does not fit the design; the message names one that does.
    """
    if name == "auto":
        name = rule(both)[0]
    if name not in TESTS:
        raise StudyError(unknown("test", name, ["auto", *TESTS]))
    return TESTS[name](both, rng, level)


def rule(both: Sides) -> tuple[str, str]:
    """:func:`default_test` of two arms."""
    return default_test(
        *both.runs,
        binary=both.binary,
        seeds_paired=both.seeds_paired,
        items=both.items,
        one_fixed=both.a_fixed != both.b_fixed,
    )


def _from_pivot(name: str, over: str, method: str, pivot: Pivot, level: float, note: str = "") -> Result:
    test = Test(method, pivot.estimate, **as_test_fields(pivot, level), note=note)
    return Result(name, over, test, pivot)


def _undefined(name: str, over: str, method: str, both: Sides, note: str) -> Result:
    return Result(name, over, Test(method, both.difference, note=note))


# --------------------------------------------------------------------------------------------------
# Seeds and items


def mixed(both: Sides, rng: np.random.Generator, level: float = 0.95) -> Result:
    """Mixed effects: the difference varies with the seed, with the item, and from cell to cell.

    With paired seeds it is the two-way random model of the differences ``[seeds, items]``.  With independent seeds
    the seeds' part is Welch's, the items' part that of the items' differences less what the cells add to it.  One
    arm may be fixed (an untrained model): only the other's seeds vary.  Variances are the anova estimates, which
    equal REML's for complete tables (checked against ``statsmodels``' MixedLM); the reference value is Cochran's
    (:mod:`steelyard.stats.pivot`).

    Sources: Searle, Casella & McCulloch (1992), "Variance components", §4.3; Baayen, Davidson & Bates (2008),
    Journal of Memory and Language 59, for crossed random subjects and items.
    """
    name, over, method = "mixed", "seeds and items", "mixed effects (seed and item random)"
    if min(both.runs) < 2 and not (both.a_fixed ^ both.b_fixed and max(both.runs) >= 2):
        raise StudyError(
            f"the test 'mixed' needs two runs in each arm, got {both.runs[0]} and {both.runs[1]}: try mcnemar "
            "or paired-permutation, which speak about these very models"
        )
    if both.items < 2:
        raise StudyError("the test 'mixed' needs at least two common items: try welch")
    if both.seeds_paired:
        parts = crossed_parts(both.a - both.b)
    else:
        arms = [y for y, fixed in ((both.a, both.a_fixed), (both.b, both.b_fixed)) if not fixed]
        squares = [mean_squares(y) for y in arms]
        shares = [(ms / (n * m), n - 1) for n, m, ms, _, _ in squares]
        total = sum(v for v, _ in shares)
        df = total**2 / sum(v**2 / d for v, d in shares) if total > 0 else 1.0
        rest = sum(ms_rest / (n * m) for n, m, _, _, ms_rest in squares)
        items = float(both.by_item.var(ddof=1)) / both.items
        parts = [(total, df), (max(0.0, items - rest), both.items - 1)]
    if not any(v > 0 for v, _ in parts):
        return _undefined(name, over, method, both, "no difference between any two outcomes: no test exists")
    return _from_pivot(name, over, method, Pivot.of(both.difference, parts), level)


# --------------------------------------------------------------------------------------------------
# Seeds


def _summaries(both: Sides) -> tuple[Summary, Summary]:
    return (
        summarise(both.a.mean(axis=1).tolist(), fixed=both.a_fixed),
        summarise(both.b.mean(axis=1).tolist(), fixed=both.b_fixed),
    )


def welch(both: Sides, rng: np.random.Generator, level: float = 0.95) -> Result:
    """Welch's t over the runs' means; one-sample against a fixed arm (:func:`steelyard.stats.compare.independent`)."""
    a, b = _summaries(both)
    test = independent(a, b, level=level)
    return Result("welch", "seeds", test, welch_pivot(a, b) if test.p is not None else None)


def paired_t(both: Sides, rng: np.random.Generator, level: float = 0.95) -> Result:
    """Paired t over the seeds' differences; source: Student (1908)."""
    d = both.by_seed
    if np.ptp(d) == 0:
        return _undefined("paired-t", "seeds", "paired t", both, "all paired differences are equal: no t test exists")
    return _from_pivot(
        "paired-t", "seeds", "paired t", Pivot.of(d.mean(), [(d.var(ddof=1) / d.size, d.size - 1)]), level
    )


def wilcoxon(both: Sides, rng: np.random.Generator, level: float = 0.95) -> Result:
    """Wilcoxon's signed rank test over the seeds' differences, exact; its interval is Hodges and Lehmann's.

    Source: Wilcoxon (1945), Biometrics Bulletin 1; ``scipy.stats.wilcoxon``.  Interval: Hollander, Wolfe & Chicken
    (2014), "Nonparametric statistical methods", §3.3.  With n seeds no p-value is below ``2^(1-n)``.
    """
    d = both.by_seed
    n, method = d.size, "Wilcoxon signed rank"
    if not np.any(d):
        return _undefined("wilcoxon", "seeds", method, both, "all paired differences are zero: no test exists")
    distinct = len(set(np.abs(d))) == n and bool(np.all(d))
    p = float(np.asarray(stats.wilcoxon(d, method="exact" if distinct else "auto"))[1])
    walsh = np.sort([(d[i] + d[j]) / 2 for i in range(n) for j in range(i, n)])
    counts = np.array([1.0])
    for rank in range(1, n + 1):
        counts = np.convolve(counts, np.r_[1.0, np.zeros(rank - 1), 1.0])
    below = np.cumsum(counts) / counts.sum()
    k = int(np.searchsorted(below, (1 - level) / 2, side="right"))
    low, high = (float(walsh[k - 1]), float(walsh[-k])) if k >= 1 else (None, None)
    note = _floor_note(2.0 ** (1 - n), n)
    return Result("wilcoxon", "seeds", Test(method, both.difference, low, high, p=p, note=note))


def seed_permutation(both: Sides, rng: np.random.Generator, level: float = 0.95) -> Result:
    """Relabelling whole runs: the hierarchical permutation test, exact over all relabellings when they are few.

    Paired seeds: the sign of every seed's difference is flipped (all its items together).  Independent seeds: runs
    are dealt anew to the two arms.  Source: Fisher (1935), "The design of experiments", §21; Good (2005),
    "Permutation, parametric, and bootstrap tests", §3.  With three paired seeds no p-value is below 0.25.
    """
    name, over, method = "seed-permutation", "seeds", "permutation of runs"
    if both.a_fixed or both.b_fixed or min(both.runs) < 2:
        raise StudyError(f"the test '{name}' needs two trained runs in each arm, got {both.runs[0]} and {both.runs[1]}")
    if both.seeds_paired:
        test = sign_flips(both.by_seed, rng=rng, level=level, method=f"{method} (sign flips)")
        n = both.runs[0]
        return Result(name, over, _with_note(test, _floor_note(2.0 ** (1 - n), n)))
    a, b = both.a.mean(axis=1), both.b.mean(axis=1)
    pooled, n = np.r_[a, b], a.size
    ways = math.comb(pooled.size, n)
    if ways <= ENUMERATED:
        chosen = np.array(list(combinations(range(pooled.size), n)))
    else:
        chosen = np.argsort(rng.random((PERMUTATIONS, pooled.size)), axis=1)[:, :n]
    sums = pooled[chosen].sum(axis=1)
    found = sums / n - (pooled.sum() - sums) / b.size
    p = _tail(np.abs(found), abs(float(a.mean() - b.mean())), exact=ways <= ENUMERATED)
    test = Test(method, both.difference, p=p, note=_floor_note((2 if a.size == b.size else 1) / ways, n))
    return Result(name, over, test)


def _floor_note(floor: float, n: int) -> str:
    return f"with {n} seeds no p-value of this test is below {floor:.3g}" if floor > 0.01 else ""


def _with_note(test: Test, note: str) -> Test:
    return Test(test.method, test.difference, test.low, test.high, test.statistic, test.df, test.p, note or test.note)


# --------------------------------------------------------------------------------------------------
# Items


def items_t(both: Sides, rng: np.random.Generator, level: float = 0.95) -> Result:
    """Paired t over items, each item's score averaged over the arm's runs (an item is one cluster).

    Source: Student (1908); clustering as in Miller (2024), arXiv 2411.00640, §2.2 and §4.
    """
    d = both.by_item
    if d.size < 2 or np.ptp(d) == 0:
        return _undefined("items-t", "items", "paired t over items", both, "the items' differences do not vary")
    pivot = Pivot.of(d.mean(), [(d.var(ddof=1) / d.size, d.size - 1)])
    return _from_pivot("items-t", "items", "paired t over items", pivot, level)


def paired_permutation(both: Sides, rng: np.random.Generator, level: float = 0.95) -> Result:
    """Sign flips by item: an item's outcomes in all runs change sides together, so that repeats stay one cluster.

    Source: Fisher (1935), §21; for systems on common test items Noreen (1989), "Computer-intensive methods for
    testing hypotheses"; interval by inversion, Hartigan (1969), "Using subsample values as typical values", JASA 64.
    """
    test = sign_flips(both.by_item, rng=rng, level=level, method="paired permutation over items")
    return Result("paired-permutation", "items", test)


def sign_flips(
    differences: np.ndarray,
    *,
    rng: np.random.Generator,
    level: float = 0.95,
    method: str = "sign flips",
    clusters: np.ndarray | None = None,
) -> Test:
    """Sign-flip test of a mean difference, with the interval that inverts it.

    Args:
        differences: ``[n]`` paired differences.
        clusters: ``[n]`` labels; differences of one cluster (items of one prompt, say) are flipped together.

    Two-sided p-value of ``|mean|``; exact when all flips were tried, else ``(1 + hits) / (1 + draws)`` (Phipson &
    Smyth 2010, SAGMB 9).  The interval's ends are order statistics of the means of the flipped subsets (Hartigan
    1969); they do not exist where there are too few flips, nor with clusters of unequal size.
    """
    d = np.asarray(differences, dtype=float)
    sums, sizes = d, np.ones(d.size)
    if clusters is not None:
        _, index = np.unique(np.asarray(clusters), return_inverse=True)
        sums, sizes = np.bincount(index, weights=d), np.bincount(index).astype(float)
    if not np.any(sums):
        return Test(method, float(d.mean()), note="all paired differences are zero: no test exists")
    n = sums.size
    exact = 2**n <= ENUMERATED
    both = np.stack([sums, sizes], axis=1)
    if exact:
        drawn = np.array(list(product((0.0, 1.0), repeat=n))) @ both
    else:  # in blocks, since ten thousand draws of two thousand items are a lot of memory
        blocks = [min(1000, PERMUTATIONS - start) for start in range(0, PERMUTATIONS, 1000)]
        drawn = np.concatenate([rng.integers(0, 2, (block, n)).astype(float) @ both for block in blocks])
    p = _tail(np.abs(sums.sum() - 2 * drawn[:, 0]), abs(float(sums.sum())), exact=exact)
    low, high = _typical(drawn[:, 0], drawn[:, 1], level, exact)
    return Test(method, float(d.mean()), low, high, p=p)


def _tail(values: np.ndarray, observed: float, *, exact: bool) -> float:
    hits = int((values >= observed - 1e-12 * max(1.0, abs(observed))).sum())
    return hits / values.size if exact else (1 + hits) / (1 + values.size)


def _typical(sums: np.ndarray, sizes: np.ndarray, level: float, exact: bool) -> tuple[float | None, float | None]:
    """The ends of the interval of shifts that a sign-flip test does not reject."""
    some = sizes > 0
    means = np.sort(sums[some] / sizes[some])
    total = means.size + 1 if exact else sums.size + 1
    k = math.floor((1 - level) / 2 * total + 1e-9)
    if k < 1:
        return None, None
    return float(means[k - 1]), float(means[means.size - k])


def mcnemar(both: Sides, rng: np.random.Generator, level: float = 0.95) -> Result:
    """McNemar's exact test: of the items that one model answers and the other does not, is either side favoured?

    Source: McNemar (1947), Psychometrika 12; exact version: binomial test of the discordant items.  The interval of
    the difference is Tango's (:func:`steelyard.stats.effects.paired_risk_difference`).

    Raises:
        StudyError: more than one run in an arm (repeats of an item are not independent), or scores other than 0/1.
    """
    if len(both.a) > 1 or len(both.b) > 1:
        raise StudyError(
            f"the test 'mcnemar' compares one run with one run, got {len(both.a)} and {len(both.b)}: repeats "
            "of an item "
            "are not independent; try mixed, or paired-permutation for these very models"
        )
    table = Discordance.of(both.a[0], both.b[0])
    apart = table.only_a + table.only_b
    if not apart:
        return _undefined("mcnemar", "items", "McNemar (exact)", both, "both answer every item alike: no test exists")
    p = float(stats.binomtest(table.only_a, apart).pvalue)
    effect = paired_risk_difference(table, level=level)
    return Result("mcnemar", "items", Test("McNemar (exact)", effect.value, effect.low, effect.high, p=p))


Named = Callable[[Sides, np.random.Generator, float], Result]
TESTS: dict[str, Named] = {
    "mixed": mixed,
    "welch": welch,
    "paired-t": paired_t,
    "wilcoxon": wilcoxon,
    "seed-permutation": seed_permutation,
    "paired-permutation": paired_permutation,
    "mcnemar": mcnemar,
    "items-t": items_t,
}
"""Tests by name."""
