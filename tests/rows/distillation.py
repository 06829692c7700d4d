"""What is known of distillation: closed forms, settings, golden numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rows import Row
from rows.supervised import LOGITS
from steelyard.types import Distill

TEACHER = torch.tensor([[0.5, 0.5, -0.5, 0], [1, -1, 0, 0.3]], dtype=torch.float64)


def golden_distill() -> Distill:
    """The catalogue's student and teacher, with labels 0 and 1."""
    return Distill.from_logits(LOGITS[None], TEACHER[None], torch.tensor([[0, 1]]))


def _nll(raw: Mapping[str, Tensor], which: Tensor) -> float:
    """The mean negative log-likelihood of the tokens ``which``."""
    logp = raw["student"].log_softmax(-1).gather(-1, raw["labels"][..., None])[..., 0]
    return -float(logp[which].mean())


def _minillm_of_equals(hp: Mapping[str, Any], raw: Mapping[str, Tensor]) -> float:
    """A teacher that is the student rewards nothing: only the language-model part is left."""
    return hp["lm_weight"] * _nll(raw, raw["mask"] & ~raw["own"][:, None])


ROWS = {
    "kd": Row(
        lambda hp, raw: hp["alpha"] * _nll(raw, raw["mask"]),
        settings=({"alpha": 0.2, "tau": 1.0}, {"alpha": 0.0}),
        golden=(
            ({}, 0.594910),
            ({"alpha": 0.0, "tau": 1.0}, 0.187897),
            ({"alpha": 1.0}, 0.974785),
        ),
        fixture=golden_distill,
    ),
    "gkd": Row(
        lambda hp, raw: 0.0,
        settings=({"b": 0.1, "lam": 1.0, "tau": 2.0}, {"b": 0.0}, {"b": 1.0}),
        golden=(({}, 0.047961), ({"b": 0.1}, 0.016900), ({"b": 0.0}, 0.187897), ({"b": 1.0}, 0.213693)),
        fixture=golden_distill,
    ),
    "minillm": Row(
        _minillm_of_equals,
        settings=({"clip": 0.05, "lm_weight": 0.3},),
        exceptions={"repeating": "on policy whitened advantages average to zero at any length; the gradient changes"},
    ),
    "opd": Row(
        lambda hp, raw: 0.0,
        golden=(({}, -0.042209),),
        exceptions={"direction": "the teacher, not the view's advantage, says what is better"},
    ),
}
