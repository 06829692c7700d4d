"""Progress of one run on the terminal: a bar with throughput, or a line now and then where there is none."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0
"""Without a terminal, at most one line per phase in this time."""

_SHOWN = ("loss", "reward", "rewards/accuracies", "tokens_per_second")


class RunProgress:
    """Give its :meth:`update` to :func:`steelyard.trainer.run.execute`; use as a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.phase = ""
        self.task: TaskID | None = None
        self.spoken = 0.0

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def update(self, row: dict[str, Any]) -> None:
        """One report: ``phase``, ``step``, ``total``, and whatever was measured."""
        phase, step, total = str(row.get("phase", "")), int(row.get("step") or 0), int(row.get("total") or 0)
        count = f"{step}/{total}" if total else ""
        facts = "  ".join(f"{_short(name)} {_number(row[name])}" for name in _SHOWN if row.get(name) is not None)
        new = phase != self.phase
        if new:
            if self.task is not None:
                before = self.bar.tasks[self.task]
                whole = before.total or 1
                done = f"{whole:.0f}/{whole:.0f}" if before.total else ""
                self.bar.update(self.task, completed=whole, total=whole, count=done)
            self.task = self.bar.add_task(phase, total=total or None, count=count, facts=facts)
            self.phase = phase
        if self.task is not None:
            self.bar.update(self.task, completed=step, total=total or None, count=count, facts=facts)
        if not self.console.is_terminal:
            now = time.monotonic()
            if new or now - self.spoken >= SECONDS_BETWEEN_LINES or (total and step == total):
                self.spoken = now
                self.console.print(f"{phase} {count}  {facts}".rstrip(), highlight=False, markup=False, soft_wrap=True)


def _short(name: str) -> str:
    return {"tokens_per_second": "tok/s", "rewards/accuracies": "accuracy"}.get(name, name)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
