"""Rows: reading tables from files, recognising their schema, and refusing what does not fit.

A row is a dictionary.  Six schemas are known, in the names that people already use (TRL's):

==================  ==========================================  =========================================
schema              columns                                     string form / conversational form
==================  ==========================================  =========================================
text                ``text``                                    a document
messages            ``messages``                                a conversation
prompt-only         ``prompt``                                  a string / messages
prompt-completion   ``prompt``, ``completion``                  strings / messages
preference          ``chosen``, ``rejected`` [, ``prompt``]     strings / messages; without a prompt it is implicit
unpaired            ``prompt``, ``completion``, ``label``       (or ``messages``, ``label``)
==================  ==========================================  =========================================

Every problem is a :class:`~steelyard.errors.DataError` that names the file, the line (or row), the column,
what was expected, and the nearest valid choice.  This module imports no torch.
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
from typing import Any, Literal

from steelyard.errors import DataError, nearest, unknown

Schema = Literal["text", "messages", "prompt-only", "prompt-completion", "preference", "unpaired"]

REQUIRED: dict[str, tuple[str, ...]] = {
    "unpaired": ("prompt", "completion", "label"),
    "preference": ("chosen", "rejected"),
    "prompt-completion": ("prompt", "completion"),
    "messages": ("messages",),
    "text": ("text",),
    "prompt-only": ("prompt",),
}
"""Columns that a schema cannot do without, the most specific schema first."""

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles that a message may have."""

_COMMON_NAMES = {
    "prompt": ("question", "instruction", "query", "input", "problem", "context"),
    "completion": ("answer", "response", "output", "solution", "target"),
    "chosen": ("preferred", "accepted", "positive", "win", "response_chosen"),
    "rejected": ("dispreferred", "negative", "lose", "response_rejected"),
    "messages": ("conversations", "conversation", "dialog", "dialogue", "chat"),
    "label": ("labels", "desirable", "is_good"),
    "text": ("content", "document", "body"),
}
"""Names that other data sets use for our columns; only used to suggest a rename, never applied silently."""


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
                f"not have; it has {_listed(present)}.{_did_you_mean(theirs, present)}"
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
            raise DataError(f"{path}:{number}: expected a JSON object, got {_kind(row)}")
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
        raise DataError(f"{path}: expected a JSON list of objects, got {_kind(value)}")
    for number, row in enumerate(value, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: expected a JSON object, got {_kind(row)}")
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
# Schemas


def detect_schema(table: Table) -> Schema:
    """The most specific schema whose columns are all there.

    Raises:
        DataError: no schema fits; the message suggests a rename (``data.columns``) where one is likely.
    """
    present = set(table.columns)
    if {"messages", "label"} <= present:
        return "unpaired"
    for schema, needed in REQUIRED.items():
        if present.issuperset(needed):
            return schema  # type: ignore[return-value]
    raise DataError(
        f"{table.source}: the columns {_listed(sorted(present))} fit no known schema; expected "
        + "; ".join(f"{' + '.join(needed)} ({schema})" for schema, needed in REQUIRED.items())
        + f".{_rename_hint(present)}"
    )


def validate(table: Table, schema: str) -> None:
    """Check that every row has the schema's columns with usable values.

    Raises:
        DataError: a column is missing (nearest names are suggested) or a value has the wrong type; the
            message names ``file:line`` and the column.
    """
    if schema not in REQUIRED:
        raise DataError(unknown("schema", schema, REQUIRED))
    present = table.columns
    needed: tuple[str, ...] = REQUIRED[schema]
    if schema == "unpaired" and "messages" in present:
        needed = ("messages", "label")
    for column in needed:
        if column not in present:
            wanted = ("prompt", *needed) if schema == "preference" else needed
            raise DataError(
                f"{table.source}: {schema} rows need {', '.join(wanted)}; '{column}' is missing; "
                f"columns: {', '.join(present)}.{_rename_hint(present, [column])}"
            )
    for index, row in enumerate(table.rows):
        explicit = schema == "preference" and row.get("prompt") is not None
        for column in (*needed, "prompt") if explicit else needed:
            where = f"{table.where(index)}: column '{column}'"
            if row.get(column) is None:
                what = "is null" if column in row else "is missing in this row"
                raise DataError(f"{where} {what}; expected {_EXPECTED[column]}")
            _CHECKS[column](where, row[column])
        _check_options(table.where(index), row)


def _check_text(where: str, value: Any) -> None:
    if not isinstance(value, str):
        raise DataError(f"{where}: expected a string, got {_kind(value)}")


def _check_messages(where: str, value: Any) -> None:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: expected a non-empty list of messages, got {_kind(value)}")
    for number, message in enumerate(value, start=1):
        place = f"{where}, message {number}"
        if not isinstance(message, Mapping):
            raise DataError(f"{place}: expected an object with 'role' and 'content', got {_kind(message)}")
        role = message.get("role")
        if role not in ROLES:
            if "from" in message:
                raise DataError(f"{place}: expected 'role' and 'content', got 'from' and 'value' (ShareGPT)")
            raise DataError(unknown("role", str(role), ROLES, where=place))
        content = message.get("content")
        if content is None and message.get("tool_calls"):
            continue
        if isinstance(content, list):
            for block in content:
                if not (isinstance(block, Mapping) and isinstance(block.get("text"), str)):
                    kind = block.get("type") if isinstance(block, Mapping) else _kind(block)
                    raise DataError(f"{place}: only text blocks are supported, got {kind!r}")
        elif not isinstance(content, str):
            raise DataError(f"{place}: expected 'content' to be a string, got {_kind(content)}")


def _check_text_or_messages(where: str, value: Any) -> None:
    if isinstance(value, list):
        _check_messages(where, value)
    elif not isinstance(value, str):
        raise DataError(f"{where}: expected a string or a list of messages, got {_kind(value)}")


def _check_label(where: str, value: Any) -> None:
    try:
        as_label(value)
    except ValueError:
        raise DataError(f"{where}: expected true or false, got {value!r}") from None


def _check_options(where: str, row: Mapping[str, Any]) -> None:
    for column in ("image", "images"):
        if row.get(column):
            raise DataError(f"{where}: column '{column}': images are not supported, rows are text only")
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: column 'tools': malformed JSON: {error.msg}") from None
    if tools and not isinstance(tools, list):
        raise DataError(f"{where}: column 'tools': expected a list of JSON schemas, got {_kind(tools)}")
    options = row.get("chat_template_kwargs")
    if options is not None and not isinstance(options, Mapping):
        raise DataError(f"{where}: column 'chat_template_kwargs': expected an object, got {_kind(options)}")


_CHECKS = {
    "text": _check_text,
    "messages": _check_messages,
    "prompt": _check_text_or_messages,
    "completion": _check_text_or_messages,
    "chosen": _check_text_or_messages,
    "rejected": _check_text_or_messages,
    "label": _check_label,
}
_EXPECTED = {
    "text": "a string",
    "messages": "a list of messages",
    "label": "true or false",
    **dict.fromkeys(("prompt", "completion", "chosen", "rejected"), "a string or a list of messages"),
}


def as_label(value: Any) -> bool:
    """A boolean from ``true``/``false``, 1/0 or their spellings in CSV; anything else is a ``ValueError``."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in ("true", "1", "false", "0"):
        return value.strip().lower() in ("true", "1")
    raise ValueError(f"not a label: {value!r}")


# --------------------------------------------------------------------------------------------------
# From rows to (prompt, completions)

Side = str | list[dict[str, Any]]
"""A prompt or a completion: plain text or messages."""


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages with their text blocks joined into one string, so that any chat template can render them."""
    result = []
    for message in messages:
        plain = dict(message)
        if isinstance(plain.get("content"), list):
            plain["content"] = "".join(block["text"] for block in plain["content"])
        result.append(plain)
    return result


def split_conversation(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict], list[dict]]:
    """``(prompt, completion)``: the completion starts at the first assistant message and ends at the last.

    The completion is empty when there is no assistant message.
    """
    plain = plain_messages(messages)
    turns = [i for i, message in enumerate(plain) if message["role"] == "assistant"]
    if not turns:
        return plain, []
    return plain[: turns[0]], plain[turns[0] : turns[-1] + 1]


