"""What is promised of every algorithm, in one file parametrised over the registry.

A new algorithm adds one row to ``ROWS``: the loss at the neutral point in closed form, further settings worth
testing, and golden numbers.  All else is read from its specification and checked against what it does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from family_inputs import (
    REFERENCE,
    Raw,
    build,
    inputs_of,
    kind_of,
    mask_of,
    policy_inputs,
    random_inputs,
    take,
    tokens_of,
    widen,
)
from rows import ROWS, VOCABULARY
from steelyard.algorithms import load
from steelyard.algorithms.advantages import group_norm
from steelyard.algorithms.core import (
    AlgorithmSpec,
    Counts,
    algorithms,
    coupled_stats,
    evaluate_loss,
    items_of,
    loss,
    reduce_term,
    reduce_terms,
    view_counts,
)
from steelyard.algorithms.policy import clipped_surrogate, kl_k3
from steelyard.algorithms.referencefree import log_odds
from steelyard.errors import DataError
from steelyard.types import Pairs, Rollouts, Scores, Tokens, Unpaired, View

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
every_algorithm = pytest.mark.parametrize("name", NAMES)


def at_reference(spec: AlgorithmSpec, raw: Raw) -> Raw:
    """The neutral point: the reference (and the old policy) is the policy; without a reference, uniform."""
    raw = dict(raw)
    if spec.reference == "none" and not spec.teacher:
        uniform = -math.log(VOCABULARY)
        logps = [key for key in policy_inputs(spec) if raw[key].dim() == 2 and key != "scores"]
        raw |= {key: torch.full_like(raw[key], uniform) for key in logps}
    if spec.family == "Scores":
        raw["rejected"] = raw["chosen"].clone()
    if kind_of(spec) in ("RankedScores", "TokenScores", "TokenLabels"):
        raw["scores"] = torch.zeros_like(raw["scores"])
    return raw | {frozen: raw[live].clone() for frozen, live in REFERENCE[kind_of(spec)].items()}


def needs_reference(spec: AlgorithmSpec, hp: Mapping[str, Any]) -> bool:
    """Whether the declared reference is used with these hyperparameters."""
    switch = spec.reference_unless_zero
    return spec.reference != "none" and not (switch and settings(spec, hp)[switch] == 0)


def settings(spec: AlgorithmSpec, hp: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults with ``hp`` on top."""
    return {key: entry.default for key, entry in spec.hyperparameters.items()} | dict(hp)


def total(spec: AlgorithmSpec, raw: Raw, hp: Mapping[str, Any]) -> Tensor:
    """The loss of a step that consists of ``raw`` alone."""
    value = loss(spec.key, build(spec, raw), reduce=True, **hp)
    assert isinstance(value, Tensor) and value.dim() == 0
    return value


def seeded() -> torch.Generator:
    """The generator that :func:`loss` takes by default."""
    return torch.Generator().manual_seed(0)


def gradients(spec: AlgorithmSpec, raw: Raw, hp: Mapping[str, Any]) -> tuple[Tensor, Raw]:
    """The loss, and its gradient by every floating-point input (zero where there is none)."""
    leaves = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in raw.items()}
    value = total(spec, leaves, hp)
    value.backward()
    found = {k: v.grad for k, v in leaves.items() if v.is_floating_point()}
    return value.detach(), {k: torch.zeros_like(raw[k]) if g is None else g for k, g in found.items()}


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
    raw = at_reference(spec, inputs_of(spec))
    expected = ROWS[name].neutral(settings(spec, hp), raw)
    assert float(total(spec, raw, hp)) == pytest.approx(expected, rel=1e-12)


@every_case
def test_gradient_agrees_with_finite_differences(name: str, hp: dict[str, Any]) -> None:
    spec = algorithms.get(name)
    if "gradient" in ROWS[name].exceptions:
        pytest.skip(ROWS[name].exceptions["gradient"])
    raw = inputs_of(spec, items=3)
    values, policy = settings(spec, hp), policy_inputs(spec)
    stats = coupled_stats(spec, build(spec, raw), values, generator=seeded()) if spec.coupled else {}

    def function(*inputs: Tensor) -> Tensor:  # coupled statistics belong to the whole step and stay fixed
        view = build(spec, raw | dict(zip(policy, inputs, strict=True))).with_stats(stats)
        return reduce_terms(evaluate_loss(spec, view, values), view, spec.reduce, view_counts(view))[0]

    assert torch.autograd.gradcheck(function, tuple(raw[key].clone().requires_grad_() for key in policy))


