"""Several sampled answers per item: avg@k, pass@k and maj@k, each unbiased from n >= k samples.

Intervals over items come from the per-item values that these functions return (:mod:`steelyard.stats.intervals`); the
samples of one item are one cluster.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from steelyard.errors import StudyError


def avg_at(scores: ArrayLike) -> np.ndarray:
    """``[items]`` mean score over the samples of ``[items, samples]``; NaN samples are left out."""
    return np.nanmean(np.asarray(scores, dtype=float), axis=1)


def pass_at(correct: ArrayLike, k: int) -> np.ndarray:
    """``[items]`` chance that at least one of k samples is right, from the ``n >= k`` samples that were drawn.

    ``1 - C(n - c, k) / C(n, k)`` with c right ones; the plug-in ``1 - (1 - c/n)^k`` is biased downwards.
    Source: Chen et al. (2021), "Evaluating large language models trained on code", arXiv 2107.03374, eq. 1.

    Args:
        correct: ``[items, samples]`` of 0 and 1.

    Raises:
        StudyError: fewer than k samples, or scores other than 0 and 1.
    """
    y = np.asarray(correct, dtype=float)
    if y.ndim != 2 or not np.isin(y, (0.0, 1.0)).all():
        raise StudyError("pass@k needs a matrix [items, samples] of zeros and ones")
    n = y.shape[1]
    _check(k, n)
    wrong = n - y.sum(axis=1).astype(int)
    by_count = [math.comb(w, k) / math.comb(n, k) for w in range(n + 1)]
    return 1.0 - np.array(by_count)[wrong]


def maj_at(answers: Sequence[Sequence[Hashable]], gold: Sequence[Hashable], k: int) -> np.ndarray:
    """``[items]`` chance that the most frequent of k answers is the right one; ties are broken by lot.

    The average over all subsets of k of the n samples, computed exactly by counting, so it is unbiased where a
    single vote over the first k samples is merely a noisy draw.  Voting: Wang et al. (2023), "Self-consistency
    improves chain of thought reasoning", arXiv 2203.11171; subsets: the U-statistic of Hoeffding (1948), "A class of
    statistics with asymptotically normal distribution", Annals of Mathematical Statistics 19.

    Args:
        answers: extracted answers ``[items][samples]``; ``None`` (no answer) never wins, but takes up a sample.
        gold: the right answer of every item.

    Raises:
        StudyError: fewer than k samples of an item, or as many gold answers as items are not given.
    """
    if len(answers) != len(gold):
        raise StudyError(f"maj@k: {len(answers)} items and {len(gold)} right answers")
    return np.array([_majority(list(found), right, k) for found, right in zip(answers, gold, strict=True)])


def _majority(answers: list[Hashable], right: Hashable, k: int) -> float:
    _check(k, len(answers))
    counts = Counter(answers)
    hits, silent = counts.pop(right, 0), counts.pop(None, 0)
    total = 0.0
    for won in range(1, min(hits, k) + 1):
        # ways[size, ties]: subsets of the other answers of that size, in which `ties` answers also have `won` votes
        ways = {(0, 0): 1}
        for count in counts.values():
            grown: Counter[tuple[int, int]] = Counter()
            for (size, ties), number in ways.items():
                for votes in range(min(count, won, k - won - size) + 1):
                    grown[size + votes, ties + (votes == won)] += number * math.comb(count, votes)
            ways = grown
        shared = sum(
            number * math.comb(silent, k - won - size) / (1 + ties)
            for (size, ties), number in ways.items()
            if 0 <= k - won - size <= silent
        )
        total += math.comb(hits, won) * shared
    return total / math.comb(len(answers), k)


def _check(k: int, n: int) -> None:
    if k < 1 or k > n:
        raise StudyError(
            f"k = {k} needs between 1 and n = {n} samples of every item: sample more or ask for a smaller k"
        )
