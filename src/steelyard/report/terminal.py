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
        return f"     {text.STILL if text.is_still(arm) else ' '} "
    half = (arm.interval.high - arm.interval.low) / 2
    cut = n.is_cut(arm.interval.low, arm.interval.high, proportion)
    mark = "*" if arm.interval.over == "items" else n.CUT if cut else " "
    return f"± {n.score(half, proportion):>4}{mark}"


def print_ranking(study: str | Path | Report, console: Console | None = None, *, failed: bool = True) -> None:
    """Print the ranking of a study (a directory, or a report that was already assembled).

    Args:
        study: the directory, or the report.
        console: where to; default: standard output.
        failed: also name what failed; a caller that has just done so leaves it out.

    Raises:
        StudyError: the evidence is degenerate, or there is none.
    """
    console = console or Console()
    report = study if isinstance(study, Report) else assemble(study, resamples=0)
    for title, grid in ranking_tables(report):
        console.print(title, style="bold", highlight=False, markup=False, soft_wrap=True)
        console.print(grid)
    arms = [arm for table in report.analysis.tables for arm in table.arms]
    notes = ["± is half of the 95 % interval over seeds."]
    if any(arm.letters for arm in arms):
        notes[0] = f"{notes[0][:-1]}; arms that share a letter are not resolved (which is not equality)."
    if any(arm.interval and arm.interval.over == "items" for arm in arms):
        notes.append("* untrained, one deterministic model: the interval is over items.")
    tables = [(arm, table.proportion) for table in report.analysis.tables for arm in table.arms]
    if any(arm.interval and n.is_cut(arm.interval.low, arm.interval.high, share) for arm, share in tables):
        notes.append(f"{n.CUT} the interval would reach beyond 0 to 100 %; the report cuts it there.")
    if any(text.is_still(arm) for arm in arms):
        notes.append(f"{text.STILL} {text.STILL_NOTE}.")
    short = text.summary(report)
    notes += [line for line in (short.resolution, short.sight) if line]
    lost = [use.line(reasons=False) for use in report.results.data if use.lost]
    if lost:
        notes.append(f"data, {'; '.join(lost)}; the report says why.")
    for failure in report.failures if failed else [f for f in report.failures if f.status != "failed"]:
        notes.append(f"{failure.status}: {failure.title}: {failure.error}")
    for note in notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    for warning in report.results.warnings:
        console.print(f"WARNING: {warning}", style="bold red", highlight=False, markup=False, soft_wrap=True)
