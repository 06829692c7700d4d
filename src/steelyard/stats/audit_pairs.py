"""Cells that compare a row with the baseline: difference, t, p, effect sizes.

Tables rarely say which test, which effect size and which divisor of the sd they use.  What is not stated is found:
of all conventions the one under which most printed cells hold.  A cell that does not hold is then judged by it,
and the finding names the conventions, if any, under which that cell alone would.

Recomputing reported statistics from their inputs: Nuijten et al. (2016), "The prevalence of statistical reporting
errors in psychology", Behavior Research Methods 48 (statcheck).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from scipy import stats

from steelyard.stats.audit_findings import Fact, Finding, Severity, Verdict, judge, show
from steelyard.stats.audit_grain import mean_of, sd_of
from steelyard.stats.audit_table import Printed, Row, Table
from steelyard.stats.published import Arm, Range, d_range, extremes, minus, p_range, t_range

WORDS = {
    "welch": "Welch's t",
    "student": "Student's t with pooled variance",
    "z": "a z test",
    "one-sample": "a one-sample t",
    "paired": "a paired t",
    "cohen": "Cohen's d on the pooled sd",
    "hedges": "Hedges' g",
    "glass": "Glass's Δ on the baseline's sd",
    "paired d": "d of the paired differences",
    "average": "the difference over the root of the mean variance",
    "difference": "row minus baseline",
    "reversed": "baseline minus row",
    "relative": "change relative to the baseline in per cent",
}
MOST_RUNS = 30
"""Numbers of runs that are tried when the table does not say."""


# --------------------------------------------------------------------------------------------------
# Rows as arms


def arm_of(row: Row, ddof: int = 1, *, face: bool = False, n: int | None = None) -> Arm | None:
    """A row as far as its printed numbers let it be known; from its per-seed values where it has them.

    Args:
        ddof: divisor n - ddof of the printed sd; the arm's sd always has n - 1.
        face: the printed numbers as they stand, without rounding.
        n: number of runs where the row has none.

    Returns:
        ``None`` without a mean.
    """

    def span(printed: Printed) -> Range:
        return (printed.value, printed.value) if face else printed.range

    runs, cells = row.n or n or 1, row.numbers
    if len(row.seeds) > 1 or (row.seeds and "mean" not in cells):
        values = [span(seed) for seed in row.seeds]
        sd = None if row.fixed or len(values) < 2 else sd_of(values, 1)
        return Arm(mean_of(values), sd, len(values))
    if "mean" not in cells:
        return None
    sd = None
    if not row.fixed and runs > 1 and "sd" in cells:
        scale = math.sqrt(runs / (runs - 1)) if ddof == 0 else 1.0
        sd = _times(span(cells["sd"]), scale)
    elif not row.fixed and runs > 1 and "se" in cells:
        sd = _times(span(cells["se"]), math.sqrt(runs))
    return Arm(span(cells["mean"]), sd, runs)


def _times(values: Range, factor: float) -> Range:
    return values[0] * factor, values[1] * factor


def paired_arms(a: Row, b: Row, *, face: bool = False) -> tuple[Arm, Arm] | None:
    """The differences of the two rows' runs, against zero; ``None`` without values of equally many seeds."""
    if len(a.seeds) != len(b.seeds) or len(a.seeds) < 2:
        return None
    ends = [
        (x.value - y.value,) * 2 if face else minus(x.range, y.range) for x, y in zip(a.seeds, b.seeds, strict=True)
    ]
    differences: list[Range] = [(low, high) for low, high in ends]
    return Arm(mean_of(differences), sd_of(differences, 1), len(differences)), Arm((0.0, 0.0), None, 1)


# --------------------------------------------------------------------------------------------------
# Conventions


@dataclass(frozen=True, slots=True)
class Conventions:
    """How the table's comparisons were computed.

    Attributes:
        test: one of ``published.TESTS``; ``None`` if the table names one that cannot be recomputed.
        ddof: divisor of the printed sds.
        effect: one of ``published.EFFECTS``.
        delta: ``difference``, ``reversed`` or ``relative``.
        side: of the test.
        stated: which of these the table says itself.
    """

    test: str | None = "welch"
    ddof: int = 1
    effect: str = "cohen"
    delta: str = "difference"
    side: str = "two-sided"
    stated: frozenset[str] = frozenset()

    @property
    def sign(self) -> int:
        """-1 where the table subtracts the row from the baseline."""
        return -1 if self.delta == "reversed" else 1


