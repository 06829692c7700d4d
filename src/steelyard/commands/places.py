"""Where results go: a place that cannot be written is refused before anything is computed."""

from __future__ import annotations

import os
from pathlib import Path

from steelyard.errors import ConfigError


def check_directory(path: Path, flag: str) -> None:
    """Refuse a directory to be written that is a file, lies below one, or may not be written."""
    existing = next((p for p in (path, *path.absolute().parents) if p.exists()), Path("/"))
    if not existing.is_dir():
        raise ConfigError(f"{flag}: {existing} is a file, where a directory is expected")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{flag}: {path} cannot be written: no permission to write in {existing}")


def existing_directory(path: Path) -> Path:
    """``path``, which must be a directory that exists."""
    if not path.is_dir():
        what = "a file, where a directory is expected" if path.exists() else "no such directory"
        raise ConfigError(f"{path}: {what}")
    return path
