"""What is known of supervised methods: closed forms, settings, golden numbers."""

from __future__ import annotations

import math

import torch

from rows import VOCABULARY, Row
from steelyard.types import Pairs

LOGITS = torch.tensor([[1, 0, -1, 0.5], [0, 0.2, 0.1, -0.3]], dtype=torch.float64)


def _golden_negatives() -> Pairs:
    """The fixture's two tokens on both sides."""
    logp = LOGITS.log_softmax(-1)[[0, 1], [0, 1]][None]
    return Pairs.from_logps(logp, logp, mask_chosen=torch.ones(1, 2), mask_rejected=torch.ones(1, 2))


ROWS = {
    "sft": Row(lambda hp, raw: math.log(VOCABULARY), golden=(({}, 0.974785),)),
    "rft": Row(lambda hp, raw: math.log(VOCABULARY), golden=(({}, 0.974785),)),
    "cpt": Row(lambda hp, raw: math.log(VOCABULARY), golden=(({}, 0.974785),)),
    "neftune": Row(
        lambda hp, raw: math.log(VOCABULARY),
        settings=({"alpha": 15.0}, {"alpha": 0.0}),
        golden=(({}, 0.974785),),
    ),
    "dft": Row(
        lambda hp, raw: math.log(VOCABULARY) / VOCABULARY,
        golden=(({}, 0.357559),),
        exceptions={"gradient": "the weight p is a constant: its part of the slope is left out"},
    ),
    "unlikelihood": Row(
        lambda hp, raw: math.log(VOCABULARY) - hp["alpha"] * math.log(1 - 1 / VOCABULARY),
        settings=({"alpha": 0.3},),
        golden=(
            ({}, {"nll": 0.974785, "unlikelihood": 0.499764}),
            ({"alpha": 0.5}, 0.974785 + 0.5 * 0.499764),
        ),
        fixture=_golden_negatives,
    ),
}