@every_case
def test_terms_are_unreduced_and_the_function_is_pure(name: str, hp: dict[str, Any]) -> None:
    spec = algorithms.get(name)
    raw = inputs_of(spec)
    view, before = build(spec, raw), {key: value.clone() for key, value in raw.items()}
    terms = loss(name, view, **hp)
    for term in terms.values() if isinstance(terms, dict) else [terms]:
        shapes = [(view.items,)] + ([] if view.token_mask_or_none is None else [tuple(view.token_mask.shape)])
        assert tuple(term.shape) in shapes and term.dtype == torch.float64 and bool(term.isfinite().all())
    assert torch.equal(total(spec, raw, hp), total(spec, raw, hp))
    assert all(torch.equal(raw[key], before[key]) for key in raw)


# --------------------------------------------------------------------------------------------------
# What the specification declares, probed


@every_case
def test_a_nan_in_the_reference_reaches_the_loss_iff_one_is_declared(name: str, hp: dict[str, Any]) -> None:
    spec = algorithms.get(name)
    raw = inputs_of(spec)
    used = needs_reference(spec, hp)
    for key in (key for key in REFERENCE[kind_of(spec)] if key not in ("old", "mismatched_ref")):
        poisoned = raw | {key: raw[key].clone()}
        poisoned[key][2][raw[mask_of(key)][2].nonzero()[0]] = float("nan")  # one token of one item is enough
        if spec.family == "Distill":  # the teacher stands where the reference stands
            assert bool(total(spec, poisoned, hp).isnan())
            continue
        assert bool(total(spec, poisoned, hp).isnan()) == used
        without = {name: value for name, value in raw.items() if not name.startswith("ref")}
        if used:
            with pytest.raises(DataError, match="reference"):
                total(spec, without, hp)
        else:
            assert torch.equal(total(spec, without, hp), total(spec, raw, hp))


@every_algorithm
def test_the_mismatched_pass_is_needed_iff_declared(name: str) -> None:
    spec = algorithms.get(name)
    raw = {key: v for key, v in inputs_of(spec).items() if not key.startswith("mismatched")}
    if spec.mismatched:
        with pytest.raises(DataError, match="mismatched"):
            total(spec, raw, {})
    else:
        assert bool(total(spec, raw, {}).isfinite())


@every_algorithm
def test_repeating_every_token_changes_nothing_iff_length_normalized(name: str) -> None:
    spec = algorithms.get(name)
    raw = inputs_of(spec)
    if spec.family in ("Scores", "Ranked", "TokenScores"):
        assert not spec.length_normalized  # scores and lists have no tokens to repeat
        return
    if "repeating" in ROWS[name].exceptions:
        pytest.skip(ROWS[name].exceptions["repeating"])
    twice = {key: v.repeat_interleave(2, 1) if v.dim() > 1 else v for key, v in raw.items()}
    once, again = total(spec, raw, {}), total(spec, twice, {})
    assert torch.allclose(once, again, rtol=1e-12) == spec.length_normalized
    if (
        spec.beta_scale == "sum" and "doubling" not in ROWS[name].exceptions
    ):  # beta multiplies sums, so twice the tokens are twice the beta
        doubled = total(spec, raw, {"beta": 2 * spec.hyperparameters["beta"].default})
        torch.testing.assert_close(again, doubled, rtol=1e-12, atol=0)
    elif spec.beta_scale == "avg":
        assert spec.length_normalized


