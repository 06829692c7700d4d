"""Where rows come from: a file of the user's, or data that ships with the package (``data:NAME``)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from steelyard.config import DataConfig
from steelyard.data.rows import Table, read_table
from steelyard.errors import DataError, nearest, unknown
from steelyard.files import canonical_json

SHIPPED = Path(__file__).parent.parent / "builtin" / "data"
"""Directory of the data files that ship with the package."""

_ENDINGS = (".jsonl.gz", ".jsonl", ".json", ".csv", ".parquet")


def shipped() -> dict[str, Path]:
    """Name (as in ``data:NAME``) -> file of every data set that ships with the package."""
    found = {}
    for path in sorted(SHIPPED.glob("*")):
        ending = next((e for e in _ENDINGS if path.name.endswith(e)), None)
        if ending is not None:
            found[path.name.removesuffix(ending)] = path
    return found


def resolve_path(path: str | Path) -> Path:
    """The file that a path or ``data:NAME`` means; raises :class:`DataError` when there is none."""
    text = str(path)
    if text.startswith("data:"):
        name = text.removeprefix("data:")
        if name not in shipped():
            raise DataError(unknown("shipped data set", name, shipped()))
        return shipped()[name]
    file = Path(path).expanduser()
    if file.is_dir():
        raise DataError(f"{file}: a directory, where a file of rows is expected")
    if not file.is_file():
        siblings = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        guess = nearest(file.name, siblings)
        hint = f". Did you mean '{file.parent / guess}'?" if guess else ""
        raise DataError(f"{file}: no such file{hint}")
    return file


def read_source(path: str | Path, *, columns: Mapping[str, str] | None = None, limit: int | None = None) -> Table:
    """The rows of a file or of ``data:NAME``; see :func:`~steelyard.data.rows.read_table`."""
    table = read_table(resolve_path(path), columns=columns, limit=limit)
    # Messages and keys call shipped data by its name, wherever the package is installed.
    return replace(table, source=str(path)) if str(path).startswith("data:") else table


def load_table(data: DataConfig, part: Literal["train", "held_out"] = "train") -> Table:
    """The rows of ``data.path``, with columns renamed and cut to ``data.limit``; without those of ``data.holdout``.

    ``part="held_out"`` gives the others: those that nothing is trained on.
    """
    if data.path is None:
        raise DataError("data.path is not given: a built-in task has items, not a file of rows")
    table = read_source(data.path, columns=data.columns, limit=data.limit)
    if not data.holdout:
        return replace(table, rows=[], lines=[]) if part == "held_out" else table
    kept = [i for i, row in enumerate(table.rows) if _held_out(row, data.holdout) == (part == "held_out")]
    if not kept:
        words = "is kept out of training" if part == "held_out" else "is left to train on"
        raise DataError(f"{table.source}: data.holdout={data.holdout:g} of {len(table)} rows: not one row {words}")
    return replace(table, rows=[table.rows[i] for i in kept], lines=[table.lines[i] for i in kept])


def _held_out(row: Mapping[str, object], share: float) -> bool:
    """Whether a row is kept out of training: a matter of its prompt alone (of all of it, where it has none), so that
    rows of one prompt stay together, and of no other row."""
    prompt = next((row[name] for name in ("prompt", "input", "question") if row.get(name)), None)
    text = prompt if prompt is not None else {k: row[k] for k in ("messages", "text", "chosen") if k in row}
    digest = hashlib.sha256(canonical_json(text).encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def row_texts(table: Table) -> Iterator[str]:
    """Every text of every row (prompts, completions, message contents), for training a tokenizer."""
    for row in table.rows:
        for value in row.values():
            yield from _texts(value)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, dict):
        yield from _texts(value.get("content"))
        yield from _texts(value.get("text"))  # a block of a message's content
