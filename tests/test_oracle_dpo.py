"""TRL's DPO trainer as a live oracle: its whole loss and gradients, on ragged batches, through a tiny model.

Where TRL's default is another loss than the paper's, the setting that makes it the paper's is set here, with a
comment.  ``reference`` is a model unlike the policy (log-ratios of tens), ``near`` one like it (about one): losses
that exponentiate log-ratios are compared near, where float32 still holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from oracle_tools import (
    Batch,
    Both,
    Oracle,
    cases,
    covers,
    grid,
    joined,
    likely,
    near,
    pairs,
    ragged,
    reference,
    token_logps,
    trainer,
)
from steelyard.algorithms.core import algorithms, coupled_stats, loss
from steelyard.types import Pairs, Tokens

pytestmark = pytest.mark.filterwarnings("ignore")

TRL = "TRL 1.16 DPOTrainer"
BETA = {"beta": "beta"}
SMOOTH = {"beta": "beta", "label_smoothing": "label_smoothing"}


@cache
def dpo_trainer(ref: Callable[[], Any] = reference, weighted: bool = False) -> Any:
    """The trainer with one of the references; WPO's weighting is a matter of its construction."""
    row = {"prompt": "w1 w2", "chosen": "w3", "rejected": "w4"}
    return trainer(DPOTrainer, DPOConfig, row, ref_model=ref(), use_weighting=weighted)


def their_loss(
    chosen: Batch,
    rejected: Batch,
    *loss_types: str,
    them: Any,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    loss_weights: tuple[float, ...] = (1.0,),
    f_divergence_type: str = "reverse_kl",
    f_alpha_divergence_coef: float = 1.0,
    ld_alpha: float | None = None,
    discopop_tau: float = 0.05,
) -> Tensor:
    """The trainer's ``compute_loss`` at these settings, under the names of its configuration."""
    them.loss_types, them.loss_weights, them.beta = list(loss_types), list(loss_weights), beta
    them.label_smoothing, them.ld_alpha, them.args.discopop_tau = label_smoothing, ld_alpha, discopop_tau
    them.f_divergence_type, them.f_alpha_divergence_coef = f_divergence_type, f_alpha_divergence_coef
    both = joined(chosen, rejected)
    inputs = {"input_ids": both.ids, "attention_mask": both.attention, "completion_mask": both.trained}
    return them.compute_loss(them.model, inputs)


def two_sides(seed: int, rows: int = 5) -> tuple[Batch, Batch]:
    """Pairs of unequal lengths."""
    return ragged(seed, rows), ragged(seed + 1, rows, completion=12)


def against(
    key: str,
    *loss_types: str,
    by: str = "",
    settings: tuple[dict[str, Any], ...],
    names: Mapping[str, str] = BETA,
    ref: Callable[[], Any] = reference,
    columns: Mapping[str, float] | None = None,
    fixed: Mapping[str, Any] | None = None,
    weighted: bool = False,
    **theirs: Any,
) -> Oracle:
    """Our ``key`` against TRL's loss types.

    Args:
        names: our hyperparameters -> TRL's.
        columns: constants of every pair.
        fixed: hyperparameters of ours that TRL does not have.
        weighted: TRL's WPO weighting.
        theirs: settings of TRL that are not hyperparameters of ours.
    """

    def run(given: dict[str, Any], seed: int) -> Both:
        chosen, rejected = two_sides(seed)
        shared = {their: given[our] for our, their in names.items()}
        them = dpo_trainer(ref, weighted)
        other = their_loss(chosen, rejected, *loss_types, them=them, **shared, **theirs)
        constant = {name: torch.full((len(chosen.ids),), value) for name, value in (columns or {}).items()}
        view = pairs(them.model, them.ref_model, chosen, rejected, **constant)
        return other, loss(key, view, reduce=True, **given, **(fixed or {})), them.model

    return Oracle(by or f"{TRL} ({' + '.join(loss_types)}), value and gradient", run, settings)


BETAS = grid(beta=(0.05, 0.5, 5.0))
SMALL = grid(beta=(0.01, 0.1, 0.5))
SMOOTHED = grid(beta=(0.01, 0.5), label_smoothing=(0.0, 0.1, 0.4))


