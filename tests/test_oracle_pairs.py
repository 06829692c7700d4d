"""Live oracles for losses on pairs beside TRL's DPO trainer: TRL's CPO and ORPO trainers, Liger, torchtune,
ms-swift, oxRL.

Liger's fused losses run whole (from hidden states and output weights), on the CPU in plain torch; of torchtune,
ms-swift and oxRL the loss functions themselves, on the log-probabilities of the same models.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from liger_kernel.chunked_loss import (
    LigerFusedLinearCPOLoss,
    LigerFusedLinearDPOLoss,
    LigerFusedLinearORPOLoss,
    LigerFusedLinearSimPOLoss,
)
from torch import Tensor
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from oracle_tools import (
    Batch,
    Both,
    Oracle,
    cases,
    covers,
    file_of,
    function_of,
    grid,
    joined,
    models,
    near,
    pairs,
    ragged,
    reference,
    trainer,
)
from steelyard.algorithms.core import loss, reduce_term, view_counts
from steelyard.types import Pairs

pytestmark = pytest.mark.filterwarnings("ignore")

PAIR = {"prompt": "w1 w2", "chosen": "w3", "rejected": "w4"}


def two_sides(seed: int, **shape: Any) -> tuple[Batch, Batch]:
    """Five pairs of unequal lengths."""
    return ragged(seed, 5, **shape), ragged(seed + 1, 5, **shape)


def renamed(given: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Our hyperparameters under their names."""
    return {their: given[our] for our, their in names.items()}


# --------------------------------------------------------------------------------------------------
# TRL's CPO and ORPO trainers


def older_inputs(chosen: Batch, rejected: Batch) -> dict[str, Tensor]:
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


@cache
def cpo_trainer() -> Any:
    return trainer(CPOTrainer, CPOConfig, PAIR, max_length=64)


def against_cpo(
    key: str, loss_type: str, names: Mapping[str, str], settings: tuple[dict[str, Any], ...], **theirs: Any
) -> Oracle:
    """Our ``key`` against the CPO trainer; its NLL term and AlphaPO's transformation are off unless named."""

    def run(given: dict[str, Any], seed: int) -> Both:
        them = cpo_trainer()
        off = {"cpo_alpha": 0.0, "alpha": 0.0, "simpo_gamma": 0.0, "label_smoothing": 0.0}
        for name, value in (off | {"loss_type": loss_type} | theirs | renamed(given, names)).items():
            setattr(them, name, value)
        chosen, rejected = two_sides(seed)
        other = them.compute_loss(them.model, older_inputs(chosen, rejected))
        view = pairs(them.model, None, chosen, rejected)
        return other, loss(key, view, reduce=True, **given), them.model

    words = ", ".join(loss_type if name == "beta" else name for name in ("beta", *names.values()) if name)
    return Oracle(f"TRL 1.16 CPOTrainer ({words}), value and gradient", run, settings)


def _slic(given: dict[str, Any], seed: int) -> Both:
    """The hinge at one of CPO, stretched to delta; the pull to the chosen completion is its summed NLL."""
    them, delta = cpo_trainer(), given["delta"]
    them.loss_type, them.beta, them.alpha, them.cpo_alpha = "hinge", 1 / delta, 0.0, 0.0
    chosen, rejected = two_sides(seed)
    inputs = older_inputs(chosen, rejected)
    summed = them.concatenated_forward(them.model, inputs)[0]
    theirs = delta * them.compute_loss(them.model, inputs) - given["lam"] * summed.mean()
    return theirs, loss("slic_hf", pairs(them.model, None, chosen, rejected), reduce=True, **given), them.model


@cache
def orpo_trainer() -> Any:
    return trainer(ORPOTrainer, ORPOConfig, PAIR, max_length=64)


def _orpo(given: dict[str, Any], seed: int) -> Both:
    # TRL's NLL covers the prompt: with one-token prompts (and no untrained tokens) there is none to cover.
    them = orpo_trainer()
    chosen, rejected = two_sides(seed, prompt=1, holes=False)
    them.beta = given["lam"]
    other = them.compute_loss(them.model, older_inputs(chosen, rejected))
    return other, loss("orpo", pairs(them.model, None, chosen, rejected), reduce=True, **given), them.model


