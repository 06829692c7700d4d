"""What is known of methods on labelled completions: closed forms, settings, golden numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rows import Row


def _kto_at_reference(hp: Mapping[str, Any], label: Tensor) -> float:
    share = float(label.double().mean())
    return 0.5 * (hp["desirable_weight"] * share + hp["undesirable_weight"] * (1 - share))


KTO = Row(
    lambda hp, raw: _kto_at_reference(hp, raw["label"]),
    settings=({"beta": 0.5, "desirable_weight": 1.5}, {"undesirable_weight": 0.0}),
    golden=(({"beta": 0.1}, [0.462570, 0.462570]),),
)

# the fixture has a desirable completion with l = 2 and an undesirable one with l = -1
ROWS = {
    "kto": KTO,
    "kto_pair": KTO,
    "apo_zero_unpaired": Row(
        lambda hp, raw: 0.5,
        settings=({"beta": 0.5},),
        golden=(({"beta": 0.1}, [1 - 1 / (1 + math.exp(-0.2)), 1 / (1 + math.exp(0.1))]),),
    ),
    "bco": Row(
        lambda hp, raw: math.log(2),
        settings=({"beta": 0.5},),
        golden=(({"beta": 0.1}, [math.log1p(math.exp(-0.15)), math.log1p(math.exp(-0.15))]),),  # delta = 0.05
    ),
}
