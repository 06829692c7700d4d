"""Every setting of a run as a page of help: flag, type, value in the recipe at hand, and what it means."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from steelyard.algorithms.catalogue import describe
from steelyard.config import AlgorithmConfig, RunConfig
from steelyard.configfile import section_of

_BOUNDS = {Gt: ("gt", ">"), Ge: ("ge", ">="), Lt: ("lt", "<"), Le: ("le", "<=")}
_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_WORDS = {int: "INT", float: "FLOAT", str: "TEXT", bool: "true|false"}


def print_flags(config: RunConfig | None, console: Console) -> None:
    """Print all flags; with a config its values and its algorithm's hyperparameters, else the defaults."""
    column = "value" if config is not None else "default"
    console.print(
        "\nEvery setting is a flag. snake_case and kebab-case both work; a list is [a,b] or a,b; null unsets.",
        highlight=False,
        markup=False,
    )
    for title, help_text, rows in _sections(config):
        console.print(f"\n[bold]{escape(title)}[/]  [dim]{escape(help_text)}[/]", highlight=False)
        table = Table(box=None, pad_edge=False, show_header=title == "run")
        for name, ratio in (("flag", None), ("type", None), (column, None), ("", 1)):
            table.add_column(name, ratio=ratio, overflow="fold", header_style="dim")
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        console.print(table)


def _sections(config: RunConfig | None) -> Iterator[tuple[str, str, list[tuple[str, str, str, str]]]]:
    top: list[tuple[str, str, str, str]] = []
    rest = []
    for name, info in RunConfig.model_fields.items():
        key = info.alias or name
        section = section_of(info.annotation)
        value = getattr(config, name) if config is not None else _default(info)
        if section is None:
            top.append((f"--{key}", _type(info.annotation, info.metadata), _shown(value), info.description or ""))
        else:
            rest.append((key, section, value, info.description or ""))
    yield "run", "One training run.", top
    for key, section, value, help_text in rest:
        yield from _walk(key, section, value, help_text)


def _walk(
    prefix: str, section: type[BaseModel], values: Any, help_text: str
) -> Iterator[tuple[str, str, list[tuple[str, str, str, str]]]]:
    absent = "" if isinstance(values, BaseModel) or prefix in ("algorithm", "data") else "  (not set)"
    rows: list[tuple[str, str, str, str]] = []
    nested = []
    for name, info in section.model_fields.items():
        inner = section_of(info.annotation)
        value = getattr(values, name) if isinstance(values, BaseModel) else _default(info)
        if inner is not None:
            nested.append((f"{prefix}.{name}", inner, value, info.description or ""))
        else:
            rows.append(
                (f"--{prefix}.{name}", _type(info.annotation, info.metadata), _shown(value), info.description or "")
            )
    if isinstance(values, AlgorithmConfig):
        rows += _hyperparameters(values)
        help_text = describe(values.name)["title"]
    yield prefix + absent, help_text, rows
    for item in nested:
        yield from _walk(*item)


def _hyperparameters(config: AlgorithmConfig) -> Iterator[tuple[str, str, str, str]]:
    for name, entry in describe(config.name)["hyperparameters"].items():
        words = {"str": "TEXT", "bool": "true|false", "int": "INT", "float": "FLOAT"}
        kind: str = "|".join(entry["choices"]) or words[entry["type"]]
        bounds = " ".join(f"{_SIGNS[key]}{bound:g}" for key, bound in entry["bounds"].items())
        kind += f" {bounds}" if bounds else ""
        kind += "|null" if entry["optional"] else ""
        yield f"--algorithm.{name}", kind, _shown(config.hyperparameters[name]), entry["help"]


def _default(info: Any) -> Any:
    if info.is_required():
        return ...
    return info.get_default(call_default_factory=True)


def _type(annotation: Any, metadata: Any = ()) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    bounds = " ".join(
        f"{_BOUNDS[type(item)][1]}{getattr(item, _BOUNDS[type(item)][0]):g}"
        for item in metadata
        if type(item) in _BOUNDS
    )
    if origin is typing.Annotated:
        return _type(arguments[0], [*metadata, *arguments[1:]])
    if origin is typing.Literal:
        return "|".join(str(argument) for argument in arguments)
    if origin is list:
        return "A,B,..."
    if origin is tuple:
        return f"[{','.join(_type(a) for a in arguments)}]"
    if origin is dict:
        return "{a: b}"
    if arguments:  # a union
        return "|".join("null" if a is type(None) else _type(a, metadata) for a in arguments)
    word = _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))
    return f"{word} {bounds}" if bounds else word


def _shown(value: Any) -> str:
    if value is ...:
        return "(required)"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_shown(v) for v in value) + "]"
    if isinstance(value, BaseModel):
        return str(value.model_dump())
    return f"{value:g}" if isinstance(value, float) else str(value)
