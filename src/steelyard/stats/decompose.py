"""How much of a difference is a better answer, and how much only a better format?

*strict* counts a right answer in the asked form, *flexible* a right answer anywhere.  For every run
``strict = flexible - unformatted``, where *unformatted* is the share of right answers that were not given in
the asked form.  The identity is linear, so it holds for differences between arms as well:

``Δ strict = Δ flexible + Δ format``   with   ``Δ format = -Δ unformatted``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Decomposition:
    """A difference in the strict score split into its two parts.

    Attributes:
        strict: the difference in the strict score; equals ``answer + format``.
        answer: the part that is a difference in the flexible score (right answers, however written).
        format: the part that is right answers put in, or out of, the asked form.
        share: ``format / strict`` where both parts point the same way (0 to 1); ``None`` when they oppose
            each other or there is no difference to share out.
    """

    strict: float
    answer: float
    format: float
    share: float | None


def split_format(strict: float, flexible: float, base_strict: float, base_flexible: float) -> Decomposition:
    """Decompose the difference between an arm and its baseline; all four scores are means over runs."""
    total = strict - base_strict
    answer = flexible - base_flexible
    form = (strict - flexible) - (base_strict - base_flexible)
    # Parts below one millionth are rounding of the means, not a direction.
    tiny = 1e-6
    same_way = answer * form >= 0 or min(abs(answer), abs(form)) < tiny
    share = form / total if abs(total) >= tiny and same_way else None
    return Decomposition(total, answer, form, None if share is None else min(1.0, max(0.0, share)))
