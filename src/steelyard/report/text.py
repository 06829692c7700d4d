"""Sentences that the statistics allow, and no others.

*Above* and *below* are said only of differences that are resolved (Holm within the table).  What is not
resolved is called that, with what the design could have found beside it; it is never called equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from steelyard.report import numbers as n
from steelyard.report.assemble import Report, name_condition
from steelyard.stats.analyse import Arm, Comparison, Table

MEASURE_NAMES = {
    "score": {"generative": "strict exact match", "choice": "accuracy", "": "score"},
    "accuracy_logprob": "held-out preference accuracy by log-probability",
    "accuracy_logratio": "held-out preference accuracy by log-ratio to the start",
    "accuracy": "held-out preference accuracy of the reward head",
}

STILL, STILL_NOTE = "‡", "no variation between seeds: all runs of this arm agree exactly, so it has no interval"
CUT_NOTE = "the interval reaches beyond 0 to 100 % and is shown cut there; results.json has it whole"

SHOWN_NEEDS = 12
"""Rows of the table "what would resolve it"."""

MOSTLY_FORMAT = 0.5
"""From this share of format on, a resolved difference is pointed out as mostly format."""


@dataclass(frozen=True)
class Need:
    """A comparison that is not resolved and the seeds per arm that would resolve a true effect of that size."""

    table: Table
    comparison: Comparison


def measure_name(measure: str, kind: str) -> str:
    """What a score is, in words."""
    name = MEASURE_NAMES.get(measure, measure)
    return name if isinstance(name, str) else name.get(kind, name[""])


def is_still(arm: Arm) -> bool:
    """Whether an arm has several runs that all agree exactly."""
    return arm.summary.sd == 0.0


def measured(table: Table) -> str:
    """The task, and for preferences how it was scored."""
    ways = {
        "accuracy_logprob": " by log-prob",
        "accuracy_logratio": " by log-ratio",
        "accuracy": " by reward head",
    }
    return table.task.name + ways.get(table.measure, "")


def table_name(table: Table) -> str:
    """``arithmetic at 0.1m``"""
    return f"{measured(table)} at {name_condition(table.condition)}" if table.condition else measured(table)


# --------------------------------------------------------------------------------------------------
# In short


@dataclass(frozen=True)
class Summary:
    """The abstract: what was compared, what came out, what the design could see.

    Attributes:
        resolution: said when no two methods are resolved from each other, else empty.
    """

    scope: str
    resolution: str
    findings: list[str]
    best: list[str]
    sight: str


def summary(report: Report) -> Summary:
    """The abstract of a report."""
    return Summary(_scope(report), _resolution(report), _findings(report), _best(report), _sight(report))


def _scope(report: Report) -> str:
    analysis, results = report.analysis, report.results
    seeds = sorted({arm.summary.n for table in analysis.tables for arm in table.arms if not arm.summary.fixed})
    per_arm = (
        "no trained run"
        if not seeds
        else n.count(seeds[0], "seed")
        if len(seeds) == 1
        else f"{seeds[0]} to {seeds[-1]} seeds"
    )
    roles = [f"{task.name} ({task.role})" for task in results.tasks.values()]
    total = len(results.runs) + len(results.gaps)
    others = len(analysis.treatments) - 1
    conditions = [name_condition(condition) for condition in analysis.conditions]
    where = f" on {n.listing(conditions)}" if len(conditions) < 5 else f" under {len(conditions)} conditions"
    return (
        f"{n.count(others, 'method')} against {analysis.baseline}{where}, {per_arm} per arm, scored on "
        f"{n.listing(roles)}. {len(results.runs)} of {n.count(total, 'run')} finished."
    )


def _findings(report: Report) -> list[str]:
    sentences = []
    for table in report.analysis.tables:
        if table.baseline is None:
            sentences.append(f"{_start(table)}: the baseline has no result here, so nothing is compared with it.")
            continue
        parts = []
        for verdict, word in (("higher", "above"), ("lower", "below")):
            named = [
                f"{c.arm} ({n.difference(c.test.difference, table.proportion)})"
                for c in _strongest(table)
                if c.verdict == verdict
            ]
            if named:
                parts.append(f"{word} {table.baseline}: {n.listing(named)}")
        for verdict in ("not resolved", "not testable"):
            named = [c.arm for c in table.comparisons if c.verdict == verdict]
            if named:
                parts.append(
                    f"{verdict} from it: {n.listing(named)}"
                    if verdict == "not resolved"
                    else f"{verdict}: {n.listing(named)}"
                )
        sentences.append(f"{_start(table)}: {'; '.join(parts)}.")
    return sentences


def _strongest(table: Table) -> list[Comparison]:
    return sorted(table.comparisons, key=lambda c: -abs(c.test.difference))


def _start(table: Table) -> str:
    return f"{table_name(table)} ({table.task.role})"


def _best(report: Report) -> list[str]:
    sentences = []
    for table in report.analysis.tables:
        if len(table.arms) < 2:
            continue
        best = table.arms[0]
        rivals = table.unresolved_from(best.name)
        mean = f"{n.score(best.summary.mean, table.proportion)}{' %' if table.proportion else ''}"
        if len({arm.summary.mean for arm in table.arms}) == 1:
            sentences.append(f"{table_name(table)}: every arm has {mean}.")
            continue
        if not any(arm.letters for arm in table.arms):
            end = "not tested against any other arm"
        elif len(rivals) == len(table.arms) - 1:
            end = "not resolved from any other arm"
        else:
            end = f"not resolved from it: {n.listing(rivals)}" if rivals else "resolved from every other arm"
        sentences.append(f"{table_name(table)}: {best.name}, {mean}; {end}.")
    return sentences


def _resolution(report: Report) -> str:
    """Said when no two methods are resolved from each other: what is, then, resolved from the baseline."""
    analysis = report.analysis
    tables = [table for table in analysis.tables if table.pairs]
    if not tables or any(pair.resolved for table in tables for pair in table.pairs):
        return ""
    if all(pair.p_holm is None for table in tables for pair in table.pairs):
        return "No two methods can be tested against each other: it takes at least two seeds per arm that vary."
    head = "No two methods are resolved from each other on any task at this number of seeds"
    places: dict[str, list[str]] = {}
    for table in analysis.tables:
        if table.comparisons:
            found, total = sum(c.verdict in ("higher", "lower") for c in table.comparisons), len(table.comparisons)
            amount = f"all {total}" if found == total else f"{found} of {total}" if found else "none"
            places.setdefault(amount, []).append(table_name(table))
    if not places:
        return f"{head}."
    parts = [f"{amount} on {n.listing(names)}" for amount, names in places.items()]
    return f"{head}. Resolved from {analysis.baseline}: {'; '.join(parts)}."


def _sight(report: Report) -> str:
    seen = [t for t in report.analysis.tables if t.design.detectable_corrected is not None and t.comparisons]
    if not seen:
        return ""
    head = "With 80 % power, and after correction,"
    blind = [t for t in seen if t.proportion and (t.design.detectable_corrected or 0.0) > 1]
    possible = sorted(
        (t for t in seen if t not in blind), key=lambda t: (t.proportion, t.design.detectable_corrected or 0.0)
    )
    none = f"not even 100 points would be found on {n.listing([table_name(t) for t in blind])}" if blind else ""
    if not possible:
        return f"{head} this design detects no possible difference from {report.analysis.baseline}: {none}."
    least = f"{head} the smallest detectable difference from {report.analysis.baseline}"
    mixed = len({table.proportion for table in possible}) > 1
    if len(possible) == 1 or mixed:
        # scores of different units have no common range
        reach = f"{least} is {n.listing([_detectable(t) for t in possible])}"
    else:
        reach = f"{least} ranges from {_detectable(possible[0])} to {_detectable(possible[-1])}"
        own = next((t for t in seen if t in possible and t.task.role == "development"), None)
        if own is not None and own not in (possible[0], possible[-1]):
            reach += f"; on {table_name(own)} it is {n.detectable(own.design.detectable_corrected, own.proportion)}"
    return (
        f"{reach}{f'; {none}' if none else ''}. "
        "Smaller true differences are found less often, and far smaller ones hardly ever."
    )


def _detectable(table: Table) -> str:
    return f"{n.detectable(table.design.detectable_corrected, table.proportion)} ({table_name(table)})"


# --------------------------------------------------------------------------------------------------
# What to conclude and what not


def conclusions(report: Report) -> list[str]:
    """What the evidence supports, one sentence each."""
    analysis = report.analysis
    resolved = [(t, c) for t in analysis.tables for c in t.comparisons if c.verdict in ("higher", "lower")]
    sentences = []
    held = [pair for pair in resolved if pair[1].p_holm_study is not None and pair[1].p_holm_study < analysis.alpha]
    tested = n.count(analysis.comparisons, "tested comparison")
    level = f"at Holm-corrected p < {analysis.alpha:g} within {'its' if analysis.comparisons == 1 else 'their'} table"
    if not analysis.comparisons:
        sentences.append("No comparison with the baseline could be tested.")
    elif not resolved:
        sentences.append(f"None of {tested} with {analysis.baseline} is resolved {level}.")
    else:
        sentences.append(
            f"{len(resolved)} of {tested} with {analysis.baseline} {'is' if len(resolved) == 1 else 'are'} resolved "
            f"{level}; {len(held)} remain{'s' * (len(held) == 1)} so when all {analysis.comparisons} are corrected "
            "together."
        )
    for name in analysis.treatments:
        line = _record(report, name)
        if line:
            sentences.append(line)
    sentences += _format_effects(resolved)
    sentences += _inversions(report)
    return sentences


def _record(report: Report, name: str) -> str:
    """One arm against the baseline over all tables: where it is resolved, in which direction, by how much."""
    found = [(t, c) for t in report.analysis.tables for c in t.comparisons if c.arm == name]
    parts = []
    for verdict, word in (("higher", "above"), ("lower", "below")):
        mine = [(t, c) for t, c in found if c.verdict == verdict]
        if mine:
            sizes = sorted(abs(c.test.difference) for _, c in mine)
            units = " points" if all(t.proportion for t, _ in mine) else ""
            shown = list(dict.fromkeys(n.score(size, bool(units)) for size in (sizes[0], sizes[-1])))
            every = len(mine) == len(found) and len(found) > 1
            tables = "every table" if every else n.listing([table_name(t) for t, _ in mine])
            place = "in" if every else "on"
            parts.append(f"{word} {report.analysis.baseline} {place} {tables}, by {' to '.join(shown)}{units}")
    if not parts:
        return ""
    untested = [table_name(t) for t, c in found if c.verdict == "not testable"]
    tested = len(found) - len(untested)
    open_ = sum(c.verdict == "not resolved" for _, c in found)
    if open_:
        parts.append(f"not resolved in {open_} of {tested}{' that could be tested' if untested else ''}")
    if untested:
        parts.append(f"not testable on {n.listing(untested)}")
    return f"{name}: {'; '.join(parts)}."


def _format_effects(pairs: Iterable[tuple[Table, Comparison]]) -> list[str]:
    return [
        f"The difference of {c.arm} on {table_name(t)} is mostly format: {n.share(c.parts.share)} of it comes from "
        "right answers put into, or out of, the asked form."
        for t, c in pairs
        if c.parts and c.parts.share is not None and c.parts.share >= MOSTLY_FORMAT
    ]


def _inversions(report: Report) -> list[str]:
    counts, real = [], []
    for (task, measure), found in report.swaps.items():
        if found:
            tables = report.analysis.of(task, measure)
            counts.append(f"{n.count(len(found), 'pair')} on {measured(tables[0])}")
            real += [
                f"{s.a} over {s.b} at {name_condition(s.first)} and the reverse at {name_condition(s.second)} "
                f"({measured(tables[0])})"
                for s in found
                if s.resolved
            ]
    if not counts:
        return []
    what = f"resolved under both: {n.listing(real)}" if real else "none of these is resolved under both"
    return [
        f"Arms whose means stand in another order under another condition: {n.listing(counts)}; {what}. Only what "
        "is resolved under both is evidence that the order depends on the condition."
    ]


def cautions(report: Report) -> list[str]:
    """What must not be concluded, and why."""
    analysis, results = report.analysis, report.results
    found = []
    if any(c.verdict == "not resolved" for t in analysis.tables for c in t.comparisons):
        found.append(
            "That arms which are not resolved are equal. Sharing a letter means that these seeds do not separate "
            "them; the line under each table says which differences would have been found."
        )
    if any(arm.interval and arm.interval.over == "seeds" for t in analysis.tables for arm in t.arms):
        found.append(
            "Anything about other questions of the same kind: intervals and tests are over training seeds, for "
            "these very items. The column “seeds and items” shows what a new draw of items would add; "
            "it is not tested here."
        )
    if any(t.baseline and t.arm(t.baseline).summary.fixed for t in analysis.tables):
        found.append(
            f"That the baseline varies like the others: {analysis.baseline} is one untrained model, decoded "
            "deterministically. Its interval is over items, its score is a constant in the tests (one-sample t), "
            "and its standard deviation is not reported."
        )
    development = [task.name for task in results.tasks.values() if task.role == "development"]
    unseen = [task.name for task in results.tasks.values() if task.role == "unseen"]
    if development and unseen:
        found.append(
            f"Transfer, from {n.listing(development)}: methods were trained or selected on its kind of items. Only "
            f"{n.listing(unseen)} {'was' if len(unseen) == 1 else 'were'} never read by any method of this study; "
            "what a model had read before the study is not known here."
        )
    elif development:
        found.append(f"Transfer: no unseen task was measured, only {n.listing(development)}.")
    found += _fairness(report)
    models = sorted({run.cell.get("model", "") for run in results.runs})
    found.append(
        f"Anything about other models: {n.listing([name_condition({'model': m}) for m in models])} "
        f"{'is' if len(models) == 1 else 'are'} all that was measured."
    )
    if any(t.design.n == 2 for t in analysis.tables) or any(t.design.n == 1 for t in analysis.tables):
        found.append("Much from arms with one or two seeds: their spread is hardly known, or not at all.")
    return found


def _fairness(report: Report) -> list[str]:
    """Differences between the arms other than the method."""
    found = []
    given = {m.given for m in report.methods if m.given}
    if len(given) > 1:
        found.append(
            "That a difference between methods which were given different things (gold answers, a verifier, online "
            "samples) is due to the loss alone; the table of methods says who was given what."
        )
    selection = report.results.study.get("selection")
    if selection:
        edges = [
            f"{c['algorithm']} on {name_condition({'model': c['model']})}" for c in selection["cells"] if c["at_edge"]
        ]
        if edges:
            found.append(
                f"That {n.listing(edges)} did {'its' if len(edges) == 1 else 'their'} best: the selected value lies "
                "at the edge of those tried, so a better one may lie outside."
            )
    else:
        found.append(
            "That each method is at its best: learning rates were set in the study file and not selected per method "
            "(no selection record)."
        )
    return found


def needs(report: Report) -> list[Need]:
    """Comparisons that are not resolved, cheapest first; where no effect size exists, none can be planned for."""
    found = [
        Need(table, comparison)
        for table in report.analysis.tables
        for comparison in table.comparisons
        if comparison.verdict == "not resolved" and comparison.g is not None
    ]
    return sorted(found, key=lambda need: need.comparison.seeds_needed or 10**9)


# --------------------------------------------------------------------------------------------------
# Under and beside the tables


def design_line(table: Table) -> str:
    """What the comparisons of one table could have found; printed under it."""
    design = table.design
    if table.baseline is None or design.power is None:
        return "Nothing here can be tested: it takes at least two trained runs per arm and a baseline."
    if not design.comparisons:
        return "Nothing here can be tested."
    kind = "one-sample t against the fixed baseline" if design.against_constant else "Welch t"
    corrected = design.alpha / design.comparisons
    parts = [
        f"Corrected for {n.count(design.comparisons, 'comparison')} with {table.baseline} "
        f"({kind}, n = {design.n} per arm).",
        f"Power for a true effect of d = {design.reference_d:g}: {n.power(design.power)} at α = {design.alpha:g}, "
        f"{n.power(design.power_corrected)} at Bonferroni's {corrected:.2g}.",
    ]
    if design.detectable is not None:
        parts.append(
            f"Detectable with {100 * design.target:.0f} % power: {n.detectable(design.detectable, table.proportion)}, "
            f"corrected {n.detectable(design.detectable_corrected, table.proportion)} "
            f"(pooled sd {n.score(design.sd, table.proportion)})."
        )
    else:
        parts.append("No arm varies between its seeds, so no detectable difference can be stated.")
    return " ".join(parts)


@dataclass(frozen=True)
class Glance:
    """All comparisons with the baseline in one grid: arms down, tables across.

    Attributes:
        groups: (task, role, number of columns) of neighbouring columns.
        columns: (condition, table) from left to right.
        rows: arm and its comparison in every column; ``None`` where it has no result.
    """

    groups: list[tuple[str, str, int]]
    columns: list[tuple[str, Table]]
    rows: list[tuple[str, list[Comparison | None]]]


def glance(report: Report) -> Glance:
    """The grid that opens the page; arms in the order of their mean difference from the baseline."""
    tables = [table for table in report.analysis.tables if table.comparisons]
    groups: list[tuple[str, str, int]] = []
    for table in tables:
        name = measured(table)
        count = groups.pop()[2] if groups and groups[-1][0] == name else 0
        groups.append((name, table.task.role, count + 1))
    names = [name for name in report.analysis.treatments if name != report.analysis.baseline]
    rows = [(name, [table.comparison(name) for table in tables]) for name in names]
    rows = [(name, found) for name, found in rows if any(found)]

    def lift(row: tuple[str, list[Comparison | None]]) -> float:
        known = [c.test.difference for c in row[1] if c is not None]
        return sum(known) / len(known)

    columns = [(name_condition(table.condition), table) for table in tables]
    return Glance(groups, columns, sorted(rows, key=lift, reverse=True))


def forest_alt(table: Table) -> str:
    """A forest panel in words."""
    sign = " %" if table.proportion else ""
    arms = [
        f"{a.name} {n.score(a.summary.mean, table.proportion)}{sign}"
        + (f" ({n.reach(a.interval.low, a.interval.high, table.proportion)})" if a.interval else "")
        + (f", group {a.letters}" if a.letters else ", baseline" if a.name == table.baseline else "")
        for a in table.arms
    ]
    return f"{table_name(table)}: means with 95 % intervals, best first: {'; '.join(arms)}."


def scale_alt(tables: Sequence[Table]) -> str:
    """A scale panel in words."""
    names = list(dict.fromkeys(arm.name for table in tables for arm in table.arms))
    parts = []
    for name in names:
        values = [
            f"{n.score(arm.summary.mean, table.proportion)} at {name_condition(table.condition)}"
            for table in tables
            for arm in table.arms
            if arm.name == name
        ]
        parts.append(f"{name} {', '.join(values)}")
    return f"{tables[0].task.name}: mean score by condition: {'; '.join(parts)}."
