"""Every algorithm through a real model: what it declares is provided, and no split, packing or padding matters.

The groups are fabricated for each family with the columns that the specification names, so that a new algorithm
is covered without a line here.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import VOCABULARY, build_model, build_tokenizer, norm_in_double
from steelyard.algorithms import load
from steelyard.algorithms.core import AlgorithmSpec, algorithms, initial_state, loss
from steelyard.algorithms.distillation import minillm_statistics
from steelyard.config import ModelConfig, RunConfig
from steelyard.data.packing import pack
from steelyard.errors import DataError
from steelyard.models.heads import keeps_lm_head, token_scores
from steelyard.models.load import Policy, load_policy
from steelyard.models.logprobs import token_distributions, token_logprobs
from steelyard.trainer.forward import StepInput, embedding_noise, forward_view
from steelyard.trainer.moving import MovingReference
from steelyard.trainer.rows import training_rows
from steelyard.trainer.sources import attach_now
from steelyard.trainer.step import accumulate
from steelyard.types import Distill, Group, Pairs

load()
NAMES = [
    name for name, spec in algorithms.items() if spec.loss is not None and spec.loss.__module__.startswith("steelyard.")
]
every_algorithm = pytest.mark.parametrize("name", NAMES)


def groups_for(spec: AlgorithmSpec, n: int = 6, seed: int = 0) -> list[Group]:
    """Ragged groups with holes in their masks, and every column that ``spec`` may ask for."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        pair = spec.family in ("Pairs", "Scores")
        k = 2 if pair else (2 + i % 3 if spec.family in ("Ranked", "Rollouts") else 1 + i % 2)
        lengths = rng.integers(2, 9, k)
        completions = tuple(rng.integers(3, VOCABULARY, t).astype(np.int32) for t in lengths)
        masks = tuple((rng.random(t) < 0.8) | (np.arange(t) == t - 1) for t in lengths)
        trained = (True,) * k
        if spec.mismatched:
            leaf = rng.integers(3, VOCABULARY, 5).astype(np.int32)
            completions, masks = (*completions, leaf), (*masks, np.ones(5, bool))
            lengths, trained, k = np.append(lengths, 5), (*trained, False), k + 1
        steps = [np.where(rng.random(t) < 0.6, (rng.random(t) < 0.5) * 1.0, np.nan).astype(np.float32) for t in lengths]
        for labels, mask in zip(steps, masks, strict=True):
            labels[-1] = 1.0
            labels[~mask] = np.nan
        made.append(
            Group(
                prompt=rng.integers(3, VOCABULARY, rng.integers(1, 7)).astype(np.int32),
                completions=completions,
                masks=masks,
                trained=trained,
                columns={name: (1.0 if name.startswith("sign") else 0.1 + float(rng.random())) for name in spec.columns}
                | {"score_chosen": 1.7},
                completion_columns={
                    "label": rng.random(k) < 0.5,
                    "score": rng.random(k),
                    "reward": rng.random(k),
                    "advantage": rng.random(k) - 0.5,
                    "own": np.full(k, i % 2 == 0),
                    **{name: rng.random(k) for name in spec.columns},
                },
                token_columns={"step_label": tuple(steps)} if spec.head == "token_labels" else {},
                key=f"row:{i}",
            )
        )
    return made


