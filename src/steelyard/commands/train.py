"""``steelyard train RECIPE [--section.key VALUE ...]``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steelyard.commands.parser import Arguments, as_json, plugin_argument
from steelyard.errors import ConfigError, DataError

EXAMPLES = """\
  steelyard train recipes/dpo.yaml
  steelyard train recipes/dpo.yaml --optim.learning_rate 1e-5 --seed 3 --dry-run
  steelyard train recipes/dpo.yaml --algorithm.name kto
  steelyard train recipes/dpo.yaml --help        every setting, with its value in this recipe
"""


def default_cache() -> Path:
    """Where inputs are kept that runs share: ``$STEELYARD_CACHE_DIR``, or ``runs/cache``."""
    return Path(os.environ.get("STEELYARD_CACHE_DIR") or Path("runs") / "cache")


def _arguments() -> Arguments:
    arguments = Arguments(
        "train", "Train one model as a recipe says, and evaluate it.", config=True, epilog=f"examples:\n{EXAMPLES}"
    )
    arguments.add("recipe", nargs="*", help="YAML files, or names of recipes; later ones override, flags override all")
    arguments.add("--config", action="append", default=[], metavar="FILE", help="the same as RECIPE")
    arguments.add("--out", type=Path, metavar="DIR", help="the run directory; default: runs/<id of the run>")
    arguments.add("--cache", type=Path, metavar="DIR", help="inputs that runs share; default: runs/cache")
    arguments.add("--restart", action="store_true", help="start over instead of continuing an unfinished run")
    arguments.add("--dry-run", action="store_true", help="print the resolved config and do nothing")
    arguments.add("--json", action="store_true", help="print run.json (or the resolved config) as JSON")
    plugin_argument(arguments)
    return arguments


def main(verb: str, words: Sequence[str]) -> int:
    """Run the verb."""
    arguments = _arguments()
    if "-h" in words or "--help" in words:
        return _help(arguments, [word for word in words if word not in ("-h", "--help")])
    args = arguments.parse(words)
    from steelyard.configfile import find_recipe, load_run_config

    files = [find_recipe(name) for name in (*args.config, *args.recipe)]
    if not files and not args.overrides:
        raise ConfigError("train: name a recipe, such as recipes/dpo.yaml (see steelyard train --help)")

    from steelyard.plugins import load_plugins

    plugins = load_plugins(args.plugin)
    config = load_run_config(files, args.overrides)
    stages, identity = check_run(config, plugins)
    out = args.out or Path("runs") / identity
    if args.dry_run:
        return _dry_run(config, stages, identity, out, args.json)
    return run_and_report(config, out, args.cache or default_cache(), plugins, restart=args.restart, json=args.json)


def check_run(config: Any, plugins: Sequence[tuple[str, str]]) -> tuple[list[str], str]:
    """Look at everything that a run names (model, data, tasks, rewards) before anything is computed.

    Returns:
        The stages that come before training, and the run's id.
    """
    from steelyard.evals.tasks import get_task
    from steelyard.rewards.core import get_reward
    from steelyard.rundir import run_id
    from steelyard.trainer.plan import plan_stages, run_identity_of

    if config.data.task is not None:
        get_task(config.data.task, where="data.task")
    for name in config.eval.tasks:
        if get_task(name, where="eval.tasks").role == "unseen" and config.eval.split == "selection":
            raise ConfigError(
                f"eval.tasks: task '{name}' is unseen: it may be reported (eval.split: test), not selected on"
            )
    for reward in config.rewards:
        get_reward(reward.name)
    _check_answers(config)
    stages = [stage.kind for stage in plan_stages(config)]
    return stages, run_id(run_identity_of(config, dict(plugins)))


def _check_answers(config: Any) -> None:
    """Online rows of a file need the column that the verifiers compare with."""
    from steelyard.algorithms.catalogue import describe

    verifiers = [r.name for r in config.rewards if r.name in ("answer", "answer_flexible")]
    wanted = verifiers if config.rewards else ["answer"]
    if config.data.path is None or not wanted or not describe(config.algorithm.name)["online"]:
        return
    from steelyard.data.sources import load_table

    table = load_table(config.data)
    if "answer" not in table.columns:
        default = "" if config.rewards else " (the default)"
        raise DataError(
            f"{table.source}: the reward '{wanted[0]}'{default} compares with a column 'answer', which is missing; "
            f"columns: {', '.join(table.columns)}. Rename one with `data.columns`, or name another reward in `rewards`"
        )


def _dry_run(config: Any, stages: list[str], identity: str, out: Path, json: bool) -> int:
    from steelyard.configfile import dump_yaml

    print(as_json(config.model_dump(mode="json")) if json else dump_yaml(config).rstrip())
    steps = " -> ".join([*stages, "train" if config.algorithm.name != "base" else "evaluate"])
    print(f"run {identity}: {steps}; would write to {out}", file=sys.stderr)
    return 0


def run_and_report(
    config: Any, out: Path, cache: Path, plugins: Sequence[tuple[str, str]], *, restart: bool, json: bool
) -> int:
    """Execute one run with a progress bar on stderr, and print what it measured."""
    from rich.console import Console

    from steelyard.commands.places import check_directory
    from steelyard.commands.progress import RunProgress
    from steelyard.commands.quiet import quiet_libraries

    console = Console(stderr=True)
    for flag, place in (("--out", out), ("--cache", cache)):
        check_directory(place, flag)
    quiet_libraries()
    from steelyard.trainer.run import execute

    with RunProgress(console) as progress:
        announced = False

        def update(row: dict[str, Any]) -> None:
            nonlocal announced
            if not announced and (out / "run.json").is_file():  # not before there is something to look at
                announced = True
                console.print(f"run directory: {out}", highlight=False, markup=False, soft_wrap=True)
            if row["phase"] == "resume":
                where = f"continues from step {row['step']} of {row['total']}"
                console.print(where, highlight=False, markup=False, soft_wrap=True)
            else:
                progress.update(row)

        try:
            run = execute(config, out, cache=cache, progress=update, resume=not restart, plugins=tuple(plugins))
        except KeyboardInterrupt as error:
            error.add_note(_going_on(config, out))
            raise
    facts = run.facts()
    if json:
        print(as_json(facts))
    else:
        print_metrics(facts)
        print_quality(run.path)
        for remark in _remarks(facts):
            console.print(f"note: {remark}", highlight=False, markup=False, soft_wrap=True)
        print(f"finished: {run.path}")
    return 0


def _going_on(config: Any, out: Path) -> str:
    """What the same command will do after an interruption."""
    from steelyard.trainer.state import checkpoints

    if config.algorithm.name == "base":  # nothing is trained
        return "the same command starts again"
    if saved := checkpoints(out):
        return f"the same command continues from step {saved[-1][0]}"
    every = config.train.save_steps
    why = f"no checkpoint yet (train.save_steps: {every})" if every else "no checkpoint (train.save_steps is not set)"
    return f"the same command starts the training again, as there is {why}"


def _remarks(facts: Mapping[str, Any]) -> list[str]:
    """What a user must know about a finished run: rows that were lost, an early end, a model that could not be
    packed."""
    remarks = list((facts.get("rows") or {}).get("problems", []))
    if facts.get("ended_early"):
        remarks.append(facts["ended_early"])
    if facts.get("why_not_packed"):
        remarks.append(f"batches were padded, not packed: {facts['why_not_packed']}")
    return remarks


def print_metrics(facts: Mapping[str, Any]) -> None:
    """The evaluation of a run as a table, and what the run cost."""
    from rich.table import Table

    from steelyard.commands.console import wide_console

    by_task: dict[str, dict[str, float]] = {}
    for name, value in (facts.get("metrics") or {}).items():
        task, _, measure = name.removeprefix("eval/").rpartition("/")
        by_task.setdefault(task, {})[measure] = value
    console = wide_console()
    measures = list(dict.fromkeys(measure for values in by_task.values() for measure in values))
    if by_task:
        title = f"{facts.get('algorithm')} on {facts.get('model')}, seed {facts.get('seed')}"
        if facts.get("algorithm") == "base":  # nothing was trained here: the model is all there is to name
            title = str(facts.get("model"))
        table = Table("", title=title, title_justify="left", box=None, pad_edge=False)
        for task in by_task:
            table.add_column(task, justify="right")
        for measure in measures:
            table.add_row(measure, *(_value(values.get(measure)) for values in by_task.values()))
        console.print(table)
    cost = facts.get("cost") or {}
    parts = [f"{cost[key]:,.1f} s {label}" for key, label in _SECONDS.items() if cost.get(key)]
    if cost.get("tokens"):
        parts.append(f"{cost['tokens']:,} tokens trained on")
    if cost.get("generated_tokens"):
        parts.append(f"{cost['generated_tokens']:,} tokens generated")
    if parts:
        print("cost: " + ", ".join(parts))


def print_quality(run: Path) -> None:
    """The quality reports of a run's reward model, where it has some."""
    file = run / "quality.json"
    if not file.is_file():
        return
    import json

    from steelyard.evals.quality import lines

    for name, report in json.loads(file.read_text(encoding="utf-8"))["reports"].items():
        for index, line in enumerate(lines(report)):
            print(f"{name}: {line}" if index == 0 else f"  {line}")


_SECONDS = {"train_seconds": "training", "generate_seconds": "generating", "eval_seconds": "evaluating"}


def _value(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value == int(value) and abs(value) > 1 else f"{value:.3f}"


def _help(arguments: Arguments, words: Sequence[str]) -> int:
    """``--help``: with a recipe its values and its algorithm's hyperparameters, else the defaults."""
    arguments.parser.print_help()
    args = arguments.parse(words)
    from rich.console import Console

    from steelyard.commands.flags import print_flags
    from steelyard.configfile import find_recipe, load_run_config
    from steelyard.plugins import load_plugins

    load_plugins(args.plugin)
    files = [find_recipe(name) for name in (*args.config, *args.recipe)]
    config = load_run_config(files, args.overrides) if files or args.overrides else None
    console = Console()
    print_flags(config, Console(width=min(console.width, 140) if console.is_terminal else 120))
    if config is None:
        print("\nName a recipe before --help to see its values and its algorithm's hyperparameters.")
    return 0
