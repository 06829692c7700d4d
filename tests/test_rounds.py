"""Rounds: what is kept of a judged group, who writes, and that every round is made of what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import make_group
from steelyard.algorithms import load as load_algorithms
from steelyard.algorithms import rounds
from steelyard.algorithms.core import algorithms, loss
from steelyard.config import RunConfig
from steelyard.errors import ConfigError, DataError, ModelError, RunError
from steelyard.files import read_jsonl
from steelyard.models.attention import standard_attention
from steelyard.models.load import Policy, freeze_copy, load_policy
from steelyard.rollout.sampler import Mixture, NativeSampler, SamplingParams
from steelyard.rundir import RunDir
from steelyard.trainer.judge import Judge, round_rows
from steelyard.trainer.plan import plan_stages
from steelyard.trainer.rounds import RoundSource
from steelyard.trainer.run import execute
from steelyard.trainer.writing import hinted
from steelyard.types import Group, Rollouts

load_algorithms()

TAUGHT = {"seqkd", "gkd", "minillm", "opd"}
KEYS = sorted(name for name, spec in algorithms.items() if spec.rounds is not None)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def judged(scores: list[float], origins: list[int] | None = None, **columns: Any) -> Group:
    """A prompt with one completion per score, told apart by its only token (3, 4, ...)."""
    group = make_group([1, 2], *[[3 + i] for i in range(len(scores))], key="p")
    found = {
        "score": np.array(scores),
        "verdict": (np.array(scores) >= 1).astype(int),
        "finished": np.ones(len(scores), bool),
        "origin": np.array(origins or [0] * len(scores)),
    }
    behaviour = tuple(np.full(1, -0.5 - i, np.float32) for i in range(len(scores)))
    return group.replace(completion_columns={**found, **columns}, token_columns={"behaviour": behaviour})


def tokens(group: Group) -> list[int]:
    """The only token of every completion."""
    return [int(ids[0]) for ids in group.completions]


# --------------------------------------------------------------------------------------------------
# What is kept


def test_best_and_worst_with_their_win_rates() -> None:
    (made,) = rounds.best_and_worst(judged([0.2, 1.0, 0.6, 0.6]), rng=rng())
    assert tokens(made) == [4, 3]
    # best: three wins and the tie with itself; worst: that tie alone
    assert made.columns["p_chosen"] == 3.5 / 4 and made.columns["p_rejected"] == 0.5 / 4
    assert made.columns["score_chosen"] == 1.0 and made.columns["margin"] == 0.8
    assert [float(x[0]) for x in made.token_columns["behaviour"]] == [-1.5, -0.5]
    assert rounds.win_rates(np.array([0.2, 1.0, 0.6, 0.6])).tolist() == [0.125, 0.875, 0.5, 0.5]


def test_equal_scores_teach_no_preference_and_ties_are_drawn() -> None:
    assert rounds.best_and_worst(judged([0.5, 0.5, 0.5]), rng=rng()) == []
    assert rounds.best_and_worst(judged([0.5]), rng=rng()) == []
    group = judged([1.0, 1.0, 0.0, 0.0])
    drawn = {tuple(tokens(rounds.best_and_worst(group, rng=rng(seed))[0])) for seed in range(40)}
    assert drawn == {(3, 5), (3, 6), (4, 5), (4, 6)}


def test_completions_that_do_not_end_lose_the_penalty() -> None:
    group = judged([1.0, 0.5], finished=np.array([False, True]))
    assert tokens(rounds.winner_and_loser(group, rng=rng(), missing_eos_penalty=1.0)[0]) == [4, 3]
    assert tokens(rounds.winner_and_loser(group, rng=rng(), missing_eos_penalty=0.0)[0]) == [3, 4]
    assert rounds.winner_and_loser(group, rng=rng(), missing_eos_penalty=0.5) == []


def test_duels_between_policy_and_reference() -> None:
    group = judged([0.9, 0.1, 0.5, 0.2, 0.7, 0.5], [0, 0, 0, 1, 1, 1])
    first, second = rounds.explored(group, rng=rng())  # the third duel is a tie
    assert tokens(first) == [3, 6] and first.columns["from_reference"] == 0.0
    assert tokens(second) == [7, 4] and second.columns["from_reference"] == 1.0
    (made,) = rounds.against_mixture(group, rng=rng())
    assert tokens(made) == [3, 4, 5] and made.completion_columns["reward"].tolist() == [1.0, 0.0, 0.5]


def test_gold_against_own_samples() -> None:
    group = make_group([1], [3, 9], [4, 9], [3, 9], [4, 9], [5, 9], key="p")
    group = group.replace(completion_columns={"origin": np.array([0, 1, 1, 1, 1])})
    made = rounds.gold_and_own(group, rng=rng())  # a sample that is gold, and a repeated one, teach nothing
    assert [[ids.tolist() for ids in pair.completions] for pair in made] == [[[3, 9], [4, 9]], [[3, 9], [5, 9]]]
    assert [pair.key for pair in made] == ["p#0", "p#1"]


@pytest.mark.parametrize(("own", "threshold", "kept"), [(0.9, 0.0, True), (1.0, 0.0, False), (1.0, 0.1, True)])
def test_a_pair_that_the_policy_has_outgrown_is_dropped(own: float, threshold: float, kept: bool) -> None:
    made = rounds.filtered(judged([1.0, 0.2, own], [0, 0, 1]), rng=rng(), threshold=threshold)
    assert [tokens(pair) for pair in made] == ([[3, 4]] if kept else [])


def test_the_best_of_n() -> None:
    assert [tokens(row) for row in rounds.top(judged([0.1, 0.7, 0.4]), rng=rng())] == [[4]]
    assert [tokens(row) for row in rounds.top(judged([0.1, 0.7, 0.4]), rng=rng(), keep=2)] == [[4], [5]]


@pytest.mark.parametrize(("number", "kept"), [(0, [4, 5, 6]), (1, [5, 6]), (2, [6]), (3, [4, 5, 6])])
def test_a_threshold_that_rises_with_the_improve_steps(number: int, kept: list[int]) -> None:
    group = judged([0.7, 0.75, 0.85, 0.95])
    made = rounds.above_threshold(group, rng=rng(), round=number, improve=3, tau=0.7, tau_last=0.9)
    assert [tokens(row)[0] for row in made] == kept


def test_right_ones_once_each_and_not_too_many() -> None:
    group = judged([1.0, 0.5, 1.0, 1.0]).replace(completions=tuple(np.array([i], np.int32) for i in (7, 8, 7, 9)))
    assert [tokens(row) for row in rounds.correct_ones(group, rng=rng())] == [[7], [9]]
    assert len(rounds.correct_ones(group, rng=rng(), keep=1)) == 1


def test_groups_for_distillation() -> None:
    group = judged([1.0, 0.3, 0.4], [0, 1, 1])
    (all_of,) = rounds.mixture_and_gold(group, rng=rng())
    assert all_of.completion_columns["own"].tolist() == [False, True, True]
    (own,) = rounds.own_or_gold(group, rng=rng(), lam=1.0)
    (gold,) = rounds.own_or_gold(group, rng=rng(), lam=0.0)
    assert tokens(own) == [4, 5] and own.completion_columns["own"].all()
    assert tokens(gold) == [3] and not gold.completion_columns["own"].any()
    shares = [rounds.own_or_gold(group, rng=rng(seed), lam=0.3)[0].k == 2 for seed in range(1000)]
    assert abs(np.mean(shares) - 0.3) < 0.05
    (kept,) = rounds.keep_all(group, rng=rng())
    assert kept.completion_columns["reward"].tolist() == [1.0, 0.3, 0.4] and kept.completion_columns["own"].all()


def test_the_gradient_of_nash_md_is_the_catalogues() -> None:
    logp = torch.tensor([[-1.0, -2.0], [-0.5, -0.1]], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([[-1.5, -1.0], [-0.5, -0.3]], dtype=torch.float64)
    rewards = torch.tensor([1.0, 0.0], dtype=torch.float64)
    view = Rollouts.from_logps(logp, logp.detach(), torch.ones(2, 2), rewards, [0, 1], ref)
    value = loss("nash_md", view, beta=0.2, reduce=True)
    value.backward()
    # -(P - 1/2) + beta (log pi - log ref) per token, over two completions
    wanted = torch.tensor([[-0.5 + 0.2 * 0.5, -0.5 - 0.2 * 1.0], [0.5, 0.5 + 0.2 * 0.2]], dtype=torch.float64) / 2
    torch.testing.assert_close(logp.grad, wanted)


# --------------------------------------------------------------------------------------------------
# Who writes


def config(algorithm: str, hp: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    """A run of a second: six steps, sixteen prompts per round, on the smallest model."""
    plain: dict[str, Any] = {
        "model": {"name_or_path": "builtin:0.1m"},
        "algorithm": {"name": algorithm, **(hp or {})},
        "data": {
            "task": "arithmetic",
            "limit": 64,
            "generate": {"prompts": 16, "num_generations": 4, "max_completion_length": 48},
        },
        "optim": {"learning_rate": 1e-3},
        "train": {"prompts_per_step": 4, "max_steps": 6, "tokens_per_microbatch": 2048, "save_steps": 1},
        "eval": {"tasks": [], "limit": 8},
    }
    if algorithm in TAUGHT:
        plain["teacher"] = "builtin:0.5m"
    for key, value in changes.items():
        section, _, leaf = key.partition("__")
        plain[section] = {**plain.get(section, {}), leaf: value} if leaf else value
    return RunConfig.model_validate(plain)


def policy_of(cfg: RunConfig, name: str | None = None) -> Policy:
    model = cfg.model if name is None else cfg.model.model_copy(update={"name_or_path": name})
    return load_policy(model, None, seed=0)


def logprobs(policy: Policy, prompt: np.ndarray, ids: np.ndarray) -> torch.Tensor:
    """``[t, v]`` by transformers' own forward pass, without anything of ours."""
    whole = torch.from_numpy(np.concatenate([prompt, ids]).astype(np.int64))[None]
    with policy.measuring() as model, standard_attention(model):
        logits = model(input_ids=whole, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(-1)


@pytest.mark.parametrize("kind", ["geometric", "arithmetic"])
def test_a_mixture_writes_with_the_mixtures_probabilities(kind: Any) -> None:
    cfg = config("spin")
    policy, other = policy_of(cfg), policy_of(cfg, "builtin:0.5m")
    found = round_rows(cfg, algorithms.get("spin"), policy.tokenizer, None)
    prompts = [row.prompt for row in found.rows.groups[:6]]
    sampler = NativeSampler.of(policy, mixture=Mixture(other, 0.3, kind))
    params = SamplingParams(n=3, max_completion_length=48)
    for group in sampler.generate(prompts, params, seed=0):
        for ids, behaviour in zip(group.completions, group.token_columns["behaviour"], strict=True):
            ours, theirs = (logprobs(model, group.prompt, ids) for model in (policy, other))
            if kind == "geometric":
                mixed = (0.7 * ours + 0.3 * theirs).log_softmax(-1)
            else:
                mixed = (0.7 * ours.exp() + 0.3 * theirs.exp()).log()
            wanted = mixed.gather(-1, torch.from_numpy(ids.astype(np.int64))[:, None])[:, 0]
            torch.testing.assert_close(torch.from_numpy(behaviour).double(), wanted, atol=1e-4, rtol=0)


def test_the_ends_of_a_mixture_are_its_parts() -> None:
    cfg = config("spin")
    policy, other = policy_of(cfg), policy_of(cfg, "builtin:0.5m")
    prompts = [np.array([1, 5, 9, 20]), np.array([1, 6, 7])]
    params = SamplingParams(n=4, max_completion_length=24)

    def written(sampler: NativeSampler) -> list[list[int]]:
        return [ids.tolist() for group in sampler.generate(prompts, params, seed=3) for ids in group.completions]

    for share, alone in ((0.0, policy), (1.0, other)):
        for kind in ("geometric", "arithmetic"):
            mixed = NativeSampler.of(policy, mixture=Mixture(other, share, kind))  # type: ignore[arg-type]
            assert written(mixed) == written(NativeSampler.of(alone))
    with pytest.raises(ConfigError, match=r"lies in \[0, 1\]"):
        Mixture(other, 1.5, "geometric")
    with pytest.raises(ModelError, match="one vocabulary"):
        Mixture(other, 0.5, "geometric").join(torch.zeros(1, 3), torch.zeros(1, 4))


def test_a_policy_whose_adapter_is_disabled_writes_as_its_base() -> None:
    cfg = config("spin", lora={"r": 4})
    policy = load_policy(cfg.model, cfg.lora, seed=0)
    reference = freeze_copy(policy)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.2)
    params = SamplingParams(n=4, max_completion_length=24)

    def written(of: Policy, mixture: Mixture | None = None) -> list[list[int]]:
        (group,) = NativeSampler.of(of, mixture=mixture).generate([np.array([1, 5, 9, 20])], params, seed=0)
        return [ids.tolist() for ids in group.completions]

    base = written(policy_of(cfg))
    assert written(reference) == base != written(policy)
    assert written(policy, Mixture(reference, 1.0, "geometric")) == base  # two voices of one model


