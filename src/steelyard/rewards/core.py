"""Rewards: functions that score text, and one way of combining several of them.

A reward has the signature that the field knows from TRL::

    def reward(prompts, completions, completion_ids, **columns) -> list[float | None]

with one string (or token-id array) per completion and one value per completion in every column.  It must
judge each completion on its own, whoever its neighbours are.  ``None`` means "I cannot say"; it is never
turned into a zero.  Imports no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from steelyard.errors import ConfigError, DataError
from steelyard.registry import Registry


class Reward(Protocol):
    """``(prompts, completions, completion_ids, **columns) -> [float | None]``, one value per completion."""

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Any],
        **columns: Any,
    ) -> Sequence[float | None]: ...


rewards: Registry[Reward] = Registry("reward")
"""Every reward by name; the verifiers register when :func:`get_reward` first looks for a name."""


def reward(name: str) -> Callable[[Reward], Reward]:
    """Register a reward: ``@reward("answer")``."""
    return rewards(name)


def get_reward(name: str, *, where: str = "rewards") -> Reward:
    """The reward called ``name``; :class:`ConfigError` with the nearest choice when there is none."""
    # They register themselves; they import this module, hence here.
    import steelyard.rewards.models
    import steelyard.rewards.verifiers  # noqa: F401

    return rewards.get(name, where=where)


@dataclass(frozen=True)
class RewardValues:
    """What one reward said about a batch of completions.

    Attributes:
        values: one per completion; ``None`` where it could not be judged.
        failures: exception type (or ``"non-finite"``) -> number of completions lost to it.
    """

    values: tuple[float | None, ...]
    failures: Mapping[str, int] = field(default_factory=dict)

    @property
    def unscored(self) -> int:
        """Completions without a value."""
        return sum(value is None for value in self.values)


def score(
    rewards_with_weights: Sequence[tuple[str | Reward, float]],
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Any],
    **columns: Sequence[Any],
) -> tuple[list[float | None], dict[str, RewardValues]]:
    """Score completions with several rewards and sum them with weights.

    A reward that raises is asked again one completion at a time, so that only the completions which break it
    are lost; each counts as ``None`` with the type of its exception.  A completion's total is ``None`` when a
    reward failed on it, or said ``None`` about it while judging another completion of the same prompt: a sum
    without that term would silently be a sum with a zero.  A reward that says ``None`` about *every*
    completion of a prompt does not apply to that prompt, and is left out for all of them alike.

    Args:
        rewards_with_weights: ``(name or function, weight)``.
        prompts, completions, completion_ids: one entry per completion (prompts repeated).
        columns: further columns, one value per completion, passed to every reward by name.

    Returns:
        The totals (``None``: leave this completion out of training) and each reward's own values by name.

    Raises:
        ConfigError: unknown name, the same reward twice, or a reward that returned another number of values.
        DataError: columns of unequal length, or not a single completion could be scored.
    """
    count = len(completions)
    for name, column in {"prompts": prompts, "completion_ids": completion_ids, **columns}.items():
        if len(column) != count:
            raise DataError(f"rewards: column '{name}' has {len(column)} values for {count} completions")
    results: dict[str, RewardValues] = {}
    weights: dict[str, float] = {}
    failed: set[int] = set()
    for entry, weight in rewards_with_weights:
        function = get_reward(entry) if isinstance(entry, str) else entry
        name = entry if isinstance(entry, str) else getattr(entry, "__name__", type(entry).__name__)
        if name in results:
            raise ConfigError(f"rewards: '{name}' is listed twice; give it one weight")
        results[name], broken = _evaluate(name, function, prompts, completions, completion_ids, columns)
        weights[name] = weight
        failed |= broken if weight else set()

    by_prompt: dict[Any, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_prompt.setdefault(_hashable(prompt), []).append(index)
    totals: list[float | None] = [None] * count
    for members in by_prompt.values():
        applicable = [
            name
            for name, result in results.items()
            if weights[name] and any(result.values[i] is not None for i in members)
        ]
        for i in members:
            terms = [(weights[name], results[name].values[i]) for name in applicable]
            if terms and i not in failed and all(value is not None for _, value in terms):
                totals[i] = float(sum(weight * value for weight, value in terms if value is not None))
    if count and all(total is None for total in totals):
        reasons = "; ".join(
            f"{name}: {result.unscored} unscored {dict(result.failures) or ''}".strip()
            for name, result in results.items()
        )
        raise DataError(f"rewards: none of {count} completions could be scored ({reasons or 'no reward given'})")
    return totals, results


def _evaluate(
    name: str,
    function: Reward,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Any],
    columns: Mapping[str, Sequence[Any]],
) -> tuple[RewardValues, set[int]]:
    """One reward over the batch: its values, and the indices that it failed on."""
    count = len(completions)
    raw: list[float | None]
    errors: dict[int, str] = {}
    try:
        raw = list(function(prompts, completions, completion_ids, **columns))
    except Exception:  # the reward's own code: find out which completions break it, and count them by type
        raw = []
        for i in range(count):
            one = {key: column[i : i + 1] for key, column in columns.items()}
            try:
                raw += function(prompts[i : i + 1], completions[i : i + 1], completion_ids[i : i + 1], **one)
            except Exception as error:
                errors[i] = type(error).__name__
                raw.append(None)
    if len(raw) != count:
        raise ConfigError(f"reward '{name}' returned {len(raw)} values for {count} completions")
    for i, value in enumerate(raw):
        if value is not None and not math.isfinite(value):
            errors[i] = "non-finite"
    values = tuple(None if i in errors or v is None else float(v) for i, v in enumerate(raw))
    return RewardValues(values, dict(Counter(errors.values()))), set(errors)


def _hashable(prompt: Any) -> Any:
    return prompt if isinstance(prompt, str) else repr(prompt)
