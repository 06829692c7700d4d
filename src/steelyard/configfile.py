"""Reading recipes: YAML files and flags to one validated :class:`~steelyard.config.RunConfig`.

Precedence: defaults < files (left to right) < flags.  Whatever is wrong is said in one sentence with the file
and line (or the flag), the dotted key, what was expected, and the nearest valid choice; pydantic's own errors
never reach a user.  Relative paths in a file start from the file's folder, paths in flags from the current one.
"""

from __future__ import annotations

import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from steelyard.algorithms import oxrl
from steelyard.algorithms.catalogue import describe, key_of, load_catalogue
from steelyard.config import RewardConfig, RunConfig
from steelyard.elsewhere import ELSEWHERE
from steelyard.errors import ConfigError, SteelyardError, nearest, unknown

S = typing.TypeVar("S", bound=BaseModel)
Overrides = Sequence[str] | Mapping[str, Any]
"""``["optim.learning_rate=1e-5"]`` (values are YAML), or ``{"optim.learning_rate": 1e-5}``."""

SHORT = {"algorithm": "name", "model": "name_or_path"}
"""Sections that may be given as one string: ``algorithm: dpo``, ``model: builtin:0.1m``."""

_PATHS = (
    "data.path",
    "eval.preference_path",
    "eval.quality_path",
    "model.name_or_path",
    "model.tokenizer",
    "model.chat_template",
)


# --------------------------------------------------------------------------------------------------
# YAML


@dataclass(frozen=True)
class Document:
    """One file of plain values, and the line of every dotted key in it."""

    where: str
    values: dict[str, Any]
    lines: Mapping[str, int] = field(default_factory=dict)
    folder: Path | None = None


class _Loader(yaml.SafeLoader):
    """Safe loading, with YAML 1.2's floats (``1e-6`` is a number) and no key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            line = key_node.start_mark.line + 1
            if key is not None and key != "<<" and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is given twice (first in line {seen[key]})", key_node.start_mark
                )
            seen[key] = line
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = deepcopy(yaml.SafeLoader.yaml_implicit_resolvers)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def find_recipe(name: str | Path) -> Path:
    """A recipe by path, by name in ``./recipes``, or by name among the recipes that come with Steelyard."""
    path = Path(name)
    package = Path(__file__).parent
    folders = [Path("recipes"), package / "recipes", package.parents[1] / "recipes"]  # the last: a checkout
    # `recipes/dpo.yaml` is what the documentation says, so it also means the one that comes with Steelyard.
    documented = path.parts == ("recipes", path.name) and path.suffix == ".yaml"
    if path.exists() or not documented and (path.suffix in (".yaml", ".yml") or len(path.parts) > 1):
        return path
    wanted = path.name if documented else f"{name}.yaml"
    for folder in folders:
        if (folder / wanted).is_file():
            return folder / wanted
    known = {file.stem for folder in folders for file in folder.glob("*.yaml")}
    raise ConfigError(unknown("recipe", path.stem if documented else str(name), known))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: no such file, not YAML (``file:line:column``), a key given twice, or not a mapping.
    """
    return read_document(path).values


