"""What is known of methods on labelled completions: closed forms, settings, golden numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rows import Row


def _kto_at_reference(hp: Mapping[str, Any], label: Tensor) -> float:
    share = float(label.double().mean())
    return 0.5 * (hp["desirable_weight"] * share + hp["undesirable_weight"] * (1 - share))


ROWS = {
    "kto": Row(
        lambda hp, raw: _kto_at_reference(hp, raw["label"]),
        settings=({"beta": 0.5, "desirable_weight": 1.5}, {"undesirable_weight": 0.0}),
        golden=(({"beta": 0.1}, [0.462570, 0.462570]),),
    ),
}