_Pairs = Sequence[tuple[Row, Row]]
_Quantity = Callable[[Row, Row, Conventions, bool], Range | None]
"""(row, baseline, conventions, face) -> range; ``None`` where something is missing."""


def delta_of(row: Row, base: Row, how: Conventions, face: bool = False) -> Range | None:
    """Range of the difference of the means."""
    a, b = arm_of(row, face=face), arm_of(base, face=face)
    if a is None or b is None:
        return None
    if how.delta == "relative":
        if b.mean[0] <= 0:
            return None
        return extremes(lambda x, y: 100 * (x / y - 1), a.mean, b.mean)
    found = minus(a.mean, b.mean)
    return found if how.sign > 0 else (-found[1], -found[0])


def p_of(row: Row, base: Row, how: Conventions, face: bool = False, n: int | None = None) -> Range | None:
    """Range of the p-value of two rows."""
    if how.test == "paired" and (pair := paired_arms(row, base, face=face)):
        return p_range(*pair, "one-sample", side=how.side)
    a, b = (arm_of(each, how.ddof, face=face, n=n) for each in (row, base))
    if a is None or b is None or how.test is None:
        return None
    return p_range(a, b, how.test, side=how.side)


def t_of(row: Row, base: Row, how: Conventions, face: bool = False) -> Range | None:
    """Range of the test statistic."""
    if how.test == "paired" and (pair := paired_arms(row, base, face=face)):
        return t_range(*pair, "one-sample")
    a, b = arm_of(row, how.ddof, face=face), arm_of(base, how.ddof, face=face)
    if a is None or b is None or how.test is None:
        return None
    return _signed(t_range(a, b, how.test), how)


def d_of(row: Row, base: Row, how: Conventions, face: bool = False) -> Range | None:
    """Range of the effect size."""
    if how.effect == "paired":
        pair = paired_arms(row, base, face=face)
        return pair and _signed(d_range(*pair), how)
    a, b = arm_of(row, how.ddof, face=face), arm_of(base, how.ddof, face=face)
    return None if a is None or b is None else _signed(d_range(a, b, how.effect), how)


def g_of(row: Row, base: Row, how: Conventions, face: bool = False) -> Range | None:
    """Range of Hedges' g."""
    return d_of(row, base, replace(how, effect="hedges"), face)


def _signed(found: Range | None, how: Conventions) -> Range | None:
    return (-found[1], -found[0]) if found is not None and how.sign < 0 else found


QUANTITIES: dict[str, _Quantity] = {"delta": delta_of, "t": t_of, "p": p_of, "d": d_of, "g": g_of}


def _fits(pairs: _Pairs, column: str, how: Conventions) -> int:
    """Cells of a column that hold under the conventions."""
    return sum(
        judge(row.numbers[column], None, found) != "does not hold"
        for row, base in pairs
        if column in row.numbers and (found := QUANTITIES[column](row, base, how, False)) is not None
    )


def conventions(table: Table) -> Conventions:
    """What is stated, and else what most cells follow from; earlier candidates win ties."""
    settings, pairs = table.settings, table.pairs()
    stated = frozenset(key for key in ("test", "ddof", "effect", "side") if key in settings)
    start = Conventions(side=settings.get("side", "two-sided"), stated=stated)
    deltas = [replace(start, delta=kind) for kind in ("difference", "reversed", "relative")]
    start = max(deltas, key=lambda how: _fits(pairs, "delta", how))
    test = settings.get("test")
    values = any(paired_arms(row, base) for row, base in pairs)
    tests = ["welch", "student", "one-sample", "z", *(["paired"] if values else [])]
    tests = [None if test == "other" else test] if test else tests
    best, most = start, -1
    for ddof in [settings["ddof"]] if "ddof" in settings else [1, 0]:
        shapes = [replace(start, ddof=ddof, test=each) for each in tests]
        by_p = max(shapes, key=lambda how: _fits(pairs, "p", how) + _fits(pairs, "t", how))
        effects = [settings["effect"]] if "effect" in settings else ["cohen", "hedges", "glass"]
        found = max([replace(by_p, effect=each) for each in effects], key=lambda how: _fits(pairs, "d", how))
        fits = sum(_fits(pairs, column, found) for column in ("t", "p", "d", "g"))
        if fits > most:
            best, most = found, fits
    return best