def read_document(path: str | Path) -> Document:
    """The mapping in a YAML file, with the line of every key; see :func:`read_yaml`."""
    path = Path(path)
    if not path.is_file():
        files = [str(f) for f in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        guess = nearest(str(path), files)
        what = "is a directory, expected a YAML file" if path.is_dir() else "no such file"
        raise ConfigError(f"{path}: {what}" + (f". Did you mean '{guess}'?" if guess else ""))
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from None
    values, node = _parse(text, str(path))
    if values is None:
        raise ConfigError(f"{path}: the file is empty, expected a mapping of sections")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, got {_got(values)}")
    return Document(str(path), values, dict(_lines(node, "")), path.parent)


def _parse(text: str, where: str) -> tuple[Any, yaml.Node | None]:
    """Values and node tree of a YAML text."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return (None if node is None else loader.construct_document(node)), node
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        problem = error.problem or error.context or "not readable"
        hint = "; indent with spaces" if "\\t" in problem else ""
        raise ConfigError(f"{place}: malformed YAML: {problem}{hint}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: malformed YAML: {' '.join(str(error).split())}") from None
    finally:
        loader.dispose()


def _lines(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                dotted = f"{prefix}{key.value}"
                yield dotted, key.start_mark.line + 1
                yield from _lines(value, f"{dotted}.")


# --------------------------------------------------------------------------------------------------
# Loading


def load_run_config(
    source: str | Path | Mapping[str, Any] | Sequence[str | Path],
    overrides: Overrides = (),
    *,
    where: str = "",
    folder: Path | None = None,
    notice: Callable[[str], None] | None = None,
) -> RunConfig:
    """The run that a recipe (a YAML file, several of them, or plain values) and flags describe.

    Args:
        source: file, files (later ones override earlier ones), or a mapping.
        overrides: dotted keys with values, as strings ``key=value`` or as a mapping; kebab-case is understood.
        where: what messages call a mapping (files are called by their path).
        folder: what relative paths of a mapping start from; default: they are left as they are.
        notice: told what a user should know (dropped hyperparameters, a profile that fills nothing); default: a line
            on stderr.

    Raises:
        ConfigError: unknown key, wrong type, broken bound, contradiction; one line per problem.
    """
    notice = notice or (lambda text: print(text, file=sys.stderr))
    if isinstance(source, str | Path):
        documents = [read_document(source)]
    elif isinstance(source, Mapping):
        documents = [Document(where, deepcopy(dict(source)), {}, folder)]
    else:
        documents = [read_document(path) for path in source]
    values: dict[str, Any] = {}
    lines: dict[str, str] = {}
    for document in documents:
        plain = _expand_short(document.values)
        _rename(plain, notice, document.where)
        if document.folder is not None:
            _anchor_paths(plain, document.folder)
        _check_keys(plain, document)
        _merge(values, plain, notice, document.where)
        lines.update({key: f"{document.where}:{line}" for key, line in document.lines.items()})
        lines.setdefault("", document.where)
    flags = _parsed(overrides)
    for key, value in flags.items():
        check_key(key, f"--{key}", algorithm=_algorithm(values, flags))
        plain = _expand_short(_nested(key, value))
        _rename(plain, notice, f"--{key}")
        _merge(values, plain, notice, f"--{key}")
        lines[key] = f"--{key}"
    section = values.get("algorithm")
    if isinstance(section, dict) and isinstance(name := section.get("name"), str):
        values["algorithm"] = oxrl.fill_from_profile(section, values.get("profile"), name)
    try:
        config = RunConfig.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(_worded(error.errors(include_url=False), lines))) from None
    if said := oxrl.profile_note(config.profile, config.algorithm.name, config.algorithm.hyperparameters):
        notice(f"note: {said}")
    return config


def validate_section(section: type[S], values: Mapping[str, Any], name: str) -> S:
    """One section of a run config from plain values, with the loader's messages (``name`` is its key)."""
    try:
        return section.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
        keyed = [{**detail, "loc": (name, *detail["loc"])} for detail in details]
        raise ConfigError("\n".join(_worded(keyed, {}))) from None


def dump_yaml(config: RunConfig) -> str:
    """Every key of the resolved config with its value, as YAML that :func:`load_run_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def parse_value(text: str, where: str) -> Any:
    """A flag's value: YAML, so that ``1e-5``, ``true``, ``null`` and ``[a, b]`` mean what they look like."""
    return _parse(text, where)[0]


def _parsed(overrides: Overrides) -> dict[str, Any]:
    if isinstance(overrides, Mapping):
        return {_snake(key): value for key, value in overrides.items()}
    values = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"'{item}': expected key=value, such as optim.learning_rate=1e-5")
        values[_snake(key)] = _flag_value(_snake(key), text)
    return values


