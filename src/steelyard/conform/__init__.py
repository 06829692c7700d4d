"""Does a loss keep what is promised of every algorithm?  One battery, for the package's own and for yours.

The tests run it over the registry; ``steelyard algorithms conform my_algorithm.py`` runs it over a file.  What
needs numbers from outside (golden values, other people's trainers) is not here but in the tests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from steelyard.algorithms.catalogue import resolve_hyperparameters
from steelyard.algorithms.core import AlgorithmSpec, Extra
from steelyard.conform.checks import CHECKS, Check, DoesNotApply
from steelyard.errors import ConfigError

Verdict = Literal["holds", "fails", "excepted", "does not apply"]


@dataclass(frozen=True)
class Result:
    """What one check found.

    Attributes:
        why: what is wrong, why it does not apply, or why the method is excepted; "" where it holds.
        setting: the hyperparameters at which it fails; empty at the defaults.
    """

    check: Check
    verdict: Verdict
    why: str = ""
    setting: Mapping[str, Any] | None = None


def conform(
    spec: AlgorithmSpec, *, settings: Sequence[Mapping[str, Any]] = (), exceptions: Mapping[str, str] | None = None
) -> list[Result]:
    """Run every check at the defaults and at ``settings``; ``exceptions`` (check -> why) are not run.

    Raises:
        ConfigError: an exception from a check that does not exist.
    """
    exceptions = exceptions or {}
    for name in exceptions:
        if name not in CHECKS:
            raise ConfigError(f"{spec.key}: there is no check '{name}'; checks: {', '.join(CHECKS)}")
    return [
        Result(check, "excepted", exceptions[name]) if name in exceptions else _run(check, spec, settings)
        for name, check in CHECKS.items()
    ]


def _run(check: Check, spec: AlgorithmSpec, settings: Sequence[Mapping[str, Any]]) -> Result:
    for setting in ({},) if check.once else ({}, *settings):
        try:
            check.run(spec, setting)
        except DoesNotApply as reason:
            return Result(check, "does not apply", str(reason))
        except AssertionError as error:
            return Result(check, "fails", str(error), setting)
        except Exception as error:  # a loss may break in any way; that is a finding, not a crash of the battery
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return Result(check, "fails", why + _remedy(spec, error), setting)
    return Result(check, "holds")


def _remedy(spec: AlgorithmSpec, error: Exception) -> str:
    """What to declare, where the loss asks its view for something that the method has not declared."""
    words = str(error)
    column = re.search(r"needs the column '(\w+)'", words)
    extra = re.search(r"needs '(\w+)' of every token", words)
    if column and column[1] not in spec.columns:
        return f"; declare {_declared('columns', (*spec.columns, column[1]))}"
    if extra and extra[1] in get_args(Extra) and extra[1] not in spec.extras:
        return f"; declare {_declared('extras', (*spec.extras, extra[1]))}"
    if re.search(r"needs (token-level )?reference", words) and spec.reference == "none":
        return "; declare `reference=True`"
    return ""


def _declared(name: str, values: tuple[str, ...]) -> str:
    """``columns=("margin",)`` as it is written in the decorator."""
    return f"`{name}=({', '.join(f'{chr(34)}{value}{chr(34)}' for value in values)}{',' * (len(values) == 1)})`"


def variations(spec: AlgorithmSpec) -> list[dict[str, Any]]:
    """Settings worth testing besides the defaults: every choice, every switch flipped, every number doubled."""
    found: list[dict[str, Any]] = []
    declared = spec.describe()["hyperparameters"]
    for name, hp in spec.hyperparameters.items():
        values: list[Any] = [choice for choice in hp.choices if choice != hp.default]
        if isinstance(hp.default, bool):
            values = [not hp.default]
        elif isinstance(hp.default, int | float):
            values = [2 * hp.default] if hp.default else [1.0 if hp.type == "float" else 1]
        for value in values:
            try:
                resolve_hyperparameters(spec.key, {name: value}, declared=declared)
            except ConfigError:
                continue  # out of bounds
            found.append({name: value})
    return found