# --------------------------------------------------------------------------------------------------
# Findings


def checks(table: Table, how: Conventions) -> Iterator[Finding]:
    """Every printed difference, t, p, d and g against the rows that it is about."""
    pairs = table.pairs()
    columns = [c for c in QUANTITIES if any(c in row.numbers for row in table.rows)]
    if columns and not pairs:
        needed = "which row is the baseline (--baseline NAME)"
        for column in columns:
            yield Finding(column, "", column, "", "", "cannot be checked", needed=needed)
        return
    for column in columns:
        yield from _column(table, pairs, column, how)
    for row, _ in pairs:
        if {"t", "df", "p"} <= row.numbers.keys():
            yield _p_from_t(table, row, how)


def _column(table: Table, pairs: _Pairs, column: str, how: Conventions) -> Iterator[Finding]:
    missing: list[tuple[Row, Row]] = []
    for row, base in pairs:
        printed = row.numbers.get(column)
        if printed is None:
            continue
        found = QUANTITIES[column](row, base, how, False)
        if found is None:
            missing.append((row, base))
            continue
        face = QUANTITIES[column](row, base, how, True)
        verdict = judge(printed, face and face[0], found)
        text, needed = _words(column, how, row), ""
        if column in ("p", "t") and how.test == "paired" and not row.seeds and verdict != "does not hold":
            verdict, needed = "cannot be checked", "the runs' scores: any correlation between the arms is possible"
        elif verdict == "does not hold":
            text += _would_hold(column, row, base, printed, how)
        yield Finding(
            check=column,
            row=row.name,
            column=column,
            claimed=printed.text,
            true=show(found, printed.decimals),
            verdict=verdict,
            severity=_severity(column, printed, found, table.alpha, verdict),
            how=text,
            needed=needed,
            task=row.task,
        )
    if missing:
        yield _not_checkable(table, column, missing, how)


def _not_checkable(table: Table, column: str, missing: _Pairs, how: Conventions) -> Finding:
    needed = "means, sds and the number of runs of both rows"
    if column != "delta" and how.test is None:
        needed = "a test that can be recomputed from summaries; the table names another"
    elif any(row.n is None and not row.fixed for pair in missing for row in pair) and column != "delta":
        needed = f"the number of runs per row (--n){_guess_n(missing) if column == 'p' else ''}"
    verdict: Verdict = "cannot be checked"
    return Finding(column, "", column, f"{len(missing)} cells", "", verdict, needed=needed)


def _guess_n(pairs: _Pairs) -> str:
    """Numbers of runs from which every p follows by Welch's test."""
    some = [pair for pair in pairs if "p" in pair[0].numbers][:12]
    fitting = []
    for n in range(2, MOST_RUNS + 1):
        ranges = [(row.numbers["p"], p_of(row, base, Conventions(), n=n)) for row, base in some]
        if ranges and all(r is not None and judge(p, None, r) != "does not hold" for p, r in ranges):
            fitting.append(n)
    if len(fitting) != 1 or len(some) < 3:
        return ""
    only = f"from n = {fitting[0]}, and from no other up to {MOST_RUNS}"
    return f"; {len(some)} of {len(some)} p-values follow by Welch's t {only}"


def _words(column: str, how: Conventions, row: Row) -> str:
    rounding = "over the rounding of the printed means" if column == "delta" else "over the rounding of means and sds"
    if column == "delta":
        return f"{WORDS[how.delta]}, {rounding}"
    effect = "paired d" if how.effect == "paired" else how.effect
    what = WORDS[effect] if column == "d" else WORDS["hedges"] if column == "g" else WORDS[how.test or "welch"]
    if row.seeds:
        return f"{what} from the runs' scores"
    side = "" if how.side == "two-sided" else f", {how.side}"
    return f"{what}{side}, n = {row.n}, sds with divisor n{' - 1' if how.ddof else ''}, {rounding}"