def _flag_value(key: str, text: str) -> Any:
    """A flag's value as its field wants it: a name that looks like a number stays text, ``a,b`` is a list."""
    value = parse_value(text, f"--{key}")
    kinds = _kinds(key)
    if isinstance(value, str) and list in kinds and (str not in kinds or "," in value):
        return [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, str | list | None) and str in kinds and not kinds & {int, float, bool}:
        return text.strip()
    return value


def is_switch(key: str) -> bool:
    """Whether a dotted key is a plain yes or no, so that a flag may come without a value."""
    return bool in _kinds(key)


@cache
def _kinds(key: str) -> frozenset[Any]:
    """The plain types that a key's value may have (``list`` for ``list[str]``); empty for unknown keys."""
    section: Any = RunConfig
    *parents, last = key.split(".")
    for parent in parents:
        info = section.model_fields.get(parent)
        section = section_of(info.annotation) if info is not None else None
        if section is None:
            return frozenset()
    info = section.model_fields.get(last)
    if info is None:
        return frozenset()
    union = typing.get_origin(info.annotation) in (typing.Union, types.UnionType)
    parts = typing.get_args(info.annotation) if union else (info.annotation,)
    return frozenset(typing.get_origin(part) or part for part in parts)


def _snake(key: str) -> str:
    return key.strip().replace("-", "_")


def _expand_short(values: Mapping[str, Any]) -> dict[str, Any]:
    plain = deepcopy(dict(values))
    for section, name in SHORT.items():
        if isinstance(plain.get(section), str):
            plain[section] = {name: plain[section]}
    if isinstance(plain.get("rewards"), list):
        plain["rewards"] = [{"name": r} if isinstance(r, str) else r for r in plain["rewards"]]
    return plain


def _rename(values: Mapping[str, Any], notice: Callable[[str], None], where: str) -> None:
    """oxRL's name of an algorithm becomes ours, and the user is told."""
    section = values.get("algorithm")
    name = section.get("name") if isinstance(section, dict) else None
    if isinstance(section, dict) and isinstance(name, str) and (key := key_of(name)) != name:
        notice(f"note: {where + ': ' if where else ''}{oxrl.note(name, key)}")
        section["name"] = key


def _algorithm(values: Mapping[str, Any], flags: Mapping[str, Any]) -> str | None:
    section = values.get("algorithm")
    given = section.get("name") if isinstance(section, dict) else None
    name = flags.get("algorithm.name", flags.get("algorithm", given))
    return name if isinstance(name, str) else None


def _merge(values: dict[str, Any], new: Mapping[str, Any], notice: Callable[[str], None], where: str) -> None:
    """Put ``new`` over ``values``, section by section; another algorithm's hyperparameters are dropped."""
    section, change = values.get("algorithm"), new.get("algorithm")
    if isinstance(section, dict) and isinstance(change, dict) and "name" in change:
        left = {key: value for key, value in section.items() if key != "name"}
        if section.get("name") not in (None, change["name"]) and left:
            dropped = ", ".join(f"{key}={value}" for key, value in left.items())
            notice(f"note: {where}: the algorithm is now {change['name']}; dropped {section['name']}'s {dropped}")
            values["algorithm"] = {}
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value, notice, where)
        else:
            values[key] = value


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return deepcopy(value)


def _anchor_paths(values: dict[str, Any], folder: Path) -> None:
    """Paths that exist relative to the file's folder become absolute; others are left to the current folder."""
    for dotted in _PATHS:
        section, _, key = dotted.partition(".")
        place = values.get(section)
        if isinstance(place, dict) and isinstance(place.get(key), str):
            place[key] = _anchored(place[key], folder)
    rewards = values.get("rewards")
    for reward in rewards if isinstance(rewards, list) else []:
        for key in ("path", "reference"):
            if isinstance(reward, dict) and isinstance(reward.get(key), str):
                reward[key] = _anchored(reward[key], folder)
    tasks = values.get("eval", {}).get("tasks") if isinstance(values.get("eval"), dict) else None
    if isinstance(tasks, list):
        for index, name in enumerate(tasks):
            kind, colon, path = str(name).partition(":")
            if colon and path:
                tasks[index] = f"{kind}:{_anchored(path, folder)}"


