"""Does a published table hold?  ``steelyard audit`` and :func:`steelyard.audit`.

Checks, each in a room of its own: single rows (:mod:`audit_rows`: possible means and sds, divisors, intervals,
copied runs), rows against the baseline (:mod:`audit_pairs`: differences, p, effect sizes), many comparisons,
equality, selection and power (:mod:`audit_family`), and sentences of the paper (:mod:`audit_claims`).

Nothing here accuses on a guess.  Printed numbers stand for all that round to them; where it is open whether trailing
zeros were lost, what fails under one reading of the digits and holds under the other *cannot be checked*.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steelyard.stats import audit_claims, audit_family, audit_pairs, audit_rows
from steelyard.stats.audit_findings import Fact, Finding, Verdict
from steelyard.stats.audit_table import Document, Reading, Table

VERDICTS: tuple[Verdict, ...] = ("does not hold", "cannot be checked", "within rounding", "holds")
"""Worst first."""


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found.

    Attributes:
        title: of the table, else the file's name.
        source: where it was published.
        findings: everything that was checked or could not be; what does not hold first, serious before minor.
        facts: what the table implies without claiming it (power, detectable differences, conventions).
    """

    title: str
    source: str
    findings: tuple[Finding, ...]
    facts: tuple[Fact, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing fails; what cannot be checked is no failure."""
        return not self.wrong

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """What does not hold."""
        return self.of("does not hold")

    def of(self, verdict: Verdict) -> tuple[Finding, ...]:
        """Findings with this verdict."""
        return tuple(finding for finding in self.findings if finding.verdict == verdict)

    def counts(self) -> dict[str, dict[Verdict, int]]:
        """Findings by check and verdict."""
        found: dict[str, Counter[Verdict]] = {}
        for finding in self.findings:
            found.setdefault(finding.check, Counter())[finding.verdict] += 1
        return {check: {v: count[v] for v in VERDICTS if count[v]} for check, count in found.items()}

    def fact(self, name: str) -> Fact | None:
        """The first fact of that name."""
        return next((fact for fact in self.facts if fact.name == name), None)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "title": self.title,
            "source": self.source,
            "ok": self.ok,
            "counts": self.counts(),
            "findings": [finding.plain() for finding in self.findings],
            "facts": [fact.plain() for fact in self.facts],
        }


def audit(table: Any, **settings: Any) -> Audit:
    """Check everything about a published table that can be checked.

    Args:
        table: a CSV or JSON file, a mapping with ``rows`` (and settings and claims), rows as mappings, or a data
            frame.  Numbers given as text keep their trailing zeros.
        settings: as in a document (``baseline="DPO", n=5, items=500``); they win over the document's.
            :data:`~steelyard.stats.audit_table.SETTINGS` and :data:`~steelyard.stats.audit_table.COLUMNS` list
            everything.

    Raises:
        DataError: an unknown column, setting or claim, or a cell that is not what its column holds.
    """
    document = Document.read(table, settings)
    lossy = document.ambiguous
    first: Reading = "padded" if lossy else "own"
    findings, facts = _examine(document.table(first))
    if lossy and any(finding.verdict == "does not hold" for finding in findings):
        other, _ = _examine(document.table("own"))
        findings = list(_milder(findings, other, lossy))
    if any(finding.verdict == "does not hold" for finding in findings):
        cut, _ = _examine(document.table("cut"))
        findings = list(_hinted(findings, cut))
    rank = {"serious": 0, "minor": 1, "none": 2}
    findings.sort(key=lambda finding: (VERDICTS.index(finding.verdict), rank[finding.severity]))
    title = str(document.settings.get("title") or Path(document.where).name)
    return Audit(title, str(document.settings.get("source") or ""), tuple(findings), tuple(facts))


def _examine(table: Table) -> tuple[list[Finding], list[Fact]]:
    """All checks under one reading of the digits."""
    how = audit_pairs.conventions(table)
    findings = [
        *audit_rows.checks(table, how.ddof),
        *audit_pairs.checks(table, how),
        *audit_family.checks(table, how),
        *audit_claims.checks(table, how),
    ]
    facts = [*audit_rows.facts(table), *audit_pairs.facts(table, how), *audit_family.facts(table, how)]
    return findings, facts


def _milder(findings: list[Finding], other: list[Finding], lossy: list[str]) -> Iterator[Finding]:
    """What fails only if trailing zeros were lost cannot be checked."""
    stands = {finding.key for finding in other if finding.verdict != "does not hold"}
    fails = {finding.key for finding in other if finding.verdict == "does not hold"}
    for finding in findings:
        if finding.verdict == "does not hold" and finding.key in stands - fails:
            needed = f"the printed digits ({', '.join(lossy)}: were trailing zeros lost?), as text or with decimals"
            yield replace(finding, verdict="cannot be checked", severity="none", needed=needed)
        else:
            yield finding


def _hinted(findings: list[Finding], cut: list[Finding]) -> Iterator[Finding]:
    """Say where numbers that were cut off instead of rounded would explain what fails."""
    stands = {finding.key for finding in cut if finding.verdict in ("holds", "within rounding")}
    for finding in findings:
        if finding.verdict == "does not hold" and finding.key in stands:
            how = f"{finding.how}; it would hold if the table's digits were cut off instead of rounded"
            yield replace(finding, how=how.removeprefix("; "))
        else:
            yield finding
