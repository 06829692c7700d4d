"""Claims that sit in columns: significance, corrections, equality, selection; and what the design could see.

A claim of equality is never supported by a large p-value: it needs a margin and an equivalence test (Schuirmann,
1987, Journal of Pharmacokinetics and Biopharmaceutics 15), which is Welch's test against each margin at level alpha.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy import integrate, stats

from steelyard.stats import design
from steelyard.stats.audit_findings import Fact, Finding, Severity, Verdict, judge, listing, number, show
from steelyard.stats.audit_pairs import WORDS, Conventions, arm_of, p_of
from steelyard.stats.audit_table import Row, Table, printed_number
from steelyard.stats.compare import pooled_sd
from steelyard.stats.estimate import Summary
from steelyard.stats.families import CORRECTIONS
from steelyard.stats.published import Arm, Range, extremes, minus, p_range

SOUGHT = 0.8
"""Power that a detectable difference and a number of seeds refer to."""


def checks(table: Table, how: Conventions) -> Iterator[Finding]:
    """All of this module."""
    yield from _adjusted(table)
    yield from _family(table)
    yield from _significance(table, how)
    for row, base in table.pairs():
        if row.equal:
            yield equality(table, row, base, None, how, row.name, "equal")
    yield from _selection(table)


def make(
    check: str,
    row: str,
    column: str,
    claimed: str,
    true: str,
    verdict: Verdict,
    *,
    severity: Severity = "serious",
    how: str = "",
    needed: str = "",
    task: str = "",
) -> Finding:
    """A finding whose severity counts only if it does not hold."""
    level: Severity = severity if verdict == "does not hold" else "none"
    return Finding(check, row, column, claimed, true, verdict, level, how, needed, task)


# --------------------------------------------------------------------------------------------------
# Many comparisons


def printed_ps(table: Table) -> list[tuple[Row, Range]]:
    """The family of the table: every printed p-value."""
    return [(row, row.numbers["p"].range) for row in table.rows if "p" in row.numbers]


def adjust(ps: Sequence[Range], method: str, comparisons: int | None = None) -> list[Range]:
    """Ranges of adjusted p-values; every procedure here grows with each p."""
    ends = []
    for end in (0, 1):
        values: list[float | None] = [min(max(p[end], 0.0), 1.0) for p in ps]
        if comparisons is not None:
            # Comparisons that are not in the table count as if they had found nothing.
            values += [1.0] * (comparisons - len(values))
        ends.append(CORRECTIONS[method](values)[: len(ps)])
    return [(float(low or 0.0), float(high or 0.0)) for low, high in zip(*ends, strict=True)]


def _method(table: Table) -> str:
    return table.settings.get("correction", "none")


def _adjusted(table: Table) -> Iterator[Finding]:
    """Printed corrected p-values."""
    family = printed_ps(table)
    rows = [row for row in table.rows if "p_adjusted" in row.numbers]
    if not rows:
        return
    if not {row.label for row in rows} <= {row.label for row, _ in family}:
        needed = "the uncorrected p of every comparison"
        yield make("correction", "", "p_adjusted", f"{len(rows)} cells", "", "cannot be checked", needed=needed)
        return
    comparisons = table.settings.get("comparisons")

    def ranges(method: str, *, face: bool = False) -> dict[str, Range]:
        values = [row.numbers["p"].value for row, _ in family]
        ps = [(value, value) for value in values] if face else [p for _, p in family]
        found = adjust(ps, method, comparisons)
        return {row.label: each for (row, _), each in zip(family, found, strict=True)}

    def fits(method: str) -> int:
        return sum(judge(row.numbers["p_adjusted"], None, ranges(method)[row.label]) != "does not hold" for row in rows)

    stated = table.settings.get("correction")
    method = stated or max(("holm", "bonferroni", "hochberg", "bh"), key=fits)
    for row in rows:
        printed, found = row.numbers["p_adjusted"], ranges(method)[row.label]
        verdict = judge(printed, ranges(method, face=True)[row.label][0], found)
        crosses = (printed.value < table.alpha) != (found[1] < table.alpha)
        how = f"{method} over {max(len(family), comparisons or 0)} printed p{'' if stated else ' (not stated)'}"
        severity: Severity = "serious" if crosses else "minor"
        yield make(
            "correction",
            row.name,
            "p_adjusted",
            printed.text,
            show(found, printed.decimals),
            verdict,
            severity=severity,
            how=how,
            task=row.task,
        )


def _family(table: Table) -> Iterator[Finding]:
    """Number of comparisons and corrected level, as claimed."""
    family = printed_ps(table)
    claimed, m = table.settings.get("comparisons"), len(family)
    if claimed is not None and m:
        verdict: Verdict = "does not hold" if claimed < m else "holds"
        how = "a family has at least as many comparisons as the table prints p-values"
        true = f"{m} p-values in the table"
        yield make("correction", "", "comparisons", str(claimed), true, verdict, severity="minor", how=how)
    threshold = table.settings.get("threshold")
    if threshold is not None and (claimed or m):
        level = table.alpha / (claimed or m)
        printed = printed_number(f"{threshold:.10g}", "threshold")
        how = f"Bonferroni's level: {table.alpha:g} over {claimed or m}"
        verdict = judge(printed, level, (level, level))
        true = f"{level:.2g}"
        yield make("correction", "", "threshold", printed.text, true, verdict, severity="minor", how=how)


def _significance(table: Table, how: Conventions) -> Iterator[Finding]:
    """The column ``significant``, by the table's own p-values or, without them, by recomputed ones."""
    pairs, method = table.pairs(), _method(table)
    known: list[tuple[Row, Range]] = []
    for row, base in pairs:
        found = row.numbers["p"].range if "p" in row.numbers else p_of(row, base, how)
        if found is not None:
            known.append((row, found))
    adjusted = dict(
        zip(
            [row.label for row, _ in known],
            adjust([p for _, p in known], method, table.settings.get("comparisons")),
            strict=True,
        )
    )
    words = f"{method} over {len(known)} comparisons" if method != "none" else "no correction"
    for row, _ in pairs:
        if row.significant is None:
            continue
        claimed = "significant" if row.significant else "not significant"
        found = adjusted.get(row.label)
        if found is None:
            needed = "a p-value, or means, sds and runs of both rows"
            yield make(
                "significance", row.name, "significant", claimed, "", "cannot be checked", needed=needed, task=row.task
            )
            continue
        verdict = against(found, table.alpha, row.significant)
        needed = "more digits of p" if verdict == "cannot be checked" else ""
        true = f"p = {p_text(found)} ({words})"
        text = f"{words}, level {table.alpha:g}"
        yield make(
            "significance",
            row.name,
            "significant",
            claimed,
            true,
            verdict,
            how=text,
            needed=needed,
            task=row.task,
        )


