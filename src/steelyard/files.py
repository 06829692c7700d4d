"""Files that can be trusted: atomic writes, canonical hashes, JSON lines that survive a kill, locks.

Whoever reads a file that this module wrote sees all of it or none of it, whatever happened to the writer.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from steelyard.errors import RunError

_TEMPORARY = re.compile(r"^\.(?P<name>.+)\.tmp-(?P<pid>\d+)-[0-9a-f]+$")

# --------------------------------------------------------------------------------------------------
# Atomic writes


def _temporary_beside(path: Path) -> Path:
    return path.parent / f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}"


def _fsync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old content or the new one, never a part.

    The bytes go to a temporary file in the same directory, are synced, and replace ``path`` in one step.
    Parent directories are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_beside(path)
    try:
        with open(temporary, "wb") as handle:
            handle.write(data.encode("utf-8") if isinstance(data, str) else data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync_directory(path.parent)


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Fill a directory under a temporary name; it takes the name ``path`` only if the block ends well.

    An existing ``path`` is replaced (the last writer wins; content-addressed directories are equal anyway).
    After an exception nothing is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_beside(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        _move_over(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _fsync_directory(path.parent)


def _move_over(source: Path, target: Path) -> None:
    # A non-empty directory cannot be replaced in one system call; another process may do the same at the
    # same time, so moving the old one away and ours into its place is tried until both succeed.
    for _ in range(100):
        try:
            os.replace(source, target)
            return
        except OSError:
            if not target.is_dir():
                raise
        old = _temporary_beside(target)
        with contextlib.suppress(FileNotFoundError):
            os.replace(target, old)
            shutil.rmtree(old, ignore_errors=True)
    raise RunError(f"{target}: other processes keep writing this directory")


def remove_stale_temporaries(directory: str | Path) -> None:
    """Delete what killed processes of this machine left half-written directly in ``directory``."""
    directory = Path(directory)
    for entry in list(directory.iterdir()) if directory.is_dir() else []:
        match = _TEMPORARY.match(entry.name)
        if match and not _alive(int(match["pid"])):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# --------------------------------------------------------------------------------------------------
# Hashes


def canonical_json(obj: Any) -> str:
    """The one JSON text of ``obj``: sorted keys, no spaces; NaN and infinity are refused."""
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_json(obj: Any) -> str:
    """SHA-256 (hex) of :func:`canonical_json`."""
    return hashlib.sha256(canonical_json(obj).encode("utf-8")).hexdigest()


def sha256_file(path: str | Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


# --------------------------------------------------------------------------------------------------
# JSON lines


def plain_json(value: Any) -> Any:
    """``value`` as strict JSON can hold it: NumPy scalars unwrapped, NaN and infinity as null."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return plain_json(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    return value


def json_line(row: Mapping[str, Any]) -> str:
    """``row`` as one line of strict JSON, newline included."""
    return json.dumps(plain_json(row), ensure_ascii=False, allow_nan=False) + "\n"


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; a torn last line (the writer was killed) is left out.

    Raises:
        RunError: any earlier line is not JSON (``file:line``).
    """
    path = Path(path)
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if number == len(lines):  # what follows the last newline: nothing, or a line that was never completed
            break
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise RunError(f"{path}:{number}: not a line of JSON ({error.msg})") from error
    return rows


# --------------------------------------------------------------------------------------------------
# Locks


class Lock:
    """At most one process works in a directory; the system frees the lock when its holder dies.

    The file names the holder for the message; what counts is the kernel's lock on it, so that a killed
    process leaves nothing stale behind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def acquire(self, what: str) -> None:
        """Take the lock; raises :class:`RunError` naming the process that holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        if not self._try(handle, attempts=4):
            holder = os.pread(handle, 200, 0).decode("utf-8", "replace").strip() or "another process"
            os.close(handle)
            raise RunError(f"{self.path.parent}: this {what} is being written by {holder}; wait for it or stop it")
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._handle = handle

    @staticmethod
    def _try(handle: int, attempts: int) -> bool:
        # More than one attempt, because held_by_anyone() of another process holds the lock for a moment.
        for attempt in range(attempts):
            if attempt:
                time.sleep(0.05)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
        return False

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._handle is not None

    def held_by_anyone(self) -> bool:
        """Whether any living process holds it."""
        if self.held:
            return True
        if not self.path.is_file():
            return False
        handle = os.open(self.path, os.O_RDWR)
        try:
            return not self._try(handle, attempts=1)
        finally:
            os.close(handle)
