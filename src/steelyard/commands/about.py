"""``steelyard env`` and ``steelyard version``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as distribution_version

from steelyard.commands.parser import Arguments, as_json


def main(verb: str, words: Sequence[str]) -> int:
    """Run one of the verbs."""
    arguments = Arguments(verb, "The machine and the versions." if verb == "env" else "The version.")
    if verb == "env":
        arguments.add("--json", action="store_true", help="print JSON")
    args = arguments.parse(words)
    if verb == "version":
        print(f"steelyard {version()}")
        return 0
    from steelyard.rundir import environment

    facts = {"steelyard": version(), **environment()}
    if args.json:
        print(as_json(facts))
        return 0
    versions = facts.pop("versions")
    for name, value in {**facts, **versions}.items():
        print(f"{name:14}{value if value is not None else '-'}")
    return 0


def version() -> str:
    """The installed version, or ``unknown`` for a source tree that was never installed."""
    try:
        return distribution_version("steelyard")
    except PackageNotFoundError:
        return "unknown (not installed)"
