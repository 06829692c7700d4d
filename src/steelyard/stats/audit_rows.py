"""Cells that a row can be held to alone: is this mean possible, is the sd that of its runs, are there runs at all?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations

from scipy import stats

from steelyard.stats.audit_findings import Fact, Finding, Severity, Verdict, judge, number, show
from steelyard.stats.audit_grain import mean_of, nearest_means, sd_of, sd_possible, tells, totals
from steelyard.stats.audit_pairs import arm_of
from steelyard.stats.audit_table import Printed, Row, Table
from steelyard.stats.estimate import wilson
from steelyard.stats.published import Range, extremes

CHANCE = 1e-3
"""Coincidences that are rarer than this, over the whole table, are not taken for coincidences."""


def checks(table: Table, ddof: int) -> Iterator[Finding]:
    """All of this module; ``ddof`` as the table's comparisons take it."""
    for row in table.rows:
        yield from _impossible(table, row)
        yield from _from_seeds(table, row)
    yield from _sd_convention(table)
    yield from _summarised(_grim(table), "grim")
    yield from _summarised(_grimmer(table), "grimmer")
    yield from _standard_errors(table, ddof)
    yield from _intervals(table, ddof)
    yield from _no_spread(table)
    yield from _copies(table)


def _finding(
    row: Row,
    check: str,
    column: str,
    claimed: str,
    true: str,
    verdict: Verdict,
    *,
    severity: Severity = "minor",
    how: str = "",
    needed: str = "",
) -> Finding:
    level: Severity = severity if verdict == "does not hold" else "none"
    return Finding(check, row.name, column, claimed, true, verdict, level, how, needed, row.task)


def _summarised(findings: Iterable[Finding], check: str) -> Iterator[Finding]:
    """All that is decided, and one finding for everything that cannot be, by reason."""
    open_ones: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        if finding.verdict == "cannot be checked":
            open_ones[finding.column, finding.needed].append(finding)
        else:
            yield finding
    for (column, needed), found in open_ones.items():
        names = list(dict.fromkeys(finding.row for finding in found))
        claimed = f"{len(found)} cells" if len(found) > 1 else found[0].claimed
        # A row's name stays where one row alone is concerned.
        row = names[0] if len(names) == 1 else ""
        yield Finding(check, row, column, claimed, "", "cannot be checked", how=found[0].how, needed=needed)


# --------------------------------------------------------------------------------------------------
# Bounds


def _impossible(table: Table, row: Row) -> Iterator[Finding]:
    """Values that no data can give; only what is wrong is reported."""
    cells, top = row.numbers, table.top
    bounds: dict[str, tuple[float, float]] = {name: (0.0, math.inf) for name in ("sd", "se", "df")}
    bounds |= {"p": (0.0, 1.0), "p_adjusted": (0.0, 1.0)}
    if top is not None:
        bounds["mean"] = (0.0, top)
    for column, (low, high) in bounds.items():
        if (cell := cells.get(column)) is not None and not (cell.high >= low and cell.low <= high):
            true = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
            how = f"scores in {table.unit}" if column == "mean" else "by definition"
            yield _finding(row, "possible", column, cell.text, true, "does not hold", severity="serious", how=how)
    if {"mean", "low", "high"} <= cells.keys():
        mean, low, high = (cells[name] for name in ("mean", "low", "high"))
        if low.low > mean.high or high.high < mean.low:
            claimed, true = f"{low.text} to {high.text}", f"an interval around {mean.text}"
            how = "the mean lies outside its own interval"
            yield _finding(row, "possible", "low, high", claimed, true, "does not hold", how=how)
    if top is not None and "sd" in cells and "mean" in cells and not row.seeds and (row.n or 0) > 1:
        n = row.n or 2
        ends = [max(0.0, min(top, end)) for end in cells["mean"].range]
        middle = min(max(top / 2, ends[0]), ends[1])
        largest = math.sqrt(n / (n - 1) * middle * (top - middle))
        if cells["sd"].low > largest * (1 + 1e-9):
            true = f"at most {number(largest, cells['sd'].decimals)}"
            how = f"the spread of {n} scores between 0 and {top:g} with this mean is largest at the ends"
            sd = cells["sd"].text
            yield _finding(row, "possible", "sd", sd, true, "does not hold", severity="serious", how=how)