def test_the_hint_is_in_the_prompt_that_is_sampled_from() -> None:
    cfg = config("star")
    policy = policy_of(cfg)
    row = round_rows(cfg, algorithms.get("star"), policy.tokenizer, None).rows.groups[0]
    text = policy.tokenizer.decode(hinted(policy.tokenizer, row))
    assert f"( answer : {row.columns['answer']} )" in text and row.columns["prompt"] in text
    chat = row.replace(columns={**row.columns, "prompt": [{"role": "user", "content": row.columns["prompt"]}]})
    assert np.array_equal(hinted(policy.tokenizer, chat), hinted(policy.tokenizer, row))


# --------------------------------------------------------------------------------------------------
# The judge


def test_scores_by_the_verifier_and_by_likeness_to_gold(tokenizer: Any) -> None:
    def reward(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float | None]:
        return [{9: 1.0, 8: None}.get(ids[-1], 0.0) for ids in completion_ids]

    row = make_group([1], key="a").replace(columns={"answer": "x", "item": "a"})
    written = make_group([1], [4, 5, 6, 9], [4, 5, 7], [5], [4, 8], key="a")
    written = written.replace(completion_columns={"finished": np.ones(4, bool)})
    judge = Judge(tokenizer, [(reward, 1.0)], verifying=True, gold={"a": np.array([4, 5, 6, 2])})
    (found,) = judge([row], [written])
    assert found.completion_columns["score"].tolist() == [1.0, 0.9 * 2 / 4, 0.0]  # the fourth could not be judged
    assert found.completion_columns["verdict"].tolist() == [1, 0, 0]
    (summed,) = Judge(tokenizer, [(reward, 0.5)], verifying=False)([row], [written])
    assert summed.completion_columns["score"].tolist() == [0.5, 0.0, 0.0]
    assert summed.completion_columns["verdict"].tolist() == [0, 0, 0]
    plain = row.replace(columns={})
    with pytest.raises(DataError, match="no column 'answer'"):
        judge([plain], [written])
    (unjudged,) = Judge(tokenizer, [(reward, 1.0)], verifying=True, required=False)([plain], [written])
    assert unjudged.completion_columns["verdict"].tolist() == [-1] * 4
    assert np.isnan(unjudged.completion_columns["score"]).all()


