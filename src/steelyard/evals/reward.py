"""Measure a reward model: on held-out rows (:mod:`steelyard.evals.quality`), and on tasks by best-of-n.

A reward head answers nothing.  It takes part in a task by choosing: among n samples of the policy that its training
started from, or among the choices of an item.  The records are those of any policy, so that both can be compared item
by item.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from steelyard.config import EvalConfig
from steelyard.data.render import completion_text, prompt_ids
from steelyard.errors import DataError
from steelyard.evals.quality import Report, correctness, outcome_quality, pair_quality, step_quality
from steelyard.evals.runner import Record, Writer, best_index, judge, number, summarise
from steelyard.evals.task import Item, Purpose, Task
from steelyard.evals.tasks import get_task
from steelyard.models.load import Policy
from steelyard.rewards.models import RewardModel
from steelyard.rollout.sampler import NativeSampler, SamplingParams
from steelyard.types import Group

HELD_OUT = "held_out"
"""Under this name held-out rows (other than preference pairs of their own file) are recorded and reported."""

PAIRS_PER_PROMPT = 4
"""Pairs of a right and a wrong sample of one prompt at most, in the quality report of a task."""

_GENERATIVE = ("score", "strict", "flexible", "truncated", "empty", "length", "any", "mean")
_CHOICE = ("score",)


# --------------------------------------------------------------------------------------------------
# Held-out rows


def judge_rows(model: RewardModel, groups: Sequence[Group]) -> tuple[Report, list[Record]]:
    """The quality report of a reward model on rendered rows, and one record per judgement.

    Rows with ``step_label`` are steps, rows with ``label`` outcomes (for heads that state a probability); otherwise
    they are pairs (chosen first) or lists with a ``score`` each, of which every pair of unequal scores counts.

    Raises:
        DataError: no rows, or rows that this head cannot be measured on.
    """
    if not groups:
        raise DataError("quality report: there are no held-out rows")
    if model.facts.process:
        return _steps(model, groups)
    if model.facts.outcome and all("label" in group.completion_columns for group in groups):
        return _outcomes(model, groups)
    return _pairs(model, groups)


def _steps(model: RewardModel, groups: Sequence[Group]) -> tuple[Report, list[Record]]:
    records, names = [], []
    for group, rows in zip(groups, model.values(groups), strict=True):
        if "step_label" not in group.token_columns:
            raise DataError(f"quality report: row {group.key} has no step labels, which a process head is measured by")
        ends = model.step_ends(group)
        for index, (values, places) in enumerate(zip(rows, ends, strict=True)):
            labels = group.token_columns["step_label"][index][group.masks[index]]
            for step, place in enumerate(places):
                right = float(labels[place])
                if np.isnan(right):
                    continue
                said = float(values[place])
                names.append(f"{group.key}/{index}")
                where = {"item": f"{group.key}/{index}/{step}", "probability": said, "label": right}
                records.append(_record("steps", where, float((said >= 0.5) == (right >= 0.5))))
    if not records:
        raise DataError("quality report: no held-out step has a label")
    return step_quality([r["probability"] for r in records], [r["label"] for r in records], names), records


def _outcomes(model: RewardModel, groups: Sequence[Group]) -> tuple[Report, list[Record]]:
    scores, labels, lengths, names = [], [], [], []
    for group, row in zip(groups, model.scores(groups), strict=True):
        scores += row.tolist()
        labels += group.completion_columns["label"].astype(bool).tolist()
        lengths += [int(mask.sum()) for mask in group.masks]
        names += [f"{group.key}/{index}" for index in range(group.k)]
    probabilities = model.probabilities(np.array(scores))
    records = [
        _record(
            "outcomes",
            {"item": name, "probability": float(p), "label": int(label), "length": length},
            float((p > 0.5) == label),
        )
        for name, score, p, label, length in zip(names, scores, probabilities, labels, lengths, strict=True)
    ]
    return outcome_quality(scores, probabilities, labels, lengths), records


def _pairs(model: RewardModel, groups: Sequence[Group]) -> tuple[Report, list[Record]]:
    rows: list[Record] = []
    for group, scores in zip(groups, model.scores(groups), strict=True):
        lengths = [int(mask.sum()) for mask in group.masks]
        for chosen, rejected, margin in _ordered(group):
            where = {"item": f"{group.key}/{chosen}>{rejected}", "score_chosen": float(scores[chosen])}
            where |= {"score_rejected": float(scores[rejected]), "margin": margin}
            where |= {"length_chosen": lengths[chosen], "length_rejected": lengths[rejected]}
            rows.append(where)
    if not rows:
        raise DataError("quality report: the held-out lists have no two completions of different worth")
    right = correctness(*(np.array([row[f"score_{side}"] for row in rows]) for side in ("chosen", "rejected")))
    report = pair_report(rows)
    return report, [_record("pairs", row, value) for row, value in zip(rows, right.tolist(), strict=True)]


def _ordered(group: Group) -> list[tuple[int, int, float | None]]:
    """(better, worse, margin) of a group: by its completions' ``score``, or chosen before rejected."""
    worth = group.completion_columns.get("score")
    if group.k == 2 and (worth is None or "margin" in group.columns):
        margin = group.columns.get("margin")
        return [(0, 1, None if margin is None else float(margin))]
    if worth is None:
        raise DataError(f"quality report: row {group.key} has {group.k} completions and no `score` that orders them")
    pairs = [(i, j) for i in range(group.k) for j in range(group.k) if worth[i] > worth[j]]
    return [(i, j, float(worth[i] - worth[j])) for i, j in pairs]


