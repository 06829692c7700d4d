"""An estimate whose variance is a sum of parts with few degrees of freedom each: interval, p-value, shifted test.

A difference between two arms varies because training varies (few seeds: few degrees of freedom) and because the
items are a sample (many).  Its variance is estimated as the sum of both parts.  The critical value is Cochran's: the
average of the parts' own critical values of t, weighted by the parts,

``t' = sum(v_i t(df_i)) / sum(v_i)``.

Source: Cochran (1964), "Approximate significance levels of the Behrens-Fisher test", Biometrics 20, 191-195.  With
one part it is Student's t.  Satterthwaite's degrees of freedom, the usual alternative, cover 92 % instead of 95 %
where three seeds and a few hundred items contribute about equally; Cochran's value covers 94-97 % there
(``docs/statistics.md``, simulated).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import optimize, stats

from steelyard.errors import StudyError


@dataclass(frozen=True, slots=True)
class Part:
    """One contribution to the variance of an estimate.

    Attributes:
        variance: estimated contribution, in the squared unit of the score.
        df: its degrees of freedom.
    """

    variance: float
    df: float


@dataclass(frozen=True)
class Pivot:
    """An estimate and the parts of its variance.

    Attributes:
        estimate: usually a difference of means.
        parts: contributions to its variance; at least one of them is above zero.
    """

    estimate: float
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, estimate: float, parts: Sequence[tuple[float, float]]) -> Pivot:
        """From ``(variance, degrees of freedom)``; parts of zero are left out.

        Raises:
            StudyError: nothing varies, so no test exists.
        """
        kept = tuple(Part(float(v), float(df)) for v, df in parts if v > 0)
        if not kept:
            raise StudyError("nothing varies over what was repeated: no test and no interval exist")
        return cls(float(estimate), kept)

    @property
    def se(self) -> float:
        """Standard error: the root of the parts' sum."""
        return math.sqrt(sum(part.variance for part in self.parts))

    def critical(self, tail: float) -> float:
        """The value that the statistic exceeds with probability ``tail`` under the null."""
        total = sum(part.variance for part in self.parts)
        return sum(part.variance * float(stats.t.isf(tail, part.df)) for part in self.parts) / total

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided interval of nominal coverage ``level``."""
        half = self.critical(0.5 - level / 2) * self.se
        return self.estimate - half, self.estimate + half

    def greater(self, null: float = 0.0) -> float:
        """One-sided p-value of "the estimand is at most ``null``" (small: it is greater)."""
        t = (self.estimate - null) / self.se
        return self._tail(t) if t >= 0 else 1.0 - self._tail(-t)

    def less(self, null: float = 0.0) -> float:
        """One-sided p-value of "the estimand is at least ``null``" (small: it is less)."""
        return 1.0 - self.greater(null)

    def p(self, null: float = 0.0) -> float:
        """Two-sided p-value; below ``alpha`` exactly when the interval of level ``1 - alpha`` leaves ``null`` out."""
        return min(1.0, 2 * self._tail(abs(self.estimate - null) / self.se))

    def _tail(self, t: float) -> float:
        """The ``tail`` whose critical value is ``t >= 0``."""
        if len(self.parts) == 1:
            return float(stats.t.sf(t, self.parts[0].df))
        ends = [float(stats.t.sf(t, part.df)) for part in self.parts]
        low, high = min(ends), max(ends)
        # The parts' own tails enclose the root; logarithms, because tails may be as small as floats go.
        if high < 1e-300:
            return high
        low = max(low, 1e-300)
        if self.critical(low) <= t:
            return low

        def excess(log_tail: float) -> float:
            return self.critical(math.exp(log_tail)) - t

        if low == high or excess(math.log(high)) >= 0:
            return high
        root = optimize.brentq(excess, math.log(low), math.log(high), xtol=1e-12, full_output=False)
        assert isinstance(root, float)
        return math.exp(root)


def as_test_fields(pivot: Pivot, level: float) -> dict[str, float]:
    """The fields of :class:`steelyard.stats.compare.Test` that follow from a pivot (``df`` only with one part)."""
    low, high = pivot.interval(level)
    fields = {"low": low, "high": high, "statistic": pivot.estimate / pivot.se, "p": pivot.p()}
    return fields | ({"df": pivot.parts[0].df} if len(pivot.parts) == 1 else {})
