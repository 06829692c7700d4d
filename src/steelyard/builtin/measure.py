"""What a base can do: greedy accuracy and pass@k on the selection split (the test split is for studies)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from steelyard.config import EvalConfig, ModelConfig
from steelyard.data.render import completion_text, prompt_ids, stop_ids
from steelyard.evals.runner import evaluate_tasks
from steelyard.evals.tasks import get_task
from steelyard.models.load import load_policy
from steelyard.rollout.sampler import NativeSampler, SamplingParams

TASKS = ("arithmetic", "chains", "facts")
SAMPLES = 8


def measure(directory: Path, *, limit: int | None = None, seed: int = 0) -> dict[str, float]:
    """Measure the model in ``directory`` on the selection split.

    Args:
        limit: items per task at most.
        seed: of the samples for pass@k.

    Returns:
        ``<task>`` (greedy strict accuracy, or accuracy by log-likelihood), ``arithmetic/flexible``,
        ``arithmetic/sampled`` (mean accuracy at temperature 1) and ``arithmetic/pass@8``.
    """
    policy = load_policy(ModelConfig(name_or_path=str(directory)), seed=seed)
    cfg = EvalConfig(tasks=list(TASKS), split="selection", limit=limit)
    metrics = evaluate_tasks(policy, cfg, seed=seed, writer=None, purpose="report")
    found = {task: metrics[f"eval/{task}/score"] for task in TASKS}
    found["arithmetic/flexible"] = metrics["eval/arithmetic/flexible"]

    task = get_task("arithmetic")
    assert task.verify is not None
    items = task.items("selection", purpose="select", limit=limit)
    tokenizer = policy.tokenizer
    with policy.measuring() as model:
        sampler = NativeSampler(model, eos_ids={*policy.eos_ids, *stop_ids(tokenizer)}, pad_id=policy.pad_id)
        groups = sampler.generate(
            [prompt_ids(tokenizer, item.prompt) for item in items], SamplingParams(n=SAMPLES), seed=seed
        )
    right = np.array(
        [
            [bool(task.verify(completion_text(tokenizer, ids), item).strict) for ids in group.completions]
            for item, group in zip(items, groups, strict=True)
        ]
    )
    found["arithmetic/sampled"] = float(right.mean())
    found[f"arithmetic/pass@{SAMPLES}"] = float(right.any(axis=1).mean())
    return found
