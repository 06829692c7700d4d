"""``steelyard study FILE-or-NAME``, ``study status DIR``, ``study select DIR``, and ``steelyard report DIR``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from steelyard.commands.parser import Arguments, plugin_argument, whole
from steelyard.commands.places import check_directory, existing_directory


def main(verb: str, words: Sequence[str]) -> int:
    """Run one of the verbs."""
    if verb == "report":
        return _report(words)
    actions = {"status": _status, "select": _select}
    if words and words[0] in actions:
        return actions[words[0]](words[1:])
    return _study(words)


def _study(words: Sequence[str]) -> int:
    arguments = Arguments(
        "study",
        "Run a controlled study, or continue one: finished jobs are never done again.",
        epilog="examples:\n"
        "  steelyard study quick\n"
        "  steelyard study studies/mine.yaml --out runs/mine --workers 4\n"
        "  steelyard study quick --dry-run\n"
        "  steelyard study status runs/quick\n"
        "  steelyard study select runs/quick-select --out studies/quick-select.record.json\n",
    )
    arguments.parser.usage = (
        "steelyard study FILE-or-NAME [--out DIR] [--workers N] [--dry-run] [--plugin FILE]\n"
        "       steelyard study status DIR [--json]\n"
        "       steelyard study select DIR --out FILE [--metric NAME]"
    )
    arguments.add("study", metavar="FILE-or-NAME", help="a study file, or the name of one that exists")
    arguments.add("--out", type=Path, metavar="DIR", help="default: runs/<name of the study>")
    arguments.add("--workers", type=whole, metavar="N", help="processes; default: one per core")
    arguments.add("--dry-run", action="store_true", help="print the plan and do nothing")
    plugin_argument(arguments)
    args = arguments.parse(words)

    if args.out is not None:
        check_directory(args.out, "--out")
    from steelyard.plugins import load_plugins

    load_plugins(args.plugin)  # the study's cells are checked before anything is launched
    from steelyard.study.run import run_study

    return run_study(args.study, args.out, args.workers, args.dry_run, args.plugin).exit_code


def _status(words: Sequence[str]) -> int:
    arguments = Arguments("study status", "How far a study is; works while it runs.")
    arguments.add("directory", type=Path, metavar="DIR", help="the study's directory")
    arguments.add("--json", action="store_true", help="print JSON")
    args = arguments.parse(words)
    from steelyard.study.status import status_command

    return status_command(existing_directory(args.directory), as_json=args.json)


def _select(words: Sequence[str]) -> int:
    arguments = Arguments(
        "study select", "Write what a selection study chose (learning rates) as a record that another study reads."
    )
    arguments.add("directory", type=Path, metavar="DIR", help="the selection study's directory")
    arguments.add(
        "--out", type=Path, required=True, metavar="FILE", help="the record, such as quick-select.record.json"
    )
    arguments.add("--metric", metavar="NAME", help="what to choose by; default: the mean score of the tasks")
    args = arguments.parse(words)
    from steelyard.study.select import select_command

    return select_command(existing_directory(args.directory), args.out, metric=args.metric)


def _report(words: Sequence[str]) -> int:
    arguments = Arguments("report", "Write a study's report.html and results.json, and print its ranking.")
    arguments.add("directory", type=Path, metavar="DIR", help="the study's directory")
    args = arguments.parse(words)
    from steelyard.report import build
    from steelyard.report.terminal import print_ranking

    page = build(existing_directory(args.directory))
    print_ranking(args.directory)
    print(f"report: {page}")
    return 0
