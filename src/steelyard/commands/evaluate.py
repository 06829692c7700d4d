"""``steelyard eval MODEL --tasks A,B``: a run that trains nothing, with per-item records like any other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steelyard.commands.parser import Arguments, names, one_of, plugin_argument, renames, whole
from steelyard.errors import ConfigError


def main(verb: str, words: Sequence[str]) -> int:
    """Run the verb."""
    arguments = Arguments(
        "eval",
        "Evaluate a model: greedy answers, multiple choice by log-likelihood, held-out preferences.",
        epilog="examples:\n"
        "  steelyard eval builtin:0.1m --tasks arithmetic,chains,facts\n"
        "  steelyard eval runs/3f2a.../model --tasks gsm8k:shared/gsm8k --limit 200\n",
    )
    arguments.add("model", help="a model directory, a run directory, or builtin:SIZE")
    arguments.add("--tasks", type=names, default=[], metavar="A,B", help="names, or gsm8k:PATH")
    arguments.add("--preferences", metavar="FILE", help="held-out preference rows (or data:NAME)")
    arguments.add("--quality", metavar="FILE", help="held-out rows (pairs, labels, steps) for a reward model's report")
    arguments.add("--columns", type=renames, default={}, metavar="ours=theirs", help="renames for the rows")
    arguments.add("--split", type=one_of("split", ("selection", "test")), default="test", help="default: test")
    arguments.add("--limit", type=whole, metavar="N", help="items per task at most")
    arguments.add("--max-completion-length", type=whole, default=128, metavar="N", help="tokens; default: 128")
    arguments.add("--dtype", default="float32", help="type of the weights; default: float32")
    arguments.add("--threads", type=whole, default=1, metavar="N", help="default: 1")
    arguments.add("--out", type=Path, metavar="DIR", help="the run directory; default: runs/<id of the run>")
    arguments.add("--cache", type=Path, metavar="DIR", help="inputs that runs share; default: runs/cache")
    arguments.add("--json", action="store_true", help="print run.json")
    plugin_argument(arguments)
    args = arguments.parse(words)
    if not args.tasks and not args.preferences and not args.quality:
        raise ConfigError("eval: name what to measure: --tasks arithmetic,facts, --preferences FILE or --quality FILE")

    from steelyard.plugins import load_plugins

    plugins = load_plugins(args.plugin)
    from steelyard.commands.train import check_run, default_cache, run_and_report
    from steelyard.configfile import load_run_config

    rows = args.preferences or args.quality
    data: dict[str, Any] = {"path": rows} if rows else {"task": "arithmetic"}
    data["columns"] = args.columns
    plain = {
        "model": {"name_or_path": str(model_directory(args.model)), "dtype": args.dtype},
        "algorithm": "base",
        "data": data,
        "eval": {
            "tasks": args.tasks,
            "split": args.split,
            "limit": args.limit,
            "max_completion_length": args.max_completion_length,
            "preference_path": args.preferences,
            "quality_path": args.quality,
        },
        "threads": args.threads,
    }
    config = load_run_config(plain)
    out = args.out or Path("runs") / check_run(config, plugins)[1]
    return run_and_report(config, out, args.cache or default_cache(), plugins, restart=False, json=args.json)


def model_directory(text: str) -> str:
    """``MODEL``, or the final model of a finished run directory."""
    path = Path(text)
    if not (path / "run.json").is_file():
        return text
    from steelyard.rundir import RunDir

    run = RunDir.open(path)
    if not run.finished:
        raise ConfigError(f"{path}: this run is {run.status}, not finished: it has no final model yet")
    if not (path / "model").is_dir():
        raise ConfigError(f"{path}: this run keeps no model (it trained nothing, or its weights were deleted)")
    return str(path / "model")
