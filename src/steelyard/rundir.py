"""A run's directory: complete, written atomically, immutable once finished.

::

    <run>/
      run.json              status, identity, hashes, final metrics, cost; rewritten as the very last act
      config.resolved.yaml  every key with its value
      env.json              machine and versions of the latest attempt
      metrics.jsonl         one row per logged step, each with ``global_step``
      eval/<task>.jsonl     one row per evaluated item
      quality.json          reports on a reward model
      rounds/               what iterative methods sampled and trained on (steelyard.trainer.rounds)
      logs/attempt_<n>.json when, where and on what the n-th attempt ran, and how it ended
      checkpoint-<step>/    Hugging Face directory + trainer state
      model/                the final model

A run is named by the hash of everything that may change its numbers (:func:`run_identity`), never by where
it is written or by how many processes worked beside it.  This module imports no torch: planning a study and
reading its evidence are instant.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import yaml

from steelyard.config import RunConfig
from steelyard.errors import RunError
from steelyard.files import (
    Lock,
    atomic_directory,
    atomic_write,
    canonical_json,
    json_line,
    plain_json,
    read_jsonl,
    remove_stale_temporaries,
    sha256_file,
    sha256_json,
)

__all__ = [
    "RunDir",
    "atomic_directory",
    "atomic_write",
    "canonical_json",
    "environment",
    "git_revision",
    "now",
    "peak_memory_mib",
    "plain_json",
    "read_jsonl",
    "reset_peak_memory",
    "run_id",
    "run_identity",
    "sha256_file",
    "sha256_json",
    "source_hash",
]

SCHEMA = 1
"""Version of the layout above, written into ``run.json``."""

HASHED_PACKAGES = ("data", "models", "algorithms", "trainer", "rollout", "rewards", "evals", "builtin")
"""Sub-packages whose source is part of a run's identity (:func:`source_hash`)."""

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "peft", "numpy", "scipy", "steelyard")
"""Distributions whose versions :func:`environment` records."""

_RECORD_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")


# --------------------------------------------------------------------------------------------------
# Identity


@cache
def source_hash() -> str:
    """SHA-256 over the source that computes a run's numbers: :data:`HASHED_PACKAGES` and ``types.py``.

    Counts every ``.py`` file and the algorithm catalogue; shipped weights have their own hash.  Read once per
    process, so it describes the code that the process has loaded.
    """
    root = Path(__file__).parent
    files = [root / "types.py", root / "algorithms" / "catalogue.json"]
    for package in HASHED_PACKAGES:
        files += (root / package).rglob("*.py")
    digest = {f.relative_to(root).as_posix(): sha256_file(f) for f in files if f.is_file()}
    return sha256_json(digest)