def _orpo_odds_ratio(given: dict[str, Any], seed: int) -> Both:
    them = orpo_trainer()
    chosen, rejected = two_sides(seed)
    them.beta = given["lam"]
    logps = them.concatenated_forward(them.model, older_inputs(chosen, rejected))[:2]
    other = -them.odds_ratio_loss(*logps)[0].mean()  # to be subtracted
    view = pairs(them.model, None, chosen, rejected)
    terms = loss("orpo", view, **given)
    assert isinstance(terms, dict)
    return other, reduce_term(terms["odds_ratio"], view, "token-mean", view_counts(view)), them.model


# --------------------------------------------------------------------------------------------------
# Liger's fused losses


def hidden(model: Any, batch: Batch) -> Tensor:
    """``[b, w-1, h]`` the last hidden states at the positions that predict the tokens after the first."""
    return model.model(input_ids=batch.ids, attention_mask=batch.attention).last_hidden_state[:, :-1]


def liger_run(key: str, kind: Any, names: Mapping[str, str], *, ref: Any, columns: Mapping[str, float], **theirs: Any):
    """A run of our ``key`` against one of Liger's modules."""

    def run(given: dict[str, Any], seed: int) -> Both:
        model, frozen = models(ref or reference)
        chosen, rejected = two_sides(seed)
        both = joined(chosen, rejected)
        module = kind(compiled=False, **theirs, **renamed(given, names))
        inputs = [model.lm_head.weight, hidden(model, both), both.labels[:, 1:]]
        extra = {"ref_input": hidden(frozen, both).detach(), "ref_weight": frozen.lm_head.weight} if ref else {}
        other = module(*inputs, **extra)[0]
        constant = {name: torch.full((len(chosen.ids),), value) for name, value in columns.items()}
        view = pairs(model, frozen if ref else None, chosen, rejected, **constant)
        return other, loss(key, view, reduce=True, **given), model

    return run


def liger(
    key: str,
    loss_type: str,
    settings: tuple[dict[str, Any], ...],
    names: Mapping[str, str] | None = None,
    *,
    ref: Any = reference,
    columns: Mapping[str, float] | None = None,
) -> Oracle:
    """One variant of Liger's DPO loss."""
    chosen = names or {"beta": "beta"}
    run = liger_run(key, LigerFusedLinearDPOLoss, chosen, ref=ref, columns=columns or {}, loss_type=loss_type)
    return Oracle(f"Liger 0.8.5 DPO ({loss_type}), value and gradient", run, settings, seeds=(7,))


def liger_free(
    key: str, kind: Any, settings: tuple[dict[str, Any], ...], names: Mapping[str, str], **theirs: Any
) -> Oracle:
    """One of Liger's losses without a reference."""
    run = liger_run(key, kind, names, ref=None, columns={}, **theirs)
    word = kind.__name__.removeprefix("LigerFusedLinear").removesuffix("Loss")
    return Oracle(f"Liger 0.8.5 {word}, value and gradient", run, settings, seeds=(7,), rtol=5e-5)


# --------------------------------------------------------------------------------------------------
# Loss functions on summed log-probabilities: torchtune, ms-swift


def sums(view: Pairs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """S_w, S_l, R_w, R_l: the usual order of arguments."""
    return view.chosen.logp, view.rejected.logp, view.chosen.ref, view.rejected.ref


def of_sums(
    by: str, key: str, losses: Any, settings: tuple[dict[str, Any], ...], *, ref: Any = reference, **fixed: Any
) -> Oracle:
    """Our ``key`` against ``losses(hyperparameters, S_w, S_l, R_w, R_l)``, one loss per pair."""

    def run(given: dict[str, Any], seed: int) -> Both:
        model, frozen = models(ref)
        view = pairs(model, frozen, *two_sides(seed))
        return losses(given, *sums(view)).mean(), loss(key, view, reduce=True, **given, **fixed), model

    return Oracle(by, run, settings, seeds=(7, 41))


@cache
def torchtune_dpo() -> Any:
    return file_of("torchtune", "torchtune/rlhf/loss/dpo.py")


def torchtune_cdpo(given: dict[str, Any], *logps: Tensor) -> Tensor:
    return torchtune_dpo().DPOLoss(**given)(*logps)[0]


def torchtune_hinge(given: dict[str, Any], *logps: Tensor) -> Tensor:
    return torchtune_dpo().RSOLoss(gamma=given["beta"])(*logps)[0]


def swift(loss_type: str) -> Any:
    """ms-swift's ``DPOTrainer.dpo_loss``, run as the function that it is."""

    def losses(given: dict[str, Any], *logps: Tensor) -> Tensor:
        function = function_of("ms-swift", "swift/rlhf_trainers/dpo_trainer.py", "DPOTrainer.dpo_loss")
        settings: dict[str, Any] = {"label_smoothing": 0.0, "f_divergence_type": "reverse_kl", **given}
        them = SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), reference_free=False, **settings)
        return function(them, *logps, loss_type=loss_type)[0]

    return losses


