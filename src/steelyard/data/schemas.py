"""Schemas: which columns rows have, what may stand in them, and who learns from which rows.

Nine schemas are known, in the names that people already use (TRL's where it has one):

==================  ==============================================  =====================================
schema              columns                                         form
==================  ==============================================  =====================================
text                ``text``                                        a document
messages            ``messages``                                    a conversation
prompt-only         ``prompt``                                      a string / messages
prompt-completion   ``prompt``, ``completion``                      strings / messages
preference          ``chosen``, ``rejected`` [, ``prompt``]         strings / messages; without a prompt it is
                                                                    implicit
unpaired            ``prompt``, ``completion``, ``label``           (or ``messages``, ``label``)
ranked              ``prompt``, ``completions``, ``scores``         a list with a number for each (or ``ranks``:
                                                                    1 is the best)
stepwise            ``prompt``, ``completions``, ``labels``         the steps of one answer, right or wrong each
first-mistake       ``prompt``, ``steps``, ``mistake_index``        steps, and the place (from 0) of the first
                                                                    wrong one, or null
==================  ==============================================  =====================================

Every problem is a :class:`~steelyard.errors.DataError` that names the file, the line (or row), the column,
what was expected, and the nearest valid choice.  This module imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from steelyard.data.numbers import as_number
from steelyard.data.rows import Table, kind_of, listed
from steelyard.errors import DataError, nearest, unknown

Schema = Literal[
    "text",
    "messages",
    "prompt-only",
    "prompt-completion",
    "preference",
    "unpaired",
    "ranked",
    "stepwise",
    "first-mistake",
]
Family = Literal["Tokens", "Pairs", "Unpaired", "Ranked", "Rollouts", "Scores", "TokenScores", "StepLabels", "Distill"]
"""What rows are rendered for: a family view, or ``StepLabels`` for the `TokenScores` of a head that labels steps."""

REQUIRED: dict[str, tuple[str, ...]] = {
    "unpaired": ("prompt", "completion", "label"),
    "preference": ("chosen", "rejected"),
    "ranked": ("prompt", "completions", "scores"),
    "stepwise": ("prompt", "completions", "labels"),
    "first-mistake": ("prompt", "steps", "mistake_index"),
    "prompt-completion": ("prompt", "completion"),
    "messages": ("messages",),
    "text": ("text",),
    "prompt-only": ("prompt",),
}
"""Columns that a schema cannot do without, the most specific schema first."""

SCHEMAS: dict[str, tuple[str, ...]] = {
    "Tokens": ("prompt-completion", "messages", "text", "preference"),
    "Distill": ("prompt-completion", "messages", "text", "preference"),
    "Pairs": ("preference",),
    "Scores": ("preference",),
    "Unpaired": ("unpaired", "preference"),
    "TokenScores": ("unpaired", "preference"),
    "Ranked": ("ranked",),
    "StepLabels": ("stepwise", "first-mistake"),
    "Rollouts": (
        *("prompt-only", "prompt-completion", "preference", "unpaired", "messages"),
        *("ranked", "stepwise", "first-mistake"),
    ),
}
"""Row schemas that a family of algorithms can learn from."""

LEARNERS = {
    "Tokens": "supervised methods (sft, rft)",
    "Distill": "distillation methods (kd)",
    "Pairs": "preference methods (dpo, ipo, simpo, ...)",
    "Scores": "reward models (rm)",
    "Unpaired": "methods of labelled completions (kto)",
    "TokenScores": "outcome reward models (orm)",
    "Ranked": "methods of ranked lists (pl_dpo, rm_listwise)",
    "StepLabels": "process reward models (prm)",
    "Rollouts": "online methods (grpo)",
}
"""How messages call the families."""

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
    "completions": ("responses", "answers", "outputs", "candidates", "steps"),
    "scores": ("rewards", "ratings", "score", "rating"),
    "labels": ("step_labels", "ratings"),
    "mistake_index": ("first_mistake", "first_error", "error_index"),
}
"""Names that other data sets use for our columns; only used to suggest a rename, never applied silently."""


def row_family(family: str, head: str = "lm") -> Family:
    """What rows of an algorithm are rendered for, from its declared family and head."""
    if family == "none":
        return "Tokens"
    return "StepLabels" if head == "token_labels" else family  # type: ignore[return-value]


def needed_columns(schema: str, present: Sequence[str]) -> tuple[str, ...]:
    """The columns that ``schema`` needs of a table that has ``present``: some have another form."""
    if schema == "unpaired" and "messages" in present:
        return ("messages", "label")
    if schema == "ranked" and "scores" not in present and "ranks" in present:
        return ("prompt", "completions", "ranks")
    return REQUIRED[schema]


def _fits(schema: str, present: Sequence[str]) -> bool:
    return {*needed_columns(schema, present)} <= {*present}


def detect_schema(table: Table) -> Schema:
    """The most specific schema whose columns are all there.

    Raises:
        DataError: no schema fits; the message suggests a rename (``data.columns``) where one is likely.
    """
    present = table.columns
    for schema in REQUIRED:
        if _fits(schema, present):
            return schema  # type: ignore[return-value]
    raise DataError(
        f"{table.source}: the columns {listed(sorted(present))} fit no known schema; expected "
        + "; ".join(f"{' + '.join(needed)} ({schema})" for schema, needed in REQUIRED.items())
        + f".{_rename_hint(present)}"
    )


def schema_for(table: Table, family: str) -> str:
    """The schema of rows that ``family`` can learn from, every row checked.

    Raises:
        DataError: there is none, with the missing column; or a row does not fit it (``file:line``).
    """
    if family not in SCHEMAS:
        raise DataError(unknown("family", family, SCHEMAS))
    present = table.columns
    if not any(_fits(schema, present) for schema in REQUIRED):
        _name_missing(table, family)
    schema = detect_schema(table)
    lists = [name for name in SCHEMAS[family] if name in _WHOLE_ROW and _fits(name, present)]
    if schema not in SCHEMAS[family] and lists and family != "Rollouts":
        schema = lists[0]  # rows of two schemas: lists are what this family came for
    if schema not in SCHEMAS[family]:
        _name_missing(table, family)
        raise DataError(
            f"{table.source}: {LEARNERS[family]} need {' or '.join(SCHEMAS[family])} rows, "
            f"got {schema} rows (columns: {', '.join(present)})"
        )
    validate(table, schema)
    return schema


def _name_missing(table: Table, family: str) -> None:
    """Name the missing column when some, but not all, columns of a schema are there."""
    present = table.columns

    def missing(schema: str) -> int:
        return len({*needed_columns(schema, present)} - {*present})

    for wanted in sorted(SCHEMAS[family], key=missing):
        if 0 < missing(wanted) < len(needed_columns(wanted, present)):
            try:
                validate(table, wanted)
            except DataError as error:
                learners = LEARNERS[family][0].upper() + LEARNERS[family][1:]
                raise DataError(f"{error} {learners} learn from {' or '.join(SCHEMAS[family])} rows.") from None


def validate(table: Table, schema: str) -> None:
    """Check that every row has the schema's columns with usable values.

    Raises:
        DataError: a column is missing (nearest names are suggested) or a value has the wrong type; the
            message names ``file:line`` and the column.
    """
    if schema not in REQUIRED:
        raise DataError(unknown("schema", schema, REQUIRED))
    present = table.columns
    needed = needed_columns(schema, present)
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
            if row.get(column) is None and not (column in row and column in _MAY_BE_NULL):
                what = "is null" if column in row else "is missing in this row"
                raise DataError(f"{where} {what}; expected {_EXPECTED[column]}")
            _CHECKS[column](where, row[column])
        if schema in _WHOLE_ROW:
            _WHOLE_ROW[schema](table.where(index), row)
        _check_options(table.where(index), row)


# --------------------------------------------------------------------------------------------------
# Labels


def as_label(value: Any) -> bool:
    """A boolean from ``true``/``false``, 1/0 or their spellings in CSV; anything else is a ``ValueError``."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in ("true", "1", "false", "0"):
        return value.strip().lower() in ("true", "1")
    raise ValueError(f"not a label: {value!r}")


