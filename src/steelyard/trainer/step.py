"""One optimizer step: a fixed list of groups in, one parameter update out.

Packing only distributes the step's groups over micro-batches; every mean has the whole step's denominator
(:class:`steelyard.algorithms.core.Counts`), so that the gradient does not depend on the split.  Coupled
algorithms see the step twice: a first pass without gradients for their statistics, then the micro-batches.
A running state is read by that first pass and replaced once the step has been computed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from steelyard.algorithms.core import (
    coupled_stats,
    evaluate_loss,
    items_of,
    next_state,
    reduce_terms,
    without_distributions,
)
from steelyard.config import OptimConfig
from steelyard.data.packing import pack
from steelyard.errors import DataError, NumericalError
from steelyard.models.load import Policy
from steelyard.trainer.forward import StepInput, embedding_noise, forward_view
from steelyard.trainer.views import diagnostics, step_counts
from steelyard.types import Group, View


def accumulate(
    inputs: StepInput, groups: Sequence[Group], *, seed: Sequence[int] = (0, 0), progress: float = 0.0
) -> dict[str, float]:
    """Add the gradient of the step's loss to the parameters; returns the loss, its terms and diagnostics.

    Args:
        seed: (seed, step): whatever is drawn at random in this step is a function of it.
        progress: share of the training that is over, for schedules.

    Raises:
        NumericalError: a loss term is NaN or infinite; names the groups of the micro-batch.
        DataError: the loss cannot use what the rows carry; names them likewise.
    """
    spec, hp = inputs.spec, inputs.hyperparameters
    batches = [
        batch.to(inputs.policy.device)
        for batch in pack(groups, inputs.tokens_per_microbatch, padded=not inputs.policy.packed)
    ]
    counts = step_counts(spec, groups)
    schedule = {"progress": torch.tensor(progress)}
    stats: dict[str, Tensor] | None = None

    def coupled(view: View) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed((seed[0] * 1_000_003 + seed[1]) % 2**63)
        return coupled_stats(spec, view.with_stats(schedule), hp, state=inputs.state, generator=generator)

    if spec.coupled is not None and len(batches) > 1:
        with torch.no_grad():
            whole = View.concat([without_distributions(forward_view(inputs, batch)) for batch in batches])
        stats = coupled(whole)

    done = 0
    totals: dict[str, float] = defaultdict(float)
    items: dict[str, list[Tensor]] = defaultdict(list)
    for batch in batches:
        alpha = hp[spec.noise] if spec.noise else 0.0
        with embedding_noise(inputs.policy.model, batch, alpha, seed) if alpha else nullcontext():
            view = forward_view(inputs, batch)
        if spec.coupled is not None and stats is None:
            # A step of one micro-batch is its own whole: a first pass would repeat the same forward.
            stats = coupled(view)
        view = view.with_stats(schedule | items_of(stats or {}, done, view.items))
        done += view.items
        keys = ", ".join(group.key for group in batch.groups)
        try:
            terms = evaluate_loss(spec, view, hp)
        except DataError as error:
            raise DataError(f"{spec.key}: {error}; among rows {keys}") from None
        loss, parts = reduce_terms(terms, view, spec.reduce, counts)
        if not bool(torch.isfinite(loss)):
            named = {name: float(part) for name, part in parts.items()} or {"loss": float(loss)}
            raise NumericalError(
                f"{spec.key}: the loss is not finite ({named}) on rows {keys}; nothing was updated in this "
                "step (a lower optim.learning_rate is the usual remedy)"
            )
        loss.backward()
        totals["loss"] += float(loss.detach())
        for name, part in parts.items():
            totals[f"loss/{name}"] += float(part.detach())
        for name, values in diagnostics(view, costs=spec.costs).items():
            items[name].append(values.detach())
    if inputs.state:
        inputs.state = next_state(inputs.state, stats or {})
    joined = {name: torch.cat(values).double() for name, values in items.items() if sum(map(len, values))}
    return {**totals, **{n: float(v.max() if n.endswith("/max") else v.mean()) for n, v in joined.items()}}


def make_optimizer(model: torch.nn.Module, cfg: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW over the trainable parameters; weight decay on matrices only."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": cfg.weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=cfg.learning_rate, betas=cfg.betas, eps=cfg.eps, fused=True
    )


def learning_rate(cfg: OptimConfig, step: int, total: int) -> float:
    """The rate of optimizer step ``step`` (from 0): linear warm-up, then constant, linear or cosine.

    A pure function of the step, so a resumed run needs no scheduler state.  The first step's rate is
    peak / warm-up steps rather than zero, and the decay reaches zero one step after the last.
    """
    warmup = math.ceil(cfg.warmup_ratio * total)
    if step < warmup:
        return cfg.learning_rate * (step + 1) / warmup
    if cfg.lr_scheduler_type == "constant":
        return cfg.learning_rate
    progress = (step - warmup) / max(1, total - warmup)
    if cfg.lr_scheduler_type == "linear":
        return cfg.learning_rate * (1 - progress)
    return cfg.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def update(policy: Policy, optimizer: torch.optim.AdamW, cfg: OptimConfig, rate: float) -> float:
    """Clip, check and apply the accumulated gradient; returns its global norm before clipping.

    Raises:
        NumericalError: the gradient is NaN or infinite; nothing has been updated.
    """
    trainable = [p for p in policy.model.parameters() if p.requires_grad]
    limit = math.inf if cfg.max_grad_norm is None else cfg.max_grad_norm
    norm = float(torch.nn.utils.clip_grad_norm_(trainable, limit))
    if not math.isfinite(norm):
        raise NumericalError(
            f"the gradient's norm is {norm}; nothing was updated in this step (a lower "
            "optim.learning_rate is the usual remedy)"
        )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
