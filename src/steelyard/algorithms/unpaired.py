"""Losses on single completions with a desirable / undesirable label."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from steelyard.algorithms.core import algorithm
from steelyard.errors import DataError
from steelyard.types import Unpaired


def kto_reference_point(unpaired: Unpaired) -> dict[str, Tensor]:
    """z0 = max(0, mean log-ratio of mismatched prompt-completion pairs), over the whole optimizer step."""
    if unpaired.mismatched is None:
        raise DataError("kto needs the mismatched completions (mismatched=..., mismatched_ref=...)")
    return {"z0": F.relu(unpaired.mismatched.logratio.mean())}


@algorithm(paper="2402.01306", reference=True, coupled=kto_reference_point, mismatched=True, beta_scale="sum")
def kto(
    unpaired: Unpaired,
    *,
    beta: Annotated[float, Gt(0.0)] = 0.1,
    desirable_weight: Annotated[float, Ge(0.0)] = 1.0,
    undesirable_weight: Annotated[float, Ge(0.0)] = 1.0,
) -> Tensor:
    r"""Kahneman-Tversky Optimization (Ethayarajh et al., 2024, eq. 8).

    $\lambda_D(1-\sigma(\beta(l-z_0)))$ for desirable, $\lambda_U(1-\sigma(\beta(z_0-l)))$ for undesirable
    completions, divided by all completions of the step; $z_0$ is detached.  oxRL computes another loss under
    this name.

    Args:
        beta: strength of the pull towards the reference.
        desirable_weight: lambda_D; keep lambda_D n_D / (lambda_U n_U) within [1, 4/3] under imbalance.
        undesirable_weight: lambda_U.
    """
    gain = beta * (unpaired.completions.logratio - unpaired.stats["z0"])
    desirable = desirable_weight * (1 - torch.sigmoid(gain))
    undesirable = undesirable_weight * (1 - torch.sigmoid(-gain))
    return torch.where(unpaired.label, desirable, undesirable)
