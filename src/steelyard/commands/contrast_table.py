"""What ``steelyard compare`` prints when a test, a correction, a margin or letters were asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steelyard.stats.contrast import Contrast, Contrasted
    from steelyard.stats.effects import Effect


def rows(found: Contrasted) -> Iterator[dict[str, Any]]:
    """One mapping per comparison, for ``--json``."""
    families = [("baseline", found.family, found.comparisons)]
    if found.pairs_family is not None:
        families.append(("pairs", found.pairs_family, found.pairs))
    for name, family, comparisons in families:
        for c in comparisons:
            test, equal = c.result.test, c.equivalence
            yield {
                "task": found.outcomes.task,
                "measure": found.outcomes.measure,
                "family": name,
                "a": c.a,
                "b": c.b,
                "difference": test.difference,
                "low": test.low,
                "high": test.high,
                "test": c.result.name,
                "method": test.method,
                "over": c.result.over,
                "p": test.p,
                "correction": family.correction,
                "p_corrected": c.p,
                "margin": found.margin,
                "p_equivalence": equal and equal.p,
                "p_equivalence_corrected": c.p_equivalence,
                "finding": c.finding,
                "coverage": c.coverage,
                "effects": [
                    {"name": e.name, "value": e.value, "low": e.low, "high": e.high, "method": e.method}
                    for e in c.effects
                ],
                "notes": list(c.notes),
            }


def show(tables: Sequence[Contrasted]) -> None:
    """Print tables, the families they were corrected in, and every note once."""
    from rich.markup import escape
    from rich.table import Table as Grid

    from steelyard.commands.console import wide_console
    from steelyard.report import numbers as n

    console = wide_console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    for found in tables:
        outcomes, share = found.outcomes, found.outcomes.proportion
        title = ", ".join(
            filter(None, (outcomes.task, outcomes.measure, f"{len(outcomes.items)} items", "%" if share else ""))
        )
        grid = Grid(title=escape(title), title_justify="left", title_style="bold")
        for column in ("arm", "runs", "mean", "not resolved", "tied"):
            if column in ("arm", "runs", "mean") or (found.unresolved if column == "not resolved" else found.tied):
                grid.add_column(column, justify="right" if column in ("runs", "mean") else "left")
        for arm in sorted(outcomes.arms.values(), key=lambda arm: -arm.mean):
            cells = [escape(arm.name), "fixed" if arm.fixed else str(len(arm.seeds)), n.score(arm.mean, share)]
            cells += [found.unresolved[arm.name]] if found.unresolved else []
            cells += [found.tied[arm.name]] if found.tied else []
            grid.add_row(*cells)
        console.print(grid)
        console.print(_comparisons(found.comparisons, found.margin, share))
        say(f"test: {'; '.join(found.design)}.")
        covered = dict.fromkeys(f"{c.result.name}: {c.coverage}" for c in found.comparisons if c.coverage)
        if covered:
            say(f"intervals: {'; '.join(covered)}.")
        say(f"family: {found.family.statement}")
        if found.pairs_family is not None:
            say(f"family: {found.pairs_family.statement}  Letters come from these, the table from the other.")
    notes = dict.fromkeys(
        f"{c.a} against {c.b}: {note}"
        for found in tables
        for c in (*found.comparisons, *found.pairs)
        for note in c.notes
    )
    for note in notes:
        say(f"note: {note}")
    margin = next((found.margin for found in tables if found.margin is not None), None)
    say(
        "Not resolved is not equality."
        if margin is None
        else f"Tied: any difference of {n.score(margin, tables[0].outcomes.proportion)} or more is excluded (TOST).  "
        "Not resolved: neither a difference nor a tie is shown."
    )


def _comparisons(comparisons: Sequence[Contrast], margin: float | None, share: bool) -> Any:
    from rich.markup import escape
    from rich.table import Table as Grid

    from steelyard.report import numbers as n

    grid = Grid()
    columns = ["comparison", "difference", "95 %", "over", "p", *(["p (tied)"] if margin is not None else [])]
    for column in (*columns, "effect size", "finding"):
        grid.add_column(column, justify="right" if column in ("difference", "95 %", "p", "p (tied)") else "left")
    for c in comparisons:
        test = c.result.test
        cells = [escape(f"{c.a} − {c.b}"), n.difference(test.difference, share)]
        cells += [n.span(test.low, test.high, share, signed=True), c.result.over, n.p_value(c.p)]
        cells += [n.p_value(c.p_equivalence)] if margin is not None else []
        grid.add_row(*cells, "\n".join(_effect(e) for e in c.effects), c.finding)
    return grid


def _effect(effect: Effect) -> str:
    from steelyard.report import numbers as n

    if "ratio" in effect.name:
        return f"{effect.name} {effect.value:.2f} ({effect.low:.2f} to {effect.high:.2f})"
    return f"{effect.name} {n.effect(effect.value)} ({n.effect(effect.low)} to {n.effect(effect.high)})"
