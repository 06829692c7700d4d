"""What an audit says: findings with verdicts, and facts that the table implies without claiming them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from steelyard.stats.audit_table import Printed
from steelyard.stats.published import Range

Verdict = Literal["holds", "within rounding", "does not hold", "cannot be checked"]
"""``holds``: the printed inputs give just this.  ``within rounding``: they do not, but numbers that round to
them do.  ``does not hold``: no numbers that round to them do.  ``cannot be checked``: something is missing."""

Severity = Literal["serious", "minor", "none"]
"""Of what does not hold. ``serious``: what a reader takes away from the table changes, or the number cannot have
been measured as stated.  ``minor``: a wrong number beside a conclusion that stands."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked.

    Attributes:
        check: name of the check (``p``, ``grim``, ...); see docs/audit.md.
        row: name of the row, or what else it is about; empty for the whole table.
        column: the cell's column; empty where it is no cell.
        claimed: what the table says.
        true: what follows from its numbers.
        verdict, severity: see there.
        how: how it was computed.
        needed: what would settle it, where it cannot be checked.
        task: the row's task, if the table has tasks.
    """

    check: str
    row: str
    column: str
    claimed: str
    true: str
    verdict: Verdict
    severity: Severity = "none"
    how: str = ""
    needed: str = ""
    task: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What it is about; the same under every reading of the digits."""
        return self.check, self.task, self.row, self.column

    @property
    def cell(self) -> str:
        """``ORPO, p``"""
        row = f"{self.row} ({self.task})" if self.task and self.row else self.row
        return ", ".join(part for part in (row, self.column) if part) or "table"

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Fact:
    """What the table implies, whether or not anybody claims it.

    Attributes:
        name: ``power``, ``test``, ...
        text: one sentence.
        values: its numbers.
    """

    name: str
    text: str
    values: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def judge(printed: Printed, face: float | None, found: Range) -> Verdict:
    """A printed number against the range that its inputs allow; ``face``: what they give as they stand."""
    slack = 1e-9 * max(1.0, abs(printed.value))
    if printed.below:
        return "holds" if found[0] < printed.value else "does not hold"
    if found[1] < printed.low - slack or found[0] > printed.high + slack:
        return "does not hold"
    same = face is not None and printed.low - slack <= face <= printed.high + slack
    return "holds" if same else "within rounding"


def show(found: Range, decimals: int) -> str:
    """A range with one digit more than was printed: ``0.0130 to 0.0135``."""
    low, high = (number(end, decimals + 1) for end in found)
    return low if low == high else f"{low} to {high}"


def number(value: float, decimals: int = 2) -> str:
    """Fixed digits; four significant ones where those would show nothing."""
    if not math.isfinite(value):
        return "unbounded"
    text = f"{value:.{decimals}f}"
    if value and not float(text):
        return f"{value:.2g}"
    return text.lstrip("-") if not float(text) else text


def listing(names: Sequence[str], most: int = 6) -> str:
    """``a, b, c and 4 more``"""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"
