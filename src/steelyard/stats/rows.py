"""What became of the rows of the data: kept, dropped, truncated, read with unknown tokens; and what leaked.

Every run directory says so of its training rows (``rows`` of ``run.json``) and of its held-out preferences
(``held_out.json``).  Equal statements of several runs are made once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

HELD_OUT = "held_out.json"
"""A run's report on its held-out preferences."""


@dataclass(frozen=True)
class RowUse:
    """What became of one source's rows, in the same way for all of ``arms``.

    Attributes:
        part: ``training`` or ``held-out``.
        arms: algorithms whose runs say so; empty when all that read the source do.
        brief: how many rows were kept, of how many.
        reasons: what became of the others, and what else is wrong; one sentence each.
    """

    part: str
    arms: tuple[str, ...]
    brief: str
    reasons: tuple[str, ...]

    @property
    def lost(self) -> bool:
        """Whether rows are missing, cut, or otherwise not what the file holds."""
        return bool(self.reasons)

    def line(self, *, reasons: bool = True) -> str:
        """The statement with what it is about."""
        arms = f" ({', '.join(self.arms)})" if self.arms else ""
        about = f"{self.part}{arms}: {self.brief}"
        return f"{about}: {'; '.join(self.reasons)}" if reasons and self.reasons else about


def row_uses(runs: Iterable[tuple[str, Path, Mapping[str, Any]]]) -> tuple[RowUse, ...]:
    """What became of the rows, once per different statement; training first.

    Args:
        runs: (algorithm, run directory, content of ``run.json``) of every run.
    """
    said: dict[tuple[str, str, int, tuple[str, ...]], list[tuple[str, int]]] = {}
    for algorithm, directory, facts in runs:
        held_out = directory / HELD_OUT
        for part, report in (
            ("training", facts.get("rows")),
            ("held-out", json.loads(held_out.read_text(encoding="utf-8")) if held_out.is_file() else None),
        ):
            if report and "kept" in report:
                named = PurePath(str(report["source"]))
                source = named.name if named.is_absolute() else str(named)  # a page names no place on a machine
                rows, missing = int(report["rows"]), int(report["rows"]) - int(report["kept"])
                reasons = tuple(str(problem) for problem in report.get("problems") or [])
                if missing and not reasons:
                    reasons = ("the run does not say why",)
                # Rows that a model sampled itself differ in number from seed to seed; only losses are told apart.
                key = (part, source, missing, (f"{rows}", *reasons) if reasons else ())
                said.setdefault(key, []).append((algorithm, rows))
    readers: dict[tuple[str, str], set[str]] = {}
    for (part, source, _, _), found in said.items():
        readers.setdefault((part, source), set()).update(algorithm for algorithm, _ in found)
    uses = []
    for (part, source, missing, reasons), found in said.items():
        arms = tuple(dict.fromkeys(algorithm for algorithm, _ in found))
        least, most = min(rows for _, rows in found), max(rows for _, rows in found)
        amount = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        kept = f"{most - missing:,} of {amount}" if missing else f"all {amount}"
        everyone = set(arms) == readers[part, source]
        uses.append(RowUse(part, () if everyone else arms, f"{kept} rows of {source} kept", reasons[1:]))
    return tuple(sorted(uses, key=lambda use: use.part != "training"))


def leaks(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Warnings for held-out preferences that are the file which was trained on, by the hashes of the files.

    Args:
        runs: contents of ``run.json``.
    """
    for facts in runs:
        data = facts.get("identity", {}).get("data") or {}
        read = data.get("data.path")
        if read and read == data.get("eval.preference_path"):
            return [
                "The held-out preference file (eval.preference_path) is the training file (data.path), byte for byte: "
                "the preference accuracies of this study are not held out."
            ]
    return []
