"""Steelyard: controlled comparisons of post-training algorithms.

One data path, one forward pass, one training loop and one evaluation for all algorithms, so that the only
thing that differs between two runs is the thing that was meant to vary; and honest statistics on top.

The public names are imported when they are first used, so that ``import steelyard`` costs nothing::

    import steelyard

    run = steelyard.train("recipes/dpo.yaml", seed=1)
    steelyard.compare("runs/a", "runs/b")

    from steelyard.types import Pairs

    steelyard.loss("dpo", Pairs.from_logps([-20.0], [-24.0], [-22.0], [-25.0]), beta=0.1)  # one term per pair

    @steelyard.reward("short")
    def short(prompts, completions, completion_ids, **columns):
        return [-float(len(text)) for text in completions]
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steelyard.algorithms.core import algorithm as algorithm
    from steelyard.api import audit as audit
    from steelyard.api import compare as compare
    from steelyard.api import evaluate as evaluate
    from steelyard.api import loss as loss
    from steelyard.api import task as task
    from steelyard.api import train as train
    from steelyard.rewards.core import reward as reward
    from steelyard.study.run import run_study as run_study

_PUBLIC = {
    "train": "steelyard.api",
    "evaluate": "steelyard.api",
    "loss": "steelyard.api",
    "compare": "steelyard.api",
    "audit": "steelyard.api",
    "run_study": "steelyard.study.run",
    "algorithm": "steelyard.algorithms.core",
    "reward": "steelyard.rewards.core",
    "task": "steelyard.api",
}

__all__ = ["algorithm", "audit", "compare", "evaluate", "loss", "reward", "run_study", "task", "train"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'steelyard' has no attribute '{name}'; public names: {', '.join(__all__)}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
