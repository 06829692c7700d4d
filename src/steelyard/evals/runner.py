"""Measure a policy: greedy answers, multiple choice by log-likelihood, held-out preferences.

Every number is a mean of per-item records, and the records are what statistics are made from.  What could not
be judged is counted apart and never a zero; truncated and empty answers are counted whatever their verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from steelyard.config import EvalConfig
from steelyard.data.packing import PackedBatch, pack
from steelyard.data.render import completion_ids, completion_text, prompt_ids
from steelyard.errors import DataError, NumericalError
from steelyard.evals.task import Item, Purpose, Task, Verdict
from steelyard.evals.tasks import get_task
from steelyard.models.heads import RewardFacts
from steelyard.models.load import Policy
from steelyard.models.logprobs import token_logprobs
from steelyard.rewards.models import RewardModel
from steelyard.rollout.sampler import NativeSampler, SamplingParams
from steelyard.types import Group

Record = dict[str, Any]
Writer = Callable[[str, list[Record]], None]

PREFERENCES = "preferences"
"""Under this name held-out preference pairs are recorded and reported."""

TOKENS_PER_BATCH = 16384
"""Positions of one scoring pass (more only where a single group is larger)."""


def evaluate_tasks(
    policy: Policy, cfg: EvalConfig, *, seed: int, writer: Writer | None, purpose: Purpose
) -> dict[str, float]:
    """Measure ``policy`` on every task of ``cfg``.

    Args:
        seed: of the sampler; greedy decoding, which is what tasks use, does not depend on it.
        writer: called with (task name, records), once per task; None keeps no records.
        purpose: unseen tasks and test splits may only be reported.

    Returns:
        ``eval/<task>/score`` (generative: strict exact match; choice: accuracy) and ``unscored`` (share of
        items that could not be judged and are left out), ``n`` (items); generative: ``strict``, ``flexible``,
        ``truncated``, ``empty`` (shares), ``length`` (mean tokens, end token included); choice: ``acc_norm``
        (accuracy by mean instead of summed log-likelihood).

    Raises:
        ConfigError: unknown task, or one that may not be read for this purpose.
        DataError: a task without items, or none of whose answers could be judged.
    """
    metrics: dict[str, float] = {}
    for name in cfg.tasks:
        task = get_task(name, where="eval.tasks")
        items = task.items(cfg.split, purpose=purpose, limit=cfg.limit)
        if not items:
            raise DataError(f"task '{task.name}': the split '{cfg.split}' has no items")
        with policy.measuring() as model:
            if task.kind == "generative":
                rows = _generative(policy, task, items, cfg.max_completion_length, seed)
                means = ("score", "strict", "flexible", "truncated", "empty", "length")
            else:
                rows = _choice(policy, model, task, items)
                means = ("score", "acc_norm")
        metrics |= summarise(task, cfg.split, rows, means, writer)
    return metrics


def summarise(
    task: Task, split: str, rows: Sequence[Record], means: Sequence[str], writer: Writer | None
) -> dict[str, float]:
    """A task's metrics from its rows, which become its records."""
    head = {"task": task.name, "version": task.version, "role": task.role, "kind": task.kind}
    records = [{**head, "split": split, **row} for row in rows]
    scored = [row for row in records if row["score"] is not None]
    if not scored:
        raise DataError(f"task '{task.name}': none of {len(records)} answers could be judged{_errors(rows)}")
    metrics: dict[str, float] = {}
    for measure in means:
        values = [float(row[measure]) for row in records if row[measure] is not None]
        metrics[f"eval/{task.name}/{measure}"] = float(np.mean(values)) if values else float("nan")
    metrics[f"eval/{task.name}/unscored"] = 1.0 - len(scored) / len(records)
    metrics[f"eval/{task.name}/n"] = float(len(records))
    if writer is not None:
        writer(task.name, records)
    return metrics


