"""Run a plan's missing jobs on local, single-threaded processes.

One process per core, because two multi-threaded tensor processes on shared cores are many times slower than
one single-threaded process each.  Workers live as long as the study (importing torch takes seconds), and get
the ready job with the longest path behind it.  All state that matters is on disk: the parent may be killed at
any time, and the same command continues.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Literal, Protocol

from steelyard.errors import StudyError
from steelyard.rundir import now, source_hash
from steelyard.study.backend import TRAINER, load_backend
from steelyard.study.plan import RUN, Job, Plan, cache_directory, run_directory
from steelyard.study.worker import Order, Setup, read_seconds, write_status

Status = Literal["waiting", "running", "finished", "failed", "blocked"]

ATTEMPTS = 2
"""How often a job is given to a worker when its worker dies under it (a job that raises is not repeated)."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass
class JobState:
    """What became of a job in this session."""

    status: Status = "waiting"
    seconds: float | None = None
    error: str | None = None


class Display(Protocol):
    """What the executor tells whoever watches."""

    def started(self, worker: int, job: Job) -> None: ...
    def progress(self, worker: int, row: dict) -> None: ...
    def ended(self, worker: int, job: Job, state: JobState) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass
class _Process:
    """A worker as the parent sees it."""

    number: int
    process: subprocess.Popen
    connection: Connection
    log: Path
    ready: bool = False
    job: Job | None = None


