"""Where the next groups come from: the one thing in which offline and online training differ.

A source is a pure function of the step (and, online, of the policy), so a resumed run needs no cursor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from steelyard.algorithms.advantages import advantages
from steelyard.algorithms.core import AlgorithmSpec
from steelyard.config import RolloutConfig, TrainConfig
from steelyard.data.packing import StepOrder, pack
from steelyard.data.render import completion_text
from steelyard.errors import DataError
from steelyard.models.load import Policy
from steelyard.models.logprobs import token_logprobs
from steelyard.models.reference import attach_reference
from steelyard.rewards.core import Reward, score
from steelyard.rollout.sampler import NativeSampler, SamplingParams
from steelyard.trainer.moving import MovingReference
from steelyard.trainer.rows import mismatched, with_leaf
from steelyard.types import Group


class Source(Protocol):
    """Gives the groups of an optimizer step, and what making them showed (metrics)."""

    order: StepOrder
    """Which rows (or prompts) each step takes."""
    total_steps: int

    def groups(self, step: int, policy: Policy) -> tuple[list[Group], dict[str, float]]:
        """The step's groups, ready for the forward pass."""
        ...


@runtime_checkable
class Prepared(Protocol):
    """A source that trains in rounds: it may change the loop before a step, and where its schedule begins."""

    def prepare(self, loop: Any) -> str:
        """Called before the groups of the loop's next step are asked for.

        Returns:
            "", or why training ends here, before its last step.
        """
        ...

    def schedule(self, step: int) -> tuple[int, int]:
        """(step, total) that the learning rate of optimizer step ``step`` is taken at."""
        ...


def total_steps(rows: int, train: TrainConfig) -> int:
    """``max_steps``, or enough steps for ``num_train_epochs`` passes over the rows."""
    if train.max_steps is not None:
        return train.max_steps
    return max(1, round(rows * train.num_train_epochs / train.prompts_per_step))


Attach = Callable[[Sequence[Group]], list[Group]]
"""Groups -> the same groups with reference log-probabilities."""


