"""TRL's GRPO trainer as a live oracle: its loss, its gradients and its advantages."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from oracle_tools import Both, Oracle, cases, covers, grid, ragged, reference, token_logps, trainer
from steelyard.algorithms.advantages import group_norm
from steelyard.algorithms.core import loss
from steelyard.types import Rollouts

pytestmark = pytest.mark.filterwarnings("ignore")


def graded(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
    """Rewards of one group of four; None is a completion that could not be scored."""
    return graded.values[: len(prompts)]  # type: ignore[attr-defined]


@cache
def grpo_trainer() -> Any:
    them = trainer(
        GRPOTrainer,
        GRPOConfig,
        {"prompt": "w1 w2"},
        reward_funcs=graded,
        loss_type="grpo",  # TRL's default is DAPO's token mean
        beta=0.0,
        use_bias_correction_kl=False,  # TRL multiplies the KL term by the ratio by default
        num_generations=4,
        per_device_train_batch_size=4,
        max_completion_length=5,
    )
    them.current_gradient_accumulation_steps = 1
    return them


def _grpo(given: dict[str, Any], seed: int) -> Both:
    them, generator = grpo_trainer(), torch.Generator().manual_seed(seed)
    batch = ragged(seed, 6, prompt=1)  # one prompt column, so that completions start at one place
    logp, mask = token_logps(them.model, batch)
    with torch.no_grad():
        ref = token_logps(reference(), batch)[0]
        # far enough from the policy that both ends of the clip range are reached
        old = logp + 0.5 * torch.randn(logp.shape, generator=generator, dtype=torch.float64)
    advantages = torch.randn(6, generator=generator, dtype=torch.float64)
    low, high = given["epsilon"], given["epsilon_high"]
    them.beta, them.epsilon_low, them.epsilon_high = given["beta"], low, high
    theirs = them.compute_loss(
        them.model,
        {
            "prompt_ids": batch.ids[:, :1],
            "prompt_mask": batch.attention[:, :1],
            "completion_ids": batch.ids[:, 1:],
            "completion_mask": batch.completion[:, 1:],
            "tool_mask": batch.trained[:, 1:],
            "advantages": advantages,
            "old_per_token_logps": old,
            "ref_per_token_logps": ref,
        },
    )
    view = Rollouts.from_logps(logp, old, mask, torch.zeros(6), torch.zeros(6), ref, advantages)
    assert bool((view.ratio > 1 + high).any()) and bool((view.ratio < 1 - low).any())
    return theirs, loss("grpo", view, reduce=True, **given), them.model


ORACLES: dict[str, list[Oracle]] = {
    "grpo": [
        Oracle(
            "TRL 1.16 GRPOTrainer (grpo), value, gradient and advantages",
            _grpo,
            grid(beta=(0.0, 0.04, 1.0), epsilon=(0.2,), epsilon_high=(0.2, 0.28)),
            seeds=(31, *range(100, 110)),
        )
    ]
}
COVERS = covers(ORACLES)


@pytest.mark.parametrize(("oracle", "settings", "seed"), cases(ORACLES))
def test_grpo_trainer(oracle: Oracle, settings: dict[str, Any], seed: int) -> None:
    oracle.check(settings, seed)


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 0.0, 1.0, 0.5],
        [0.0, 0.0, 0.0, 0.0],
        [1.0, None, 0.0, 0.5],
        [None, None, None, None],
        [None, 1.0, None, None],
    ],
)
def test_grpo_trainers_advantages(values: list[float | None]) -> None:
    graded.values, grpo_trainer().beta = values, 0.0  # type: ignore[attr-defined]
    theirs = grpo_trainer()._generate_and_score_completions([{"prompt": "w1 w2"}] * 4)["advantages"]
    rewards = torch.tensor([math.nan if value is None else value for value in values])
    torch.testing.assert_close(group_norm(rewards[None])[0], theirs, rtol=1e-5, atol=1e-6)
