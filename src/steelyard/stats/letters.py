"""Groups of arms as letters, from matrices: what is not resolved, and (a different thing) what is tied.

The algorithm is that of :func:`steelyard.stats.groups.letters`; here the input is a symmetric matrix, and the second
display is built from equivalence tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

from steelyard.errors import StudyError
from steelyard.stats import groups


def not_resolved(ranked: Sequence[str], resolved: ArrayLike) -> dict[str, str]:
    """Letters such that two arms share one if and only if the test did not separate them.

    Source: Piepho (2004), JCGS 13 (insert and absorb).

    Args:
        ranked: the arms, best first.
        resolved: symmetric ``[arms, arms]`` of booleans in that order; the diagonal is not read.

    Raises:
        StudyError: a matrix that is not square, not symmetric, or not as large as the list of arms.

    >>> not_resolved(["x", "y", "z"], [[0, 0, 1], [0, 0, 0], [1, 0, 0]])
    {'x': 'a', 'y': 'ab', 'z': 'b'}
    """
    matrix = _checked(ranked, resolved)
    pairs = [(ranked[i], ranked[j]) for i, j in combinations(range(len(ranked)), 2) if matrix[i, j]]
    return groups.letters(ranked, pairs)


def tied(ranked: Sequence[str], equivalent: ArrayLike) -> dict[str, str]:
    """Letters such that two arms share one if and only if they were *shown* to be equivalent; alone: its own letter.

    The same algorithm with the roles turned round: what is not equivalent is separated.  "Tied" is not transitive,
    so an arm may carry several letters.

    >>> tied(["x", "y", "z"], [[0, 1, 0], [1, 0, 0], [0, 0, 0]])
    {'x': 'a', 'y': 'a', 'z': 'b'}
    """
    return not_resolved(ranked, ~_checked(ranked, equivalent))


def _checked(ranked: Sequence[str], matrix: ArrayLike) -> np.ndarray:
    found = np.asarray(matrix, dtype=bool)
    size = len(ranked)
    if found.shape != (size, size):
        raise StudyError(
            f"letters of {size} arms need a {size} x {size} matrix, got {' x '.join(map(str, found.shape))}"
        )
    if len(set(ranked)) != size:
        raise StudyError("letters need distinct names of the arms")
    off = ~np.eye(size, dtype=bool)
    if (found != found.T)[off].any():
        i, j = np.argwhere((found != found.T) & off)[0]
        raise StudyError(f"the matrix of pairs is not symmetric at ({ranked[i]}, {ranked[j]})")
    return found
