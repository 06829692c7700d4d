"""The walls between the rooms, checked in the source: who may import whom, and who stays free of torch."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import steelyard.errors
from steelyard.algorithms.catalogue import load_catalogue
from steelyard.algorithms.generate import catalogue_text
from steelyard.config import RunConfig

PACKAGE = Path(steelyard.errors.__file__).parent
HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "trl")
"""What takes seconds to import."""
LIGHT = (
    *("errors", "registry", "files", "rundir", "config", "configfile", "cli"),
    *("study", "stats", "report", "board", "rewards"),
    *("algorithms.catalogue", "algorithms.facts", "algorithms.oxrl", "commands.algorithms", "data.rows", "evals.task"),
)
"""Modules and packages that must be usable without any of it (those that exist)."""
MAY_NOT_IMPORT = {
    "algorithms": "config data models trainer rollout rewards evals builtin study stats report cli",
    "conform": "config data models trainer rollout rewards evals builtin study stats report cli",
    "models": "algorithms trainer rollout rewards study stats report cli",
    "data": "algorithms trainer rollout study stats report cli",
    "rewards": "algorithms data models trainer rollout study stats report cli",
    "stats": "data models trainer rollout study report cli",
    "report": "data models trainer rollout cli",
}
"""Rooms further down the way of the data, or behind run directories."""
BRIDGES = {"rewards.models": {"config", "data", "models"}}
"""A reward model is a reward that computes with a model; nothing of it is imported before one is loaded."""


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by dotted name, without the leading ``steelyard.``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room(name: str) -> list[str]:
    """A module or all modules of a package."""
    return [module for module in modules() if module == name or module.startswith(f"{name}.")]


@cache
def tree(module: str) -> ast.Module:
    """The parsed source."""
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


def statements(node: ast.AST, *, lazily: bool) -> Iterator[ast.AST]:
    """All statements below ``node``; with ``lazily=False`` only those that run on import."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if not lazily and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield child
        yield from statements(child, lazily=lazily)


def imports(module: str, *, lazily: bool) -> set[str]:
    """Absolute names that a module imports; ``from a import b`` counts as ``a`` and, if a module, ``a.b``."""
    names: set[str] = set()
    for node in statements(tree(module), lazily=lazily):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            source = str(node.module)
            inside = source.removeprefix("steelyard").removeprefix(".")
            names.add(source)
            names |= {
                f"{source}.{alias.name}"
                for alias in node.names
                if source.startswith("steelyard") and f"{inside}.{alias.name}".strip(".") in modules()
            }
    return names


def ours(names: set[str]) -> set[str]:
    """Those that are modules of this package, without the leading ``steelyard.``."""
    return {name.removeprefix("steelyard.") for name in names if name.startswith("steelyard.")}


def heavy_chain(module: str, seen: set[str]) -> list[str]:
    """The chain of imports by which importing ``module`` loads something heavy; empty if it does not."""
    seen.add(module)
    names = imports(module, lazily=False)
    heavy = sorted(name for name in names if name.split(".")[0] in HEAVY)
    if heavy:
        return [module, heavy[0]]
    parents = {part for name in ours(names) for part in (name, name.rpartition(".")[0]) if part in modules()}
    for name in sorted(parents - seen):
        if chain := heavy_chain(name, seen):
            return [module, *chain]
    return []


@pytest.mark.parametrize("module", [module for name in LIGHT for module in room(name)])
def test_light_modules_load_nothing_heavy(module: str) -> None:
    assert not (chain := heavy_chain(module, set())), " imports ".join(chain)


def test_light_modules_load_nothing_heavy_when_run() -> None:
    wanted = [f"steelyard.{module}" for name in LIGHT for module in room(name)]
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[2:]:\n"
        "    importlib.import_module(name)\n"
        "    loaded = sorted(set(sys.argv[1].split()) & set(sys.modules))\n"
        "    assert not loaded, f'{name} loads {loaded}'\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-c", program, " ".join(HEAVY), *wanted]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", room("stats"))
def test_statistics_never_touch_torch(module: str) -> None:
    assert not {name for name in imports(module, lazily=True) if name.split(".")[0] in HEAVY}


@pytest.mark.parametrize("module", room("algorithms"))
def test_algorithms_import_little(module: str) -> None:
    allowed = {*sys.stdlib_module_names, "torch", "annotated_types", "jaxtyping"}
    for name in imports(module, lazily=True):
        inside = name.removeprefix("steelyard.").split(".")[0]
        assert name.split(".")[0] in allowed or inside in {"types", "errors", "registry", "algorithms"}, name


@pytest.mark.parametrize(("name", "forbidden"), MAY_NOT_IMPORT.items(), ids=MAY_NOT_IMPORT)
def test_rooms_do_not_reach_back(name: str, forbidden: str) -> None:
    for module in room(name):
        rooms = set(forbidden.split()) - BRIDGES.get(module, set())
        reached = {other for other in ours(imports(module, lazily=True)) if other.split(".")[0] in rooms}
        assert not reached, f"{module} imports {sorted(reached)}"


@pytest.mark.parametrize("module", room("trainer"))
def test_the_trainer_knows_no_algorithm_by_name(module: str) -> None:
    strings = {node.value for node in ast.walk(tree(module)) if isinstance(node, ast.Constant)}
    # `base` is not trained, and `sft` is also the name of a config section (the stage before the method)
    named = (strings & set(load_catalogue())) - {"base", *RunConfig.model_fields}
    assert not named, f"{module} names {sorted(named)}"


def test_the_catalogue_is_up_to_date() -> None:
    stored = (PACKAGE / "algorithms" / "catalogue.json").read_text(encoding="utf-8")
    assert stored == catalogue_text(), "run `python -m steelyard.algorithms.generate`"


def test_every_package_is_installed() -> None:
    settings = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(settings["tool"]["setuptools"]["packages"])
    found = {".".join(p.parent.relative_to(PACKAGE.parent).parts) for p in PACKAGE.rglob("__init__.py")}
    assert listed == found | {"steelyard.recipes", "steelyard.studies"}