# --------------------------------------------------------------------------------------------------
# The runs' own scores


def _from_seeds(table: Table, row: Row) -> Iterator[Finding]:
    if not row.seeds or "mean" not in row.numbers:
        return
    printed, values = row.numbers["mean"], [seed.range for seed in row.seeds]
    face = math.fsum(seed.value for seed in row.seeds) / len(row.seeds)
    found = mean_of(values)
    how = f"mean of the {len(values)} runs' scores"
    yield _finding(
        row, "mean of seeds", "mean", printed.text, show(found, printed.decimals), judge(printed, face, found), how=how
    )


def _sd_convention(table: Table) -> Iterator[Finding]:
    """The printed sds against the runs' scores, with both divisors."""
    rows = [row for row in table.rows if len(row.seeds) > 1 and "sd" in row.numbers]
    fitting: dict[str, list[int]] = {}
    for row in rows:
        values = [seed.range for seed in row.seeds]
        fitting[row.label] = [d for d in (1, 0) if judge(row.numbers["sd"], None, sd_of(values, d)) != "does not hold"]
    telling = [fits[0] for fits in fitting.values() if len(fits) == 1]
    usual = 0 if telling.count(0) > telling.count(1) else 1
    ddof = int(table.settings.get("ddof", usual))
    for row in rows:
        printed, fits = row.numbers["sd"], fitting[row.label]
        values, points = [seed.range for seed in row.seeds], [(seed.value, seed.value) for seed in row.seeds]
        found = sd_of(values, ddof)
        whose = "as stated" if "ddof" in table.settings else "as most of the table's sds have"
        how = f"sd of the {len(values)} runs' scores with divisor {_divisor(ddof)}, {whose}"
        if ddof not in fits and fits:
            how += f"; this one has divisor {_divisor(fits[0])}"
        verdict = judge(printed, sd_of(points, ddof)[0], found)
        yield _finding(row, "sd convention", "sd", printed.text, show(found, printed.decimals), verdict, how=how)


def _divisor(ddof: int) -> str:
    return "n - 1" if ddof else "n"


# --------------------------------------------------------------------------------------------------
# Granularity


def _grain(table: Table, row: Row) -> float | None:
    return None if table.top is None or not row.items else table.top / (row.items * row.samples)


def _grim(table: Table) -> Iterator[Finding]:
    for row in table.rows:
        top = table.top
        if top is None or not row.items:
            if "mean" in row.numbers:
                needed = "the number of items of a run (--items), if the score is a share of right answers"
                yield _finding(row, "grim", "mean", row.numbers["mean"].text, "", "cannot be checked", needed=needed)
            continue
        answers = row.items * row.samples
        for i, seed in enumerate(row.seeds):
            yield from _possible(row, f"seed_{i + 1}", seed, answers, top, f"{answers} answers")
        if (mean := row.numbers.get("mean")) is None:
            continue
        if row.n is None and ({"sd", "se"} & row.numbers.keys()):
            needed = "the number of runs per row (--n)"
            yield _finding(row, "grim", "mean", mean.text, "", "cannot be checked", needed=needed)
            continue
        runs = 1 if row.fixed else row.n or 1
        total = runs * answers
        what = f"{total} answers ({runs} runs × {answers})" if runs > 1 else f"{answers} answers"
        yield from _possible(row, "mean", mean, total, top, what)
        if row.correct is not None:
            value = top * row.correct / total
            how = f"{row.correct} right of {what}"
            true = number(value, mean.decimals + 1)
            yield _finding(row, "right answers", "mean", mean.text, true, judge(mean, value, (value, value)), how=how)


