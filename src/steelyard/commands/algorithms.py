"""``steelyard algorithms``: the catalogue, without importing torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steelyard.commands.parser import Arguments, as_json
from steelyard.errors import ConfigError, unknown

_LEARNS_FROM = {
    "none": "nothing",
    "gold": "gold completions",
    "correct": "its own verified samples",
    "pairs": "preference pairs",
    "prompts": "online samples and a reward",
}


def main(verb: str, words: Sequence[str]) -> int:
    """Run the verb."""
    action, rest = (words[0], words[1:]) if words and not words[0].startswith("--") else ("list", words)
    if action in ("-h", "--help"):
        print("usage: steelyard algorithms [list] [--json]\n       steelyard algorithms show NAME [--json]")
        return 0
    if action == "list":
        return _list(rest)
    if action == "show":
        return _show(rest)
    from steelyard.algorithms.catalogue import load_catalogue

    if action in load_catalogue():
        return _show(words)
    raise ConfigError(unknown("verb or algorithm", action, ["list", "show", *load_catalogue()], where="algorithms"))


def _list(words: Sequence[str]) -> int:
    arguments = Arguments("algorithms list", "Every algorithm that `algorithm.name` may name.")
    arguments.add("--json", action="store_true", help="print the catalogue as JSON")
    args = arguments.parse(words)
    from steelyard.algorithms.catalogue import load_catalogue

    catalogue = load_catalogue()
    if args.json:
        print(as_json(catalogue))
        return 0
    from rich.table import Table

    from steelyard.commands.console import wide_console

    table = Table("name", "family", "learns from", "what", box=None, pad_edge=False)
    for name, entry in catalogue.items():
        table.add_row(name, entry["family"], _LEARNS_FROM[entry["data"]], entry["title"].rstrip("."))
    wide_console().print(table)
    print("\n`steelyard algorithms show NAME` prints the formula, the source and the hyperparameters.")
    return 0


def _show(words: Sequence[str]) -> int:
    arguments = Arguments("algorithms show", "One algorithm: formula, source and hyperparameters.")
    arguments.add("name")
    arguments.add("--json", action="store_true", help="print the catalogue entry as JSON")
    args = arguments.parse(words)
    from steelyard.algorithms.catalogue import describe

    entry = describe(args.name, where="algorithms show")
    if args.json:
        print(as_json({"name": args.name, **entry}))
        return 0
    print(f"{args.name}\n\n{entry['doc'].rstrip()}\n")
    for label, value in _facts(entry):
        print(f"{label:13}{value}")
    print()
    for name, hp in entry["hyperparameters"].items():
        signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
        bounds = " ".join(f"{signs[key]} {bound:g}" for key, bound in hp["bounds"].items())
        kind = "|".join(hp["choices"]) or hp["type"]
        print(f"  --algorithm.{name} {kind} {bounds}".rstrip() + f"  (default {_text(hp['default'])})")
        if hp["help"]:
            print(f"      {hp['help']}")
    return 0


def _facts(entry: dict[str, Any]) -> list[tuple[str, str]]:
    paper = entry["paper"]
    where = f"https://arxiv.org/abs/{paper}" if paper[:4].isdigit() else paper
    facts = [("family", entry["family"]), ("learns from", _LEARNS_FROM[entry["data"]]), ("paper", where)]
    if entry["reference"] != "none":
        facts.append(("reference", f"{entry['reference']} (the policy at step 0)"))
    if entry["advantage"]:
        facts.append(("advantage", entry["advantage"]))
    return facts


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"
