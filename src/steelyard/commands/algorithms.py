"""``steelyard algorithms``: the catalogue without importing torch, oxRL's names, and the battery for your own loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steelyard.commands.parser import Arguments, as_json, plugin_argument
from steelyard.errors import ConfigError, unknown

USAGE = """\
usage: steelyard algorithms [list] [--family NAME] [--json]
       steelyard algorithms [show] NAME [--json]
       steelyard algorithms --oxrl [--json]
       steelyard algorithms conform FILE-or-NAME [--json]
all of them take --plugin FILE, which makes your own algorithms known"""


def main(verb: str, words: Sequence[str]) -> int:
    """Run the verb."""
    action, rest = (words[0], words[1:]) if words and not words[0].startswith("-") else ("list", words)
    if action == "list" and {"-h", "--help"} & set(rest):
        print(USAGE)
        return 0
    actions = {"list": _list, "show": _show, "conform": _conform}
    if action in actions:
        return actions[action](rest)
    if action.endswith(".py"):
        raise ConfigError(f"algorithms: to check a file, say `steelyard algorithms conform {action}`")
    _plugins(rest)
    from steelyard.algorithms.catalogue import OF_YOUR_OWN, load_catalogue, resolve

    try:
        resolve(action)
    except ConfigError as error:
        if "not built" in str(error):
            raise
        names = [*actions, *load_catalogue()]
        words_of = unknown("verb or algorithm", action, names, where="algorithms")
        raise ConfigError(f"{words_of} {OF_YOUR_OWN}") from None
    return _show(words)


def _plugins(words: Sequence[str]) -> None:
    """Load the plugins that ``words`` name, before a name is looked up."""
    from steelyard.plugins import load_plugins

    given = [word.partition("=")[2] for word in words if word.startswith("--plugin=")]
    load_plugins([*given, *(b for a, b in zip(words, words[1:], strict=False) if a == "--plugin")])


def _list(words: Sequence[str]) -> int:
    arguments = Arguments("algorithms list", "Every algorithm that `algorithm.name` may name.")
    arguments.add("--family", metavar="NAME", help="only one family, such as listwise or reward-model")
    arguments.add("--oxrl", action="store_true", help="oxRL's 51 names and what each of them is here")
    arguments.add("--json", action="store_true", help="print the catalogue as JSON")
    plugin_argument(arguments)
    args = arguments.parse(words)
    if args.oxrl:
        return _oxrl(args.json)
    _plugins(words)
    from steelyard.algorithms.catalogue import entries, installed
    from steelyard.algorithms.facts import GROUPS, group_of, learns_from

    found = {name: entry for name, entry in entries().items() if _in_family(entry, args.family)}
    if args.json:
        print(as_json({name: {**entry, "verification": _verification(name, entry)} for name, entry in found.items()}))
        return 0
    from rich.table import Table

    from steelyard.commands.console import wide_console

    console = wide_console()
    for group, title in GROUPS.items():
        rows = [(name, entry) for name, entry in found.items() if group_of(entry) == group]
        if not rows:
            continue
        table = Table("name", "learns from", "status", "what", box=None, pad_edge=False)
        for name, entry in rows:
            status = (_verification(name, entry) or {"status": ""})["status"]
            table.add_row(name, learns_from(entry), status, entry["title"].rstrip("."))
        console.print(f"[bold]{title}[/] ({group})", highlight=False)
        console.print(table)
        console.print()
    for name, place in installed().items():
        print(f"installed: {name} ({place})")
    print("`steelyard algorithms NAME` prints the formula, the paper, what it needs and how it is verified.")
    return 0


def _verification(name: str, entry: dict[str, Any]) -> dict[str, Any] | None:
    """The status and its evidence; None for what the package does not verify (the start, and plugins)."""
    from steelyard.algorithms.facts import verification_of

    return verification_of(name) if entry["module"] else None


def _in_family(entry: dict[str, Any], wanted: str | None) -> bool:
    """Whether an entry belongs to a family, by its name (listwise) or its view's (Ranked)."""
    from steelyard.algorithms.catalogue import load_catalogue
    from steelyard.algorithms.facts import GROUPS, group_of

    views = {e["family"]: e["family"] for e in load_catalogue().values()}
    names = {name.lower(): name for name in (*views, *GROUPS)}
    if wanted is None:
        return True
    if wanted.lower() not in names:
        raise ConfigError(unknown("family", wanted, [*GROUPS, *views], where="--family"))
    return names[wanted.lower()] in (entry["family"], group_of(entry))


def _oxrl(json: bool) -> int:
    from steelyard.algorithms.catalogue import load_catalogue
    from steelyard.algorithms.oxrl import ALIASES, PROFILES

    known = load_catalogue()
    rows = [
        {
            "name": alias.name,
            "key": alias.key,
            "related": list(alias.related),
            "built": alias.key in known,
            "oxrl": alias.remark,
            "profile": dict(PROFILES["oxrl"].get(alias.key, {})),
        }
        for alias in ALIASES.values()
    ]
    if json:
        print(as_json(rows))
        return 0
    from rich.table import Table

    from steelyard.commands.console import wide_console

    table = Table("oxRL", "here", "what oxRL computes instead, or sets otherwise", box=None, pad_edge=False)
    for row in rows:
        key = row["key"] + ("" if row["built"] else " (not built yet)")
        table.add_row(row["name"], key, row["oxrl"] or "the same")
    wide_console().print(table)
    print("\nThese names are understood wherever an algorithm is named, in any case, with or without - and _.")
    print("Keys are read as themselves: `bco`, `exo` and `nca` are not oxRL's BCO, EXO and NCA.")
    return 0


