"""``steelyard builtin list`` and ``steelyard builtin train --size SIZE``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from steelyard.commands.parser import Arguments, whole
from steelyard.errors import ConfigError, unknown


def main(verb: str, words: Sequence[str]) -> int:
    """Run the verb."""
    action, rest = (words[0], words[1:]) if words else ("list", ())
    if action in ("-h", "--help"):
        print("usage: steelyard builtin list\n       steelyard builtin train --size SIZE --out DIR (see --help)")
        return 0
    if action == "list":
        Arguments("builtin list", "The embedded tasks and the ladder of models.").parse(rest)
        from steelyard.builtin.command import list_command

        list_command()
        return 0
    if action != "train":
        raise ConfigError(unknown("verb", action, ["list", "train"], where="steelyard builtin"))
    arguments = Arguments("builtin train", "Pretrain a base model of the ladder from nothing.")
    arguments.add("--size", required=True, metavar="SIZE", help="see `steelyard builtin list`")
    arguments.add("--out", type=Path, metavar="DIR", help="a new directory; default: ./<size>")
    arguments.add("--seed", type=int, default=0)
    arguments.add("--threads", type=whole, default=2, metavar="N", help="default: 2")
    arguments.add("--steps", type=whole, metavar="N", help="default: as the shipped weights")
    args = arguments.parse(rest)
    from steelyard.builtin.command import train_command

    train_command(args.size, args.out or Path(args.size), args.seed, args.threads, args.steps)
    return 0
