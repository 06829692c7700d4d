"""Heads of reward models: one score per completion, and one score or two label logits per token.

A head is transformers' own (``AutoModelForSequenceClassification``, ``AutoModelForTokenClassification``), so a saved
reward model is an ordinary Hugging Face directory.  What its outputs mean is told by :class:`RewardFacts`, a small
file beside the weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from steelyard.data.packing import PackedBatch, pack
from steelyard.errors import ModelError, NumericalError, unknown
from steelyard.models.attention import base_of, hidden_states, standard_attention
from steelyard.models.logprobs import completion_scores, token_logprobs
from steelyard.types import Group

if TYPE_CHECKING:
    from steelyard.models.load import Policy

Head = Literal["lm", "score", "token_score", "token_labels"]
"""What a model puts out: token log-probabilities; one score per completion; one score, or two label logits (wrong,
right), per token."""


@dataclass(frozen=True)
class HeadKind:
    """How transformers and peft know a head.

    Attributes:
        auto: the auto class that loads it.
        labels: its number of outputs; 0 for a language model.
        task: peft's task type.
        config: what a fresh head sets in the model's config.
    """

    auto: Any
    labels: int = 0
    task: str = "CAUSAL_LM"
    config: tuple[tuple[str, Any], ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """Settings of the config of a model with this head."""
        return ({"num_labels": self.labels} if self.labels else {}) | dict(self.config)


HEADS: dict[str, HeadKind] = {
    "lm": HeadKind(AutoModelForCausalLM),
    "score": HeadKind(AutoModelForSequenceClassification, 1, "SEQ_CLS"),
    "token_score": HeadKind(AutoModelForTokenClassification, 1, "TOKEN_CLS"),
    "token_labels": HeadKind(
        AutoModelForTokenClassification,
        2,
        "TOKEN_CLS",
        (("id2label", {0: "wrong", 1: "right"}), ("label2id", {"wrong": 0, "right": 1})),
    ),
}
"""Every head by name."""

MODULES = ("score", "classifier")
"""What transformers calls the linear layer of a classification model."""


def saved_head(directory: Path | str) -> Head:
    """The head that a model directory was saved with, read from its config; ``lm`` where nothing else is said."""
    file = Path(directory) / "config.json"
    if not file.is_file():
        return "lm"
    config = json.loads(file.read_text(encoding="utf-8"))
    name = (config.get("architectures") or [""])[0]
    if name.endswith("ForSequenceClassification"):
        return "score"
    if name.endswith("ForTokenClassification"):
        # num_labels is stored as the label names; transformers' default is two, and does not store them
        return "token_score" if len(config.get("id2label") or {}) == 1 else "token_labels"
    return "lm"


def head_module(base: PreTrainedModel) -> nn.Module:
    """The linear layer from hidden states to the head's outputs."""
    module = next((getattr(base, name) for name in MODULES if hasattr(base, name)), None)
    if module is None:
        raise ModelError(f"{type(base).__name__} has no reward head; load it with head='score' or a token head")
    return module


def attach_lm_head(model: PreTrainedModel, lm: PreTrainedModel | None) -> None:
    """Give a model with a token head the LM head of ``lm`` as well, so that it has token log-probabilities.

    With tied embeddings (``lm`` is None) the head *is* the embedding: nothing is added to the parameters or to the
    saved weights.  Otherwise ``lm_head`` becomes a part of the model, trained and saved; transformers ignores it
    when it loads the classification model.
    """
    if lm is not None:
        model.lm_head = lm.get_output_embeddings()
        return
    embedding: Any = model.get_input_embeddings()
    tied = nn.Linear(*reversed(embedding.weight.shape), bias=False, device="meta")
    tied.weight = embedding.weight
    # Past nn.Module's registration: a parameter under two names would be saved, hashed and updated twice.
    object.__setattr__(model, "lm_head", tied)


def has_lm_head(model: nn.Module) -> bool:
    """Whether a model has token log-probabilities."""
    return base_of(model).get_output_embeddings() is not None