def pair_report(rows: Sequence[Record]) -> Report:
    """:func:`steelyard.evals.quality.pair_quality` of records with scores and lengths of both sides."""
    columns = ("score_chosen", "score_rejected", "length_chosen", "length_rejected")
    margins = [row.get("margin") for row in rows]
    known = [m for m in margins if m is not None]
    return pair_quality(
        *([row[name] for row in rows] for name in columns), margin=known if len(known) == len(rows) else None
    )


def _record(kind: str, row: Record, right: float) -> Record:
    return {"task": HELD_OUT, "kind": kind, "correct": right, **row}


# --------------------------------------------------------------------------------------------------
# Tasks


def evaluate_by_choosing(
    model: RewardModel, start: Policy, cfg: EvalConfig, *, seed: int, writer: Writer | None, purpose: Purpose
) -> tuple[dict[str, float], dict[str, Report]]:
    """Let a reward model choose on every task of ``cfg``.

    Generative tasks: of ``cfg.best_of`` samples of ``start`` at temperature 1 (the same for every reward model of a
    start and seed) the one with the highest score is the answer.  Multiple choice: the choice with the highest score.

    Returns:
        The metrics of :func:`steelyard.evals.runner.evaluate_tasks`, and for generative tasks ``any`` (share of items
        with a right sample at all: the best that choosing can do) and ``mean`` (share of right samples: what choosing
        at random gives); and a quality report per generative task with both right and wrong samples.
    """
    metrics: dict[str, float] = {}
    reports: dict[str, Report] = {}
    for name in cfg.tasks:
        task = get_task(name, where="eval.tasks")
        items = task.items(cfg.split, purpose=purpose, limit=cfg.limit)
        if not items:
            raise DataError(f"task '{task.name}': the split '{cfg.split}' has no items")
        if task.kind == "choice":
            metrics |= summarise(task, cfg.split, _choices(model, task, items), _CHOICE, writer)
            continue
        rows, samples = _best_of(model, start, task, items, cfg, seed)
        metrics |= summarise(task, cfg.split, rows, _GENERATIVE, writer)
        report = _sample_report(model, samples)
        if report is not None:
            reports[task.name] = report
    return metrics, reports