# --------------------------------------------------------------------------------------------------
# The source


def source_of(cfg: RunConfig, run: Path, policy: Policy) -> RoundSource:
    spec = algorithms.get(cfg.algorithm.name)
    found = round_rows(cfg, spec, policy.tokenizer, None)
    judge = Judge(policy.tokenizer, [("answer", 1.0)], verifying=True, gold=found.gold)
    return RoundSource(cfg, spec, found.rows.groups, judge, start=policy, run=run)


@pytest.mark.parametrize(("steps", "count"), [(6, 3), (7, 3), (4, 4), (11, 4)])
def test_rounds_split_the_steps_evenly(steps: int, count: int, tmp_path: Path) -> None:
    cfg = config("spin", {"rounds": count}, train__max_steps=steps)
    source = source_of(cfg, tmp_path, policy_of(cfg))
    spans = [source.span(step) for step in range(steps)]
    assert [span.index for span in spans] == sorted(span.index for span in spans)
    assert {span.index for span in spans} == set(range(count))
    lengths = {span.index: span.length for span in spans}
    assert sum(lengths.values()) == steps and max(lengths.values()) - min(lengths.values()) <= 1
    assert all(span.first <= step < span.first + span.length for step, span in enumerate(spans))


def shake(policy: Policy, seed: int) -> None:
    """Move the weights, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


def test_the_reference_is_the_previous_iterate_and_rows_say_who_wrote_them(tmp_path: Path) -> None:
    cfg = config("spin", {"rounds": 3})
    policy = policy_of(cfg)
    source = source_of(cfg, tmp_path, policy)
    source.groups(0, policy)
    iterate = policy_of(cfg)  # what the policy is when round 2 begins
    shake(policy, 1)
    shake(iterate, 1)
    source.groups(2, policy)
    shake(policy, 2)  # the rest of the round trains on; its rows stay as they are
    served, _ = source.groups(3, policy)

    rows = read_jsonl(tmp_path / "rounds" / "round-2" / "rows.jsonl")
    assert {row["policy_version"] for row in rows} == {0, 2}  # the round's own, and those of the round before
    for row in rows[:2] + rows[-2:]:
        prompt, sides = np.array(row["prompt_ids"]), [np.array(ids) for ids in row["completion_ids"]]
        for ids, ref in zip(sides, row["token_columns"]["ref"], strict=True):
            wanted = logprobs(iterate, prompt, ids).gather(-1, torch.from_numpy(ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(ref).double(), wanted, atol=1e-4, rtol=0)
        if row["policy_version"] == 2:  # the rejected side was drawn from that very iterate
            behaviour = torch.tensor(row["token_columns"]["behaviour"][1])
            wanted = torch.tensor(row["token_columns"]["ref"][1])
            torch.testing.assert_close(behaviour, wanted, atol=1e-4, rtol=0)
        assert row["token_columns"]["behaviour"][0] == [None] * len(sides[0])  # nobody sampled gold
    assert {group.key for group in served} <= {row["key"] for row in rows}

    again = source_of(cfg, tmp_path, policy)  # a run that continues in the middle of the round
    read, metrics = again.groups(3, policy)
    assert metrics == json.loads((tmp_path / "rounds" / "round-2" / "round.json").read_text())
    for one, other in zip(served, read, strict=True):
        assert one.key == other.key and one.policy_version == other.policy_version
        for name in ("ref", "behaviour"):
            pairs = zip(one.token_columns[name], other.token_columns[name], strict=True)
            assert all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)
    (tmp_path / "rounds" / "round-2" / "rows.jsonl").unlink()
    with pytest.raises(RunError, match="cannot go on in round 2"):
        source_of(cfg, tmp_path, policy).groups(3, policy)


def test_reused_samples_are_selected_from_again(tmp_path: Path) -> None:
    cfg = config("rest", {"rounds": 4, "improve": 2}, train__max_steps=4)
    policy = policy_of(cfg)
    source = source_of(cfg, tmp_path, policy)
    generated = []
    for step in range(4):
        source.groups(step, policy)
        generated.append(source.generated_tokens)
        shake(policy, step)
    assert 0 < generated[0] == generated[1] < generated[2] == generated[3]  # two Grow steps
    rounds_of = [read_jsonl(tmp_path / "rounds" / f"round-{n}" / "rows.jsonl") for n in (1, 2, 3)]
    strict = {tuple(row["completion_ids"][0]) for row in rounds_of[1]}
    assert strict < {tuple(row["completion_ids"][0]) for row in rounds_of[0]}
    assert all(row["completion_columns"]["score"][0] > 0.9 for row in rounds_of[1])
    assert {row["policy_version"] for row in rounds_of[2]} == {2}


def test_a_round_without_rows_says_what_to_do(tmp_path: Path) -> None:
    cfg = config("rest_em", data__generate={"prompts": 4, "num_generations": 1, "max_completion_length": 1})
    policy = policy_of(cfg)
    with pytest.raises(RunError, match=r"round 1 of 3: algorithm 'rest_em' found nothing.*num_generations"):
        source_of(cfg, tmp_path, policy).groups(0, policy)


def test_a_step_whose_prompts_all_tie_asks_others(tmp_path: Path) -> None:
    sure = {"prompts": 1, "num_generations": 2, "temperature": 1e-3, "max_completion_length": 48}  # equal samples
    cfg = config("online_dpo", data__generate=sure)
    policy = policy_of(cfg)
    with pytest.raises(RunError, match="step 1: algorithm 'online_dpo' found nothing to learn in the samples of 32"):
        source_of(cfg, tmp_path, policy).groups(0, policy)
    cfg = config("online_dpo", data__generate={**sure, "temperature": 1.0}, train__prompts_per_step=1)
    source = source_of(cfg, tmp_path, policy)
    asked: list[int] = []
    sample = source.writers.sample
    source.writers.sample = lambda *args, **named: asked.append(named["number"]) or sample(*args, **named)
    assert [len(source.groups(step, policy)[0]) for step in range(3)] == [1] * 3
    assert len(set(asked)) == len(asked) > 3  # some of the steps drew again, and other prompts


def test_a_conversation_has_a_prompt_to_put_a_hint_into(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "rosa has 42 books ."}, {"role": "assistant", "content": "#### 42"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": talk, "answer": "42"}) + "\n")
    cfg = config("star", data={"path": str(tmp_path / "rows.jsonl"), "generate": {"prompts": 1}})
    policy = policy_of(cfg)
    (row,) = round_rows(cfg, algorithms.get("star"), policy.tokenizer, None).rows.groups
    assert "rosa has 42 books . ( answer : 42 )" in policy.tokenizer.decode(hinted(policy.tokenizer, row))
    with pytest.raises(DataError, match="a hint needs a column 'prompt'"):
        hinted(policy.tokenizer, row.replace(columns={"answer": "42"}))


def test_what_rounds_need_is_asked_for_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 rounds of 'raft' need at least as many optimizer steps, got 2"):
        source_of(config("raft", train__max_steps=2), tmp_path, policy_of(config("raft")))
    with pytest.raises(ConfigError, match=r"'raft' samples while it trains: add a `data.generate`"):
        plan_stages(config("raft", data={"task": "arithmetic"}))
    with pytest.raises(ConfigError, match="'opd' learns from another model: add `teacher: MODEL`"):
        execute(config("opd", teacher=None), tmp_path / "run", cache=tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "rosa has 42 books .", "answer": "42"}\n')
    settings = {"path": str(rows), "generate": {"prompts": 1}}
    with pytest.raises(DataError, match="'spin' takes gold completions.*add a column 'completion'"):
        source_of(config("spin", data=settings), tmp_path, policy_of(config("spin")))


# --------------------------------------------------------------------------------------------------
# Whole runs


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared inputs of all runs of this module."""
    return tmp_path_factory.mktemp("cache")


