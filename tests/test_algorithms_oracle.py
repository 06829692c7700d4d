"""TRL as a live oracle: its own trainers' losses and gradients, through a tiny model, on ragged batches.

The trainers run their real code path in float32 log-probabilities; ours start from the same model's logits in
float64.  Where TRL's default is another loss than the paper's, the setting that makes it the paper's is set
here, with a comment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, LlamaConfig

from conftest import VOCABULARY, build_model, build_tokenizer
from steelyard.algorithms import load
from steelyard.algorithms.advantages import group_norm
from steelyard.algorithms.core import algorithms, loss, reduce_term, reduce_terms, view_counts
from steelyard.types import Pairs, Rollouts, Scores, Tokens, Unpaired

trl = pytest.importorskip("trl", minversion="1.16")
datasets = pytest.importorskip("datasets")
cpo = pytest.importorskip("trl.experimental.cpo")
orpo = pytest.importorskip("trl.experimental.orpo")
pytestmark = pytest.mark.filterwarnings("ignore")

load()
datasets.disable_progress_bars()

# --------------------------------------------------------------------------------------------------
# Batches and comparison


@dataclass(frozen=True)
class Batch:
    """Right-padded rows ``[b, w]``: a prompt and a completion in which some tokens are not trained."""

    ids: Tensor
    attention: Tensor
    completion: Tensor
    """1 on completion tokens."""
    trained: Tensor
    """1 on the completion tokens that are trained."""

    @property
    def labels(self) -> Tensor:
        """Hugging Face labels: -100 where nothing is trained."""
        return self.ids.masked_fill(self.trained == 0, -100)

    def rows(self, index: Any) -> Batch:
        """Some of the rows."""
        return Batch(*(value[index] for value in vars(self).values()))


def ragged(seed: int, rows: int, *, prompt: int = 6, completion: int = 9, holes: bool = True) -> Batch:
    """Random rows; equal ``seed`` and ``prompt=1`` give equal one-token prompts."""
    generator = torch.Generator().manual_seed(seed)

    def lengths(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (rows, 1), generator=generator)

    start, count = lengths(1, prompt), lengths(2, completion)
    place = torch.arange(int((start + count).max()))
    attention = place < start + count
    ids = torch.randint(3, VOCABULARY, attention.shape, generator=generator) * attention
    inside = attention & (place >= start)
    trained = inside & ((torch.rand(attention.shape, generator=generator) < 0.8) | (not holes))
    trained |= place == start + count - 1  # at least one
    return Batch(ids, attention.long(), inside.long(), trained.long())


def token_logps(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probabilities ``[b, w-1]`` of the tokens after the first, from the logits, and their mask."""
    logits = model(input_ids=batch.ids, attention_mask=batch.attention).logits[:, :-1].double()
    logp = logits.log_softmax(-1).gather(-1, batch.ids[:, 1:, None]).squeeze(-1)
    return logp, batch.trained[:, 1:].bool()


def agree(theirs: Tensor, ours: Any, model: nn.Module, *, rtol: float = 2e-5) -> None:
    """Equal values, and equal gradients by every parameter (relative to the gradient's norm)."""
    assert float(ours) == pytest.approx(float(theirs), rel=rtol, abs=1e-6)
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = [
        torch.cat([g.double().flatten() for g in torch.autograd.grad(value, parameters)]) for value in (theirs, ours)
    ]
    assert float(found[0].norm()) > 1e-6
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 10 * rtol


def pairs(model: nn.Module, reference: nn.Module | None, chosen: Batch, rejected: Batch) -> Pairs:
    """The view of preference pairs."""
    values: dict[str, Any] = {}
    for side, batch in (("chosen", chosen), ("rejected", rejected)):
        values[f"policy_{side}"], values[f"mask_{side}"] = token_logps(model, batch)
        if reference is not None:
            with torch.no_grad():
                values[f"ref_{side}"] = token_logps(reference, batch)[0]
    return Pairs.from_logps(**values)


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    return build_model("llama", seed=1)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Instantiate a trainer: plain CPU settings, a one-row dataset, our word-level tokenizer."""
    directory: Path = tmp_path_factory.mktemp("trl")

    def build(trainer: Any, config: Any, row: dict[str, Any], *, model: Any = None, **options: Any) -> Any:
        extra = {key: options.pop(key) for key in ("ref_model", "reward_funcs") if key in options}
        plain = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none"}
        with torch.random.fork_rng(devices=[]):
            return trainer(
                model=build_model("llama") if model is None else model,
                args=config(output_dir=str(directory), **plain, **options),
                processing_class=build_tokenizer(),
                train_dataset=datasets.Dataset.from_list([row] * 4),
                **extra,
            )

    return build


PAIR = {"prompt": "w1 w2", "chosen": "w3", "rejected": "w4"}

# --------------------------------------------------------------------------------------------------
# Preference losses with a reference


@pytest.fixture(scope="module")
def dpo_trainer(make: Any, reference: nn.Module) -> Any:
    return make(trl.DPOTrainer, trl.DPOConfig, PAIR, ref_model=reference)


def both_sides(chosen: Batch, rejected: Batch) -> dict[str, Tensor]:
    """TRL's inputs: the chosen half, then the rejected half, padded to one width."""
    width = max(chosen.ids.shape[1], rejected.ids.shape[1])

    def stack(name: str) -> Tensor:
        values = [getattr(batch, name) for batch in (chosen, rejected)]
        return torch.cat([nn.functional.pad(v, (0, width - v.shape[1])) for v in values])

    return {
        "input_ids": stack("ids"),
        "attention_mask": stack("attention"),
        "completion_mask": stack("trained"),
    }