def _sft(given: dict[str, Any], seed: int) -> Both:
    them = dpo_trainer()
    chosen, rejected = two_sides(seed)
    view = Tokens.from_logps(*token_logps(them.model, chosen))
    return their_loss(chosen, rejected, "sft", them=them), loss("sft", view, reduce=True, **given), them.model


def _rpo_nll(given: dict[str, Any], seed: int) -> Both:
    run = against(
        "rpo_nll",
        "sigmoid",
        "sft",
        settings=(),
        fixed={"nll_norm": "token"},  # TRL's; Pang et al. average over each completion
        loss_weights=(1.0, given["alpha"]),
    ).run
    return run(given, seed)


RPO = grid(beta=(0.1, 0.5), alpha=(0.005, 1.0))


def divergence(name: str, **theirs: Any) -> Oracle:
    """f-DPO under one divergence."""
    by = f"{TRL} (sigmoid, f_divergence_type={theirs['f_divergence_type']}), value and gradient"
    settings = grid(beta=(0.05, 0.1, 1.0), divergence=(name,))
    return against("fdpo", "sigmoid", by=by, settings=settings, ref=near, **theirs)


def alpha_divergence() -> Oracle:
    """f-DPO under the alpha family: TRL's coefficient is one minus the paper's alpha."""

    def run(given: dict[str, Any], seed: int) -> Both:
        theirs = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1 - given["alpha"]}
        return against("fdpo", "sigmoid", settings=(), ref=near, **theirs).run(given, seed)

    settings = grid(beta=(0.1, 1.0), alpha=(0.3, 0.5, 1.0), divergence=("alpha",))
    return Oracle(f"{TRL} (sigmoid, alpha_divergence at 1 - alpha), value and gradient", run, settings)


def _wpo(given: dict[str, Any], seed: int) -> Both:
    """TRL's weight is the product itself, the authors' (and ours) at most one: pairs below one are compared."""
    them = dpo_trainer(weighted=True)
    chosen, rejected = two_sides(seed, rows=40)
    below = (log_weight(pairs(them.model, None, chosen, rejected)) < 0).nonzero()[:6, 0]
    assert len(below) == 6
    chosen, rejected = chosen.rows(below), rejected.rows(below)
    view = pairs(them.model, them.ref_model, chosen, rejected)
    return (
        their_loss(chosen, rejected, "sigmoid", them=them, **given),
        loss("wpo", view, reduce=True, **given),
        them.model,
    )


def _wpo_above(given: dict[str, Any], seed: int) -> Both:
    """Greedy completions are more probable than expected: the weight is cut at one, which leaves plain DPO."""
    them = dpo_trainer()
    chosen, rejected = (likely(them.model, side) for side in two_sides(seed))
    view = pairs(them.model, them.ref_model, chosen, rejected)
    assert bool((log_weight(view) > 0).all())
    return (
        their_loss(chosen, rejected, "sigmoid", them=them, **given),
        loss("wpo", view, reduce=True, **given),
        them.model,
    )


def _sampo(given: dict[str, Any], seed: int) -> Both:
    """TRL with the tokens that were drawn as its completion mask; the draw itself is as long as the shorter one."""
    them = dpo_trainer()
    chosen, rejected = two_sides(seed)
    view = pairs(them.model, them.ref_model, chosen, rejected)
    drawn = coupled_stats(algorithms.get("sampo"), view, given, generator=torch.Generator().manual_seed(0))
    kept = []
    for side, batch in (("chosen", chosen), ("rejected", rejected)):
        keep = drawn[f"keep_{side}"]
        assert torch.equal(keep.sum(-1), torch.minimum(view.chosen.n, view.rejected.n))
        assert bool((keep <= getattr(view, side).mask).all())
        mask = torch.cat([torch.zeros_like(batch.trained[:, :1]), keep.long()], -1)
        kept.append(Batch(batch.ids, batch.attention, batch.completion, mask))
    return their_loss(*kept, "sigmoid", them=them, **given), loss("sampo", view, reduce=True, **given), them.model


def log_weight(view: Pairs) -> Tensor:
    """``[b]`` log of a pair's weight before it is cut."""
    sides = [((side.token_logp - side.extra("log_sum_p2")).sum(-1) / side.n) for side in (view.chosen, view.rejected)]
    return sides[0] + sides[1]


