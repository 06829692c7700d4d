"""The public functions of :mod:`steelyard`; the command line is a thin layer over the same calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from steelyard.config import RunConfig
    from steelyard.evals.task import Task
    from steelyard.rundir import RunDir
    from steelyard.stats.analyse import Analysis
    from steelyard.stats.audit import Audit
    from steelyard.types import View


def train(
    recipe: str | Path | Mapping[str, Any] | RunConfig,
    *,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    plugins: Sequence[str | Path] = (),
    resume: bool = True,
    **overrides: Any,
) -> RunDir:
    """Train and evaluate one run; a run that is already finished is returned as it is.

    Args:
        recipe: a YAML file, the name of a recipe (``"dpo"``), plain values, or a config that is already resolved.
        out: the run directory; default ``runs/<id of the run>``.
        cache: inputs that runs share (generated rows, reference log-probabilities); default ``runs/cache``.
        plugins: Python files that register algorithms, rewards or tasks.
        resume: continue an unfinished run; False starts over.
        overrides: top-level keys (``seed=3``), or dotted keys as ``**{"optim.learning_rate": 1e-5}``.

    Returns:
        The run directory, for reading: ``.facts()``, ``.metrics()``, ``.records(task)``.

    Raises:
        SteelyardError: what is wrong, where, and what was expected.
    """
    from steelyard.commands.train import check_run, default_cache
    from steelyard.config import RunConfig
    from steelyard.configfile import find_recipe, load_run_config
    from steelyard.plugins import load_plugins
    from steelyard.trainer.run import execute

    loaded = load_plugins(plugins)
    if isinstance(recipe, str | Path):
        config = load_run_config(find_recipe(recipe), overrides)
    else:
        plain = recipe.model_dump(mode="json") if isinstance(recipe, RunConfig) else recipe
        config = load_run_config(plain, overrides)
    directory = Path(out) if out is not None else Path("runs") / check_run(config, loaded)[1]
    where = Path(cache) if cache is not None else default_cache()
    return execute(config, directory, cache=where, resume=resume, plugins=tuple(loaded))


def evaluate(
    model: str | Path,
    tasks: Sequence[str],
    *,
    split: str = "test",
    limit: int | None = None,
    out: str | Path | None = None,
    **overrides: Any,
) -> RunDir:
    """Evaluate a model on tasks: a run that trains nothing, with per-item records like any other.

    Args:
        model: a model directory, a run directory, or ``builtin:SIZE``.
        tasks: names, or ``gsm8k:PATH``.
        split: ``test`` to report, ``selection`` to choose something.
        limit: items per task at most.
        out: the run directory; default ``runs/<id of the run>``.
        overrides: further keys of the run config.
    """
    from steelyard.commands.evaluate import model_directory

    plain = {
        "model": {"name_or_path": model_directory(str(model))},
        "algorithm": "base",
        "data": {"task": "arithmetic"},
        "eval": {"tasks": list(tasks), "split": split, "limit": limit},
    }
    return train(plain, out=out, **overrides)


def compare(*paths: str | Path, baseline: str | None = None, out: str | Path | None = None) -> Analysis:
    """Compare finished runs or studies; see :func:`steelyard.commands.compare.compare_runs`."""
    from steelyard.commands.compare import compare_runs

    return compare_runs(paths, baseline=baseline, out=Path(out) if out is not None else None)


def audit(table: Any, **settings: Any) -> Audit:
    """Check a published table against its own numbers; see :func:`steelyard.stats.audit.audit`."""
    from steelyard.stats.audit import audit as examine

    return examine(table, **settings)


def loss(
    name: str,
    view: View,
    *,
    state: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
    reduce: bool = False,
    return_state: bool = False,
    progress: float = 0.0,
    **hyperparameters: Any,
) -> Any:
    """The loss of an algorithm on plain numbers, without a model: ``steelyard.loss("dpo", Pairs.from_logps(...))``.

    Args:
        view: a family view of :mod:`steelyard.types`; it is taken as the whole optimizer step.
        state: the running state before this step; default: that of step 0.
        generator: for algorithms that draw random numbers; default: one seeded with 0.
        reduce: return the scalar instead of the terms.
        return_state: also return the running state after this step.
        progress: share of the training that is over, for schedules.
        hyperparameters: override the defaults.

    Returns:
        The terms, ``[b]`` or ``[b, t]`` (a dict of them if the algorithm has several); with ``reduce=True`` a
        scalar; with ``return_state=True`` a pair of either and the next state.
    """
    from steelyard.algorithms import load
    from steelyard.algorithms.catalogue import resolve
    from steelyard.algorithms.core import loss as evaluate_terms

    load()
    return evaluate_terms(
        resolve(name, where="loss"),
        view,
        state=state,
        generator=generator,
        reduce=reduce,
        return_state=return_state,
        progress=progress,
        **hyperparameters,
    )


def task(entry: Task) -> Task:
    """Register a task under its name and return it: ``steelyard.task(Task(name="mine", ...))``."""
    from steelyard.evals.task import tasks

    return tasks.register(entry.name, entry)
