"""The tables of what is known of every algorithm: one row each, in a file per family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

VOCABULARY = 7
"""Size of the vocabulary over which a reference-free policy is uniform at the neutral point."""


@dataclass(frozen=True)
class Row:
    """What cannot be read from an algorithm's specification."""

    neutral: Callable[[Mapping[str, Any], dict[str, Tensor]], float]
    """(hyperparameters, inputs) -> the reduced loss where the policy is the reference (the teacher; for methods
    without either, uniform over :data:`VOCABULARY`; for heads, where both sides score alike)."""
    settings: tuple[dict[str, Any], ...] = ()
    """Hyperparameters to test besides the defaults."""
    golden: tuple[tuple[dict[str, Any], Any], ...] = ()
    """(hyperparameters, expected) on the family's fixture: per item (list), reduced (float), or per term."""
    fixture: Callable[[], Any] | None = None
    """The view of the golden numbers, where it is not the family's."""
    exceptions: Mapping[str, str] = field(default_factory=dict)
    """Properties that this method does not have by its theory, and why: ``direction`` (the loss falls when the
    better completion becomes likelier), ``doubling`` (twice the tokens are twice the beta), ``extreme`` (finite
    gradients at log-ratios of 1000), ``neutral`` (a closed form at the neutral point), ``gradient`` (the slope of
    the value), ``repeating`` (twice the tokens change the value iff not length-normalised)."""


ROWS: dict[str, Row] = {}
for _path in sorted(Path(__file__).parent.glob("*.py")):
    if _path.stem != "__init__":
        _found: dict[str, Row] = import_module(f"rows.{_path.stem}").ROWS
        assert not ROWS.keys() & _found.keys(), f"two rows for {ROWS.keys() & _found.keys()}"
        ROWS |= _found
