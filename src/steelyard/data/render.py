"""Rows to :class:`~steelyard.types.Group`: chat template, token ids, loss masks, truncation, lint.

Token ids are made here and nowhere else: training, evaluation and sampling all call :func:`prompt_ids` and
:func:`completion_ids`, so that a model is asked exactly what it was trained on.

*With* a chat template everything goes through it; a string prompt is one user message and a string completion
one assistant message.  The text of the template with ``add_generation_prompt=True`` must be a prefix of the
text with the answer, turn by turn; a template that rewrites earlier turns is refused.  Special tokens come
from the template alone, so a BOS is never added twice.

*Without* a chat template a row is plain text: prompt (with the tokenizer's own BOS, if it adds one) +
completion + EOS.  No template is invented, so conversations cannot be rendered.

Every completion ends with a trained end token: what the template puts behind an answer if that is a special
token (``<|im_end|>``, ``<end_of_turn>``, ...; its trailing newline is left out, because nobody samples it),
otherwise the tokenizer's EOS.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from steelyard.data.rows import (
    Side,
    Table,
    as_label,
    detect_schema,
    plain_messages,
    split_conversation,
    split_pair,
    validate,
)
from steelyard.errors import DataError, ModelError
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
    "Rollouts": ("prompt-only", "prompt-completion", "preference", "unpaired"),
}
"""Row schemas that a family of algorithms can learn from."""


# --------------------------------------------------------------------------------------------------
# Ids of one prompt and one completion


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Side, **options: Any) -> np.ndarray:
    """Token ids ``int32[p]`` of a prompt, ready for the first token of an answer; never empty.

    Args:
        prompt: plain text, or messages that end before an assistant turn.
        options: passed to the chat template (``tools=...``, ``enable_thinking=False``).
    """
    if not prompt and isinstance(prompt, str) and not has_template(tokenizer):
        return _empty_prompt(tokenizer)
    text = _prompt_text(tokenizer, prompt, options)
    ids = _encode(tokenizer, text) if has_template(tokenizer) else _encode_opening(tokenizer, text)
    return _array(ids) if ids else _empty_prompt(tokenizer)


def completion_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: Side, completion: Side, *, eos: bool = True, **options: Any
) -> np.ndarray:
    """Token ids ``int32[t]`` of ``completion`` behind :func:`prompt_ids` of ``prompt``, its end token included.

    ``eos=False`` leaves the end token out (the choices of a multiple-choice item).
    """
    rendered = _render(tokenizer, prompt, completion, options)
    ids = rendered.ids
    return ids if eos or not len(ids) or ids[-1] not in stop_ids(tokenizer) else ids[:-1]


def completion_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int] | np.ndarray) -> str:
    """The text of sampled ids, without special tokens: what rewards and verifiers see."""
    plain = [int(i) for i in ids]
    return tokenizer.decode(plain, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens that end an answer: the tokenizer's EOS, and the template's end of turn when it is another one."""
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer {tokenizer.name_or_path!r} has no EOS token; expected one that ends answers")
    ends = [int(tokenizer.eos_token_id)]
    if has_template(tokenizer):
        question: list[dict[str, Any]] = [{"role": "user", "content": "a"}]
        opened = _apply(tokenizer, question, {}, generation=True)
        closed = _apply(tokenizer, [*question, {"role": "assistant", "content": "b"}], {})
        tail = _encode(tokenizer, closed[len(opened) :]) if closed.startswith(opened) else []
        special = set(tokenizer.all_special_ids) | set(_special_added_tokens(tokenizer))
        end = next((i for i in range(len(tail) - 1, -1, -1) if tail[i] in special), None)
        if end is not None and end > 0 and tail[end] not in ends and _blank(tokenizer, tail[end + 1 :]):
            ends.append(tail[end])
    return tuple(ends)


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer carries a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


# --------------------------------------------------------------------------------------------------
# Whole tables