def _would_hold(column: str, row: Row, base: Row, printed: Printed, how: Conventions) -> str:
    """Conventions under which this cell alone would hold; a hint at what happened."""
    others: list[tuple[str, Conventions]] = []
    if column == "delta":
        others = [(WORDS[kind], replace(how, delta=kind)) for kind in ("difference", "reversed", "relative")]
    elif column in ("p", "t"):
        sides = ("two-sided", "greater", "less") if column == "p" else (how.side,)
        for test, ddof, side in product(("welch", "student", "z", "one-sample", "paired"), (1, 0), sides):
            if test == "paired" and paired_arms(row, base) is None:
                continue  # over all correlations nearly any p would hold
            words = WORDS[test] + (", sds with divisor n" if ddof == 0 else "")
            words += "" if side == "two-sided" or column == "t" else ", one-sided"
            others.append((words, replace(how, test=test, ddof=ddof, side=side)))
    else:
        for effect, ddof in product(("cohen", "hedges", "glass"), (1, 0)):
            words = WORDS[effect] + (", sds with divisor n" if ddof == 0 else "")
            others.append((words, replace(how, effect=effect, ddof=ddof)))
    named = []
    for words, other in others:
        found = QUANTITIES[column](row, base, other, False)
        if other != how and found is not None and judge(printed, None, found) != "does not hold":
            named.append(words)
    return f"; it would hold with {' or '.join(dict.fromkeys(named))}" if named else ""


def _severity(column: str, printed: Printed, found: Range, alpha: float, verdict: Verdict) -> Severity:
    if verdict != "does not hold":
        return "none"
    if column == "p":
        crosses = (printed.value < alpha and found[0] >= alpha) or (printed.value >= alpha and found[1] < alpha)
        return "serious" if crosses else "minor"
    turned = (printed.high < 0 < found[0]) or (found[1] < 0 < printed.low)
    return "serious" if turned else "minor"


def _p_from_t(table: Table, row: Row, how: Conventions) -> Finding:
    t, df, p = (row.numbers[column] for column in ("t", "df", "p"))

    law = {
        "two-sided": lambda x, k: 2 * stats.t.sf(abs(x), k),
        "greater": stats.t.sf,
        "less": stats.t.cdf,
    }[how.side]
    # Whole degrees of freedom are a count and not rounded.
    around = (df.value, df.value) if df.decimals == 0 else (max(df.low, 1e-3), df.high)
    found = extremes(law, t.range, around)
    verdict = judge(p, float(law(t.value, df.value)), found)
    return Finding(
        check="p from t",
        row=row.name,
        column="p",
        claimed=p.text,
        true=show(found, p.decimals),
        verdict=verdict,
        severity=_severity("p", p, found, table.alpha, verdict),
        how=f"{how.side} tail of t = {t.text} with {df.text} degrees of freedom",
        task=row.task,
    )


def facts(table: Table, how: Conventions) -> Iterator[Fact]:
    """The conventions that were found, where the table does not state them."""
    pairs = table.pairs()
    for column, key, value in (("p", "test", how.test), ("d", "effect", how.effect)):
        cells = sum(column in row.numbers for row, _ in pairs)
        if not cells or key in how.stated or value is None:
            continue
        fits = _fits(pairs, column, how)
        if not fits:
            continue
        divisor = "n - 1" if how.ddof else "n"
        text = (
            f"{fits} of {cells} printed {column} follow from {WORDS[value]} with sds of divisor {divisor} (not stated)."
        )
        yield Fact(key, text, {"convention": value, "ddof": how.ddof, "fits": fits, "cells": cells})
    if how.delta != "difference" and any("delta" in row.numbers for row, _ in pairs):
        yield Fact("delta", f"The printed differences are {WORDS[how.delta]}.", {"convention": how.delta})
