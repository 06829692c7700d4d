"""What is promised of every algorithm, in one file parametrised over the registry.

A new algorithm adds one row to ``ROWS``: the loss at the neutral point in closed form, further settings worth
testing, and golden numbers.  All else is read from its specification and checked against what it does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rows import ROWS, VOCABULARY
from steelyard.algorithms import load
from steelyard.algorithms.advantages import group_norm
from steelyard.algorithms.core import Counts, algorithms, loss, reduce_term, view_counts
from steelyard.algorithms.policy import clipped_surrogate, kl_k3
from steelyard.algorithms.referencefree import log_odds
from steelyard.conform.checks import CHECKS, Check, DoesNotApply, gradients, settings, total
from steelyard.conform.inputs import at_reference, inputs_of, random_inputs
from steelyard.types import Pairs, Rollouts, Scores, Tokens, Unpaired

load()

NAMES = [
    name for name, spec in algorithms.items() if spec.loss is not None and spec.loss.__module__.startswith("steelyard.")
]
CASES = [
    pytest.param(name, hp, id="-".join([name, *(f"{key}={value}" for key, value in hp.items())]))
    for name in NAMES
    for hp in ({}, *(ROWS[name].settings if name in ROWS else ()))
]
every_case = pytest.mark.parametrize(("name", "hp"), CASES)
BATTERY = [
    pytest.param(name, hp, check, id=f"{case.id}-{check.name}")
    for case in CASES
    for name, hp in [case.values]
    for check in CHECKS.values()
    if not (check.once and hp) and check.name not in (ROWS[name].exceptions if name in ROWS else ())
]


# --------------------------------------------------------------------------------------------------
# Numbers


def spread(sums: list[float], lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Token values ``[b, t]`` with the given sums, and their mask."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    value = torch.tensor(sums, dtype=torch.float64) / torch.tensor(lengths)
    return value[:, None].expand(mask.shape), mask


def _golden_pairs() -> Pairs:
    chosen, mask_chosen = spread([-20.0, -31.0, -12.5], [16, 20, 9])
    rejected, mask_rejected = spread([-24.0, -30.0, -18.0], [12, 15, 8])
    ref_chosen, _ = spread([-22.0, -30.5, -12.0], [16, 20, 9])
    ref_rejected, _ = spread([-25.0, -30.2, -13.2], [12, 15, 8])
    sides = {"mask_chosen": mask_chosen, "mask_rejected": mask_rejected}
    return Pairs.from_logps(chosen, rejected, ref_chosen, ref_rejected, **sides)


def _golden_tokens() -> Tokens:
    logits = torch.tensor([[1, 0, -1, 0.5], [0, 0.2, 0.1, -0.3]], dtype=torch.float64)
    logp = logits.log_softmax(-1)[[0, 1], [0, 1]]
    return Tokens.from_logps(logp[None], torch.ones(1, 2))


def _golden_rollouts() -> Rollouts:
    def rows(*values: list[float]) -> Tensor:
        return torch.tensor([[*row, *[0] * (5 - len(row))] for row in values], dtype=torch.float64)

    rewards = torch.tensor([1.0, 0.0, 1.0, 0.5], dtype=torch.float64)
    return Rollouts.from_logps(
        logp=rows([-1.0, -0.5, -2.0, -0.3, -0.9], [-0.7, -1.2, -0.4], [-2.2, -0.1, -0.6, -1.5], [-0.8, -0.9]),
        old=rows([-1.3, -0.45, -2, -0.8, -0.85], [-0.6, -1.7, -0.35], [-2, -0.15, -1.1, -1.2], [-0.3, -1]),
        ref=rows([-1.1, -0.5, -2.3, -0.6, -0.8], [-0.65, -1.4, -0.4], [-2.1, -0.2, -0.9, -1.3], [-0.5, -1.1]),
        mask=torch.arange(5) < torch.tensor([5, 3, 4, 2])[:, None],
        rewards=rewards,
        groups=torch.zeros(4, dtype=torch.long),
        advantage=group_norm(rewards[None])[0],
    )


GOLDEN: dict[str, Callable[[], Any]] = {
    "Pairs": _golden_pairs,
    "Tokens": _golden_tokens,
    "Rollouts": _golden_rollouts,
    "Scores": lambda: Scores.from_scores(*torch.tensor([[1.2, 0.3], [0.4, 0.5]], dtype=torch.float64)),
    "Unpaired": lambda: Unpaired.from_logps(
        *torch.tensor([[2.0, -1.0], [1, 0], [0, 0]], dtype=torch.float64),
        mismatched=torch.tensor([0.9, 0.1], dtype=torch.float64),
        mismatched_ref=torch.zeros(2, dtype=torch.float64),
    ),
}
"""The fixtures of the catalogue's golden numbers (KTO's has z0 = 0.5)."""


@pytest.mark.parametrize(
    ("name", "hp", "expected"),
    [
        pytest.param(name, hp, expected, id=f"{name}-{index}")
        for name, row in ROWS.items()
        for index, (hp, expected) in enumerate(row.golden)
    ],
)
def test_golden_numbers(name: str, hp: dict[str, Any], expected: Any) -> None:
    spec, fixture = algorithms.get(name), ROWS[name].fixture
    view = (fixture or GOLDEN[algorithms.get(name).family])()
    terms = loss(name, view, **hp)
    wanted = expected if isinstance(expected, dict) else {"": expected}
    for term, numbers in wanted.items():
        if isinstance(numbers, list):
            actual = terms[term] if isinstance(terms, dict) else terms
        elif term:
            actual = reduce_term(terms[term], view, spec.reduce, view_counts(view))
        else:
            actual = loss(name, view, reduce=True, **hp)
        torch.testing.assert_close(actual, torch.tensor(numbers, dtype=torch.float64), atol=6e-7, rtol=0)


def test_golden_components() -> None:
    view = _golden_rollouts()
    advantage = torch.tensor([0.783186, -1.305310, 0.783186, -0.261062], dtype=torch.float64)
    torch.testing.assert_close(view.advantage[:, 0], advantage, atol=6e-7, rtol=0)
    kl = kl_k3(view.logp, view.ref)[view.mask].mean()
    assert float(kl) == pytest.approx(0.018033, abs=6e-7)


def test_every_algorithm_has_a_row() -> None:
    assert set(NAMES) == set(ROWS), "add a row to the family's table in tests/rows"


@every_case
def test_closed_form_where_the_policy_is_the_reference(name: str, hp: dict[str, Any]) -> None:
    spec = algorithms.get(name)
    if "neutral" in ROWS[name].exceptions:
        pytest.skip(ROWS[name].exceptions["neutral"])
    raw = at_reference(spec, inputs_of(spec), VOCABULARY)
    expected = ROWS[name].neutral(settings(spec, hp), raw)
    assert float(total(spec, raw, hp)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("name", "hp", "check"), BATTERY)
def test_what_is_promised_of_every_algorithm(name: str, hp: dict[str, Any], check: Check) -> None:
    """The battery that `steelyard algorithms conform` runs on anybody's loss."""
    try:
        check.run(algorithms.get(name), hp)
    except DoesNotApply as reason:
        pytest.skip(str(reason))


