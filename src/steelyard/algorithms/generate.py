"""Write what is generated from the registered algorithms: ``python -m steelyard.algorithms.generate``.

``catalogue.json`` (read by everything that must not import torch) and, in a source checkout,
``docs/algorithms.md``.  A test fails when either is stale.
"""

from __future__ import annotations

import json
from pathlib import Path

from steelyard.algorithms import load
from steelyard.algorithms.core import AlgorithmSpec, algorithms

CATALOGUE = Path(__file__).with_name("catalogue.json")
PAGE = Path(__file__).parents[3] / "docs" / "algorithms.md"

_INTRODUCTION = """# Algorithms

Every algorithm is a pure function from a view of the data to unreduced loss terms (`src/steelyard/algorithms/`); its
keyword arguments are its hyperparameters.  This page is generated from the functions.
"""


def catalogue_text() -> str:
    """The catalogue as it must stand on disk: sorted keys, two-space indentation, final newline."""
    load()
    entries = {key: spec.describe() for key, spec in sorted(algorithms.items())}
    return json.dumps(entries, indent=2, ensure_ascii=False) + "\n"


def page_text() -> str:
    """The documentation page: a section per algorithm."""
    load()
    return "\n".join([_INTRODUCTION, *(_section(spec) for _, spec in sorted(algorithms.items()))])


def _section(spec: AlgorithmSpec) -> str:
    facts = [
        f"paper {spec.paper}" if spec.paper != "-" else "",
        f"view `{spec.family}`" if spec.loss else "",
        "needs a reference" if spec.reference != "none" else "",
        "coupled over the step" if spec.coupled else "",
        f"recipe `recipes/{spec.key}.yaml`" if spec.loss else "",
    ]
    body = spec.doc.split("\nArgs:\n")[0].strip()
    rows = [f"| `{hp.name}` | {hp.default} | {hp.help} |" for hp in spec.hyperparameters.values()]
    table = ["", "| hyperparameter | default | meaning |", "|---|---|---|", *rows] if rows else []
    return "\n".join([f"## `{spec.key}`", "", " · ".join(f for f in facts if f), "", body, *table, ""])


if __name__ == "__main__":
    CATALOGUE.write_text(catalogue_text(), encoding="utf-8")
    if PAGE.parent.is_dir():
        PAGE.write_text(page_text(), encoding="utf-8")
