"""``steelyard data inspect FILE``: rows as a model will see them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steelyard.commands.parser import Arguments, one_of, renames, whole
from steelyard.errors import ConfigError, DataError, unknown


def main(verb: str, words: Sequence[str]) -> int:
    """Run the verb."""
    if not words or words[0] != "inspect":
        if words and words[0] not in ("-h", "--help"):
            raise ConfigError(unknown("verb", words[0], ["inspect"], where="steelyard data"))
        words = ["inspect", "--help"]
    arguments = Arguments(
        "data inspect",
        "Show rows token by token with their loss masks, lengths, and what would be dropped or cut.",
        epilog="examples:\n"
        "  steelyard data inspect rows.jsonl --model builtin:0.1m\n"
        "  steelyard data inspect questions.jsonl.gz --columns prompt=question,completion=answer\n"
        "  steelyard data inspect recipes/dpo.yaml      what a recipe trains on\n",
    )
    arguments.add("file", help="JSON, JSONL(.gz), CSV, Parquet, data:NAME, or a recipe (.yaml, or its name)")
    arguments.add("--model", metavar="M", help="use this model's tokenizer and template")
    arguments.add("--tokenizer", metavar="DIR", help="use this tokenizer; default: a BPE trained on the rows")
    arguments.add("--chat-template", metavar="FILE", help="a Jinja template in place of the tokenizer's")
    arguments.add("--family", metavar="F", help="tokens, pairs, unpaired, rollouts, scores, or an algorithm")
    arguments.add("--columns", type=renames, default={}, metavar="ours=theirs", help="renames, separated by commas")
    arguments.add("--rows", type=int, default=3, metavar="N", help="rows shown token by token; all are counted")
    arguments.add("--limit", type=whole, metavar="N", help="read only the first N rows")
    arguments.add("--max-length", type=whole, metavar="N", help="default: 512, or the recipe's")
    arguments.add("--overlong", type=one_of("value", ("drop", "truncate", "error")), help="default: drop")
    arguments.add("--json", action="store_true", help="print everything as JSON")
    args = arguments.parse(words[1:])
    if args.chat_template and not (args.model or args.tokenizer):
        raise ConfigError("data inspect: --chat-template needs --model or --tokenizer")

    from steelyard.data.inspect import inspect_table, show

    recipe = args.file.endswith((".yaml", ".yml")) or _names_recipe(args.file)
    table, tokenizer, label, settings = _of_recipe(args) if recipe else _of_file(args)
    if args.family:
        settings["family"] = family_named(args.family)
    for name in ("max_length", "overlong"):
        if getattr(args, name) is not None:
            settings[name] = getattr(args, name)
    try:
        found = inspect_table(table, tokenizer, label=label, rows=args.rows, **settings)
    except DataError as error:
        raise error if recipe else DataError(_with_own_flag(str(error))) from None
    if args.json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
    else:
        from steelyard.commands.console import wide_console

        show(found, wide_console())
    return 0 if found.report.kept else ConfigError.exit_code


def _names_recipe(text: str) -> bool:
    """Whether ``text`` is a bare word: the name of a recipe, not of a file."""
    return not Path(text).suffix and len(Path(text).parts) == 1 and ":" not in text and not Path(text).exists()


def _with_own_flag(text: str) -> str:
    """A message that suggests the recipe's ``data.columns``, in words of this verb's flag."""

    def flag(match: re.Match[str]) -> str:
        return f"`--columns {match[1].replace(': ', '=').replace(', ', ',')}`"

    return re.sub(r"`data\.columns: \{([^}]*)\}`", flag, text)


def _of_file(args: Any) -> tuple[Any, Any, str, dict[str, Any]]:
    from steelyard.data.sources import read_source

    table = read_source(args.file, columns=args.columns, limit=args.limit)
    name = args.tokenizer or args.model
    if name is None:
        return table, None, "", {}
    return table, _tokenizer(name, args.chat_template), name, {}


def _of_recipe(args: Any) -> tuple[Any, Any, str, dict[str, Any]]:
    """The rows that a recipe starts from; samples that it would generate do not exist yet."""
    from steelyard.algorithms.catalogue import describe
    from steelyard.configfile import find_recipe, load_run_config
    from steelyard.data.bpe import train_bpe
    from steelyard.data.schemas import row_family
    from steelyard.data.sources import row_texts
    from steelyard.models.load import load_tokenizer
    from steelyard.trainer.needs import SELECTED
    from steelyard.trainer.rows import source_table

    config = load_run_config(find_recipe(args.file))
    table = source_table(config)
    entry = describe(config.algorithm.name)
    settings: dict[str, Any] = {
        "max_length": config.data.max_length,
        "overlong": config.data.overlong,
        "completion_only_loss": config.data.completion_only_loss,
        "family": None if entry["family"] == "none" else row_family(entry["family"], entry["head"]),
    }
    rounds = entry["rounds"] is not None and (config.data.task is not None or entry["rounds"]["base"] == "prompts")
    if rounds or (config.data.task is not None and entry["data"] in SELECTED):
        own = "the model's own samples"
        note = f"note: {config.algorithm.name} trains on {own}; shown are the rows whose prompts they answer"
        print(note, file=sys.stderr)
        settings["family"] = None
    if config.model.train_tokenizer is not None:
        size = config.model.train_tokenizer.vocab_size
        return table, train_bpe(row_texts(table), size), "the BPE that this recipe trains", settings
    return table, load_tokenizer(config.model), config.model.tokenizer or config.model.name_or_path, settings


def _tokenizer(name: str, template: str | None) -> Any:
    from steelyard.commands.evaluate import model_directory
    from steelyard.commands.quiet import quiet_libraries
    from steelyard.config import ModelConfig
    from steelyard.models.load import load_tokenizer

    quiet_libraries()
    return load_tokenizer(ModelConfig(name_or_path=model_directory(name), chat_template=template))


def family_named(name: str) -> Any:
    """The family called ``name`` in any case (``pairs``), or that of an algorithm (``dpo``)."""
    from steelyard.algorithms.catalogue import entries, key_of
    from steelyard.data.schemas import SCHEMAS, row_family

    families = {family.lower(): family for family in SCHEMAS}
    if name.lower() in families:
        return families[name.lower()]
    entry = entries().get(key_of(name))
    if entry is not None and entry["family"] in SCHEMAS:
        return row_family(entry["family"], entry["head"])
    raise ConfigError(unknown("family", name, families, where="--family"))
