"""The optima that theory states, derived, and checks that training on a tabular bandit reaches them.

``CONVERGES`` says for every offline method what is reached and how that is checked; ``WITHOUT`` says why a method is
not there.
"""

from __future__ import annotations

from optima import completions, lists, pairs, reference_free, rounds, sides
from optima.tools import Case

CONVERGES: dict[str, Case] = {
    **pairs.CASES,
    **sides.CASES,
    **reference_free.CASES,
    **completions.CASES,
    **lists.CASES,
    **rounds.CASES,
}
"""What each method reaches; read by the verification table."""

WITHOUT: dict[str, str] = {}
"""Offline methods without a case of their own, and why."""
