"""Parsing a verb's arguments: argparse, with nearest choices, kebab-case or snake_case, and config flags."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from steelyard.errors import ConfigError, nearest, unknown


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise instead of printing a usage text and leaving."""
        raise ConfigError(f"{message} (see {self.prog} --help)")


class Arguments:
    """The arguments of one verb.

    Args:
        verb: as typed after ``steelyard`` (``data inspect``).
        description: one sentence for ``--help``.
        config: also accept every key of a run config as ``--section.key VALUE``; they end up in
            ``namespace.overrides`` as ``section.key=VALUE``.
        epilog: shown under ``--help``.
    """

    def __init__(self, verb: str, description: str, *, config: bool = False, epilog: str = "") -> None:
        self.config = config
        self.parser = _Parser(
            prog=f"steelyard {verb}",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add = self.parser.add_argument

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """The arguments; :class:`ConfigError` names an unknown flag and the nearest known one."""
        own, overrides = self._split(words)
        namespace = self.parser.parse_args(own)
        namespace.overrides = overrides
        return namespace

    def _split(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """The verb's own words, and the config flags among them as ``key=value``."""
        own: list[str] = []
        overrides: list[str] = []
        rest = list(words)
        options = self.parser._option_string_actions
        while rest:
            word = rest.pop(0)
            if not word.startswith("--") or word == "--":
                own.append(word)
                continue
            name, equals, value = word.partition("=")
            action = options.get("--" + name[2:].replace("_", "-"))
            if action is not None:
                takes_value = action.nargs != 0
                if takes_value and not equals:
                    value = self._value(name, rest)
                own.append(f"{action.option_strings[-1]}={value}" if takes_value or equals else name_of(action))
            elif self.config:
                key = name[2:].replace("-", "_")
                if not equals:
                    value = self._flag_value(key, rest)
                overrides.append(f"{key}={value}")
            else:
                raise ConfigError(unknown("flag", name, options, where=self.parser.prog))
        return own, overrides

    def _value(self, name: str, rest: list[str]) -> str:
        if not rest or (rest[0].startswith("--") and len(rest[0]) > 2):
            raise ConfigError(f"{name}: expected a value (see {self.parser.prog} --help)")
        return rest.pop(0)

    def _flag_value(self, key: str, rest: list[str]) -> str:
        from steelyard.configfile import check_key, is_switch, keys

        name = f"--{key}"
        dashed = [option[2:].replace("-", "_") for option in self.parser._option_string_actions]
        if key not in keys() and "." not in key and (guess := nearest(key, dashed)) and not _is_config(key):
            raise ConfigError(f"{name}: unknown flag. Did you mean '--{guess.replace('_', '-')}'?")
        if is_switch(key) and (not rest or rest[0].startswith("--")):
            return "true"
        if not rest or (rest[0].startswith("--") and len(rest[0]) > 2):
            check_key(key, name)
        return self._value(name, rest)


def _is_config(key: str) -> bool:
    """Whether the loader has a better suggestion for ``key`` than the nearest flag."""
    from steelyard.configfile import keys
    from steelyard.elsewhere import ELSEWHERE

    return key in ELSEWHERE or any(known.rpartition(".")[2] == key for known in keys())


def name_of(action: argparse.Action) -> str:
    """The long name of a flag."""
    return action.option_strings[-1]


def one_of(what: str, choices: Sequence[str]) -> Callable[[str], str]:
    """An argument type that accepts ``choices`` and suggests the nearest."""

    def check(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(unknown(what, text, choices))
        return text

    return check


def whole(text: str) -> int:
    """An argument type: a whole number above zero."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above zero, got '{text}'")
    return number


def names(text: str) -> list[str]:
    """An argument type: names separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def renames(text: str) -> dict[str, str]:
    """An argument type: ``ours=theirs,ours=theirs``."""
    pairs = [part.partition("=") for part in names(text)]
    if not pairs or not all(ours and equals and theirs for ours, equals, theirs in pairs):
        raise argparse.ArgumentTypeError(f"expected OURS=THEIRS[,...] such as prompt=question, got '{text}'")
    return {ours: theirs for ours, _, theirs in pairs}


def plugin_argument(arguments: Arguments) -> None:
    """``--plugin FILE``, which may be given several times."""
    arguments.add(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE",
        help="a Python file that registers algorithms, rewards or tasks; may be given several times",
    )


def as_json(value: Any) -> str:
    """What ``--json`` prints."""
    import json

    from steelyard.files import plain_json

    return json.dumps(plain_json(value), indent=2, ensure_ascii=False, allow_nan=False)