@pytest.mark.parametrize("junk", [1e30, float("inf"), float("-inf"), float("nan")])
@every_case
def test_junk_in_masked_positions_changes_nothing(name: str, hp: dict[str, Any], junk: float) -> None:
    spec = algorithms.get(name)
    raw = inputs_of(spec)
    dirty = {k: widen(v, 3) for k, v in raw.items()}  # more padding, too
    for key in tokens_of(raw):
        mask = dirty[mask_of(key)]
        dirty[key] = torch.where(mask if dirty[key].dim() == 2 else mask[..., None], dirty[key], junk)
    (clean_value, clean), (value, found) = gradients(spec, raw, hp), gradients(spec, dirty, hp)
    torch.testing.assert_close(value, clean_value, rtol=1e-13, atol=0)
    for key, gradient in found.items():
        wanted = widen(clean[key], 3)
        torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-15)


@every_case
def test_only_the_policy_has_a_gradient(name: str, hp: dict[str, Any]) -> None:
    spec = algorithms.get(name)
    _, found = gradients(spec, inputs_of(spec), hp)
    for key, gradient in found.items():
        assert bool(gradient.any()) == (key in policy_inputs(spec)), key


# --------------------------------------------------------------------------------------------------
# Any split of a step


@pytest.mark.parametrize("parts", [[[0], [1], [2], [3], [4]], [[4, 1], [], [3, 0, 2]]])
@every_case
def test_any_split_of_a_step_gives_the_same_gradient(name: str, hp: dict[str, Any], parts: list[list[int]]) -> None:
    spec = algorithms.get(name)
    if spec.random:  # the draws belong to the order of the step, which no split changes
        parts = [sorted(part) for part in ([[0], [1], [2], [3], [4]] if len(parts) > 3 else [[0, 1], [], [2, 3, 4]])]
    raw, values = inputs_of(spec), settings(spec, hp)
    counts = view_counts(build(spec, raw))
    whole, wanted = gradients(spec, raw, hp)

    leaves = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in raw.items()}
    views = [build(spec, take(leaves, part)) for part in parts]
    step = View.concat([view.detach() for view in views])
    stats = coupled_stats(spec, step, values, generator=seeded()) if spec.coupled else {}
    shares, done = [], 0
    for view in views:
        view, done = view.with_stats(items_of(stats, done, view.items)), done + view.items
        share, terms = reduce_terms(evaluate_loss(spec, view, values), view, spec.reduce, counts)
        share.backward()
        torch.testing.assert_close(sum(terms.values()) if terms else share, share)
        shares.append(share.detach())
    torch.testing.assert_close(torch.stack(shares).sum(), whole, rtol=1e-12, atol=1e-14)
    for key in policy_inputs(spec):
        found = torch.zeros_like(wanted[key]) if leaves[key].grad is None else leaves[key].grad
        torch.testing.assert_close(found, wanted[key], rtol=1e-11, atol=1e-14)


@every_algorithm
def test_a_coupled_algorithm_needs_the_statistics_of_the_whole_step(name: str) -> None:
    spec = algorithms.get(name)
    raw = inputs_of(spec)
    counts = view_counts(build(spec, raw))
    shares = []
    for part in ([0, 1], [2, 3, 4]):
        view = build(spec, take(raw, part))
        shares.append(reduce_terms(loss(name, view), view, spec.reduce, counts)[0])  # its own statistics
    assert torch.allclose(sum(shares), total(spec, raw, {}), rtol=1e-9) == (spec.coupled is None)


# --------------------------------------------------------------------------------------------------
# Direction and range


def directions(kind: str, raw: Raw) -> Raw:
    """+1 where a higher input must raise the loss, -1 where it must lower it."""
    one = torch.ones((), dtype=torch.float64)
    return {
        "Tokens": lambda: {"logp": -one},
        "Pairs": lambda: {"policy_chosen": -one, "policy_rejected": one},
        "Unpaired": lambda: {"policy": torch.where(raw["label"], -one, one)[:, None]},
        "Rollouts": lambda: {"logp": -raw["advantage"].sign()},
        "Scores": lambda: {"chosen": -one, "rejected": one},
        "Ranked": lambda: {"policy": _best_and_worst(raw)},
        "RankedScores": lambda: {"scores": _best_and_worst(raw)},
    }[kind]()


