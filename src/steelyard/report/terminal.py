"""The ranking that a study prints when it ends: every arm on every task, best first, with tied groups."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from steelyard.report import numbers as n
from steelyard.report import text
from steelyard.report.assemble import Report, assemble, name_condition
from steelyard.stats.analyse import Arm, Table


def ranking_tables(report: Report) -> list[tuple[str, Grid]]:
    """Title and grid per task and measure: arms by mean over the conditions, a column per condition."""
    grids = []
    for task, measure in report.analysis.measures:
        tables = report.analysis.of(task, measure)
        info = tables[0].task
        title = f"{task} ({info.role}): {text.measure_name(measure, info.kind)}"
        grid = Grid(header_style="")
        grid.add_column("arm")
        for table in tables:
            grid.add_column(
                f"{escape(name_condition(table.condition))}, {'%' if table.proportion else 'score'}",
                justify="right",
            )
        for name in _order(tables):
            cells = [_cell(table, name) for table in tables]
            grid.add_row(escape(name) + (" (baseline)" if name == report.analysis.baseline else ""), *cells)
        grids.append((title, grid))
    return grids


def _order(tables: list[Table]) -> list[str]:
    means: dict[str, list[float]] = {}
    for table in tables:
        for arm in table.arms:
            means.setdefault(arm.name, []).append(arm.summary.mean)
    return sorted(means, key=lambda name: -sum(means[name]) / len(means[name]))


def _cell(table: Table, name: str) -> str:
    arm = next((arm for arm in table.arms if arm.name == name), None)
    if arm is None:
        return n.NONE
    return f"{n.score(arm.summary.mean, table.proportion)} {_half(arm, table.proportion)} {arm.letters:<4}"


def _half(arm: Arm, proportion: bool) -> str:
    if arm.interval is None:
        return "      "
    half = (arm.interval.high - arm.interval.low) / 2
    mark = "*" if arm.interval.over == "items" else " "
    return f"± {n.score(half, proportion):>4}{mark}"


def print_ranking(study: str | Path | Report, console: Console | None = None) -> None:
    """Print the ranking of a study (a directory, or a report that was already assembled).

    Raises:
        StudyError: the evidence is degenerate, or there is none.
    """
    console = console or Console()
    report = study if isinstance(study, Report) else assemble(study, resamples=0)
    for title, grid in ranking_tables(report):
        console.print(title, style="bold", highlight=False, markup=False, soft_wrap=True)
        console.print(grid)
    notes = [
        "± is half of the 95 % interval over seeds; arms that share a letter are not resolved (which is not equality)."
    ]
    arms = [arm for table in report.analysis.tables for arm in table.arms]
    if any(arm.interval and arm.interval.over == "items" for arm in arms):
        notes.append("* untrained, one deterministic model: the interval is over items.")
    sight = text.summary(report).sight
    if sight:
        notes.append(sight)
    for failure in report.failures:
        notes.append(f"{failure.status}: {failure.title}: {failure.error}")
    for note in notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
