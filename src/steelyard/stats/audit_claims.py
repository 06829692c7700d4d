"""Encoded sentences of a paper: power, significance, equality, order, and the arithmetic of differences.

Each is checked against what the table's own numbers say, over their rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from steelyard.errors import DataError, unknown
from steelyard.stats import design
from steelyard.stats.audit_family import adjust, against, equality, make, p_text, pooled_over, printed_ps
from steelyard.stats.audit_findings import Finding, Severity, Verdict, judge, listing, number, show
from steelyard.stats.audit_pairs import WORDS, Conventions, arm_of, p_of
from steelyard.stats.audit_table import Row, Table, plain_number, printed_number
from steelyard.stats.families import CORRECTIONS
from steelyard.stats.published import Range, extremes, minus


def checks(table: Table, how: Conventions) -> Iterator[Finding]:
    """Every claim of the document; a finding's column is the claim's place in it."""
    for i, claim in enumerate(table.claims):
        where = f"claims[{i}]"
        yield replace(_KINDS[claim["kind"]](table, claim, how, where), column=where)


_Claim = Mapping[str, Any]


def _rows_of(table: Table, claim: _Claim, where: str, count: int | None = None) -> list[Row]:
    named = claim.get("rows")
    task = str(claim.get("task", ""))
    if named is None:
        return [row for row in table.rows if not task or row.task == task]
    if not isinstance(named, list) or (count is not None and len(named) != count):
        raise DataError(f"{where}: rows: expected a list of {count or 'several'} names, got {named!r}")
    return [table.row(name, task, f"{where}: rows") for name in named]


def _said(claim: _Claim, default: str) -> str:
    return str(claim.get("text") or default)


def _design_of(table: Table, claim: _Claim, where: str) -> dict[str, Any]:
    """n, level and effect that a claim about power is about."""

    def value(key: str) -> float | None:
        return plain_number(claim[key], f"{where}: {key}") if key in claim else None

    counts = [row.n for row in table.rows if row.n and not row.fixed]
    n = value("n") or (max(set(counts), key=counts.count) if counts else None)
    alpha, m = value("alpha") or table.alpha, int(value("comparisons") or 1)
    d, difference, sd = value("d"), value("difference"), value("sd")
    if sd is None and difference is not None:
        sd = pooled_over(table)
    if d is None and difference is not None and sd:
        d = difference / sd
    return {"n": None if n is None else int(n), "alpha": alpha / m, "m": m, "d": d, "difference": difference, "sd": sd}


def _power(table: Table, claim: _Claim, how: Conventions, where: str) -> Finding:
    """ "80 % power": taken as "at least", because more is no defect."""
    plan, printed = _design_of(table, claim, where), printed_number(claim["power"], f"{where}: power")
    if plan["d"] is None or plan["n"] is None:
        needed = "the effect (d, or difference with sd) and the runs per arm (n) that the claim is about"
        return make("power", "", "", _said(claim, f"power {printed.text}"), "", "cannot be checked", needed=needed)
    constant = how.test == "one-sample"
    true = design.power(plan["d"], plan["n"], alpha=plan["alpha"], against_constant=constant)
    scale = 100.0 if printed.value > 1 else 1.0
    claimed = _said(claim, f"power {printed.text} for d = {plan['d']:.3g} with n = {plan['n']}")
    text = f"noncentral t, two-sided at {plan['alpha']:.2g}, {plan['n']} runs per arm, d = {plan['d']:.3g}"
    if true is None:
        return make("power", "", "", claimed, "undefined", "does not hold", how=f"{text}: no spread from one run")
    verdict: Verdict = "holds" if scale * true >= printed.low - 1e-9 else "does not hold"
    needed_runs = design.seeds_needed(plan["d"], alpha=plan["alpha"], target=min(printed.value / scale, 0.999))
    more = f"; {needed_runs} runs per arm would have it" if verdict == "does not hold" and needed_runs else ""
    return make("power", "", "", claimed, f"power {true:.2f}{more}", verdict, how=text)


def _detectable(table: Table, claim: _Claim, how: Conventions, where: str) -> Finding:
    """A smallest detectable effect that is smaller than it is."""
    plan, power = _design_of(table, claim, where), printed_number(claim["power"], f"{where}: power")
    wanted = power.value / (100 if power.value > 1 else 1)
    if not 0 < wanted < 1:
        raise DataError(f"{where}: power: expected a share between 0 and 1, got {power.text}")
    key = "difference" if "difference" in claim else "d"
    if key not in claim or plan["n"] is None or (key == "difference" and not plan["sd"]):
        needed = "the effect (d, or difference with sd) and the runs per arm (n) that the claim is about"
        said = _said(claim, "smallest detectable effect")
        return make("power", "", "", said, "", "cannot be checked", needed=needed)
    printed = printed_number(claim[key], f"{where}: {key}")
    found = design.detectable(plan["n"], alpha=plan["alpha"], target=wanted, against_constant=how.test == "one-sample")
    claimed = _said(claim, f"{key} {printed.text} is found with power {wanted:g}")
    text = f"noncentral t, two-sided at {plan['alpha']:.2g}, {plan['n']} runs per arm"
    if found is None:
        return make("power", "", "", claimed, "undefined", "does not hold", how=f"{text}: no spread from one run")
    true = found * (plan["sd"] if key == "difference" else 1.0)
    if key == "difference":
        text += f", sd {number(plan['sd'])}"
    verdict: Verdict = "holds" if printed.high >= true - 1e-9 else "does not hold"
    return make("power", "", "", claimed, f"{key} {number(true)}", verdict, how=text)


def _significant(table: Table, claim: _Claim, how: Conventions, where: str) -> Finding:
    a, b = _rows_of(table, claim, where, 2)
    claimed = _said(claim, f"{a.name} differs from {b.name}")
    found = p_of(a, b, how)
    if found is None:
        needed = "means, sds and the number of runs of both rows"
        return make("significance", f"{a.name}, {b.name}", "", claimed, "", "cannot be checked", needed=needed)
    words, m = "no correction", 1
    if str(claim.get("corrected", "")).lower() in ("true", "yes", "1"):
        m = int(table.settings.get("comparisons") or max(1, len(printed_ps(table))))
        words = f"Bonferroni over {m} comparisons"
    corrected = min(1.0, m * found[0]), min(1.0, m * found[1])
    verdict = against(corrected, table.alpha, True)
    if verdict == "holds" and "p" in claim:
        printed = printed_number(claim["p"], f"{where}: p")
        verdict = judge(printed, None, corrected)
    needed = "more digits" if verdict == "cannot be checked" else ""
    text = f"{WORDS[how.test or 'welch']}, {words}, level {table.alpha:g}"
    true = f"p = {p_text(corrected)}"
    return make("significance", f"{a.name}, {b.name}", "", claimed, true, verdict, how=text, needed=needed)


def _corrected(table: Table, claim: _Claim, how: Conventions, where: str) -> Finding:
    """Which rows are left after a correction."""
    method = str(claim["method"]).lower()
    if method not in CORRECTIONS:
        raise DataError(unknown("method", method, CORRECTIONS, where=where))
    family = printed_ps(table)
    named = [str(name) for name in (claim["significant"] if isinstance(claim["significant"], list) else [])]
    for name in named:
        table.row(name, str(claim.get("task", "")), f"{where}: significant")
    m = int(plain_number(claim["comparisons"], where)) if "comparisons" in claim else None
    found = adjust([p for _, p in family], method, m)
    sure = [row.name for (row, _), p in zip(family, found, strict=True) if p[1] < table.alpha]
    maybe = [row.name for (row, _), p in zip(family, found, strict=True) if p[0] < table.alpha <= p[1]]
    claimed = _said(claim, f"after {method}: {listing(named) or 'none'}")
    if not family:
        return make("correction", "", "", claimed, "", "cannot be checked", needed="the p-values")
    fits = set(sure) <= set(named) <= set(sure + maybe)
    true = listing(sure) or "none"
    verdict: Verdict = ("holds" if not maybe else "within rounding") if fits else "does not hold"
    text = f"{method} over {max(len(family), m or 0)} printed p at level {table.alpha:g}"
    return make("correction", "", "", claimed, f"left: {true}", verdict, how=text)


def _equal(table: Table, claim: _Claim, how: Conventions, where: str) -> Finding:
    rows = _rows_of(table, claim, where)
    margin = plain_number(claim["margin"], f"{where}: margin") if "margin" in claim else None
    if margin is not None and margin <= 0:
        raise DataError(f"{where}: margin: expected a number above zero, got {margin:g}")
    if len(rows) < 2:
        raise DataError(f"{where}: rows: expected at least two names")
    text = _said(claim, " = ".join(row.name for row in rows))
    name = ", ".join(row.name for row in rows)
    pairs = [(a, b) for i, a in enumerate(rows) for b in rows[i + 1 :]]
    found = [equality(table, a, b, margin, how, name, "", text) for a, b in pairs]
    order: list[Verdict] = ["does not hold", "cannot be checked", "within rounding", "holds"]
    return min(found, key=lambda finding: order.index(finding.verdict))


def _arithmetic(
    claim: _Claim, name: str, where: str, found: Range, face: float, how: str, key: str = "value"
) -> Finding:
    printed = printed_number(claim[key], f"{where}: {key}")
    verdict = judge(printed, face, found)
    turned = (printed.high < 0 < found[0]) or (found[1] < 0 < printed.low)
    severity: Severity = "serious" if turned else "minor"
    true = show(found, printed.decimals)
    return make("arithmetic", name, "", _said(claim, printed.text), true, verdict, severity=severity, how=how)


def _means(table: Table, rows: Sequence[Row], where: str) -> tuple[list[Range], list[float]]:
    arms = [(arm_of(row), arm_of(row, face=True)) for row in rows]
    if any(arm is None for arm, _ in arms):
        raise DataError(f"{where}: not all of these rows have a mean")
    return [arm.mean for arm, _ in arms if arm], [face.mean[0] for _, face in arms if face]


def _difference(table: Table, claim: _Claim, how: Conventions, where: str) -> Finding:
    rows = _rows_of(table, claim, where, 2)
    ranges, faces = _means(table, rows, where)
    name = f"{rows[0].name}, {rows[1].name}"
    text = f"mean of {rows[0].name} minus mean of {rows[1].name}"
    return _arithmetic(claim, name, where, minus(ranges[0], ranges[1]), faces[0] - faces[1], text)


def _relative(table: Table, claim: _Claim, how: Conventions, where: str) -> Finding:
    rows = _rows_of(table, claim, where, 2)
    ranges, faces = _means(table, rows, where)
    if ranges[1][0] <= 0:
        raise DataError(f"{where}: a change relative to a score that may be zero means nothing")
    found = extremes(lambda x, y: 100 * (x / y - 1), ranges[0], ranges[1])
    name, text = f"{rows[0].name}, {rows[1].name}", f"change relative to {rows[1].name}, in per cent"
    return _arithmetic(claim, name, where, found, 100 * (faces[0] / faces[1] - 1), text)


def _range(table: Table, claim: _Claim, how: Conventions, where: str) -> Finding:
    rows = _rows_of(table, claim, where)
    ranges, faces = _means(table, rows, where)
    found = (
        max(low for low, _ in ranges) - min(high for _, high in ranges),
        max(high for _, high in ranges) - min(low for low, _ in ranges),
    )
    return _arithmetic(claim, "", where, found, max(faces) - min(faces), f"largest minus smallest of {len(rows)} means")


def _average(table: Table, claim: _Claim, how: Conventions, where: str) -> Finding:
    rows = _rows_of(table, claim, where)
    ranges, faces = _means(table, rows, where)
    found = math.fsum(low for low, _ in ranges) / len(rows), math.fsum(high for _, high in ranges) / len(rows)
    return _arithmetic(claim, "", where, found, math.fsum(faces) / len(faces), f"average of {len(rows)} means")


def _order(table: Table, claim: _Claim, how: Conventions, where: str) -> Finding:
    return _ordered(table, claim, how, _rows_of(table, claim, where), where)


def _best(table: Table, claim: _Claim, how: Conventions, where: str) -> Finding:
    first = table.row(str(claim["row"]), str(claim.get("task", "")), f"{where}: row")
    others = [row for row in table.rows if row.task == first.task and row.name != first.name and arm_of(row)]
    return _ordered(table, claim, how, [first, *others], where, best=True)


def _ordered(
    table: Table, claim: _Claim, how: Conventions, rows: Sequence[Row], where: str, *, best: bool = False
) -> Finding:
    """Are the means in this order, and do the tests resolve it?"""
    ranges, _ = _means(table, rows, where)
    steps = [(0, i) for i in range(1, len(rows))] if best else [(i, i + 1) for i in range(len(rows) - 1)]
    claimed = _said(claim, f"{rows[0].name} is best" if best else " > ".join(row.name for row in rows))
    wrong = [(i, j) for i, j in steps if ranges[i][1] < ranges[j][0]]
    name = rows[0].name if best else ""
    if wrong:
        true = listing([f"{rows[j].name} is above {rows[i].name}" for i, j in wrong], 3)
        return make("order", name, "", claimed, true, "does not hold", how="the printed means")
    found = [p_of(rows[i], rows[j], how) for i, j in steps]
    if any(p is None for p in found):
        needed = "sds and the number of runs of all these rows"
        true = "the printed means are in this order"
        return make("order", name, "", claimed, true, "cannot be checked", needed=needed)
    adjusted = adjust([p for p in found if p is not None], "holm")
    unresolved = [rows[j if best else i].name for (i, j), p in zip(steps, adjusted, strict=True) if p[1] >= table.alpha]
    text = f"{WORDS[how.test or 'welch']}, Holm over {len(steps)} comparisons, level {table.alpha:g}"
    if not unresolved:
        return make("order", name, "", claimed, "every step is resolved", "holds", how=text)
    true = f"the printed means are in this order; {len(unresolved)} of {len(steps)} steps are not resolved"
    who = f"not resolved {'from' if best else 'after'} {listing(unresolved)}"
    needed = f"more runs: {who}"
    return make("order", name, "", claimed, true, "cannot be checked", how=text, needed=needed)


_KINDS: Mapping[str, Callable[[Table, _Claim, Conventions, str], Finding]] = {
    "power": _power,
    "detectable": _detectable,
    "significant": _significant,
    "corrected": _corrected,
    "equal": _equal,
    "difference": _difference,
    "relative": _relative,
    "range": _range,
    "average": _average,
    "order": _order,
    "best": _best,
}
"""The kinds of ``audit_table.KINDS``."""
