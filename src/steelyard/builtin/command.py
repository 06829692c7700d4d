"""What ``steelyard builtin`` runs: list the ladder, train one of its sizes."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from steelyard.builtin import ladder
from steelyard.builtin.tasks import SIZES
from steelyard.errors import ModelError
from steelyard.evals.task import tasks


def list_command() -> None:
    """Print the ladder and the built-in tasks."""
    sizes = Table("size", "hidden", "layers", "heads", "weights", title="Ladder")
    for size, shape in ladder.LADDER.items():
        heads = f"{shape.hidden // ladder.HEAD_DIM} x {ladder.HEAD_DIM}"
        weights = "shipped" if size in ladder.shipped() else "to be trained"
        sizes.add_row(f"builtin:{size}", str(shape.hidden), str(shape.layers), heads, weights)
    listed = Table("task", "role", "train", "selection", "test", "what it asks", title="Tasks")
    for name, counts in SIZES.items():
        task = tasks.get(name)
        listed.add_row(name, task.role, *(str(count) for count in counts.values()), task.description)
    console = Console()
    console.print(sizes)
    console.print(listed)
    console.print("Train a base: steelyard builtin train --size SIZE --out DIR", highlight=False)


def train_command(size: str, out: Path, seed: int = 0, threads: int = 1, steps: int | None = None) -> None:
    """Pretrain the base of ``size`` into the directory ``out`` and print what it can do.

    Raises:
        ModelError: unknown size, or ``out`` exists and is not an empty directory.
    """
    ladder.shape(size)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out} exists already; name a new directory for the base")
    # Torch takes seconds to import: only after the arguments are known to be good.
    from transformers.utils import logging as transformers_logging

    from steelyard.builtin import measure, pretrain
    from steelyard.rundir import sha256_file

    transformers_logging.disable_progress_bar()  # one bar is enough
    steps = pretrain.STEPS if steps is None else steps
    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
    )
    with Progress(*columns, console=console) as bar:
        job = bar.add_task(f"pretraining {size}", total=steps, loss=float("nan"))
        pretrain.train(
            size,
            out,
            seed=seed,
            steps=steps,
            threads=threads,
            progress=lambda done, loss: bar.update(job, completed=done, loss=loss),
        )
    console.print(f"{out}: model.safetensors has sha256", sha256_file(out / "model.safetensors"), soft_wrap=True)
    found = Table("selection split", "accuracy")
    for name, value in measure.measure(out).items():
        found.add_row(name, f"{value:.3f}")
    console.print(found)