def against(p: Range, alpha: float, significant: bool) -> Verdict:
    """A claim of (no) significance against the range of its p-value."""
    if p[1] < alpha:
        return "holds" if significant else "does not hold"
    if p[0] >= alpha:
        return "does not hold" if significant else "holds"
    return "cannot be checked"


def p_text(p: Range) -> str:
    """``0.013``, or the range if its ends differ in two digits."""
    low, high = (f"{max(end, 0.0):.2g}" for end in p)
    return low if low == high else f"{low} to {high}"


# --------------------------------------------------------------------------------------------------
# Equality


def _shifted(arm: Arm, by: float) -> Arm:
    return Arm((arm.mean[0] + by, arm.mean[1] + by), arm.sd, arm.n)


def equality(
    table: Table, a: Row, b: Row, margin: float | None, how: Conventions, name: str, column: str, text: str = ""
) -> Finding:
    """Is "equal" more than a large p-value?"""
    margin = margin if margin is not None else table.settings.get("margin")
    claimed = text or f"{a.name} equals {b.name}"
    arms = arm_of(a, how.ddof), arm_of(b, how.ddof)
    first, second = arms
    interval = None if first is None or second is None else _interval(first, second, 1 - 2 * table.alpha)
    if first is None or second is None or interval is None:
        needed = "means, sds and the number of runs of both rows"
        return make("equality", name, column, claimed, "", "cannot be checked", needed=needed, task=a.task)
    bound = max(abs(end) for end in interval)
    span = f"{number(interval[0])} to {number(interval[1])}"
    if margin is None:
        differ = (p_of(a, b, how) or (1.0, 1.0))[1] < table.alpha
        true = "they differ significantly" if differ else "not resolved: no significant difference is not equality"
        true += f"; the difference lies within {span}, so equal only for a margin of {number(bound)} or more"
        how_text = f"{100 * (1 - 2 * table.alpha):g} % interval of the difference (Welch); no margin is given"
        return make("equality", name, column, claimed, true, "does not hold", how=how_text, task=a.task)
    test = "one-sample" if second.sd is None else "welch"
    above = p_range(_shifted(first, margin), second, test, side="greater")
    below = p_range(_shifted(first, -margin), second, test, side="less")
    if above is None or below is None:
        needed = "sds and at least two runs of the first row"
        return make("equality", name, column, claimed, "", "cannot be checked", needed=needed, task=a.task)
    p = max(above[0], below[0]), max(above[1], below[1])
    verdict = against(p, table.alpha, True)
    true = f"{'equal' if verdict == 'holds' else 'not shown'}: TOST p = {p_text(p)}, difference {span}"
    return make(
        "equality",
        name,
        column,
        f"{claimed} within {margin:g}",
        true,
        verdict,
        how=f"two one-sided tests ({WORDS[test]}) against ±{margin:g} at level {table.alpha:g}",
        needed="more digits" if verdict == "cannot be checked" else "",
        task=a.task,
    )