def against_dpo(trainer: Any, loss_type: str, name: str, beta: float, seed: int) -> None:
    chosen, rejected = ragged(seed, 5), ragged(seed + 1, 5, completion=12)
    trainer.loss_types, trainer.loss_weights, trainer.beta = [loss_type], [1.0], beta
    theirs = trainer.compute_loss(trainer.model, both_sides(chosen, rejected))
    view = pairs(trainer.model, trainer.ref_model, chosen, rejected)
    agree(theirs, loss(name, view, beta=beta, reduce=True), trainer.model)


DPO_LIKE = [("sigmoid", "dpo"), ("ipo", "ipo"), ("sigmoid_norm", "dpo_norm")]


@pytest.mark.parametrize("beta", [0.05, 0.5, 5.0])
@pytest.mark.parametrize(("loss_type", "name"), DPO_LIKE)
def test_dpo_trainer(dpo_trainer: Any, loss_type: str, name: str, beta: float) -> None:
    against_dpo(dpo_trainer, loss_type, name, beta, seed=7)


def test_dpo_trainers_sft_term_is_sft_on_the_chosen(dpo_trainer: Any) -> None:
    chosen, rejected = ragged(3, 4), ragged(4, 4)
    dpo_trainer.loss_types, dpo_trainer.loss_weights = ["sft"], [1.0]
    theirs = dpo_trainer.compute_loss(dpo_trainer.model, both_sides(chosen, rejected))
    view = Tokens.from_logps(*token_logps(dpo_trainer.model, chosen))
    agree(theirs, loss("sft", view, reduce=True), dpo_trainer.model)


# --------------------------------------------------------------------------------------------------
# Without a reference


def cpo_batch(chosen: Batch, rejected: Batch) -> dict[str, Tensor]:
    """The inputs of TRL's older trainers."""
    return {
        f"{side}_{key}": value
        for side, batch in (("chosen", chosen), ("rejected", rejected))
        for key, value in (
            ("input_ids", batch.ids),
            ("attention_mask", batch.attention),
            ("labels", batch.labels),
        )
    }


@pytest.fixture(scope="module")
def simpo_trainer(make: Any) -> Any:
    # cpo_alpha = 0: TRL's default adds CPO's NLL term.
    return make(cpo.CPOTrainer, cpo.CPOConfig, PAIR, loss_type="simpo", cpo_alpha=0.0, max_length=64)


def against_simpo(trainer: Any, beta: float, gamma: float, seed: int) -> None:
    chosen, rejected = ragged(seed, 5), ragged(seed + 1, 5)
    trainer.beta, trainer.simpo_gamma = beta, gamma
    theirs = trainer.compute_loss(trainer.model, cpo_batch(chosen, rejected))
    view = pairs(trainer.model, None, chosen, rejected)
    agree(theirs, loss("simpo", view, beta=beta, gamma=gamma, reduce=True), trainer.model)


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 1.0), (2.5, 1.375), (10.0, 0.0), (0.1, 0.5)])
def test_cpo_trainer_with_simpo(simpo_trainer: Any, beta: float, gamma: float) -> None:
    against_simpo(simpo_trainer, beta, gamma, seed=11)


@pytest.fixture(scope="module")
def orpo_trainer(make: Any) -> Any:
    return make(orpo.ORPOTrainer, orpo.ORPOConfig, PAIR, max_length=64)


def against_orpo(trainer: Any, lam: float, seed: int) -> None:
    # TRL's NLL covers the prompt: with one-token prompts (and no untrained tokens) there is none to cover.
    chosen = ragged(seed, 5, prompt=1, holes=False)
    rejected = ragged(seed + 1, 5, prompt=1, holes=False)
    trainer.beta = lam
    theirs = trainer.compute_loss(trainer.model, cpo_batch(chosen, rejected))
    view = pairs(trainer.model, None, chosen, rejected)
    agree(theirs, loss("orpo", view, lam=lam, reduce=True), trainer.model)


