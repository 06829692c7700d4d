"""Which means and sds are possible at all when every score is a whole number of grains?

A share of right answers over 200 items comes in steps of half a point, a sum over five seeds in steps of a
tenth.  A printed mean that lies between two steps cannot have come from those items.

Sources: Brown & Heathers (2017), "The GRIM test", Social Psychological and Personality Science 8; Anaya
(2016), "The GRIMMER test", PeerJ Preprints 4:e2400v1, and Allard (2018), "Analytic-GRIMMER".  Where the number
of values is small the sums of squares are enumerated, which is exact; their parity test is what remains else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize

from steelyard.stats.published import Range

ENUMERATED = 400_000
"""Combinations up to which the attainable sums of squares are enumerated."""

_EPS = 1e-9


def totals(mean: Range, values: int, grain: float) -> range:
    """Totals, in grains, whose mean over ``values`` numbers lies in the range; empty when there is none.

    >>> totals((5.185, 5.195), 28, 1.0)  # the example of the GRIM paper: no 28 whole numbers average 5.19
    range(146, 146)
    """
    low, high = (values * end / grain for end in mean)
    slack = _EPS * max(1.0, abs(high))
    return range(math.ceil(low - slack), max(math.floor(high + slack) + 1, math.ceil(low - slack)))


def nearest_means(mean: float, values: int, grain: float) -> Range:
    """The two attainable means on either side of ``mean``."""
    below = math.floor(values * mean / grain + _EPS)
    return below * grain / values, (below + 1) * grain / values


def tells(half_width: float, values: int, grain: float) -> bool:
    """Whether a mean printed to ± ``half_width`` can be impossible at all: the steps are wider than the rounding."""
    return 2 * half_width < grain / values * (1 - _EPS)


def sd_possible(
    mean: Range, sd: Range, n: int, grain: float, *, ddof: int = 1, top: float | None = None
) -> bool | None:
    """Whether n values, each a whole number of grains, can have both this mean and this sd.

    Args:
        mean: range of the mean.
        sd: range of the sd with divisor ``n - ddof``.
        top: largest value that one of the n may have (100 for per cent); the smallest is then 0.

    Returns:
        ``None`` when too many combinations fit for the answer to be anything but yes.
    """
    if n < 2:
        return None
    low, high = ((n - ddof) * (end / grain) ** 2 for end in (max(sd[0], 0.0), sd[1]))
    sums = totals(mean, n, grain)
    if len(sums) > 10_000:
        return None
    if top is not None:
        # The spread is largest when all but one value lie at an end: sum of squares about the mean.
        ends = round(top / grain)
        sums = [total for total in sums if 0 <= total <= n * ends and low <= _widest(total, n, ends) + _EPS]
    answers = set()
    for total in sums:
        answers.add(_attainable(*divmod(total, n), n, (low, high), None if top is None else round(top / grain)))
        if True in answers:
            return True
    return None if None in answers else False


def _widest(total: int, n: int, top: int) -> float:
    """Largest sum of squared deviations of n whole numbers from 0 to ``top`` with this total."""
    full, rest = divmod(total, top) if top else (0, 0)
    squares = full * top**2 + rest**2
    return squares - total**2 / n


def _attainable(base: int, remainder: int, n: int, deviations: Range, top: int | None) -> bool | None:
    """Whether n whole numbers from 0 to ``top`` with total ``n base + remainder`` can deviate that much.

    ``deviations`` is the range of the sum of squared deviations from the mean; the numbers are counted from
    ``base``, which changes no deviation.
    """
    slack = _EPS * max(1.0, deviations[1])
    offset = remainder**2 / n  # squares about the base = squared deviations + offset
    first, last = math.ceil(deviations[0] + offset - slack), math.floor(deviations[1] + offset + slack)
    first += (first - remainder) % 2  # a whole number and its square are odd together, and so are their sums
    if first > last:
        return False
    reach = math.isqrt(last)
    least, most = (-reach, reach) if top is None else (max(-reach, -base), min(reach, top - base))
    line = np.arange(least, most + 1)
    if float(len(line)) ** (n - 1) > ENUMERATED:
        return None
    free = np.meshgrid(*[line] * (n - 1), indexing="ij")
    other = remainder - np.sum(free, axis=0)
    squares = np.sum(np.square(free), axis=0) + other**2
    return bool(((squares >= first) & (squares <= last) & (other >= least) & (other <= most)).any())


# --------------------------------------------------------------------------------------------------
# From values that are themselves rounded


def mean_of(values: Sequence[Range]) -> Range:
    """Range of the mean of rounded values."""
    return math.fsum(low for low, _ in values) / len(values), math.fsum(high for _, high in values) / len(values)


def sd_of(values: Sequence[Range], ddof: int) -> Range:
    """Range of the sd of rounded values.

    The largest lies at a corner, where all values below some value are rounded down and the others up (the
    sd is convex); the smallest is a convex problem in the mean alone.
    """
    n = len(values)
    ordered = sorted(values, key=lambda value: value[0] + value[1])
    corners = [[low for low, _ in ordered[:k]] + [high for _, high in ordered[k:]] for k in range(n + 1)]
    largest = max(float(np.var(corner)) for corner in corners)
    lows, highs = (np.array(ends) for ends in zip(*ordered, strict=True))

    def squares(mean: float) -> float:
        return float(((np.clip(mean, lows, highs) - mean) ** 2).sum())

    if float(lows.max()) <= float(highs.min()):
        smallest = 0.0
    else:
        found = optimize.minimize_scalar(
            squares, bounds=(float(highs.min()), float(lows.max())), method="bounded", options={"xatol": 1e-12}
        )
        smallest = float(found.fun) / n  # type: ignore[attr-defined]
    scale = n / (n - ddof)
    return math.sqrt(max(smallest, 0.0) * scale), math.sqrt(largest * scale)