def _interval(a: Arm, b: Arm, level: float) -> Range | None:
    """The widest Welch interval of the difference that the rounding allows."""
    if a.sd is None:
        return None
    spreads = [arm for arm in (a, b) if arm.sd is not None]

    def reach(*sds: Any) -> Any:
        parts = [sd**2 / arm.n for sd, arm in zip(sds, spreads, strict=True)]
        total = np.maximum(sum(parts), 1e-24)
        df = total**2 / np.maximum(sum(part**2 / (arm.n - 1) for part, arm in zip(parts, spreads, strict=True)), 1e-48)
        return stats.t.ppf(0.5 + level / 2, df) * np.sqrt(total)

    shift = minus(a.mean, b.mean)
    half = extremes(reach, *[(max(arm.sd[0], 0.0), arm.sd[1]) for arm in spreads if arm.sd is not None])[1]
    return shift[0] - half, shift[1] + half


# --------------------------------------------------------------------------------------------------
# Selection


def _selection(table: Table) -> Iterator[Finding]:
    """Settings chosen on the split that is reported."""
    reported = table.settings.get("reported_on", "test")
    silent = [row for row in table.rows if row.selected_on is None and not row.fixed]
    for row in table.rows:
        if row.selected_on is None:
            continue
        wrong = row.selected_on.strip().lower() == str(reported).strip().lower()
        verdict: Verdict = "does not hold" if wrong else "holds"
        arm = arm_of(row, face=True)
        true = "the score is the best of several on these very items" if wrong else "another split"
        if wrong and row.settings and row.settings > 1 and arm is not None and arm.sd is not None:
            gain = best_of(row.settings) * arm.sd[0]
            true += (
                f"; were all {row.settings} settings equal, the best of one run each would be {number(gain)} too high"
            )
        claimed = f"chosen on {row.selected_on}, reported on {reported}"
        how = "a score that chose the setting is no estimate of it"
        yield make("selection", row.name, "selected_on", claimed, true, verdict, how=how, task=row.task)
    if silent:
        needed = "the split on which settings and checkpoints were chosen (selected_on)"
        who = "" if len(silent) == len(table.rows) else listing([row.label for row in silent], 3)
        claimed = f"{len(silent)} rows"
        yield make("selection", who, "selected_on", claimed, "", "cannot be checked", needed=needed)