def step_labels(row: Mapping[str, Any], schema: str) -> list[float]:
    """The labels of a row's steps: 1 right, 0 wrong, between them a share of right continuations, NaN unlabelled.

    A row of schema ``first-mistake`` is labelled up to and including its first wrong step, as PRM800K is (Lightman et
    al., 2023): whether what follows from a wrong step is right has no good answer, so nothing is said about it.
    """
    if schema == "stepwise":
        return [math.nan if label is None else float(label) for label in row["labels"]]
    first, count = row["mistake_index"], len(row["steps"])
    if first is None:
        return [1.0] * count
    return [1.0] * int(first) + [0.0] + [math.nan] * (count - int(first) - 1)


# --------------------------------------------------------------------------------------------------
# Checks of values


def _check_text(where: str, value: Any) -> None:
    if not isinstance(value, str):
        raise DataError(f"{where}: expected a string, got {kind_of(value)}")


def _check_messages(where: str, value: Any) -> None:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: expected a non-empty list of messages, got {kind_of(value)}")
    for number, message in enumerate(value, start=1):
        place = f"{where}, message {number}"
        if not isinstance(message, Mapping):
            raise DataError(f"{place}: expected an object with 'role' and 'content', got {kind_of(message)}")
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
                    kind = block.get("type") if isinstance(block, Mapping) else kind_of(block)
                    raise DataError(f"{place}: only text blocks are supported, got {kind!r}")
        elif not isinstance(content, str):
            raise DataError(f"{place}: expected 'content' to be a string, got {kind_of(content)}")