def _anchored(text: str, folder: Path) -> str:
    path = Path(text).expanduser()
    if path.is_absolute() or re.match(r"^(data|builtin):", text) or not (folder / path).exists():
        return text
    return str((folder / path).resolve())


# --------------------------------------------------------------------------------------------------
# Keys


@cache
def keys() -> dict[str, type[BaseModel] | None]:
    """Every dotted key of a run config; the value is the section behind it, or None for a plain value."""
    return dict(_walk(RunConfig, ""))


def _walk(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel] | None]]:
    for name, info in section.model_fields.items():
        key = prefix + (info.alias or name)
        nested = section_of(info.annotation)
        yield key, nested
        if nested is not None:
            yield from _walk(nested, f"{key}.")


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation names (``LoraConfig | None``), or None for anything else."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next((s for part in typing.get_args(annotation) if (s := section_of(part))), None)
    return None


def check_key(key: str, where: str, *, algorithm: str | None = None) -> None:
    """Refuse a dotted key that no run config has.

    Args:
        where: the file and line, or the flag, that messages begin with.
        algorithm: its hyperparameters are checked too (elsewhere that is left to validation).
    """
    section, _, last = key.rpartition(".")
    if key in keys() or dict in _kinds(section):
        return
    if section == "algorithm":
        if algorithm is not None and last not in (given := describe(algorithm)["hyperparameters"]):
            raise ConfigError(unknown(f"hyperparameter of {algorithm}", last, given, where=where))
        return
    raise ConfigError(f"{where}: {_unknown_key(key, algorithm)}")


def _unknown_key(key: str, algorithm: str | None) -> str:
    """``unknown key 'x' ...`` with the place where it belongs, or the nearest key of its section."""
    section, _, last = key.rpartition(".")
    inside = f" in `{section}`" if section else ""
    if section and section not in keys():
        return _unknown_key(section, algorithm)
    if section and keys()[section] is None:
        return f"'{section}' is a value, not a section; it has no key '{last}'"
    start = f"unknown key '{last}'{inside}"
    homes = [k for k in keys() if k.rpartition(".")[2] == last and not k.startswith("sft.")]
    if not homes and last in ELSEWHERE:
        here = f"{section}.{ELSEWHERE[last].rpartition('.')[2]}"
        homes = [here if here in keys() else ELSEWHERE[last]]
    if homes:
        return f"{start}. Did you mean '{homes[0]}'?" + (f" (or '{homes[1]}')" if homes[1:] else "")
    owners = [a for a, entry in load_catalogue().items() if last in entry["hyperparameters"]]
    if owners and (algorithm in owners or algorithm is None):
        return f"{start}. Did you mean 'algorithm.{last}'?"
    if owners:
        return f"{start}; it is a hyperparameter of {', '.join(owners)}, not of {algorithm}"
    siblings = [k.rpartition(".")[2] for k in keys() if k.rpartition(".")[0] == section]
    guess = nearest(last, siblings)
    if guess is None:
        far = nearest(last, {k.rpartition(".")[2] for k in keys()})
        guess = next((k for k in keys() if k.rpartition(".")[2] == far), None) if far else None
    elif section:
        guess = f"{section}.{guess}"
    hint = f" Did you mean '{guess}'?" if guess else ""
    return f"{start}; choices: {', '.join(sorted(siblings))}.{hint}"


