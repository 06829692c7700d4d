"""A reference that follows the policy (TR-DPO): every few steps it moves a share of the way, or all of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from steelyard.models.load import Policy
from steelyard.types import Group


class MovingReference:
    """A frozen copy of the policy at step 0, with weights of its own; adapters move like any other weight.

    Args:
        start: the policy at step 0.
        share: a: the reference becomes a * policy + (1 - a) * reference; 1 copies.
        interval: tau: optimizer steps between two updates.
        attach: (reference, groups) -> the groups with its log-probabilities.
    """

    def __init__(
        self,
        start: Policy,
        share: float,
        interval: int,
        attach: Callable[[Policy, Sequence[Group]], list[Group]],
    ) -> None:
        self.policy = replace(start, model=copy.deepcopy(start.model).requires_grad_(False).eval())
        self.share, self.interval, self._attach = share, interval, attach

    def attach(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with the reference's log-probabilities as it is now."""
        return self._attach(self.policy, groups)

    def follow(self, step: int, policy: Policy) -> None:
        """After optimizer step ``step`` (1-based): move, when it is time."""
        if step % self.interval:
            return
        with torch.no_grad():
            for mine, theirs in zip(self.policy.model.parameters(), policy.model.parameters(), strict=True):
                mine.lerp_(theirs.detach(), self.share)

    def tensors(self) -> dict[str, Tensor]:
        """The weights, for a checkpoint."""
        return {name: p.detach().cpu().clone().contiguous() for name, p in self.policy.model.named_parameters()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put a checkpoint's weights back."""
        with torch.no_grad():
            for name, parameter in self.policy.model.named_parameters():
                parameter.copy_(tensors[name])
