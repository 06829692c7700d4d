"""The ``steelyard`` command: finds the verb, runs it, turns errors into one sentence and an exit code.

Exit codes: 0 done; 2 wrong input (config, data, model, run directory); 3 NaN or infinity; 4 a study with failed
jobs or degenerate evidence; 130 interrupted (143: by SIGTERM); 1 anything unforeseen, and what ``audit`` and
``algorithms conform`` found wrong.  ``STEELYARD_DEBUG=1`` shows tracebacks.
Nothing heavy is imported before a verb needs it: ``steelyard --help`` is instant.
"""

from __future__ import annotations

import errno
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from steelyard.errors import ConfigError, SteelyardError, nearest

VERBS: dict[str, tuple[str, str]] = {
    "train": ("train", "train one model as a recipe says, and evaluate it"),
    "eval": ("evaluate", "evaluate a model on tasks, with per-item records"),
    "generate": ("generate", "sample completions from a model"),
    "score": ("score", "score the completions of a file with a reward model"),
    "study": ("study", "run a controlled study (algorithms x models x seeds), or show how far it is"),
    "report": ("study", "write a study's HTML report and print its ranking"),
    "compare": ("compare", "compare finished runs or studies: intervals, tests, what could be seen at all"),
    "audit": ("audit", "check a published table: possible means, p-values, effect sizes, power, claims"),
    "data": ("data", "inspect rows token by token, with masks, lengths and what would be lost"),
    "builtin": ("builtin", "list the embedded tasks and models, or pretrain a model of the ladder"),
    "algorithms": ("algorithms", "list the algorithms, or show one with its formula and hyperparameters"),
    "env": ("about", "print the machine and the versions of what matters"),
    "version": ("about", "print the version"),
}
"""Verb -> (module under ``steelyard.commands`` with a ``main(verb, argv)``, what it does)."""

ELSEWHERE = {
    "evaluate": "eval",
    "sample": "generate",
    "reward": "score",
    "judge": "score",
    "inspect": "data inspect",
    "validate": "data inspect",
    "sweep": "study",
    "run": "study",
    "status": "study status",
    "resume": "train",
    "algos": "algorithms",
    "list": "algorithms list",
    "doctor": "env",
    "plan": "study --dry-run",
}
"""What other tools call our verbs; only used to suggest."""

INTERRUPTED = 130
"""Exit code of a process that was stopped by Ctrl-C."""

TERMINATED = 143
"""Exit code of a process that was stopped by SIGTERM."""


class _Terminated(KeyboardInterrupt):
    """SIGTERM; everything that cleans up after Ctrl-C cleans up after it too."""


def _terminate(*_: object) -> None:
    raise _Terminated


def usage() -> str:
    """What ``steelyard --help`` prints."""
    width = max(map(len, VERBS)) + 2
    verbs = "\n".join(f"  {verb:{width}}{text}" for verb, (_, text) in VERBS.items())
    return (
        "usage: steelyard VERB ...\n\n"
        "Controlled comparisons of post-training algorithms.\n\n"
        f"{verbs}\n\n"
        "  steelyard VERB --help                     what a verb takes\n"
        "  steelyard study quick                     a real study on the embedded default, in minutes\n"
        "  steelyard train recipes/dpo.yaml --help   every setting of a recipe, with its value\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``argv`` excludes the program's name."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = os.environ.get("STEELYARD_DEBUG", "") not in ("", "0")
    program = argv is None  # not a function call inside another program, whose signals are its own
    if program:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        return _dispatch(words)
    except SteelyardError as error:
        if debug:
            raise
        return _complain(str(error), error.exit_code)
    except KeyboardInterrupt as error:
        if program:  # a second Ctrl-C must not break the leaving
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        again = shlex.join(["steelyard", *(word for word in words if word != "--restart")])
        known = getattr(error, "__notes__", [])  # a verb that knows how far it came says what the command will do
        what = known[0] if known else "to continue, give the same command again"
        print(f"\nsteelyard: interrupted; {what}: {again}", file=sys.stderr)
        return TERMINATED if isinstance(error, _Terminated) else INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`| head`); point stdout elsewhere so that closing it at exit does not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if debug:
            raise
        if error.filename is not None and (words_for := _system_problem(error)):
            return _complain(f"{os.fsdecode(error.filename)}: {words_for}", ConfigError.exit_code)
        return _complain(f"{error} (STEELYARD_DEBUG=1 shows where)", 1)


def _system_problem(error: OSError) -> str:
    """What is wrong with the file that ``error`` names; empty when it is nothing that a user has chosen."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "a file is in the way, where a directory is expected; choose another place"
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return "this place may not be read or written; choose another, or change its permissions"
    if isinstance(error, IsADirectoryError):
        return "a directory, where a file is expected"
    return "no such file or directory" if isinstance(error, FileNotFoundError) else ""


def _complain(text: str, code: int) -> int:
    sys.stdout.flush()
    for line in text.splitlines():
        print(f"steelyard: error: {line}", file=sys.stderr)
    return code


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    verb, rest = words[0], words[1:]
    if verb == "--version":
        verb = "version"
    if verb not in VERBS:
        raise ConfigError(_unknown_verb(verb))
    module = import_module(f"steelyard.commands.{VERBS[verb][0]}")
    return module.main(verb, rest)


def _unknown_verb(verb: str) -> str:
    from steelyard.algorithms.catalogue import load_catalogue

    if verb.startswith("-"):
        return f"unknown flag '{verb}'; the verb comes first: steelyard VERB ... (see steelyard --help)"
    if verb in load_catalogue():
        return f"unknown verb '{verb}'. Did you mean `steelyard train RECIPE --algorithm.name {verb}`?"
    guess = ELSEWHERE.get(verb) or nearest(verb, VERBS)
    hint = f" Did you mean `steelyard {guess}`?" if guess else ""
    return f"unknown verb '{verb}'; choices: {', '.join(VERBS)}.{hint}"


if __name__ == "__main__":
    sys.exit(main())
