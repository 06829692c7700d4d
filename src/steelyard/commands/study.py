"""``steelyard study FILE-or-NAME``, ``steelyard study status DIR``, ``steelyard report DIR``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from steelyard.commands.parser import Arguments, plugin_argument, whole


def main(verb: str, words: Sequence[str]) -> int:
    """Run one of the verbs."""
    if verb == "report":
        return _report(words)
    return _status(words[1:]) if words[:1] == ["status"] else _study(words)


def _study(words: Sequence[str]) -> int:
    arguments = Arguments(
        "study",
        "Run a controlled study, or continue one: finished jobs are never done again.",
        epilog="examples:\n"
        "  steelyard study quick\n"
        "  steelyard study studies/mine.yaml --out runs/mine --workers 4\n"
        "  steelyard study quick --dry-run\n"
        "  steelyard study status runs/quick\n",
    )
    arguments.add("study", metavar="FILE-or-NAME", help="a study file, or the name of one that exists")
    arguments.add("--out", type=Path, metavar="DIR", help="default: runs/<name of the study>")
    arguments.add("--workers", type=whole, metavar="N", help="processes; default: one per core")
    arguments.add("--dry-run", action="store_true", help="print the plan and do nothing")
    plugin_argument(arguments)
    args = arguments.parse(words)

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

    return status_command(args.directory, as_json=args.json)


def _report(words: Sequence[str]) -> int:
    arguments = Arguments("report", "Write a study's report.html and results.json, and print its ranking.")
    arguments.add("directory", type=Path, metavar="DIR", help="the study's directory")
    args = arguments.parse(words)
    from steelyard.report import build
    from steelyard.report.terminal import print_ranking

    page = build(args.directory)
    print_ranking(args.directory)
    print(f"report: {page}")
    return 0
