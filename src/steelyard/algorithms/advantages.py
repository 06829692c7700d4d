"""Advantage estimators: rewards of a group of completions -> one advantage per completion.

``rewards`` is ``[p, g]`` (prompts × completions) with NaN where a completion could not be scored; such
completions get advantage zero and take no part in the statistics.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from steelyard.registry import Registry

advantages: Registry[Callable[[Tensor], Tensor]] = Registry("advantage", group="steelyard.advantages")
"""Every advantage estimator by name."""


@advantages("group_norm")
def group_norm(rewards: Tensor, *, eps: float = 1e-4) -> Tensor:
    """(r - mean of the group) / (unbiased standard deviation of the group + eps) (GRPO, 2402.03300).

    A group without variance gets zeros.  eps as in TRL; verl uses 1e-6, OpenRLHF 1e-9.
    """
    scored = ~rewards.isnan()
    count = scored.sum(-1, keepdim=True)
    filled = rewards.nan_to_num(0.0)
    centred = torch.where(scored, filled - filled.sum(-1, keepdim=True) / count.clamp(min=1), 0.0)
    variance = (centred**2).sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    return centred / (variance.sqrt() + eps)