def oxrl(file: str, name: str, names: Mapping[str, str]) -> Any:
    """A loss of oxRL's, where its reading of the paper is ours; the mean over pairs as one loss."""

    def losses(given: dict[str, Any], *logps: Tensor) -> Tensor:
        kind = getattr(file_of("oxrl", f"oxrl/algs/{file}.py"), name)
        return kind(None, None, None, **renamed(given, names)).compute_loss(*logps)[0]

    return losses


def focal_value(given: dict[str, Any], *logps: Tensor) -> Tensor:
    """oxRL's value; it takes no gradient through the factor, so that the gradient here is ours."""
    theirs = oxrl("focalpo", "FocalPO", {"beta": "beta", "g": "focalpo_gamma"})(given, *logps)
    ours = loss("focalpo", Pairs.from_logps(*logps), reduce=True, **given)
    return theirs.detach() + ours - ours.detach()


def silu(given: dict[str, Any], *logps: Tensor) -> Tensor:
    return F.silu(-given["beta"] * (logps[0] - logps[1]))


# --------------------------------------------------------------------------------------------------

BETAS = grid(beta=(0.01, 0.1, 0.5))
SMOOTHED = grid(beta=(0.1, 0.5), label_smoothing=(0.0, 0.1, 0.4))
SMOOTH = {"beta": "beta", "label_smoothing": "label_smoothing"}
SIMPO = {"beta": "beta", "gamma": "simpo_gamma"}
SIMPO_SETTINGS = tuple(
    {"beta": beta, "gamma": gamma} for beta, gamma in ((2.0, 1.0), (2.5, 1.375), (10.0, 0.0), (0.1, 0.5))
)

