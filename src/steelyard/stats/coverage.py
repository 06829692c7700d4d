"""How often each interval covers what it should, as simulated; intervals below 92 % are refused.

The table is written by ``python -m simulations`` (in ``tests/``) and repeated by the slow suite.  It holds the *worst*
coverage over the simulated cells (variances of real runs, 200 to 2,000 binary items) at each number of seeds;
intervals over items alone stand under 0.  ``docs/statistics.md`` has the whole table and says how it was made.
"""

from __future__ import annotations

from steelyard.errors import StudyError

REFUSED_BELOW = 0.92
"""Worst simulated coverage of a nominal 95 % interval below which it is not given out."""

INSTEAD = "use 'crossed' for an arm, 'mixed' for a difference"

# begin generated
SIMULATED: dict[str, dict[int, float]] = {
    "crossed": {2: 0.9425, 3: 0.9443, 5: 0.9395, 10: 0.9455},
    "pigeonhole": {2: 0.682, 3: 0.7973, 5: 0.884, 10: 0.9223},
    "t": {2: 0.9545, 3: 0.9447, 5: 0.9455, 10: 0.9445},
    "seed-bootstrap": {2: 0.497, 3: 0.7352, 5: 0.821, 10: 0.8885},
    "clustered": {2: 0.937, 3: 0.9423, 5: 0.9393, 10: 0.9443},
    "mixed": {2: 0.9325, 3: 0.9447, 5: 0.9235, 10: 0.9347},
    "mixed, independent seeds": {2: 0.9553, 3: 0.9393, 5: 0.9247, 10: 0.9333},
    "welch": {2: 0.9737, 3: 0.9597, 5: 0.9537, 10: 0.9476},
    "paired-t": {2: 0.9486, 3: 0.9425, 5: 0.9427, 10: 0.9445},
    "items-t": {2: 0.923, 3: 0.9343, 5: 0.921, 10: 0.934},
    "wilson": {0: 0.9445},
    "exact": {0: 0.9475},
    "bca-items": {0: 0.9363},
    "paired-permutation": {0: 0.929},
    "hedges-g": {2: 0.9445, 3: 0.9485, 5: 0.9405, 10: 0.9475},
    "cliffs-delta": {2: 0.953, 3: 0.9865, 5: 0.9515, 10: 0.927},
    "risk-difference": {0: 0.946},
    "paired-risk-difference": {0: 0.9455},
    "paired-odds-ratio": {0: 0.9605},
    "stratified": {3: 0.833, 5: 0.876, 10: 0.9185},
}
# end generated


def simulated(method: str, seeds: int) -> float | None:
    """Worst simulated coverage at the largest simulated number of seeds that is not above ``seeds``.

    ``None`` for an interval that was not simulated there.
    """
    table = SIMULATED.get(method, {})
    if 0 in table:
        return table[0]
    fits = [n for n in table if n <= seeds]
    return table[max(fits)] if fits else None


def require(method: str, seeds: int) -> None:
    """Refuse an interval that does not cover.

    Raises:
        StudyError: the simulated coverage is below 92 %.
    """
    found = simulated(method, seeds)
    if found is not None and found < REFUSED_BELOW:
        raise StudyError(
            f"the nominal 95 % interval '{method}' covered the truth in only {100 * found:.0f} % of simulated studies "
            f"with {seeds} seeds (worst cell; docs/statistics.md): refused; {INSTEAD}"
        )


def shown(method: str, seeds: int) -> str:
    """``simulated coverage 95 %``, to be printed beside an interval; says so when it was not simulated."""
    found = simulated(method, seeds)
    return "coverage not simulated" if found is None else f"simulated coverage {100 * found:.0f} %"
