"""What an algorithm needs and what a recipe offers, compared before anything is loaded.  Imports no torch.

Everything follows from the algorithm's catalogue entry (family, head, data stage, columns, teacher) and from the
names and values in the rows of ``data.path``; the file is read, no model is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from steelyard.algorithms.catalogue import describe
from steelyard.algorithms.facts import rows_of_rounds
from steelyard.config import DataConfig, RunConfig
from steelyard.data.numbers import check_numbers, check_optional_numbers, check_order
from steelyard.data.rows import Table
from steelyard.data.schemas import Family, row_family, schema_for
from steelyard.data.sources import load_table, resolve_path
from steelyard.errors import ConfigError, DataError
from steelyard.evals.tasks import get_task

SELECTED = {
    "pairs": "preference pairs",
    "correct": "verified samples of the model",
    "step_pairs": "pairs of steps",
    "ranked": "ranked lists of completions",
    "judged": "completions with a verdict",
    "steps": "completions with labelled steps",
}
"""Data stages that select from the model's own samples, once; and what they give, in words."""

PAIR_COLUMNS = ("score_chosen", "score_rejected", "p_chosen", "p_rejected", "margin", "sign_chosen", "sign_rejected")
"""Numbers that pairs made from a task's samples carry (:func:`steelyard.trainer.select.pair_columns`)."""


def check_needs(cfg: RunConfig) -> None:
    """Refuse a run whose algorithm needs what the recipe does not offer.

    Raises:
        ConfigError: a section is missing (``teacher``, ``data.generate``), or a task's samples lack a number.
        DataError: the rows of the file do not fit; the message names file (and line), column, and what was expected.
    """
    entry = describe(cfg.algorithm.name)
    if entry["teacher"] and cfg.teacher is None:
        raise ConfigError(
            f"teacher: algorithm '{cfg.algorithm.name}' learns from another model: add `teacher: MODEL` (a directory, "
            "or `builtin:SIZE`) to the recipe"
        )
    _check_samples(cfg, entry)
    if cfg.data.path is None or entry["data"] == "none":
        return
    file = resolve_path(cfg.data.path).stat()
    _check_file(cfg.data.model_dump_json(), (file.st_mtime_ns, file.st_size), _of_file(cfg, entry))


@dataclass(frozen=True)
class Wanted:
    """What the rows of a file must offer: the schema of every family, numbers, and texts.

    Attributes:
        optional: numbers of every row or of none.
        ordered: two of the numbers, the first of which is the larger in every row.
    """

    who: str
    families: tuple[Family, ...] = ()
    numbers: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    ordered: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    why: str = ""
    """What the texts are for."""


def _of_file(cfg: RunConfig, entry: Mapping[str, Any]) -> Wanted:
    who = f"algorithm '{cfg.algorithm.name}'"
    families: tuple[Family, ...] = ("Tokens",) if cfg.sft is not None else ()
    rounds = entry["rounds"]
    if rounds is not None:
        first = cast(Family, rows_of_rounds(rounds))
        judged = rounds["judged"] and not cfg.rewards
        return Wanted(who, (*families, first), texts=("answer",) if judged else (), why="judging what it samples")
    if entry["data"] in SELECTED and cfg.data.generate is not None:
        return Wanted(who, families, texts=("prompt", "answer"), why="sampling and verifying (`data.generate`)")
    families = (*families, row_family(entry["family"], entry["head"]))
    if entry["family"] == "Rollouts":  # they get their columns from whoever samples
        return Wanted(who, families)
    numbers, optional = (tuple(entry[kind]) for kind in ("columns", "optional_columns"))
    return Wanted(who, families, numbers, optional, tuple(entry["ordered"] or ()))


@lru_cache(maxsize=64)
def _check_file(data: str, stamp: tuple[int, int], wanted: Wanted) -> None:
    """Check a file once per process and state (``stamp``), however many runs of a study read it."""
    table = load_table(DataConfig.model_validate_json(data))
    for family in wanted.families:
        schema_for(table, family)
    check_numbers(table, wanted.numbers, wanted.who)
    check_optional_numbers(table, wanted.optional)
    if wanted.ordered:
        check_order(table, wanted.ordered, wanted.who)
    for column in wanted.texts:
        for index, row in enumerate(table.rows):
            if row.get(column) is None:
                raise DataError(
                    f"{table.where(index)}: {wanted.why} needs a column '{column}', which "
                    f"{'is null' if column in row else 'is missing'}; columns: {', '.join(table.columns)}. Perhaps "
                    f"rename one with `data.columns: {{{column}: ...}}`"
                )


def _check_samples(cfg: RunConfig, entry: Mapping[str, Any]) -> None:
    """Methods that sample need ``data.generate``: on a task; in rounds, or for their own right samples, always."""
    name, stage, task = cfg.algorithm.name, entry["data"], cfg.data.task
    if entry["rounds"] is not None and cfg.data.generate is None:
        raise ConfigError(
            f"algorithm '{name}' samples while it trains: add a `data.generate` section (prompts of a round, "
            "num_generations, temperature, max_completion_length)"
        )
    if stage == "correct" and task is None and cfg.data.generate is None:
        raise ConfigError(
            f"algorithm '{name}' learns from the model's own verified samples, and the rows of a file are not that: "
            "add a `data.generate` section to sample from their prompts, or use `sft` to learn the rows themselves"
        )
    if stage == "gold" and task is not None and entry["columns"]:
        split: Any = cfg.data.split
        item = get_task(task, where="data.task").items(split, purpose="train", limit=1)[0]
        check_numbers(Table.from_rows([item.columns], f"task '{task}'"), entry["columns"], f"algorithm '{name}'")
    if stage not in SELECTED or (task is None and cfg.data.generate is None):
        return
    if cfg.data.generate is None:
        raise ConfigError(
            f"algorithm '{name}' learns from {SELECTED[stage]}, and the task '{task}' has gold rows only: add a "
            "`data.generate` section, or give `data.path`"
        )
    given = PAIR_COLUMNS if stage in ("pairs", "step_pairs") else ()
    missing = [column for column in entry["columns"] if column not in given]
    if missing:
        carried = f"; they carry {', '.join(given)}" if given else ""
        source = f"the rows of {cfg.data.path}" if task is None else f"the task '{task}'"
        raise ConfigError(
            f"algorithm '{name}' needs a number '{missing[0]}' in every row, which {SELECTED[stage]} made from "
            f"{source} do not have{carried}: give rows with that column as `data.path`, without `data.generate`"
        )
    if task is not None and get_task(task, where="data.task").verify is None:
        raise DataError(f"data.task: '{task}' is multiple choice; it has no verifier to practise with")