def best_of(k: int) -> float:
    """Expected largest of k independent standard normal values.

    >>> round(best_of(2), 4), round(best_of(10), 3)  # 1 / sqrt(pi)
    (0.5642, 1.539)
    """
    found = integrate.quad(lambda x: x * k * stats.norm.pdf(x) * stats.norm.cdf(x) ** (k - 1), -12, 12, limit=200)
    return float(found[0])


# --------------------------------------------------------------------------------------------------
# What the design could see


def facts(table: Table, how: Conventions) -> Iterator[Fact]:
    """Power and detectable differences of the table's comparisons, and what a correction leaves of them."""
    pairs = table.pairs()
    arms = [arm for row in table.rows if (arm := summary_of(row, how.ddof)) is not None and arm.sd is not None]
    if arms and pairs:
        yield from _design(table, how, arms, len(pairs))
    family = printed_ps(table)
    if len(family) > 1:
        alpha = table.alpha
        small = [row.label for row, p in family if p[1] < alpha]
        left = {}
        for method in ("bonferroni", "holm"):
            adjusted = adjust([p for _, p in family], method)
            left[method] = [row.label for (row, _), p in zip(family, adjusted, strict=True) if p[1] < alpha]
        text = (
            f"{len(small)} of {len(family)} printed p are below {alpha:g} (by chance alone {alpha * len(family):.1f} "
            f"would be); Holm's correction leaves {listing(left['holm']) or 'none'}."
        )
        yield Fact("correction", text, {"uncorrected": small, **left})


def _design(table: Table, how: Conventions, arms: list[Summary], comparisons: int) -> Iterator[Fact]:
    constant = how.test == "one-sample"
    m = max(comparisons, int(table.settings.get("comparisons") or 0))
    plan = design.describe(arms, comparisons=m, against_constant=constant, alpha=table.alpha, target=SOUGHT)
    if plan.power is None or plan.power_corrected is None:
        return
    several = f", and {plan.power_corrected:.2f} after Bonferroni over {m} comparisons" if m > 1 else ""
    text = (
        f"With {plan.n} runs per arm a true effect of d = {plan.reference_d:g} is found with power {plan.power:.2f} "
        f"(level {plan.alpha:g}){several}."
    )
    values = {"d": plan.reference_d, "n": plan.n, "power": plan.power, "power_corrected": plan.power_corrected}
    yield Fact("power", text, values | {"alpha": plan.alpha, "comparisons": m})
    base = [arm for row in table.rows if row.name == table.baseline and (arm := summary_of(row, how.ddof)) and arm.sd]
    spreads = {"the sd pooled over all rows": plan.sd}
    if base:
        spreads = {"the baseline's sd": base[0].sd} | spreads
    for whose, sd in spreads.items():
        once = design.detectable(plan.n, alpha=plan.alpha, target=SOUGHT, against_constant=constant)
        strict = design.detectable(plan.n, alpha=plan.alpha / m, target=SOUGHT, against_constant=constant)
        if not sd or once is None or strict is None:
            continue
        unit = {"percent": " points"}.get(table.unit, "")
        digits = 3 if table.unit == "fraction" else 1
        several = f", and {number(strict * sd, digits)}{unit} after Bonferroni" if m > 1 else ""
        text = (
            f"The smallest difference found with {100 * SOUGHT:g} % power is {number(once * sd, digits)}{unit} with "
            f"{whose} ({number(sd, digits + 1)}){several}."
        )
        values = {"sd": sd, "detectable": once * sd, "detectable_corrected": strict * sd, "target": SOUGHT}
        yield Fact("detectable", text, values | {"sd_of": whose})


def pooled_over(table: Table) -> float | None:
    """Pooled sd of the rows, at their printed values."""
    return pooled_sd([arm for row in table.rows if (arm := summary_of(row)) is not None])


def summary_of(row: Row, ddof: int = 1) -> Summary | None:
    """A row as the power functions want it, at its printed values."""
    arm = arm_of(row, ddof, face=True)
    if arm is None:
        return None
    return Summary(arm.mean[0], arm.sd[0] if arm.sd else None, arm.n, row.fixed)
