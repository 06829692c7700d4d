"""One prompt and one completion to token ids and masks: the only place where text becomes tokens.

*With* a chat template everything goes through it; a string prompt is one user message and a string
completion one assistant message.  The text of the template with ``add_generation_prompt=True`` must be a
prefix of the text with the answer, turn by turn; a template that rewrites earlier turns is refused.
Special tokens come from the template alone, so a BOS is never added twice.

*Without* a chat template a row is plain text: prompt (with the tokenizer's own BOS, if it adds one) +
completion + EOS.  No template is invented, so conversations cannot be rendered.

Every completion ends with a trained end token: what the template puts behind an answer if that is a special
token (``<|im_end|>``, ``<end_of_turn>``, ...; a newline behind it is left out, because nobody samples it),
otherwise the tokenizer's EOS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from steelyard.data.sides import Side, as_messages
from steelyard.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NO_TEMPLATE = (
    "messages need a chat template, and the tokenizer has none; give one with `model.chat_template`, "
    "or use string prompts and completions"
)
_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Opening:
    """A prompt: its text as the model sees it, and its ids ``int32[p]``, never empty."""

    text: str
    ids: np.ndarray


@dataclass(frozen=True)
class Answer:
    """A completion behind an :class:`Opening`.

    Attributes:
        ids: ``int32[t]``, the end token included.
        mask: ``bool[t]``, True where the assistant speaks (content and end token of every turn).
        eos_appended: the template has no end token, so that the tokenizer's EOS was added.
        split_apart: tokenized on its own, because a token would straddle the boundary to the prompt.
    """

    ids: np.ndarray
    mask: np.ndarray
    eos_appended: bool = False
    split_apart: bool = False


class Codec:
    """Text to ids for one tokenizer; holds what is asked of the tokenizer only once.

    Raises:
        ModelError: the tokenizer has no EOS token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"the tokenizer {tokenizer.name_or_path!r} has no EOS token; expected one that ends answers"
            )
        self.tokenizer = tokenizer
        self.eos = as_id(tokenizer.eos_token_id)
        self.bos = None if tokenizer.bos_token_id is None else as_id(tokenizer.bos_token_id)
        self.template = bool(getattr(tokenizer, "chat_template", None))
        named = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        unknown = tokenizer.unk_token_id
        self._pieces_of: dict[int, str] = {}
        self.unknown = None if unknown is None or unknown in named else as_id(unknown)

    # ---------------------------------------------------------------------------- what is asked once

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end an answer: EOS, and the template's end of turn when it is another token."""
        if not self.template:
            return (self.eos,)
        question = [{"role": "user", "content": "a"}]
        try:
            opened = self._apply(question, _NOTHING, generation=True)
            closed = self._apply([*question, {"role": "assistant", "content": "b"}], _NOTHING)
        except DataError:  # a template that refuses this conversation; rows that it refuses are errors
            return (self.eos,)
        if not closed.startswith(opened):
            return (self.eos,)
        tail = self.encode(closed[len(opened) :])
        special = set(self.tokenizer.all_special_ids)
        special |= {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        last = _last(tail, special)
        if last < 1 or tail[last] == self.eos or not self._blank(tail[last + 1 :]):
            return (self.eos,)
        return (self.eos, tail[last])

    @cached_property
    def empty(self) -> int:
        """The token that stands for an empty prompt: BOS, or EOS where a tokenizer has no BOS."""
        return self.eos if self.bos is None else self.bos

    @cached_property
    def _first(self) -> list[int]:
        """Ids that the tokenizer puts before plain text (its BOS), found by trying."""
        bare, whole = self.encode("a"), as_ids(self.tokenizer("a")["input_ids"])
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return whole[:start]
        return []

    # ------------------------------------------------------------------------------ prompt and answer

    def opening(self, prompt: Side, options: Mapping[str, Any] = _NOTHING) -> Opening:
        """A prompt up to the place where the answer begins; ``options`` go to the chat template."""
        if not self.template:
            if not isinstance(prompt, str):
                raise DataError(_NO_TEMPLATE)
            return Opening(prompt, array([*self._first, *self.encode(prompt)] or [self.empty]))
        messages = as_messages(prompt, "user")
        text = self._apply(messages, options, generation=True)
        _check_content(messages[-1], text)
        return Opening(text, array(self.encode(text) or [self.empty]))

    def answer(self, opening: Opening, prompt: Side, completion: Side, options: Mapping[str, Any] = _NOTHING) -> Answer:
        """``completion`` behind ``opening``, which was made of ``prompt`` with the same ``options``."""
        if not self.template:
            return self._plain_answer(opening, completion)
        texts, trained = self._turns(opening.text, prompt, completion, options)
        pieces, split_apart = self._pieces(opening, texts)
        masks = [np.full(len(piece), flag) for piece, flag in zip(pieces, trained, strict=True)]
        eos_appended = False
        for index in (i for i, flag in enumerate(trained) if flag):
            piece = pieces[index]
            end = _last(piece, self.ends)
            closed = end >= 0 and self._blank(piece[end + 1 :])
            if index < len(trained) - 1:  # a later turn follows, so the separator stays, untrained
                masks[index][end + 1 if closed else len(piece) :] = False
            elif closed:
                pieces[index], masks[index] = piece[: end + 1], masks[index][: end + 1]
            else:
                pieces[index], eos_appended = [*piece, self.eos], True
                masks[index] = np.ones(len(piece) + 1, dtype=bool)
        mask = np.concatenate(masks) if masks else np.zeros(0, dtype=bool)
        return Answer(array([i for piece in pieces for i in piece]), mask, eos_appended, split_apart)

    def document(self, text: str) -> tuple[Opening, Answer]:
        """A ``text`` row: BOS as the prompt, the whole text and EOS as the completion; no template."""
        ids = array([*self.encode(text), self.eos])
        return Opening("", array([self.empty])), Answer(ids, np.ones(len(ids), dtype=bool))

    def _plain_answer(self, opening: Opening, completion: Side) -> Answer:
        if not isinstance(completion, str):
            raise DataError(_NO_TEMPLATE)
        pieces, split_apart = self._pieces(opening, [opening.text, opening.text + completion])
        ids = array([*pieces[0], self.eos])
        return Answer(ids, np.ones(len(ids), dtype=bool), split_apart=split_apart)

    def _turns(
        self, opening: str, prompt: Side, completion: Side, options: Mapping[str, Any]
    ) -> tuple[list[str], list[bool]]:
        """Growing texts ``[opening, ..., all]`` and, for each step between two, whether it is trained."""
        history, texts, trained = as_messages(prompt, "user"), [opening], []
        turns = as_messages(completion, "assistant")
        if turns and turns[0]["role"] != "assistant":
            role = turns[0]["role"]
            raise DataError(f"the completion starts with a '{role}' message, expected 'assistant'")
        for turn in turns:
            if turn["role"] == "assistant" and history[-1]["role"] == "assistant":
                raise DataError("two assistant messages follow each other; expected one message per turn")
            if turn["role"] == "assistant" and trained:
                texts.append(self._apply(history, options, generation=True))
                trained.append(False)
            history = [*history, turn]
            if turn["role"] == "assistant":
                texts.append(self._apply(history, options))
                trained.append(True)
                _check_content(turn, texts[-1][len(texts[-2]) :])
        for shorter, longer in zip(texts, texts[1:], strict=False):
            _check_prefix(shorter, longer)
        return texts, trained

    def _pieces(self, opening: Opening, texts: Sequence[str]) -> tuple[list[list[int]], bool]:
        """Ids of what each text adds to the one before it; the first text is the opening and is left out.

        The text is tokenized as a whole.  Where a token would straddle a boundary the pieces are tokenized
        on their own: the prompt's ids are what a sampler is given, so they must not depend on the answer.
        """
        if len(texts) == 1:
            return [], False
        before = [] if self.template else self._first
        prefixes = [[*before, *self.encode(text)] for text in texts[1:]]
        if opening.text:
            prefixes.insert(0, opening.ids.tolist())
        else:
            prefixes.insert(0, before)
        whole = prefixes[-1]
        if all(whole[: len(prefix)] == prefix for prefix in prefixes):
            return [b[len(a) :] for a, b in zip(prefixes, prefixes[1:], strict=False)], False
        return [self.encode(b[len(a) :]) for a, b in zip(texts, texts[1:], strict=False)], True

    # --------------------------------------------------------------------------------- tokenizer calls

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` alone: special tokens are only those that are written out in it."""
        return as_ids(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of ``ids``, without (or with) special tokens."""
        plain = [int(i) for i in ids]
        return str(self.tokenizer.decode(plain, skip_special_tokens=not special, clean_up_tokenization_spaces=False))

    def decode_each(self, ids: Sequence[int]) -> str:
        """As :meth:`decode`; single tokens, of which there are few kinds, are remembered."""
        if len(ids) != 1:
            return self.decode(ids)
        token = int(ids[0])
        if token not in self._pieces_of:
            self._pieces_of[token] = self.decode(ids)
        return self._pieces_of[token]

    def apply(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any] = _NOTHING) -> str:
        """The template's text of ``messages``, without a generation prompt."""
        return self._apply(messages, options)

    def _blank(self, ids: Sequence[int]) -> bool:
        return not ids or not self.decode(ids, special=True).strip()

    def _apply(
        self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any], *, generation: bool = False
    ) -> str:
        if not messages:
            raise DataError("the conversation has no message before its first assistant turn")
        if generation and messages[-1]["role"] == "assistant":
            raise DataError("the prompt ends with an assistant message; expected it to end before the answer")
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(m) for m in messages], tokenize=False, add_generation_prompt=generation, **options
            )
        except Exception as error:  # a template is a program: it may fail in any way
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(f"the chat template refuses the conversation ({roles}): {error}") from None
        return str(text)


def as_id(value: Any) -> int:
    """One token id as a plain integer."""
    return int(value)


def as_ids(values: Any) -> list[int]:
    """Token ids as plain integers."""
    return [int(value) for value in values]


def array(ids: Sequence[int]) -> np.ndarray:
    """Token ids as ``int32``."""
    return np.asarray(ids, dtype=np.int32)


def _last(ids: Sequence[int], wanted: Any) -> int:
    """Index of the last of ``ids`` that is in ``wanted``, or -1."""
    return next((i for i in range(len(ids) - 1, -1, -1) if ids[i] in wanted), -1)


def _check_content(message: Mapping[str, Any], text: str) -> None:
    """Templates made for images expect a list of blocks and quietly leave a string out."""
    content = message.get("content")
    bare = content.strip() if isinstance(content, str) else ""
    if bare and bare[:20] not in text and bare[-20:] not in text:
        raise DataError(
            f"the chat template leaves out what the {message['role']} says ({bare[:30]!r} is not in its text); "
            "give one for plain text with `model.chat_template`"
        )


def _check_prefix(shorter: str, longer: str) -> None:
    if longer.startswith(shorter):
        return
    pairs = enumerate(zip(shorter, longer, strict=False))
    place = next((i for i, (a, b) in pairs if a != b), len(longer))
    before, after = shorter[place : place + 30], longer[place : place + 30]
    raise DataError(
        "the chat template does not preserve prefixes: with one more turn the text changes at character "
        f"{place} from {before!r} to {after!r}, so that the answer cannot be masked exactly; give a template "
        "that only appends with `model.chat_template`, or keep one answer per row"
    )
