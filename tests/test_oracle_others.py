"""Live oracles for unpaired, supervised, distillation, reward-model and listwise losses.

TRL's KTO, SFT and reward trainers and its GKD loss, Liger's KTO and JSD, Hugging Face's token classification and
NEFTune hook, and, where a loss is one, torch's own function.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss, LigerFusedLinearKTOLoss
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, LlamaConfig
from transformers.integrations.neftune import activate_neftune, deactivate_neftune
from trl.experimental.gkd import GKDTrainer
from trl.experimental.iw_opd import IWOPDTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from conftest import make_group
from oracle_tools import (
    Batch,
    Both,
    Oracle,
    cases,
    covers,
    grid,
    joined,
    likely,
    logits_of,
    models,
    pairs,
    policy,
    ragged,
    reference,
    token_logps,
    trainer,
)
from steelyard.algorithms.core import algorithms, coupled_stats, loss, reduce_terms, view_counts
from steelyard.data.packing import pack
from steelyard.models.logprobs import token_logprobs
from steelyard.trainer.forward import embedding_noise
from steelyard.types import Distill, Ranked, Rollouts, Scores, Tokens, TokenScores, Unpaired

pytestmark = pytest.mark.filterwarnings("ignore")

# --------------------------------------------------------------------------------------------------
# Unpaired: TRL's KTO trainer, Liger's KTO, torch's cross-entropy

LABEL = torch.tensor([True, False, False, True, True, False])


@cache
def kto_trainer() -> Any:
    row = {"prompt": "w1 w2", "completion": "w3", "label": True}
    return trainer(KTOTrainer, KTOConfig, row, ref_model=reference(), per_device_train_batch_size=2)


def mismatched_rows(model: Any, frozen: Any, seed: int, *, positive: bool) -> Batch:
    """Six mismatched rows whose mean log-ratio is above zero (``positive``) or below it."""
    many = ragged(seed, 24)
    with torch.no_grad():
        (now, mask), (ref, _) = token_logps(model, many), token_logps(frozen, many)
    order = ((now - ref) * mask).sum(-1).argsort(descending=positive)
    return many.rows(order[:6])


def unpaired(model: Any, frozen: Any, batch: Batch, label: Tensor, other: Batch | None = None) -> Unpaired:
    """The view of labelled completions."""
    logp, mask = token_logps(model, batch)
    with torch.no_grad():
        ref = token_logps(frozen, batch)[0]
        extra: dict[str, Any] = {}
        if other is not None:
            extra["mismatched"], extra["mismatched_mask"] = token_logps(model, other)
            extra["mismatched_ref"] = token_logps(frozen, other)[0]
    return Unpaired.from_logps(logp, label, ref, mask=mask, **extra)


def kto_run(key: str, *, positive: bool, loss_type: str = "kto") -> Any:
    """A run against the whole trainer; the reference point is above zero or clamped to it."""

    def run(given: dict[str, Any], seed: int) -> Both:
        them = kto_trainer()
        batch, other = ragged(seed, 6), mismatched_rows(them.model, them.ref_model, seed + 1, positive=positive)
        them.beta, them.loss_type, them.calculate_KL = given["beta"], loss_type, loss_type == "kto"
        them.desirable_weight = given.get("desirable_weight", 1.0)
        them.undesirable_weight = given.get("undesirable_weight", 1.0)
        inputs = {
            "input_ids": batch.ids,
            "attention_mask": batch.attention,
            "completion_mask": batch.trained,
            "KL_input_ids": other.ids,
            "KL_attention_mask": other.attention,
            "KL_completion_mask": other.trained,
            "label": LABEL,
        }
        theirs = them.compute_loss(them.model, inputs)
        view = unpaired(them.model, them.ref_model, batch, LABEL, other)
        if loss_type == "kto":
            z0 = float(coupled_stats(algorithms.get(key), view, given)["z0"])
            assert (z0 > 0) == positive and z0 == pytest.approx(them._metrics["eval"]["kl"][-1], rel=1e-5)
        return theirs, loss(key, view, reduce=True, **given), them.model

    return run


def _liger_kto(given: dict[str, Any], seed: int) -> Both:
    model, frozen = models()
    batch, other = ragged(seed, 6), mismatched_rows(model, frozen, seed + 1, positive=True)
    view = unpaired(model, frozen, batch, LABEL, other)
    z0 = coupled_stats(algorithms.get("kto"), view, given)["z0"]
    theirs = LigerFusedLinearKTOLoss(compiled=False, use_ref_model=True, **given)(
        hidden(model, batch),
        model.lm_head.weight,
        batch.labels[:, 1:],
        preference_labels=LABEL,
        ref_input=hidden(frozen, batch).detach(),
        ref_weight=frozen.lm_head.weight,
        kl=z0,
    )[0]
    return theirs, loss("kto", view, reduce=True, **given), model


def hidden(model: Any, batch: Batch) -> Tensor:
    """``[b, w-1, h]`` the last hidden states at the positions that predict the tokens after the first."""
    return model.model(input_ids=batch.ids, attention_mask=batch.attention).last_hidden_state[:, :-1]


def _implicit_prm(given: dict[str, Any], seed: int) -> Both:
    model, frozen = models()
    batch = ragged(seed, 6)
    view = unpaired(model, frozen, batch, LABEL)
    reward = given["beta"] * view.completions.logratio
    theirs = F.binary_cross_entropy_with_logits(reward, LABEL.double())
    return theirs, loss("implicit_prm", view, reduce=True, **given), model


# --------------------------------------------------------------------------------------------------
# Supervised: TRL's SFT trainer, Hugging Face's model loss and NEFTune hook


@cache
def sft_trainer(loss_type: str = "nll") -> Any:
    return trainer(SFTTrainer, SFTConfig, {"prompt": "w1 w2", "completion": "w3"}, loss_type=loss_type)


def sft_run(key: str, loss_type: str = "nll", *, whole_text: bool = False) -> Any:
    """A run against the whole trainer, over two micro-batches that share one count of tokens."""

    def run(given: dict[str, Any], seed: int) -> Both:
        them, whole = sft_trainer(loss_type), ragged(seed, 7)
        if whole_text:
            whole = Batch(whole.ids, whole.attention, whole.completion, whole.attention)
        model, spec = them.model, algorithms.get(key)
        counts = view_counts(Tokens.from_logps(*token_logps(model, whole)))
        theirs, ours = [], []
        for part in (whole.rows(slice(0, 2)), whole.rows(slice(2, 7))):
            inputs = {"input_ids": part.ids, "attention_mask": part.attention, "labels": part.labels}
            theirs.append(them.compute_loss(model, inputs, num_items_in_batch=whole.trained[:, 1:].sum()))
            view = Tokens.from_logps(*token_logps(model, part))
            ours.append(reduce_terms(loss(key, view, **given), view, spec.reduce, counts)[0])
        return torch.stack(theirs).sum(), torch.stack(ours).sum(), model

    return run


def _neftune(given: dict[str, Any], seed: int) -> Both:
    """Hugging Face's hook on one row, where its padded length is the real one; both are dealt the same numbers."""
    model, row = policy(), ragged(seed, 1, holes=False)
    start = int((row.completion == 0).sum())
    (batch,) = pack(
        [make_group(row.ids[0, :start].tolist(), row.ids[0, start:].tolist(), key="row")], 10_000, padded=True
    )
    drawn: list[Tensor] = []

    def deal(*shape: Any, **options: Any) -> Tensor:
        drawn.append(rand(*shape, **options))
        return drawn[-1]

    rand = torch.rand
    with patch("torch.rand", deal), embedding_noise(model, batch, given["alpha"], (0, seed)):
        logp = token_logprobs(model, batch).logp[None]
    ours = loss("neftune", Tokens.from_logps(logp, torch.ones_like(logp)), reduce=True, **given)

    def same(noise: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return noise.copy_(low + (high - low) * torch.cat(drawn))

    handle = activate_neftune(model.train(), given["alpha"])
    with patch("torch.Tensor.uniform_", same):
        theirs = model(input_ids=row.ids, labels=row.labels).loss
    deactivate_neftune(model, handle)
    return theirs, ours, model


def _unlikelihood(given: dict[str, Any], seed: int) -> Both:
    """torch's cross-entropy of the chosen tokens, and its binary cross-entropy of the rejected ones as negatives."""
    model, _ = models()
    chosen, rejected = ragged(seed, 5), likely(model, ragged(seed + 1, 5))  # negatives that have a probability
    wanted, unwanted = (side.trained[:, 1:].bool() for side in (chosen, rejected))
    nll = F.cross_entropy(logits_of(model, chosen)[wanted], chosen.ids[:, 1:][wanted])
    p = token_logps(model, rejected)[0][unwanted].exp()
    theirs = nll + given["alpha"] * F.binary_cross_entropy(p, torch.zeros_like(p))
    return theirs, loss("unlikelihood", pairs(model, None, chosen, rejected), reduce=True, **given), model


# --------------------------------------------------------------------------------------------------
# Distillation: TRL's GKD loss, Liger's JSD, torch's kl_div


def distill(student: Any, teacher: Any, batch: Batch) -> Distill:
    """The view of both models' distributions at the trained tokens."""
    with torch.no_grad():
        theirs = logits_of(teacher, batch)
    return Distill.from_logits(logits_of(student, batch), theirs, batch.ids[:, 1:], batch.trained[:, 1:])


def _gkd(given: dict[str, Any], seed: int) -> Both:
    student, teacher = models()
    batch = ragged(seed, 5)
    theirs = GKDTrainer.generalized_jsd_loss(
        logits_of(student, batch),
        logits_of(teacher, batch).detach(),
        labels=batch.labels[:, 1:],
        beta=given["b"],
        temperature=given["tau"],
        num_items_in_batch=batch.trained.sum(),
    )
    return theirs, loss("gkd", distill(student, teacher, batch), reduce=True, **given), student


def _opd(given: dict[str, Any], seed: int) -> Both:
    """TRL's surrogate is -A log p, ours -A rho; where the sampler is the policy they have the same gradient."""
    student, teacher = models()
    batch = ragged(seed, 5)
    logp, mask = token_logps(student, batch)
    with torch.no_grad():
        wanted = token_logps(teacher, batch)[0]
    settings: dict[str, Any] = {"temperature": 1.0, "iw_opd_gamma": 0.0, "iw_opd_epsilon": 1e-8, "model": student}
    them: Any = SimpleNamespace(**settings, _metrics={"eval": defaultdict(list)})
    inputs = (logits_of(student, batch), batch.ids[:, 1:], batch.labels[:, 1:], wanted)
    theirs = IWOPDTrainer._compute_iw_opd_loss(them, *inputs, num_items_in_batch=mask.sum())
    zeros = torch.zeros(len(logp))
    ours = loss("opd", Rollouts.from_logps(logp, logp.detach(), mask, zeros, zeros, wanted), reduce=True, **given)
    return theirs - theirs.detach() + ours.detach(), ours, student


def liger_jsd(key: str, weights: Any) -> Any:
    """A run against Liger's fused JSD; ``weights``: our hyperparameters -> its arguments."""

    def run(given: dict[str, Any], seed: int) -> Both:
        student, teacher = models()
        batch = ragged(seed, 5)
        module = LigerFusedLinearJSDLoss(compiled=False, temperature=given["tau"], **weights(given))
        theirs = module(
            hidden(student, batch).flatten(0, 1),
            student.lm_head.weight,
            hidden(teacher, batch).flatten(0, 1).detach(),
            teacher.lm_head.weight,
            batch.labels[:, 1:].flatten(),
        )
        return theirs, loss(key, distill(student, teacher, batch), reduce=True, **given), student

    return run


def _kd(given: dict[str, Any], seed: int) -> Both:
    student, teacher = models()
    batch, tau, alpha = ragged(seed, 5), given["tau"], given["alpha"]
    mask = batch.trained[:, 1:].bool()
    mine, other = logits_of(student, batch)[mask], logits_of(teacher, batch)[mask].detach()
    divergence = F.kl_div((mine / tau).log_softmax(-1), (other / tau).softmax(-1), reduction="batchmean")
    theirs = alpha * F.cross_entropy(mine, batch.ids[:, 1:][mask]) + (1 - alpha) * tau**2 * divergence
    return theirs, loss("kd", distill(student, teacher, batch), reduce=True, **given), student


# --------------------------------------------------------------------------------------------------
# Reward models: TRL's reward trainer, Hugging Face's token classification, torch's cross-entropies


def classifier(auto: Any, labels: int) -> Any:
    """The policy's backbone with a head of so many outputs, in float64."""
    shape = LlamaConfig(**{**policy().config.to_dict(), "num_labels": labels})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto.from_config(shape, dtype=torch.float64)
        nn.init.normal_(model.score.weight)
    return model.eval()


@cache
def reward_trainer() -> Any:
    row = {"prompt": "w1 w2", "chosen": "w3", "rejected": "w4"}
    model = classifier(AutoModelForSequenceClassification, 1)
    return trainer(RewardTrainer, RewardConfig, row, model=model, disable_dropout=True)


def rm_run(key: str) -> Any:
    """A run against the whole trainer; with a margin for ``rm_margin``."""

    def run(given: dict[str, Any], seed: int) -> Both:
        them = reward_trainer()
        chosen, rejected = ragged(seed, 5), ragged(seed + 1, 5)
        both = joined(chosen, rejected)
        margin = torch.tensor([1.0, 2 / 3, 1 / 3, 0.0, 3.0]) if key == "rm_margin" else None
        them.args.center_rewards_coefficient = given.get("centering") or None
        inputs = {"input_ids": both.ids, "attention_mask": both.attention}
        theirs = them.compute_loss(them.model, inputs | ({} if margin is None else {"margin": margin}))
        columns = {} if margin is None else {"margin": margin}
        view = Scores.from_scores(last_score(them.model, chosen), last_score(them.model, rejected), **columns)
        return theirs, loss(key, view, reduce=True, **given), them.model

    return run


def last_score(model: Any, batch: Batch) -> Tensor:
    """``[b]`` the head's score at the last token."""
    states = model.model(input_ids=batch.ids, attention_mask=batch.attention).last_hidden_state
    last = batch.attention.sum(-1) - 1
    return model.score(states[torch.arange(len(last)), last]).squeeze(-1)


@cache
def token_classifier(labels: int) -> Any:
    return classifier(AutoModelForTokenClassification, labels)


def token_outputs(model: Any, batch: Batch) -> Tensor:
    """``[b, w, c]`` the head's outputs at every token."""
    return model(input_ids=batch.ids, attention_mask=batch.attention).logits


def _prm_hard(given: dict[str, Any], seed: int) -> Both:
    model, batch = token_classifier(2), ragged(seed, 5)
    labels = (batch.ids % 2).masked_fill(batch.trained == 0, -100)
    theirs = model(input_ids=batch.ids, attention_mask=batch.attention, labels=labels).loss
    view = TokenScores.from_scores(token_outputs(model, batch), labels.clamp(min=0), batch.trained)
    return theirs, loss("prm", view, reduce=True, **given), model


def _prm_soft(given: dict[str, Any], seed: int) -> Both:
    model, batch = token_classifier(2), ragged(seed, 5)
    share = (batch.ids % 5) / 4.0
    mask, outputs = batch.trained.bool(), token_outputs(model, batch)
    theirs = F.cross_entropy(outputs[mask], torch.stack([1 - share, share], -1)[mask].double())
    view = TokenScores.from_scores(outputs, share, mask)
    return theirs, loss("prm", view, reduce=True, **given), model


def _orm(given: dict[str, Any], seed: int) -> Both:
    """torch's own square or cross-entropy of the scores, and its cross-entropy of the tokens."""
    model, batch = token_classifier(1), ragged(seed, 6)
    label = LABEL.double()[:, None].expand(batch.ids.shape)
    mask, score = batch.trained.bool(), token_outputs(model, batch)[..., 0]
    if given["level"] == "solution":
        place = torch.arange(mask.shape[1])
        judged = place == (mask * place).amax(-1, keepdim=True)
    else:
        judged = mask
    error = F.mse_loss if given["form"] == "mse" else F.binary_cross_entropy_with_logits
    logits = score[..., None] * torch.linspace(-1, 1, 97, dtype=torch.float64)  # any language model will do
    nll = F.cross_entropy(logits[mask], batch.ids[mask])
    theirs = error(score[judged], label[judged]) + given["lm_weight"] * nll
    logp = logits.log_softmax(-1).gather(-1, batch.ids[..., None])[..., 0]
    view = TokenScores.from_scores(score, LABEL.double(), mask, logp)
    return theirs, loss("orm", view, reduce=True, **given), model


# --------------------------------------------------------------------------------------------------
# Lists: torch's own cross-entropy and divergence


def lists_run(key: str, function: Any) -> Any:
    """A run against ``function(r, psi, hyperparameters)`` on three lists of four completions, one loss per list."""

    def run(given: dict[str, Any], seed: int) -> Both:
        model, frozen = models()
        batch = ragged(seed, 12)
        generator = torch.Generator().manual_seed(seed)
        rewards = torch.rand(3, 4, generator=generator, dtype=torch.float64)
        logp, mask = token_logps(model, batch)
        with torch.no_grad():
            ref = token_logps(frozen, batch)[0]
        shape = (3, 4, -1)
        view = Ranked.from_logps(logp.view(shape), ref.view(shape), rewards=rewards, mask=mask.view(shape))
        scores = given["beta"] * ((logp - ref) * mask).sum(-1).view(3, 4)
        return function(scores, rewards, given), loss(key, view, reduce=True, **given), model

    return run


def torch_infonca(scores: Tensor, rewards: Tensor, given: dict[str, Any]) -> Tensor:
    return F.cross_entropy(scores, (rewards / given["a"]).softmax(-1))


def torch_nca(scores: Tensor, rewards: Tensor, given: dict[str, Any]) -> Tensor:
    """Weighted binary cross-entropy: every completion is a positive of weight q and a negative of weight 1/K."""
    share = (rewards / given["a"]).softmax(-1)
    weight = share + 1 / scores.shape[1]
    return F.binary_cross_entropy_with_logits(scores, share / weight, weight, reduction="sum") / len(scores)


def torch_exo(scores: Tensor, rewards: Tensor, given: dict[str, Any]) -> Tensor:
    target = (rewards / given["beta_r"]).log_softmax(-1)
    return F.kl_div(target, scores.log_softmax(-1), reduction="batchmean", log_target=True)


# --------------------------------------------------------------------------------------------------

KTO = tuple(
    {"beta": beta, "desirable_weight": desirable, "undesirable_weight": undesirable}
    for beta, desirable, undesirable in ((0.1, 1.0, 1.0), (0.5, 1.33, 0.5))
)
SFT = "TRL 1.16 SFTTrainer ({}), two micro-batches, value and gradient"
BETAS = grid(beta=(0.05, 0.1, 0.5))

ORACLES: dict[str, list[Oracle]] = {
    "kto": [
        Oracle("TRL 1.16 KTOTrainer (kto), z0 above zero and clamped", kto_run("kto", positive=True), KTO),
        Oracle("TRL 1.16 KTOTrainer (kto), z0 above zero and clamped", kto_run("kto", positive=False), KTO),
        Oracle("Liger 0.8.5 KTO at our z0", _liger_kto, BETAS),
    ],
    "kto_pair": [
        Oracle("TRL 1.16 KTOTrainer (kto), the loss of both members", kto_run("kto_pair", positive=True), KTO),
    ],
    "apo_zero_unpaired": [
        Oracle(
            "TRL 1.16 KTOTrainer (apo_zero_unpaired), value and gradient",
            kto_run("apo_zero_unpaired", positive=True, loss_type="apo_zero_unpaired"),
            BETAS,
        )
    ],
    "implicit_prm": [Oracle("torch binary_cross_entropy_with_logits of the implicit reward", _implicit_prm, BETAS)],
    "sft": [Oracle(SFT.format("nll"), sft_run("sft"))],
    **{
        key: [Oracle(SFT.format("nll") + ": the loss, not how the rows are made", sft_run(key))]
        for key in ("rft", "raft", "best_of_n", "rest", "rest_em", "star", "seqkd")
    },
    "cpt": [Oracle(SFT.format("nll") + ", every token a label", sft_run("cpt", whole_text=True))],
    "neftune": [
        Oracle("Hugging Face's NEFTune hook on unpadded rows, value and gradient", _neftune, grid(alpha=(5.0, 15.0)))
    ],
    "opd": [
        Oracle("TRL 1.16 IWOPDTrainer._compute_iw_opd_loss at gamma 0, gradient", _opd),
    ],
    "unlikelihood": [
        Oracle("torch cross_entropy and binary_cross_entropy", _unlikelihood, grid(alpha=(0.0, 0.5, 1.0)))
    ],
    "dft": [Oracle(SFT.format("dft"), sft_run("dft", "dft"))],
    "gkd": [
        Oracle(
            "TRL 1.16 GKDTrainer.generalized_jsd_loss, value and gradient",
            _gkd,
            grid(b=(0.0, 0.1, 0.5, 1.0), tau=(1.0, 0.9)),
        ),
        Oracle(
            "Liger 0.8.5 JSD, value and gradient",
            liger_jsd("gkd", lambda given: {"beta": given["b"], "weight_hard_loss": 0.0, "weight_soft_loss": 1.0}),
            grid(b=(0.0, 0.1, 0.5, 1.0), tau=(1.0, 2.0)),
        ),
    ],
    "kd": [
        Oracle("torch cross_entropy and kl_div", _kd, grid(alpha=(0.0, 0.5, 1.0), tau=(1.0, 2.0))),
        Oracle(
            "Liger 0.8.5 JSD at beta 0 with the hard loss, value and gradient",
            liger_jsd(
                "kd",
                lambda given: {
                    "beta": 0.0,
                    "weight_hard_loss": given["alpha"],
                    "weight_soft_loss": (1 - given["alpha"]) * given["tau"] ** 2,
                },
            ),
            grid(alpha=(0.0, 0.5, 1.0), tau=(1.0, 2.0)),
        ),
    ],
    "rm": [Oracle("TRL 1.16 RewardTrainer, with and without centring", rm_run("rm"), grid(centering=(0.0, 0.01, 0.5)))],
    "rm_margin": [Oracle("TRL 1.16 RewardTrainer with margins, value and gradient", rm_run("rm_margin"))],
    "prm": [
        Oracle("Hugging Face LlamaForTokenClassification's loss, value and gradient", _prm_hard),
        Oracle("torch cross_entropy with soft labels", _prm_soft),
    ],
    "orm": [
        Oracle(
            "torch mse_loss / binary_cross_entropy_with_logits and cross_entropy",
            _orm,
            grid(form=("mse", "bce"), level=("token", "solution"), lm_weight=(0.0, 1.0)),
        )
    ],
    "infonca": [
        Oracle(
            "torch cross_entropy with soft labels", lists_run("infonca", torch_infonca), grid(beta=(0.1,), a=(0.1, 1.0))
        )
    ],
    "nca": [
        Oracle("torch weighted binary cross-entropy", lists_run("nca", torch_nca), grid(beta=(0.1,), a=(0.1, 1.0)))
    ],
    "exo": [Oracle("torch kl_div", lists_run("exo", torch_exo), grid(beta=(0.1, 0.5), beta_r=(0.1, 0.5)))],
}
COVERS = covers(ORACLES)


@pytest.mark.parametrize(("oracle", "settings", "seed"), cases(ORACLES))
def test_other_losses(oracle: Oracle, settings: dict[str, Any], seed: int) -> None:
    oracle.check(settings, seed)