def _possible(row: Row, column: str, cell: Printed, answers: int, top: float, what: str) -> Iterator[Finding]:
    """GRIM for one mean of ``answers`` right or wrong answers."""
    slack = (cell.high - cell.low) / 2
    if not tells(slack, answers, top):
        needed = f"more digits: {what} come in steps of {number(top / answers, 5)}, no coarser than the rounding"
        yield _finding(row, "grim", column, cell.text, "", "cannot be checked", needed=needed)
        return
    counts = [k for k in totals(cell.range, answers, top) if 0 <= k <= answers]
    how = f"GRIM: right answers are whole, out of {what}"
    if counts:
        true = f"{counts[0]} of {answers}"
        yield _finding(row, "grim", column, cell.text, true, "holds", how=how)
        return
    around = nearest_means(cell.value, answers, top)
    true = f"{number(around[0], cell.decimals + 1)} or {number(around[1], cell.decimals + 1)}"
    yield _finding(row, "grim", column, cell.text, true, "does not hold", severity="serious", how=how)


def _grimmer(table: Table) -> Iterator[Finding]:
    for row in table.rows:
        grain, cells, n = _grain(table, row), row.numbers, row.n or 0
        if grain is None or row.seeds or row.fixed or n < 2 or not {"mean", "sd"} <= cells.keys():
            continue
        if not totals(cells["mean"].range, n, grain):
            continue  # no such mean: GRIM says so
        divisors = [table.settings["ddof"]] if "ddof" in table.settings else [1, 0]
        answers = [
            sd_possible(cells["mean"].range, cells["sd"].range, n, grain, ddof=d, top=table.top) for d in divisors
        ]
        how = f"GRIMMER: the sd of {n} shares of {(row.items or 1) * row.samples} answers with this mean"
        if None in answers:
            needed = "more digits: sds that round to the printed ones are always possible"
            yield _finding(row, "grimmer", "sd", cells["sd"].text, "", "cannot be checked", how=how, needed=needed)
        elif True in answers:
            yield _finding(row, "grimmer", "sd", cells["sd"].text, "possible", "holds", how=how)
        else:
            sd, true = cells["sd"].text, "no runs have this mean and sd"
            yield _finding(row, "grimmer", "sd", sd, true, "does not hold", severity="serious", how=how)


# --------------------------------------------------------------------------------------------------
# Standard errors and intervals


def _divisors(table: Table, ddof: int) -> list[int]:
    """Divisors that the printed sds may have: the stated one, or both, the likelier first."""
    return [table.settings["ddof"]] if "ddof" in table.settings else [ddof, 1 - ddof]


def _standard_errors(table: Table, ddof: int) -> Iterator[Finding]:
    rows = [row for row in table.rows if "se" in row.numbers and ("sd" in row.numbers or len(row.seeds) > 1)]

    def implied(row: Row, ddof: int, *, face: bool = False) -> Range | None:
        arm = arm_of(row, ddof, face=face)
        return None if arm is None or arm.sd is None else (arm.sd[0] / arm.n**0.5, arm.sd[1] / arm.n**0.5)

    def fits(ddof: int) -> int:
        found = [(row.numbers["se"], implied(row, ddof)) for row in rows]
        return sum(each is not None and judge(printed, None, each) != "does not hold" for printed, each in found)

    best = max(_divisors(table, ddof), key=fits)
    for row in rows:
        found, face, printed = implied(row, best), implied(row, best, face=True), row.numbers["se"]
        if found is None or face is None:
            continue
        verdict = judge(printed, face[0], found)
        how = f"sd over the root of {row.n} runs"
        sd = row.numbers.get("sd")
        if verdict == "does not hold" and sd is not None and judge(printed, sd.value, sd.range) != "does not hold":
            how += "; what is printed is the sd itself"
        yield _finding(row, "standard error", "se", printed.text, show(found, printed.decimals), verdict, how=how)


_INTERVALS = {
    "t": "Student's t over the runs",
    "normal": "the normal interval over the runs",
    "se": "mean ± one standard error",
    "sd": "mean ± one sd",
    "wilson": "Wilson's interval over the items",
    "wald": "the normal interval over the items",
}


