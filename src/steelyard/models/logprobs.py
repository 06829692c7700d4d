"""Log-probabilities of scored tokens: the only place where logits exist.

The backbone runs over all positions; the output head is applied to the rows that predict a scored token only,
a chunk of rows at a time.  With gradients, all chunks but the last are computed again in the backward pass,
so that never more than one chunk of logits ``[chunk, vocabulary]`` is held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from steelyard.data.packing import PackedBatch
from steelyard.errors import ModelError
from steelyard.models.attention import base_of, hidden_states, standard_attention

EXTRAS = frozenset({"entropy", "log_sum_p2"})
"""What :func:`token_logprobs` can compute beside the log-probabilities."""


@dataclass(frozen=True, eq=False)
class TokenOutputs:
    """Per scored token, in the flat order of :class:`steelyard.data.packing.PackedBatch`.

    Attributes:
        logp: ``[n]`` log-probability of the token; float32, or float64 if the model is.
        entropy: ``[n]`` entropy of the distribution that it was drawn from, in nats, or None.
        log_sum_p2: ``[n]`` log of the sum of squared probabilities (the log of the expected probability), or
            None.
    """

    logp: Tensor
    entropy: Tensor | None = None
    log_sum_p2: Tensor | None = None


def token_logprobs(
    model: nn.Module,
    batch: PackedBatch,
    *,
    temperature: float = 1.0,
    extras: frozenset[str] = frozenset(),
    chunk: int = 4096,
) -> TokenOutputs:
    """Log-probabilities of the scored tokens of ``batch`` under ``model``; gradients flow.

    Args:
        model: a causal language model of transformers, or a peft wrapper around one.
        batch: on the model's device.
        temperature: logits are divided by it, after the model's own scaling and soft cap.
        extras: subset of :data:`EXTRAS`.
        chunk: rows of logits held at a time.

    Raises:
        ModelError: the model has no output head, or an unknown extra is asked for.
    """
    if extras - EXTRAS:
        raise ModelError(f"unknown extras {sorted(extras - EXTRAS)}; choices: {sorted(EXTRAS)}")
    hidden = hidden_states(model, batch).index_select(0, batch.predict)
    head = output_head(base_of(model))
    names = ("logp", *sorted(extras))

    def score(rows: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        return _scores(head(rows), targets, temperature, names)

    pieces = []
    starts = range(0, max(len(batch.targets), 1), chunk)
    for start in starts:
        rows, targets = hidden[start : start + chunk], batch.targets[start : start + chunk]
        if torch.is_grad_enabled() and start != starts[-1]:
            pieces.append(checkpoint(score, rows, targets, use_reentrant=False, preserve_rng_state=False))
        else:
            pieces.append(score(rows, targets))
    return TokenOutputs(
        **{name: torch.cat(parts) for name, parts in zip(names, zip(*pieces, strict=True), strict=True)}
    )


def output_head(base: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """The map from hidden states ``[n, d]`` to logits ``[n, v]``, with the scaling and soft cap of the
    model's family.

    Families: plain linear heads, ``logit_scale`` (Cohere), ``logits_scaling`` (Granite),
        ``final_logit_softcapping``
    (Gemma).  Whether a model's head is one of these is checked when it is loaded (:func:`check_head`).
    """
    linear = base.get_output_embeddings()
    if linear is None:
        raise ModelError(f"{type(base).__name__} has no output head, so it has no token log-probabilities")
    config = base.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None)

    def head(hidden: Tensor) -> Tensor:
        logits = linear(hidden)
        if scale != 1.0:
            logits = logits * scale
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return head


def _scores(logits: Tensor, targets: Tensor, temperature: float, names: tuple[str, ...]) -> tuple[Tensor, ...]:
    """``[n, v]`` logits -> the named values ``[n]``, in float32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1.0:
        logits = logits / temperature
    logps = logits.log_softmax(-1)
    values = {"logp": logps.gather(-1, targets[:, None])[:, 0]}
    if "entropy" in names:
        values["entropy"] = -(logps.exp() * logps).sum(-1)
    if "log_sum_p2" in names:
        values["log_sum_p2"] = (2 * logps).logsumexp(-1)
    return tuple(values[name] for name in names)


def completion_scores(model: nn.Module, batch: PackedBatch) -> Tensor:
    """Scalar score of each completion ``[K]``: a reward head's output at its last token, float32 at least.

    Args:
        model: ``AutoModelForSequenceClassification`` with ``num_labels=1``, or a peft wrapper around one.
    """
    base = base_of(model)
    head = getattr(base, "score", None)
    if head is None:
        raise ModelError(f"{type(base).__name__} has no `score` head; load it with head='score'")
    scores = head(hidden_states(model, batch).index_select(0, batch.last))
    if scores.shape[-1] != 1:
        raise ModelError(f"{type(base).__name__} scores {scores.shape[-1]} labels; a reward model has one")
    return scores[:, 0].to(torch.promote_types(scores.dtype, torch.float32))


def check_head(model: nn.Module) -> None:
    """Raise :class:`ModelError` if the model's logits are not :func:`output_head` of its hidden states."""
    base = base_of(model)
    size = base.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr]
    ids = torch.tensor([[3, 5, 7, 4]], device=base.device) % size
    with standard_attention(base), torch.no_grad():
        theirs = base(input_ids=ids, use_cache=False).logits.float()
        hidden = base.base_model(input_ids=ids, use_cache=False).last_hidden_state
        ours = output_head(base)(hidden).float()
    if theirs.shape != ours.shape or not torch.allclose(theirs, ours, rtol=1e-2, atol=1e-2 * float(theirs.std())):
        raise ModelError(
            f"{type(base).__name__}: its logits are no linear head with known scaling on its hidden "
            "states, so its log-probabilities would be wrong"
        )
