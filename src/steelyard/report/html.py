"""The page: one self-contained HTML file with inline style and figures; needs no script and no network."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from steelyard.files import atomic_write
from steelyard.report import figures, text
from steelyard.report import numbers as n
from steelyard.report.assemble import LIKELIHOODS, SIGNALS, Report, assemble, name_condition
from steelyard.report.figures import Curve, Line, Look, Point
from steelyard.report.results import to_dict
from steelyard.stats.analyse import Arm, Table
from steelyard.stats.table import UNTRAINED, describe_cell

PAGE, NUMBERS = "report.html", "results.json"


def write(study_dir: str | Path) -> Path:
    """Assemble a study and write its page and its numbers; returns the page's path."""
    study_dir = Path(study_dir)
    report = assemble(study_dir)
    plain = json.dumps(to_dict(report), indent=1, ensure_ascii=False, allow_nan=False)
    page = render(report)
    atomic_write(study_dir / NUMBERS, plain + "\n")
    atomic_write(study_dir / PAGE, page)
    return study_dir / PAGE


def render(report: Report) -> str:
    """The page as text; equal evidence gives equal bytes."""
    environment = Environment(
        loader=PackageLoader("steelyard.report"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["n"] = n
    environment.filters["condition"] = name_condition
    analysis, results = report.analysis, report.results
    looks = figures.looks(analysis.treatments, UNTRAINED)
    style, _, _ = environment.loader.get_source(environment, "style.css")  # type: ignore[union-attr]
    page = environment.get_template("report.html").render(
        style=Markup(style),
        report=report,
        analysis=analysis,
        results=results,
        text=text,
        short=text.summary(report),
        glance=text.glance(report),
        description=results.study.get("description") or results.config.get("description") or "",
        looks=looks,
        marks={arm: f"mark-{i}" for i, arm in enumerate(looks)},
        symbols=[Markup(figures.symbol(f"mark-{i}", look)) for i, look in enumerate(looks.values())],
        axes=[(axis, values) for axis, values in results.axes.items()],
        ranking=list(_ranking(report, looks)),
        lettered=any(arm.letters for table in report.analysis.tables for arm in table.arms),
        scale=list(_scale(report, looks)),
        tables=[_table(table) for table in analysis.tables],
        curves=list(_curves(report, looks)),
        condition_names=[name_condition(condition) for condition in analysis.conditions],
        needs=text.needs(report),
        samples=report.samples,
        selection=results.study.get("selection"),
        notes=[*results.notes, *(results.study.get("notes") or [])],
        study_file=yaml.safe_dump(_plain(results.config), sort_keys=False, allow_unicode=True, width=100),
        commands=_commands(report),
        hashes=_hashes(report),
        runs=results.runs,
        describe_cell=describe_cell,
    )
    return re.sub(r"\n{2,}", "\n", page)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


# --------------------------------------------------------------------------------------------------
# Figures


def _limits(tables: Sequence[Table]) -> tuple[float, float]:
    """Axis limits in display units: everything that is drawn, but shares never leave 0 to 100 %."""
    factor = _factor(tables[0])
    values = [v for t in tables for arm in t.arms for v in arm.values.values()]
    values += [v for t in tables for arm in t.arms if arm.interval for v in (arm.interval.low, arm.interval.high)]
    low, high = factor * min(values), factor * max(values)
    margin = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - margin, high + margin
    return (max(low, -1.5), min(high, 101.5)) if tables[0].proportion else (low, high)


def _factor(table: Table) -> float:
    return 100.0 if table.proportion else 1.0


def _axis_label(table: Table) -> str:
    name = text.measure_name(table.measure, table.task.kind)
    return f"{name}, %" if table.proportion else name


def _ranking(report: Report, looks: Mapping[str, Look]) -> Iterable[dict[str, Any]]:
    """One block per task and measure, one forest panel per condition."""
    for task, measure in report.analysis.measures:
        tables = report.analysis.of(task, measure)
        limits = _limits(tables)
        panels = []
        for table in tables:
            panel = figures.forest(
                f"rank-{task}-{measure}-{name_condition(table.condition)}",
                name_condition(table.condition),
                [_point(arm, _factor(table)) for arm in table.arms],
                looks,
                baseline=table.baseline,
                limits=limits,
                label=_axis_label(table),
                alt=text.forest_alt(table),
            )
            panels.append(Markup(panel))
        yield {
            "task": tables[0].task,
            "title": text.measured(tables[0]),
            "panels": panels,
        }


def _point(arm: Arm, factor: float) -> Point:
    interval, proportion = arm.interval, factor != 1.0
    return Point(
        arm.name,
        factor * arm.summary.mean,
        factor * n.clip(interval.low, proportion) if interval else None,
        factor * n.clip(interval.high, proportion) if interval else None,
        tuple(factor * value for value in arm.values.values()),
        arm.letters,
    )


def _scale(report: Report, looks: Mapping[str, Look]) -> Iterable[dict[str, Any]]:
    """Scores over the scale axis, one panel per task, measure and value of the other conditions."""
    axis = report.scale_axis
    if axis is None:
        return
    for task, measure in report.analysis.measures:
        groups: dict[str, list[Table]] = {}
        for table in report.analysis.of(task, measure):
            rest = {key: value for key, value in table.condition.items() if key != axis}
            groups.setdefault(describe_cell(rest), []).append(table)
        for rest, tables in groups.items():
            if len(tables) < 2:
                continue
            ticks = [name_condition({axis: table.condition[axis]}) for table in tables]
            factor = _factor(tables[0])
            panel = figures.scale(
                f"scale-{task}-{measure}-{rest}",
                f"{task}{f' · {rest}' if rest else ''}",
                ticks,
                _positions(ticks),
                [_line(name, tables, factor) for name in report.analysis.treatments],
                looks,
                limits=_limits(tables),
                label=axis,
                alt=text.scale_alt(tables),
            )
            yield {"task": tables[0].task, "measure": _axis_label(tables[0]), "panel": Markup(panel)}


def _line(name: str, tables: Sequence[Table], factor: float) -> Line:
    arms = [next((arm for arm in table.arms if arm.name == name), None) for table in tables]
    return Line(
        name,
        tuple(factor * arm.summary.mean if arm else None for arm in arms),
        tuple(factor * n.clip(arm.interval.low, factor != 1.0) if arm and arm.interval else None for arm in arms),
        tuple(factor * n.clip(arm.interval.high, factor != 1.0) if arm and arm.interval else None for arm in arms),
    )


def _positions(ticks: Sequence[str]) -> list[float]:
    """Logarithms of the sizes that the names state (``0.5m``, ``7b``), else evenly spaced."""
    sizes = []
    for tick in ticks:
        found = re.search(r"(\d+(?:\.\d+)?)\s*([kmb])\b", tick.lower())
        sizes.append(float(found[1]) * {"k": 1e3, "m": 1e6, "b": 1e9}[found[2]] if found else None)
    known = [size for size in sizes if size]
    if len(set(known)) < len(ticks):
        return [float(i) for i in range(len(ticks))]
    return [math.log10(size) for size in known]


def _curves(report: Report, looks: Mapping[str, Look]) -> Iterable[dict[str, Any]]:
    """One row of panels per metric, one panel per arm."""
    present = {found.metric for found in report.curves}
    for metric in (name for name in ("loss", *SIGNALS, *LIKELIHOODS) if name in present):
        sets = [found for found in report.curves if found.metric == metric]
        values = [value for found in sets for _, _, _, run in found.runs for value in run]
        margin = 0.05 * (max(values) - min(values)) or 0.1
        # Losses are different functions; everything else is one quantity and gets one scale.
        limits = None if metric == "loss" else (min(values) - margin, max(values) + margin)
        panels = []
        for found in sets:
            runs = [Curve(steps, run, condition) for condition, _, steps, run in found.runs]
            starts, ends = [run.values[0] for run in runs], [run.values[-1] for run in runs]
            alt = (
                f"{metric} of {found.arm} over {n.count(len(runs), 'run')}: starts between {min(starts):.3g} and "
                f"{max(starts):.3g}, ends between {min(ends):.3g} and {max(ends):.3g}."
            )
            name = f"curve-{found.arm}-{metric}"
            panel = figures.curves(name, found.arm, runs, looks[found.arm], limits=limits, alt=alt)
            panels.append(Markup(panel))
        yield {"metric": metric, "panels": panels}


# --------------------------------------------------------------------------------------------------
# Tables


def _table(table: Table) -> dict[str, Any]:
    """One table's rows, ready to be written."""
    extras = [
        name
        for name in ("strict", "flexible", "truncated", "empty", "unscored", "acc_norm", "length")
        if any(name in arm.extras for arm in table.arms)
        and not (name == "unscored" and not any(arm.extras.get(name) for arm in table.arms))
    ]
    return {
        "id": re.sub(r"\W+", "-", f"table-{text.table_name(table)}"),
        "table": table,
        "title": text.table_name(table),
        "measure": _axis_label(table),
        "extras": extras,
        "crossed": any(arm.crossed for arm in table.arms),
        "paired": any(comparison.paired for comparison in table.comparisons),
        "parts": any(comparison.parts for comparison in table.comparisons),
        "rows": [(arm, table.comparison(arm.name)) for arm in table.arms],
        "design": text.design_line(table),
        "remarks": _remarks(table),
    }


def _remarks(table: Table) -> list[str]:
    """Notes of the tests, each with the arms that it holds for."""
    arms: dict[str, list[str]] = {}
    for comparison in table.comparisons:
        if comparison.test.note:
            arms.setdefault(comparison.test.note, []).append(comparison.arm)
    found = [f"{n.listing(names)}: {note}" for note, names in arms.items()]
    if any(arm.interval and n.is_cut(arm.interval.low, arm.interval.high, table.proportion) for arm in table.arms):
        found.append(f"{n.CUT} {text.CUT_NOTE}")
    if any(text.is_still(arm) for arm in table.arms):
        found.append(f"{text.STILL} {text.STILL_NOTE}")
    return found


def _commands(report: Report) -> list[str]:
    path = report.results.path
    out = path.name if path.is_absolute() else path.as_posix()  # a page names no place on the machine it was made on
    return [f"steelyard study {report.results.name} --out {out}", f"steelyard report {out}"]


def _hashes(report: Report) -> list[tuple[str, list[str]]]:
    """What the numbers depend on, as hashes; each list is what the runs have among them."""
    runs, study = report.results.runs, report.results.study

    def distinct(values: Iterable[Any]) -> list[str]:
        return sorted({str(value) for value in values if value})

    selection = study.get("selection") or {}
    data = [value for run in runs for value in (run.facts.get("identity", {}).get("data") or {}).values()]
    return [
        ("study (all resolved cells)", distinct([study.get("sha256")])),
        (
            "code that computed the runs",
            distinct(run.facts.get("identity", {}).get("source") for run in runs),
        ),
        ("code that made the plan", distinct([study.get("code_sha256")])),
        ("starting weights", distinct(run.facts.get("identity", {}).get("weights") for run in runs)),
        ("input files", distinct(data)),
        ("training rows", distinct(run.facts.get("data_sha256") for run in runs)),
        ("selection record", distinct([selection.get("sha256")])),
    ]
