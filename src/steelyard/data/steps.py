"""Steps of a completion: where they end, in text and in tokens.

One rule for training and scoring, because a process reward model is read at the tokens where its labels stood.  Steps
are lines; text of one line has steps that end with a full stop that stands alone (`5 + 3 = 8 . 8 * 2 = 16 . #### 16`).
A last step without a separator ends with the completion's last token.  This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

SEPARATOR = "\n"
"""Between the steps of a completion that is made from a list of steps."""

_STOP = "."

NO_LINE_BREAK = (
    f"this tokenizer has no line break; end each step with a full stop that stands alone (`5 + 3 = 8 {_STOP}`), and "
    "let none stand alone inside a step"
)
"""What to do where :func:`step_ends` cannot tell steps apart because the tokens of an answer hold no line break."""


def join_steps(steps: Sequence[str]) -> str:
    """A list of steps as one text; line breaks inside a step become spaces."""
    return SEPARATOR.join(" ".join(step.split()) for step in steps)


def split_steps(text: str) -> list[str]:
    """The steps of a text, without their separators; no empty ones."""
    parts = text.split(SEPARATOR) if SEPARATOR in text.strip() else f" {text} ".split(f" {_STOP} ")
    return [part.strip() for part in parts if part.strip()]


def step_ends(ids: Sequence[int], text: Callable[[Sequence[int]], str], *, count: int | None = None) -> list[int]:
    """Index of the last token of every step in the completion ``ids``.

    Args:
        ids: token ids, end token included where there is one.
        text: token ids -> text, without special tokens (``Codec.decode``).
        count: how many steps were joined (:func:`join_steps`), where that is known: a single step that has a full
            stop standing alone is then still one step.

    Returns:
        As many indices as :func:`split_steps` gives steps, unless one token holds several separators.
    """
    if count == 1:
        return [len(ids) - 1]
    pieces = [text([int(i)]) for i in ids]
    written = text([int(i) for i in ids])
    lines = SEPARATOR in written.strip()
    ends = []
    begun = False
    for place, piece in enumerate(pieces):
        if lines and SEPARATOR in piece:
            before, _, after = piece.partition(SEPARATOR)
            if begun or before.strip():
                ends.append(place)
            begun = bool(after.strip())
        elif not lines and piece.strip() == _STOP:
            if begun:
                ends.append(place)
            begun = False
        else:
            begun = begun or bool(piece.strip())
    if begun:
        ends.append(len(ids) - 1)
    return ends
