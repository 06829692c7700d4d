"""What is known of listwise methods: closed forms, settings, golden numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rows import Row
from steelyard.types import Ranked

LOG2 = math.log(2)


def one_list(logratio: list[float], rewards: list[float]) -> Ranked:
    """One list with the given summed log-ratios."""
    policy, values = (torch.tensor([x], dtype=torch.float64) for x in (logratio, rewards))
    return Ranked.from_logps(policy, torch.zeros_like(policy), rewards=values)


def lists(raw: Mapping[str, Tensor]) -> list[Tensor]:
    """The rewards of every list, without padding."""
    return [rewards[mask] for rewards, mask in zip(raw["rewards"], raw["mask"], strict=True)]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _lipo_of_ties(hp: Mapping[str, Any], rewards: Tensor) -> float:
    """LiPO where all scores tie: ranks in list order, log 2 per pair."""
    k, total, pairs = len(rewards), 0.0, 0
    for i in range(k):
        for j in range(k):
            if rewards[i] > rewards[j]:
                gain = 2 ** float(rewards[i]) - 2 ** float(rewards[j])
                total += gain * abs(1 / math.log(2 + i) - 1 / math.log(2 + j)) * LOG2
                pairs += 1
    return total * k * LOG2 / pairs if hp["norm"] == "rax" else total


def _exo_of_ties(hp: Mapping[str, Any], rewards: Tensor) -> float:
    """KL of the uniform distribution from the rewards' softmax."""
    return -math.log(len(rewards)) - float((rewards / hp["beta_r"]).log_softmax(-1).mean())


ROWS = {
    "pl_dpo": Row(
        lambda hp, raw: _mean([math.lgamma(len(x) + 1) for x in lists(raw)]),  # K! equally likely orders
        settings=({"beta": 0.5},),
        golden=(({"beta": 1.0}, 1.726570),),
        fixture=lambda: one_list([1.5, 0.7, 0.2, -0.4], [4, 3, 2, 1]),
    ),
    "kwise_dpo": Row(
        lambda hp, raw: LOG2,
        settings=({"beta": 0.5},),
        golden=(({"beta": 1.0}, 0.325066),),
        fixture=lambda: one_list([1.5, 0.7, 0.2, -0.4], [4, 3, 2, 1]),
    ),
    "lipo_lambda": Row(
        lambda hp, raw: _mean([_lipo_of_ties(hp, x) for x in lists(raw)]),
        settings=({"beta": 0.5}, {"norm": "rax"}),
        golden=(({"beta": 1.0}, 0.499001), ({"beta": 1.0, "norm": "rax"}, 0.345881)),
        fixture=lambda: one_list([0.3, 0.9, -0.2], [1, 0.5, 0]),
        exceptions={"doubling": "the ranks by current score may change with the scores"},
    ),
    "infonca": Row(
        lambda hp, raw: _mean([math.log(len(x)) for x in lists(raw)]),
        settings=({"beta": 0.01, "a": 1.0},),
        golden=(({"beta": 1.0, "a": 1.0}, 1.066718),),
        fixture=lambda: one_list([0.3, -0.1, 0.2], [1, 0.2, -0.5]),
    ),
    "nca": Row(
        lambda hp, raw: 2 * LOG2,
        settings=({"beta": 0.01, "a": 1.0},),
        golden=(({"beta": 1.0, "a": 1.0}, 1.376884),),
        fixture=lambda: one_list([0.3, -0.1, 0.2], [1, 0.2, -0.5]),
    ),
    "exo": Row(
        lambda hp, raw: _mean([_exo_of_ties(hp, x) for x in lists(raw)]),
        settings=({"beta": 0.1, "beta_r": 1.0},),
        exceptions={"direction": "a share above the target's is pushed down, be it the best completion's"},
    ),
}
