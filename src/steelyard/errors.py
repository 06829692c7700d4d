"""Errors that users see: what went wrong, where, what was expected, and the nearest valid choice.

Every error that Steelyard raises on purpose derives from :class:`SteelyardError`, which is also a
``ValueError``, so that callers may catch either.  The command line prints the message alone (no
traceback) and exits with :attr:`SteelyardError.exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SteelyardError(ValueError):
    """Base class: one clear sentence in ``str(error)``."""

    exit_code = 2


class ConfigError(SteelyardError):
    """A configuration file, flag or recipe asks for something that does not exist or does not fit."""


class DataError(SteelyardError):
    """Rows that cannot be read or rendered; the message names file, row (1-based) and column."""


class ModelError(SteelyardError):
    """A model directory that cannot be used (missing tokenizer, unknown architecture, ...)."""


class NumericalError(SteelyardError):
    """NaN or infinity in a loss, a gradient or a weight; training stops at once."""

    exit_code = 3


class RunError(SteelyardError):
    """A run or study directory is unusable, already finished, or does not belong to this config."""


class StudyError(SteelyardError):
    """A study's evidence is degenerate (identical seeds, missing cells) or a job of it failed."""

    exit_code = 4


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice most similar to ``word``, or ``None`` when nothing is close."""
    lowered = {choice.lower(): choice for choice in choices}
    match = difflib.get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.5)
    return lowered[match[0]] if match else None


def unknown(what: str, word: str, choices: Iterable[str], *, where: str = "") -> str:
    """Compose ``unknown <what> '<word>'`` with the choices and the nearest one.

    >>> unknown("algorithm", "dpoo", ["dpo", "ipo"], where="recipe.yaml: algorithm.name")
    "recipe.yaml: algorithm.name: unknown algorithm 'dpoo'; choices: dpo, ipo. Did you mean 'dpo'?"
    """
    choices = sorted(choices)
    guess = nearest(word, choices)
    place = f"{where}: " if where else ""
    hint = f" Did you mean '{guess}'?" if guess else ""
    listed = ", ".join(choices) if choices else "(none)"
    return f"{place}unknown {what} '{word}'; choices: {listed}.{hint}"