@dataclass(frozen=True)
class Dropped:
    """A row that no algorithm will see, and why."""

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
    prompt_tokens: list[int] = field(default_factory=list)
    """Prompt length of every rendered row, before anything is dropped."""
    completion_tokens: list[int] = field(default_factory=list)
    """Length of every rendered completion, before anything is cut."""
    trained_tokens: int = 0
    """Tokens with mask True over all kept rows."""
    examples: list[Dropped] = field(default_factory=list)
    """Every dropped row."""

    def lengths(self) -> dict[str, dict[str, float]]:
        """Quantiles of prompt and completion lengths in tokens."""
        return {"prompt": _quantiles(self.prompt_tokens), "completion": _quantiles(self.completion_tokens)}

    def problems(self) -> list[str]:
        """What a user should look at before training, one sentence each; empty when nothing is wrong."""
        found = [f"{count} of {self.rows} rows dropped: {_REASONS[why]}" for why, count in self.dropped.items()]
        if self.truncated:
            found.append(f"{self.truncated} rows have a completion that is cut at max_length={self.max_length}")
        if self.without_trained_eos:
            found.append(f"{self.without_trained_eos} rows train no end-of-answer token: the model may not learn to stop")
        if self.double_bos:
            found.append(f"{self.double_bos} rows begin with two BOS tokens: the text itself contains one")
        if self.split_apart:
            found.append(
                f"{self.split_apart} completions were tokenized apart from their prompt, because one token would "
                "straddle the boundary (a prompt that ends in a space is the usual cause)"
            )
        return found

    def lines(self) -> list[str]:
        """The report as printable lines."""
        form = "through the chat template" if self.template else "as plain text (the tokenizer has no chat template)"
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
            "trained_tokens": self.trained_tokens,
            "tokens": self.lengths(),
            "problems": self.problems(),
        }


