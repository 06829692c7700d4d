"""Reward-model losses on the scalar scores of a head."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from steelyard.algorithms.core import algorithm
from steelyard.types import Scores


@algorithm(paper="2009.01325")
def rm(scores: Scores, *, centering: Annotated[float, Ge(0.0)] = 0.0) -> dict[str, Tensor]:
    r"""Bradley-Terry reward model (Stiennon et al., 2020; Ouyang et al., 2022).

    $-\log\sigma(r_w-r_l)+\eta(r_w+r_l)^2$ with a scalar head on the last token of the completion; the
    centring term is Eisenstein et al.'s (2312.09244).

    Args:
        centering: eta; keeps the scores near zero (0.01 is usual; off by default as in the paper).
    """
    terms = {"bradley_terry": -F.logsigmoid(scores.chosen - scores.rejected)}
    if centering:
        terms["centering"] = centering * (scores.chosen + scores.rejected) ** 2
    return terms