def _check_keys(values: Mapping[str, Any], document: Document) -> None:
    """Refuse unknown keys of a file before validation, with the line of each; all of them at once."""
    section = values.get("algorithm")
    algorithm = section.get("name") if isinstance(section, dict) else None
    problems = []
    for key in _leaves(values, ""):
        line = document.lines.get(key)
        place = f"{document.where}:{line}: " if line else f"{document.where}: " if document.where else ""
        if key not in keys() and not key.startswith("algorithm."):
            problems.append(f"{place}{_unknown_key(key, algorithm)}")
    if problems:
        raise ConfigError("\n".join(problems))


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Dotted keys to check: those of sections, not of free mappings such as ``data.columns``."""
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        yield dotted
        if isinstance(value, dict) and keys().get(dotted) is not None:
            yield from _leaves(value, f"{dotted}.")


# --------------------------------------------------------------------------------------------------
# Pydantic's errors in our words

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a section with keys",
    "model_attributes_type": "a section with keys",
}
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def _worded(errors: Iterable[Mapping[str, Any]], lines: Mapping[str, str]) -> list[str]:
    """One sentence per problem; the alternatives of a union are one problem."""
    problems: dict[str, list[dict[str, Any]]] = {}
    for detail in errors:
        problems.setdefault(_dotted(detail["loc"]), []).append(dict(detail))
    return [
        _sentence(key, details, lines)
        for key, details in problems.items()
        if key.rpartition(".")[0] not in problems  # an alternative of a union that looks inside the value
    ]


def _dotted(location: tuple[int | str, ...]) -> str:
    """The key that an error is about: pydantic adds the names of a union's alternatives, which are left out."""
    parts: list[str] = []
    for part in location:
        candidate = ".".join([*parts, str(part)])
        if candidate in keys() or isinstance(part, int) or not parts:
            parts.append(str(part))
    return ".".join(parts)


def _sentence(key: str, details: list[dict[str, Any]], lines: Mapping[str, str]) -> str:
    detail = details[0]
    kind, given, context = detail["type"], detail.get("input"), detail.get("ctx", {})
    inner = context.get("error")
    if isinstance(inner, SteelyardError):  # names its key itself
        own, _, rest = str(inner).partition(": ")
        return f"{_start(own, lines)}{rest}" if own.startswith(key) else f"{_place(key, lines)}{inner}"
    if isinstance(inner, Exception):
        return f"{_place(key, lines)}{inner}"
    place = _place(key, lines)
    if kind == "missing" and isinstance(detail["loc"][-1], int):
        parent = key.rpartition(".")[0]
        return f"{_start(parent, lines)}expected more values, got {_got(given)}"
    if kind == "missing":
        return f"{place}'{key}' is missing{_WHY_NEEDED.get(key, '')}"
    if kind == "extra_forbidden":  # in a list of sections; other unknown keys are found before
        return f"{place}{unknown('key', str(detail['loc'][-1]), RewardConfig.model_fields, where=key)}"
    start = _start(key, lines)
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(context.get("expected", ""))) or [str(context.get("expected"))]
        return f"{start}{unknown('value', str(given), choices)}"
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"{start}must be {words} {context[name]:g}, got {given!r}"
    expected = [_EXPECTED[d["type"]] for d in details if d["type"] in _EXPECTED]
    if expected:
        return f"{start}expected {' or '.join(dict.fromkeys(expected))}, got {_got(given)}"
    message = str(detail["msg"])
    return f"{start}{message[:1].lower()}{message[1:]}, got {_got(given)}"


_WHY_NEEDED = {
    "algorithm": ": name what is optimised, such as `algorithm: sft` (see `steelyard algorithms`)",
    "algorithm.name": ": name what is optimised, such as `algorithm: sft` (see `steelyard algorithms`)",
    "data": ": say where the rows come from, such as `data: {task: arithmetic}` or `data: {path: FILE}`",
}


def _start(key: str, lines: Mapping[str, str]) -> str:
    """``file:line: key: ``, or ``--key: `` for a flag."""
    place = _place(key, lines)
    return place if place == f"--{key}: " else f"{place}{key}: " if key else place


def _place(key: str, lines: Mapping[str, str]) -> str:
    """``file:line: `` of the key or of the nearest section around it; empty when nothing is known."""
    while key and key not in lines:
        key = key.rpartition(".")[0]
    found = lines.get(key, "")
    return f"{found}: " if found else ""


def _got(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
