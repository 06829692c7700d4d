"""Verifiers of final numbers, in the form of GSM8K: the answer stands after ``#### `` at the end.

One extraction serves training (as a reward), evaluation and data selection.  *Strict* asks for the format:
the line after the last ``####`` must be a number and nothing else.  *Flexible* takes that number if there is
one and otherwise the last number anywhere, so a strict success is always a flexible one, and the difference
between the two is the share of format.  Numbers are compared exactly, as fractions.  Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal

from steelyard.evals.task import Verdict
from steelyard.rewards.core import reward

MARKER = "####"
"""What stands before the final answer."""

MAX_DIGITS = 100
"""Longer digit strings are no answers (and quadratic to convert): they count as "no number"."""

# A sign belongs to a number only where no operand stands before it: "10-5" ends in 5, "= -5" in -5.
# Thousands may be grouped by commas (1,000 or 1,00,000); "3/4" is a fraction, "48 / 2" two numbers.
_INTEGER = r"[0-9]{1,3}(?:,[0-9]{2,3})*,[0-9]{3}(?![0-9])|[0-9]+"
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w)])[-+](?=\$?[.0-9]))?\$?"
    rf"(?P<number>(?:{_INTEGER})(?:\.[0-9]+)?|\.[0-9]+)(?:/(?P<over>[0-9]+)(?![0-9.]))?"
)


def parse_number(text: str) -> Fraction | None:
    """The number that ``text`` is, or ``None``.

    Blanks around it, ``$``, ``%``, commas between thousands, a sign, a decimal point, a trailing full stop
    and a fraction bar are understood; a percentage is its number (``50%`` is 50).

    >>> parse_number(" -$1,234.50. "), parse_number("3/4"), parse_number("42 apples")
    (Fraction(-2469, 2), Fraction(3, 4), None)
    """
    text = _plain(text).strip().rstrip(".").rstrip(" %$")
    match = _NUMBER.fullmatch(re.sub(r"^(-?)\s*\$\s*", r"\1$", text))
    return _value(match) if match else None


def extract_number(text: str, mode: Literal["strict", "flexible"] = "strict") -> Fraction | None:
    """The final answer in ``text``, or ``None`` when there is none (the modes: see the module)."""
    _, marker, tail = text.rpartition(MARKER)
    if marker:
        number = parse_number(tail.lstrip(" \t").split("\n", 1)[0])
        if number is not None:
            return number
    if mode == "strict":
        return None
    numbers = (_value(match) for match in _NUMBER.finditer(_plain(text)))
    return next((n for n in reversed(list(numbers)) if n is not None), None)


def verify_number(text: str, answer: str) -> Verdict:
    """Compare the number in a completion with the gold ``answer``: a number, or a text ending in ``#### N``.

    An answer in which no number can be found makes the item unscorable: ``Verdict(None, None)``.  An empty
    completion is judged wrong; callers that report show it apart (:func:`is_empty`).
    """
    gold = extract_number(answer, "strict") if MARKER in answer else parse_number(answer)
    if gold is None:
        return Verdict(None, None)
    return Verdict(strict=extract_number(text, "strict") == gold, flexible=extract_number(text, "flexible") == gold)


def is_empty(text: str) -> bool:
    """Whether a completion says nothing at all: its own category in every report, apart from wrong."""
    return not text.strip()


def _plain(text: str) -> str:
    """Typographic minus signs and ``$-5`` in their plain forms ``-`` and ``-$5``."""
    return text.replace("\N{MINUS SIGN}", "-").replace("$-", "-$")


def _value(match: re.Match[str]) -> Fraction | None:
    number, over = match["number"].replace(",", ""), match["over"]
    if len(number) > MAX_DIGITS or (over and (len(over) > MAX_DIGITS or int(over) == 0)):
        return None
    value = Fraction(number) / (int(over) if over else 1)
    return -value if match["sign"] == "-" else value


# --------------------------------------------------------------------------------------------------
# The same as rewards.


@reward("answer")
def answer_reward(
    prompts: Sequence[Any],
    completions: Sequence[str],
    completion_ids: Sequence[Any],
    *,
    answer: Sequence[Any] | None = None,
    finished: Sequence[bool] | None = None,
    **columns: Any,
) -> list[float | None]:
    """1 when the number after ``####`` is the row's ``answer``, else 0; ``None`` for rows without one.

    A completion that was cut off (``finished`` is False) is not right: never stopping must not be rewarded.
    """
    ended = [True] * len(completions) if finished is None else finished
    verdicts = _verdicts(completions, answer)
    return [
        _as_reward(v.strict and end if v.strict is not None else None) for v, end in zip(verdicts, ended, strict=True)
    ]


@reward("answer_flexible")
def answer_flexible_reward(
    prompts: Sequence[Any],
    completions: Sequence[str],
    completion_ids: Sequence[Any],
    *,
    answer: Sequence[Any] | None = None,
    **columns: Any,
) -> list[float | None]:
    """1 when the final number, wherever it stands, is the row's ``answer``, else 0; ``None`` without one."""
    return [_as_reward(verdict.flexible) for verdict in _verdicts(completions, answer)]


@reward("format")
def format_reward(
    prompts: Sequence[Any], completions: Sequence[str], completion_ids: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1 when the completion gives a number after ``####``, right or wrong, else 0."""
    return [float(extract_number(text, "strict") is not None) for text in completions]


def _verdicts(completions: Sequence[str], answers: Sequence[Any] | None) -> list[Verdict]:
    if answers is None:
        return [Verdict(None, None)] * len(completions)
    return [
        Verdict(None, None) if answer is None else verify_number(text, str(answer))
        for text, answer in zip(completions, answers, strict=True)
    ]


def _as_reward(verdict: bool | None) -> float | None:
    return None if verdict is None else float(verdict)