ORACLES: dict[str, list[Oracle]] = {
    "simpo": [
        against_cpo("simpo", "simpo", SIMPO, SIMPO_SETTINGS),
        against_cpo(
            "simpo",
            "simpo",
            SIMPO | {"label_smoothing": "label_smoothing"},
            grid(beta=(2.0,), gamma=(1.0,), label_smoothing=(0.1, 0.3)),
        ),
        liger_free(
            "simpo",
            LigerFusedLinearSimPOLoss,
            SIMPO_SETTINGS,
            {"beta": "beta", "gamma": "gamma"},
            compute_nll_loss=False,
        ),
    ],
    "cpo": [
        against_cpo(
            "cpo",
            "sigmoid",
            {"beta": "beta", "alpha": "cpo_alpha", "label_smoothing": "label_smoothing"},
            grid(beta=(0.1, 0.5), alpha=(0.0, 0.3, 1.0), label_smoothing=(0.0, 0.2)),
        ),
        liger_free(
            "cpo",
            LigerFusedLinearCPOLoss,
            grid(beta=(0.1, 0.5), alpha=(0.0, 0.3, 1.0)),
            {"beta": "beta", "alpha": "alpha"},
        ),
    ],
    "cpo_simpo": [
        against_cpo(
            "cpo_simpo",
            "simpo",
            SIMPO | {"alpha": "cpo_alpha"},
            grid(beta=(2.0, 10.0), gamma=(0.5, 5.4), alpha=(0.05, 1.0)),
        ),
        liger_free(
            "cpo_simpo",
            LigerFusedLinearSimPOLoss,
            grid(beta=(2.0, 10.0), gamma=(0.5, 5.4), alpha=(0.05, 1.0)),
            {"beta": "beta", "gamma": "gamma", "alpha": "alpha"},
        ),
    ],
    "alphapo": [
        against_cpo(
            "alphapo",
            "simpo",
            SIMPO | {"alpha": "alpha"},
            grid(beta=(0.5, 2.5), gamma=(0.1, 1.0), alpha=(-0.5, 0.05, 0.25)),
        )
    ],
    "orpo": [
        Oracle("TRL 1.16 ORPOTrainer, value and gradient", _orpo, grid(lam=(0.1, 1.0))),
        Oracle("TRL 1.16 ORPOTrainer's odds ratio with long prompts", _orpo_odds_ratio, grid(lam=(0.1, 1.0)), 5e-5),
        liger_free("orpo", LigerFusedLinearORPOLoss, grid(lam=(0.1, 1.0)), {"lam": "beta"}),
    ],
    "slic_hf": [
        Oracle(
            "TRL 1.16 CPOTrainer (hinge at beta 1/delta, times delta) less lam times its chosen log-probability",
            _slic,
            grid(delta=(1.0, 5.0), lam=(0.0, 0.1)),
        )
    ],
    "dpo": [
        liger("dpo", "sigmoid", BETAS),
        of_sums("torchtune 0.6.1 DPOLoss", "dpo", torchtune_cdpo, BETAS),
    ],
    "cdpo": [
        of_sums("torchtune 0.6.1 DPOLoss(label_smoothing), value and gradient", "cdpo", torchtune_cdpo, SMOOTHED),
        of_sums("ms-swift 4.6.0 dpo_loss (sigmoid, label_smoothing)", "cdpo", swift("sigmoid"), SMOOTHED),
    ],
    "robust_dpo": [
        liger("robust_dpo", "robust", SMOOTHED, SMOOTH),
        of_sums("ms-swift 4.6.0 dpo_loss (robust)", "robust_dpo", swift("robust"), SMOOTHED),
    ],
    "ipo": [
        of_sums("ms-swift 4.6.0 dpo_loss (ipo) on sums", "ipo", swift("ipo"), BETAS, average=False),
    ],
    "hinge": [
        liger("hinge", "hinge", BETAS),
        of_sums("torchtune 0.6.1 RSOLoss", "hinge", torchtune_hinge, BETAS),
    ],
    "exo_pair": [
        liger(
            "exo_pair",
            "exo_pair",
            grid(beta=(0.1, 0.5), eps=(1e-3, 0.1)),
            {"beta": "beta", "eps": "label_smoothing"},
        )
    ],
    "minor_dpo": [
        of_sums("oxRL 1.7.2 MinorDPO", "minor_dpo", oxrl("minor_dpo", "MinorDPO", {"beta": "beta"}), BETAS),
    ],
    "c2_dpo": [
        of_sums(
            "oxRL 1.7.2 C2DPO",
            "c2_dpo",
            oxrl("c2dpo", "C2DPO", {"beta": "beta", "lam": "c2_lambda"}),
            grid(beta=(0.1, 0.5), lam=(0.0, 2e-4, 0.1)),
        )
    ],
    "h_dpo": [
        of_sums(
            "oxRL 1.7.2 HDPO",
            "h_dpo",
            oxrl("hdpo", "HDPO", {"beta": "beta", "alpha": "hdpo_alpha"}),
            grid(beta=(0.1, 0.5), alpha=(0.8, 1.2)),
        )
    ],
    "focalpo": [
        of_sums("oxRL 1.7.2 FocalPO, value only", "focalpo", focal_value, grid(beta=(0.1, 0.5), g=(0.05, 1.0))),
    ],
    "spo": [of_sums("torch silu", "spo", silu, BETAS)],
    "nca_pair": [liger("nca_pair", "nca_pair", BETAS)],
    "sppo": [
        liger(
            "sppo",
            "sppo_hard",
            grid(beta=(1e-3, 0.1)),
            columns={"p_chosen": 1.0, "p_rejected": 0.0},
        )
    ],
    "apo_zero": [liger("apo_zero", "apo_zero", BETAS)],
    "apo_down": [liger("apo_down", "apo_down", BETAS)],
    "discopop": [
        liger(
            "discopop",
            "discopop",
            grid(beta=(0.05, 0.1), tau=(0.05, 1.0)),
            {"beta": "beta", "tau": "discopop_tau"},
            ref=near,
        )
    ],
}
COVERS = covers(ORACLES)


@pytest.mark.parametrize(("oracle", "settings", "seed"), cases(ORACLES))
def test_losses_on_pairs(oracle: Oracle, settings: dict[str, Any], seed: int) -> None:
    oracle.check(settings, seed)