_REASONS = {
    "prompt_too_long": "the prompt alone reaches max_length, so that no answer fits",
    "too_long": "prompt and completion are longer than max_length (data.overlong: drop)",
    "empty_completion": "a completion is empty",
    "no_trained_token": "no token is trained (a conversation without an assistant turn)",
    "identical_pair": "chosen and rejected are the same",
    "identical_after_truncation": "chosen and rejected are the same up to max_length",
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
        overlong: ``drop`` leaves longer rows out, ``truncate`` cuts their completions at the end, ``error`` stops.
        max_dropped: stop when a larger share of the rows is dropped or truncated.
        completion_only_loss: False also trains on the prompt (family ``Tokens`` only): all but its first token.
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
        self.ends = frozenset(stop_ids(tokenizer))

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
        self, table: Table | Sequence[Mapping[str, Any]], family: Family, *, source: str = "", strict: bool = True
    ) -> RenderResult:
        """Validate and render every row.

        Args:
            table: a table, or rows made in memory (then ``source`` names them).
            family: what an algorithm's first argument asks for.
            source: first part of ``Group.key``; default: the table's own.
            strict: False returns the report even when nothing, or too little, is left (for inspection).

        Raises:
            DataError: the rows do not fit the family, nothing is left, more than ``max_dropped`` is lost, a row is
                overlong with ``overlong: error``, or the template does not preserve prefixes.
        """
        if not isinstance(table, Table):
            table = Table.from_rows(table, source or "rows")
        source = source or table.source
        if not table.rows:
            raise DataError(f"{source}: there are no rows")
        if family not in SCHEMAS:
            raise DataError(f"no rows can be rendered for the family '{family}'; choices: {', '.join(SCHEMAS)}")
        schema = self._schema(table, family)
        report = RenderReport(source, schema, family, has_template(self.tokenizer), self.max_length)
        groups = []
        for index, row in enumerate(table.rows):
            report.rows += 1
            key = f"{source}:{table.lines[index]}"
            try:
                group = self._row(row, schema, family, key, report)
            except _Drop as drop:
                report.dropped[drop.reason] += 1
                report.examples.append(Dropped(key, drop.reason, drop.detail))
                continue
            groups.append(group)
            self._lint(group, report)
        report.kept = len(groups)
        if strict:
            self._check_losses(report)
        return RenderResult(groups, report)

    def _schema(self, table: Table, family: str) -> str:
        schema = detect_schema(table)
        if schema not in SCHEMAS[family]:
            wanted = " or ".join(SCHEMAS[family])
            columns = ", ".join(table.columns)
            raise DataError(f"{table.source}: {family} needs {wanted} rows, got {schema} rows (columns: {columns})")
        validate(table, schema)
        return schema

    def _row(self, row: Mapping[str, Any], schema: str, family: str, key: str, report: RenderReport) -> Group:
        prompt, completions = _sides(row, schema, family)
        options = _template_options(row)
        if schema == "text":
            prompt_tokens, rendered = _render_document(self.tokenizer, completions[0])
        else:
            prompt_tokens = self._guard(key, lambda: prompt_ids(self.tokenizer, prompt, **options))
            rendered = [
                self._guard(key, lambda side=side: _render(self.tokenizer, prompt, side, options))
                for side in completions
            ]
        report.prompt_tokens.append(len(prompt_tokens))
        report.completion_tokens.extend(len(r.ids) for r in rendered)
        report.eos_appended += sum(r.eos_appended for r in rendered)
        report.split_apart += sum(r.split_apart for r in rendered)
        for number, (side, r) in enumerate(zip(completions, rendered, strict=True), start=1):
            if _is_empty(side):
                raise _Drop("empty_completion", f"completion {number} of {len(completions)} is empty")
            if not r.mask.any():
                raise _Drop("no_trained_token", f"completion {number} of {len(completions)} trains no token")
        identical = len(rendered) == 2 and np.array_equal(rendered[0].ids, rendered[1].ids)
        if identical:
            raise _Drop("identical_pair", "chosen = rejected")
        room = self.max_length - len(prompt_tokens)
        ids, masks = [r.ids for r in rendered], [r.mask for r in rendered]
        if room < 1:
            self._too_long(key, "prompt_too_long", f"the prompt has {len(prompt_tokens)} tokens")
        longest = max((len(i) for i in ids), default=0)
        if longest > room:
            sizes = f"{len(prompt_tokens)} prompt + {longest} completion tokens"
            if self.overlong != "truncate":
                self._too_long(key, "too_long", sizes)
            ids, masks = [i[:room] for i in ids], [m[:room] for m in masks]
            if not all(m.any() for m in masks):
                raise _Drop("prompt_too_long", f"{sizes}: nothing trained is left of a completion")
            if len(ids) == 2 and np.array_equal(ids[0], ids[1]):
                raise _Drop("identical_after_truncation", sizes)
            report.truncated += 1
        if family == "Tokens" and not self.completion_only_loss and len(prompt_tokens) > 1:
            prompt_tokens, ids = prompt_tokens[:1], [np.concatenate([prompt_tokens[1:], ids[0]])]
            masks = [np.ones(len(ids[0]), dtype=bool)]
        columns, completion_columns = _columns(row, schema, family)
        return Group(
            prompt=prompt_tokens,
            completions=tuple(ids),
            masks=tuple(masks),
            columns=columns,
            completion_columns=completion_columns,
            key=key,
        )

    @staticmethod
    def _guard(key: str, make: Any) -> Any:
        """Name the row in errors that rendering raises."""
        try:
            return make()
        except DataError as error:
            raise DataError(f"{key}: {error}") from None

    def _too_long(self, key: str, reason: str, detail: str) -> None:
        if self.overlong == "error":
            raise DataError(f"{key}: {detail}, but data.max_length is {self.max_length} (data.overlong: error)")
        raise _Drop(reason, f"{detail}, max_length is {self.max_length}")

    def _lint(self, group: Group, report: RenderReport) -> None:
        report.trained_tokens += group.scored
        if any(int(ids[mask][-1]) not in self.ends for ids, mask in zip(group.completions, group.masks, strict=True)):
            report.without_trained_eos += 1
        bos = self.tokenizer.bos_token_id
        opening = [*group.prompt[:2], *(group.completions[0][:1] if group.completions else [])][:2]
        if bos is not None and opening == [bos, bos]:
            report.double_bos += 1

    def _check_losses(self, report: RenderReport) -> None:
        lost = report.dropped.total() + report.truncated
        if report.kept and lost <= self.max_dropped * report.rows:
            return
        reasons = "; ".join(report.problems())
        example = ""
        if report.examples:
            first = report.examples[0]
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


