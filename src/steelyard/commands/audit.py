"""``steelyard audit TABLE``: does a published table follow from its own numbers?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from steelyard.commands.parser import Arguments, as_json, names, one_of, renames, whole
from steelyard.errors import ConfigError

if TYPE_CHECKING:
    from steelyard.stats.audit import Audit
    from steelyard.stats.audit_findings import Finding

WRONG = 1
"""Exit code when something does not hold."""

EPILOG = """\
examples:
  steelyard audit table.csv --baseline DPO --n 5 --items 1319
  steelyard audit variants_20.json --header name,class,mean,sd,delta,p,d --n 5
  steelyard audit paper.json --markdown > audit.md

Columns: {columns}.
A JSON document may also hold settings and the claims of the paper; docs/audit.md explains all of it.
Exit code: 0 nothing is wrong, 1 something does not hold (0 with --no-fail), 2 the table cannot be read.
"""


def main(verb: str, words: Sequence[str]) -> int:
    """Run the verb."""
    from steelyard.stats.audit import audit
    from steelyard.stats.audit_table import CHOICES, COLUMNS, SETTINGS

    arguments = Arguments(
        "audit",
        "Check what a published table claims against its own numbers, over their rounding.",
        epilog=EPILOG.format(columns=", ".join(COLUMNS)),
    )
    arguments.add("table", metavar="TABLE", help="a .csv, .tsv or .json file")
    for key in ("header", "ignore"):
        arguments.add(f"--{key}", type=names, metavar="NAME,...", help=SETTINGS[key])
    arguments.add("--columns", type=renames, metavar="OURS=THEIRS,...", help=SETTINGS["columns"])
    arguments.add("--decimals", type=renames, metavar="COLUMN=DIGITS,...", help=SETTINGS["decimals"])
    arguments.add("--baseline", metavar="ROW", help=SETTINGS["baseline"])
    for key in ("n", "items", "samples", "comparisons"):
        arguments.add(f"--{key}", type=whole, metavar="N", help=SETTINGS[key])
    for key in ("unit", "test", "side", "effect", "ddof", "correction", "plus_minus"):
        choices = [str(choice) for choice in CHOICES[key]]
        flag = f"--{key.replace('_', '-')}"
        arguments.add(flag, type=one_of(key, choices), metavar="|".join(choices), help=SETTINGS[key])
    for key in ("alpha", "level", "margin", "threshold", "selected_on", "reported_on"):
        arguments.add(f"--{key.replace('_', '-')}", metavar="X", help=SETTINGS[key])
    arguments.add("--all", action="store_true", help="also list what holds")
    arguments.add("--json", action="store_true", help="print everything as JSON")
    arguments.add("--markdown", action="store_true", help="print everything as Markdown")
    arguments.add("--no-fail", action="store_true", help="exit code 0 even if something does not hold")
    args = arguments.parse(words)
    if args.json and args.markdown:
        raise ConfigError("audit: --json and --markdown exclude each other")
    settings = {key: value for key, value in vars(args).items() if key in SETTINGS}
    found = audit(args.table, **settings)
    if args.json:
        print(as_json(found.plain()))
    elif args.markdown:
        print(markdown(found))
    else:
        _print(found, everything=args.all)
    return 0 if found.ok or args.no_fail else WRONG


# --------------------------------------------------------------------------------------------------
# What is shown


def verdict_line(found: Audit) -> str:
    """One sentence: how much holds."""
    from steelyard.report.numbers import count

    wrong, held = len(found.wrong), len(found.of("holds"))
    rounding, still_open = len(found.of("within rounding")), len(found.of("cannot be checked"))
    return (
        f"{count(wrong, 'finding')} {'does' if wrong == 1 else 'do'} not hold; "
        f"{held} {'holds' if held == 1 else 'hold'}, {rounding} within rounding; {still_open} cannot be checked."
    )


def _why(finding: Finding) -> str:
    """How it was computed, and what is missing."""
    parts = [finding.how, f"needed: {finding.needed}" if finding.needed else ""]
    return "; ".join(part for part in parts if part)


def _print(found: Audit, *, everything: bool) -> None:
    from rich.markup import escape
    from rich.table import Table as Grid

    from steelyard.commands.console import wide_console
    from steelyard.stats.audit import VERDICTS

    console = wide_console()
    styles = {"does not hold": "bold red", "cannot be checked": "yellow"}
    for verdict in VERDICTS:
        findings = found.of(verdict)
        if not findings or not (everything or verdict in styles):
            continue
        grid = Grid(title=verdict, title_justify="left", title_style=styles.get(verdict, "bold"))
        wrong = verdict == "does not hold"
        heads = ["check", "where", "claimed", *([] if verdict == "cannot be checked" else ["true"]), "how"]
        for head in [*heads[:-1], "severity", "how"] if wrong else heads:
            grid.add_column(head, overflow="fold")
        for finding in findings:
            cells = [finding.check, finding.cell, finding.claimed]
            if verdict != "cannot be checked":
                cells.append(finding.true)
            if wrong:
                cells.append(finding.severity)
            why = _why(finding)
            if verdict == "cannot be checked" and finding.true:
                why = f"{finding.true}; {why}"
            grid.add_row(*(escape(cell) for cell in (*cells, why)))
        console.print(grid)
    for fact in found.facts:
        console.print(fact.text, highlight=False, markup=False, soft_wrap=True)
    console.print(verdict_line(found), highlight=False, style="bold", soft_wrap=True)
    if not everything and (found.of("holds") or found.of("within rounding")):
        console.print("--all lists what holds.", highlight=False)


def markdown(found: Audit) -> str:
    """The whole audit as a Markdown page."""
    from steelyard.stats.audit import VERDICTS

    lines = [f"# Audit: {found.title}", ""]
    if found.source:
        lines += [f"Source: {found.source}", ""]
    lines += [verdict_line(found), ""]
    for verdict in VERDICTS:
        findings = found.of(verdict)
        if not findings:
            continue
        wrong = verdict == "does not hold"
        heads = ["check", "where", "claimed", "true", *(["severity"] if wrong else []), "how"]
        lines += [f"## {verdict.capitalize()} ({len(findings)})", "", _line(heads), _line(["---"] * len(heads))]
        for finding in findings:
            cells = [finding.check, finding.cell, finding.claimed, finding.true]
            lines.append(_line([*cells, *([finding.severity] if wrong else []), _why(finding)]))
        lines.append("")
    if found.facts:
        lines += ["## What the table implies", "", *(f"- {fact.text}" for fact in found.facts), ""]
    return "\n".join(lines).rstrip()


def _line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in cells)} |"