def _choices(model: RewardModel, task: Task, items: Sequence[Item]) -> list[Record]:
    for item in items:
        if item.answer not in item.choices:
            raise DataError(f"task '{task.name}': item {item.id}: the answer {item.answer!r} is not among its choices")
    groups = [model.group(item.prompt, item.choices, key=item.id) for item in items]
    rows = []
    for item, group, scores in zip(items, groups, model.scores(groups), strict=True):
        gold, chosen = item.choices.index(item.answer), best_index(scores.tolist())
        rows.append(
            {
                "item": item.id,
                "score": int(chosen == gold),
                "choice": chosen,
                "gold": gold,
                "scores": scores.tolist(),
                "lengths": [len(ids) for ids in group.completions],
                "prompt": item.prompt,
                "choices": list(item.choices),
            }
        )
    return rows


def _best_of(
    model: RewardModel, start: Policy, task: Task, items: Sequence[Item], cfg: EvalConfig, seed: int
) -> tuple[list[Record], list[dict[str, Any]]]:
    """One record per item for the chosen sample; and per item all samples with verdicts and scores."""
    sampled = NativeSampler.of(start).generate(
        [prompt_ids(start.tokenizer, item.prompt) for item in items],
        SamplingParams(n=cfg.best_of, temperature=1.0, max_completion_length=cfg.max_completion_length),
        seed=seed,
        keys=[item.id for item in items],
    )
    plain = [group.replace(token_columns={}, completion_columns={}) for group in sampled]
    rows, samples = [], []
    for item, group, scores in zip(items, sampled, model.scores(plain), strict=True):
        texts = [completion_text(start.tokenizer, ids) for ids in group.completions]
        verdicts = [judge(task, text, item) for text in texts]
        finished = group.completion_columns["finished"].astype(bool).tolist()
        # An answer that was cut off at the length limit is not in the asked format, whatever it contains.
        strict = [None if v.strict is None else v.strict and f for (v, _), f in zip(verdicts, finished, strict=True)]
        known = [value for value in strict if value is not None]
        pick = int(np.argmax(scores))
        verdict, error = verdicts[pick]
        rows.append(
            {
                "item": item.id,
                "score": number(strict[pick]),
                "strict": number(strict[pick]),
                "flexible": number(verdict.flexible),
                "truncated": int(not finished[pick]),
                "empty": int(len(group.completions[pick]) == int(finished[pick])),
                "length": len(group.completions[pick]),
                "any": int(any(known)) if known else None,
                "mean": float(np.mean(known)) if known else None,
                "sample": pick,
                "prompt": item.prompt,
                "completion": texts[pick],
                "answer": item.answer,
                **error,
            }
        )
        lengths = [len(ids) for ids in group.completions]
        samples.append({"text": texts, "right": strict, "score": scores.tolist(), "length": lengths})
    return rows, samples


def _sample_report(model: RewardModel, samples: Sequence[dict[str, Any]]) -> Report | None:
    """Quality on the distinct samples of every item: outcomes, or pairs of a right and a wrong one."""
    distinct: list[list[tuple[bool, float, int]]] = []
    for item in samples:
        seen: dict[str, tuple[bool, float, int]] = {}
        for text, right, score, length in zip(*(item[k] for k in ("text", "right", "score", "length")), strict=True):
            if right is not None:
                seen.setdefault(text, (bool(right), score, length))
        distinct.append(list(seen.values()))
    if model.facts.outcome or model.facts.process:
        flat = [sample for item in distinct for sample in item]
        right, scores, lengths = (list(column) for column in zip(*flat, strict=True)) if flat else ([], [], [])
        if len(set(right)) < 2:
            return None
        return outcome_quality(scores, model.probabilities(np.array(scores)), right, lengths)
    rows = []
    for item in distinct:
        sides = zip((s for s in item if s[0]), (s for s in item if not s[0]), strict=False)
        for (_, high, chosen), (_, low, rejected) in list(sides)[:PAIRS_PER_PROMPT]:
            row = {"score_chosen": high, "score_rejected": low, "length_chosen": chosen, "length_rejected": rejected}
            rows.append(row)
    return pair_report(rows) if rows else None