@dataclass
class Executor:
    """Runs the missing jobs of ``plan`` in ``out``; see :meth:`run`."""

    plan: Plan
    out: Path
    workers: int
    display: Display
    changed: Callable[[dict[str, JobState]], None]
    """Called whenever the status of a job changed (``study.json`` is written from it)."""
    backend: str = TRAINER
    plugins: Sequence[str] = ()
    plugin_hashes: Mapping[str, str] = field(default_factory=dict)
    states: dict[str, JobState] = field(default_factory=dict)
    _attempts: dict[str, int] = field(default_factory=dict)
    _pool: list[_Process] = field(default_factory=list)
    _failed_starts: int = 0

    def run(self) -> dict[str, JobState]:
        """Do what is missing and return the state of every job, by id.

        A job that fails does not stop the others; jobs that need its result are ``blocked``.  However this
        method ends (an exception, Ctrl-C), no worker survives it.

        Raises:
            StudyError: no worker can be started.
        """
        backend = load_backend(self.backend)
        todo = {job.id for job in self.plan.remaining(self.out, backend)}
        self.states = {
            job.id: JobState("waiting")
            if job.id in todo
            else JobState("finished", read_seconds(job.directory(self.out)))
            for job in self.plan.jobs.values()
        }
        self.changed(self.states)
        try:
            if todo:
                self._loop(min(self.workers, len(todo)))
        finally:
            self._stop()
        return self.states

    # -- scheduling

    def _loop(self, workers: int) -> None:
        for number in range(1, workers + 1):
            self._start(number)
        while self._unfinished():
            self._assign()
            for connection in wait([w.connection for w in self._pool]):
                worker = next(w for w in self._pool if w.connection is connection)
                try:
                    message = worker.connection.recv()
                except (EOFError, ConnectionResetError):
                    self._died(worker)
                else:
                    self._handle(worker, message)

    def _unfinished(self) -> bool:
        return any(state.status in ("waiting", "running") for state in self.states.values())

    def _ready(self) -> list[Job]:
        """Waiting jobs whose inputs are there, the longest path first."""
        priority = self.plan.priority
        ready = [
            job
            for job in self.plan.jobs.values()
            if self.states[job.id].status == "waiting"
            and all(self.states[dep].status == "finished" for dep in job.deps)
        ]
        return sorted(ready, key=lambda job: -priority[job.id])  # stable: equal paths in the study's order

    def _assign(self) -> None:
        idle = [worker for worker in self._pool if worker.ready and worker.job is None]
        for worker, job in zip(idle, self._ready(), strict=False):
            self._attempts[job.id] = self._attempts.get(job.id, 0) + 1
            worker.job = job
            with contextlib.suppress(OSError):  # it died while idle: the loop will see that, and put the job back
                worker.connection.send(self._order(job))
            self.states[job.id] = JobState("running")
            self.display.started(worker.number, job)
            self.changed(self.states)

    def _order(self, job: Job) -> Order:
        run = run_directory(self.out, job.id) if job.kind == RUN else None
        return Order(job.id, job.kind, job.title, job.config, job.directory(self.out), run, self._attempts[job.id])

    # -- what workers say

    def _handle(self, worker: _Process, message: tuple) -> None:
        if message[0] == "ready":
            worker.ready, self._failed_starts = True, 0
        elif message[0] == "broken":
            raise StudyError(f"no worker can be started: {message[1]} (see {worker.log})")
        elif message[0] == "progress":
            self.display.progress(worker.number, message[1])
        else:
            status, _, seconds, error = message
            self._end(worker, JobState(status, seconds, error))

    def _end(self, worker: _Process, state: JobState) -> None:
        job, worker.job = worker.job, None
        assert job is not None
        self.states[job.id] = state
        self.display.ended(worker.number, job, state)
        if state.status == "failed":
            for dependent in self.plan.dependents(job.id):
                self.states[dependent] = JobState("blocked", error=f"needs {job.name}, which failed")
        self.changed(self.states)

    def _died(self, worker: _Process) -> None:
        """Its end of the socket closed: put its job back once, then give the job up; start another worker."""
        worker.connection.close()
        code = worker.process.wait()
        self._pool.remove(worker)
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= ATTEMPTS:
                raise StudyError(f"no worker can be started: the process {_ending(code)} (see {worker.log})")
        job = worker.job
        if job is not None:
            error = f"the worker process {_ending(code)}"
            if self._attempts[job.id] < ATTEMPTS:
                self.display.note(f"{job.title}: {error}; trying once more")
                self.states[job.id] = JobState("waiting")
                self.changed(self.states)
            else:
                error += f", {ATTEMPTS} times (out of memory?)"
                write_status(self._order(job), "failed", started=now(), seconds=0.0, error=error)
                self._end(worker, JobState("failed", error=error))
        if self._unfinished():
            self._start(worker.number)

    # -- processes

    def _start(self, number: int) -> None:
        ours, theirs = socket.socketpair()
        log = self.out / "jobs" / f"worker-{number}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        paths = [path or os.getcwd() for path in sys.path]
        environment = {
            **os.environ,
            **{variable: "1" for variable in THREAD_VARIABLES},
            "PYTHONPATH": os.pathsep.join(paths),
            "TOKENIZERS_PARALLELISM": "false",
        }
        command = "from steelyard.study.worker import main; main()"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                pass_fds=[theirs.fileno()],
            )
        theirs.close()
        connection = Connection(ours.detach())
        self._pool.append(_Process(number, process, connection, log))
        paths = tuple(str(Path(plugin).resolve()) for plugin in self.plugins)
        hashes = dict(self.plugin_hashes)
        setup = Setup(self.backend, paths, hashes, cache_directory(self.out), source_hash())
        connection.send(setup)

    def _stop(self) -> None:
        """End all workers at once: what is finished is on disk, what is half-written has a temporary name."""
        for worker in self._pool:
            worker.process.terminate()
        for worker in self._pool:
            try:
                worker.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.connection.close()
        self._pool.clear()


def _ending(code: int) -> str:
    """How a process ended, in words."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


# --------------------------------------------------------------------------------------------------
# Cores


def available_cores() -> int:
    """Physical cores that this process may use: CPU affinity, hyper-threads counted once, container quota."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = {_siblings(cpu) for cpu in allowed}
    quota = _quota()
    return max(1, min(len(siblings), quota if quota is not None else len(siblings)))


def _siblings(cpu: int) -> str:
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    return path.read_text(encoding="ascii").strip() if path.is_file() else str(cpu)


def _quota() -> int | None:
    """Whole CPUs that a container may use (cgroup v2), or None without a limit."""
    path = Path("/sys/fs/cgroup/cpu.max")
    if not path.is_file():
        return None
    limit, _, period = path.read_text(encoding="ascii").strip().partition(" ")
    return None if limit == "max" else max(1, int(limit) // int(period))
