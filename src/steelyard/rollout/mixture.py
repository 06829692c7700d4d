"""Two models that write as one: in every step their next-token distributions are joined, and one token is drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from steelyard.errors import ConfigError, ModelError
from steelyard.models.load import Policy


@dataclass(frozen=True, eq=False)
class Mixture:
    """The other model's share in what a policy writes.

    ``geometric``: p proportional to policy^(1-share) * other^share, normalised token by token (Nash-MD);
    ``arithmetic``: p = (1-share) * policy + share * other (MiniLLM).

    Attributes:
        other: must have the policy's vocabulary.
        share: in [0, 1].
    """

    other: Policy
    share: float
    kind: Literal["geometric", "arithmetic"]

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise ConfigError(f"sampling: a share of a mixture lies in [0, 1], got {self.share}")

    def join(self, policy: Tensor, other: Tensor) -> Tensor:
        """Logits ``[rows, v]`` of both -> log-probabilities of the mixture."""
        if policy.shape != other.shape:
            raise ModelError(
                f"a mixture needs one vocabulary: the policy's has {policy.shape[-1]} entries, the other model's "
                f"{other.shape[-1]}"
            )
        ours, theirs = policy.log_softmax(-1), other.log_softmax(-1)
        if self.share in (0.0, 1.0):
            return theirs if self.share else ours
        if self.kind == "geometric":
            return ((1 - self.share) * ours + self.share * theirs).log_softmax(-1)
        return torch.logaddexp(ours + math.log1p(-self.share), theirs + math.log(self.share))
