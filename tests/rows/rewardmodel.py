"""What is known of reward models: closed forms, settings, golden numbers."""

from __future__ import annotations

import math

from rows import Row

LOG2 = math.log(2)

ROWS = {
    "rm": Row(
        lambda hp, raw: LOG2 + hp["centering"] * float((2 * raw["chosen"]).square().mean()),
        settings=({"centering": 0.01},),
        golden=(({}, 0.584620), ({"centering": 0.01}, {"bradley_terry": 0.584620, "centering": 0.016})),
    ),
}
