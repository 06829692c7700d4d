"""What a study asks of the trainer, and the trainer's answer.

Planning must not import torch and working must, so the two halves import their modules when they are called.
Workers build the backend themselves from its name (``module:attribute``); tests put their own in its place.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from steelyard.config import RunConfig
from steelyard.plugins import load_plugins

Progress = Callable[[dict[str, Any]], None]

Plugins = Sequence[str]
"""Paths of Python files that register algorithms, rewards or tasks."""


class Stage(Protocol):
    """A shared input of several runs; see :class:`steelyard.trainer.plan.StageSpec`."""

    @property
    def kind(self) -> str: ...
    @property
    def id(self) -> str: ...
    @property
    def deps(self) -> tuple[str, ...]: ...


class Backend(Protocol):
    """Plans in the parent process (no torch), works in the worker processes."""

    def stages(self, config: RunConfig) -> Sequence[Stage]:
        """The shared inputs of a run, dependencies first."""
        ...

    def stage_done(self, stage: Stage, cache: Path) -> bool:
        """Whether the stage's result lies complete under ``cache``."""
        ...

    def identity(self, config: RunConfig, plugins: Mapping[str, str]) -> dict[str, Any]:
        """The run's identity (:func:`steelyard.rundir.run_identity`)."""
        ...

    def prepare(self, plugins: Plugins) -> None:
        """Import everything once, before the first job of a worker."""
        ...

    def run_stage(self, config: RunConfig, kind: str, cache: Path, progress: Progress) -> None:
        """Make one stage."""
        ...

    def execute(
        self, config: RunConfig, out: Path, cache: Path, progress: Progress, plugins: Mapping[str, str]
    ) -> None:
        """Train and evaluate one run into ``out``; continues an unfinished one."""
        ...


TRAINER = "steelyard.study.backend:TrainerBackend"


def load_backend(name: str) -> Backend:
    """Build the backend called ``module:attribute``."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)()


class TrainerBackend:
    """The real one: :mod:`steelyard.trainer`."""

    def stages(self, config: RunConfig) -> Sequence[Stage]:
        """See :func:`steelyard.trainer.plan.plan_stages`."""
        from steelyard.trainer.plan import plan_stages

        return plan_stages(config)

    def stage_done(self, stage: Any, cache: Path) -> bool:
        """A stage's directory is renamed into place when it is complete, with ``stage.json`` in it."""
        return (stage.directory(cache) / "stage.json").is_file()

    def identity(self, config: RunConfig, plugins: Mapping[str, str]) -> dict[str, Any]:
        """See :func:`steelyard.trainer.plan.run_identity_of`."""
        from steelyard.trainer.plan import run_identity_of

        return run_identity_of(config, dict(plugins))

    def prepare(self, plugins: Plugins) -> None:
        """Import torch, the trainer and the plugins; one thread until a job says otherwise."""
        import torch

        torch.set_num_threads(1)
        torch.set_num_interop_threads(1)
        importlib.import_module("steelyard.trainer.run")
        from steelyard.algorithms import load

        load()  # stages look algorithms up, and may come before any run
        load_plugins(plugins)

    def run_stage(self, config: RunConfig, kind: str, cache: Path, progress: Progress) -> None:
        """See :func:`steelyard.trainer.stages.run_stage`."""
        import torch

        from steelyard.trainer.stages import run_stage

        torch.set_num_threads(config.threads)
        run_stage(config, kind, cache, progress)  # type: ignore[arg-type]

    def execute(
        self, config: RunConfig, out: Path, cache: Path, progress: Progress, plugins: Mapping[str, str]
    ) -> None:
        """See :func:`steelyard.trainer.run.execute`."""
        from steelyard.trainer.run import execute

        execute(config, out, cache=cache, progress=progress, plugins=tuple(plugins.items()))
