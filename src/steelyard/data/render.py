"""Rows to :class:`~steelyard.types.Group`: token ids, loss masks, truncation, and a report of what was lost.

How one prompt and one completion become tokens is :mod:`steelyard.data.chat`.  Training, evaluation and
sampling all call :func:`prompt_ids` and :func:`completion_ids`, so that a model is asked exactly what it was
trained on.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from steelyard.data.chat import Answer, Codec, Opening
from steelyard.data.numbers import as_number, check_numbers, check_optional_numbers
from steelyard.data.rows import Table
from steelyard.data.schemas import Family, as_label, schema_for, step_labels
from steelyard.data.sides import Dropped, Side, sides_of, steps_of, template_options
from steelyard.data.steps import NO_LINE_BREAK, SEPARATOR, step_ends
from steelyard.errors import DataError
from steelyard.types import Group

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from steelyard.config import DataConfig

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
    """Kept completions, or steps, by label (of families that have them)."""
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
    "identical_pair": "chosen and rejected are the same (or all completions of a list)",
    "identical_tokens": "chosen and rejected differ, but the chat template or the tokenizer loses the difference",
    "truncated_to_nothing": "nothing trained is left of a completion after the cut at max_length",
    "identical_after_truncation": "chosen and rejected are the same up to max_length",
    "equal_scores": "all completions of a list have the same score: nothing is ranked",
    "steps_lost": "the steps of an answer cannot be told apart in its tokens",
    "empty_step": "a step is empty, so that its label has no place",
    "no_step_label": "no step has a label",
}


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
        columns: Sequence[str] = (),
        optional: Sequence[str] = (),
        source: str = "",
        strict: bool = True,
    ) -> RenderResult:
        """Validate and render every row.

        Args:
            table: a table, or rows made in memory (then ``source`` names them).
            family: what an algorithm's first argument asks for; ``StepLabels`` for the `TokenScores` of a head
                that labels steps (:func:`steelyard.data.schemas.row_family`).
            columns: numbers that every row must have (``AlgorithmSpec.columns``); they become columns of the group.
            optional: numbers that every row has or none (``AlgorithmSpec.optional_columns``); likewise.
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
        schema = schema_for(table, family)
        check_numbers(table, columns)
        columns = [*columns, *check_optional_numbers(table, optional)]
        report = RenderReport(source, schema, family, self.codec.template, self.max_length)
        groups = []
        for index, row in enumerate(table.rows):
            report.rows += 1
            key = f"{PurePath(source).name}:{table.lines[index]}"
            try:
                group = self._row(row, schema, family, key, report)
                numbers = {name: as_number(row[name]) for name in columns}
                group = group.replace(columns={**group.columns, **numbers}) if numbers else group
            except DataError as error:
                raise DataError(f"{table.where(index)}: {error}") from None
            except Dropped as drop:
                report.dropped[drop.reason] += 1
                report.lost.append(Lost(key, drop.reason, drop.detail))
                continue
            groups.append(group)
            self._lint(group, report)
            if "label" in group.completion_columns:
                report.labels.update(group.completion_columns["label"].tolist())
            for labels in group.token_columns.get("step_label", ()):
                report.labels.update((labels[~np.isnan(labels)] >= 0.5).tolist())
        report.kept = len(groups)
        if strict:
            self._check_losses(report)
        return RenderResult(groups, report)

    def _row(self, row: Mapping[str, Any], schema: str, family: str, key: str, report: RenderReport) -> Group:
        """One row; raises :class:`Dropped` when it must be left out."""
        opening, sides, answers = self._tokenize(row, schema, family)
        report.prompt_tokens.append(len(opening.ids))
        report.completion_tokens.extend(len(answer.ids) for answer in answers)
        report.eos_appended += sum(answer.eos_appended for answer in answers)
        report.split_apart += sum(answer.split_apart for answer in answers)
        for number, (side, answer) in enumerate(zip(sides, answers, strict=True), start=1):
            if _is_empty(side):
                raise Dropped("empty_completion", f"completion {number} of {len(sides)} is empty")
            if not answer.mask.any():
                raise Dropped("no_trained_token", f"completion {number} of {len(sides)} trains no token")
        ids, masks = [answer.ids for answer in answers], [answer.mask for answer in answers]
        if _identical(ids):
            same = all(side == sides[0] for side in sides)
            raise Dropped("identical_pair" if same else "identical_tokens", "chosen = rejected")
        labels = self._step_labels(row, schema, ids[0], masks[0]) if family == "StepLabels" else None
        columns, completion_columns = _columns(row, schema, family)
        ids, masks = self._fit(key, opening, ids, masks, report, labels)
        prompt = opening.ids
        if family in ("Tokens", "Distill") and not self.completion_only_loss and len(prompt) > 1:
            ids, prompt = [np.concatenate([prompt[1:], ids[0]])], prompt[:1]
            masks = [np.ones(len(ids[0]), dtype=bool)]
        return Group(
            prompt=prompt,
            completions=tuple(ids),
            masks=tuple(masks),
            columns=columns,
            completion_columns=completion_columns,
            token_columns={} if labels is None else {"step_label": (labels[: len(ids[0])],)},
            key=key,
        )

    def _step_labels(self, row: Mapping[str, Any], schema: str, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """``float32[t]``: each step's label at its last token, NaN elsewhere."""
        given = step_labels(row, schema)
        empty = next((i for i, step in enumerate(steps_of(row, schema), start=1) if not step.strip()), None)
        if empty is not None:
            raise Dropped("empty_step", f"step {empty} of {len(given)} is empty")
        ends = step_ends(ids.tolist(), self.codec.decode_each, count=len(given))
        if len(ends) != len(given):
            detail = f"{len(given)} steps, but {len(ends)} can be told apart in its tokens"
            if SEPARATOR not in self.codec.decode(ids.tolist()):
                detail += f": {NO_LINE_BREAK}"
            raise Dropped("steps_lost", detail)
        labels = np.full(len(ids), np.nan, np.float32)
        labels[ends] = given
        if np.isnan(labels[mask]).all():
            raise Dropped("no_step_label", "every step is unlabelled")
        return labels

    def _tokenize(self, row: Mapping[str, Any], schema: str, family: str) -> tuple[Opening, list[Side], list[Answer]]:
        prompt, sides = sides_of(row, schema, family)
        if schema == "text":
            opening, answer = self.codec.document(row["text"])
            return opening, sides, [answer]
        options = template_options(row)
        opening = self.codec.opening(prompt, options)
        return opening, sides, [self.codec.answer(opening, prompt, side, options) for side in sides]

    def _fit(
        self,
        key: str,
        opening: Opening,
        ids: list[np.ndarray],
        masks: list[np.ndarray],
        report: RenderReport,
        labels: np.ndarray | None = None,
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
            raise Dropped("prompt_too_long", detail)
        if self.overlong == "drop":
            raise Dropped("too_long", detail)
        ids, masks = [i[:room] for i in ids], [m[:room] for m in masks]
        unlabelled = labels is not None and np.isnan(labels[:room]).all()
        if unlabelled or not all(mask.any() for mask in masks):
            raise Dropped("truncated_to_nothing", detail)
        if _identical(ids):
            raise Dropped("identical_after_truncation", detail)
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


def _identical(ids: Sequence[np.ndarray]) -> bool:
    return len(ids) > 1 and all(np.array_equal(other, ids[0]) for other in ids[1:])


_USED = {"prompt", "completion", "chosen", "rejected", "messages", "text", "label"}
_USED_LISTS = {"completions", "scores", "ranks", "labels", "steps", "mistake_index"}


def _columns(row: Mapping[str, Any], schema: str, family: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Columns of the group and of its completions; a rollout keeps the whole row for its rewards."""
    used = _USED | (_USED_LISTS if schema in ("ranked", "stepwise", "first-mistake") else set())
    columns = {name: value for name, value in row.items() if family == "Rollouts" or name not in used}
    completion_columns: dict[str, np.ndarray] = {}
    if family in ("Unpaired", "TokenScores"):
        labels = [True, False] if schema == "preference" else [as_label(row["label"])]
        completion_columns["label"] = np.array(labels, dtype=bool)
    if family == "Ranked":
        by_rank = row.get("scores") is None
        scores = [as_number(value) for value in row["ranks" if by_rank else "scores"]]
        if len(set(scores)) == 1:
            raise Dropped("equal_scores", f"every completion has {'rank' if by_rank else 'score'} {scores[0]:g}")
        completion_columns["score"] = np.array([-score if by_rank else score for score in scores], dtype=np.float32)
    if family in ("Pairs", "Scores") and {"score_chosen", "score_rejected"} <= row.keys():
        with contextlib.suppress(ValueError):  # numbers that nobody declared are not checked
            scores = [as_number(row["score_chosen"]), as_number(row["score_rejected"])]
            completion_columns["score"] = np.array(scores, dtype=np.float32)
    return columns, completion_columns


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
