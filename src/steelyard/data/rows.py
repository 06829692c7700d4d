"""Rows: a table of dictionaries, read from JSON, JSONL, CSV or Parquet.

Which columns mean what is :mod:`steelyard.data.schemas`.  Every problem is a
:class:`~steelyard.errors.DataError` that names the file and the line (or row), what was expected, and the
nearest valid choice.  This module imports no torch.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steelyard.errors import DataError, nearest


@dataclass(frozen=True)
class Table:
    """Rows of one source.

    Attributes:
        rows: one dictionary per row, columns already renamed.
        source: how messages call this source (a path as the user wrote it, or ``task:arithmetic``).
        sha256: of the file's bytes (of the canonical JSON for rows that are made in memory).
        lines: 1-based line (JSONL), or row (JSON, CSV without header, Parquet), of each row.
    """

    rows: list[dict[str, Any]]
    source: str
    sha256: str
    lines: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.lines:
            object.__setattr__(self, "lines", list(range(1, len(self.rows) + 1)))

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]], source: str) -> Table:
        """A table of rows that were made in memory (generated data, built-in tasks)."""
        plain = [dict(row) for row in rows]
        text = json.dumps(plain, sort_keys=True, ensure_ascii=False, default=str)
        return cls(plain, source, hashlib.sha256(text.encode()).hexdigest())

    @property
    def columns(self) -> list[str]:
        """Names of all columns, in order of first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def where(self, index: int) -> str:
        """``file:line`` of the row at ``index`` (0-based)."""
        return f"{self.source}:{self.lines[index]}"


# --------------------------------------------------------------------------------------------------
# Reading


def read_table(path: str | Path, *, columns: Mapping[str, str] | None = None, limit: int | None = None) -> Table:
    """Read JSON (a list of objects), JSONL, CSV or Parquet; ``.gz`` of the first three.

    Args:
        path: the file; its suffix decides the format.
        columns: renames, *our* name -> *the file's* name.
        limit: keep only the first ``limit`` rows.

    Raises:
        DataError: the file is missing, of an unknown format, empty, malformed (``file:line``), or has no
            column of a name in ``columns``.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    suffixes = [s.lower() for s in path.suffixes]
    kind = suffixes[-1] if suffixes else ""
    if kind == ".gz":
        kind = suffixes[-2] if len(suffixes) > 1 else ""
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError) as error:
            raise DataError(f"{path}: not a complete gzip file ({error})") from None
    if kind == ".parquet":
        rows, lines = _read_parquet(path, data), []
    elif kind in _TEXT_READERS:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            raise DataError(f"{path}:{line}: not UTF-8 text (byte {error.start})") from None
        rows, lines = _TEXT_READERS[kind](path, text)
    else:
        raise DataError(f"{path}: unknown format '{kind}'; expected .jsonl, .json, .csv (or one of them .gz), .parquet")
    if not rows:
        raise DataError(f"{path}: the file is empty, expected at least one row")
    table = Table(rows, str(path), digest, lines)
    table = rename(table, columns or {})
    if limit is not None:
        table = Table(table.rows[:limit], table.source, table.sha256, table.lines[:limit])
    return table


def rename(table: Table, columns: Mapping[str, str]) -> Table:
    """``table`` with columns renamed, ``columns`` being *our* name -> *the file's* name."""
    if not columns:
        return table
    present = table.columns
    for ours, theirs in columns.items():
        if theirs not in present:
            raise DataError(
                f"{table.source}: data.columns maps '{ours}' to the column '{theirs}', which the file does "
                f"not have; it has {listed(present)}.{did_you_mean(theirs, present)}"
            )
    back = {theirs: ours for ours, theirs in columns.items()}
    if len(back) < len(columns):
        raise DataError(f"{table.source}: data.columns maps two of our columns to one column of the file")
    rows = []
    for row in table.rows:
        # A renamed column replaces one that already has our name.
        kept = {name: value for name, value in row.items() if name in back or name not in columns}
        rows.append({back.get(name, name): value for name, value in kept.items()})
    return Table(rows, table.source, table.sha256, table.lines)


def _read_jsonl(path: Path, text: str) -> tuple[list[dict[str, Any]], list[int]]:
    rows, lines = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}:{number}: malformed JSON at column {error.colno}: {error.msg}; "
                "expected one JSON object per line"
            ) from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: expected a JSON object, got {kind_of(row)}")
        rows.append(row)
        lines.append(number)
    return rows, lines


def _read_json(path: Path, text: str) -> tuple[list[dict[str, Any]], list[int]]:
    if not text.strip():
        return [], []
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        hint = " (one object per line is called .jsonl)" if error.msg == "Extra data" else ""
        raise DataError(f"{path}:{error.lineno}: malformed JSON at column {error.colno}: {error.msg}{hint}") from None
    if not isinstance(value, list):
        raise DataError(f"{path}: expected a JSON list of objects, got {kind_of(value)}")
    for number, row in enumerate(value, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: expected a JSON object, got {kind_of(row)}")
    return value, list(range(1, len(value) + 1))


def _read_csv(path: Path, text: str) -> tuple[list[dict[str, Any]], list[int]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows, lines = [], []
    try:
        for row in reader:
            if None in row or None in row.values():
                width = len(reader.fieldnames or [])
                raise DataError(f"{path}:{reader.line_num}: expected {width} columns as in the header")
            rows.append(dict(row))
            lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: malformed CSV: {error}") from None
    return rows, lines


def _read_parquet(path: Path, data: bytes) -> list[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs pyarrow: pip install 'steelyard[parquet]'") from None
    try:
        return pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from None


_TEXT_READERS = {".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".json": _read_json, ".csv": _read_csv}


# --------------------------------------------------------------------------------------------------
# Words for messages


def kind_of(value: Any) -> str:
    """What a JSON value is, in words: ``a list``, ``null``."""
    names = {
        dict: "an object",
        list: "a list" if value else "an empty list",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)


def listed(names: Sequence[str]) -> str:
    """Column names in quotes."""
    return ", ".join(f"'{name}'" for name in names) if names else "no columns"


def did_you_mean(word: str, choices: Any) -> str:
    """A sentence with the nearest choice, or nothing."""
    guess = nearest(word, choices)
    return f" Did you mean '{guess}'?" if guess else ""
