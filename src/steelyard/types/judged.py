"""Choosing among the judged completions of a group: what selections are made of.

A judged group's completions carry the columns ``score``, ``verdict``, ``finished`` and ``origin``, arrays ``[k]``
(see :class:`steelyard.algorithms.core.Rounds`).  Indices are places among the k completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from steelyard.types.group import Group

Draws = np.random.Generator
"""Where a selection's random draws come from."""


def take(group: Group, chosen: Sequence[int] | np.ndarray, *, name: str = "", **columns: Any) -> Group:
    """The completions ``chosen`` of a group, in that order.

    Args:
        name: appended to the group's key.
        columns: completion columns to add (one value for all, or one each).
    """
    index = [int(i) for i in chosen]
    added = {key: np.broadcast_to(np.asarray(value), len(index)).copy() for key, value in columns.items()}
    return group.replace(
        completions=tuple(group.completions[i] for i in index),
        masks=tuple(group.masks[i] for i in index),
        completion_columns={**{key: v[index] for key, v in group.completion_columns.items()}, **added},
        token_columns={key: tuple(v[i] for i in index) for key, v in group.token_columns.items()},
        trained=(True,) * len(index),
        key=f"{group.key}{name}",
    )


def pair(group: Group, chosen: int, rejected: int, *, name: str = "", **columns: float) -> Group:
    """A preference pair of two judged completions; it carries their scores, their distance, and ``columns``."""
    made = take(group, [chosen, rejected], name=name)
    if "score" in group.completion_columns:
        better, worse = (float(group.completion_columns["score"][i]) for i in (chosen, rejected))
        columns = {"score_chosen": better, "score_rejected": worse, "margin": better - worse, **columns}
    return made.replace(columns={**group.columns, **columns})


def written_by(group: Group, origin: int) -> np.ndarray:
    """Indices of the completions of one sampler."""
    return np.flatnonzero(group.completion_columns["origin"] == origin)


def distinct(group: Group, indices: Sequence[int] | np.ndarray) -> list[int]:
    """The first of each set of identical completions."""
    seen: dict[bytes, int] = {}
    for i in indices:
        seen.setdefault(group.completions[i].tobytes(), int(i))
    return list(seen.values())


def win_rates(score: np.ndarray) -> np.ndarray:
    """``[k]`` how often each completion beats one drawn from all k of them, itself included; a tie is half a win."""
    return 0.5 + 0.5 * np.sign(score[:, None] - score[None, :]).mean(1)


def extremes(score: np.ndarray, rng: Draws) -> tuple[int, int] | None:
    """The places of a highest and a lowest score, drawn at random among equals; None when all are equal."""
    if len(score) < 2 or score.max() == score.min():
        return None
    high, low = (rng.choice(np.flatnonzero(score == value)) for value in (score.max(), score.min()))
    return int(high), int(low)


def best_first(score: np.ndarray, rng: Draws) -> list[int]:
    """The places by score ``[k]``, the highest first; equals in random order."""
    return [int(i) for i in np.lexsort((rng.random(len(score)), -score))]


def places(where: np.ndarray) -> list[int]:
    """The places at which a condition ``[k]`` holds."""
    return [int(i) for i in np.flatnonzero(where)]


def one_each(group: Group, chosen: Sequence[int]) -> list[Group]:
    """A group of its own for every chosen completion, numbered in its key."""
    return [take(group, [i], name=f"#{number}") for number, i in enumerate(chosen)]


def same(group: Group, i: int, j: int) -> bool:
    """Whether two completions are the same tokens."""
    return np.array_equal(group.completions[i], group.completions[j])


def known(score: np.ndarray) -> np.ndarray:
    """``[k]`` scores with 0 where a completion could not be judged."""
    return np.nan_to_num(score)


def preference(score: np.ndarray, i: int, j: int) -> float:
    """1 where completion i scores higher than j, 0 where lower, else 1/2."""
    return 0.5 + 0.5 * float(np.sign(score[i] - score[j]))
