"""How often each interval covers what it should, as simulated; intervals below 92 % are refused.

The table is written by ``python -m simulations`` (in ``tests/``) and repeated by the slow suite.  It holds the *worst*
coverage over the simulated cells (variances of real runs, 200 to 2,000 binary items) at each number of seeds;
intervals over items alone stand under 0.  Beyond the last simulated number of seeds the last one counts.
``docs/statistics.md`` has the whole table and says how it was made.
"""

from __future__ import annotations

from steelyard.errors import StudyError

REFUSED_BELOW = 0.92
"""Worst simulated coverage of a nominal 95 % interval below which it is not given out."""


def _instead(method: str) -> str:
    if method == "stratified":
        return "give the runs' values, or pass describe=True to show it as a description of spread"
    return "use 'crossed' for an arm, 'mixed' for a difference"


# begin generated
SIMULATED: dict[str, dict[int, float]] = {
    "crossed": {2: 0.943, 3: 0.944, 5: 0.94, 10: 0.946},
    "pigeonhole": {2: 0.682, 3: 0.797, 5: 0.884, 10: 0.922},
    "t": {2: 0.954, 3: 0.945, 5: 0.946, 10: 0.945},
    "seed-bootstrap": {2: 0.497, 3: 0.735, 5: 0.821, 10: 0.888},
    "clustered": {2: 0.937, 3: 0.942, 5: 0.939, 10: 0.944},
    "mixed": {2: 0.932, 3: 0.945, 5: 0.923, 10: 0.935},
    "mixed, independent seeds": {2: 0.955, 3: 0.939, 5: 0.925, 10: 0.933},
    "welch": {2: 0.974, 3: 0.96, 5: 0.954, 10: 0.948},
    "paired-t": {2: 0.949, 3: 0.943, 5: 0.943, 10: 0.945},
    "items-t": {2: 0.923, 3: 0.934, 5: 0.921, 10: 0.934},
    "wilson": {0: 0.945},
    "exact": {0: 0.948},
    "bca-items": {0: 0.936},
    "paired-permutation": {0: 0.929},
    "hedges-g": {2: 0.949, 3: 0.947, 5: 0.95, 10: 0.944},
    "cliffs-delta": {2: 0.951, 3: 0.984, 5: 0.951, 10: 0.923},
    "risk-difference": {0: 0.946},
    "paired-risk-difference": {0: 0.946},
    "paired-odds-ratio": {0: 0.961},
    "stratified": {3: 0.823, 5: 0.89, 10: 0.92, 20: 0.938},
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
            f"with {seeds} seeds (worst cell; docs/statistics.md): refused; {_instead(method)}"
        )


def shown(method: str, seeds: int) -> str:
    """The simulated coverage in words, to be printed beside an interval; says so when it was not simulated."""
    found = simulated(method, seeds)
    return (
        "coverage not simulated"
        if found is None
        else f"simulated coverage of 95 %: {100 * found:.0f} % in the worst cell of 200 to 2,000 items"
    )
