"""Rows to :class:`~steelyard.types.Group`: token ids, loss masks, truncation, and a report of what was lost.

How one prompt and one completion become tokens is :mod:`steelyard.data.chat`.  Training, evaluation and
sampling all call :func:`prompt_ids` and :func:`completion_ids`, so that a model is asked exactly what it was
trained on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from steelyard.data.chat import Answer, Codec, Opening, as_messages
from steelyard.data.rows import (
    REQUIRED,
    Side,
    Table,
    as_label,
    detect_schema,
    plain_messages,
    split_conversation,
    split_pair,
    validate,
)
from steelyard.errors import DataError, unknown
from steelyard.types import Group

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from steelyard.config import DataConfig

Family = Literal["Tokens", "Pairs", "Unpaired", "Rollouts", "Scores"]

SCHEMAS: dict[str, tuple[str, ...]] = {
    "Tokens": ("prompt-completion", "messages", "text", "preference"),
    "Pairs": ("preference",),
    "Scores": ("preference",),
    "Unpaired": ("unpaired", "preference"),
    "Rollouts": ("prompt-only", "prompt-completion", "preference", "unpaired", "messages"),
}
"""Row schemas that a family of algorithms can learn from."""

LEARNERS = {
    "Tokens": "supervised methods (sft, rft)",
    "Pairs": "preference methods (dpo, ipo, simpo, ...)",
    "Scores": "reward models (rm)",
    "Unpaired": "methods of labelled completions (kto)",
    "Rollouts": "online methods (grpo)",
}
"""How messages call the families."""


# --------------------------------------------------------------------------------------------------
# Ids of one prompt and one completion


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Side, **options: Any) -> np.ndarray:
    """Token ids ``int32[p]`` of a prompt, ready for the first token of an answer; never empty.

    Args:
        tokenizer: with an EOS token.
        prompt: plain text, or messages that end before an assistant turn.
        options: passed to the chat template (``tools=...``, ``enable_thinking=False``).
    """
    return Codec(tokenizer).opening(prompt, options).ids


def completion_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: Side, completion: Side, *, eos: bool = True, **options: Any
) -> np.ndarray:
    """Token ids ``int32[t]`` of ``completion`` behind :func:`prompt_ids` of ``prompt``, end token included.

    ``eos=False`` leaves the end token out (the choices of a multiple-choice item).
    """
    codec = Codec(tokenizer)
    ids = codec.answer(codec.opening(prompt, options), prompt, completion, options).ids
    return ids if eos or not len(ids) or int(ids[-1]) not in codec.ends else ids[:-1]


def completion_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int] | np.ndarray) -> str:
    """The text of sampled ids, without special tokens: what rewards and verifiers see."""
    return Codec(tokenizer).decode([int(i) for i in ids])


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens that end an answer: the tokenizer's EOS, and the template's end of turn when it is another."""
    return Codec(tokenizer).ends


# --------------------------------------------------------------------------------------------------
# Whole tables


@dataclass(frozen=True)
class Lost:
    """A row that no algorithm will see (or, with the reason ``truncated``, only a part of), and why."""

    key: str
    reason: str
    detail: str


