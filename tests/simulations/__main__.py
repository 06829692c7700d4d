"""Run all simulations and write what they found: ``cd tests && python -m simulations`` (about three minutes)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simulations import coverage, errors
from simulations.populations import POPULATIONS

ROOT = Path(__file__).parents[2]
PAGE, MODULE = ROOT / "docs" / "statistics.md", ROOT / "src" / "steelyard" / "stats" / "coverage.py"

WORDS = {
    "crossed": "an arm: crossed random effects, Cochran's t (**default**)",
    "pigeonhole": "an arm: pigeonhole bootstrap (percentile)",
    "t": "an arm: Student's t over seeds, these items",
    "seed-bootstrap": "an arm: percentile bootstrap over seeds, these items",
    "clustered": "an arm: t over items, clustered by item, these models",
    "wilson": "one model: Wilson, items",
    "exact": "one model: Clopper-Pearson, items",
    "bca-items": "these models: BCa bootstrap over items",
    "mixed": "a difference: mixed effects, same seeds (**default**)",
    "mixed, independent seeds": "a difference: mixed effects, own seeds (**default**)",
    "welch": "a difference: Welch's t over seeds, these items",
    "paired-t": "a difference: paired t over seeds, these items",
    "items-t": "a difference: paired t over items, these models",
    "paired-permutation": "a difference: sign flips by item, these models",
    "hedges-g": "Hedges' g, noncentral t (normal runs)",
    "cliffs-delta": "Cliff's delta, Feng and Cliff (normal runs)",
    "risk-difference": "risk difference, Newcombe (items)",
    "paired-risk-difference": "paired risk difference, Tango (items)",
    "paired-odds-ratio": "paired odds ratio, exact (items)",
    "stratified": "mean or IQM over runs and tasks, stratified bootstrap",
}


def ranges() -> dict[str, dict[int, tuple[float, float]]]:
    """Worst and best coverage by interval and number of seeds (0: items alone)."""
    found: dict[str, dict[int, list[float]]] = {}
    for name, cells in coverage.simulate().items():
        for (_, n, _), value in cells.items():
            found.setdefault(name, {}).setdefault(0 if name in coverage.ITEM_ONLY else n, []).append(value)
    for (name, n, _), value in errors.effect_coverage().items():
        found.setdefault(name, {}).setdefault(n if n <= 10 else 0, []).append(value)
    for (_, n, _), value in errors.aggregate_coverage().items():
        found.setdefault("stratified", {}).setdefault(n, []).append(value)
    return {
        name: {n: (round(min(v), 3), round(max(v), 3)) for n, v in sorted(by.items())} for name, by in found.items()
    }


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def coverage_table(found: Mapping[str, Mapping[int, tuple[float, float]]]) -> str:
    """Markdown: per cent covered, worst to best cell."""
    lines = ["| interval (nominal 95 %) | 2 seeds | 3 | 5 | 10 |", "|---|---|---|---|---|"]
    for name in WORDS:
        by = found[name]
        if 0 in by:
            cells = [f"{_percent(by[0][0])} – {_percent(by[0][1])}", "", "", ""]
        else:
            cells = [
                f"{_percent(by[n][0])} – {_percent(by[n][1])}" + (" **refused**" if by[n][0] < 0.92 else "")
                if n in by
                else "–"
                for n in coverage.SEEDS
            ]
        lines.append(f"| {WORDS[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _grid(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def family_table(found: Mapping[tuple[str, int], float]) -> str:
    """Markdown: chance of any false claim, per cent."""
    names = list(dict.fromkeys(name for name, _ in found))
    rows = [[name.replace("*", ", unequal spreads"), *(_percent(found[name, n]) for n in (3, 5, 10))] for name in names]
    return _grid(["procedure", "3 runs", "5", "10"], rows)


def report() -> tuple[str, dict[str, dict[int, float]]]:
    """The generated section, and the worst coverages that :mod:`steelyard.stats.coverage` holds."""
    found = ranges()
    populations = _grid(
        ["population", "mean", "seed", "item", "seed (difference)", "item (difference)", "from"],
        [
            [
                p.name,
                f"{p.mean:.3f}",
                f"{p.seed:.5f}",
                f"{p.item:.4f}",
                f"{p.seed_apart:.5f}",
                f"{p.item_apart:.4f}",
                p.source,
            ]
            for p in POPULATIONS
        ],
    )
    level = _grid(
        ["seeds", "items", "same seeds", "own seeds"],
        [
            [str(n), str(m), _percent(rates["same seeds", n, m]), _percent(rates["own seeds", n, m])]
            for rates in [errors.mixed_level()]
            for n in (3, 5, 10)
            for m in (200, 2000)
        ],
    )
    size: dict[tuple[str, str], list[float]] = {}
    for (name, population, n, m), value in errors.equivalence_size().items():
        size.setdefault((population, f"{n} x {m}"), []).append(value)
        assert name in ("mixed", "mixed, independent seeds")
    tost = _grid(
        ["population", "seeds x items", "same seeds", "own seeds"],
        [[population, cell, *map(_percent, values)] for (population, cell), values in size.items()],
    )
    score = _grid(
        ["score test", "items", "size"], [[name, str(m), _percent(v)] for (name, m), v in errors.score_size().items()]
    )
    looks = _grid(
        ["plan", "statistic", "any look claims"],
        [[k, s, _percent(v)] for (k, s), v in errors.sequential_level().items()],
    )
    power = _grid(
        ["differences as in", "seeds", "items", "planned", "simulated"],
        [
            [k, str(n), str(m) if m else "–", _percent(p), _percent(s)]
            for (k, n, m), (p, s) in errors.planned_power().items()
        ],
    )
    text = "\n\n".join(
        [
            f"Per cent of {coverage.STUDIES:,} simulated studies per cell (8,000 for g, delta and the stratified "
            "bootstrap, 2,000 for effect sizes over items), worst to best of four populations x 200, 500 and 2,000 "
            "binary items; the standard error of one cell is 0.2 to 0.5 points, so the worst of twelve lies about 0.7 "
            "below its own truth. A study in which nothing varies gets no interval and is left out.",
            coverage_table(found),
            "The populations: mean and variance components of right and wrong answers.",
            populations,
            "False claims of the mixed test between two equal arms, worst population, per cent (nominal 5):",
            level,
            "Any false claim in a family of four comparisons with the first of five equal arms (Tukey: all ten pairs), "
            "normal runs, per cent; \"unequal spreads\": the first arm's sd is three times the others'.",
            family_table(errors.families()),
            '"Tied" claimed although the difference is exactly the margin of 5 points, mixed test, per cent '
            "(nominal at most 5):",
            tost,
            score,
            "Looks at 5, 10, 15 and 20 runs (always-valid: after every run, up to 100), no true difference, per cent:",
            looks,
            "Planned and simulated power, per cent:",
            power,
        ]
    )
    return text, {name: {n: low for n, (low, _) in by.items()} for name, by in found.items()}


def replace_between(path: Path, begin: str, end: str, text: str) -> None:
    """Put a text between two marks of a file."""
    content = path.read_text(encoding="utf-8")
    pattern = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.DOTALL)
    assert len(pattern.findall(content)) == 1, f"{path}: expected one '{begin}' ... '{end}'"
    path.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", content), encoding="utf-8")


def literal(table: Mapping[str, Mapping[int, Any]]) -> str:
    """The table as source, one interval per line."""
    rows = "".join(f'    "{name}": {dict(by)!r},\n' for name, by in table.items())
    return f"SIMULATED: dict[str, dict[int, float]] = {{\n{rows}}}"


if __name__ == "__main__":
    section, worst = report()
    replace_between(PAGE, "<!-- simulations -->", "<!-- end of simulations -->", section)
    replace_between(MODULE, "# begin generated", "# end generated", literal(worst))