@dataclass(frozen=True)
class _Rendered:
    ids: np.ndarray
    mask: np.ndarray
    eos_appended: bool = False
    split_apart: bool = False


def _sides(row: Mapping[str, Any], schema: str, family: str) -> tuple[Side, list[Side]]:
    """The prompt and the completions that ``family`` wants of a row."""
    if schema == "text":
        return "", [row["text"]]
    if schema == "messages" or (schema == "unpaired" and "messages" in row):
        prompt, completion = split_conversation(row["messages"])
        return prompt, [] if family == "Rollouts" else [completion]
    if schema == "preference":
        chosen, rejected = _plain(row["chosen"]), _plain(row["rejected"])
        if "prompt" in row:
            prompt = _plain(row["prompt"])
        else:
            prompt, chosen, rejected = split_pair(chosen, rejected)
        sides = {"Tokens": [chosen], "Rollouts": []}.get(family, [chosen, rejected])
        return prompt, sides
    prompt = _plain(row["prompt"])
    if schema == "prompt-only" or family == "Rollouts":
        return prompt, []
    return prompt, [_plain(row["completion"])]


def _plain(side: Side) -> Side:
    return side if isinstance(side, str) else plain_messages(side)


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


def _template_options(row: Mapping[str, Any]) -> dict[str, Any]:
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


def _render_document(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[np.ndarray, list[_Rendered]]:
    """A ``text`` row: BOS as the prompt, all of the text and EOS as the completion; no template."""
    ids = _array([*_encode(tokenizer, text), tokenizer.eos_token_id])
    return _empty_prompt(tokenizer), [_Rendered(ids, np.ones(len(ids), dtype=bool))]


def _render(tokenizer: PreTrainedTokenizerBase, prompt: Side, completion: Side, options: Mapping[str, Any]) -> _Rendered:
    if not has_template(tokenizer):
        return _render_plain(tokenizer, prompt, completion)
    history = _as_messages(prompt, "user")
    turns = _as_messages(completion, "assistant")
    texts, trained = [_apply(tokenizer, history, options, generation=True)], []
    for turn in turns:
        if turn["role"] == "assistant":
            if trained:
                texts.append(_apply(tokenizer, history, options, generation=True))
                trained.append(False)
            history = [*history, turn]
            texts.append(_apply(tokenizer, history, options))
            trained.append(True)
        else:
            history = [*history, turn]
    for shorter, longer in zip(texts, texts[1:], strict=False):
        _check_prefix(shorter, longer)
    pieces, split_apart = _encode_pieces(tokenizer, texts)
    masks = [np.full(len(piece), flag) for piece, flag in zip(pieces, trained, strict=True)]
    ends = set(stop_ids(tokenizer))
    eos_appended = False
    for index, flag in enumerate(trained):
        if not flag:
            continue
        piece = pieces[index]
        end = next((i for i in range(len(piece) - 1, -1, -1) if piece[i] in ends), None)
        closed = end is not None and _blank(tokenizer, piece[end + 1 :])
        if index < len(trained) - 1:  # a later turn follows: what stands behind the end token stays, untrained
            if closed and end is not None:
                masks[index][end + 1 :] = False
        elif closed and end is not None:
            pieces[index], masks[index] = piece[: end + 1], masks[index][: end + 1]
        else:
            pieces[index] = [*piece, tokenizer.eos_token_id]
            masks[index] = np.ones(len(piece) + 1, dtype=bool)
            eos_appended = True
    ids = _array([token for piece in pieces for token in piece])
    mask = np.concatenate(masks) if masks else np.zeros(0, dtype=bool)
    return _Rendered(ids, mask, eos_appended, split_apart)


def _render_plain(tokenizer: PreTrainedTokenizerBase, prompt: Side, completion: Side) -> _Rendered:
    if not isinstance(prompt, str) or not isinstance(completion, str):
        raise DataError(_NO_TEMPLATE)
    opening = [int(i) for i in prompt_ids(tokenizer, prompt)]
    together = _encode_opening(tokenizer, prompt + completion)
    split_apart = bool(prompt) and together[: len(opening)] != opening
    ids = _encode(tokenizer, completion) if split_apart or not prompt else together[len(opening) :]
    ids = [*ids, int(tokenizer.eos_token_id)]
    return _Rendered(_array(ids), np.ones(len(ids), dtype=bool), split_apart=split_apart)


_NO_TEMPLATE = (
    "messages need a chat template, and the tokenizer has none; give one with `model.chat_template`, "
    "or use string prompts and completions"
)


def _as_messages(side: Side, role: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": side}] if isinstance(side, str) else list(side)


def _prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: Side, options: Mapping[str, Any]) -> str:
    if not has_template(tokenizer):
        if not isinstance(prompt, str):
            raise DataError(_NO_TEMPLATE)
        return prompt
    messages = _as_messages(prompt, "user")
    return _apply(tokenizer, messages, options, generation=True)


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, Any]],
    options: Mapping[str, Any],
    *,
    generation: bool = False,
) -> str:
    if not messages:
        raise DataError("the conversation has no message before its first assistant turn")
    if generation and messages[-1]["role"] == "assistant":
        raise DataError("the prompt ends with an assistant message; expected it to end before the answer")
    # Templates may raise any exception of their own language.
    import jinja2

    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation, **dict(options)
        )
    except jinja2.TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(f"the chat template refuses this conversation (roles: {roles}): {error}") from None
    return str(text)