def evaluate_preferences(
    policy: Policy,
    groups: Sequence[Group],
    *,
    writer: Writer | None,
    head: str,
    reward: RewardModel | None = None,
) -> dict[str, float]:
    """How often ``policy`` prefers the chosen completion of held-out pairs.

    Args:
        groups: pairs, chosen first; with the token column ``ref`` they are also scored by log-ratio.
        head: ``lm`` scores by summed log-probability, the others by a reward head.
        reward: what the outputs of the head mean; default: higher is better.

    Returns:
        Under ``eval/preferences/``: ``accuracy_logprob`` and ``accuracy_logratio``, or ``accuracy`` (of a
        reward head), and ``n`` pairs; a tie counts one half.
    """
    if not groups:
        raise DataError("held-out preferences: there is no pair to score")
    for group in groups:
        if group.k != 2:
            raise DataError(f"held-out preferences: group {group.key} has {group.k} completions, expected two")
    if head == "lm":
        with policy.measuring() as model:
            rows = _by_logprob(policy, model, groups)
    else:
        rows = _by_reward(reward or RewardModel(policy, RewardFacts()), groups)
    measures = {
        "accuracy_logprob": "correct_logprob",
        "accuracy_logratio": "correct_logratio",
        "accuracy": "correct",
    }
    metrics = {
        f"eval/{PREFERENCES}/{measure}": float(np.mean([row[column] for row in rows]))
        for measure, column in measures.items()
        if column in rows[0]
    }
    metrics[f"eval/{PREFERENCES}/n"] = float(len(rows))
    if writer is not None:
        writer(PREFERENCES, rows)
    return metrics


# --------------------------------------------------------------------------------------------------
# Generative tasks


def _generative(policy: Policy, task: Task, items: Sequence[Item], max_length: int, seed: int) -> list[Record]:
    """Greedy answers and their verdicts, one row per item."""
    tokenizer = policy.tokenizer
    groups = NativeSampler.of(policy).generate(
        [prompt_ids(tokenizer, item.prompt) for item in items],
        SamplingParams(temperature=0.0, max_completion_length=max_length),
        seed=seed,
        keys=[item.id for item in items],
    )
    rows = []
    for item, group in zip(items, groups, strict=True):
        (ids,), finished = group.completions, bool(group.completion_columns["finished"][0])
        text = completion_text(tokenizer, ids)
        verdict, error = judge(task, text, item)
        # An answer that was cut off at the length limit is not in the asked format, whatever it contains.
        strict = verdict.strict and finished if verdict.strict is not None else None
        rows.append(
            {
                "item": item.id,
                "score": number(strict),
                "strict": number(strict),
                "flexible": number(verdict.flexible),
                "truncated": int(not finished),
                "empty": int(len(ids) == int(finished)),
                "length": len(ids),
                "prompt": item.prompt,
                "completion": text,
                "answer": item.answer,
                **error,
            }
        )
    return rows


def judge(task: Task, text: str, item: Item) -> tuple[Verdict, dict[str, str]]:
    """The task's verdict; a verifier that raises has not judged, and its record names the exception."""
    if task.verify is None:
        raise DataError(f"task '{task.name}' is generative but has no verifier")
    try:
        return task.verify(text, item), {}
    except Exception as error:  # a verifier is foreign code; the item is counted as unscored with this reason
        return Verdict(None, None), {"error": f"{type(error).__name__}: {error}"}


def number(verdict: bool | None) -> int | None:
    return None if verdict is None else int(verdict)


def _errors(rows: Sequence[Mapping[str, Any]]) -> str:
    first = next((row["error"] for row in rows if "error" in row), None)
    return f" (the first error: {first})" if first else ""


# --------------------------------------------------------------------------------------------------
# Log-likelihoods


def _choice(policy: Policy, model: nn.Module, task: Task, items: Sequence[Item]) -> list[Record]:
    """Log-likelihood of every choice; the gold one must beat all others, a tie is wrong."""
    groups = [_choices(policy, task, item) for item in items]
    rows = []
    for item, logps in zip(items, _logps(policy, model, groups), strict=True):
        sums = [float(values.sum()) for values in logps]
        means = [float(values.mean()) for values in logps]
        gold = item.choices.index(item.answer)
        rows.append(
            {
                "item": item.id,
                "score": int(best_index(sums) == gold),
                "acc_norm": int(best_index(means) == gold),
                "choice": best_index(sums),
                "gold": gold,
                "logps": sums,
                "lengths": [len(values) for values in logps],
                "prompt": item.prompt,
                "choices": list(item.choices),
            }
        )
    return rows


