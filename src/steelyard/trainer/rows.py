"""Which groups a run trains on: gold rows of a task, rows of a file, or what the run's stages made.

Self-generated rows are stored with their token ids (the only source of truth): they are never tokenised
again.  Each line of a stage's ``rows.jsonl`` holds a prompt with k completions, readable as text too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steelyard.algorithms.core import AlgorithmSpec
from steelyard.config import RunConfig
from steelyard.data.render import Renderer, completion_ids, completion_text
from steelyard.data.rows import Table
from steelyard.data.schemas import row_family
from steelyard.data.sources import load_table
from steelyard.errors import DataError
from steelyard.evals.task import Item, Verdict
from steelyard.files import json_line, read_jsonl, sha256_json
from steelyard.trainer.select import score_of
from steelyard.types import Group


@dataclass
class TrainingRows:
    """Groups in a fixed order, what happened to the rows on the way, and a hash of what is left."""

    groups: list[Group]
    report: dict[str, Any]
    sha256: str


def training_rows(cfg: RunConfig, spec: AlgorithmSpec, tokenizer: Any, stage_rows: Path | None) -> TrainingRows:
    """The groups of a run.

    ``stage_rows`` is the directory of the stage that selected rows from the run's own samples, when it has one
    (:func:`steelyard.trainer.plan.rows_stage`).
    """
    if stage_rows is not None:
        groups = [read_group(row) for row in read_jsonl(stage_rows / "rows.jsonl")]
        report: dict[str, Any] = {"source": "own samples", "rows": len(groups), "kept": len(groups)}
        if not groups:
            raise DataError(
                f"algorithm '{spec.key}': the model's own samples gave no usable row; it is right (or wrong) on every "
                "prompt: raise data.generate.num_generations or the temperature"
            )
        if spec.family == "Unpaired":
            groups = [g if "label" in g.completion_columns else with_labels(g) for g in groups]
    else:
        renderer = Renderer.from_config(tokenizer, cfg.data)
        renderer.completion_only_loss &= not spec.whole_text
        file = spec.family != "Rollouts"  # rollouts get their columns from whoever samples
        numbers, optional = (spec.columns, spec.optional_columns) if file else ((), ())
        family = row_family(spec.family, spec.head)
        result = renderer.render(source_table(cfg), family, columns=numbers, optional=optional)
        groups, report = result.groups, result.report.to_dict()
    return TrainingRows(groups, report, groups_hash(groups))


def source_table(cfg: RunConfig) -> Table:
    """The rows before rendering: gold rows of the task, or the file's."""
    if cfg.data.task is None:
        return load_table(cfg.data)
    items = task_items(cfg)[0]
    rows = [
        {**item.columns, "prompt": item.prompt, "completion": item.completion, "answer": item.answer, "item": item.id}
        for item in items
    ]
    return Table.from_rows(rows, f"{cfg.data.task}/{cfg.data.split}")


def task_items(cfg: RunConfig) -> tuple[list[Item], Callable[[str, Item], Verdict]]:
    """Items that the model may practise on, and what judges its answers.

    A file's rows need ``prompt`` and ``answer``; their answers are compared as numbers.
    """
    if cfg.data.task is not None:
        from steelyard.evals.tasks import get_task

        task = get_task(cfg.data.task, where="data.task")
        items = task.items(cfg.data.split, purpose="train", limit=cfg.data.limit)  # type: ignore[arg-type]
        if task.verify is None:
            raise DataError(f"data.task: '{task.name}' is multiple choice; it has no verifier to practise with")
        return list(items), task.verify
    from steelyard.rewards.verifiers import verify_number

    table = load_table(cfg.data)
    items = []
    for index, row in enumerate(table.rows):
        for column in ("prompt", "answer"):
            if not isinstance(row.get(column), str):
                raise DataError(
                    f"{table.where(index)}: sampling and verifying needs a text column '{column}'; "
                    f"columns: {', '.join(table.columns)}"
                )
        gold = row.get("completion")
        gold = gold if isinstance(gold, str) else ""
        # The id is the key of the row's random stream: where the file lies must not matter.
        items.append(Item(f"row:{table.lines[index]}", row["prompt"], row["answer"], completion=gold))
    return items, lambda text, item: verify_number(text, item.answer)


def judged_group(tokenizer: Any, group: Group, item: Item, verify: Callable[[str, Item], Verdict]) -> Group:
    """Samples of an item's prompt with the completion columns ``verdict`` and ``score``.

    ``verdict`` is 1 for right, 0 for wrong, -1 for not judged: unfinished answers are neither.  ``score`` is that of
    :func:`steelyard.trainer.select.score_of`, with the item's gold completion.
    """
    verdicts = [verify(completion_text(tokenizer, ids), item).strict for ids in group.completions]
    finished = group.completion_columns["finished"]
    verdict = np.array([-1 if v is None or not f else int(v) for v, f in zip(verdicts, finished, strict=True)])
    gold = completion_ids(tokenizer, item.prompt, item.completion) if item.completion else None
    score = np.array([score_of(ids, v, gold) for ids, v in zip(group.completions, verdict.tolist(), strict=True)])
    return group.replace(
        key=item.id,
        columns={"answer": item.answer},
        completion_columns={**group.completion_columns, "verdict": verdict, "score": score},
    )


