"""Log-probabilities of scored tokens: the only place where logits exist.

The backbone runs over all positions; the output head is applied to the rows that predict a scored token only,
a chunk of rows at a time.  With gradients, all chunks but the last are computed again in the backward pass,
so that never more than one chunk of logits ``[chunk, vocabulary]`` is held.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from steelyard.data.packing import PackedBatch
from steelyard.errors import ModelError
from steelyard.models.attention import base_of, hidden_states, standard_attention

EXTRAS = frozenset({"entropy", "log_sum_p2", "ref_kl"})
"""What :func:`token_logprobs` can compute beside the log-probabilities."""


class Measured(Protocol):
    """A frozen model beside the policy: a reference or a teacher (:class:`steelyard.models.load.Policy`)."""

    def measuring(self) -> AbstractContextManager[nn.Module]:
        """The model in eval mode, without gradients."""
        ...


@dataclass(frozen=True, eq=False)
class TokenOutputs:
    """Per scored token, in the flat order of :class:`steelyard.data.packing.PackedBatch`.

    Attributes:
        logp: ``[n]`` log-probability of the token; float32, or float64 if the model is.
        entropy: ``[n]`` entropy of the distribution that it was drawn from, in nats, or None.
        log_sum_p2: ``[n]`` log of the sum of squared probabilities (the log of the expected probability), or
            None.
        ref_kl: ``[n]`` KL(reference || policy) over the whole vocabulary, or None.
    """

    logp: Tensor
    entropy: Tensor | None = None
    log_sum_p2: Tensor | None = None
    ref_kl: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Distributions:
    """Next-token distributions of two models per scored token, in flat order; ``v`` entries of the vocabulary.

    Attributes:
        student, teacher: ``[n, v]`` log-probabilities; renormalised, or with a last entry for the rest, when v is
            a top-k.
        logp, teacher_logp: ``[n]`` log-probability of the token itself.
    """

    student: Tensor
    teacher: Tensor
    logp: Tensor
    teacher_logp: Tensor


def token_logprobs(
    model: nn.Module,
    batch: PackedBatch,
    *,
    temperature: float = 1.0,
    extras: frozenset[str] = frozenset(),
    reference: Measured | None = None,
    chunk: int = 4096,
) -> TokenOutputs:
    """Log-probabilities of the scored tokens of ``batch`` under ``model``; gradients flow.

    Args:
        model: a causal language model of transformers, or a peft wrapper around one.
        batch: on the model's device.
        temperature: logits are divided by it, after the model's own scaling and soft cap.
        extras: subset of :data:`EXTRAS`.
        reference: of ``ref_kl``.
        chunk: rows of logits held at a time.

    Raises:
        ModelError: the model has no output head, or an unknown extra is asked for.
    """
    if extras - EXTRAS:
        raise ModelError(f"unknown extras {sorted(extras - EXTRAS)}; choices: {sorted(EXTRAS)}")
    names = ("logp", *sorted(extras - {"ref_kl"}))
    inputs, theirs = [batch.targets], None
    if "ref_kl" in extras:
        if reference is None:
            raise ModelError("the extra 'ref_kl' needs a reference model")
        hidden, theirs = _beside(reference, batch)
        inputs.append(hidden)

    head = output_head(base_of(model))

    def score(rows: Tensor, targets: Tensor, *their_rows: Tensor) -> tuple[Tensor, ...]:
        logps = _log_softmax(head(rows), temperature)
        found = _values(logps, targets, names)
        if theirs is not None:
            other = _log_softmax(theirs(their_rows[0]), temperature)
            found = (*found, (other.exp() * (other - logps)).sum(-1))
        return found

    values = _chunked(score, hidden_states(model, batch).index_select(0, batch.predict), inputs, chunk)
    found: dict[str, Tensor] = dict(zip((*names, *(["ref_kl"] if theirs else [])), values, strict=True))
    return TokenOutputs(**found)


def token_distributions(
    model: nn.Module,
    teacher: Measured,
    batch: PackedBatch,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    tail: bool = False,
    chunk: int = 4096,
) -> Distributions:
    """Distributions of ``model`` (gradients flow) and ``teacher`` (none do) at the scored tokens of ``batch``.

    Args:
        temperature: both models' logits are divided by it.
        top_k: keep the teacher's k most probable tokens; None keeps the vocabulary.
        tail: with ``top_k``, add one entry for all other tokens together.

    Raises:
        ModelError: the two vocabularies differ in size.
    """
    their_hidden, theirs = _beside(teacher, batch)
    head = output_head(base_of(model))

    def score(rows: Tensor, targets: Tensor, their_rows: Tensor) -> tuple[Tensor, ...]:
        student, other = _log_softmax(head(rows), temperature), _log_softmax(theirs(their_rows), temperature)
        if student.shape != other.shape:
            raise ModelError(
                f"the teacher's vocabulary has {other.shape[-1]} entries, the student's {student.shape[-1]}; "
                "distillation over the vocabulary needs the same tokenizer"
            )
        (logp,), (their_logp,) = _values(student, targets, ("logp",)), _values(other, targets, ("logp",))
        if top_k is not None and top_k < student.shape[-1]:
            other, support = other.topk(top_k, dim=-1)
            student = student.gather(-1, support)
            if tail:
                student, other = _with_rest(student), _with_rest(other)
        return student, other, logp, their_logp

    hidden = hidden_states(model, batch).index_select(0, batch.predict)
    return Distributions(*_chunked(score, hidden, [batch.targets, their_hidden], chunk))


def _with_rest(logps: Tensor) -> Tensor:
    """``[n, k]`` log-probabilities and the logarithm of what is left to one: ``[n, k + 1]``."""
    rest = (-torch.expm1(logps.logsumexp(-1, keepdim=True))).clamp(min=1e-12).log()
    return torch.cat([logps, rest], -1)


def _beside(other: Measured, batch: PackedBatch) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Hidden states of a frozen model at the rows that predict scored tokens, and its output head."""
    with other.measuring() as model:
        hidden = hidden_states(model, batch).index_select(0, batch.predict)

    def head(rows: Tensor) -> Tensor:
        with other.measuring() as model:  # an adapter may be disabled only inside
            return output_head(base_of(model))(rows)

    return hidden, head


def _chunked(
    score: Callable[..., tuple[Tensor, ...]], hidden: Tensor, inputs: list[Tensor], chunk: int
) -> tuple[Tensor, ...]:
    """``score(hidden, *inputs)`` a chunk of rows at a time; all but the last are computed again backward."""
    pieces = []
    starts = range(0, max(len(hidden), 1), chunk)
    for start in starts:
        rows, *others = (values[start : start + chunk] for values in (hidden, *inputs))
        if torch.is_grad_enabled() and start != starts[-1]:
            pieces.append(checkpoint(score, rows, *others, use_reentrant=False, preserve_rng_state=False))
        else:
            pieces.append(score(rows, *others))
    return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))


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


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """``[n, v]`` logits -> log-probabilities, in float32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1.0:
        logits = logits / temperature
    return logits.log_softmax(-1)


def _values(logps: Tensor, targets: Tensor, names: tuple[str, ...]) -> tuple[Tensor, ...]:
    """``[n, v]`` log-probabilities -> the named values ``[n]``."""
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