def moved(policy: Policy, seed: int, scale: float = 0.02) -> Policy:
    """The policy with other weights: no loss sits at its symmetric point."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return policy


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    build_model().save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    return path


def policy_for(spec: AlgorithmSpec, directory: Path, *, attn: Any = "packed") -> Policy:
    model = ModelConfig.model_validate({"name_or_path": str(directory), "dtype": "float64", "attn": attn})
    defaults = {name: hp.default for name, hp in spec.hyperparameters.items()}
    policy = load_policy(model, None, head=spec.head, lm_head=keeps_lm_head(spec.head, defaults), seed=0)
    for module in policy.model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            norm_in_double(module)
    return policy


def step_input(spec: AlgorithmSpec, policy: Policy, other: Policy | None, budget: int) -> StepInput:
    values = {name: hp.default for name, hp in spec.hyperparameters.items()}
    return StepInput(policy, spec, values, budget, other=other, state=initial_state(spec))


def gradient(inputs: StepInput, groups: list[Group]) -> tuple[dict[str, float], Tensor, dict[str, Tensor]]:
    model = inputs.policy.model
    model.zero_grad()
    found = accumulate(inputs, groups, seed=(3, 5), progress=0.5)
    parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return found, torch.cat(parts), inputs.state


@every_algorithm
def test_no_split_and_no_padding_changes_the_gradient(name: str, directory: Path) -> None:
    spec = algorithms.get(name)
    policy = policy_for(spec, directory)
    lm = policy_for(replace(spec, head="lm"), directory)
    groups = groups_for(spec)
    if spec.reference != "none":
        groups = attach_now(lm, groups, 10_000)
    policy, other = moved(policy, 1), moved(lm, 2, 0.1)
    other = other if spec.family == "Distill" or "ref_kl" in spec.extras else None
    found, whole, state = gradient(step_input(spec, policy, other, 100_000), groups)
    assert bool(whole.isfinite().all()) and float(whole.norm()) > 0
    largest = max(group.tokens for group in groups)
    for budget in (largest, 2 * largest):
        split_found, split, split_state = gradient(step_input(spec, policy, other, budget), groups)
        assert split_found["loss"] == pytest.approx(found["loss"], rel=1e-9)
        assert float((split - whole).norm() / whole.norm()) < 1e-9
        assert all(torch.allclose(split_state[key].double(), state[key].double()) for key in state)
    padded = replace(policy, packed=False)
    padded_found, rows, _ = gradient(step_input(spec, padded, other and replace(other, packed=False), 100_000), groups)
    assert padded_found["loss"] == pytest.approx(found["loss"], rel=1e-9)
    assert float((rows - whole).norm() / whole.norm()) < 1e-9


# --------------------------------------------------------------------------------------------------
# What is provided is what it says


def plain_logits(policy: Policy, group: Group, index: int) -> Tensor:
    """``[t, v]`` log-probabilities at the trained tokens of a completion, by an ordinary forward pass."""
    ids = np.concatenate([group.prompt, group.completions[index]]).astype(np.int64)
    model = build_model()
    model.load_state_dict(policy.model.state_dict())
    logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0, len(group.prompt) - 1 : -1]
    return logits.log_softmax(-1)[torch.from_numpy(group.masks[index])].detach()


@pytest.fixture
def two(directory: Path) -> tuple[Policy, Policy, list[Group]]:
    """A policy, another model of the same shape, and groups of one completion."""
    spec = algorithms.get("sft")
    made = groups_for(spec)
    first = [
        g.replace(
            completions=g.completions[:1],
            masks=g.masks[:1],
            trained=(True,),
            completion_columns={k: v[:1] for k, v in g.completion_columns.items()},
        )
        for g in made
    ]
    return moved(policy_for(spec, directory), 1), moved(policy_for(spec, directory), 2, 0.1), first


@pytest.mark.parametrize("chunk", [5, 4096])
def test_kl_to_a_live_reference_and_distributions(two: tuple[Policy, Policy, list[Group]], chunk: int) -> None:
    policy, other, groups = two
    (batch,) = pack(groups, 10_000)
    mine = torch.cat([plain_logits(policy, g, 0) for g in groups])
    theirs = torch.cat([plain_logits(other, g, 0) for g in groups])
    kl = (theirs.exp() * (theirs - mine)).sum(-1)
    found = token_logprobs(policy.model, batch, extras=frozenset({"ref_kl"}), reference=other, chunk=chunk)
    torch.testing.assert_close(found.ref_kl, kl)
    assert found.ref_kl is not None and found.ref_kl.requires_grad

    both = token_distributions(policy.model, other, batch, chunk=chunk)
    torch.testing.assert_close(both.student, mine)
    torch.testing.assert_close(both.teacher, theirs)
    torch.testing.assert_close(both.logp, mine.gather(-1, batch.targets[:, None])[:, 0])
    torch.testing.assert_close(both.teacher_logp, theirs.gather(-1, batch.targets[:, None])[:, 0])
    assert both.student.requires_grad and not both.teacher.requires_grad

    top = token_distributions(policy.model, other, batch, top_k=4, tail=True, chunk=chunk)
    kept, support = theirs.topk(4, -1)
    torch.testing.assert_close(top.teacher[:, :4], kept)
    torch.testing.assert_close(top.student[:, :4], mine.gather(-1, support))
    for side in (top.student, top.teacher):  # with the tail, a distribution
        torch.testing.assert_close(side.exp().sum(-1), torch.ones(len(kl), dtype=torch.float64))
    assert token_distributions(policy.model, other, batch, top_k=4, chunk=chunk).student.shape[-1] == 4


def test_noise_has_the_size_that_neftune_asks_for(two: tuple[Policy, Policy, list[Group]]) -> None:
    policy, _, groups = two
    seen: list[Tensor] = []
    embedding = policy.model.get_input_embeddings()  # type: ignore[operator]
    handle = embedding.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    (batch,) = pack(groups, 10_000)
    token_logprobs(policy.model, batch)
    handle.remove()
    with embedding_noise(policy.model, batch, 5.0, (0, 1)):
        handle = embedding.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
        token_logprobs(policy.model, batch)
    handle.remove()
    noise = (seen[1] - seen[0])[0]
    start = 0
    for group in groups:
        part, start = noise[start : start + group.tokens], start + group.tokens
        bound = 5.0 / (group.tokens * noise.shape[1]) ** 0.5
        assert 0.9 * bound < float(part.abs().max()) <= bound
    with embedding_noise(policy.model, batch, 5.0, (0, 2)):
        other_step = token_logprobs(policy.model, batch).logp
    with embedding_noise(policy.model, batch, 5.0, (0, 1)):
        assert not torch.equal(other_step, token_logprobs(policy.model, batch).logp)
    clean = token_logprobs(policy.model, batch).logp
    assert torch.equal(clean, token_logprobs(policy.model, batch).logp)  # and none is left behind


def test_lists_labels_and_columns_reach_the_view(directory: Path) -> None:
    spec = algorithms.get("pl_dpo")
    groups = groups_for(spec)
    policy = policy_for(spec, directory)
    groups = attach_now(policy, groups, 10_000)
    (batch,) = pack(groups, 10_000)
    view = forward_view(step_input(spec, moved(policy, 1), None, 10_000), batch)
    sums = [float(part.sum()) for part in batch.split(token_logprobs(policy.model, batch).logp)]
    flat = iter(sums)
    for i, group in enumerate(groups):
        assert view.present[i].sum() == group.k
        assert view.logp[i][: group.k].tolist() == pytest.approx([next(flat) for _ in range(group.k)])
        assert view.rewards[i][: group.k].tolist() == pytest.approx(group.completion_columns["score"].tolist())

    spec = algorithms.get("odpo")
    (batch,) = pack(attach_now(policy, groups_for(spec), 10_000), 10_000)
    view = forward_view(step_input(spec, policy, None, 10_000), batch)
    assert view.column("score_chosen").tolist() == pytest.approx([g.columns["score_chosen"] for g in batch.groups])

    spec = algorithms.get("prm")
    policy = policy_for(spec, directory)
    (batch,) = pack(groups_for(spec), 10_000)
    view = forward_view(step_input(spec, policy, None, 10_000), batch)
    labels = np.concatenate([x for g in batch.groups for x in g.token_columns["step_label"]])
    assert int(view.mask.sum()) == int((~np.isnan(labels)).sum())
    assert float(view.labels.sum()) == float(np.nansum(labels))
    flat_scores = token_scores(policy.model, batch)
    trained = np.concatenate([m for g in batch.groups for m in g.masks])
    kept = torch.from_numpy(~np.isnan(labels[trained]))
    torch.testing.assert_close(view.scores[view.mask], flat_scores[kept])


BY_FAMILY = ("sft", "dpo", "apo_zero_unpaired", "kto", "pl_dpo", "rm", "rm_listwise", "orm", "prm", "kd", "grpo")


@pytest.mark.parametrize("like", BY_FAMILY)
def test_a_declared_column_reaches_the_view_of_every_family(like: str, directory: Path) -> None:
    spec = replace(algorithms.get(like), columns=("weight",), optional_columns=("known", "unknown"))
    policy = policy_for(spec, directory)
    lm = policy_for(replace(spec, head="lm"), directory)
    groups = [
        g.replace(
            columns={"weight": i + 0.5, "known": str(i), "unknown": None},
            completion_columns={k: v for k, v in g.completion_columns.items() if k != "weight"},
        )
        for i, g in enumerate(groups_for(spec))
    ]
    (batch,) = pack(attach_now(lm, groups, 10_000) if spec.reference != "none" else groups, 10_000)
    inputs = step_input(spec, policy, lm, 10_000)
    view = forward_view(inputs, batch)
    lists = spec.family in ("Pairs", "Scores", "Ranked")
    order = [int(g.key.removeprefix("row:")) for g in batch.groups]
    expected = [i for i, g in zip(order, batch.groups, strict=True) for _ in range(1 if lists else sum(g.trained))]
    assert len(expected) == view.items
    assert view.column("weight").tolist() == [i + 0.5 for i in expected]
    assert view.column("known").tolist() == expected and "unknown" not in view.columns
    for change, message in (
        ({"known": 1}, r"group row:2: the column 'weight' is missing"),
        ({"weight": 1}, r"group row:2: the column 'known' is missing"),
        ({"weight": "much", "known": 1}, r"group row:2: column 'weight': expected a number, got 'much'"),
    ):
        broken = [g.replace(columns=change) if g.key == "row:2" else g for g in batch.groups]
        (batch_of_broken,) = pack(broken, 10_000)
        with pytest.raises(DataError, match=message):
            forward_view(inputs, batch_of_broken)


def test_a_completion_may_have_a_number_of_its_own(directory: Path) -> None:
    spec = replace(algorithms.get("apo_zero_unpaired"), columns=("weight",))
    policy = policy_for(spec, directory)
    (batch,) = pack(attach_now(policy, groups_for(spec), 10_000), 10_000)  # `weight` of groups and of completions
    view = forward_view(step_input(spec, policy, None, 10_000), batch)
    own = np.concatenate([g.completion_columns["weight"] for g in batch.groups])
    assert view.column("weight").tolist() == own.tolist()


ANSWER = {"prompt": "1 + 1", "completion": " 2"}


@pytest.mark.parametrize(
    ("like", "row"),
    [
        ("sft", ANSWER),
        ("kd", ANSWER),
        ("bco", {**ANSWER, "label": True}),
        ("orm", {**ANSWER, "label": 0}),
    ],
)
def test_columns_of_a_file_become_columns_of_groups(like: str, row: dict[str, Any], tmp_path: Path) -> None:
    spec = replace(algorithms.get(like), columns=("weight",), optional_columns=("density_ratio",))
    rows = [{**row, "weight": "0.5", "density_ratio": 2}, {**row, "weight": 1, "density_ratio": 3}]

    def groups_of(*lines: dict[str, Any]) -> list[Group]:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        cfg = RunConfig.model_validate({"algorithm": like, "data": {"path": str(path)}})
        return training_rows(cfg, spec, build_tokenizer(), None).groups

    assert [(g.columns["weight"], g.columns["density_ratio"]) for g in groups_of(*rows)] == [(0.5, 2.0), (1.0, 3.0)]
    with pytest.raises(DataError, match=r"rows.jsonl:2: column 'weight': expected a finite number, got nothing"):
        groups_of(rows[0], row)
    with pytest.raises(DataError, match=r"rows.jsonl:2: column 'density_ratio': .* in every row or in none"):
        groups_of(rows[0], {**row, "weight": 1})


def test_a_loss_that_cannot_use_its_rows_names_them(directory: Path) -> None:
    spec = algorithms.get("odpo")
    policy = policy_for(spec, directory)
    groups = [g.replace(columns={"score_chosen": 0.0, "score_rejected": 1.0}) for g in groups_for(spec, n=2)]
    with pytest.raises(DataError, match="odpo: .* among rows row:0, row:1"):
        accumulate(step_input(spec, policy, None, 10_000), attach_now(policy, groups, 10_000))


@pytest.mark.parametrize("budget", [40, 100_000])
def test_statistics_of_a_step_are_made_without_distributions(budget: int, directory: Path) -> None:
    seen: list[Distill] = []

    def spy(distill: Distill) -> dict[str, Tensor]:
        seen.append(distill)
        return minillm_statistics(distill)

    spec = replace(algorithms.get("minillm"), coupled=spy)
    policy, other = (moved(policy_for(spec, directory), seed) for seed in (1, 2))
    groups = groups_for(spec)
    assert (len(pack(groups, budget)) > 1) == (budget == 40)
    accumulate(step_input(spec, policy, other, budget), groups)
    (view,) = seen
    assert view.student.shape == view.teacher.shape == (*view.mask.shape, 0)
    assert view.items == sum(g.k for g in groups) and not view.logp.requires_grad
    with pytest.raises(DataError, match="coupled functions see the values of tokens only"):
        view.at()


def test_a_moving_reference_follows(directory: Path) -> None:
    groups = groups_for(algorithms.get("sft"))
    policy, other = (load_policy(ModelConfig(name_or_path=str(directory)), None, seed=0) for _ in range(2))
    moved(other, 2, 0.1)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    moving = MovingReference(policy, 0.25, 2, lambda p, g: attach_now(p, g, 10_000))
    at_start = moving.attach(groups)
    policy.model.load_state_dict(other.model.state_dict())
    moving.follow(1, policy)  # not yet
    for was, now in zip(at_start, moving.attach(groups), strict=True):
        assert np.array_equal(was.token_columns["ref"][0], now.token_columns["ref"][0], equal_nan=True)
    moving.follow(2, policy)
    after = dict(policy.model.named_parameters())
    for name, weight in moving.tensors().items():
        torch.testing.assert_close(weight, 0.75 * before[name] + 0.25 * after[name].detach())
    saved = moving.tensors()
    moving.follow(4, policy)
    moving.restore(saved)
    assert all(torch.equal(weight, saved[name]) for name, weight in moving.tensors().items())


def test_schedules_see_how_far_the_training_is() -> None:
    view = Pairs.from_logps([-1.0], [-2.0], [-1.5], [-1.0])
    assert view.progress == 0.0 and view.with_stats({"progress": torch.tensor(0.5)}).progress == 0.5
    spec = algorithms.get("dpo_shift")
    assert isinstance(loss("dpo_shift", view, progress=1.0), Tensor) and "progress" not in spec.hyperparameters