def test_exceptions_are_of_checks_that_exist() -> None:
    for name, row in ROWS.items():
        assert row.exceptions.keys() <= {*CHECKS, "neutral"}, name
        assert all(len(reason) > 10 for reason in row.exceptions.values()), name


def test_ipo_pulls_back_past_its_target() -> None:
    view = {"policy_chosen": [-1.0], "policy_rejected": [-9.0], "ref_chosen": [-5.0], "ref_rejected": [-5.0]}
    for tau, sign in ((0.05, -1), (0.1, 1)):  # the margin is 8, the targets are 10 and 5
        raw = {key: torch.tensor(value, dtype=torch.float64) for key, value in view.items()}
        raw |= {"len_chosen": torch.tensor([1.0]), "len_rejected": torch.tensor([1.0])}
        _, found = gradients(algorithms.get("ipo"), raw, {"beta": tau})
        assert float(found["policy_chosen"].sign()) == sign == -float(found["policy_rejected"].sign())


# --------------------------------------------------------------------------------------------------
# Identities between algorithms


def pairs_with(**changes: Tensor) -> Pairs:
    """Random pairs with some inputs replaced."""
    return Pairs.from_logps(**random_inputs("Pairs") | changes)


def test_identities_of_pairwise_losses() -> None:
    pairs, raw = pairs_with(), random_inputs("Pairs")
    same = torch.testing.assert_close
    same(loss("dpop", pairs, beta=0.3, lam=0.0), loss("dpo", pairs, beta=0.3))
    uniform = {f"ref_{side}": torch.full_like(raw[f"ref_{side}"], -3.0) for side in ("chosen", "rejected")}
    same(loss("simpo", pairs, beta=2.5, gamma=0.0), loss("dpo_norm", pairs_with(**uniform), beta=2.5))
    nothing = {key: torch.zeros_like(value) for key, value in uniform.items()}
    same(loss("simpo", pairs, beta=2.5, gamma=0.0), loss("dpo_norm", pairs_with(**nothing), beta=2.5))
    full = {"mask_chosen": torch.ones(5, 7), "mask_rejected": torch.ones(5, 7)}
    wide = {key: F.pad(raw[key], (0, 2)) for key in ("policy_rejected", "ref_rejected")}
    equal = pairs_with(**full, **wide)
    same(loss("dpo_norm", equal, beta=7.0), loss("dpo", equal, beta=1.0))
    same(loss("ipo", equal, beta=0.7), loss("ipo", equal, beta=0.1, average=False) / 49)
    scores = Scores.from_scores(pairs.chosen.logratio, pairs.rejected.logratio)
    same(loss("rm", scores, reduce=True), loss("dpo", pairs, beta=1.0, reduce=True))
    for side in ("chosen", "rejected"):
        nothing[f"ref_{side}"] = torch.zeros_like(raw[f"ref_{side}"])
    without = pairs_with(**nothing)  # a reference that says nothing
    same(loss("cpo", pairs, beta=0.3, alpha=0.0, reduce=True), loss("dpo", without, beta=0.3, reduce=True))
    same(loss("slic_hf", pairs, delta=1.0, lam=0.0, reduce=True), loss("hinge", without, beta=1.0, reduce=True))
    sure = Pairs.from_logps(**raw, p_chosen=torch.ones(5), p_rejected=torch.zeros(5))
    same(loss("cal_dpo", pairs, beta=0.2), loss("dpo", pairs, beta=1.0) + loss("sppo", sure, beta=0.2) / 2)
    alone = Pairs.from_logps(**raw, from_reference=torch.zeros(5))
    same(loss("xpo", alone, beta=0.3, alpha=0.0, reduce=True), loss("dpo", pairs, beta=0.3, reduce=True))
    one_token = {key: torch.ones(5, 1) for key in ("mask_chosen", "mask_rejected")}
    tokens = {key: value[:, :1] for key, value in raw.items() if "mask" not in key}
    short = Pairs.from_logps(**tokens, **one_token)  # averages are sums: the likelihood of one token itself
    same(loss("simper", short), tokens["policy_rejected"][:, 0].exp() - tokens["policy_chosen"][:, 0].exp())
    above = pairs_with(ref_chosen=raw["policy_chosen"] - 1.0)  # a chosen side above its reference: no penalty
    same(loss("dpop", above, beta=0.3, lam=50.0), loss("dpo", above, beta=0.3))


