"""The one training loop: groups of a step, gradient, update; metrics, checkpoints, evaluation hooks.

It knows no algorithm by name and does not care whether groups were read or sampled.  Everything random is
seeded from (seed, step), so that a run killed at any step and resumed equals the uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from steelyard.algorithms.core import AlgorithmSpec, initial_state
from steelyard.config import RunConfig
from steelyard.errors import NumericalError
from steelyard.models.attention import base_of
from steelyard.models.load import Policy
from steelyard.trainer.forward import StepInput
from steelyard.trainer.moving import MovingReference
from steelyard.trainer.sources import Prepared, Source
from steelyard.trainer.state import load_extras, load_progress, restore_optimizer, restore_weights, save_checkpoint
from steelyard.trainer.step import accumulate, learning_rate, make_optimizer, update

Progress = Callable[[dict[str, Any]], None]
MISMATCH = "sampling/sampling_logp_difference/mean"


class Loop:
    """Steps of one stage of training.

    Args:
        policy: its trainable parameters are updated in place.
        source: where the groups of a step come from.
        other: the frozen model beside the policy: a teacher, or a reference that is needed live.
        phase: a word for progress reports (``train``, ``sft``).

    Attributes:
        total: optimizer steps; of a training that ended early, those that it took.
        ended: why it ended early; "" if it did not.
    """

    def __init__(
        self,
        cfg: RunConfig,
        spec: AlgorithmSpec,
        policy: Policy,
        source: Source,
        *,
        seed: int,
        other: Policy | None = None,
        progress: Progress | None = None,
        phase: str = "train",
    ) -> None:
        self.cfg, self.spec, self.policy, self.source = cfg, spec, policy, source
        self.seed, self.phase = seed, phase
        self.progress = progress or (lambda _: None)
        self.moving: MovingReference | None = getattr(source, "moving", None)
        self.total = source.total_steps
        self.step = 0
        self.ended = ""
        self.tokens = 0
        self.seconds = 0.0
        if cfg.train.gradient_checkpointing:
            base_of(policy.model).gradient_checkpointing_enable({"use_reentrant": False})
        policy.check_trainable()
        self.optimizer = make_optimizer(policy.model, cfg.optim)
        self.inputs = StepInput(
            policy=policy,
            spec=spec,
            hyperparameters=cfg.algorithm.hyperparameters,
            tokens_per_microbatch=cfg.train.tokens_per_microbatch,
            temperature=cfg.rollout.temperature if spec.online else 1.0,
            other=other,
            top_k=cfg.teacher.top_k if cfg.teacher else None,
            tail=bool(cfg.teacher and cfg.teacher.tail),
            state=initial_state(spec),
        )

    def steps(self) -> Iterator[dict[str, float]]:
        """Run the remaining steps; yields one row of metrics per optimizer step."""
        self.policy.model.train()
        while self.step < self.total:
            try:
                row = self._one()
                if row is None:
                    self.total = self.step
                    return
                yield row
            except NumericalError as error:
                raise NumericalError(f"step {self.step + 1} of {self.total}: {error}") from error

    def _one(self) -> dict[str, float] | None:
        """A step; None where the source has nothing more to train on."""
        started = time.perf_counter()
        # Dropout and anything else that draws from the global generator: a function of (seed, step).
        torch.manual_seed((self.seed * 1_000_003 + self.step) % 2**63)
        if isinstance(self.source, Prepared):
            self.ended = self.source.prepare(self)
        if self.ended:
            self.seconds += time.perf_counter() - started
            return None
        groups, found = self.source.groups(self.step, self.policy)
        self.policy.model.train()
        over = self.step / max(1, self.total - 1)
        measured = accumulate(self.inputs, groups, seed=(self.seed, self.step), progress=over)
        # Rounds may sample at another temperature, or from a mixture: only online rollouts must agree.
        if self.spec.online and measured.get(MISMATCH, 0.0) > self.cfg.rollout.max_sampler_mismatch:
            raise NumericalError(
                f"the sampler is not the policy: their log-probabilities differ by "
                f"{measured[MISMATCH]:.3g} nats on average (rollout.max_sampler_mismatch is "
                f"{self.cfg.rollout.max_sampler_mismatch:g}); nothing was updated"
            )
        place = self.source.schedule(self.step) if isinstance(self.source, Prepared) else (self.step, self.total)
        rate = learning_rate(self.cfg.optim, *place)
        norm = update(self.policy, self.optimizer, self.cfg.optim, rate)
        self.step += 1
        if self.moving is not None:
            self.moving.follow(self.step, self.policy)
        tokens = sum(group.tokens for group in groups)
        self.tokens += tokens
        elapsed = time.perf_counter() - started
        self.seconds += elapsed
        row = {
            "global_step": self.step,
            **measured,
            **found,
            "epoch": self.step * self.cfg.train.prompts_per_step / self.source.order.n_rows,
            "learning_rate": rate,
            "grad_norm": norm,
            "num_tokens": self.tokens,
            "step_time": elapsed,
            "tokens_per_second": tokens / elapsed,
        }
        self.progress({"phase": self.phase, "step": self.step, "total": self.total, **row})
        return row

    def save(self, run: Path) -> Path:
        """Write a checkpoint of the state after :attr:`step` steps."""
        generated = getattr(self.source, "generated_tokens", 0)
        state = {
            "global_step": self.step,
            "total_steps": self.total,
            "num_tokens": self.tokens,
            "generated_tokens": generated,
            "train_seconds": self.seconds,
        }
        extras = {"algorithm_state": self.inputs.state} if self.inputs.state else {}
        if self.moving is not None:
            extras["reference"] = self.moving.tensors()
        keep = self.cfg.train.save_total_limit
        return save_checkpoint(run, self.policy, self.optimizer, state, keep=keep, extras=extras)

    def restore(self, checkpoint: Path) -> None:
        """Continue after ``checkpoint``."""
        state = load_progress(checkpoint)
        restore_weights(checkpoint, self.policy)
        restore_optimizer(checkpoint, self.policy, self.optimizer)
        if self.inputs.state:
            self.inputs.state = load_extras(checkpoint, "algorithm_state")
        if self.moving is not None:
            self.moving.restore(load_extras(checkpoint, "reference"))
        self.step = state["global_step"]
        self.tokens = state["num_tokens"]
        self.seconds = state["train_seconds"]
        if hasattr(self.source, "generated_tokens"):
            self.source.generated_tokens = state["generated_tokens"]  # type: ignore[attr-defined]