def _best_and_worst(raw: Raw) -> Tensor:
    """-1 at the best, +1 at the worst completion of a list, 0 elsewhere."""
    best = raw["rewards"].masked_fill(~raw["mask"], -torch.inf).argmax(-1, keepdim=True)
    worst = raw["rewards"].masked_fill(~raw["mask"], torch.inf).argmin(-1, keepdim=True)
    return torch.zeros_like(raw["rewards"]).scatter(-1, worst, 1.0).scatter(-1, best, -1.0)


@every_case
def test_the_loss_falls_when_the_better_completion_becomes_likelier(name: str, hp: dict[str, Any]) -> None:
    spec = algorithms.get(name)
    if spec.family in ("TokenScores", "Distill") or "direction" in ROWS[name].exceptions:
        pytest.skip(ROWS[name].exceptions.get("direction", "labels and teachers, not an order, say what is better"))
    raw = inputs_of(spec)
    if spec.family == "Rollouts":  # on policy, where nothing is clipped and the KL term is at its minimum
        raw = at_reference(spec, raw)
    _, found = gradients(spec, raw, hp)
    moved = [found[key] * direction for key, direction in directions(kind_of(spec), raw).items()]
    assert all(bool((step >= 0).all()) for step in moved) and any(bool((step > 0).any()) for step in moved)


def test_ipo_pulls_back_past_its_target() -> None:
    view = {"policy_chosen": [-1.0], "policy_rejected": [-9.0], "ref_chosen": [-5.0], "ref_rejected": [-5.0]}
    for tau, sign in ((0.05, -1), (0.1, 1)):  # the margin is 8, the targets are 10 and 5
        raw = {key: torch.tensor(value, dtype=torch.float64) for key, value in view.items()}
        raw |= {"len_chosen": torch.tensor([1.0]), "len_rejected": torch.tensor([1.0])}
        _, found = gradients(algorithms.get("ipo"), raw, {"beta": tau})
        assert float(found["policy_chosen"].sign()) == sign == -float(found["policy_rejected"].sign())


@pytest.mark.parametrize(
    ("policy", "reference"), [(-1200.0, -200.0), (-200.0, -1200.0), (0.0, -1000.0), (-1000.0, 0.0)]
)
@every_case
def test_gradients_are_finite_at_log_ratios_of_1000(
    name: str, hp: dict[str, Any], policy: float, reference: float
) -> None:
    spec = algorithms.get(name)
    if "extreme" in ROWS[name].exceptions or kind_of(spec) in ("TokenLabels", "Distill"):
        pytest.skip(ROWS[name].exceptions.get("extreme", "its inputs are logits, tested at 1000 with the family"))
    for swapped in (False, True):  # which side of a pair is the likely one
        raw = {k: v.float() if v.is_floating_point() else v for k, v in inputs_of(spec).items()}
        for key in [*policy_inputs(spec), *REFERENCE[kind_of(spec)]]:
            live = (key in policy_inputs(spec)) != (swapped and key.endswith("rejected"))
            total_logp = policy if live else reference
            length = raw[mask_of(key)].sum(-1, keepdim=True) if raw[key].dim() == 2 and spec.family != "Ranked" else 1
            raw[key] = torch.full_like(raw[key], total_logp) / length
        value, found = gradients(spec, raw, hp)
        assert bool(value.isfinite()) and all(bool(g.isfinite().all()) for g in found.values())


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


# --------------------------------------------------------------------------------------------------
# Documentation


@every_algorithm
def test_every_algorithm_is_documented(name: str) -> None:
    spec = algorithms.get(name)
    year = r"\b(19|20)\d\d\b"
    assert re.fullmatch(r"\d{4}\.\d{4,5}", spec.paper) or re.search(year, spec.paper), "an arXiv id or a citation"
    assert spec.title.endswith(").") and re.search(year, spec.title), "a title with authors and year"
    assert "$" in spec.doc, "the formula"
    for hyperparameter in spec.hyperparameters.values():
        assert hyperparameter.help, f"describe '{hyperparameter.name}' under Args"