@pytest.mark.parametrize("lam", [0.1, 1.0])
def test_orpo_trainer(orpo_trainer: Any, lam: float) -> None:
    against_orpo(orpo_trainer, lam, seed=13)


def test_orpo_trainers_odds_ratio_with_long_prompts(orpo_trainer: Any) -> None:
    chosen, rejected = ragged(17, 5), ragged(18, 5)
    orpo_trainer.beta = 0.1
    logps = orpo_trainer.concatenated_forward(orpo_trainer.model, cpo_batch(chosen, rejected))[:2]
    theirs = -orpo_trainer.odds_ratio_loss(*logps)[0].mean()  # to be subtracted
    view = pairs(orpo_trainer.model, None, chosen, rejected)
    terms = loss("orpo", view, lam=0.1)
    assert isinstance(terms, dict)
    ours = reduce_term(terms["odds_ratio"], view, "token-mean", view_counts(view))
    agree(theirs, ours, orpo_trainer.model, rtol=5e-5)  # TRL rounds the averages to float32


# --------------------------------------------------------------------------------------------------
# Unpaired


@pytest.fixture(scope="module")
def kto_trainer(make: Any, reference: nn.Module) -> Any:
    row = {"prompt": "w1 w2", "completion": "w3", "label": True}
    return make(trl.KTOTrainer, trl.KTOConfig, row, ref_model=reference, per_device_train_batch_size=2)


def against_kto(trainer: Any, *, z0: bool, seed: int, **hp: float) -> None:
    model, frozen = trainer.model, trainer.ref_model
    batch, label = ragged(seed, 6), torch.tensor([True, False, False, True, True, False])
    many = ragged(seed + 1, 24)  # of these, the mismatched rows with the highest (lowest) log-ratios
    with torch.no_grad():
        (now, mask), (ref, _) = token_logps(model, many), token_logps(frozen, many)
        order = ((now - ref) * mask).sum(-1).argsort(descending=z0)
    other = many.rows(order[:6])
    trainer.beta = hp["beta"]
    trainer.desirable_weight, trainer.undesirable_weight = hp["desirable_weight"], hp["undesirable_weight"]
    inputs = {
        "input_ids": batch.ids,
        "attention_mask": batch.attention,
        "completion_mask": batch.trained,
        "KL_input_ids": other.ids,
        "KL_attention_mask": other.attention,
        "KL_completion_mask": other.trained,
        "label": label,
    }
    theirs = trainer.compute_loss(model, inputs)
    logp, mask = token_logps(model, batch)
    mismatched, mismatched_mask = token_logps(model, other)
    with torch.no_grad():
        ref, mismatched_ref = token_logps(frozen, batch)[0], token_logps(frozen, other)[0]
    view = Unpaired.from_logps(
        logp,
        label,
        ref,
        mask=mask,
        mismatched=mismatched,
        mismatched_ref=mismatched_ref,
        mismatched_mask=mismatched_mask,
    )
    found = algorithms.get("kto").coupled(view)["z0"]  # type: ignore[misc]
    assert (float(found) > 0) == z0 and float(found) == pytest.approx(trainer._metrics["eval"]["kl"][-1], rel=1e-5)
    agree(theirs, loss("kto", view, reduce=True, **hp), model)


@pytest.mark.parametrize("z0", [True, False], ids=["z0-positive", "z0-clamped"])
@pytest.mark.parametrize(("beta", "desirable", "undesirable"), [(0.1, 1.0, 1.0), (0.5, 1.33, 0.5)])
def test_kto_trainer(kto_trainer: Any, beta: float, desirable: float, undesirable: float, z0: bool) -> None:
    weights = {"desirable_weight": desirable, "undesirable_weight": undesirable}
    against_kto(kto_trainer, z0=z0, seed=19, beta=beta, **weights)


# --------------------------------------------------------------------------------------------------
# Supervised and reward models


@pytest.fixture(scope="module")
def sft_trainer(make: Any) -> Any:
    return make(trl.SFTTrainer, trl.SFTConfig, {"prompt": "w1 w2", "completion": "w3"})


@pytest.mark.parametrize("name", ["sft", "rft"])
def test_sft_trainer_with_accumulation(sft_trainer: Any, name: str) -> None:
    model, whole = sft_trainer.model, ragged(23, 7)
    counts = view_counts(Tokens.from_logps(*token_logps(model, whole)))
    theirs, ours = [], []
    for part in (whole.rows(slice(0, 2)), whole.rows(slice(2, 7))):
        inputs = {"input_ids": part.ids, "attention_mask": part.attention, "labels": part.labels}
        theirs.append(sft_trainer.compute_loss(model, inputs, num_items_in_batch=whole.trained.sum()))
        view = Tokens.from_logps(*token_logps(model, part))
        ours.append(reduce_terms(loss(name, view), view, algorithms.get(name).reduce, counts)[0])
    agree(torch.stack(theirs).sum(), torch.stack(ours).sum(), model)