@dataclass
class RenderReport:
    """What happened to the rows; nothing is dropped or cut without being counted here."""

    source: str
    schema: str
    family: str
    template: bool
    """Whether a chat template was used."""
    max_length: int
    rows: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows left out, by reason."""
    truncated: int = 0
    """Rows with a completion that was cut at `max_length`."""
    without_trained_eos: int = 0
    """Kept rows with a completion whose last trained token does not end it (after a cut)."""
    double_bos: int = 0
    """Kept rows that begin with two BOS tokens."""
    eos_appended: int = 0
    """Completions whose template has no end token, so that EOS was added."""
    split_apart: int = 0
    """Completions tokenized on their own, because a token would straddle the end of the prompt."""
    unknown: int = 0
    """Kept rows with a token that the vocabulary does not know."""
    prompt_tokens: list[int] = field(default_factory=list)
    """Prompt length of every rendered row, before anything is dropped."""
    completion_tokens: list[int] = field(default_factory=list)
    """Length of every rendered completion, before anything is cut."""
    labels: Counter[bool] = field(default_factory=Counter)
    """Kept completions by label (family `Unpaired` only)."""
    trained_tokens: int = 0
    """Tokens with mask True over all kept rows."""
    lost: list[Lost] = field(default_factory=list)
    """Every row that is dropped or cut."""

    def lengths(self) -> dict[str, dict[str, float]]:
        """Quantiles of prompt and completion lengths in tokens."""
        return {"prompt": _quantiles(self.prompt_tokens), "completion": _quantiles(self.completion_tokens)}

    def problems(self) -> list[str]:
        """What a user should look at before training, one sentence each; empty when nothing is wrong."""
        found = [
            f"{_count(count, 'row')} of {self.rows} dropped: {_REASONS[reason]}"
            for reason, count in self.dropped.items()
        ]
        cut, silent = _count(self.truncated, "row"), _count(self.without_trained_eos, "row")
        apart = _count(self.split_apart, "completion")
        sentences = (
            (self.truncated, f"{cut} with a completion that is cut at max_length={self.max_length}"),
            (self.without_trained_eos, f"{silent} with no trained end of answer: the model may not stop"),
            (self.double_bos, f"{_count(self.double_bos, 'row')} with two BOS tokens: the text has its own"),
            (self.unknown, f"{_count(self.unknown, 'row')} with words that the tokenizer does not know"),
            (
                self.split_apart,
                f"{apart} tokenized apart from the prompt, because a token would straddle the boundary "
                "(a prompt that ends in a space is the usual cause)",
            ),
        )
        if len(self.labels) == 1:
            found.append(f"every label is {str(next(iter(self.labels))).lower()}: there is no contrast to learn from")
        return found + [sentence for count, sentence in sentences if count]

    def lines(self) -> list[str]:
        """The report as printable lines."""
        form = "through the chat template" if self.template else "as plain text (no chat template)"
        result = [
            f"{self.source}: {self.rows} {self.schema} rows for {self.family}, {form}",
            f"kept {self.kept}, dropped {self.dropped.total()}, truncated {self.truncated}, "
            f"trained tokens {self.trained_tokens}",
        ]
        for name, quantiles in self.lengths().items():
            if quantiles:
                listed = ", ".join(f"{key} {value:g}" for key, value in quantiles.items())
                result.append(f"{name} tokens: {listed}")
        return result + self.problems()

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "source": self.source,
            "schema": self.schema,
            "family": self.family,
            "template": self.template,
            "max_length": self.max_length,
            "rows": self.rows,
            "kept": self.kept,
            "dropped": dict(self.dropped),
            "truncated": self.truncated,
            "without_trained_eos": self.without_trained_eos,
            "double_bos": self.double_bos,
            "eos_appended": self.eos_appended,
            "split_apart": self.split_apart,
            "unknown": self.unknown,
            "trained_tokens": self.trained_tokens,
            "tokens": self.lengths(),
            "problems": self.problems(),
        }


_REASONS = {
    "prompt_too_long": "the prompt alone reaches max_length, so that no answer fits",
    "too_long": "prompt and completion are longer than max_length (data.overlong: drop)",
    "empty_completion": "a completion is empty",
    "no_common_prompt": "there is no prompt, and chosen and rejected have no common beginning",
    "no_trained_token": "no token is trained (a conversation without an assistant turn)",
    "identical_pair": "chosen and rejected are the same",
    "identical_tokens": "chosen and rejected differ, but the chat template or the tokenizer loses the difference",
    "truncated_to_nothing": "nothing trained is left of a completion after the cut at max_length",
    "identical_after_truncation": "chosen and rejected are the same up to max_length",
}


def schema_for(table: Table, family: str) -> str:
    """The schema of rows that ``family`` can learn from; :class:`DataError` says what is missing for it."""
    present = set(table.columns)
    if not any(present.issuperset(needed) for needed in REQUIRED.values()):
        _name_missing(table, family)
    schema = detect_schema(table)
    if schema not in SCHEMAS[family]:
        _name_missing(table, family)
        raise DataError(
            f"{table.source}: {LEARNERS[family]} need {' or '.join(SCHEMAS[family])} rows, "
            f"got {schema} rows (columns: {', '.join(table.columns)})"
        )
    validate(table, schema)
    return schema


def _name_missing(table: Table, family: str) -> None:
    """Name the missing column when some, but not all, columns of a schema are there."""
    for wanted in SCHEMAS[family]:
        if 0 < len({*table.columns} & {*REQUIRED[wanted]}) < len(REQUIRED[wanted]):
            try:
                validate(table, wanted)
            except DataError as error:
                learners = LEARNERS[family][0].upper() + LEARNERS[family][1:]
                raise DataError(f"{error} {learners} learn from {wanted} rows.") from None


@dataclass
class RenderResult:
    """Groups in row order, and the report."""

    groups: list[Group]
    report: RenderReport


class Renderer:
    """Turns rows into Groups for one tokenizer and one set of limits.

    Args:
        tokenizer: with an EOS token.
        max_length: tokens of a prompt with one completion at most.
        overlong: ``drop`` leaves longer rows out, ``truncate`` cuts completions at the end, ``error`` stops.
        max_dropped: stop when a larger share of the rows is dropped or truncated.
        completion_only_loss: False also trains on the prompt but its first token (family ``Tokens`` only).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int = 512,
        overlong: Literal["drop", "truncate", "error"] = "drop",
        max_dropped: float = 0.5,
        completion_only_loss: bool = True,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.overlong = overlong
        self.max_dropped = max_dropped
        self.completion_only_loss = completion_only_loss
        self.codec = Codec(tokenizer)

    @classmethod
    def from_config(cls, tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> Renderer:
        """A renderer with the limits of a recipe's ``data`` section."""
        return cls(
            tokenizer,
            max_length=data.max_length,
            overlong=data.overlong,
            max_dropped=data.max_dropped,
            completion_only_loss=data.completion_only_loss,
        )

    def render(
        self,
        table: Table | Sequence[Mapping[str, Any]],
        family: Family,
        *,
        source: str = "",
        strict: bool = True,
    ) -> RenderResult:
        """Validate and render every row.

        Args:
            table: a table, or rows made in memory (then ``source`` names them).
            family: what an algorithm's first argument asks for.
            source: first part of ``Group.key`` (of a path only the name, so that nothing that is derived
                from a key depends on where the data lies); default: the table's own.
            strict: False returns the report even when nothing, or too little, is left (for inspection).

        Raises:
            DataError: the rows do not fit the family, nothing is left, more than ``max_dropped`` is lost, a
                row is overlong with ``overlong: error``, or the template does not preserve prefixes.
        """
        if not isinstance(table, Table):
            table = Table.from_rows(table, source or "rows")
        source = source or table.source
        if not table.rows:
            raise DataError(f"{source}: there are no rows")
        if family not in SCHEMAS:
            raise DataError(unknown("family", family, SCHEMAS))
        schema = schema_for(table, family)
        report = RenderReport(source, schema, family, self.codec.template, self.max_length)
        groups = []
        for index, row in enumerate(table.rows):
            report.rows += 1
            key = f"{PurePath(source).name}:{table.lines[index]}"
            try:
                group = self._row(row, schema, family, key, report)
            except DataError as error:
                raise DataError(f"{table.where(index)}: {error}") from None
            except _Drop as drop:
                report.dropped[drop.reason] += 1
                report.lost.append(Lost(key, drop.reason, drop.detail))
                continue
            groups.append(group)
            self._lint(group, report)
            if family == "Unpaired":
                report.labels.update(group.completion_columns["label"].tolist())
        report.kept = len(groups)
        if strict:
            self._check_losses(report)
        return RenderResult(groups, report)

    def _row(self, row: Mapping[str, Any], schema: str, family: str, key: str, report: RenderReport) -> Group:
        """One row; raises :class:`_Drop` when it must be left out."""
        opening, sides, answers = self._tokenize(row, schema, family)
        report.prompt_tokens.append(len(opening.ids))
        report.completion_tokens.extend(len(answer.ids) for answer in answers)
        report.eos_appended += sum(answer.eos_appended for answer in answers)
        report.split_apart += sum(answer.split_apart for answer in answers)
        for number, (side, answer) in enumerate(zip(sides, answers, strict=True), start=1):
            if _is_empty(side):
                raise _Drop("empty_completion", f"completion {number} of {len(sides)} is empty")
            if not answer.mask.any():
                raise _Drop("no_trained_token", f"completion {number} of {len(sides)} trains no token")
        ids, masks = [answer.ids for answer in answers], [answer.mask for answer in answers]
        if _identical(ids):
            same = sides[0] == sides[1]
            raise _Drop("identical_pair" if same else "identical_tokens", "chosen = rejected")
        ids, masks = self._fit(key, opening, ids, masks, report)
        prompt = opening.ids
        if family == "Tokens" and not self.completion_only_loss and len(prompt) > 1:
            ids, prompt = [np.concatenate([prompt[1:], ids[0]])], prompt[:1]
            masks = [np.ones(len(ids[0]), dtype=bool)]
        columns, completion_columns = _columns(row, schema, family)
        return Group(
            prompt=prompt,
            completions=tuple(ids),
            masks=tuple(masks),
            columns=columns,
            completion_columns=completion_columns,
            key=key,
        )

    def _tokenize(self, row: Mapping[str, Any], schema: str, family: str) -> tuple[Opening, list[Side], list[Answer]]:
        prompt, sides = sides_of(row, schema, family)
        if schema == "text":
            opening, answer = self.codec.document(row["text"])
            return opening, sides, [answer]
        options = template_options(row)
        opening = self.codec.opening(prompt, options)
        return opening, sides, [self.codec.answer(opening, prompt, side, options) for side in sides]

    def _fit(
        self, key: str, opening: Opening, ids: list[np.ndarray], masks: list[np.ndarray], report: RenderReport
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Apply ``max_length``: the completions as they are, or cut, or the row is dropped."""
        room = self.max_length - len(opening.ids)
        longest = max((len(i) for i in ids), default=1)
        if longest <= room:
            return ids, masks
        sizes = f"{len(opening.ids)} prompt"
        sizes += f" + {longest} completion tokens" if ids else " tokens"
        if self.overlong == "error":
            raise DataError(f"{sizes}, but data.max_length is {self.max_length} (data.overlong: error)")
        detail = f"{sizes}, max_length is {self.max_length}"
        if room < 1:
            raise _Drop("prompt_too_long", detail)
        if self.overlong == "drop":
            raise _Drop("too_long", detail)
        ids, masks = [i[:room] for i in ids], [m[:room] for m in masks]
        if not all(mask.any() for mask in masks):
            raise _Drop("truncated_to_nothing", detail)
        if _identical(ids):
            raise _Drop("identical_after_truncation", detail)
        report.truncated += 1
        report.lost.append(Lost(key, "truncated", detail))
        return ids, masks

    def _lint(self, group: Group, report: RenderReport) -> None:
        report.trained_tokens += group.scored
        sequences = list(zip(group.completions, group.masks, strict=True))
        if any(int(ids[mask][-1]) not in self.codec.ends for ids, mask in sequences):
            report.without_trained_eos += 1
        start = [int(i) for part in (group.prompt, *group.completions[:1]) for i in part[:2]]
        if self.codec.bos is not None and start[:2] == [self.codec.bos] * 2:
            report.double_bos += 1
        parts = (group.prompt, *group.completions)
        if self.codec.unknown is not None and any((part == self.codec.unknown).any() for part in parts):
            report.unknown += 1

    def _check_losses(self, report: RenderReport) -> None:
        lost = report.dropped.total() + report.truncated
        if report.kept and lost <= self.max_dropped * report.rows:
            return
        reasons = "; ".join(report.problems())
        example = ""
        if report.lost:
            first = report.lost[0]
            example = f" (first: {first.key}: {first.detail})"
        if not report.kept:
            raise DataError(f"{report.source}: no row is left to train on: {reasons}{example}")
        raise DataError(
            f"{report.source}: {lost} of {report.rows} rows would be dropped or truncated, more than "
            f"data.max_dropped={self.max_dropped:g} allows: {reasons}{example}"
        )


# --------------------------------------------------------------------------------------------------
# One row


class _Drop(Exception):
    """Leaves the current row out."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def sides_of(row: Mapping[str, Any], schema: str, family: str) -> tuple[Side, list[Side]]:
    """The prompt and the completions that ``family`` learns from in a row of ``schema``."""
    if schema == "text":
        return "", [row["text"]]
    if schema == "messages" or (schema == "unpaired" and "messages" in row):
        prompt, completion = split_conversation(row["messages"])
        return prompt, [] if family == "Rollouts" else [completion]
    if schema == "preference":
        chosen, rejected = _plain(row["chosen"]), _plain(row["rejected"])
        if row.get("prompt") is not None:
            prompt = _plain(row["prompt"])
            chosen, rejected = _without_prompt(chosen, prompt), _without_prompt(rejected, prompt)
        else:
            prompt, chosen, rejected = split_pair(chosen, rejected)
            if not prompt:
                raise _Drop("no_common_prompt", "no prompt, and the two sides begin differently")
        sides = {"Tokens": [chosen], "Rollouts": []}.get(family, [chosen, rejected])
        return prompt, sides
    prompt = _plain(row["prompt"])
    if schema == "prompt-only" or family == "Rollouts":
        return prompt, []
    return prompt, [_without_prompt(_plain(row["completion"]), prompt)]


def _plain(side: Side) -> Side:
    return side if isinstance(side, str) else plain_messages(side)


def _without_prompt(side: Side, prompt: Side) -> Side:
    """Messages that repeat the prompt before the answer (as UltraFeedback does), without it."""
    if isinstance(side, str) or not side:
        return side
    before = as_messages(prompt, "user")
    return side[len(before) :] if side[: len(before)] == before else side


def _identical(ids: Sequence[np.ndarray]) -> bool:
    return len(ids) == 2 and np.array_equal(ids[0], ids[1])


def _columns(row: Mapping[str, Any], schema: str, family: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Columns of the group and of its completions; a rollout keeps the whole row for its rewards."""
    used = {"prompt", "completion", "chosen", "rejected", "messages", "text", "label"}
    columns = {name: value for name, value in row.items() if family == "Rollouts" or name not in used}
    completion_columns: dict[str, np.ndarray] = {}
    if family == "Unpaired":
        labels = [True, False] if schema == "preference" else [as_label(row["label"])]
        completion_columns["label"] = np.array(labels, dtype=bool)
    if family in ("Pairs", "Scores") and {"score_chosen", "score_rejected"} <= row.keys():
        scores = [row["score_chosen"], row["score_rejected"]]
        completion_columns["score"] = np.array(scores, dtype=np.float32)
    return columns, completion_columns


def template_options(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row hands to the chat template: its tools and its ``chat_template_kwargs``."""
    options = dict(row.get("chat_template_kwargs") or {})
    tools = row.get("tools")
    if tools:
        options["tools"] = json.loads(tools) if isinstance(tools, str) else tools
    return options


def _is_empty(side: Side) -> bool:
    if isinstance(side, str):
        return not side.strip()
    # A turn that only calls a tool has no content, and yet something to learn.
    return bool(side) and not any((m.get("content") or "").strip() or m.get("tool_calls") for m in side)


def _quantiles(values: Sequence[int]) -> dict[str, float]:
    if not values:
        return {}
    points = np.quantile(values, [0.0, 0.5, 0.9, 0.99, 1.0])
    names = ("min", "median", "p90", "p99", "max")
    quantiles = {name: float(point) for name, point in zip(names, points, strict=True)}
    return {**quantiles, "mean": float(np.mean(values))}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