def split_pair(chosen: Side, rejected: Side) -> tuple[Side, Side, Side]:
    """``(prompt, chosen, rejected)`` of a pair whose prompt is the common beginning of its two sides.

    Messages: the longest common list of messages that ends before an assistant turn.  Strings: the dialogue
    form of hh-rlhf is cut behind the last common ``"\\n\\nAssistant:"``, other strings behind the last common
    whitespace, so that no word is divided between prompt and completion.
    """
    common = 0
    while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
        common += 1
    if isinstance(chosen, str) and isinstance(rejected, str):
        marker = "\n\nAssistant:"
        found = chosen.rfind(marker, 0, common)
        if found >= 0:
            common = found + len(marker)
        else:
            while common > 0 and not chosen[common - 1].isspace():
                common -= 1
    else:
        limit = min(len(chosen), len(rejected)) - 1
        common = min(common, limit)
        while common > 0 and not _is_assistant(chosen[common]):
            common -= 1
    return chosen[:common], chosen[common:], rejected[common:]


def _is_assistant(message: Any) -> bool:
    return isinstance(message, Mapping) and message.get("role") == "assistant"


# --------------------------------------------------------------------------------------------------
# Words for messages


def _kind(value: Any) -> str:
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


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) if names else "no columns"


def _did_you_mean(word: str, choices: Any) -> str:
    guess = nearest(word, choices)
    return f" Did you mean '{guess}'?" if guess else ""


def _rename_hint(present: Any, wanted: Sequence[str] = tuple(_COMMON_NAMES)) -> str:
    """Suggest ``data.columns`` for columns that other data sets call differently."""
    renames = {}
    for ours in wanted:
        if ours in present:
            continue
        theirs = next((name for name in _COMMON_NAMES.get(ours, ()) if name in present), None)
        if theirs is None and len(wanted) == 1:
            theirs = nearest(ours, present)
        if theirs is not None and theirs not in renames.values():
            renames[ours] = theirs
    if not renames:
        return ""
    listed = ", ".join(f"{ours}: {theirs}" for ours, theirs in renames.items())
    return f" Perhaps rename with `data.columns: {{{listed}}}`."
