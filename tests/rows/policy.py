"""What is known of policy-gradient methods: closed forms, settings, golden numbers."""

from __future__ import annotations

from rows import Row

ROWS = {
    "grpo": Row(
        lambda hp, raw: -float((raw["advantage"] * raw["mask"]).sum(-1).div(raw["mask"].sum(-1)).mean()),
        settings=({"beta": 0.0}, {"epsilon": 0.1, "epsilon_high": 0.3}),
        golden=(({"beta": 0.0, "epsilon": 0.2}, 0.049230), ({"beta": 0.04, "epsilon": 0.2}, 0.050004)),
    ),
}