def _ends(table: Table, row: Row, ddof: int, kind: str) -> tuple[Range, Range] | None:
    """Ranges of the two ends of an interval; ``None`` where something is missing."""
    arm, level, top = arm_of(row, ddof), table.settings.get("level", 0.95), table.top
    if arm is None:
        return None
    if kind in ("wilson", "wald"):
        if not row.items or top is None:
            return None
        n = row.items * row.samples * arm.n
        shares = [min(max(end / top, 0.0), 1.0) for end in arm.mean]
        if kind == "wilson":
            # Wilson's ends grow with the share; its successes need not be whole here.
            found = [wilson(round(share * n), n, level=level) for share in shares]
            return (top * found[0].low, top * found[1].low), (top * found[0].high, top * found[1].high)
        z = float(stats.norm.ppf(0.5 + level / 2))
        low = extremes(lambda p: top * (p - z * (p * (1 - p) / n) ** 0.5), (shares[0], shares[1]))
        high = extremes(lambda p: top * (p + z * (p * (1 - p) / n) ** 0.5), (shares[0], shares[1]))
        return low, high
    if arm.sd is None or arm.n < 2:
        return None
    factor = {
        "t": float(stats.t.ppf(0.5 + level / 2, arm.n - 1)) / math.sqrt(arm.n),
        "normal": float(stats.norm.ppf(0.5 + level / 2)) / math.sqrt(arm.n),
        "se": 1 / math.sqrt(arm.n),
        "sd": 1.0,
    }[kind]
    return (
        (arm.mean[0] - factor * arm.sd[1], arm.mean[1] - factor * arm.sd[0]),
        (arm.mean[0] + factor * arm.sd[0], arm.mean[1] + factor * arm.sd[1]),
    )


def _agrees(row: Row, ends: tuple[Range, Range] | None) -> bool:
    printed = (row.numbers["low"], row.numbers["high"])
    return ends is not None and all(
        judge(cell, None, end) != "does not hold" for cell, end in zip(printed, ends, strict=True)
    )


def _intervals(table: Table, ddof: int) -> Iterator[Finding]:
    """Printed intervals: which they are, and what they cover with so few runs."""
    level = table.settings.get("level", 0.95)
    rows = [row for row in table.rows if {"low", "high"} <= row.numbers.keys()]
    if not rows:
        return
    shapes = [(kind, divisor) for kind in _INTERVALS for divisor in _divisors(table, ddof)]
    kind, ddof = max(shapes, key=lambda each: sum(_agrees(row, _ends(table, row, each[1], each[0])) for row in rows))
    for row in rows:
        cells = row.numbers["low"], row.numbers["high"]
        claimed = f"{cells[0].text} to {cells[1].text}"
        ends = _ends(table, row, ddof, kind)
        if ends is None:
            needed = "the mean with the sd and number of runs, or with the number of items"
            yield _finding(row, "interval", "low, high", claimed, "", "cannot be checked", needed=needed)
            continue
        true = f"{show(ends[0], cells[0].decimals)}; {show(ends[1], cells[1].decimals)}"
        if not _agrees(row, ends):
            how = f"{_INTERVALS[kind]}, {100 * level:g} %"
            yield _finding(row, "interval", "low, high", claimed, true, "does not hold", how=how)
            continue
        arm = arm_of(row, ddof)
        if kind in ("normal", "se", "sd") and arm is not None:
            quantile = {"normal": float(stats.norm.ppf(0.5 + level / 2)), "se": 1.0, "sd": math.sqrt(arm.n)}[kind]
            covers = float(1 - 2 * stats.t.sf(quantile, arm.n - 1))
            if abs(covers - level) > 0.005:
                true = f"covers {100 * covers:.1f} % with {arm.n} runs"
                how = f"{_INTERVALS[kind]}; coverage by Student's t with {arm.n - 1} degrees of freedom"
                claim = f"{claimed} at {100 * level:g} %"
                yield _finding(row, "interval", "low, high", claim, true, "does not hold", how=how)
                continue
        yield _finding(row, "interval", "low, high", claimed, true, "within rounding", how=_INTERVALS[kind])


# --------------------------------------------------------------------------------------------------
# Runs that are no runs


def _usual_sd(table: Table, task: str) -> tuple[float, int] | None:
    """Pooled sd of the task's rows that vary, and how many they are."""
    total, df, rows = 0.0, 0, 0
    for row in table.rows:
        arm = arm_of(row, face=True) if row.task == task else None
        if arm is not None and arm.sd is not None and arm.sd[0] > 0:
            total, df, rows = total + (arm.n - 1) * arm.sd[0] ** 2, df + arm.n - 1, rows + 1
    return (math.sqrt(total / df), rows) if df else None


