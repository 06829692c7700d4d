"""What is known of reward models: closed forms, settings, golden numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rows import VOCABULARY, Row
from rows.listwise import LOG2, lists
from steelyard.types import Ranked, Scores, TokenScores


def _margins() -> Scores:
    chosen, rejected, margin = torch.tensor([[1.2, 0.3], [0.4, 0.5], [1, 1 / 3]], dtype=torch.float64)
    return Scores.from_scores(chosen, rejected, margin=margin)


def _costs() -> Scores:
    """A safe and an unsafe completion; two safe ones."""
    chosen, rejected = torch.tensor([[-0.5, -1.0], [1.5, 0.2]], dtype=torch.float64)
    return Scores.from_scores(chosen, rejected, sign_chosen=[-1.0, -1.0], sign_rejected=[1.0, -1.0])


def _ranking() -> Ranked:
    return Ranked.from_scores(torch.tensor([[1.5, 0.7, 0.2, -0.4]], dtype=torch.float64))


def _solutions() -> TokenScores:
    scores = torch.tensor([[0.2, 0.6, 0.9], [0.5, -0.1, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    return TokenScores.from_scores(
        scores, torch.tensor([1.0, 0.0]), mask, torch.full((2, 3), -0.5, dtype=torch.float64)
    )


def _steps() -> TokenScores:
    """Two labelled steps; label logits (wrong, right)."""
    scores = torch.tensor([[[0.0, 1.0], [5.0, 5.0], [0.5, -0.5]]], dtype=torch.float64)
    return TokenScores.from_scores(scores, torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[1, 0, 1]]))


def _orm_at_zero(hp: Mapping[str, Any], raw: Mapping[str, Tensor]) -> float:
    if hp["form"] == "bce":
        verifier = LOG2
    elif hp["level"] == "solution":
        verifier = float(raw["labels"].mean())
    else:
        verifier = float((raw["labels"][:, None] * raw["mask"]).sum() / raw["mask"].sum())
    return verifier + hp["lm_weight"] * math.log(VOCABULARY)


def _cost_of_equals(hp: Mapping[str, Any], raw: Mapping[str, Tensor]) -> float:
    cost = raw["chosen"]
    sign = F.softplus(-raw["sign_rejected"] * cost) + F.softplus(-raw["sign_chosen"] * cost)
    return LOG2 + float((hp["k"] * sign + hp["eta"] * cost**2).mean())


ROWS = {
    "rm": Row(
        lambda hp, raw: LOG2 + hp["centering"] * float((2 * raw["chosen"]).square().mean()),
        settings=({"centering": 0.01},),
        golden=(({}, 0.584620), ({"centering": 0.01}, {"bradley_terry": 0.584620, "centering": 0.016})),
    ),
    "rm_margin": Row(
        lambda hp, raw: float(F.softplus(raw["margin"]).mean()),
        golden=(({}, 0.896547),),
        fixture=_margins,
    ),
    "rm_listwise": Row(
        lambda hp, raw: (
            LOG2 if hp["form"] == "kwise" else sum(math.lgamma(len(x) + 1) for x in lists(raw)) / len(raw["mask"])
        ),
        settings=({"form": "kwise"},),
        golden=(({}, 1.726570), ({"form": "kwise"}, 0.325066)),
        fixture=_ranking,
    ),
    "orm": Row(
        _orm_at_zero,
        settings=({"lm_weight": 0.5, "form": "bce"}, {"level": "solution"}, {"form": "bce", "level": "solution"}),
        golden=(
            ({}, {"verifier": 0.214, "language_model": 0.5}),
            ({"lm_weight": 0.0}, 0.214),
            ({"form": "bce"}, {"verifier": 0.599051}),
            ({"form": "bce", "level": "solution"}, {"verifier": 0.492775}),
        ),
        fixture=_solutions,
    ),
    "prm": Row(
        lambda hp, raw: LOG2,
        golden=(({}, math.log1p(math.exp(-1.0))),),  # both steps are right by a margin of one
        fixture=_steps,
    ),
    "implicit_prm": Row(
        lambda hp, raw: LOG2,
        settings=({"beta": 0.5},),
        golden=(({"beta": 0.1}, [math.log1p(math.exp(-0.2)), math.log1p(math.exp(-0.1))]),),
    ),
    "cost_model": Row(
        _cost_of_equals,
        settings=({"k": 0.3, "eta": 0.01}, {"k": 0.0}),
        golden=(
            ({}, {"order": [math.log1p(math.exp(-2.0)), math.log1p(math.exp(-1.2))]}),
            (
                {"eta": 0.1},
                {
                    "sign": [
                        math.log1p(math.exp(-1.5)) + math.log1p(math.exp(-0.5)),
                        math.log1p(math.exp(0.2)) + math.log1p(math.exp(-1.0)),
                    ],
                    "square": [0.125, 0.052],
                },
            ),
        ),
        fixture=_costs,
        exceptions={"direction": "the score is a cost: the better completion's is to fall"},
    ),
}
