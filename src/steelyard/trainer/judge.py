"""What the completions of a round are worth: scores and verdicts, and the rows that rounds start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from steelyard.algorithms.core import AlgorithmSpec
from steelyard.config import RunConfig
from steelyard.data.render import Renderer, completion_text
from steelyard.data.sides import split_conversation
from steelyard.errors import DataError
from steelyard.files import read_jsonl
from steelyard.rewards.core import Reward, score
from steelyard.trainer.rows import TrainingRows, groups_hash, read_group, source_table
from steelyard.trainer.select import score_of
from steelyard.types import Group
from steelyard.types.judged import take


@dataclass
class Judge:
    """Scores completions: by the task's verifier and their likeness to gold, or by the recipe's rewards.

    The completion columns that it adds are ``score`` and ``verdict``.  By the verifier a right completion scores 1,
    any other 0.9 times the share of gold's tokens that its longest common prefix with gold covers.  Rewards that the
    recipe names are summed, and the sum is the score; right is then what scores at least 1.  What cannot be judged has
    the score NaN and the verdict -1 where it stays.

    Attributes:
        rewards: (function or name, weight).
        verifying: the rewards are the verifier alone.
        gold: item -> token ids of its gold completion, where there is one.
        required: the method looks at scores: samples without one are left out, rows without answers refused.  Else
            every completion stays.
        reason: why not a single completion could be scored, the last time that was so.
    """

    tokenizer: Any
    rewards: Sequence[tuple[str | Reward, float]]
    verifying: bool
    gold: Mapping[str, np.ndarray] = field(default_factory=dict)
    required: bool = True
    reason: str = ""

    def __call__(self, rows: Sequence[Group], sampled: Sequence[Group], *, keep: bool = False) -> list[Group]:
        """``sampled`` (one group per row) with scores; samples that cannot be judged are left out if that matters.

        Args:
            keep: leave none out: a row's own completions are part of it, whatever the judge says.

        Raises:
            DataError: scores are required, and no row has an answer to verify with.
        """
        counts = [group.k for group in sampled]
        if not sum(counts):
            return list(sampled)
        keep = keep or not self.required
        judged, start = [], 0
        totals = self._totals(rows, sampled, counts)
        for row, group in zip(rows, sampled, strict=True):
            judged.append(self._judged(row, group, totals[start : start + group.k], keep))
            start += group.k
        return judged

    def _totals(self, rows: Sequence[Group], sampled: Sequence[Group], counts: Sequence[int]) -> list[float | None]:
        """What every completion scores by the rewards, in order; None where they cannot say."""
        names = set.intersection(*(set(row.columns) for row in rows))
        if self.verifying and all(row.columns.get("answer") is None for row in rows):
            if self.required:
                raise DataError(
                    "the samples of a round cannot be judged: the rows have no column 'answer'; add it, or name "
                    "`rewards` that need none"
                )
            return [None] * sum(counts)
        if self.verifying:
            names.add("answer")  # row by row: those without one cannot be judged, the others can
        columns: dict[str, list[Any]] = {
            name: [row.columns.get(name) for row, k in zip(rows, counts, strict=True) for _ in range(k)]
            for name in sorted(names - {"prompt"})
        }
        columns["finished"] = [bool(f) for g in sampled for f in g.completion_columns["finished"]]
        prompts = [row.columns.get("prompt", row.key) for row, k in zip(rows, counts, strict=True) for _ in range(k)]
        texts = [completion_text(self.tokenizer, ids) for g in sampled for ids in g.completions]
        ids = [i.tolist() for g in sampled for i in g.completions]
        try:
            return score(self.rewards, prompts, texts, ids, **columns)[0]
        except DataError as error:  # not one of these could be scored: others of the round may be
            self.reason = str(error)
            return [None] * len(texts)

    def _judged(self, row: Group, group: Group, totals: Sequence[float | None], keep: bool) -> Group:
        kept = [i for i, total in enumerate(totals) if keep or total is not None]
        values = np.array([totals[i] for i in kept], np.float64)  # None becomes NaN
        kept, unknown = take(group, kept), np.isnan(values)
        verdict = np.where(unknown, -1, values >= 1).astype(np.int64)
        if self.verifying:
            gold = self.gold.get(str(row.columns.get("item", row.key)))
            likeness = [score_of(ids, v, gold) for ids, v in zip(kept.completions, verdict, strict=True)]
            values = np.where(unknown, np.nan, np.array(likeness, np.float64))
        columns = {**kept.completion_columns, "score": values, "verdict": verdict}
        return kept.replace(completion_columns=columns)


# --------------------------------------------------------------------------------------------------
# The rows that rounds start from


@dataclass
class RoundRows:
    """Prompts with their own completions (gold; chosen and rejected; or none), and gold completions by item."""

    rows: TrainingRows
    gold: dict[str, np.ndarray]


def round_rows(cfg: RunConfig, spec: AlgorithmSpec, tokenizer: Any, pairs: Path | None) -> RoundRows:
    """The rows of the task or file, with all their columns (``item`` names the row).

    Args:
        pairs: the directory of the run's ``pairs`` stage, for methods that start from pairs on a task.

    Raises:
        DataError: the method takes gold completions, and the rows have none.
    """
    assert spec.rounds is not None
    table = source_table(cfg)
    data = cfg.data.model_copy(update={"completion_only_loss": True})  # prompts are sampled from: they stay whole
    of_pairs = spec.rounds.base == "pairs"
    if of_pairs and pairs is None:
        family = "Pairs"
    else:
        family = "Tokens" if {"completion", "messages", "chosen"} & set(table.columns) else "Rollouts"
    rendered = Renderer.from_config(tokenizer, data).render(table, family)  # type: ignore[arg-type]
    columns = {
        str(line): {**_prompt_of(row), **row, "item": str(row.get("item", f"row:{line}"))}
        for line, row in zip(table.lines, table.rows, strict=True)
    }
    groups = [g.replace(columns=columns[g.key.rpartition(":")[2]]) for g in rendered.groups]
    gold = {str(g.columns["item"]): g.completions[0] for g in groups if g.k}
    report = rendered.report.to_dict()
    if of_pairs and pairs is not None:
        by_item = {row["item"]: row for row in columns.values()}
        groups = [read_group(row) for row in read_jsonl(pairs / "rows.jsonl")]
        groups = [g.replace(columns={**g.columns, **by_item[g.key.rpartition("#")[0]]}) for g in groups]
        report = {"source": "own samples", "rows": len(groups), "kept": len(groups)}
        if not groups:
            raise DataError(
                f"algorithm '{spec.key}': the model's own samples gave no pair; it is right (or wrong) on every "
                "prompt: raise data.generate.num_generations or the temperature"
            )
    if "gold" in spec.rounds.samplers and not all(group.k for group in groups):
        raise DataError(
            f"algorithm '{spec.key}' takes gold completions, and {table.source} has none: add a column 'completion'"
        )
    return RoundRows(TrainingRows(groups, report, groups_hash(groups)), gold)


def _prompt_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt of a conversation, as a column of its own."""
    return {"prompt": split_conversation(row["messages"])[0]} if "messages" in row else {}