def _check_prefix(shorter: str, longer: str) -> None:
    if longer.startswith(shorter):
        return
    place = next((i for i, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b), len(longer))
    raise DataError(
        f"the chat template does not preserve prefixes: with one more turn the text changes at character {place} from "
        f"{shorter[place : place + 30]!r} to {longer[place : place + 30]!r}; the answer could not be masked exactly. "
        "Give a template that only appends with `model.chat_template`, or keep only the last answer of each row"
    )


# --------------------------------------------------------------------------------------------------
# Tokenizer calls


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]


def _encode_opening(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of plain text at the start of a sequence: with the tokenizer's BOS if it adds one, without its EOS."""
    ids = list(tokenizer(text)["input_ids"])  # type: ignore[arg-type]
    bare = _encode(tokenizer, text)
    if len(ids) > len(bare) and ids and ids[-1] == tokenizer.eos_token_id and bare[-1:] != ids[-1:]:
        ids.pop()
    return ids


def _encode_pieces(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[list[list[int]], bool]:
    """Ids of what each text adds to the one before it; the first text is the prompt and is left out.

    The whole conversation is tokenized at once.  Where a token would straddle a boundary, the pieces are
    tokenized on their own: the prompt's ids are what a sampler is given, so they must not depend on the answer.
    """
    if len(texts) == 1:
        return [], False
    prefixes = [_encode(tokenizer, text) for text in texts]
    whole = prefixes[-1]
    if all(whole[: len(prefix)] == prefix for prefix in prefixes):
        return [b[len(a) :] for a, b in zip(prefixes, prefixes[1:], strict=False)], False
    return [_encode(tokenizer, b[len(a) :]) for a, b in zip(texts, texts[1:], strict=False)], True


def _blank(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> bool:
    return not ids or not tokenizer.decode(list(ids), skip_special_tokens=False).strip()


def _special_added_tokens(tokenizer: PreTrainedTokenizerBase) -> Iterable[int]:
    decoder = getattr(tokenizer, "added_tokens_decoder", {})
    return (index for index, token in decoder.items() if token.special)


def _empty_prompt(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """BOS; tokenizers without one separate documents by EOS."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return _array([start])


def _array(ids: Sequence[int]) -> np.ndarray:
    return np.asarray(ids, dtype=np.int32)


def _quantiles(values: Sequence[int]) -> dict[str, float]:
    if not values:
        return {}
    points = np.quantile(values, [0.0, 0.5, 0.9, 0.99, 1.0])
    names = ("min", "median", "p90", "p99", "max")
    return {**{name: float(point) for name, point in zip(names, points, strict=True)}, "mean": float(np.mean(values))}