def weights(run: Path, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(run / name / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def facts(run: Path) -> tuple[Any, Any]:
    """Metrics without what depends on the clock, and the rounds' files."""
    clock = {"step_time", "tokens_per_second"}
    rows = [{k: v for k, v in row.items() if k not in clock} for row in RunDir.open(run).metrics()]
    files = {str(f.relative_to(run)): f.read_text() for f in sorted((run / "rounds").rglob("*")) if f.is_file()}
    return rows, files


class Stop(Exception):
    """Stands for a crash."""


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", KEYS)
def test_resumed_equals_uninterrupted(algorithm: str, cache: Path, tmp_path: Path) -> None:
    cfg = config(algorithm)
    straight = execute(cfg, tmp_path / "straight", cache=cache).path

    def crash(event: dict[str, Any]) -> None:
        if event["phase"] == "train" and event["step"] == 4:  # the checkpoint of step 3 lies inside a round
            raise Stop

    with pytest.raises(Stop):
        execute(cfg, tmp_path / "broken", cache=cache, progress=crash)
    resumed = execute(cfg, tmp_path / "broken", cache=cache).path
    assert same(weights(straight), weights(resumed))
    assert facts(straight) == facts(resumed)
    costs = [RunDir.open(run).facts()["cost"]["generated_tokens"] for run in (straight, resumed)]
    assert costs[0] == costs[1] > 0


def test_a_restart_begins_with_the_starts_weights_and_a_fresh_optimizer(cache: Path, tmp_path: Path) -> None:
    """Two rounds that restart: the second, on the same rows, would end where the first did."""
    cfg = config("rest_em", {"rounds": 2}, train__save_total_limit=None)
    run = execute(cfg, tmp_path / "run", cache=cache)
    start = policy_of(cfg)
    rows = [row for row in run.metrics() if "loss" in row]
    assert [row["rounds/round"] for row in rows] == [1, 1, 1, 2, 2, 2]
    assert [row["learning_rate"] for row in rows[:3]] == [row["learning_rate"] for row in rows[3:]]
    # Adam's first step has the size of the rate in every weight with a gradient: it began anew, at the start.
    moved = weights(run.path, "checkpoint-4")
    first = {name: p.detach() for name, p in start.model.named_parameters()}
    largest = max(float((moved[name] - first[name]).abs().max()) for name in moved)
    assert largest == pytest.approx(rows[3]["learning_rate"], rel=1e-2)


@pytest.mark.slow
def test_a_killed_round_is_continued(tmp_path: Path) -> None:
    """kill -9 in the middle of a round, then resume: bit for bit the uninterrupted run."""
    cfg = config("iterative_dpo", {"rounds": 2}, train__max_steps=60)
    (tmp_path / "cfg.json").write_text(cfg.model_dump_json(by_alias=True))
    code = (
        "import sys, json; from pathlib import Path; from steelyard.config import RunConfig;"
        "from steelyard.trainer.run import execute; root = Path(sys.argv[1]);"
        "cfg = RunConfig.model_validate(json.loads((root / 'cfg.json').read_text()));"
        "execute(cfg, root / 'killed', cache=root / 'cache')"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "killed").glob("checkpoint-3[5-9]")):
            assert child.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
            time.sleep(0.005)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert RunDir.open(tmp_path / "killed").status != "finished"
    resumed = execute(cfg, tmp_path / "killed", cache=tmp_path / "cache").path
    straight = execute(cfg, tmp_path / "straight", cache=tmp_path / "cache").path
    assert same(weights(straight), weights(resumed)) and facts(straight) == facts(resumed)


@pytest.mark.parametrize("algorithm", ["nash_md", "xpo", "spin", "star"])
def test_adapters_train_in_rounds(algorithm: str, cache: Path, tmp_path: Path) -> None:
    cfg = config(algorithm, lora={"r": 4}, train__max_steps=4)
    run = execute(cfg, tmp_path / "run", cache=cache)
    assert run.status == "finished" and len([row for row in run.metrics() if "loss" in row]) == 4