@pytest.mark.parametrize("centering", [0.0, 0.01, 0.5])
def test_reward_trainer(make: Any, centering: float) -> None:
    config: Any = build_model("llama").config
    shape = LlamaConfig(**{**config.to_dict(), "num_labels": 1})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(shape, dtype=torch.float64)
        nn.init.normal_(model.score.weight)
    options = {"center_rewards_coefficient": centering or None, "disable_dropout": True}
    trainer = make(trl.RewardTrainer, trl.RewardConfig, PAIR, model=model, **options)
    chosen, rejected = ragged(29, 5), ragged(30, 5)
    inputs = both_sides(chosen, rejected)
    inputs.pop("completion_mask")
    theirs = trainer.compute_loss(trainer.model, dict(inputs))

    def scores(batch: Batch) -> Tensor:
        hidden = model.model(input_ids=batch.ids, attention_mask=batch.attention).last_hidden_state
        last = batch.attention.sum(-1) - 1
        return model.score(hidden[torch.arange(len(last)), last]).squeeze(-1)

    view = Scores.from_scores(scores(chosen), scores(rejected))
    agree(theirs, loss("rm", view, centering=centering, reduce=True), model)


# --------------------------------------------------------------------------------------------------
# Online


def graded(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
    """Rewards of one group of four; None is a completion that could not be scored."""
    return graded.values[: len(prompts)]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def grpo_trainer(make: Any) -> Any:
    trainer = make(
        trl.GRPOTrainer,
        trl.GRPOConfig,
        {"prompt": "w1 w2"},
        reward_funcs=graded,
        loss_type="grpo",  # TRL's default is DAPO's token mean
        beta=0.0,
        use_bias_correction_kl=False,  # TRL multiplies the KL term by the ratio by default
        num_generations=4,
        per_device_train_batch_size=4,
        max_completion_length=5,
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def against_grpo(trainer: Any, reference: nn.Module, *, beta: float, low: float, high: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = ragged(seed, 6, prompt=1)  # one prompt column, so that completions start at one place
    logp, mask = token_logps(trainer.model, batch)
    with torch.no_grad():
        ref = token_logps(reference, batch)[0]
        # far enough from the policy that both ends of the clip range are reached
        old = logp + 0.5 * torch.randn(logp.shape, generator=generator, dtype=torch.float64)
    advantages = torch.randn(6, generator=generator, dtype=torch.float64)
    trainer.beta, trainer.epsilon_low, trainer.epsilon_high = beta, low, high
    theirs = trainer.compute_loss(
        trainer.model,
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
    agree(theirs, loss("grpo", view, beta=beta, epsilon=low, epsilon_high=high, reduce=True), trainer.model)


@pytest.mark.parametrize("beta", [0.0, 0.04, 1.0])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.2, 0.28)])
def test_grpo_trainer(grpo_trainer: Any, reference: nn.Module, beta: float, low: float, high: float) -> None:
    against_grpo(grpo_trainer, reference, beta=beta, low=low, high=high, seed=31)


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
def test_grpo_trainers_advantages(grpo_trainer: Any, values: list[float | None]) -> None:
    graded.values, grpo_trainer.beta = values, 0.0  # type: ignore[attr-defined]
    theirs = grpo_trainer._generate_and_score_completions([{"prompt": "w1 w2"}] * 4)["advantages"]
    rewards = torch.tensor([math.nan if value is None else value for value in values])
    torch.testing.assert_close(group_norm(rewards[None])[0], theirs, rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------------------------------------
# The same over many random batches


@pytest.mark.parametrize("seed", range(100, 110))
def test_many_random_batches(
    seed: int,
    reference: nn.Module,
    dpo_trainer: Any,
    simpo_trainer: Any,
    orpo_trainer: Any,
    kto_trainer: Any,
    grpo_trainer: Any,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    beta, gamma, low, high = (torch.rand(4, generator=generator) * 0.9 + 0.05).tolist()
    for loss_type, name in DPO_LIKE:
        against_dpo(dpo_trainer, loss_type, name, beta, seed)
    against_simpo(simpo_trainer, 5 * beta, gamma, seed)
    against_orpo(orpo_trainer, gamma, seed)
    for z0 in (True, False):
        weights = {"desirable_weight": 1 + low, "undesirable_weight": high}
        against_kto(kto_trainer, z0=z0, seed=seed, beta=beta, **weights)
    against_grpo(grpo_trainer, reference, beta=beta, low=0.1 + 0.2 * low, high=0.1 + 0.3 * high, seed=seed)
