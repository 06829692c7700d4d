"""What is known of pairwise preference methods: closed forms, settings, golden numbers."""

from __future__ import annotations

import math

from rows import VOCABULARY, Row

LOG2 = math.log(2)

ROWS = {
    "dpo": Row(
        lambda hp, raw: LOG2,
        settings=({"beta": 0.5},),
        golden=(({"beta": 0.1}, [0.644397, 0.728760, 0.501084]), ({"beta": 0.1}, 0.624747)),
    ),
    "dpo_norm": Row(
        lambda hp, raw: LOG2,
        settings=({"beta": 2.0},),
        golden=(({"beta": 5.0}, [0.594396, 0.793566, 0.063659]), ({}, 0.483873)),
    ),
    "ipo": Row(
        lambda hp, raw: (1 / (2 * hp["beta"])) ** 2,
        settings=({"beta": 0.5}, {"average": False}),
        golden=(
            ({"beta": 0.1}, [24.585069, 25.384803, 19.851975]),
            ({"beta": 0.1, "average": False}, [16.0, 32.49, 0.49]),
        ),
    ),
    "dpop": Row(
        lambda hp, raw: LOG2,
        settings=({"beta": 0.1, "lam": 5.0},),
        golden=(({"beta": 0.3, "lam": 50.0}, [0.554355, 7.710448, 6.212007]), ({}, 4.825604)),
    ),
    "simpo": Row(
        lambda hp, raw: math.log1p(math.exp(hp["gamma"])),
        settings=({"beta": 2.5, "gamma": 1.375}, {"gamma": -0.5}),
        golden=(({"beta": 2.5, "gamma": 1.375}, [0.474077, 0.825939, 0.378043]),),
    ),
    "orpo": Row(
        lambda hp, raw: math.log(VOCABULARY) + hp["lam"] * LOG2,
        settings=({"lam": 1.0},),
        golden=(
            ({"lam": 1.0}, {"odds_ratio": [0.329147, 0.458001, 0.303562]}),
            ({"lam": 0.1}, {"odds_ratio": 0.0363570, "nll": 63.5 / 45}),
        ),
    ),
}