def test_identities_across_families() -> None:
    raw = random_inputs("Pairs")
    pairs, tokens = pairs_with(), Tokens.from_logps(raw["policy_chosen"], raw["mask_chosen"])
    same = torch.testing.assert_close
    same(loss("rft", tokens), loss("sft", tokens))
    same(loss("orpo", pairs, lam=0.0, reduce=True), loss("sft", tokens, reduce=True))
    # a pair is a desirable and an undesirable completion: KTO's gradient at z0 = 0 is that of two sigmoids
    both = {"policy": torch.stack([pairs.chosen.logp, pairs.rejected.logp], 1).flatten()}
    both |= {"ref": torch.stack([pairs.chosen.ref, pairs.rejected.ref], 1).flatten()}
    view = Unpaired.from_logps(**both, label=[True, False] * 5, mismatched=[-1.0], mismatched_ref=[0.0])
    kto = loss("kto", view, beta=0.2).view(-1, 2)
    same(kto[:, 0], 1 - torch.sigmoid(0.2 * pairs.chosen.logratio))
    same(kto[:, 1], torch.sigmoid(0.2 * pairs.rejected.logratio))


def test_identities_of_grpo() -> None:
    raw, spec = random_inputs("Rollouts"), algorithms.get("grpo")
    same = torch.testing.assert_close
    same(total(spec, raw, {"epsilon_high": 0.2}), total(spec, raw, {}))
    # on policy without KL it is the policy gradient of REINFORCE, averaged per completion
    value, found = gradients(spec, raw | {"old": raw["logp"]}, {"beta": 0.0})
    weight = raw["mask"] / raw["mask"].sum(-1, keepdim=True) / 5
    same(found["logp"], -raw["advantage"] * weight)
    # clip ranges that no ratio leaves
    view = Rollouts.from_logps(**raw)
    terms = loss("grpo", view, beta=0.0, epsilon=0.999, epsilon_high=1e3)
    same(terms["policy"], -view.ratio * view.advantage)


