"""Pairwise preference losses: coupling over the step, running state, draws, detached parts, and numbers by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pairwise_tools import POLICY, evaluated, exactly, inputs, of_logratios, pairs_of, same, slope, take_needed
from rows.pairwise import exact_pairs
from steelyard.algorithms.core import (
    algorithms,
    coupled_stats,
    evaluate_loss,
    items_of,
    loss,
    reduce_terms,
    view_counts,
)
from steelyard.algorithms.coupled import selection
from steelyard.algorithms.pointwise import sppo_terms
from steelyard.algorithms.tokenwise import draw_tokens
from steelyard.conform.inputs import Raw, build, random_inputs
from steelyard.errors import DataError
from steelyard.types import Pairs

# --------------------------------------------------------------------------------------------------
# Coupled over the step: any split has the joint loss's gradient


def joint_aot(pairs: Pairs, hp: dict[str, Any]) -> Tensor:
    margins = (pairs.chosen.logp - pairs.rejected.logp).sort().values
    quantiles = (pairs.chosen.ref - pairs.rejected.ref).sort().values
    return F.softplus(-hp["beta"] * (margins - quantiles)).mean()


def joint_aot_unpaired(pairs: Pairs, hp: dict[str, Any]) -> Tensor:
    return F.softplus(
        -hp["beta"] * (pairs.chosen.logratio.sort().values - pairs.rejected.logratio.sort().values)
    ).mean()


def joint_dr_dpo(pairs: Pairs, hp: dict[str, Any]) -> Tensor:
    h = hp["beta"] * (pairs.chosen.logratio - pairs.rejected.logratio)
    return -hp["b_prime"] * (F.logsigmoid(h) / hp["b_prime"]).exp().mean().log()


def joint_beta_dpo(pairs: Pairs, hp: dict[str, Any]) -> Tensor:
    gap = pairs.chosen.logratio - pairs.rejected.logratio
    frozen = gap.detach()
    mean, std = 0.1 * frozen.mean(), 0.1 * frozen.std()
    weights = torch.exp(-0.5 * ((frozen - mean) / std) ** 2)
    kept = torch.multinomial(weights, 4, generator=torch.Generator().manual_seed(0))
    beta = hp["beta"] * (1 + hp["a"] * (frozen[kept].mean() - mean))
    return F.softplus(-beta.clamp(min=1e-3) * gap[kept]).mean()


def joint_alpha_dpo(pairs: Pairs, hp: dict[str, Any]) -> Tensor:
    gap = (pairs.chosen.logratio / pairs.chosen.n - pairs.rejected.logratio / pairs.rejected.n).detach()
    z = (gap - 0.1 * gap.mean()) / (0.1 * gap.std())
    margins = pairs.chosen.logp / pairs.chosen.n - pairs.rejected.logp / pairs.rejected.n
    return F.softplus(-hp["beta"] * (margins - hp["alpha"] * z) + hp["gamma"]).mean()


def joint_bco_pair(pairs: Pairs, hp: dict[str, Any]) -> Tensor:
    chosen, rejected = hp["beta"] * pairs.chosen.logratio, hp["beta"] * pairs.rejected.logratio
    delta = 0.5 * (chosen.mean() + rejected.mean()).detach()
    return (F.softplus(delta - chosen) + F.softplus(rejected - delta)).mean()


@pytest.mark.parametrize("parts", [[5], [1, 1, 1, 1, 1], [2, 0, 3]], ids=str)
@pytest.mark.parametrize(
    ("joint", "hp"),
    [
        (joint_aot, {"beta": 0.5}),
        (joint_aot_unpaired, {"beta": 0.5}),
        (joint_dr_dpo, {"beta": 0.5, "b_prime": 0.4}),
        (joint_beta_dpo, {"beta": 0.1, "a": 0.6, "keep": 0.8, "momentum": 0.9}),
        (joint_alpha_dpo, {"beta": 2.5, "gamma": 1.5, "alpha": 0.2, "momentum": 0.9}),
        (joint_bco_pair, {"beta": 0.5}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_splits_have_the_joint_gradient(joint: Any, hp: dict[str, Any], parts: list[int]) -> None:
    raw, name = random_inputs("Pairs"), joint.__name__.removeprefix("joint_")
    spec = algorithms.get(name)
    leaves = raw | {key: raw[key].clone().requires_grad_() for key in POLICY}
    value = joint(pairs_of(leaves), hp)
    value.backward()
    wanted = [leaves[key].grad for key in POLICY]

    values = {key: entry.default for key, entry in spec.hyperparameters.items()} | hp
    leaves = raw | {key: raw[key].clone().requires_grad_() for key in POLICY}
    whole = pairs_of(raw)
    stats = coupled_stats(spec, whole, values, generator=torch.Generator().manual_seed(0))
    shares, done = [], 0
    for count in parts:
        rows = slice(done, done + count)
        view = pairs_of({key: x[rows] for key, x in leaves.items()}).with_stats(items_of(stats, done, count))
        share = reduce_terms(evaluate_loss(spec, view, values), view, spec.reduce, view_counts(whole))[0]
        share.backward()
        shares.append(share.detach())
        done += count
    same(torch.stack(shares).sum(), value.detach())
    for key, gradient in zip(POLICY, wanted, strict=True):
        same(leaves[key].grad, gradient)


# --------------------------------------------------------------------------------------------------
# What is detached


def frozen_gradient(name: str, raw: Raw, hp: dict[str, Any], constant: Any) -> None:
    """The gradient is that of ``constant(pairs)``, in which the detached parts are numbers."""
    spec = algorithms.get(name)
    leaves = take_needed(spec, raw) | {key: raw[key].clone().requires_grad_() for key in raw if key in POLICY}
    value = constant(build(spec, leaves)).mean()
    value.backward()
    found = evaluated(name, raw, hp)
    same(found[0], value.detach())
    same(found[1], torch.cat([leaves[key].grad.flatten() for key in POLICY]))  # type: ignore[union-attr]


@pytest.mark.parametrize("cap", [True, False])
def test_wpo_weights_are_constants(cap: bool) -> None:
    raw = inputs()
    raw |= {
        f"log_sum_p2_{side}": raw[f"policy_{side}"] - 0.3 * raw["ref_kl_" + side] for side in ("chosen", "rejected")
    }
    raw["log_sum_p2_chosen"] = raw["log_sum_p2_chosen"] + torch.tensor([[1.0], [1.0], [0.0], [0.0], [0.0]])

    def constant(pairs: Pairs) -> Tensor:
        gain = [x.token_logp.detach() - x.extra("log_sum_p2") for x in (pairs.chosen, pairs.rejected)]
        weight = (gain[0].sum(-1) / pairs.chosen.n + gain[1].sum(-1) / pairs.rejected.n).exp()
        assert bool((weight > 1).any()) and bool((weight < 1).any())
        return (weight.clamp(max=1) if cap else weight) * F.softplus(
            -0.2 * (pairs.chosen.logratio - pairs.rejected.logratio)
        )

    frozen_gradient("wpo", raw, {"beta": 0.2, "cap": cap}, constant)


def test_tdpo2_detaches_the_divergence_of_the_chosen_side_and_tdpo1_neither() -> None:
    for variant, touched in (("tdpo1", (True, True)), ("tdpo2", (False, True))):
        raw = take_needed(algorithms.get("tdpo"), inputs())
        leaves = raw | {
            f"ref_kl_{side}": raw[f"ref_kl_{side}"].clone().requires_grad_() for side in ("chosen", "rejected")
        }
        loss("tdpo", build(algorithms.get("tdpo"), leaves), variant=variant, reduce=True).backward()
        grads = [leaves[f"ref_kl_{side}"].grad for side in ("chosen", "rejected")]
        assert tuple(grad is not None and bool(grad.any()) for grad in grads) == touched


def test_focalpos_factor_is_not_detached() -> None:
    p = torch.sigmoid(torch.tensor(0.7))
    expected = p**0.5 * (1 - p) * (-1 - 0.5 * p.log())
    assert slope("focalpo", 0.7, 0.0, beta=1.0, g=0.5)[0] == pytest.approx(float(expected), rel=1e-6)


# --------------------------------------------------------------------------------------------------
# Worked by hand


def two_tokens_and_four() -> dict[str, Any]:
    """One pair: four chosen tokens (one more is masked) and two rejected ones."""
    return {
        "policy_chosen": exactly([[-1.0, -2.0, -9.0, -0.5, -1.5]]),
        "ref_chosen": exactly([[-2.0, -1.5, -1.0, -1.5, -0.5]]),
        "mask_chosen": torch.tensor([[1, 1, 0, 1, 1]]).bool(),
        "policy_rejected": exactly([[-1.0, -3.0]]),
        "ref_rejected": exactly([[-0.5, -1.0]]),
        "mask_rejected": torch.tensor([[1, 1]]).bool(),
    }


def test_ld_dpo_by_hand() -> None:
    changed = {"ref_chosen": exactly([[-2.0, -1.5, -1.0, -1.5, -2.5]])}
    pairs = pairs_of(two_tokens_and_four() | changed)
    # chosen log-ratios 1, -0.5, (masked), 1, 1, of which two are shared; rejected -0.5, -2
    for alpha in (0.0, 0.25, 1.0):
        same(loss("ld_dpo", pairs, beta=1.0, alpha=alpha)[0], F.softplus(exactly(-(0.5 + 2 * alpha + 2.5))))


def test_wpo_and_tdpo_by_hand() -> None:
    extras: dict[str, Any] = {
        "extras_chosen": {"log_sum_p2": exactly([[-1.0, -1.0, 7.0, -1.0, -1.0]])},
        "extras_rejected": {"log_sum_p2": exactly([[-1.5, -1.5]])},
    }
    pairs = pairs_of(two_tokens_and_four() | extras)
    # mean gains: (0 - 1 + 0.5 - 0.5) / 4 = -0.25 and (0.5 - 1.5) / 2 = -0.5; D = 0.5 + 2.5 = 3
    same(loss("wpo", pairs, beta=1.0)[0], math.exp(-0.75) * F.softplus(exactly(-3.0)))
    extras = {
        "extras_chosen": {"ref_kl": exactly([[0.5, 0.25, 9.0, 0.0, 0.25]])},
        "extras_rejected": {"ref_kl": exactly([[2.0, 1.0]])},
    }
    pairs = pairs_of(two_tokens_and_four() | extras)
    # the divergences are 1 and 3
    same(loss("tdpo", pairs, beta=1.0, variant="tdpo1")[0], F.softplus(exactly(-1.0)))
    same(loss("tdpo", pairs, beta=1.0, alpha=0.25)[0], F.softplus(exactly(-2.5)))


def test_sampo_sums_policy_and_reference_over_the_same_tokens() -> None:
    spec, raw = algorithms.get("sampo"), random_inputs("Pairs")
    pairs = pairs_of(raw)
    stats = coupled_stats(spec, pairs, {"beta": 0.1}, generator=torch.Generator().manual_seed(7))
    count = torch.minimum(pairs.chosen.n, pairs.rejected.n)
    for side in ("chosen", "rejected"):
        keep, mask = stats[f"keep_{side}"], raw[f"mask_{side}"]
        assert torch.equal(keep.sum(-1), count) and not bool((keep & ~mask).any())
    kept = [
        ((raw[f"policy_{side}"] - raw[f"ref_{side}"]) * stats[f"keep_{side}"]).sum(-1)
        for side in ("chosen", "rejected")
    ]
    found = loss("sampo", pairs, beta=0.1, generator=torch.Generator().manual_seed(7))
    same(found, F.softplus(-0.1 * (kept[0] - kept[1])))
    assert not torch.equal(found, loss("sampo", pairs, beta=0.1, generator=torch.Generator().manual_seed(8)))


def test_sampo_draws_uniformly() -> None:
    mask = torch.tensor([[1, 0, 1, 1, 0, 1, 1]]).bool().expand(4000, 7)
    keep = draw_tokens(mask, torch.full((4000,), 2), torch.Generator().manual_seed(0)).double()
    assert bool((keep.sum(-1) == 2).all())
    share = keep.mean(0)  # 2 of 5; six standard deviations are 0.046
    same(share, 0.4 * mask[0].double(), atol=0.046, rtol=0)
    together = (keep[:, 0] * keep[:, 6]).mean()  # both of two given tokens: 1 in 10
    assert float(together) == pytest.approx(0.1, abs=0.03)


def test_bco_pairs_delta_is_the_mean_of_all_rewards_so_far() -> None:
    first, second = of_logratios([4.0, 0.0], [1.0, -3.0]), of_logratios([10.0], [2.0])
    terms, state = loss("bco_pair", first, beta=0.5, return_state=True)
    assert float(state["delta"]) == pytest.approx(0.25) and float(state["seen"]) == 2  # 0.5 * (4 + 0 + 1 - 3) / 4
    same(
        terms,
        F.softplus(0.25 - exactly([2.0, 0.0])) + F.softplus(exactly([0.5, -1.5]) - 0.25),
    )
    terms, state = loss("bco_pair", second, beta=0.5, state=state, return_state=True)
    assert float(state["delta"]) == pytest.approx(0.5 * 14 / 6) and float(state["seen"]) == 3
    same(terms[0], F.softplus(exactly(7 / 6 - 5.0)) + F.softplus(exactly(1.0 - 7 / 6)))


def test_alpha_dpo_over_two_steps() -> None:
    def step(gaps: list[float], **options: Any) -> Any:
        chosen = exactly(gaps)
        zero, ones = torch.zeros_like(chosen), torch.ones_like(chosen)
        pairs = Pairs.from_logps(2 * chosen, zero, zero, zero, 2 * ones, ones)
        return loss("alpha_dpo", pairs, beta=2.0, gamma=0.5, alpha=0.1, return_state=True, **options)

    # gaps 1 and 3: mean 2, standard deviation sqrt(2); the averages become a tenth of that
    terms, state = step([1.0, 3.0])
    assert float(state["gap_mean"]) == pytest.approx(0.2) and float(state["gap_std"]) == pytest.approx(0.1 * 2**0.5)
    gap = exactly([1.0, 3.0])
    same(terms, F.softplus(-2 * (gap - 0.1 * (gap - 0.2) / (0.1 * 2**0.5)) + 0.5))
    # gaps 0, 1, 2: mean 1, standard deviation 1
    terms, state = step([0.0, 1.0, 2.0], state=state)
    mean, std = 0.9 * 0.2 + 0.1, 0.9 * 0.1 * 2**0.5 + 0.1
    assert float(state["gap_mean"]) == pytest.approx(mean) and float(state["gap_std"]) == pytest.approx(std)
    gap = exactly([0.0, 1.0, 2.0])
    same(terms, F.softplus(-2 * (gap - 0.1 * (gap - mean) / std) + 0.5))
    # corrected for the start from zero, the first step is measured by its own mean and spread
    terms, state = step([1.0, 3.0], bias_correction=True)
    gap = exactly([1.0, 3.0])
    same(terms, F.softplus(-2 * (gap - 0.1 * (gap - 2.0) / 2**0.5) + 0.5))
    assert float(state["steps"]) == 1


def test_beta_dpo_over_two_steps() -> None:
    gaps = exactly([1.0, -0.7, 4.3, 2.0, 0.4])
    generator, again = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    state, mean, std = None, 0.0, 0.0
    for step in range(2):
        gap = gaps * (1 + step)
        pairs = of_logratios(gap, torch.zeros(5).double())
        terms, state = loss("beta_dpo", pairs, state=state, generator=generator, return_state=True)
        mean, std = 0.9 * mean + 0.1 * float(gap.mean()), 0.9 * std + 0.1 * float(gap.std())
        assert float(state["gap_mean"]) == pytest.approx(mean) and float(state["gap_std"]) == pytest.approx(std)
        kept = torch.multinomial(torch.exp(-0.5 * ((gap - mean) / std) ** 2), 4, generator=again)
        beta = max(1e-3, 0.1 * (1 + 0.6 * (float(gap[kept].mean()) - mean)))
        wanted = torch.zeros_like(gap)
        wanted[kept] = F.softplus(-beta * gap[kept]) * 5 / 4
        same(terms, wanted)


def test_beta_dpos_selection_follows_its_weights() -> None:
    gap = exactly([0.0, 1.0, 2.0, 50.0])
    generator, counts = torch.Generator().manual_seed(0), torch.zeros(4)
    for _ in range(2000):
        counts[selection(gap, torch.tensor(0.0), torch.tensor(1.0), 0.25, generator)] += 1
    weight = torch.exp(-0.5 * gap**2)
    same(counts / 2000, (weight / weight.sum()).float(), atol=0.05, rtol=0)
    # more are to be kept than have a weight that a number can hold; all gaps alike
    assert len(set(selection(gap * 1e3, torch.tensor(0.0), torch.tensor(1.0), 1.0, generator).tolist())) == 4
    assert len(set(selection(gap * 0, torch.tensor(0.0), torch.tensor(0.0), 0.5, generator).tolist())) == 2


def test_sppo_terms() -> None:
    pairs = exact_pairs()
    expected = exactly([499005.0, 500700.29, 495723.29])
    same(sppo_terms(pairs, beta=1e-3, hard=True), expected, rtol=1e-9, atol=0)
    same(sppo_terms(pairs, beta=0.1, hard=True), exactly([45.0, 57.29, 30.29]))
    soft = of_logratios([2.0, 0.0], [1.0, 0.0], p_chosen=[0.75, 0.5], p_rejected=[0.25, 0.5])
    same(sppo_terms(soft, beta=0.5), exactly([1.5**2 + 1.5**2, 0.0]))
    with pytest.raises(DataError, match="p_chosen"):
        sppo_terms(pairs, beta=0.1)


def test_dpo_shifts_schedule() -> None:
    pairs = exact_pairs()
    for progress, f in ((0.0, 0.75), (0.5, 0.875), (1.0, 1.0)):
        found = loss("dpo_shift", pairs, beta=0.1, f=0.75, f_end=1.0, progress=progress)
        same(found, loss("dpo_shift", pairs, beta=0.1, f=f))


def test_odpo_needs_a_better_score_for_the_chosen_side() -> None:
    values = {"chosen": [1.0, 2.0], "rejected": [0.0, 0.0]}
    for f, better, worse, message in (
        ("log_gap", [2.0, 1.0], [1.0, 1.0], "score_chosen above score_rejected"),
        ("log_ratio", [2.0, -1.0], [1.0, -2.0], "must be positive"),
    ):
        with pytest.raises(DataError, match=message):
            loss("odpo", of_logratios(**values, score_chosen=better, score_rejected=worse), f=f)
    with pytest.raises(DataError, match="score_chosen"):
        loss("odpo", of_logratios(**values))