class OfflineSource:
    """Rows in a seeded order; each epoch is another permutation.

    Args:
        attach: reference log-probabilities of all rows, once.
        mismatch: every prompt gets another row's completion as an untrained leaf.
        moving: a reference that follows the policy; its log-probabilities are computed at every step.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        train: TrainConfig,
        *,
        seed: int,
        attach: Attach | None = None,
        mismatch: bool = False,
        moving: MovingReference | None = None,
    ) -> None:
        if not groups:
            raise DataError("there are no training rows left")
        self.moving = moving
        self.rows = list(groups) if attach is None else attach(groups)
        self.order = StepOrder(len(self.rows), train.prompts_per_step, seed)
        self.total_steps = total_steps(len(self.rows), train)
        self.leaves: list[list[Group]] | None = None
        if mismatch:
            self.leaves = self._mismatched(seed, attach)

    def _mismatched(self, seed: int, attach: Attach | None) -> list[list[Group]]:
        steps = [
            mismatched(self._rows_of(step), np.random.default_rng([seed, step, 0x4B54]))
            for step in range(self.total_steps)
        ]
        if attach is None:
            return steps
        flat = iter(attach([leaf for leaves in steps for leaf in leaves]))
        return [[next(flat) for _ in leaves] for leaves in steps]

    def _rows_of(self, step: int) -> list[Group]:
        return [self.rows[i] for i in self.order.indices(step)]

    def groups(self, step: int, policy: Policy) -> tuple[list[Group], dict[str, float]]:
        """The rows of ``step``; with their mismatched leaf where the algorithm wants one."""
        groups = self._rows_of(step)
        if self.leaves is not None:
            groups = [with_leaf(g, leaf) for g, leaf in zip(groups, self.leaves[step], strict=True)]
        if self.moving is not None:
            groups = self.moving.attach(groups)
        return groups, {}


@dataclass
class OnlineSource:
    """Samples completions for each step's prompts from the current policy, scores them, adds advantages.

    Attributes:
        prompts: groups without completions; ``columns`` go to the rewards.
        rewards: (function or name, weight).
        reference: a frozen policy for the KL term, or None.
    """

    prompts: list[Group]
    train: TrainConfig
    rollout: RolloutConfig
    spec: AlgorithmSpec
    rewards: list[tuple[str | Reward, float]]
    seed: int
    reference: Policy | None = None
    generated_tokens: int = 0
    samples: list[dict[str, Any]] = field(default_factory=list)
    """A few completions of the latest step with their rewards, for people to read."""

    def __post_init__(self) -> None:
        if not self.prompts:
            raise DataError("there are no training prompts left")
        self.order = StepOrder(len(self.prompts), self.train.prompts_per_step, self.seed)
        self.total_steps = total_steps(len(self.prompts), self.train)

    def groups(self, step: int, policy: Policy) -> tuple[list[Group], dict[str, float]]:
        """Sample, score, and add advantages (and the reference's log-probabilities for a KL term)."""
        chosen = [self.prompts[i] for i in self.order.indices(step)]
        sampled = self._sample(chosen, step, policy)
        scored, reward_metrics = self._score(chosen, sampled, policy)
        if self.reference is not None:
            scored = self._attach(scored)
        return scored, reward_metrics | _length_metrics(sampled)

    def _sample(self, chosen: list[Group], step: int, policy: Policy) -> list[Group]:
        sampler = NativeSampler.of(policy, policy_version=step)
        params = SamplingParams(
            n=self.rollout.num_generations,
            temperature=self.rollout.temperature,
            max_completion_length=self.rollout.max_completion_length,
        )
        keys = [f"{step}:{i}" for i in range(len(chosen))]
        groups = sampler.generate([g.prompt for g in chosen], params, seed=self.seed, keys=keys)
        self.generated_tokens += sum(len(c) for g in groups for c in g.completions)
        return [g.replace(key=c.key, columns=c.columns) for g, c in zip(groups, chosen, strict=True)]

    def _score(self, chosen: list[Group], sampled: list[Group], policy: Policy) -> tuple[list[Group], dict[str, float]]:
        n = self.rollout.num_generations
        texts = [completion_text(policy.tokenizer, ids) for g in sampled for ids in g.completions]
        prompts = [c.columns.get("prompt", c.key) for c in chosen for _ in range(n)]
        names = set.intersection(*(set(c.columns) for c in chosen)) - {"prompt"}
        columns = {name: [c.columns[name] for c in chosen for _ in range(n)] for name in sorted(names)}
        columns["finished"] = [bool(f) for g in sampled for f in g.completion_columns["finished"]]
        ids = [c.tolist() for g in sampled for c in g.completions]
        totals, parts = score(self.rewards, prompts, texts, ids, **columns)
        rewards = np.array([np.nan if t is None else t for t in totals], np.float64).reshape(len(sampled), n)
        assert self.spec.advantage is not None
        advantage = advantages.get(self.spec.advantage)(torch.from_numpy(rewards)).numpy()
        groups = []
        for row, group in enumerate(sampled):
            # An unscorable completion is counted as such, and is no item of the loss or of any mean.
            trained = tuple(bool(np.isfinite(r)) for r in rewards[row])
            added = {"reward": np.nan_to_num(rewards[row]), "advantage": advantage[row]}
            groups.append(group.replace(trained=trained, completion_columns={**group.completion_columns, **added}))
        judged = rewards[np.isfinite(rewards).sum(axis=1) > 1]
        spread = np.nanstd(judged, axis=1, ddof=1)
        metrics = {
            "reward": float(np.nanmean(rewards)),
            **({"reward_std": float(spread.mean())} if len(spread) else {}),
            **({"frac_reward_zero_std": float((spread == 0).mean())} if len(spread) else {}),
            "rewards/unscored": float(np.isnan(rewards).sum()),
        }
        for name, part in parts.items():
            known = [v for v in part.values if v is not None]
            if known:
                metrics[f"rewards/{name}/mean"] = float(np.mean(known))
                metrics[f"rewards/{name}/std"] = float(np.std(known))
        self.samples = [
            {"prompt": prompts[i], "completion": texts[i], "reward": totals[i]} for i in range(min(len(texts), 2 * n))
        ]
        return groups, metrics

    def _attach(self, groups: list[Group]) -> list[Group]:
        assert self.reference is not None
        return attach_now(self.reference, groups, self.train.tokens_per_microbatch, self.rollout.temperature)


def attach_now(policy: Policy, groups: Sequence[Group], budget: int, temperature: float = 1.0) -> list[Group]:
    """The groups with ``policy``'s log-probabilities as reference, computed here and now (no cache)."""
    return attach_reference(groups, _per_completion(groups, _logps(policy, groups, budget, temperature)))


def _logps(policy: Policy, groups: Sequence[Group], budget: int, temperature: float) -> list[torch.Tensor]:
    """Log-probabilities of all trained tokens without gradients, one tensor per micro-batch."""
    with policy.measuring() as model:
        return [
            token_logprobs(model, batch.to(policy.device), temperature=temperature).logp
            for batch in pack(groups, budget, padded=not policy.packed)
        ]


def _per_completion(groups: Sequence[Group], flat: list[torch.Tensor]) -> list[tuple[np.ndarray, ...]]:
    values = torch.cat(flat).cpu().numpy()
    result, start = [], 0
    for group in groups:
        rows = []
        for mask in group.masks:
            row = np.full(len(mask), np.nan, np.float32)
            count = int(mask.sum())
            row[mask] = values[start : start + count]
            start += count
            rows.append(row)
        result.append(tuple(rows))
    return result


def _length_metrics(groups: list[Group]) -> dict[str, float]:
    lengths = np.array([len(c) for g in groups for c in g.completions])
    finished = np.concatenate([g.completion_columns["finished"] for g in groups])
    metrics = {
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(1 - finished.mean()),
    }
    if finished.any():
        metrics["completions/mean_terminated_length"] = float(lengths[finished].mean())
    return metrics
