"""What a person sees while a study runs: progress bars on a terminal, one line per finished job elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from steelyard.study.executor import JobState
from steelyard.study.plan import Job, Plan


def rate(tokens_per_second: Any) -> str:
    """``35.2k tok/s``; empty when unknown."""
    if not isinstance(tokens_per_second, (int, float)) or not tokens_per_second > 0:
        return ""
    thousands = tokens_per_second / 1000
    return f"{thousands:.1f}k tok/s" if thousands >= 1 else f"{tokens_per_second:.0f} tok/s"


def clock(seconds: float) -> str:
    """``0.4 s``, ``31 s``, ``3:05``, ``1:02:09``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class StudyDisplay:
    """Shows the jobs of a plan as they run; use as a context manager around the executor."""

    def __init__(self, console: Console, plan: Plan, *, already_done: int) -> None:
        self.console = console
        self.plan = plan
        self.total = len(plan.jobs)
        self.ended_jobs = already_done
        self.begun = time.monotonic()
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=True),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[speed]}", style="dim"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.overall = self.bars.add_task(
            f"[bold]{escape(plan.study.name)}[/]",
            total=self.total,
            completed=already_done,
            count="",
            speed="",
        )
        self.lines: dict[int, TaskID] = {}

    def __enter__(self) -> Self:
        self._count()
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def started(self, worker: int, job: Job) -> None:
        """Worker ``worker`` began ``job``."""
        if worker not in self.lines:
            self.lines[worker] = self.bars.add_task("", total=None, count="", speed="")
            self._count()
        self.bars.reset(
            self.lines[worker],
            description=f"  {escape(job.title)}",
            total=None,
            count="",
            speed="",
            visible=True,
        )

    def progress(self, worker: int, row: dict[str, Any]) -> None:
        """A worker's report: phase, step of total, throughput."""
        step, total = row.get("step"), row.get("total") or None
        phase = str(row.get("phase", ""))
        self.bars.update(
            self.lines[worker],
            completed=step or 0,
            total=total,
            count=f"{phase} {step}/{total}" if total else phase,
            speed=rate(row.get("tokens_per_second")),
        )

    def ended(self, worker: int, job: Job, state: JobState) -> None:
        """Worker ``worker`` finished or gave up ``job``."""
        blocked = len(self.plan.dependents(job.id)) if state.status == "failed" else 0
        self.ended_jobs += 1
        if worker in self.lines:
            self.bars.update(self.lines[worker], visible=False)
        self.bars.update(self.overall, completed=self.ended_jobs)
        self._count()
        took = f"  {clock(state.seconds)}" if state.seconds is not None else ""
        if state.status == "failed":
            others = f"; {blocked} job(s) that need it are blocked" if blocked else ""
            self.note(f"FAILED {job.title}: {state.error} (jobs/{job.name}/error.log){others}")
        elif not self.console.is_terminal:
            self.note(f"[{self.ended_jobs}/{self.total}] {job.title}{took}")

    def note(self, text: str) -> None:
        """One line for the reader, above the bars."""
        self.console.print(escape(text), soft_wrap=True, highlight=False)

    def _count(self) -> None:
        starting = "" if self.lines or self.ended_jobs == self.total else ", starting workers"
        self.bars.update(self.overall, count=f"{self.ended_jobs}/{self.total} jobs{starting}")