def with_labels(group: Group) -> Group:
    """A preference pair as two completions with a label each (the first one is desirable)."""
    return group.replace(completion_columns={**group.completion_columns, "label": np.array([True, False])})


def mismatched(groups: list[Group], rng: np.random.Generator) -> list[Group]:
    """Every prompt of a step with one completion of another row (KTO's z0), as groups of one.

    The partner is the next group of the step with another prompt, the completion is drawn by ``rng``: a
    function of (seed, step), never of the split into micro-batches.
    """
    leaves = []
    for i, group in enumerate(groups):
        others = (groups[(i + shift) % len(groups)] for shift in range(1, len(groups)))
        partner = next((o for o in others if not np.array_equal(o.prompt, group.prompt)), None)
        if partner is None:
            raise DataError(f"group {group.key}: no other prompt in this step of {len(groups)} to mismatch it with")
        leaf = int(rng.integers(partner.k))
        leaves.append(
            Group(
                prompt=group.prompt,
                completions=(partner.completions[leaf],),
                masks=(partner.masks[leaf],),
                key=f"{group.key} with a completion of {partner.key}",
            )
        )
    return leaves


def with_leaf(group: Group, leaf: Group) -> Group:
    """``group`` with the completion of ``leaf`` (same prompt) as an untrained last completion."""
    columns = {k: np.append(v, np.zeros(1, v.dtype)) for k, v in group.completion_columns.items()}
    shared = group.token_columns.keys() & leaf.token_columns.keys()
    return group.replace(
        completions=(*group.completions, *leaf.completions),
        masks=(*group.masks, *leaf.masks),
        completion_columns=columns,
        token_columns={k: (*group.token_columns[k], *leaf.token_columns[k]) for k in shared},
        trained=(*group.trained, False),
    )


# --------------------------------------------------------------------------------------------------
# Rows on disk


def write_groups(groups: Iterable[Group], texts: Callable[[np.ndarray], str], **fields: Any) -> str:
    """Groups as JSON lines with ids, columns and readable text; ``fields`` come first in every line."""
    return "".join(
        json_line(
            {
                **fields,
                "key": group.key,
                "prompt": texts(group.prompt),
                "completions": [texts(ids) for ids in group.completions],
                "prompt_ids": group.prompt.tolist(),
                "completion_ids": [ids.tolist() for ids in group.completions],
                "columns": dict(group.columns),
                "completion_columns": {k: v.tolist() for k, v in group.completion_columns.items()},
                "token_columns": {k: [_plain(x) for x in v] for k, v in group.token_columns.items()},
                "policy_version": group.policy_version,
                **({} if all(m.all() for m in group.masks) else {"masks": [m.tolist() for m in group.masks]}),
            }
        )
        for group in groups
    )


def _plain(values: np.ndarray) -> list[float | None]:
    """Numbers for JSON, which has no NaN: null (read back as NaN)."""
    return [None if np.isnan(value) else value for value in values.tolist()]


def read_group(row: Mapping[str, Any]) -> Group:
    """The inverse of :func:`write_groups` for one line."""
    completions = tuple(np.asarray(ids, np.int32) for ids in row["completion_ids"])
    masks = row.get("masks") or [[True] * len(ids) for ids in completions]
    return Group(
        prompt=np.asarray(row["prompt_ids"], np.int32),
        completions=completions,
        masks=tuple(np.asarray(mask, bool) for mask in masks),
        columns=row["columns"],
        completion_columns={k: _values(v) for k, v in row["completion_columns"].items()},
        token_columns={k: tuple(np.asarray(x, np.float32) for x in v) for k, v in row["token_columns"].items()},
        policy_version=row["policy_version"],
        key=row["key"],
    )


def _values(values: Sequence[Any]) -> np.ndarray:
    """A column as it was written: null is NaN."""
    return np.asarray([np.nan if value is None else value for value in values])


def groups_hash(groups: Iterable[Group]) -> str:
    """SHA-256 of prompts, completions, masks, scores and labels, in order."""
    return sha256_json(
        [
            [
                group.prompt.tolist(),
                [ids.tolist() for ids in group.completions],
                [mask.tolist() for mask in group.masks],
                {k: np.asarray(v).tolist() for k, v in group.completion_columns.items()},
                {k: [_plain(x) for x in v] for k, v in group.token_columns.items() if k == "step_label"},
            ]
            for group in groups
        ]
    )