ORACLES: dict[str, list[Oracle]] = {
    "dpo": [against("dpo", "sigmoid", settings=BETAS)],
    "ipo": [against("ipo", "ipo", settings=BETAS)],
    "dpo_norm": [against("dpo_norm", "sigmoid_norm", settings=BETAS)],
    "hinge": [against("hinge", "hinge", settings=SMALL)],
    "robust_dpo": [against("robust_dpo", "robust", settings=SMOOTHED, names=SMOOTH)],
    "exo_pair": [
        against(
            "exo_pair",
            "exo_pair",
            settings=grid(beta=(0.01, 0.1, 0.5), eps=(1e-3, 0.1)),
            names={"beta": "beta", "eps": "label_smoothing"},
        )
    ],
    "nca_pair": [against("nca_pair", "nca_pair", settings=SMALL)],
    "sppo": [
        against(
            "sppo",
            "sppo_hard",
            by=f"{TRL} (sppo_hard; P_w=1, P_l=0), value and gradient",
            settings=grid(beta=(1e-3, 0.01, 0.1)),
            columns={"p_chosen": 1.0, "p_rejected": 0.0},
        )
    ],
    "aot": [against("aot", "aot", settings=SMOOTHED, names=SMOOTH)],
    "aot_unpaired": [against("aot_unpaired", "aot_unpaired", settings=SMOOTHED, names=SMOOTH)],
    "apo_zero": [against("apo_zero", "apo_zero", settings=SMALL)],
    "apo_down": [against("apo_down", "apo_down", settings=SMALL)],
    "discopop": [
        against(
            "discopop",
            "discopop",
            settings=grid(beta=(0.05, 0.1), tau=(0.05, 1.0)),
            names={"beta": "beta", "tau": "discopop_tau"},
            ref=near,
        )
    ],
    "fdpo": [
        divergence("reverse_kl", f_divergence_type="reverse_kl"),
        divergence("forward_kl", f_divergence_type="forward_kl"),
        divergence("js", f_divergence_type="js_divergence"),
        alpha_divergence(),
    ],
    "ld_dpo": [
        against(
            "ld_dpo",
            "sigmoid",
            by=f"{TRL} (sigmoid, ld_alpha), value and gradient",
            settings=grid(beta=(0.05, 0.5), alpha=(0.0, 0.5, 1.0)),
            names={"beta": "beta", "alpha": "ld_alpha"},
        )
    ],
    "wpo": [
        Oracle(f"{TRL} (sigmoid, use_weighting) on pairs of weight below one, value and gradient", _wpo, SMALL),
        Oracle(f"{TRL} (sigmoid) on pairs of weight one", _wpo_above, SMALL),
        against(
            "wpo",
            "sigmoid",
            by=f"{TRL} (sigmoid, use_weighting) without the cap",
            settings=SMALL,
            fixed={"cap": False},
            weighted=True,
        ),
    ],
    "bco_pair": [
        against(
            "bco_pair", "bco_pair", by=f"{TRL} (bco_pair) without the shift", settings=SMALL, fixed={"shift": False}
        )
    ],
    "rpo_nll": [
        Oracle(f"{TRL} (sigmoid + sft at weight alpha) with the token-mean NLL", _rpo_nll, RPO),
    ],
    "tr_dpo": [against("tr_dpo", "sigmoid", by=f"{TRL} (sigmoid): the loss, at a standing reference", settings=SMALL)],
    **{
        key: [against(key, "sigmoid", by=f"{TRL} (sigmoid): the loss, not how the pairs are made", settings=SMALL)]
        for key in ("spin", "online_dpo", "iterative_dpo", "filtered_dpo")
    },
    "step_dpo": [against("step_dpo", "sigmoid", by=f"{TRL} (sigmoid): the loss", settings=SMALL)],
    "sampo": [Oracle(f"{TRL} (sigmoid) on the tokens that were drawn, value and gradient", _sampo, SMALL)],
    "sft": [Oracle(f"{TRL} (sft), value and gradient", _sft)],
}
COVERS = covers(ORACLES)


@pytest.mark.parametrize(("oracle", "settings", "seed"), cases(ORACLES))
def test_trl_dpo_trainer(oracle: Oracle, settings: dict[str, Any], seed: int) -> None:
    oracle.check(settings, seed)
