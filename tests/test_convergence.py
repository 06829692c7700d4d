"""Every method, optimised on a tabular bandit, reaches the optimum that its theory states (see ``optima``).

Each case is also run on wrong losses, and must notice.
"""

from __future__ import annotations

from typing import Any

import pytest

import bandit
from bandit import offline_algorithms
from optima import CONVERGES, WITHOUT
from steelyard.algorithms import load
from steelyard.algorithms.core import algorithms

load()


@pytest.mark.parametrize("name", CONVERGES)
def test_reaches_its_optimum(name: str) -> None:
    for check in CONVERGES[name].checks:
        check()


def _fails(name: str) -> bool:
    """Whether some check of the case notices."""
    for check in CONVERGES[name].checks:
        try:
            check()
        except AssertionError:
            return True
    return False


@pytest.mark.parametrize("name", CONVERGES)
def test_notices_a_wrong_sign(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = bandit.evaluate

    def negate(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: -term for key, term in value.items()}
        return (-value[0], value[1]) if isinstance(value, tuple) else -value

    monkeypatch.setattr(bandit, "evaluate", lambda *args, **keywords: negate(right(*args, **keywords)))
    assert _fails(name)


@pytest.mark.parametrize("name", [name for name, entry in CONVERGES.items() if not entry.ordering])
def test_notices_a_wrong_hyperparameter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right, changed = bandit.evaluate, []

    def evaluate(key: str, view: Any, **keywords: Any) -> Any:
        for hp in ("beta", "delta", "lam", "alpha", "a"):
            if hp in keywords:
                changed.append(hp)
                return right(key, view, **keywords | {hp: 0.7 * keywords[hp] + 0.1})
        return right(key, view, **keywords)

    monkeypatch.setattr(bandit, "evaluate", evaluate)
    assert _fails(name) or not changed


def test_every_offline_algorithm_has_a_case() -> None:
    missing = set(offline_algorithms()) - {*CONVERGES, *WITHOUT}
    assert not missing, f"say what these reach (CONVERGES), or why not (WITHOUT): {sorted(missing)}"
    assert not {*CONVERGES, *WITHOUT} - set(algorithms) and not set(CONVERGES) & set(WITHOUT)
