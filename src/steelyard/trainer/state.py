"""Checkpoints: a Hugging Face directory plus what an exact resume needs.

Data order, sampling and dropout are pure functions of (seed, step), and the learning rate of the step, so
the state is small: weights, the optimizer's moments and the step.  No pickle.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from steelyard.errors import RunError
from steelyard.files import atomic_directory
from steelyard.models.load import Policy, save_policy

_NAME = re.compile(r"checkpoint-(\d+)$")


def save_checkpoint(
    run: Path,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    progress: dict[str, Any],
    *,
    keep: int | None,
    extras: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> Path:
    """Write ``checkpoint-<global_step>`` atomically and drop the oldest beyond ``keep``.

    ``progress`` must hold ``global_step``; it becomes ``trainer_state.json``.  ``extras`` are further named
    tensors (an algorithm's running state, a moving reference), one ``<name>.safetensors`` each.
    """
    target = run / f"checkpoint-{progress['global_step']}"
    with atomic_directory(target) as temporary:
        save_policy(policy, temporary)
        save_file(_optimizer_tensors(policy, optimizer), temporary / "optimizer.safetensors")
        for name, tensors in (extras or {}).items():
            save_file(
                {key: value.detach().cpu().contiguous() for key, value in tensors.items()},
                temporary / f"{name}.safetensors",
            )
        (temporary / "trainer_state.json").write_text(json.dumps(progress, indent=2) + "\n", encoding="utf-8")
    if keep is not None:
        for _, old in checkpoints(run)[:-keep]:
            shutil.rmtree(old)
    return target


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """Complete checkpoints of a run, oldest first."""
    found = []
    for path in run.glob("checkpoint-*"):
        match = _NAME.search(path.name)
        if match and (path / "trainer_state.json").is_file():
            found.append((int(match.group(1)), path))
    return sorted(found)


def load_progress(checkpoint: Path) -> dict[str, Any]:
    """The progress that :func:`save_checkpoint` was given."""
    return json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))


def load_extras(checkpoint: Path, name: str) -> dict[str, torch.Tensor]:
    """Further tensors of a checkpoint; raises :class:`RunError` when it has none of that name."""
    path = checkpoint / f"{name}.safetensors"
    if not path.is_file():
        raise RunError(f"{checkpoint}: the checkpoint holds no {path.name}, which this algorithm continues from")
    return load_file(path)


def restore_weights(checkpoint: Path, policy: Policy) -> None:
    """Put a checkpoint's weights (its adapter's, for LoRA) into the policy, in place.

    Raises:
        RunError: names or shapes do not fit the model.
    """
    if policy.adapter is not None:
        import peft

        weights = load_file(checkpoint / "adapter_model.safetensors")
        result = peft.set_peft_model_state_dict(policy.model, weights)
        missing = [name for name in result.missing_keys if "lora_" in name]
    else:
        weights = load_file(checkpoint / "model.safetensors")
        result = policy.model.load_state_dict(weights, strict=False)
        tied = getattr(policy.model, "_tied_weights_keys", None) or ()
        missing = [name for name in result.missing_keys if name not in tied]
    if missing or result.unexpected_keys:
        odd = (missing or result.unexpected_keys)[0]
        raise RunError(f"{checkpoint}: its weights do not fit the model (for example '{odd}')")


def restore_optimizer(checkpoint: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    """Put the optimizer's moments back; raises :class:`RunError` when they do not fit the model."""
    tensors = load_file(checkpoint / "optimizer.safetensors")
    for name, parameter in _trainable(policy):
        state = {key: tensors.get(f"{name}.{key}") for key in ("step", "exp_avg", "exp_avg_sq")}
        missing = [key for key, value in state.items() if value is None]
        if missing or state["exp_avg"].shape != parameter.shape:  # type: ignore[union-attr]
            raise RunError(f"{checkpoint}: the optimizer's state does not fit parameter '{name}'")
        optimizer.state[parameter] = {
            key: value if key == "step" else value.to(parameter)  # type: ignore[union-attr]
            for key, value in state.items()
        }


def _trainable(policy: Policy) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, p) for name, p in policy.model.named_parameters() if p.requires_grad]


def _optimizer_tensors(policy: Policy, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, parameter in _trainable(policy):
        for key, value in optimizer.state[parameter].items():
            tensors[f"{name}.{key}"] = value.detach().cpu().clone().contiguous()
    return tensors