def prepare_saving(model: nn.Module, tokenizer: Any) -> None:
    """Make plain transformers read a score head where it was trained: at the last token.

    It takes the last token that is not padding.  Where padding and end token are one, that would be the token before
    the end; without a padding id it takes the very last, and refuses batches instead of scoring them wrongly.
    """
    config = base_of(model).config.get_text_config()
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        config.pad_token_id = None
    else:
        config.pad_token_id = tokenizer.pad_token_id


def check_token_head(model: nn.Module) -> None:
    """Raise :class:`ModelError` if a token head's outputs are not its linear layer on the hidden states."""
    base = base_of(model)
    size = base.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr]
    ids = torch.tensor([[3, 5, 7, 4]], device=base.device) % size
    training = base.training
    base.eval()
    with standard_attention(base), torch.no_grad():
        theirs = base(input_ids=ids).logits.float()
        ours = head_module(base)(base.base_model(input_ids=ids).last_hidden_state).float()
    base.train(training)
    if theirs.shape != ours.shape or not torch.allclose(theirs, ours, rtol=1e-2, atol=1e-3):
        raise ModelError(f"{type(base).__name__}: its outputs are no linear head on its hidden states")


# --------------------------------------------------------------------------------------------------
# Outputs


def token_rows(batch: PackedBatch) -> Tensor:
    """``int64[n]`` flat row of every scored token itself (``batch.predict`` is the row that predicts it)."""
    rows = []
    completions = [c for group in batch.groups for c in zip(group.completions, group.masks, strict=True)]
    for last, (ids, mask) in zip(batch.last.tolist(), completions, strict=True):
        rows.append(last - len(ids) + 1 + np.flatnonzero(mask))
    flat = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    return torch.from_numpy(flat).to(batch.predict.device)


def token_scores(model: nn.Module, batch: PackedBatch) -> Tensor:
    """Outputs ``[n, c]`` of a token head at the scored tokens, in flat order; float32 at least.

    A token's output is read at the token itself: the head has seen it.  The classifier dropout of transformers'
    class is not applied.
    """
    rows = hidden_states(model, batch).index_select(0, token_rows(batch))
    scores = head_module(base_of(model))(rows)
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


# --------------------------------------------------------------------------------------------------
# What a reward model is


@dataclass(frozen=True)
class RewardFacts:
    """What the outputs of a saved reward model mean; ``reward_model.json`` beside its weights.

    Attributes:
        algorithm: the key that trained it, or "" when that is not known.
        head: what the model puts out.
        cost: its output is a cost, so that less is better; scores are the negative cost.
        probability: how a score becomes the probability of being right: it is one (``identity``, outcome models
            trained by squared error), by ``sigmoid`` (cross-entropy, and differences of Bradley-Terry scores).
        beta: of an implicit reward beta * (log pi - log ref), which needs a reference; else None.
        reference: where that reference was (``model.name_or_path``), or None when it was a stage of the run.
    """

    algorithm: str = ""
    head: Head = "score"
    cost: bool = False
    probability: Literal["identity", "sigmoid"] = "sigmoid"
    beta: float | None = None
    reference: str | None = None

    @property
    def process(self) -> bool:
        """Steps are judged, not completions."""
        return self.head == "token_labels"

    @property
    def outcome(self) -> bool:
        """Single completions are judged right or wrong (the scores of other heads only order completions)."""
        return self.head == "token_score" or self.beta is not None


FACTS = "reward_model.json"


class _Spec(Protocol):
    """What is asked of an algorithm (:class:`steelyard.algorithms.core.AlgorithmSpec`)."""

    @property
    def key(self) -> str: ...

    @property
    def head(self) -> Head: ...

    @property
    def costs(self) -> bool: ...


IMPLICIT = ("implicit_prm",)
"""Algorithms whose reward model is a language model and its reference."""


