"""A worker process: imports the trainer once, then does one job after another until it is ended.

Started by :mod:`steelyard.study.executor` as ``python -m steelyard.study.worker FD`` with one end of a socket
pair.  Ctrl-C is the parent's business, so the signal is ignored here; when the parent is gone, however it
ended, its end of the socket closes and the worker exits at once.  What a job prints goes to its ``log.txt``.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from steelyard.config import RunConfig
from steelyard.errors import SteelyardError, StudyError
from steelyard.files import atomic_write
from steelyard.rundir import now, source_hash
from steelyard.study.backend import load_backend
from steelyard.study.plan import RUN

PROGRESS_SECONDS = 0.1
"""Progress within one phase is reported at most this often."""


@dataclass(frozen=True)
class Setup:
    """What a worker needs to know once."""

    backend: str
    plugins: tuple[str, ...]
    plugin_hashes: dict[str, str]
    cache: Path
    source: str


@dataclass(frozen=True)
class Order:
    """One job as it is handed to a worker; ``directory`` is the job's, ``run`` the run's (runs only)."""

    id: str
    kind: str
    title: str
    config: RunConfig
    directory: Path
    run: Path | None
    attempt: int


def write_status(order: Order, status: str, *, started: str, seconds: float, error: str | None = None) -> None:
    """Write the job's ``job.json`` atomically: how it ended, and how long it took."""
    row = {
        "id": order.id,
        "kind": order.kind,
        "title": order.title,
        "status": status,
        "attempt": order.attempt,
        "started": started,
        "seconds": round(seconds, 3),
        "error": error,
    }
    atomic_write(order.directory / "job.json", json.dumps(row, indent=2, ensure_ascii=False) + "\n")


def read_seconds(directory: Path) -> float | None:
    """How long a job that finished earlier took, from its ``job.json``; None when that was not recorded."""
    file = directory / "job.json"
    if not file.is_file():
        return None
    row = json.loads(file.read_text(encoding="utf-8"))
    return row["seconds"] if row["status"] == "finished" else None


def one_line(error: BaseException) -> str:
    """An error as one line: a message written for users as it is, anything else with its type."""
    text = " ".join(str(error).split())
    return text if isinstance(error, SteelyardError) else f"{type(error).__name__}: {text}"


class _Worker:
    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.orders: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.last: tuple[float, str] = (0.0, "")

    def listen(self) -> None:
        """Receive in a thread of its own, so that the parent's end is noticed in the middle of a job."""
        while True:
            try:
                self.orders.put(self.connection.recv())
            except (EOFError, OSError):
                os._exit(1)  # the parent is gone; what is half-written has a temporary name

    def work(self) -> None:
        setup: Setup = self.orders.get()
        try:
            if source_hash() != setup.source:
                raise StudyError("the source of steelyard changed since the study was planned; start it again")
            backend = load_backend(setup.backend)
            backend.prepare(setup.plugins)
        except Exception as error:
            self._send(("broken", one_line(error)))
            raise  # the traceback goes to the worker's log
        self._send(("ready",))
        while True:
            self._do(self.orders.get(), setup, backend)

    def _do(self, order: Order, setup: Setup, backend: Any) -> None:
        gc.collect()  # a job's memory is not charged to the next
        order.directory.mkdir(parents=True, exist_ok=True)
        started, before = now(), time.perf_counter()
        problem = order.directory / "error.log"
        try:
            with _output_to(order.directory / "log.txt"):
                if order.kind == RUN:
                    assert order.run is not None
                    backend.execute(order.config, order.run, setup.cache, self._progress, setup.plugin_hashes)
                else:
                    backend.run_stage(order.config, order.kind, setup.cache, self._progress)
        except Exception as error:  # whatever a job raises is that job's failure, reported with its traceback
            seconds = time.perf_counter() - before
            atomic_write(problem, traceback.format_exc())
            write_status(order, "failed", started=started, seconds=seconds, error=one_line(error))
            self._send(("failed", order.id, seconds, one_line(error)))
            return
        seconds = time.perf_counter() - before
        problem.unlink(missing_ok=True)
        write_status(order, "finished", started=started, seconds=seconds)
        self._send(("finished", order.id, seconds, None))

    def _send(self, message: tuple[Any, ...]) -> None:
        try:
            self.connection.send(message)
        except OSError:
            os._exit(1)  # the parent is gone, see listen(); this is not the job's failure

    def _progress(self, row: dict[str, Any]) -> None:
        moment, phase = time.monotonic(), str(row.get("phase", ""))
        if phase != self.last[1] or moment - self.last[0] >= PROGRESS_SECONDS:
            self.last = (moment, phase)
            self._send(("progress", row))


@contextmanager
def _output_to(path: Path) -> Any:
    """Send everything that this process prints (C libraries included) to ``path``."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, copy in enumerate(saved, start=1):
            os.dup2(copy, stream)
            os.close(copy)


def main() -> None:
    """Entry point of the worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = _Worker(Connection(int(sys.argv[1])))
    threading.Thread(target=worker.listen, daemon=True).start()
    worker.work()


if __name__ == "__main__":
    main()
