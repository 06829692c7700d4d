"""The one batch unit: a prompt with k completions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from steelyard.errors import DataError


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """One prompt with k completions, and named columns: the only unit that the data path knows.

    Attributes:
        prompt: token ids ``int32[p]``; never empty (an empty prompt is the BOS token).
        completions: k arrays of token ids ``int32[t_k]``; may interleave tool and user tokens.
        masks: k arrays ``bool[t_k]``: True where the token is trained and scored.
        columns: values per group (``{"answer": "42"}``).
        completion_columns: arrays ``[k]`` per completion (``label``, ``score``, ``reward``).
        token_columns: k arrays ``float32[t_k]`` per name (``ref``, ``old``, ``advantage``).
        trained: ``[k]`` booleans; False marks a leaf that is only measured (KTO's mismatched completion).
        policy_version: optimizer steps that the writing policy had taken (-1: not written by a policy).
        key: a stable name of the row that this came from, for messages and records.
    """

    prompt: np.ndarray
    completions: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)
    completion_columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    token_columns: Mapping[str, tuple[np.ndarray, ...]] = field(default_factory=dict)
    trained: tuple[bool, ...] = ()
    policy_version: int = -1
    key: str = ""

    def __post_init__(self) -> None:
        if len(self.prompt) == 0:
            raise DataError(f"group {self.key or '?'}: the prompt has no token (an empty prompt is BOS)")
        if not self.trained:
            object.__setattr__(self, "trained", (True,) * len(self.completions))
        if not len(self.completions) == len(self.masks) == len(self.trained):
            raise DataError(f"group {self.key or '?'}: completions, masks and trained differ in number")
        for ids, mask in zip(self.completions, self.masks, strict=True):
            if len(ids) != len(mask):
                raise DataError(f"group {self.key or '?'}: a mask of {len(mask)} for {len(ids)} tokens")
        for name, values in self.token_columns.items():
            if [len(v) for v in values] != [len(c) for c in self.completions]:
                raise DataError(f"group {self.key or '?'}: token column '{name}' does not fit the tokens")

    @property
    def k(self) -> int:
        """Number of completions."""
        return len(self.completions)

    @property
    def tokens(self) -> int:
        """Tokens that a forward pass computes: the prompt once and every completion."""
        return len(self.prompt) + sum(len(c) for c in self.completions)

    @property
    def scored(self) -> int:
        """Tokens whose log-probability is computed (mask True, over all completions)."""
        return int(sum(int(m.sum()) for m in self.masks))

    def replace(self, **changes: Any) -> Group:
        """A copy with some attributes replaced."""
        return dataclasses.replace(self, **changes)