def facts_of(spec: _Spec, hyperparameters: dict[str, Any], reference: str | None = None) -> RewardFacts | None:
    """The facts of what an algorithm trains; None when that is no reward model."""
    if spec.key in IMPLICIT:
        return RewardFacts(spec.key, "lm", beta=float(hyperparameters["beta"]), reference=reference)
    if spec.head == "lm":
        return None
    squared = spec.head == "token_score" and hyperparameters.get("form", "mse") == "mse"
    return RewardFacts(
        algorithm=spec.key,
        head=spec.head,
        cost=spec.costs,
        probability="identity" if squared else "sigmoid",
    )


def keeps_lm_head(head: str, hyperparameters: dict[str, Any]) -> bool:
    """Whether training a token head also needs token log-probabilities: its language-model term has a weight."""
    return head in ("token_score", "token_labels") and bool(hyperparameters.get("lm_weight"))


def save_facts(facts: RewardFacts, directory: Path) -> None:
    """Write ``reward_model.json`` into a saved model."""
    (directory / FACTS).write_text(json.dumps({"schema": 1, **asdict(facts)}, indent=2) + "\n", encoding="utf-8")


def load_facts(directory: Path | str) -> RewardFacts:
    """The facts of a saved model; of one that others made only the head is known.

    Raises:
        ModelError: the file is damaged, or the directory holds a language model without it.
    """
    file = Path(directory) / FACTS
    if not file.is_file():
        head = saved_head(directory)
        if head == "lm":
            raise ModelError(
                f"{directory}: a language model, not a reward model (no {FACTS}; its config names no "
                "classification head)"
            )
        return RewardFacts(head=head)
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        plain.pop("schema", None)
        facts = RewardFacts(**plain)
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{file}: not the facts of a reward model ({error})") from error
    if facts.head not in HEADS:
        raise ModelError(unknown("head", str(facts.head), HEADS, where=str(file)))
    return facts


# --------------------------------------------------------------------------------------------------
# Values of completions


def completion_values(
    policy: Policy, facts: RewardFacts, groups: Sequence[Group], *, reference: Policy | None = None, budget: int = 16384
) -> list[list[np.ndarray]]:
    """What a reward model says of every completion, per group: ``float64`` arrays in the order of the completions.

    One value for a score head; one per scored token otherwise: the score (outcome), the probability that what has been
    written is right (process), or beta * log-ratio (implicit).

    Args:
        reference: of an implicit reward.
        budget: positions of one forward pass (more only where a single group is larger).

    Raises:
        ModelError: an implicit reward without its reference.
        NumericalError: an output is not finite.
    """
    if facts.beta is not None and reference is None:
        raise ModelError(f"'{facts.algorithm}' is a language model whose reward is relative to its reference: give it")
    largest = max((g.k * (len(g.prompt) + max(map(len, g.completions))) for g in groups), default=0)
    values: list[list[np.ndarray]] = []
    with policy.measuring() as model:
        for batch in pack(groups, max(budget, largest), padded=not policy.packed):
            moved = batch.to(policy.device)
            if facts.head == "score":
                flat = iter(completion_scores(model, moved).double().cpu().split(1))
            else:
                flat = iter(moved.split(_token_values(model, facts, moved, reference).double().cpu()))
            values += [[next(flat).numpy() for _ in range(group.k)] for group in batch.groups]
    for group, rows in zip(groups, values, strict=True):
        if not all(np.isfinite(row).all() for row in rows):
            raise NumericalError(f"reward model: group {group.key} has a score that is not finite")
    return values


def _token_values(model: nn.Module, facts: RewardFacts, batch: PackedBatch, reference: Policy | None) -> Tensor:
    if facts.beta is not None:
        assert reference is not None
        logp = token_logprobs(model, batch).logp
        with reference.measuring() as other:
            return facts.beta * (logp - token_logprobs(other, batch).logp)
    scores = token_scores(model, batch)
    return scores.softmax(-1)[:, 1] if facts.process else scores[:, 0]
