"""Write ``catalogue.json`` from the registered algorithms: ``python -m steelyard.algorithms.generate``."""

from __future__ import annotations

import json
from pathlib import Path

from steelyard.algorithms import load
from steelyard.algorithms.core import algorithms


def catalogue_text() -> str:
    """The catalogue as it must stand on disk: sorted keys, two-space indentation, final newline."""
    load()
    entries = {key: spec.describe() for key, spec in sorted(algorithms.items())}
    return json.dumps(entries, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("catalogue.json").write_text(catalogue_text(), encoding="utf-8")
