"""From a prompt's judged samples to training rows: what each data stage keeps.

Every selection is a pure function of a judged group (and of a random stream, where more is to be had than
wanted).  A judged group's completions carry ``verdict`` (1 right, 0 wrong, -1 not judged: unfinished answers are
neither, and are never selected), ``finished``, and ``score`` in [0, 1] (:func:`score_of`).

==============  =============================================================================================
stage           rows
==============  =============================================================================================
``pairs``       a right against a wrong completion
``correct``     right completions, one each
``step_pairs``  the first different steps of a right and a wrong completion; shared steps belong to the prompt
``ranked``      lists of distinct completions with at least two different scores
``judged``      completions with a label, one each
``steps``       completions with a label at the end of every step, one each
==============  =============================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from steelyard.config import GenerateConfig
from steelyard.types import Group
from steelyard.types.judged import distinct, one_each, take, win_rates

NEARLY = 0.9
"""What a wrong completion that began exactly as gold would score: only a right one has 1."""

Ends = Callable[[np.ndarray], Sequence[int]]
"""Token ids of a completion -> index of the last token of every step (:func:`steelyard.data.steps.step_ends`)."""


def common_prefix(ids: np.ndarray, other: np.ndarray) -> int:
    """How many tokens both begin with."""
    width = min(len(ids), len(other))
    different = np.flatnonzero(ids[:width] != other[:width])
    return int(different[0]) if len(different) else width


def score_of(ids: np.ndarray, verdict: int, gold: np.ndarray | None) -> float:
    """What a completion is worth, in [0, 1].

    1 if it is verified right; otherwise :data:`NEARLY` times the share of the gold completion's tokens that the
    longest common prefix with it covers; 0 where there is no gold completion.
    """
    if verdict == 1:
        return 1.0
    return 0.0 if gold is None or not len(gold) else NEARLY * common_prefix(ids, gold) / len(gold)


# --------------------------------------------------------------------------------------------------
# Pairs


def pairs(group: Group, *, rng: np.random.Generator, limit: int) -> list[Group]:
    """Distinct right against distinct wrong completions: at most ``limit`` pairs, drawn at random."""
    candidates = list(product(_distinct(group, 1), _distinct(group, 0)))
    chosen = rng.permutation(len(candidates))[:limit]
    return [
        take(group, candidates[i], name=f"#{n}").replace(
            columns={**group.columns, **pair_columns(group, *candidates[i])}
        )
        for n, i in enumerate(chosen)
    ]


def pair_columns(group: Group, chosen: int, rejected: int) -> dict[str, float]:
    """The numbers that a pair of two judged completions carries.

    ``p_*`` is the probability that the completion beats a fresh sample of the same prompt by the verifier (a tie is
    half a win), estimated over the judged samples of the group; ``sign_*`` is +1 for unsafe, -1 for safe.
    """
    score, verdict = group.completion_columns["score"], group.completion_columns["verdict"]
    judged = np.flatnonzero(verdict >= 0)
    wins = dict(zip(judged.tolist(), win_rates(verdict[judged]).tolist(), strict=True))
    return {
        "score_chosen": float(score[chosen]),
        "score_rejected": float(score[rejected]),
        "p_chosen": wins[chosen],
        "p_rejected": wins[rejected],
        "margin": float(score[chosen] - score[rejected]),
        "sign_chosen": -1.0,
        "sign_rejected": 1.0,
    }


def step_pairs(group: Group, *, rng: np.random.Generator, limit: int, ends: Ends) -> list[Group]:
    """The first different steps of a right and a wrong completion: at most ``limit`` pairs, drawn at random.

    A wrong completion meets the right ones with which it shares most steps, so that its step is on no right sample's
    way.  The shared steps (there may be none) become the end of the prompt.  Numbers are those of the whole
    completions.
    """
    right, wrong = _distinct(group, 1), _distinct(group, 0)
    borders = {i: _borders(group.completions[i], ends) for i in (*right, *wrong)}
    found: dict[tuple[bytes, ...], Group] = {}
    for worse in wrong:
        starts = {better: _shared(group, borders, better, worse) for better in right}
        for better in (i for i in right if starts[i] == max(starts.values())):
            made = _step_pair(group, borders, better, worse, starts[better])
            if made is not None:
                found.setdefault((made.prompt.tobytes(), *(ids.tobytes() for ids in made.completions)), made)
    candidates = list(found.values())
    chosen = rng.permutation(len(candidates))[:limit]
    return [candidates[i].replace(key=f"{group.key}#{n}") for n, i in enumerate(chosen)]


def _borders(ids: np.ndarray, ends: Ends) -> list[int]:
    """Where steps end (exclusive); the last one includes whatever follows it: the end token."""
    return [*(end + 1 for end in list(ends(ids))[:-1]), len(ids)]


def _shared(group: Group, borders: dict[int, list[int]], better: int, worse: int) -> int:
    """Tokens of the steps that two completions begin with together."""
    same = common_prefix(group.completions[better], group.completions[worse])
    return max((b for b in {*borders[better]} & {*borders[worse]} if b <= same), default=0)


def _step_pair(group: Group, borders: dict[int, list[int]], better: int, worse: int, start: int) -> Group | None:
    """The steps of two completions that begin at token ``start``; None when one has none there."""
    stops = [next((b for b in borders[i] if b > start), None) for i in (better, worse)]
    parts = [slice(start, stop) for stop in stops if stop is not None]
    made = take(group, [better, worse])
    if len(parts) < 2:
        return None
    sides = tuple(ids[part] for ids, part in zip(made.completions, parts, strict=True))
    if np.array_equal(sides[0], sides[1]):
        return None
    return made.replace(
        prompt=np.concatenate([group.prompt, group.completions[better][:start]]),
        completions=sides,
        masks=tuple(mask[part] for mask, part in zip(made.masks, parts, strict=True)),
        token_columns={
            name: tuple(values[part] for values, part in zip(column, parts, strict=True))
            for name, column in made.token_columns.items()
        },
        columns={**group.columns, **pair_columns(group, better, worse)},
    )


# --------------------------------------------------------------------------------------------------
# Lists


def ranked(group: Group, *, rng: np.random.Generator, length: int) -> list[Group]:
    """A list of at most ``length`` distinct completions, best first: a best one, a worst one, and others at random.

    None when all scores are equal.
    """
    known = _judged(group)
    score = group.completion_columns["score"]
    if len({float(score[i]) for i in known}) < 2:
        return []
    order = sorted((int(i) for i in rng.permutation(known)), key=lambda i: -score[i])
    others = rng.permutation(order[1:-1])[: length - 2].tolist()
    chosen = sorted([order[0], *others, order[-1]], key=order.index)
    return [take(group, chosen, name="#0")]


# --------------------------------------------------------------------------------------------------
# Single completions


def correct(group: Group, *, limit: int) -> list[Group]:
    """The first ``limit`` distinct right completions (rejection sampling), one row each."""
    return one_each(group, _distinct(group, 1)[:limit])


def judged(group: Group) -> list[Group]:
    """Every distinct completion that was judged, with its verdict as ``label``; one row each."""
    label = group.completion_columns["verdict"] == 1
    chosen = _judged(group)
    return [take(row, [0], label=label[i]) for i, row in zip(chosen, one_each(group, chosen), strict=True)]


def steps(group: Group, *, ends: Ends) -> list[Group]:
    """Every distinct completion that was judged, with the token column ``step_label`` at the end of its steps.

    A step is good (1) if any right sample of the group begins with the completion up to and including it, else bad
    (0): the hard estimate of Math-Shepherd (Wang et al., 2023), whose continuations are here the prompt's other
    samples.  A step that no sample shares has the completion itself as its only continuation, so that few samples
    per prompt make bad labels too frequent.
    """
    right = [group.completions[i] for i in _distinct(group, 1)]
    rows = []
    for i, row in zip(_judged(group), one_each(group, _judged(group)), strict=True):
        ids = group.completions[i]
        reach = max((common_prefix(ids, other) for other in right), default=0)
        labels = np.full(len(ids), np.nan, np.float32)
        for end in ends(ids):
            labels[end] = float(end < reach)
        rows.append(row.replace(token_columns={**row.token_columns, "step_label": (labels,)}))
    return rows


def _distinct(group: Group, verdict: int) -> list[int]:
    """Indices of the completions with this verdict, the first of each identical one."""
    return distinct(group, np.flatnonzero(group.completion_columns["verdict"] == verdict))


def _judged(group: Group) -> list[int]:
    return distinct(group, np.flatnonzero(group.completion_columns["verdict"] >= 0))


Select = Callable[[Group, np.random.Generator, GenerateConfig, Ends], list[Group]]

SELECTIONS: dict[str, Select] = {
    "pairs": lambda group, rng, cfg, ends: pairs(group, rng=rng, limit=cfg.max_pairs_per_prompt),
    "correct": lambda group, rng, cfg, ends: correct(group, limit=cfg.max_correct_per_prompt),
    "step_pairs": lambda group, rng, cfg, ends: step_pairs(group, rng=rng, limit=cfg.max_pairs_per_prompt, ends=ends),
    "ranked": lambda group, rng, cfg, ends: ranked(group, rng=rng, length=cfg.max_list_length),
    "judged": lambda group, rng, cfg, ends: judged(group),
    "steps": lambda group, rng, cfg, ends: steps(group, ends=ends),
}
"""Data stage -> its selection."""
