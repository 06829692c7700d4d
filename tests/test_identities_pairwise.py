"""Pairwise preference losses: how they reduce to each other, where they turn, and what they do at kinks.

Every identity holds for the loss and for its gradient by every token.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pairwise_tools import evaluated, inputs, of_logratios, same, slope
from rows.pairwise import exact_pairs
from steelyard.algorithms import links
from steelyard.algorithms.core import loss
from steelyard.algorithms.pointwise import sppo_terms
from steelyard.conform.inputs import random_inputs
from steelyard.types import Pairs

# --------------------------------------------------------------------------------------------------
# Identities


def agree(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], **tolerance: Any) -> None:
    """Equal values and gradients."""
    for left, right in zip(found, wanted, strict=True):
        same(left, right, **tolerance)


DPO = ("dpo", {"beta": 0.3})
SIMPO = ("simpo", {"beta": 2.5, "gamma": 1.375})
EQUAL: list[tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]] = [
    *(
        ((name, {"beta": 0.3, **hp}), DPO)
        for name, hp in [
            ("cdpo", {"label_smoothing": 0.0}),
            ("robust_dpo", {"label_smoothing": 0.0}),
            ("gpo", {"link": "logistic"}),
            ("dpop", {"lam": 0.0}),
            ("dpo_shift", {"f": 1.0}),
            ("h_dpo", {"alpha": 1.0}),
            ("rdpo", {"alpha": 0.0}),
            ("c2_dpo", {"lam": 0.0}),
            ("odpo", {"alpha": 0.0}),
            ("fdpo", {"divergence": "reverse_kl"}),
            ("focalpo", {"g": 0.0}),
            ("rpo_nll", {"alpha": 0.0}),
            ("rpo_nll", {"alpha": 0.0, "nll_norm": "token"}),
            ("ld_dpo", {"alpha": 1.0}),
            ("tdpo", {"alpha": 0.0}),
            ("tr_dpo", {}),
            ("step_dpo", {}),
            ("beta_dpo", {"a": 0.0, "keep": 1.0}),
        ]
    ),
    (("gpo", {"link": "hinge", "beta": 0.4}), ("hinge", {"beta": 0.4})),
    (("fdpo", {"divergence": "alpha", "alpha": 1.0}), ("fdpo", {"divergence": "forward_kl"})),
    (("cpo_simpo", {"beta": 2.5, "gamma": 1.375, "alpha": 0.0}), SIMPO),
    (("alphapo", {"beta": 2.5, "gamma": 1.375, "alpha": 0.0}), SIMPO),
    (("alpha_dpo", {"beta": 2.5, "gamma": 1.375, "alpha": 0.0}), SIMPO),
]


@pytest.mark.parametrize(("left", "right"), EQUAL, ids=[f"{a}-{'-'.join(map(str, hp))}" for (a, hp), _ in EQUAL])
def test_equal_losses(left: tuple[str, dict[str, Any]], right: tuple[str, dict[str, Any]]) -> None:
    agree(evaluated(left[0], inputs(), left[1]), evaluated(right[0], inputs(), right[1]))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (("alphapo", {"beta": 2.5, "gamma": 1.375, "alpha": 1e-7}), SIMPO),
        (("alphapo", {"beta": 2.5, "gamma": 1.375, "alpha": -1e-7}), SIMPO),
        (("fdpo", {"divergence": "alpha", "alpha": 1e-7, "beta": 0.3}), DPO),
        (("dr_dpo", {"b_prime": 1e7, "beta": 0.3}), DPO),
        (("chi_po", {"a": 1e-8, "beta": 0.3}), DPO),
    ],
    ids=["alphapo", "alphapo-below", "fdpo", "dr_dpo", "chi_po"],
)
def test_limits(left: tuple[str, dict[str, Any]], right: tuple[str, dict[str, Any]]) -> None:
    agree(evaluated(left[0], inputs(), left[1]), evaluated(right[0], inputs(), right[1]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "hp"),
    [("aot", {}), ("aot_unpaired", {}), ("dr_dpo", {}), ("dr_dpo", {"b_prime": 0.1}), ("beta_dpo", {"a": 0.0})],
)
def test_a_step_of_one_pair_is_dpo(name: str, hp: dict[str, Any]) -> None:
    raw = {key: value[:1] for key, value in random_inputs("Pairs").items()}
    agree(evaluated(name, raw, {"beta": 0.3, **hp}), evaluated("dpo", raw, {"beta": 0.3}))


def test_simpo_without_a_margin_is_dpo_norm_with_a_uniform_reference() -> None:
    uniform = {key: torch.full_like(inputs()[key], -3.0) for key in ("ref_chosen", "ref_rejected")}
    left = evaluated("simpo", inputs(), {"beta": 2.5, "gamma": 0.0})
    agree(left, evaluated("dpo_norm", inputs(**uniform), {"beta": 2.5}))


def test_ipo_on_sums_is_the_square_link_at_twice_tau() -> None:
    tau = 0.15
    value, gradient = evaluated("ipo", inputs(), {"beta": tau, "average": False})
    found = evaluated("gpo", inputs(), {"link": "square", "beta": 2 * tau})
    agree(found, (4 * tau**2 * value, 4 * tau**2 * gradient))


def test_tdpo1_at_the_reference_has_no_divergence_term() -> None:
    raw = inputs() | {key: torch.zeros_like(inputs()[key]) for key in ("ref_kl_chosen", "ref_kl_rejected")}
    agree(evaluated("tdpo", raw, {"variant": "tdpo1"}), evaluated("dpo", raw, {}))


@pytest.mark.parametrize(("name", "hp"), [("sampo", {}), ("ld_dpo", {"alpha": 0.0}), ("ld_dpo", {"alpha": 0.7})])
def test_completions_of_one_length_lose_no_token(name: str, hp: dict[str, Any]) -> None:
    raw = random_inputs("Pairs")
    raw["mask_chosen"], raw["mask_rejected"] = torch.ones(5, 7).bool(), torch.ones(5, 7).bool()
    raw |= {key: F.pad(raw[key], (0, 2), value=-0.5) for key in ("policy_rejected", "ref_rejected")}
    agree(evaluated(name, raw, {"beta": 0.3, **hp}), evaluated("dpo", raw, {"beta": 0.3}))


def test_cal_dpo_is_dpo_at_beta_one_and_half_of_hard_sppo() -> None:
    pairs = exact_pairs()
    same(
        loss("cal_dpo", pairs, beta=0.02), loss("dpo", pairs, beta=1.0) + 0.5 * sppo_terms(pairs, beta=0.02, hard=True)
    )


def test_minor_dpo_is_dpo_where_the_rejected_side_has_risen() -> None:
    pairs = of_logratios([1.0, -2.0], [0.5, 3.0])
    same(loss("minor_dpo", pairs), loss("dpo", pairs, beta=0.1))


@pytest.mark.parametrize("link", ["logistic", "hinge"])
def test_bpo_is_gpo_on_its_balanced_margin(link: str) -> None:
    pairs = of_logratios([1.0, -2.0, 0.3], [0.5, 3.0, -4.0])
    balanced = of_logratios([-0.15, -2.0, 0.3], [0.0, 0.0, 0.0])
    same(loss("bpo", pairs, link=link, alpha=0.3), loss("gpo", balanced, link=link))


def test_robust_dpo_is_unbiased_under_flips() -> None:
    right, wrong = of_logratios([1.0, -3.0], [0.2, 0.7]), of_logratios([0.2, 0.7], [1.0, -3.0])
    for eps in (0.1, 0.4):
        hp: dict[str, Any] = {"beta": 0.5, "label_smoothing": eps}
        expected = (1 - eps) * loss("robust_dpo", right, **hp) + eps * loss("robust_dpo", wrong, **hp)
        same(expected, loss("dpo", right, beta=0.5))
        # ... and cDPO is the mean loss under such flips, not a rescaled version of it
        same(loss("cdpo", right, **hp), (1 - eps) * loss("dpo", right, beta=0.5) + eps * loss("dpo", wrong, beta=0.5))


def test_spo_bounds_dpo_and_limits_itself() -> None:
    h = torch.linspace(-8, 8, 401, dtype=torch.float64)
    spo = loss("spo", of_logratios(h, torch.zeros_like(h)), beta=1.0)
    dpo = loss("dpo", of_logratios(h, torch.zeros_like(h)), beta=1.0)
    q = torch.sigmoid(h)
    same(dpo, spo + torch.special.entr(q) + torch.special.entr(1 - q))
    gap = spo + math.log(2) - dpo
    assert bool((gap > -1e-12).all()) and float(gap[200]) == pytest.approx(0, abs=1e-15) and gap.argmin() == 200
    assert float(spo.min()) == pytest.approx(-0.27846, abs=1e-4)
    assert float(h[spo.argmin()]) == pytest.approx(1.27846, abs=0.02)
    assert slope("spo", 1.27846, 0.0, beta=1.0)[0] == pytest.approx(0, abs=1e-5)


# --------------------------------------------------------------------------------------------------
# Where theory says that the loss turns


@pytest.mark.parametrize(
    ("name", "hp", "turn"),
    [
        ("cdpo", {"beta": 1.0, "label_smoothing": 0.1}, math.log(9)),
        ("exo_pair", {"beta": 1.0, "eps": 0.01}, math.log(99)),
        ("ipo", {"beta": 0.1, "average": False}, 5.0),
        ("gpo", {"beta": 1.0, "link": "square"}, 1.0),
        ("spo", {"beta": 1.0}, 1.2784645),
        ("focalpo", {"beta": 1.0, "g": 1.0}, -math.log(math.e - 1)),  # p = 1/e, and here it is a maximum
    ],
)
def test_stationary_margins(name: str, hp: dict[str, Any], turn: float) -> None:
    before, at, after = (slope(name, turn + step, 0.0, **hp)[0] for step in (-0.1, 0.0, 0.1))
    assert abs(at) < 1e-6
    assert (before > 0 > after) if name == "focalpo" else (before < 0 < after)


@pytest.mark.parametrize(
    ("name", "hp"),
    [
        ("dpo", {}),
        ("robust_dpo", {"label_smoothing": 0.3}),
        ("dpop", {}),
        ("dpo_shift", {"f": 0.5}),
        ("fdpo", {"divergence": "js"}),
        ("fdpo", {"divergence": "forward_kl"}),
        ("fdpo", {"divergence": "alpha"}),
        ("chi_po", {"r_max": 1e4}),
        ("apo_zero", {}),
        ("bco_pair", {"shift": False}),
        ("focalpo", {"g": 0.05}),
        *(("gpo", {"link": link}) for link in ("logistic", "exp", "savage")),
    ],
)
def test_the_loss_falls_with_the_chosen_and_rises_with_the_rejected(name: str, hp: dict[str, Any]) -> None:
    for chosen in (-6.0, -1.0, 0.3, 7.0):
        for rejected in (-5.0, -0.2, 0.9, 6.0):
            up, down = slope(name, chosen, rejected, beta=0.3, **hp)
            assert up < 0 < down, (chosen, rejected)


def test_where_two_sided_losses_push() -> None:
    # NCA draws the chosen reward to log 2, where sigmoid(r) = 2/3, and pushes the rejected one down for ever
    assert (
        slope("nca_pair", math.log(2) - 0.1, 0.0, beta=1.0)[0]
        < 0
        < slope("nca_pair", math.log(2) + 0.1, 0.0, beta=1.0)[0]
    )
    assert all(slope("nca_pair", 0.0, x, beta=1.0)[1] > 0 for x in (-9.0, 0.0, 9.0))
    # Cal-DPO holds both log-ratios at +-1/(2 beta)
    assert slope("cal_dpo", 24.0, -24.0, beta=0.02)[0] < 0 < slope("cal_dpo", 26.0, -26.0, beta=0.02)[0]
    # APO-down lowers both, the rejected side more
    chosen, rejected = slope("apo_down", 0.0, 0.0, beta=0.1)
    assert chosen == pytest.approx(0, abs=1e-12) and rejected > 0
    chosen, rejected = slope("apo_down", 1.0, -9.0, beta=0.1)
    assert chosen > 0 and rejected > 0
    # DiscoPOP rises with the margin just left of zero, and falls elsewhere
    assert slope("discopop", -1.0, 0.0)[0] > 0 > max(slope("discopop", x, 0.0)[0] for x in (-20.0, 10.0))
    # R-DPO shrinks the gradient of a pair whose chosen side is longer, at equal log-ratios
    sizes = []
    for length in (10, 30):
        leaf = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        other = torch.zeros(1, dtype=torch.float64)
        loss("rdpo", Pairs.from_logps(leaf, other, other, other, [length], [10]), alpha=0.1).sum().backward()
        sizes.append(abs(float(leaf.grad)))  # type: ignore[arg-type]
    assert sizes[1] < sizes[0]


def test_ties_and_kinks() -> None:
    # at the reference BPO's sides tie in every pair: each has half of the gradient of its own alone
    assert slope("bpo", 0.0, 0.0, beta=0.1, alpha=0.3) == pytest.approx((-0.05, 0.015))
    assert slope("bpo", -0.1, 0.0, beta=0.1, alpha=0.3) == pytest.approx((-0.1, 0.0))
    assert slope("bpo", 0.1, 0.0, beta=0.1, alpha=0.3) == pytest.approx((0.0, 0.03))
    # MinorDPO leaves the rejected side alone until it has risen
    assert slope("minor_dpo", 0.0, 0.0, beta=0.1) == pytest.approx((-0.05, 0.0))
    assert slope("minor_dpo", 0.0, 1e-9, beta=0.1) == pytest.approx((-0.05, 0.05))
    assert slope("dpop", 0.0, 0.0, beta=0.1, lam=5.0) == pytest.approx((-0.05, 0.05))
    # a hinge that is met exactly, and clips that bind, have no gradient
    assert slope("hinge", 2.0, 0.0, beta=0.5) == (0.0, 0.0)
    assert slope("chi_po", 3.0, 0.0, beta=1.0, r_max=1.0) == (0.0, 0.0)
    assert slope("chi_po", 25.0, 0.0, beta=1e-12, r_max=1.0)[0] == pytest.approx(-0.5e-12, rel=1e-3)  # the linear part
    assert (
        slope("fdpo", -39.0, 0.0, divergence="forward_kl")[0]
        < 0
        == slope("fdpo", -41.0, 0.0, divergence="forward_kl")[0]
    )
    assert slope("gpo", -41.0, 0.0, beta=1.0, link="exp") == (0.0, 0.0)
    assert float(links.exponential(torch.tensor(-1e9))) == pytest.approx(math.exp(40))
