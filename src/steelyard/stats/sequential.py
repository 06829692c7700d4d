"""Looking at a study before it is finished, without claiming too much.

Two ways.  *Alpha spending*: a number of looks is planned, the level is divided among them, and a boundary for each
look is computed (:func:`boundaries`).  *Always-valid* intervals: looks at any time, as often as wanted, for a wider
interval (:func:`always_valid`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize, stats

from steelyard.errors import StudyError
from steelyard.stats.estimate import Interval, summarise

Spending = Literal["obrien-fleming", "pocock"]


def spent(kind: Spending, fraction: float, alpha: float = 0.05) -> float:
    """Two-sided level that may have been spent when ``fraction`` of the information is in.

    ``obrien-fleming``: ``4 - 4 Φ(z(1 - α/4) / sqrt(t))`` over both sides; ``pocock``: ``α ln(1 + (e - 1) t)``.
    Source: Lan & DeMets (1983), "Discrete sequential boundaries for clinical trials", Biometrika 70.
    """
    t = min(1.0, fraction)
    if t <= 0:
        return 0.0
    if kind == "pocock":
        return alpha * math.log(1 + (math.e - 1) * t)
    if kind == "obrien-fleming":
        # one side spends alpha/2: 2 (1 - Φ(z(1 - (alpha/2)/2) / sqrt(t))); both sides twice that
        return 4 * float(stats.norm.sf(stats.norm.isf(alpha / 4) / math.sqrt(t)))
    raise StudyError(f"unknown spending function '{kind}'; choices: obrien-fleming, pocock")


@dataclass(frozen=True, slots=True)
class Look:
    """One planned look.

    Attributes:
        fraction: share of the planned information (runs, usually) that is in.
        z: stop and claim a difference when the statistic is beyond ±z.
        nominal: the same as a two-sided p-value, for tests other than z.
        spent: level used up to and including this look.
    """

    fraction: float
    z: float
    nominal: float
    spent: float


def boundaries(fractions: Sequence[float], *, kind: Spending = "obrien-fleming", alpha: float = 0.05) -> list[Look]:
    """Two-sided boundaries at the given shares of information.

    The chance to cross for the first time at each look is computed by numerical integration of the density of the
    running sum (Armitage, McPherson & Rowe 1969, "Repeated significance tests on accumulating data", JRSS A 132),
    and the boundary solved for so that the level spent is that of :func:`spent`.

    Args:
        fractions: rising, above 0, at most 1.

    Raises:
        StudyError: fractions that do not rise within (0, 1].
    """
    t = [0.0, *map(float, fractions)]
    if len(t) < 2 or any(later <= earlier for earlier, later in zip(t, t[1:], strict=False)) or t[-1] > 1 + 1e-12:
        raise StudyError(f"looks must be at rising shares of the information in (0, 1], got {list(fractions)}")
    looks: list[Look] = []
    grid, density = np.zeros(1), np.ones(1)  # where the running sum is, and with what weight, if not yet stopped
    used = 0.0
    for before, now in zip(t, t[1:], strict=False):
        goal, step = spent(kind, now, alpha), math.sqrt(now - before)

        def crossing(
            bound: float, grid: np.ndarray = grid, density: np.ndarray = density, step: float = step, now: float = now
        ) -> float:
            edge = bound * math.sqrt(now)
            out = stats.norm.sf((edge - grid) / step) + stats.norm.cdf((-edge - grid) / step)
            return float(density @ out)

        share = goal - used
        z = _solve(lambda bound: crossing(bound) - share) if share > 1e-12 else math.inf  # noqa: B023
        used = goal
        looks.append(Look(now, z, float(2 * stats.norm.sf(z)), used))
        reach = min(z, 9.0) * math.sqrt(now)
        nodes, weights = np.polynomial.legendre.leggauss(201)
        fresh = reach * nodes
        kernel = stats.norm.pdf((fresh[:, None] - grid[None, :]) / step) / step
        grid, density = fresh, (kernel @ density) * weights * reach
    return looks


def _solve(excess: Callable[[float], float]) -> float:
    root = optimize.brentq(excess, 0.0, 12.0, xtol=1e-10, full_output=False)
    assert isinstance(root, float)
    return root


def stop(p_values: Sequence[float], looks: Sequence[Look]) -> int | None:
    """Index of the first look whose two-sided p-value is below its nominal level; ``None`` if none is.

    Using the p-value of a t test in place of z keeps the level closely from about five runs on, and is conservative
    or slightly liberal before (simulated in ``docs/statistics.md``).
    """
    for index, (p, look) in enumerate(zip(p_values, looks, strict=False)):
        if p < look.nominal:
            return index
    return None


def always_valid(values: Sequence[float], *, prior: float = 1.0, level: float = 0.95) -> Interval | None:
    """An interval of a mean that holds at all sample sizes at once: look after every run, stop whenever.

    For normal values with unknown variance.  The e-value of a mean is the Bayes factor of the t statistic with a
    normal prior of variance ``prior`` on the standardised effect,

    ``E = (1 + n g)^(-1/2) [ (1 + t²/ν) / (1 + t²/(ν (1 + n g))) ]^((ν + 1)/2)``,  ``ν = n - 1``,

    which under that mean has expectation one and is a martingale; all means whose e-value is below ``1/alpha`` form
    the interval (Ville's inequality).  Sources: Lai (1976), "On confidence sequences", Annals of Statistics 4;
    Wang & Ramdas (2025), "Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance",
    Sequential Analysis 44 (arXiv 2310.03722); Pérez-Ortiz, Lardy, de Heide & Grünwald (2024), Annals of Statistics 52.

    Args:
        values: one per run, in the order in which they came in (paired differences, usually).
        prior: g, variance of the prior on the standardised effect; to be chosen before looking.

    Returns:
        ``None`` while so few runs exclude no mean, or when all values agree.
    """
    summary = summarise(values)
    if summary.sd is None or summary.sd == 0.0:
        return None
    limit = always_valid_t(summary.n, prior=prior, level=level)
    if not math.isfinite(limit):
        return None
    half = limit * summary.sd / math.sqrt(summary.n)
    return Interval(summary.mean - half, summary.mean + half, level, "always valid (t mixture)", "seeds")


def always_valid_t(n: int, *, prior: float = 1.0, level: float = 0.95) -> float:
    """The largest |t| whose e-value stays below ``1 / (1 - level)``; infinite while none reaches it."""
    if n < 2:
        return math.inf
    spread, power = 1 + n * prior, 2 / n
    # ((1 + s) / (1 + s / spread)) < q   with   s = t² / (n - 1)
    q = (math.sqrt(spread) / (1 - level)) ** power
    return math.sqrt((n - 1) * (q - 1) / (1 - q / spread)) if q < spread else math.inf
