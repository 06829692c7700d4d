"""Every task by name: the built-in ones, and tasks read from files.

Importing this module registers the built-in tasks.  A file task is named ``FORMAT:PATH``; the one format so
far is ``gsm8k``: rows with ``question`` and ``answer``, the answer ending in ``#### N``.  Imports no torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import steelyard.builtin.tasks  # noqa: F401  registers the built-in tasks
from steelyard.data.rows import Table, read_table
from steelyard.errors import ConfigError, DataError, unknown
from steelyard.evals.task import Item, Split, Task, Verdict, tasks
from steelyard.rewards.verifiers import MARKER, extract_number, verify_number

__all__ = ["get_task", "tasks"]

SELECTION_SHARE = 10
"""One training row in this many is kept for selection, chosen by a hash of its question."""

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")


def get_task(name: str, *, where: str = "") -> Task:
    """The task called ``name``, or the one in the file that ``FORMAT:PATH`` names.

    PATH is a directory with ``train`` and ``test`` files (``train.jsonl.gz``, ...), of which one training row
    in ten becomes the selection split; or one file, all of which is the test split.

    Raises:
        ConfigError: unknown name or format (with the nearest choice).
        DataError: missing or malformed file (``file:line``).
    """
    kind, colon, path = name.partition(":")
    if not colon or name in tasks:
        return tasks.get(name, where=where)
    if kind not in _FORMATS:
        raise ConfigError(unknown("task format", kind, _FORMATS, where=where or name))
    return _FORMATS[kind](Path(path).expanduser())


def _gsm8k(path: Path) -> Task:
    """Grade-school mathematics (Cobbe et al., 2021, arXiv:2110.14168) or anything in its form."""
    files = _split_files(path)
    tables = {split: read_table(file) for split, file in files.items()}
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", path.name.split(".")[0])
    name = "gsm8k" if stem == "gsm8k" else f"gsm8k-{stem}"
    digest = hashlib.sha256("".join(table.sha256 for table in tables.values()).encode()).hexdigest()

    def load(split: Split) -> list[Item]:
        source = "test" if split == "test" else "train"
        if source not in tables:
            raise ConfigError(
                f"task 'gsm8k:{path}': one file is all test split; for '{split}' name a directory with train "
                "and test files"
            )
        items = _gsm8k_items(tables[source], f"{name}/{split}")
        if source == "test":
            return items
        return [item for item in items if _held_back(item.prompt) == (split == "selection")]

    return Task(
        name=name,
        version=f"1-{digest[:12]}",
        kind="generative",
        role="development",
        load=load,
        verify=_verify,
        description=f"word problems of {path}, the answer after '{MARKER}'",
    )


def _split_files(path: Path) -> dict[str, Path]:
    """``{"train": file, "test": file}`` of a directory, ``{"test": path}`` of a file."""
    if not path.is_dir():
        return {"test": path}
    found = {}
    for split in ("train", "test"):
        candidates = [path / f"{split}{suffix}" for suffix in _SUFFIXES]
        file = next((candidate for candidate in candidates if candidate.is_file()), None)
        if file is None:
            raise DataError(f"{path}: no {split} file; expected one of {', '.join(c.name for c in candidates)}")
        found[split] = file
    return found


def _gsm8k_items(table: Table, prefix: str) -> list[Item]:
    items = []
    for index, row in enumerate(table.rows):
        question, solution = _text(table, index, row, "question"), _text(table, index, row, "answer")
        number = extract_number(solution, "strict")
        if number is None:
            raise DataError(f"{table.where(index)}: the answer does not end in '{MARKER} N' with a number N")
        answer = solution.rpartition(MARKER)[2].strip()
        items.append(Item(f"{prefix}/{table.lines[index]}", question, answer, completion=solution))
    return items


def _text(table: Table, index: int, row: Mapping[str, object], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{table.where(index)}: expected text in the column '{column}'; columns: {', '.join(table.columns)}"
        )
    return value


def _held_back(question: str) -> bool:
    """Whether a training row belongs to the selection split: a matter of its text, so twins stay together."""
    return int(hashlib.sha256(" ".join(question.split()).encode()).hexdigest(), 16) % SELECTION_SHARE == 0


def _verify(text: str, item: Item) -> Verdict:
    return verify_number(text, item.answer)


_FORMATS: dict[str, Callable[[Path], Task]] = {"gsm8k": _gsm8k}