def run_identity(
    config: RunConfig, *, data: Mapping[str, str], weights: str, plugins: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Everything that may change a run's numbers, as plain JSON.

    Args:
        config: the resolved config; seed and threads are part of it.
        data: content hash of every input file, by the dotted key that names the file (``data.path``,
            ``eval.preference_path``, ``model.tokenizer``); the key's path is then left out, because the
            same bytes elsewhere are the same data.  Other names (generated rows) are allowed.
        weights: hash of the starting weights (or of their shape, when they are drawn from the seed); stands
            for ``model.name_or_path``.
        plugins: source hash of every plugin module by name.

    Raises:
        RunError: ``weights`` is empty.
    """
    if not weights:
        raise RunError("a run's identity needs the hash of the weights that it starts from")
    plain = config.model_dump(mode="json")
    plain["model"]["name_or_path"] = None
    for key in data:
        section, _, name = key.partition(".")
        if isinstance(plain.get(section), dict) and name in plain[section]:
            plain[section][name] = None
    return {
        "config": plain,
        "data": dict(sorted(data.items())),
        "weights": weights,
        "plugins": dict(sorted((plugins or {}).items())),
        "source": source_hash(),
    }


def run_id(identity: Mapping[str, Any]) -> str:
    """The run's name: the first 16 hex digits of the identity's SHA-256."""
    return sha256_json(identity)[:16]


# --------------------------------------------------------------------------------------------------
# The machine


def environment() -> dict[str, Any]:
    """What a reader needs to judge whether bit-exact repetition can be expected; imports nothing heavy."""
    versions: dict[str, str | None] = {}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": {k: os.environ[k] for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if k in os.environ},
        "versions": versions,
        "git": git_revision(),
        "source": source_hash(),
    }


@cache
def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def git_revision() -> str | None:
    """Commit of the source tree this package runs from (``+dirty`` with local changes); None outside git."""
    package = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(package), *words], capture_output=True, text=True, check=True, timeout=20
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "rundir.py")  # an installed copy may lie inside another repository
        return git("rev-parse", "HEAD") + ("+dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def reset_peak_memory() -> bool:
    """Start measuring :func:`peak_memory_mib` anew (Linux); False where the system cannot.

    A study's workers run many jobs in one process, so each job resets the mark first.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_memory_mib() -> float:
    """Largest resident memory in MiB of this process since :func:`reset_peak_memory`, or since its start."""
    status = Path("/proc/self/status")
    if status.is_file():
        match = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii"), re.MULTILINE)
        if match:
            return int(match[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def now() -> str:
    """The current time, UTC, ISO 8601 with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


# --------------------------------------------------------------------------------------------------
# The run directory


class RunDir:
    """One run.  :meth:`create` opens it for writing (and holds its lock), :meth:`open` for reading."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = Lock(self.path / "lock")
        self._metrics: int | None = None

    def __repr__(self) -> str:
        known = (self.path / "run.json").is_file()
        return f"RunDir('{self.path}'{f', {self.status}' if known else ''})"

    # -- opening

    @classmethod
    def create(
        cls,
        path: str | Path,
        config: RunConfig,
        identity: Mapping[str, Any],
        *,
        resume: bool = True,
        **facts: Any,
    ) -> Self:
        """Start a run in ``path``, or continue one of the same identity that did not finish.

        Continuing keeps checkpoints and metrics (call :meth:`truncate_metrics` with the step that is
        resumed); ``resume=False`` throws them away.  ``facts`` go into ``run.json`` (family, given, ...).

        Raises:
            RunError: the run is finished (immutable), belongs to another identity, or is being written.
        """
        run = cls(path)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{run.path}: no run directory can be made here ({error.strerror})") from error
        run._lock.acquire("run")
        try:
            run._begin(config, dict(identity), resume=resume, facts=facts)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open an existing run for reading; raises :class:`RunError` when ``path`` holds no run."""
        run = cls(path)
        if not (run.path / "run.json").is_file():
            raise RunError(f"{run.path}: not a run directory (it has no run.json)")
        return run

    def _begin(self, config: RunConfig, identity: dict[str, Any], *, resume: bool, facts: dict[str, Any]) -> None:
        name = run_id(identity)
        previous = self.facts() if (self.path / "run.json").is_file() else None
        if previous is not None:
            if previous["status"] == "finished":
                raise RunError(f"{self.path}: run {previous['id']} is finished; finished runs never change")
            if previous["id"] != name:
                raise RunError(
                    f"{self.path}: holds the unfinished run {previous['id']}, not {name}; "
                    "its config, data, weights or code differ: choose another directory"
                )
        remove_stale_temporaries(self.path)
        if not resume:
            self._discard_results()
        attempt = 1 if previous is None else previous["attempts"] + 1
        machine = environment()
        resolved = config.model_dump(mode="json")
        atomic_write(self.path / "config.resolved.yaml", yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
        atomic_write(self.path / "env.json", json.dumps(machine, indent=2) + "\n")
        started = now()
        self._attempt = {
            "attempt": attempt,
            "started": started,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        self._attempt["environment"] = machine
        self._write_attempt("running")
        self._write_facts(
            {
                "schema": SCHEMA,
                "id": name,
                "status": "running",
                "algorithm": config.algorithm.name,
                "model": config.model.name_or_path,
                "seed": config.seed,
                **facts,
                "identity": identity,
                "attempts": attempt,
                "started": started if previous is None else previous["started"],
                "finished": None,
                "error": None,
            }
        )

    def _discard_results(self) -> None:
        for name in ("metrics.jsonl", "quality.json", "eval", "model", "rounds", *(c.name for c in self.checkpoints())):
            target = self.path / name
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock and the metrics file; the run stays as it is."""
        if self._metrics is not None:
            os.close(self._metrics)
            self._metrics = None
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- writing

    def _writable(self) -> None:
        if not self._lock.held:
            raise RunError(f"{self.path}: this run is open for reading only")

    def _write_facts(self, facts: Mapping[str, Any]) -> None:
        text = json.dumps(plain_json(facts), indent=2, ensure_ascii=False, allow_nan=False)
        atomic_write(self.path / "run.json", text + "\n")

    def _write_attempt(self, status: str, error: str | None = None) -> None:
        row = {
            **self._attempt,
            "status": status,
            "ended": None if status == "running" else now(),
            "error": error,
        }
        atomic_write(self.path / "logs" / f"attempt_{row['attempt']}.json", json.dumps(row, indent=2) + "\n")

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row to ``metrics.jsonl``; it must carry ``global_step``.  Reaches the disk at once."""
        self._writable()
        if "global_step" not in row:
            raise RunError(f"{self.path}: a metrics row has no 'global_step' (it has {', '.join(row)})")
        if self._metrics is None:
            self._metrics = os.open(self.path / "metrics.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(self._metrics, json_line(row).encode("utf-8"))

    def truncate_metrics(self, step: int) -> None:
        """Drop rows with ``global_step > step`` and a torn last line: what the checkpoint of ``step`` saw."""
        self._writable()
        if self._metrics is not None:
            os.close(self._metrics)
            self._metrics = None
        if (self.path / "metrics.jsonl").is_file():
            kept = [row for row in self.metrics() if row["global_step"] <= step]
            atomic_write(self.path / "metrics.jsonl", "".join(json_line(row) for row in kept))

    def write_records(self, task: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the per-item records of ``task`` to ``eval/<task>.jsonl``."""
        self._writable()
        if not _RECORD_NAME.match(task):
            raise RunError(f"{self.path}: '{task}' cannot name a file of records (use A-Z a-z 0-9 . _ -)")
        atomic_write(self.path / "eval" / f"{task}.jsonl", "".join(json_line(row) for row in rows))

    def write_json(self, name: str, obj: Any) -> None:
        """Write ``obj`` to ``<name>`` (``.json`` is added when missing)."""
        self._writable()
        name = name if name.endswith(".json") else f"{name}.json"
        if name == "run.json":
            raise RunError(f"{self.path}: run.json is written by finish() and fail() only")
        text = json.dumps(plain_json(obj), indent=2, ensure_ascii=False, allow_nan=False)
        atomic_write(self.path / name, text + "\n")

    def update(self, **facts: Any) -> None:
        """Add facts to ``run.json`` while the run goes on (steps so far, cost so far)."""
        self._writable()
        self._write_facts({**self.facts(), **facts})

    def finish(self, **facts: Any) -> None:
        """Mark the run finished, as the last write of all, and release it; from here on it never changes."""
        self._writable()
        if self._metrics is not None:
            os.fsync(self._metrics)
        self._write_attempt("finished")
        done = {**self.facts(), **facts, "status": "finished", "finished": now(), "error": None}
        self._write_facts({**done, "files": self._evidence()})
        self.close()

    def fail(self, error: BaseException | str) -> None:
        """Record why the run stopped, and release it; the same run can be continued by :meth:`create`."""
        self._writable()
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self._write_attempt("failed", text)
        self._write_facts({**self.facts(), "status": "failed", "error": text})
        self.close()

    # -- reading

    def _evidence(self) -> dict[str, str]:
        """SHA-256 of every file that the results rest on, by relative path."""
        names = ["config.resolved.yaml", "env.json", "metrics.jsonl", "quality.json"]
        files = [self.path / name for name in names if (self.path / name).is_file()]
        for folder in ("eval", "model", "rounds"):
            files += sorted(f for f in (self.path / folder).rglob("*") if f.is_file())
        return {f.relative_to(self.path).as_posix(): sha256_file(f) for f in files}

    def verify(self) -> None:
        """Check a finished run against its recorded hashes; raises :class:`RunError` naming the file."""
        facts = self.facts()
        if run_id(facts["identity"]) != facts["id"]:
            raise RunError(f"{self.path}: run.json says {facts['id']}, but its identity has another hash")
        found = self._evidence()
        for name, digest in facts.get("files", {}).items():
            if name.startswith("model/") and not (self.path / "model").is_dir():
                continue  # weights may be deleted to save space; their hash stays in run.json
            if found.get(name) != digest:
                what = "changed" if name in found else "deleted"
                raise RunError(f"{self.path / name}: {what} since the run finished")

    def facts(self) -> dict[str, Any]:
        """The content of ``run.json``; :class:`RunError` when it is damaged."""
        file = self.path / "run.json"
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(f"{file}: damaged, not JSON ({error})") from error
        if not isinstance(facts, dict) or not {"id", "status"} <= facts.keys():
            raise RunError(f"{file}: damaged, it lacks the run's id and status")
        return facts

    @property
    def id(self) -> str:
        """16 hex digits; see :func:`run_id`."""
        return self.facts()["id"]

    @property
    def status(self) -> str:
        """``running``, ``finished`` or ``failed``, as last written; see :attr:`alive` for killed runs."""
        return self.facts()["status"]

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        return self.status == "finished"

    @property
    def alive(self) -> bool:
        """Whether a process is writing this run now (a killed run is ``running`` but not alive)."""
        return self._lock.held_by_anyone()

    def config(self) -> dict[str, Any]:
        """The resolved config as plain values (not validated: later versions can still read it)."""
        return yaml.safe_load((self.path / "config.resolved.yaml").read_text(encoding="utf-8"))

    def metrics(self) -> list[dict[str, Any]]:
        """Rows of ``metrics.jsonl`` in order; empty when nothing was logged."""
        path = self.path / "metrics.jsonl"
        return read_jsonl(path) if path.is_file() else []

    def tasks(self) -> list[str]:
        """Names of the tasks with per-item records."""
        return sorted(f.stem for f in (self.path / "eval").glob("*.jsonl"))

    def records(self, task: str) -> list[dict[str, Any]]:
        """Per-item records of ``task``; raises :class:`RunError` naming those present."""
        path = self.path / "eval" / f"{task}.jsonl"
        if not path.is_file():
            present = ", ".join(self.tasks()) or "none"
            raise RunError(f"{self.path}: no records of task '{task}' (present: {present})")
        return read_jsonl(path)

    def checkpoint(self, step: int) -> Path:
        """The directory of the checkpoint after ``step`` optimizer steps."""
        return self.path / f"checkpoint-{step}"

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        found = [c for c in self.path.glob("checkpoint-*") if c.name.removeprefix("checkpoint-").isdigit()]
        return sorted(found, key=lambda c: int(c.name.removeprefix("checkpoint-")))