def _no_spread(table: Table) -> Iterator[Finding]:
    """``sd = 0.0``: several runs with one score are one run."""
    for row in table.rows:
        n, sd = row.n or 0, row.numbers.get("sd")
        scores = list(row.seeds)
        same = len(scores) > 1 and len({seed.value for seed in scores}) == 1
        if row.fixed or n < 2 or not (same or (sd is not None and sd.value == 0 and not row.seeds)):
            continue
        claimed = f"{n} seeds that all score {scores[0].text}" if same else f"sd {sd.text if sd else ''} over {n} seeds"
        usual = _usual_sd(table, row.task)
        needed = "hashes of the weights or completions of each seed"
        if usual is None:
            how = "no other row shows how much the runs vary"
            yield _finding(row, "copies", "sd", claimed, "", "cannot be checked", how=how, needed=needed)
            continue
        # Runs that vary as the other rows' do round to one and the same score with this chance.
        step = max(_grain(table, row) or 0.0, scores[0].high - scores[0].low if same else 0.0)
        limit = max(sd.high if sd is not None else 0.0, step / 2)
        chance = float(stats.chi2.cdf((n - 1) * (limit / usual[0]) ** 2, n - 1))
        how = (
            f"the {usual[1]} rows that vary have a pooled sd of {number(usual[0])}; {n} independent runs that vary so "
            f"would agree like this with chance {chance:.1g}"
        )
        if chance * len(table.rows) > CHANCE:
            yield _finding(row, "copies", "sd", claimed, "", "cannot be checked", how=how, needed=needed)
        else:
            true = "one run (or a model that training did not change), not a spread of zero"
            yield _finding(row, "copies", "sd", claimed, true, "does not hold", severity="serious", how=how)


def _copies(table: Table) -> Iterator[Finding]:
    """Rows with the same runs, or with the same mean and sd."""
    for a, b in combinations(table.rows, 2):
        if a.task != b.task or a.name == b.name or (a.fixed and b.fixed):
            continue
        if len(a.seeds) > 1 and sorted(s.value for s in a.seeds) == sorted(s.value for s in b.seeds):
            if len({s.value for s in a.seeds}) == 1:
                continue  # no spread at all: said above
            claimed = f"{a.name} and {b.name}: two methods with {len(a.seeds)} runs each"
            usual = _usual_sd(table, a.task)
            step = max(_grain(table, a) or 0.0, a.seeds[0].high - a.seeds[0].low)
            chance = min(1.0, (step / (2 * math.sqrt(math.pi) * usual[0])) ** len(a.seeds)) if usual else 1.0
            chance *= math.factorial(len(a.seeds)) * math.comb(len(table.rows), 2)
            how = f"the runs' scores are the same; by chance about {min(1.0, chance):.1g} in a table of this size"
            needed = "hashes of the weights or completions of each seed"
            if chance > CHANCE:
                yield _finding(b, "copies", "seeds", claimed, "", "cannot be checked", how=how, needed=needed)
            else:
                true = f"the runs of {a.name}"
                yield _finding(b, "copies", "seeds", claimed, true, "does not hold", severity="serious", how=how)
        elif not a.seeds and {"mean", "sd"} <= a.numbers.keys() & b.numbers.keys():
            cells = [(row.numbers["mean"], row.numbers["sd"]) for row in (a, b)]
            if all(x.value == y.value and x.decimals + y.decimals > 1 for x, y in zip(*cells, strict=True)):
                claimed = f"{a.name} and {b.name}: mean {cells[0][0].text}, sd {cells[0][1].text}"
                needed = "the runs' scores of both rows: the same mean and sd twice may be one set of runs"
                yield _finding(b, "copies", "mean, sd", claimed, "", "cannot be checked", needed=needed)


def facts(table: Table) -> Iterator[Fact]:
    """The unit, where it is only seen from the means."""
    if "unit" not in table.settings and table.unit != "score":
        yield Fact("unit", f"The scores are read as {table.unit} (not stated).", {"unit": table.unit})
