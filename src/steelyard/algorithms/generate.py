"""Write what is generated from the registered algorithms: ``python -m steelyard.algorithms.generate``.

``catalogue.json`` (read by everything that must not import torch) and, in a source checkout, a page per algorithm
under ``docs/algorithms``.  The pages also say what is verified, from ``verification.json``
(``python tests/verification.py``).  A test fails when any of it is stale.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from steelyard.algorithms import load
from steelyard.algorithms.core import AlgorithmSpec, algorithms
from steelyard.algorithms.facts import (
    GROUPS,
    SAME_LOSS,
    group_of,
    learns_from,
    load_verification,
    needs,
    paper_link,
    range_of,
    recipe_of,
    sections,
    shown,
)

CATALOGUE = Path(__file__).with_name("catalogue.json")
PAGES = Path(__file__).parents[3] / "docs" / "algorithms"
MARKS = {True: "✓", False: "–"}

_INDEX = """# Algorithms

Every algorithm is a pure function from a view of the data to unreduced loss terms (`src/steelyard/algorithms/`); its
keyword arguments are its hyperparameters, with the paper's values as defaults. These pages are generated from the
functions. `steelyard algorithms` prints this list, `steelyard algorithms dpo` one page; oxRL's 51 names are understood
as well (`steelyard algorithms --oxrl`). How each is verified: [verification.md](../verification.md). Your own:
[your-algorithm.md](../your-algorithm.md).

`profile: oxrl` in a recipe fills hyperparameters that it does not give with those of oxRL's comparison of 20 methods (a
shared beta of 0.1); a method that is not among the 20 keeps its paper's.
"""


def entry_of(spec: AlgorithmSpec) -> dict[str, Any]:
    """The catalogue entry: what the specification says, its docstring's sections, and where it is written."""
    described = spec.describe()
    doc = described.pop("doc")
    module = spec.loss.__module__ if spec.loss else ""
    return {**described, **sections(doc), "module": module, "doc": doc}


def catalogue_text() -> str:
    """The catalogue as it must stand on disk: sorted keys, two-space indentation, final newline."""
    load()
    entries = {key: entry_of(spec) for key, spec in sorted(algorithms.items()) if _own(spec)}
    return json.dumps(entries, indent=2, ensure_ascii=False) + "\n"


def _own(spec: AlgorithmSpec) -> bool:
    return spec.loss is None or spec.loss.__module__.startswith("steelyard.algorithms.")


def pages() -> dict[str, str]:
    """Name -> text of every file under ``docs/algorithms``: the index and a page per algorithm."""
    load()
    entries = {key: entry_of(spec) for key, spec in sorted(algorithms.items()) if _own(spec)}
    verified = load_verification()
    found = {f"{key}.md": _page(key, entry, verified) for key, entry in entries.items()}
    return {"README.md": _index(entries, verified), **found}


def _index(entries: dict[str, dict[str, Any]], verified: dict[str, Any]) -> str:
    lines = [_INDEX, verified["summary"], ""]
    for group, title in GROUPS.items():
        keys = [key for key, entry in entries.items() if group_of(entry) == group]
        if not keys:
            continue
        lines += [f"## {title}", "", "| key | method | learns from | status |", "|---|---|---|---|"]
        for key in keys:
            entry = entries[key]
            status = verified["algorithms"].get(key, {}).get("status", "")
            title = entry["title"].rstrip(".")
            lines.append(f"| [`{key}`]({key}.md) | {_cell(title)} | {learns_from(entry)} | {status} |")
        lines.append("")
    return "\n".join(lines)


def _page(key: str, entry: dict[str, Any], verified: dict[str, Any]) -> str:
    lines = [f"# `{key}`", "", f"**{entry['title'].rstrip('.')}**", "", entry["about"] or entry["doc"], ""]
    if key in SAME_LOSS:
        other, difference = SAME_LOSS[key]
        lines += [f"The loss is that of [`{other}`]({other}.md), {difference}; it is no objective of its own.", ""]
    if entry["watch"]:
        lines += ["## Watch", "", _sentence(entry["watch"]), ""]
    if entry["differs"]:
        lines += ["## Where others differ", "", _sentence(entry["differs"]), ""]
    lines += _hyperparameters(entry["hyperparameters"])
    paper = entry["paper"]
    link = f"[{paper}]({paper_link(paper)})" if paper_link(paper) != paper else paper
    facts = [("paper", link)] if paper != "-" else []
    facts += [("family", GROUPS[group_of(entry)].lower())]
    facts += [("view", f"`{entry['family']}`")] if entry["module"] else []
    facts += needs(entry)
    if recipe := recipe_of(key):
        facts.append(("recipe", f"[`{recipe}`](../../{recipe})"))
    if entry["module"]:
        path = f"src/{entry['module'].replace('.', '/')}.py"
        facts.append(("source", f"[`{path}`](../../{path})"))
    lines += ["## Needs", "", "| | |", "|---|---|", *(f"| {_cell(a)} | {_cell(b)} |" for a, b in facts), ""]
    return "\n".join([*lines, *_verification(verified["algorithms"].get(key))])


def _sentence(text: str) -> str:
    """With a capital, unless it begins with a name that has its own (oxRL)."""
    return text[:1].upper() + text[1:] if text.split(" ")[0].islower() else text


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def _hyperparameters(declared: dict[str, Any]) -> list[str]:
    if not declared:
        return ["## Hyperparameters", "", "None.", ""]
    rows = [
        f"| `{name}` | {shown(hp['default'])} | {_cell(range_of(hp))} | {_cell(hp['help'])} |"
        for name, hp in declared.items()
    ]
    return [
        *("## Hyperparameters", "", "| name | default | values | meaning |", "|---|---|---|---|"),
        *(*rows, ""),
    ]


def _verification(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    check = f": {found['check']}" if found.get("check") else ""
    rows = [f"| {name} | {MARKS[e['ok']]} | {_cell(e['why'])} |" for name, e in found["evidence"].items()]
    head = ["## Verification", "", f"Status: **{found['status']}**{check}.", "", "| | | |", "|---|---|---|"]
    return [*head, *rows, "", "What the columns mean: [verification.md](../verification.md).", ""]


def write() -> None:
    """Write the catalogue and, in a checkout, the pages; pages of algorithms that are gone are removed."""
    CATALOGUE.write_text(catalogue_text(), encoding="utf-8")
    if PAGES.parent.is_dir():
        PAGES.mkdir(exist_ok=True)
        wanted = pages()
        for path in PAGES.glob("*.md"):
            if path.name not in wanted:
                path.unlink()
        for name, text in wanted.items():
            (PAGES / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
