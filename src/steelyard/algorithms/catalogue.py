"""The algorithms' names, hyperparameters and metadata, readable without importing torch.

``catalogue.json`` is generated from the decorated functions (``python -m steelyard.algorithms.generate``)
and checked by a test, so that configuration, ``--help`` and study planning stay instant.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from importlib.resources import files
from typing import Any

from steelyard.algorithms import oxrl
from steelyard.algorithms.facts import sections
from steelyard.errors import ConfigError, unknown


@cache
def load_catalogue() -> dict[str, dict[str, Any]]:
    """Every algorithm by key; see :meth:`steelyard.algorithms.core.AlgorithmSpec.describe` for the fields."""
    text = files("steelyard.algorithms").joinpath("catalogue.json").read_text(encoding="utf-8")
    return json.loads(text)


OF_YOUR_OWN = "An algorithm of your own needs --plugin FILE."
"""How the message about an unknown algorithm ends: the name may be a plugin's that was not given."""

_plugins: dict[str, dict[str, Any]] = {}


def add_plugin_entry(name: str, entry: dict[str, Any]) -> None:
    """Make an algorithm of a plugin known to this process's configuration (never written to disk)."""
    _plugins[name] = {**sections(entry.get("doc", "")), "module": "", **entry}


def resolve(name: str, *, where: str = "algorithm.name") -> str:
    """The key that ``name`` stands for: itself, what an oxRL name means here, or an installed package's.

    A package offers an algorithm through the entry-point group ``steelyard.algorithms``; it is imported only
    when it is asked for by name.

    Raises:
        ConfigError: nothing of that name (with the nearest key), or an oxRL name whose algorithm is not built.
    """
    known = entries()
    if name in known:
        return name
    if (key := oxrl.target(name, known, where=where)) is not None:
        return key
    if name in installed():
        _load_installed(name)
        return name
    own = f" {OF_YOUR_OWN}" if where != "loss" else ""  # `steelyard.loss` is called where no flag is
    raise ConfigError(unknown("algorithm", name, {*known, *installed()}, where=where) + own)


def key_of(name: str) -> str:
    """Like :func:`resolve`, but a name that means nothing is returned as it is."""
    try:
        return resolve(name)
    except ConfigError:
        return name


def installed() -> dict[str, str]:
    """Names of algorithms that installed packages offer, and where each comes from."""
    return {point.name: point.value for point in entry_points(group="steelyard.algorithms")}


def _load_installed(name: str) -> None:
    from steelyard.algorithms import load
    from steelyard.algorithms.core import AlgorithmSpec, algorithms

    load()  # first, so that a name which is already taken is refused where it is taken again
    spec = algorithms.get(name)
    if not isinstance(spec, AlgorithmSpec):
        raise ConfigError(f"entry point {installed()[name]} registers no algorithm called '{name}'")
    add_plugin_entry(name, spec.describe())


def entries() -> dict[str, dict[str, Any]]:
    """Every entry that this process knows: the catalogue, and those of plugins."""
    return load_catalogue() | _plugins


def describe(name: str, *, where: str = "algorithm.name") -> dict[str, Any]:
    """The catalogue entry of ``name``; raises :class:`ConfigError` with the nearest key (see :func:`resolve`)."""
    key = resolve(name, where=where)
    return _plugins[key] if key in _plugins else load_catalogue()[key]


def resolve_hyperparameters(
    name: str, given: Mapping[str, Any], *, declared: Mapping[str, dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Defaults of ``name`` overridden by ``given``; unknown names, wrong types and broken bounds raise.

    ``declared`` describes the hyperparameters; default: the catalogue's entry.
    """
    entries = describe(name)["hyperparameters"] if declared is None else declared
    values = {key: entry["default"] for key, entry in entries.items()}
    for word, value in given.items():
        key, where = word if word in entries else SYMBOLS.get(word, word), f"algorithm.{word}"
        if key not in entries:
            raise ConfigError(unknown(f"hyperparameter of {name}", word, entries, where=where))
        if key != word and key in given:
            raise ConfigError(f"{where}: '{word}' is another name of '{key}', which is given too")
        values[key] = _check(where, value, entries[key])
    return values


SYMBOLS = {
    "lamD": "desirable_weight",
    "lamU": "undesirable_weight",
    "eta": "centering",
    "w_lm": "lm_weight",
    "Rmax": "r_max",
    "eps": "label_smoothing",
}
"""Symbols of the papers for hyperparameters that go by a longer name here; a name of the method's own comes first."""


_BOUNDS = {
    "gt": ("greater than", lambda value, bound: value > bound),
    "ge": ("at least", lambda value, bound: value >= bound),
    "lt": ("less than", lambda value, bound: value < bound),
    "le": ("at most", lambda value, bound: value <= bound),
}

_KINDS = {"float": "number", "int": "whole number", "str": "string", "bool": "value true or false"}


def _check(where: str, value: Any, entry: dict[str, Any]) -> Any:
    if hasattr(value, "item"):  # a NumPy or torch scalar
        value = value.item()
    if value is None:
        if entry.get("optional"):
            return None
        raise ConfigError(f"{where}: expected a {_KINDS.get(entry['type'], entry['type'])}, got null")
    kind = entry["type"]
    if kind == "float" and isinstance(value, str):  # YAML reads 1e-6 as a string
        with contextlib.suppress(ValueError):
            value = float(value)
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value).__name__ != kind or (isinstance(value, float) and not math.isfinite(value)):
        shown = str(value).lower() if isinstance(value, bool) else repr(value)
        raise ConfigError(f"{where}: expected a {_KINDS.get(kind, kind)}, got {shown}")
    for name, bound in entry.get("bounds", {}).items():
        words, holds = _BOUNDS[name]
        if not holds(value, bound):
            raise ConfigError(f"{where}: must be {words} {bound}, got {value!r}")
    choices = entry.get("choices")
    if choices and value not in choices:
        raise ConfigError(unknown("value", str(value), choices, where=where))
    return value