def _check_text_or_messages(where: str, value: Any) -> None:
    if isinstance(value, list):
        _check_messages(where, value)
    elif not isinstance(value, str):
        raise DataError(f"{where}: expected a string or a list of messages, got {kind_of(value)}")


def _check_label(where: str, value: Any) -> None:
    try:
        as_label(value)
    except ValueError:
        raise DataError(f"{where}: expected true or false, got {value!r}") from None


def _check_list(where: str, value: Any) -> None:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: expected a non-empty list, got {kind_of(value)}")


def _check_index(where: str, value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise DataError(f"{where}: expected the place of a step (from 0) or null, got {kind_of(value)}")


def _check_ranked(where: str, row: Mapping[str, Any]) -> None:
    numbers = "ranks" if row.get("scores") is None else "scores"
    _check_equal_length(where, row, numbers)
    if len(row["completions"]) < 2:
        raise DataError(f"{where}: column 'completions': expected at least two, got one")
    for number, side in enumerate(row["completions"], start=1):
        _check_text_or_messages(f"{where}: column 'completions', item {number}", side)
    for number, value in enumerate(row[numbers], start=1):
        try:
            as_number(value)
        except ValueError:
            raise DataError(
                f"{where}: column '{numbers}', item {number}: expected a finite number, got {value!r}"
            ) from None


def _check_stepwise(where: str, row: Mapping[str, Any]) -> None:
    _check_steps(where, row, "completions")
    _check_equal_length(where, row, "labels")
    for number, value in enumerate(row["labels"], start=1):
        if value is None or isinstance(value, bool):
            continue
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise DataError(
                f"{where}: column 'labels', item {number}: expected true, false, a share between 0 and 1, or null "
                f"(unlabelled), got {value!r}"
            )


def _check_first_mistake(where: str, row: Mapping[str, Any]) -> None:
    _check_steps(where, row, "steps")
    first, count = row["mistake_index"], len(row["steps"])
    if first is not None and not 0 <= first < count:
        raise DataError(f"{where}: column 'mistake_index': expected 0 to {count - 1} or null, got {first}")


def _check_steps(where: str, row: Mapping[str, Any], column: str) -> None:
    for number, step in enumerate(row[column], start=1):
        if not isinstance(step, str):
            raise DataError(
                f"{where}: column '{column}', item {number}: expected the text of a step, got {kind_of(step)}"
            )


def _check_equal_length(where: str, row: Mapping[str, Any], column: str) -> None:
    if len(row[column]) != len(row["completions"]):
        raise DataError(
            f"{where}: column '{column}': expected one for each of the {len(row['completions'])} completions, "
            f"got {len(row[column])}"
        )


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
        raise DataError(f"{where}: column 'tools': expected a list of JSON schemas, got {kind_of(tools)}")
    options = row.get("chat_template_kwargs")
    if options is not None and not isinstance(options, Mapping):
        raise DataError(f"{where}: column 'chat_template_kwargs': expected an object, got {kind_of(options)}")


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "text": _check_text,
    "messages": _check_messages,
    "label": _check_label,
    "mistake_index": _check_index,
    **dict.fromkeys(("prompt", "completion", "chosen", "rejected"), _check_text_or_messages),
    **dict.fromkeys(("completions", "scores", "ranks", "labels", "steps"), _check_list),
}
_WHOLE_ROW: dict[str, Callable[[str, Mapping[str, Any]], None]] = {
    "ranked": _check_ranked,
    "stepwise": _check_stepwise,
    "first-mistake": _check_first_mistake,
}
_EXPECTED = {
    "text": "a string",
    "messages": "a list of messages",
    "label": "true or false",
    "completions": "a list",
    "scores": "a list of numbers",
    "ranks": "a list of whole numbers",
    "labels": "a list of true and false",
    "steps": "a list of strings",
    "mistake_index": "the place of a step (from 0) or null",
    **dict.fromkeys(("prompt", "completion", "chosen", "rejected"), "a string or a list of messages"),
}
_MAY_BE_NULL = ("mistake_index",)


def _rename_hint(present: Sequence[str], wanted: Sequence[str] = tuple(_COMMON_NAMES)) -> str:
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
    pairs = ", ".join(f"{ours}: {theirs}" for ours, theirs in renames.items())
    return f" Perhaps rename with `data.columns: {{{pairs}}}`."