def best_index(values: Sequence[float]) -> int | None:
    """Index of the largest value; None when it is shared, so that a model without an opinion scores zero."""
    top = max(values)
    return values.index(top) if values.count(top) == 1 else None


def _choices(policy: Policy, task: Task, item: Item) -> Group:
    """One item as a prompt with k completions, without end tokens."""
    where = f"task '{task.name}': item {item.id}"
    if item.answer not in item.choices:
        raise DataError(f"{where}: the answer {item.answer!r} is not among its choices")
    ids = [completion_ids(policy.tokenizer, item.prompt, choice, eos=False) for choice in item.choices]
    for choice, tokens in zip(item.choices, ids, strict=True):
        if len(tokens) == 0:
            raise DataError(f"{where}: the choice {choice!r} has no token")
    masks = tuple(np.ones(len(tokens), dtype=bool) for tokens in ids)
    return Group(prompt_ids(policy.tokenizer, item.prompt), tuple(ids), masks, key=item.id)


def _by_logprob(policy: Policy, model: nn.Module, groups: Sequence[Group]) -> list[Record]:
    rows = []
    for group, logps in zip(groups, _logps(policy, model, groups), strict=True):
        chosen, rejected = (float(values.sum()) for values in logps)
        scale = max(abs(chosen), abs(rejected))
        row: Record = _pair(group) | {
            "logp_chosen": chosen,
            "logp_rejected": rejected,
            "correct_logprob": _preferred(chosen, rejected, scale),
        }
        if "ref" in group.token_columns:
            columns = zip(group.token_columns["ref"], group.masks, strict=True)
            ref_chosen, ref_rejected = (float(ref[mask].sum(dtype=np.float64)) for ref, mask in columns)
            _check_finite(group, [ref_chosen, ref_rejected])
            row |= {
                "ref_chosen": ref_chosen,
                "ref_rejected": ref_rejected,
                "correct_logratio": _preferred(chosen - ref_chosen, rejected - ref_rejected, scale),
            }
        rows.append(row)
    return rows


def _by_reward(reward: RewardModel, groups: Sequence[Group]) -> list[Record]:
    return [
        _pair(group)
        | {
            "score_chosen": chosen,
            "score_rejected": rejected,
            "correct": _preferred(chosen, rejected, max(abs(chosen), abs(rejected))),
        }
        for group, (chosen, rejected) in zip(groups, (row.tolist() for row in reward.scores(groups)), strict=True)
    ]


def _pair(group: Group) -> Record:
    lengths = [int(mask.sum()) for mask in group.masks]
    return {
        "task": PREFERENCES,
        "kind": "preference",
        "item": group.key,
        "length_chosen": lengths[0],
        "length_rejected": lengths[1],
    }


def _preferred(chosen: float, rejected: float, scale: float) -> float:
    """1, 0, or 0.5 for a tie: a difference within the rounding of float32 values of size ``scale`` is none.

    Without it the untrained start, whose log-ratios are all zero, would be right on a random half.
    """
    return 0.5 if abs(chosen - rejected) <= 1e-6 * max(1.0, scale) else float(chosen > rejected)


def _logps(policy: Policy, model: nn.Module, groups: Sequence[Group]) -> Iterator[list[np.ndarray]]:
    """For every group in order, the log-probabilities ``float64[t]`` of each completion's scored tokens."""
    for batch in _batches(policy, groups):
        values = iter(batch.split(token_logprobs(model, batch).logp.double().cpu()))
        for group in batch.groups:
            logps = [next(values).numpy() for _ in range(group.k)]
            _check_finite(group, [v for completion in logps for v in completion])
            yield logps


def _batches(policy: Policy, groups: Sequence[Group]) -> Iterator[PackedBatch]:
    largest = max(group.k * (len(group.prompt) + max(map(len, group.completions))) for group in groups)
    for batch in pack(groups, max(TOKENS_PER_BATCH, largest), padded=not policy.packed):
        yield batch.to(policy.device)


def _check_finite(group: Group, values: Sequence[float]) -> None:
    if not np.isfinite(values).all():
        raise NumericalError(f"evaluation: item {group.key} has a log-probability or score that is not finite")