def test_the_clipped_surrogate() -> None:
    # a ratio that left the range in its advantage's direction has no gradient; one that left it against has
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5], dtype=torch.float64, requires_grad=True)
    terms = clipped_surrogate(ratio, torch.tensor([2.0, -2.0, 2.0, -2.0]), 0.25, 0.375)
    assert terms.tolist() == [-2.75, 3.0, -1.0, 1.5]
    terms.sum().backward()
    assert ratio.grad is not None and ratio.grad.tolist() == [0.0, 2.0, -2.0, 0.0]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("token-mean", 10 / 8), ("seq-mean-token-mean", (1 + 7 / 2) / 4), ("seq-mean-token-sum", 10 / 4)],
)
def test_reductions_by_hand(mode: Any, expected: float) -> None:
    mask = torch.tensor([[True, True, True], [True, False, True]])
    view = Tokens.from_logps(torch.zeros(2, 3), mask)
    term = torch.tensor([[1.0, 0.0, 2.0], [3.0, float("nan"), 4.0]])  # what is masked is not even looked at
    counts = Counts(items=4.0, tokens=8.0)  # this view is half of a step
    assert float(reduce_term(term, view, mode, counts)) == expected
    assert float(reduce_term(torch.tensor([1.0, 5.0]), view, mode, counts)) == 6 / 4


def test_k3_is_an_unbiased_estimate_of_the_kl_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 9, generator=generator, dtype=torch.float64).log_softmax(-1)
    estimate = (p.exp() * kl_k3(p, q)).sum()
    torch.testing.assert_close(estimate, (p.exp() * (p - q)).sum())
    assert bool((kl_k3(p, q) >= 0).all()) and float(kl_k3(p, p).abs().max()) == 0


def test_log_odds() -> None:
    a = torch.tensor([-50.0, -5.0, -1.0, -0.7, -0.69, -0.1, -1e-4], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(log_odds(a), torch.logit(a.exp()), rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad(log_odds(a).sum(), a)
    torch.testing.assert_close(gradient, 1 / (1 - a.detach().exp()), rtol=1e-9, atol=0)
    certain = torch.zeros(1, requires_grad=True)
    (gradient,) = torch.autograd.grad(log_odds(certain).sum(), certain)
    assert bool(log_odds(certain).isfinite()) and bool(gradient.isfinite())


def test_group_norm() -> None:
    rewards = torch.tensor([[1.0, 0.0, 1.0, 0.5], [2.0, 2.0, 2.0, 2.0]], dtype=torch.float64)
    found = group_norm(rewards)
    centred, deviation = rewards[0] - rewards[0].mean(), rewards[0].std()
    torch.testing.assert_close(found[0], centred / (deviation + 1e-4))
    assert found[1].tolist() == [0.0] * 4  # no variance, no signal
    torch.testing.assert_close(group_norm(10 * rewards + 3, eps=0.0)[0], group_norm(rewards, eps=0.0)[0])
    # what could not be scored is zero, and the others' statistics do not see it
    partly = group_norm(torch.tensor([[1.0, float("nan"), 0.0, 0.5], [float("nan")] * 3 + [1.0]]))
    torch.testing.assert_close(partly[0, [0, 2, 3]], group_norm(torch.tensor([[1.0, 0.0, 0.5]]))[0])
    assert partly[0, 1] == 0 and partly[1].tolist() == [0.0] * 4
