"""Supervised, unpaired, listwise, reward-model and distillation losses: identities, limits and hand-worked cases."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rows.distillation import golden_distill
from rows.listwise import one_list
from steelyard.algorithms import load
from steelyard.algorithms.core import algorithms, loss, reduce_term, view_counts
from steelyard.algorithms.distillation import jensen_shannon, kl
from steelyard.algorithms.listwise import places
from steelyard.algorithms.supervised import log1mexp
from steelyard.conform.inputs import build, inputs_of, random_inputs
from steelyard.errors import ConfigError, DataError
from steelyard.types import Distill, Pairs, Ranked, Rollouts, Scores, Tokens, TokenScores, Unpaired, View

load()

LISTWISE = ("pl_dpo", "kwise_dpo", "lipo_lambda", "infonca", "nca", "exo", "rm_listwise")
same = torch.testing.assert_close


def double(*rows: Any) -> Tensor:
    """A float64 tensor."""
    return torch.tensor(rows, dtype=torch.float64)


def view_of(name: str, **changes: Tensor) -> Any:
    """Random inputs of an algorithm with some replaced."""
    spec = algorithms.get(name)
    return build(spec, inputs_of(spec) | changes)


def slope(value: Tensor, by: Tensor) -> Tensor:
    """The gradient of a sum."""
    return torch.autograd.grad(value.sum(), by)[0]


# --------------------------------------------------------------------------------------------------
# Supervised


def test_variants_of_sft_share_its_loss() -> None:
    tokens = view_of("sft")
    for name in ("cpt", "rft", "neftune"):
        same(loss(name, tokens), loss("sft", tokens))
    assert algorithms.get("cpt").whole_text and not algorithms.get("sft").whole_text
    assert algorithms.get("neftune").noise == "alpha"


def test_the_weight_of_dft_is_a_constant() -> None:
    logp = double([-0.1, -2.0, -5.0]).requires_grad_()
    same(slope(loss("dft", Tokens.from_logps(logp, torch.ones(1, 3))), logp), -logp.detach().exp())


def test_unlikelihood_is_two_means_each_over_its_own_tokens() -> None:
    chosen, rejected = double([-0.5, -1.0, 0.0], [-2.0, -0.1, -0.3]), double([-0.2, 0.0], [-1.5, -3.0])
    masks: Any = {"mask_chosen": double([1, 1, 0], [1, 1, 1]), "mask_rejected": double([1, 0], [1, 1])}
    value = loss("unlikelihood", Pairs.from_logps(chosen, rejected, **masks), alpha=0.7, reduce=True)
    nll = (0.5 + 1.0 + 2.0 + 0.1 + 0.3) / 5
    push_down = -sum(math.log(1 - math.exp(a)) for a in (-0.2, -1.5, -3.0)) / 3
    same(value, torch.tensor(nll + 0.7 * push_down, dtype=torch.float64))
    tokens = Tokens.from_logps(chosen, masks["mask_chosen"])
    without = loss("unlikelihood", Pairs.from_logps(chosen, rejected, **masks), alpha=0.0, reduce=True)
    same(without, loss("sft", tokens, reduce=True))


def test_log1mexp() -> None:
    a = double(-50.0, -5.0, -1.0, -0.7, -0.69, -0.1, -1e-4).requires_grad_()
    same(log1mexp(a), torch.log1p(-a.exp()), rtol=1e-10, atol=1e-12)
    same(slope(log1mexp(a), a), -1 / torch.expm1(-a.detach()), rtol=1e-10, atol=0)
    for dtype in (torch.float32, torch.float64):
        certain = torch.zeros(1, dtype=dtype, requires_grad=True)
        same(log1mexp(certain), torch.full((1,), math.log(1e-5), dtype=dtype), rtol=1e-5, atol=0)
        assert float(slope(log1mexp(certain), certain)) == 0  # clamped, as in the authors' code


# --------------------------------------------------------------------------------------------------
# Unpaired


def test_kto_pair_is_kto_on_both_members() -> None:
    pairs, raw = random_inputs("Pairs"), random_inputs("Unpaired")
    hp: Any = {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.7}
    sums = {
        key: torch.stack(
            [(pairs[f"{key}_{side}"] * pairs[f"mask_{side}"]).sum(-1) for side in ("chosen", "rejected")], 1
        )
        for key in ("policy", "ref")
    }
    mismatched: Any = {key: raw[key] for key in raw if key.startswith("mismatched")}
    both = Unpaired.from_logps(
        sums["policy"].flatten(), [True, False] * 5, sums["ref"].flatten(), **mismatched
    )  # as the rows of pairs are taken apart
    z0 = float(F.relu(both.mismatched.logratio.mean()))  # type: ignore[union-attr]
    ratio = sums["policy"] - sums["ref"]
    chosen = 1.2 * (1 - torch.sigmoid(0.3 * (ratio[:, 0] - z0)))
    rejected = 0.7 * (1 - torch.sigmoid(0.3 * (z0 - ratio[:, 1])))
    same(loss("kto_pair", both, **hp).view(-1, 2), torch.stack([chosen, rejected], 1))
    same(loss("kto_pair", both, **hp), loss("kto", both, **hp))


def test_apo_zero_unpaired_is_kto_without_a_reference_point() -> None:
    raw: Any = random_inputs("Unpaired")
    below: Any = {"mismatched_ref": raw["mismatched"] + 1.0}  # mismatched log-ratios below zero: z0 is cut to 0
    same(loss("apo_zero_unpaired", view_of("kto", **below), beta=0.4), loss("kto", view_of("kto", **below), beta=0.4))


def labelled(rewards: list[float], label: list[bool], **columns: Any) -> Unpaired:
    """Completions whose implicit reward at beta = 0.1 is given."""
    logratio = double(*rewards) / 0.1
    return Unpaired.from_logps(logratio, label, torch.zeros_like(logratio), **columns)


def test_bco_over_two_steps_by_hand() -> None:
    first, state = loss("bco", labelled([1.0, 0.5, -0.3], [True, True, False]), beta=0.1, return_state=True)
    delta = (0.75 - 0.3) / 2
    same(first, -F.logsigmoid(double(1.0 - delta, 0.5 - delta, delta + 0.3)))
    assert {name: round(float(value), 9) for name, value in state.items()} == {
        "mean_desirable": 0.75,
        "mean_undesirable": -0.3,
        "seen_desirable": 2.0,
        "seen_undesirable": 1.0,
    }
    second, state = loss("bco", labelled([0.0, -0.5], [True, False]), beta=0.1, state=state, return_state=True)
    delta = (1.5 / 3 - 0.8 / 2) / 2
    same(second, -F.logsigmoid(double(0.0 - delta, delta + 0.5)))
    assert float(state["seen_desirable"]) == 3 and float(state["mean_undesirable"]) == pytest.approx(-0.4)


def test_bco_before_it_has_seen_both_classes() -> None:
    terms, state = loss("bco", labelled([1.0, 0.5], [True, True]), beta=0.1, return_state=True)
    same(terms, -F.logsigmoid(double(0.25, -0.25)))  # delta is the one class's mean
    assert float(state["seen_undesirable"]) == 0 and float(state["mean_undesirable"]) == 0


def test_bco_weighs_undesirable_completions_by_the_density_ratio() -> None:
    rewards, label = [0.2, 0.1, -0.4, -0.3], [True, False, False, False]
    plain = loss("bco", labelled(rewards, label), beta=0.1)
    weighted = loss("bco", labelled(rewards, label, density_ratio=double(9.0, 0.1, 2.0, 50.0)), beta=0.1)
    same(weighted / plain, double(1.0, 0.5, 2.0, 10.0))


# --------------------------------------------------------------------------------------------------
# Lists


def two_lists() -> tuple[Ranked, Pairs]:
    """Pairs, and the same as lists of two, half of them worst first."""
    raw: Any = random_inputs("Pairs")
    pairs = Pairs.from_logps(**raw)
    sides = [torch.stack([x.logp, x.ref], 1) for x in (pairs.chosen, pairs.rejected)]
    flip = torch.arange(5) % 2 > 0
    stacked = torch.stack(sides, -1)  # [b, policy or ref, k]
    stacked = torch.where(flip[:, None, None], stacked.flip(-1), stacked)
    rewards = torch.where(flip[:, None], double([0.0, 1.0]), double([1.0, 0.0]))
    return Ranked.from_logps(stacked[:, 0], stacked[:, 1], rewards=rewards), pairs


def test_lists_of_two_are_pairs() -> None:
    ranked, pairs = two_lists()
    dpo = loss("dpo", pairs, beta=0.2)
    same(loss("infonca", ranked, beta=0.2, a=1e-3), dpo)  # a hard label
    same(loss("pl_dpo", ranked, beta=0.2), dpo)
    same(loss("kwise_dpo", ranked, beta=0.2), dpo)
    weight = abs(1 / math.log(2) - 1 / math.log(3))  # gains 2^1 - 2^0, ranks 1 and 2 in either order
    same(loss("lipo_lambda", ranked, beta=0.2), weight * dpo)
    same(loss("lipo_lambda", ranked, beta=0.2, norm="rax"), 2 * math.log(2) * weight * dpo)
    # NCA with a hard label: -log sig(r_w) - (log sig(-r_w) + log sig(-r_l)) / 2, as nca_pair
    win, lose = 0.2 * pairs.chosen.logratio, 0.2 * pairs.rejected.logratio
    wanted = -F.logsigmoid(win) - 0.5 * F.logsigmoid(-win) - 0.5 * F.logsigmoid(-lose)
    same(loss("nca", ranked, beta=0.2, a=1e-3), wanted)


def test_reward_models_of_two_are_bradley_terry() -> None:
    raw: Any = random_inputs("Scores")
    scores = Scores.from_scores(**raw)
    ranked = Ranked.from_scores(torch.stack([raw["chosen"], raw["rejected"]], 1))
    wanted = loss("rm", scores)["bradley_terry"]
    same(loss("rm_listwise", ranked), wanted)
    same(loss("rm_listwise", ranked, form="kwise"), wanted)


def test_exo_of_two_is_reverse_kl_to_the_smoothed_preference() -> None:
    ranked, pairs = two_lists()
    h, eps = 0.2 * (pairs.chosen.logratio - pairs.rejected.logratio), 1e-3
    q = torch.sigmoid(h)
    wanted = q * (q.log() - math.log(1 - eps)) + (1 - q) * ((1 - q).log() - math.log(eps))
    same(loss("exo", ranked, beta=0.2, beta_r=1 / math.log((1 - eps) / eps)), wanted)  # rewards 1 and 0


def test_exo_by_hand_and_at_its_optimum() -> None:
    r, psi = [0.3, -0.1, 0.2], [1, 0.2, -0.5]
    p, q = (double(*x).softmax(-1) for x in (r, [x / 0.7 for x in psi]))
    found = loss("exo", one_list(r, [float(x) for x in psi]), beta=1.0, beta_r=0.7)
    same(found, (p * (p / q).log()).sum()[None])
    optimum = one_list([2 * x for x in psi], [float(x) for x in psi])  # beta l = psi / beta_r
    assert float(loss("exo", optimum, beta=0.5, beta_r=1.0)) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("name", LISTWISE)
def test_ragged_lists_are_lists_one_by_one(name: str) -> None:
    spec = algorithms.get(name)
    raw = inputs_of(spec)
    assert not raw["mask"].all()
    whole = loss(name, build(spec, raw))
    for i, present in enumerate(raw["mask"]):
        alone = {key: value[i : i + 1, present] for key, value in raw.items()}
        same(loss(name, build(spec, alone)), whole[i : i + 1])


@pytest.mark.parametrize("name", LISTWISE)
def test_the_order_of_a_list_does_not_matter(name: str) -> None:
    spec = algorithms.get(name)
    raw = inputs_of(spec)
    moved = {key: value[:, [2, 0, 3, 1]] for key, value in raw.items()}  # padding in the middle, too
    same(loss(name, build(spec, moved)), loss(name, build(spec, raw)))


def test_lipo_with_a_tie() -> None:
    view = one_list([0.3, 0.9, -0.2, 0.1], [0.7, 0.7, 0.2, 0.9])
    same(loss("lipo_lambda", view, beta=1.0), double(0.457716), atol=6e-7, rtol=0)
    same(loss("lipo_lambda", view, beta=1.0, norm="rax"), double(0.253811), atol=6e-7, rtol=0)


def test_tied_rewards() -> None:
    tied = one_list([0.4, 1.1, -0.3], [1.0, 1.0, 1.0])
    for name in ("kwise_dpo", "lipo_lambda"):
        assert float(loss(name, tied)) == 0  # no pair
    in_order = one_list([0.4, 1.1, -0.3], [3.0, 2.0, 1.0])
    same(loss("pl_dpo", tied), loss("pl_dpo", in_order))
    same(loss("infonca", tied, beta=1.0), -double(0.4, 1.1, -0.3).log_softmax(-1).mean()[None])


def test_places_rank_ties_in_list_order_and_absent_ones_last() -> None:
    present = torch.tensor([[True, False, True, True], [True, True, True, True]])
    found = places(double([1.0, 9.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]), present)
    assert found.tolist() == [[1, 3, 0, 2], [0, 1, 2, 3]]


# --------------------------------------------------------------------------------------------------
# Reward models


def test_a_margin_of_zero_is_rm() -> None:
    raw: Any = random_inputs("Scores")
    scores = Scores.from_scores(**raw, margin=torch.zeros(5, dtype=torch.float64))
    same(loss("rm_margin", scores), loss("rm", scores)["bradley_terry"])
    with pytest.raises(DataError, match="'margin'"):
        loss("rm_margin", Scores.from_scores(**raw))


def test_the_rejected_completion_costs_more_and_unsafe_ones_cost_something() -> None:
    chosen, rejected = double(0.1, 0.4).requires_grad_(), double(0.2, -0.3).requires_grad_()
    scores = Scores.from_scores(chosen, rejected, sign_chosen=[-1.0, 1.0], sign_rejected=[1.0, 1.0])
    order = loss("cost_model", scores)["order"]
    assert bool((slope(order, rejected) < 0).all())  # a higher cost of the rejected completion is better
    sign = loss("cost_model", scores)["sign"]
    assert slope(sign, chosen).sign().tolist() == [1.0, -1.0]  # safe: lower; unsafe: higher
    swapped = Scores.from_scores(rejected, chosen)
    same(order, loss("rm", swapped)["bradley_terry"])


def test_orm_in_the_peers_normalisation_and_without_the_language_model() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    scores = TokenScores.from_scores(double([0.2, 0.6, 0.9], [0.5, -0.1, 0.0]), double(1.0, 0.0), mask)
    terms = loss("orm", scores, lm_weight=0.0)
    counts = view_counts(scores)
    same(reduce_term(terms["verifier"], scores, "seq-mean-token-sum", counts), torch.tensor(0.535).double())
    assert set(terms) == {"verifier"}
    last = loss("orm", scores, lm_weight=0.0, level="solution")["verifier"]
    same(last, double(0.1**2, 0.1**2))
    with pytest.raises(DataError, match="log-probabilities"):
        loss("orm", scores)
    with pytest.raises(ConfigError, match="mse"):
        loss("orm", scores, form="mae")


def test_prm_is_cross_entropy_at_labelled_steps() -> None:
    spec, raw = algorithms.get("prm"), inputs_of(algorithms.get("prm"))
    found = loss("prm", build(spec, raw), reduce=True)
    kept = raw["mask"]
    same(found, F.cross_entropy(raw["scores"][kept], raw["labels"][kept].long()))
    soft = raw | {"labels": torch.full_like(raw["labels"], 0.3)}
    target = double(0.7, 0.3).expand(int(kept.sum()), 2)
    same(loss("prm", build(spec, soft), reduce=True), F.cross_entropy(raw["scores"][kept], target))
    with pytest.raises(DataError, match="two logits"):
        loss("prm", TokenScores.from_scores(raw["scores"][..., 0], raw["labels"], kept))


def test_implicit_prm_is_a_classifier_by_the_log_ratio() -> None:
    unpaired = view_of("implicit_prm")
    reward = 0.05 * unpaired.completions.logratio
    same(
        loss("implicit_prm", unpaired),
        F.binary_cross_entropy(reward.sigmoid(), unpaired.label.double(), reduction="none"),
    )
    same(loss("implicit_prm", labelled([1.0], [True]), beta=0.1), -F.logsigmoid(double(1.0)))


# --------------------------------------------------------------------------------------------------
# Distillation


def test_kd_between_its_ends() -> None:
    raw: Any = random_inputs("Distill")
    distill = Distill.from_logits(**raw)
    tokens = Tokens.from_logps(distill.logp, raw["mask"])
    same(loss("kd", distill, alpha=1.0, reduce=True), loss("sft", tokens, reduce=True))
    same(loss("kd", distill, alpha=0.0, tau=1.0, reduce=True), loss("gkd", distill, b=0.0, reduce=True))
    # tau^2 keeps the gradient's size: at a high temperature it is half the squared distance of centred logits
    student, teacher = (x - x.mean(-1, keepdim=True) for x in (raw["student"], raw["teacher"]))
    wanted = ((student - teacher) ** 2).mean(-1) / 2
    found = loss("kd", distill, alpha=0.0, tau=1e4)["divergence"]
    same(found[raw["mask"]], wanted[raw["mask"]], rtol=1e-3, atol=1e-6)


def test_gkd_by_an_independent_divergence() -> None:
    distill = golden_distill()
    student, teacher = distill.at()
    mixture = (0.3 * teacher.exp() + 0.7 * student.exp()).log()
    torch_kl = lambda p, q: F.kl_div(q, p, log_target=True, reduction="none").sum(-1)  # noqa: E731
    same(loss("gkd", distill, b=0.3), 0.3 * torch_kl(teacher, mixture) + 0.7 * torch_kl(student, mixture))
    same(loss("gkd", distill, b=0.0), torch_kl(teacher, student))
    same(loss("gkd", distill, b=1.0), torch_kl(student, teacher))


def test_the_limits_of_gkd() -> None:
    student, teacher = golden_distill().at()
    # near its ends the divergence is that share of the KL: JSD_b / b -> KL(T||S) as b -> 0
    same(jensen_shannon(student, teacher, 1e-7) / 1e-7, kl(teacher, student), rtol=1e-5, atol=0)
    same(jensen_shannon(student, teacher, 1 - 1e-7) / 1e-7, kl(student, teacher), rtol=1e-5, atol=0)
    same(jensen_shannon(student, teacher, 0.3), jensen_shannon(teacher, student, 0.7))
    assert float(jensen_shannon(student, teacher, 0.5).max()) <= math.log(2)


@pytest.mark.parametrize("b", [0.0, 0.5, 1.0])
def test_divergences_are_finite_when_one_side_excludes_a_token(b: float) -> None:
    teacher = torch.tensor([[0.0, float("-inf"), 1.0]]).log_softmax(-1)
    logits = torch.tensor([[1000.0, -1000.0, 0.0]], requires_grad=True)
    value = jensen_shannon(logits.log_softmax(-1), teacher, b)
    assert bool(value.isfinite().all()) and bool(slope(value, logits).isfinite().all())
    certain = torch.tensor([[0.0, float("-inf"), float("-inf")]])
    assert float(jensen_shannon(certain, certain, b)) == pytest.approx(0.0, abs=1e-7)


def minillm_case() -> dict[str, Any]:
    """Two samples (one with a hole in its mask) and a given completion, off policy, from a mixture."""
    generator = torch.Generator().manual_seed(3)
    student = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    teacher = student + torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (3, 4), generator=generator)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [1, 1, 1, 0]]).bool()
    logp = student.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    noise = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    own = torch.tensor([True, True, False])
    old, behaviour = logp + 0.2 * noise[0], logp + 0.4 * noise[1]
    behaviour[2] = float("nan")  # nothing sampled the given completion
    return dict(student=student, teacher=teacher, labels=labels, mask=mask, old=old, own=own, behaviour=behaviour)


def test_minillm_by_hand() -> None:
    raw = minillm_case()
    terms = loss("minillm", Distill.from_logits(**raw), clip=0.2, lm_weight=0.6)
    total = loss("minillm", Distill.from_logits(**raw), clip=0.2, lm_weight=0.6, reduce=True)
    s, t = (raw[key].log_softmax(-1) for key in ("student", "teacher"))
    pick = lambda x, i, j: float(x[i, j, raw["labels"][i, j]])  # noqa: E731
    places_of = [[0, 1, 2, 3], [0, 2]]
    to_go = {}
    for i, steps in enumerate(places_of):
        rewards = [pick(t, i, j) - float(raw["old"][i, j]) for j in steps]
        for n, j in enumerate(steps):
            to_go[i, j] = sum(rewards[n:]) / (len(steps) - n)
    values = double(*to_go.values())
    advantage = (values - values.mean()) / (values.var(correction=0) + 1e-8).sqrt()
    policy = single = 0.0
    for (i, j), a in zip(to_go, advantage.tolist(), strict=True):
        ratio = math.exp(pick(s, i, j) - float(raw["behaviour"][i, j]))
        policy -= min(ratio * a, min(max(ratio, 0.8), 1.2) * a) / 6
        single += float((s[i, j].exp() * (s[i, j] - t[i, j])).sum()) / 6
    language = -0.6 * sum(pick(s, 2, j) for j in range(3)) / 3
    view = Distill.from_logits(**raw)
    parts = {name: float(reduce_term(term, view, "token-mean", view_counts(view))) for name, term in terms.items()}
    assert parts == pytest.approx({"policy": policy, "single_step": single, "language_model": language}, rel=1e-9)
    assert float(total) == pytest.approx(policy + single + language, rel=1e-9)


def test_minillm_without_behaviour_is_against_the_old_student() -> None:
    raw = minillm_case()
    plain = {key: value for key, value in raw.items() if key != "behaviour"}
    same(
        loss("minillm", Distill.from_logits(**plain), reduce=True),
        loss("minillm", Distill.from_logits(**raw | {"behaviour": raw["old"]}), reduce=True),
    )


def test_minillm_has_no_gradient_but_the_student_s_and_splits_exactly() -> None:
    raw = minillm_case()
    whole = {key: raw[key].clone().requires_grad_() for key in ("student", "teacher", "old")}
    loss("minillm", Distill.from_logits(**raw | whole), reduce=True).backward()
    assert whole["teacher"].grad is None and whole["old"].grad is None
    spec, student = algorithms.get("minillm"), raw["student"].clone().requires_grad_()
    views = [
        Distill.from_logits(**{k: v[i : i + 1] for k, v in (raw | {"student": student}).items()}) for i in range(3)
    ]
    step = View.concat([view.detach() for view in views])
    assert spec.coupled is not None and spec.loss is not None
    stats, counts = spec.coupled(step), view_counts(step)
    for i, view in enumerate(views):
        mine = view.with_stats(stats | {"advantage": stats["advantage"][i : i + 1]})
        terms = spec.loss(mine)
        assert isinstance(terms, dict)
        sum(reduce_term(x, mine, "token-mean", counts) for x in terms.values()).backward()  # type: ignore[union-attr]
    same(student.grad, whole["student"].grad)


@pytest.mark.parametrize("own", [True, False])
def test_minillm_on_steps_of_one_kind(own: bool) -> None:
    raw = minillm_case() | {"own": torch.full((3,), own), "behaviour": minillm_case()["old"]}
    terms = loss("minillm", Distill.from_logits(**raw))
    assert all(bool(term.isfinite().all()) for term in terms.values())
    assert bool(terms["language_model"].any()) != own
    assert bool(terms["policy"].any()) == bool(terms["single_step"].any()) == own


def test_opd_rewards_each_token_for_itself() -> None:
    raw: Any = random_inputs("Rollouts") | {"old": random_inputs("Rollouts")["logp"]}
    logp = raw["logp"].clone().requires_grad_()
    rollouts = Rollouts.from_logps(**raw | {"logp": logp})
    wanted = torch.where(raw["mask"], raw["logp"] - raw["ref"], 0.0)
    same(slope(loss("opd", rollouts)[raw["mask"]], logp), wanted)  # likelier where the teacher says so
    assert algorithms.get("opd").teacher and algorithms.get("opd").reference == "teacher"


def test_opd_is_a_policy_gradient_of_the_reverse_kl() -> None:
    # over all tokens of a vocabulary, weighted by the student's probabilities, its slope is that of KL(S||T)
    logits, teacher = double(0.3, -0.5, 1.0, 0.1).requires_grad_(), double(0.0, 0.7, 0.2, -1.0).log_softmax(-1)
    student = logits.log_softmax(-1)
    mask = torch.ones(4, 1)
    rollouts = Rollouts.from_logps(
        student[:, None], student.detach()[:, None], mask, torch.zeros(4), torch.zeros(4), teacher[:, None]
    )
    expected = (student.detach().exp() * loss("opd", rollouts)[:, 0]).sum()
    wanted = slope(kl(logits.log_softmax(-1), teacher), logits)
    same(slope(expected, logits), wanted)
