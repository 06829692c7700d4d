"""Plugins: Python files of a user's that register algorithms, rewards or tasks.  Imported only when named."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from steelyard.errors import ConfigError, SteelyardError, unknown
from steelyard.files import sha256_file

_PREFIX = "steelyard_plugin_"


def load_plugins(paths: Sequence[str | Path]) -> list[tuple[str, str]]:
    """Import every file (once per process) and make its algorithms known to the configuration.

    Returns:
        (name, SHA-256 of the source) of each, which belong to the identity of every run that uses them.

    Raises:
        ConfigError: a missing file, one that is not Python, two of one name, or one that fails on import.
    """
    loaded: dict[str, Path] = {}
    if paths:
        from steelyard.algorithms import load

        load()  # first, so that a name which is already taken is refused where it is taken again
    for text in paths:
        path = Path(text).resolve()
        if not path.is_file() or path.suffix != ".py":
            raise ConfigError(f"--plugin: {text}: expected a Python file")
        if loaded.setdefault(path.stem, path) != path:
            raise ConfigError(f"--plugin: two plugins are called '{path.stem}': {loaded[path.stem]} and {path}")
        _import(path)
    if loaded:
        _announce_algorithms()
    return [(name, sha256_file(path)) for name, path in loaded.items()]


def loaded_plugins() -> dict[str, str]:
    """Name and SHA-256 of every plugin that this process has imported: part of what shared inputs depend on."""
    found = {name.removeprefix(_PREFIX): module for name, module in sys.modules.items() if name.startswith(_PREFIX)}
    return {name: sha256_file(module.__file__) for name, module in sorted(found.items()) if module.__file__}


def plugin_of(algorithm: str) -> dict[str, str]:
    """Module and SHA-256 of the source of an algorithm that an installed package offers; empty for all others."""
    core = sys.modules.get("steelyard.algorithms.core")
    if core is None or algorithm not in core.algorithms or core.algorithms.get(algorithm).loss is None:
        return {}
    module = core.algorithms.get(algorithm).loss.__module__
    file = getattr(sys.modules.get(module), "__file__", None)
    own = module.startswith(("steelyard.", _PREFIX))
    return {} if own or file is None else {module: sha256_file(file)}


def exceptions_of(path: str | Path) -> tuple[list[str], dict[str, dict[str, str]]]:
    """The algorithms that an imported plugin registers, and its ``EXCEPTIONS`` (algorithm -> check -> why)."""
    from steelyard.algorithms.core import algorithms

    name = f"{_PREFIX}{Path(path).stem}"
    names = [key for key, spec in algorithms.items() if spec.loss is not None and spec.loss.__module__ == name]
    given = getattr(sys.modules[name], "EXCEPTIONS", {})
    if not isinstance(given, dict) or not all(isinstance(why, dict) for why in given.values()):
        raise ConfigError(f'{path}: EXCEPTIONS must look like {{"my_algorithm": {{"direction": "why"}}}}')
    for key in given:
        if key not in names:
            raise ConfigError(unknown("algorithm", str(key), names, where=f"{path}: EXCEPTIONS"))
    return names, given


def _import(path: Path) -> None:
    name = f"{_PREFIX}{path.stem}"
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # it is a .py file
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SteelyardError:
        del sys.modules[name]
        raise
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"--plugin: {path.name}: {type(error).__name__}: {error}") from error


def _announce_algorithms() -> None:
    from steelyard.algorithms.catalogue import add_plugin_entry, load_catalogue
    from steelyard.algorithms.core import algorithms

    for name, spec in algorithms.items():
        if name not in load_catalogue():
            add_plugin_entry(name, spec.describe())