def _show(words: Sequence[str]) -> int:
    arguments = Arguments("algorithms show", "One algorithm: formula, source, needs, hyperparameters, verification.")
    arguments.add("name")
    arguments.add("--json", action="store_true", help="print the catalogue entry as JSON")
    plugin_argument(arguments)
    args = arguments.parse(words)
    _plugins(words)
    import sys

    from steelyard.algorithms import oxrl
    from steelyard.algorithms.catalogue import describe, resolve

    key = resolve(args.name, where="algorithms show")
    entry = describe(key)
    if key != args.name:
        print(f"note: {oxrl.note(args.name, key)}", file=sys.stderr)
    if args.json:
        print(as_json({"name": key, **entry, "verification": _verification(key, entry)}))
        return 0
    _print(key, entry, _verification(key, entry))
    return 0


def _print(key: str, entry: dict[str, Any], verification: dict[str, Any] | None) -> None:
    from steelyard.algorithms.facts import GROUPS, SAME_LOSS, group_of, needs, paper_link, range_of, recipe_of, shown

    print(f"{key}: {entry['title']}\n\n{entry['about'] or entry['doc'].rstrip()}\n")
    if key in SAME_LOSS:
        other, difference = SAME_LOSS[key]
        print(f"The loss is that of {other}, {difference}.\n")
    facts = [("family", f"{GROUPS[group_of(entry)].lower()} ({entry['family']})")]
    facts += [("paper", paper_link(entry["paper"])), *needs(entry)]
    if recipe := recipe_of(key):
        facts.append(("recipe", recipe))
    for label, value in facts:
        print(f"{label:13}{value}")
    print()
    for name, hp in entry["hyperparameters"].items():
        print(f"  --algorithm.{name} {range_of(hp)}  (default {shown(hp['default'])})")
        if hp["help"]:
            print(f"      {hp['help']}")
    for title, text in (("watch", entry["watch"]), ("differs", entry["differs"])):
        if text:
            print(f"\n{title}: {text}")
    if verification is not None:
        check = f": {verification['check']}" if verification.get("check") else ""
        print(f"\n{verification['status']}{check}")
        for name, cell in verification["evidence"].items():
            print(f"  {'yes' if cell['ok'] else 'no':4}{name:13}{cell['why']}")


# --------------------------------------------------------------------------------------------------
# The battery


def _conform(words: Sequence[str]) -> int:
    arguments = Arguments(
        "algorithms conform",
        "Does a loss keep what is promised of every algorithm? Exit code 1 if something does not hold.",
        epilog="A file may say what a method does not do by its theory:\n"
        '  EXCEPTIONS = {"my_algorithm": {"direction": "past its target the loss rises again"}}\n',
    )
    arguments.add("what", metavar="FILE-or-NAME", help="a Python file with algorithms, or the name of one")
    arguments.add("--json", action="store_true", help="print JSON")
    plugin_argument(arguments)
    args = arguments.parse(words)
    from steelyard.algorithms import load
    from steelyard.algorithms.catalogue import resolve
    from steelyard.algorithms.core import algorithms
    from steelyard.algorithms.facts import verification_of
    from steelyard.conform import conform, variations
    from steelyard.plugins import exceptions_of, load_plugins

    load()
    load_plugins(args.plugin)
    exceptions: dict[str, dict[str, str]] = {}
    if args.what.endswith(".py"):
        load_plugins([args.what])
        names, exceptions = exceptions_of(args.what)
        if not names:
            raise ConfigError(f"{args.what}: registers no algorithm (decorate a function with `@steelyard.algorithm`)")
    else:
        names = [resolve(args.what, where="algorithms conform")]
        exceptions = {name: verification_of(name).get("exceptions", {}) for name in names}
        exceptions = {name: {k: v for k, v in given.items() if k != "neutral"} for name, given in exceptions.items()}
    found = {}
    for name in names:
        spec = algorithms.get(name)
        if spec.loss is None:
            raise ConfigError(f"'{name}' has no loss: it is the untrained start")
        found[name] = conform(spec, settings=variations(spec), exceptions=exceptions.get(name))
    if args.json:
        print(as_json({name: [_plain(result) for result in results] for name, results in found.items()}))
    else:
        for name, results in found.items():
            _print_results(name, results)
    return int(any(result.verdict == "fails" for results in found.values() for result in results))


def _plain(result: Any) -> dict[str, Any]:
    return {
        "check": result.check.name,
        "promise": result.check.promise,
        "verdict": result.verdict,
        "why": result.why,
        "setting": dict(result.setting or {}),
    }


def _print_results(name: str, results: Sequence[Any]) -> None:
    failed = [result for result in results if result.verdict == "fails"]
    print(f"{name}: {len(failed)} of {len(results)} checks fail" if failed else f"{name}: nothing fails")
    alike: dict[str, list[Any]] = {}
    for result in failed:
        alike.setdefault(_why(result), []).append(result)
    for result in results:
        together = alike.get(_why(result), [result])
        if result.verdict != "fails" or len(together) == 1:
            print(f"  {result.verdict:15}{result.check.name:12}{result.check.promise}")
        elif result is together[0]:  # one cause: said once
            print(f"  {result.verdict:15}{len(together)} checks: {', '.join(r.check.name for r in together)}")
        else:
            continue
        if result.why:
            print(f"{'':29}{_why(result)}")


def _why(result: Any) -> str:
    at = ", ".join(f"{key}={value}" for key, value in (result.setting or {}).items())
    return f"{f'at {at}: ' if at else ''}{result.why}"
