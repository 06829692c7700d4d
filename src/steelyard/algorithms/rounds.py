"""What an iterative method keeps of a round's samples: one judged group in, training groups out.

Selections are pure functions of the group and of ``rng`` (see :class:`steelyard.algorithms.core.Rounds` for the
columns that they find).  They take hyperparameters by name, and return nothing for a prompt that taught nothing.
"""

from __future__ import annotations

from steelyard.types import Group
from steelyard.types.judged import (
    Draws,
    best_first,
    distinct,
    extremes,
    known,
    one_each,
    pair,
    places,
    preference,
    same,
    take,
    win_rates,
    written_by,
)

# --------------------------------------------------------------------------------------------------
# Pairs


def best_and_worst(group: Group, *, rng: Draws) -> list[Group]:
    """The best against the worst sample, with their win rates among all samples as ``p_chosen, p_rejected``."""
    score = group.completion_columns["score"]
    found = extremes(score, rng)
    if found is None:
        return []
    wins = win_rates(score)
    return [pair(group, *found, p_chosen=float(wins[found[0]]), p_rejected=float(wins[found[1]]))]


def winner_and_loser(group: Group, *, rng: Draws, missing_eos_penalty: float) -> list[Group]:
    """The winner of the samples against the loser; completions that do not end lose ``missing_eos_penalty``."""
    finished = group.completion_columns["finished"]
    found = extremes(group.completion_columns["score"] - missing_eos_penalty * ~finished.astype(bool), rng)
    return [] if found is None else [pair(group, *found)]


def explored(group: Group, *, rng: Draws) -> list[Group]:
    """Each sample of the policy (origin 0) against one of the reference (origin 1); ``from_reference`` is 1 where
    the reference's is the chosen one.  Ties teach nothing."""
    score = group.completion_columns["score"]
    pairs = []
    for number, (own, other) in enumerate(zip(written_by(group, 0), written_by(group, 1), strict=False)):
        if score[own] != score[other]:
            lost = bool(score[own] < score[other])
            sides = (other, own) if lost else (own, other)
            pairs.append(pair(group, *sides, name=f"#{number}", from_reference=float(lost)))
    return pairs


def gold_and_own(group: Group, *, rng: Draws) -> list[Group]:
    """The gold completion (origin 0) against every distinct sample that differs from it."""
    gold = int(written_by(group, 0)[0])
    own = [i for i in distinct(group, written_by(group, 1)) if not same(group, i, gold)]
    return [pair(group, gold, i, name=f"#{number}") for number, i in enumerate(own)]


def filtered(group: Group, *, rng: Draws, threshold: float) -> list[Group]:
    """The row's pair, unless the policy's own sample (origin 1) beats its chosen side by ``threshold`` or more.

    The paper discards a pair when the sample is known to be better.  One that cannot be compared, because its chosen
    side or the sample could not be judged (score NaN, or no sample left), stays.
    """
    score = group.completion_columns["score"]
    chosen, rejected = written_by(group, 0)[:2]
    own = score[written_by(group, 1)]
    if (own - score[chosen] >= threshold).any():  # a comparison with NaN is False
        return []
    return [pair(group, int(chosen), int(rejected))]


# --------------------------------------------------------------------------------------------------
# Supervised rows: one per completion


def top(group: Group, *, rng: Draws, keep: int = 1) -> list[Group]:
    """The ``keep`` best samples; equals in random order."""
    return one_each(group, best_first(group.completion_columns["score"], rng)[:keep])


def above_threshold(group: Group, *, rng: Draws, round: int, improve: int, tau: float, tau_last: float) -> list[Group]:
    """Everything that scores more than a threshold, which rises from ``tau`` to ``tau_last`` over the ``improve``
    rounds that select from the same samples."""
    share = (round % improve) / max(1, improve - 1)
    threshold = tau + share * (tau_last - tau)
    return one_each(group, distinct(group, places(group.completion_columns["score"] > threshold)))


def correct_ones(group: Group, *, rng: Draws, keep: int | None = None) -> list[Group]:
    """Distinct right completions, at most ``keep``, drawn at random."""
    right = distinct(group, places(group.completion_columns["verdict"] == 1))
    chosen = right if keep is None else sorted(rng.permutation(right)[:keep])
    return one_each(group, chosen)


# --------------------------------------------------------------------------------------------------
# Groups for distillation and policy gradients


def keep_all(group: Group, *, rng: Draws) -> list[Group]:
    """Every sample, as the student's own; ``reward`` is 0 where it could not be judged."""
    score = known(group.completion_columns["score"])
    return [take(group, range(group.k), own=True, reward=score)] if group.k else []


def own_or_gold(group: Group, *, rng: Draws, lam: float) -> list[Group]:
    """With probability ``lam`` the student's samples (origin 1), else the gold completion (origin 0)."""
    own = bool(rng.random() < lam)
    chosen = written_by(group, int(own))
    return [take(group, chosen, own=own)] if len(chosen) else []


def mixture_and_gold(group: Group, *, rng: Draws) -> list[Group]:
    """The gold completion (origin 0) and all samples of the mixture (origin 1), which count as the student's."""
    return [take(group, range(group.k), own=group.completion_columns["origin"] == 1)]


def against_mixture(group: Group, *, rng: Draws) -> list[Group]:
    """The policy's samples (origin 0), each rewarded by the judge's preference for it over a sample of the mixture
    (origin 1): 1, 1/2 or 0."""
    score = group.completion_columns["score"]
    duels = list(zip(written_by(group, 0), written_by(group, 1), strict=False))
    wins = [preference(score, own, other) for own, other in duels]
    return [take(group, [own for own, _ in duels], reward=wins)] if duels else []
