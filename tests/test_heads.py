"""Reward heads: loading, saving as plain Hugging Face directories, reading outputs where they belong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from conftest import CONFIGS, build_model, ragged_groups
from steelyard.config import LoraConfig, ModelConfig
from steelyard.data.packing import pack
from steelyard.errors import ModelError, NumericalError
from steelyard.models.heads import (
    RewardFacts,
    completion_values,
    has_lm_head,
    keeps_lm_head,
    load_facts,
    save_facts,
    saved_head,
    token_scores,
)
from steelyard.models.load import freeze_copy, load_policy, save_policy, weights_sha256
from steelyard.models.logprobs import completion_scores, token_logprobs

TOKEN_HEADS = ("token_score", "token_labels")
AUTO = {
    "score": AutoModelForSequenceClassification,
    "token_score": AutoModelForTokenClassification,
    "token_labels": AutoModelForTokenClassification,
}


def policy_of(directory: Path, head: Any, **kwargs: Any) -> Any:
    options = {"seed": 3, **kwargs}
    return load_policy(ModelConfig(name_or_path=str(directory), dtype="float64"), head=head, **options)


@pytest.mark.parametrize("head", AUTO)
def test_plain_transformers_gives_the_same_outputs(head: str, model_directory: Path, tmp_path: Path) -> None:
    policy = policy_of(model_directory, head)
    save_policy(policy, tmp_path / "saved")
    plain = AUTO[head].from_pretrained(tmp_path / "saved", dtype=torch.float64).eval()
    assert len(AutoTokenizer.from_pretrained(tmp_path / "saved")) == len(policy.tokenizer)
    groups = ragged_groups(n=5)
    (batch,) = pack(groups, 10_000)
    with torch.no_grad():
        ours = completion_scores(policy.model, batch) if head == "score" else token_scores(policy.model, batch)
        theirs = []
        for group in groups:
            for ids, mask in zip(group.completions, group.masks, strict=True):
                row = torch.from_numpy(np.concatenate([group.prompt, ids]).astype(np.int64))[None]
                logits = plain(input_ids=row).logits[0]
                theirs.append(logits if head == "score" else logits[len(group.prompt) :][torch.from_numpy(mask)])
    assert torch.allclose(ours, torch.cat(theirs), atol=1e-12)


@pytest.mark.parametrize("head", TOKEN_HEADS)
def test_packed_is_padded(head: str, model_directory: Path) -> None:
    policy = policy_of(model_directory, head)
    groups = ragged_groups(n=6)
    with torch.no_grad():
        packed = torch.cat([token_scores(policy.model, b) for b in pack(groups, 60)])
        padded = torch.cat([token_scores(policy.model, b) for b in pack(groups, 10_000, padded=True)])
    assert packed.shape[1] == (2 if head == "token_labels" else 1)
    assert torch.allclose(packed, padded, atol=1e-12)


def test_a_token_is_scored_after_it_has_been_read(model_directory: Path) -> None:
    """Changing a token changes its own score and those behind it, never one before it."""
    policy = policy_of(model_directory, "token_score")
    group = ragged_groups(n=1)[0]
    group = group.replace(
        completions=group.completions[:1],
        masks=(np.ones(len(group.completions[0]), bool),),
        trained=(True,),
        completion_columns={},
        token_columns={},
    )
    place = len(group.completions[0]) // 2
    other = group.completions[0].copy()
    other[place] = 5 + (other[place] - 4) % 50
    with torch.no_grad():
        first, second = (
            token_scores(policy.model, pack([g], 1000)[0])[:, 0]
            for g in (group, group.replace(completions=(other,), masks=group.masks))
        )
    same = torch.isclose(first, second, atol=1e-13)
    assert same[:place].all() and not same[place:].any()


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2)])
@pytest.mark.parametrize("head", TOKEN_HEADS)
def test_a_new_head_is_small_comes_from_the_seed_and_is_saved(
    head: Any, lora: LoraConfig | None, model_directory: Path, tmp_path: Path
) -> None:
    cfg = ModelConfig(name_or_path=str(model_directory))
    (batch,) = pack(ragged_groups(), 10_000)
    first, same, other = (load_policy(cfg, lora, head=head, seed=seed) for seed in (1, 1, 2))
    scores = [token_scores(p.model, batch) for p in (first, same, other)]
    assert torch.equal(scores[0], scores[1]) and not torch.equal(scores[0], scores[2])
    deviation = first.model.state_dict()[next(k for k in first.model.state_dict() if "score" in k and "weight" in k)]
    assert 0 < float(deviation.std()) < 2 * CONFIGS["llama"]().initializer_range
    save_policy(first, tmp_path / "saved")
    again = load_policy(cfg, lora, head=head, seed=7, directory=tmp_path / "saved")
    part = "adapter" if lora else "all"
    assert weights_sha256(again.model, part=part) == weights_sha256(first.model, part=part)
    assert torch.allclose(token_scores(again.model, batch), scores[0], atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "qwen3"])  # untied and tied embeddings
def test_the_lm_head_is_kept_beside_a_token_head(family: str, tokenizer: Any, tmp_path: Path) -> None:
    model = build_model(family)
    model.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    (batch,) = pack(ragged_groups(), 10_000)
    language = policy_of(tmp_path / "lm", "lm")
    policy = policy_of(tmp_path / "lm", "token_score", lm_head=True)
    assert has_lm_head(policy.model) and not has_lm_head(policy_of(tmp_path / "lm", "token_score").model)
    logp = token_logprobs(policy.model, batch).logp
    assert torch.allclose(logp, token_logprobs(language.model, batch).logp, atol=1e-12)
    copy = freeze_copy(policy)
    (logp.sum() + token_scores(policy.model, batch).sum()).backward()
    gradients = {name for name, p in policy.model.named_parameters() if p.grad is not None}
    assert gradients == {name for name, _ in policy.model.named_parameters()}
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.01)
    moved = token_logprobs(policy.model, batch).logp
    assert not torch.allclose(moved, logp) and torch.allclose(token_logprobs(copy.model, batch).logp, logp)
    # saved: one weight per name, plain transformers loads both sides of it, and so do we
    save_policy(policy, tmp_path / "saved")
    AutoModelForTokenClassification.from_pretrained(tmp_path / "saved")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float64)
    assert torch.allclose(token_logprobs(plain, pack(ragged_groups(), 10_000, padded=True)[0]).logp, moved)
    again = policy_of(tmp_path / "saved", "token_score", lm_head=True)
    assert torch.allclose(token_logprobs(again.model, batch).logp, moved)
    assert weights_sha256(again.model) == weights_sha256(policy.model)


def test_adapters_and_the_lm_head(model_directory: Path) -> None:
    policy = policy_of(model_directory, "token_score", lm_head=True, lora=LoraConfig(r=2))
    (batch,) = pack(ragged_groups(), 10_000)
    (token_logprobs(policy.model, batch).logp.sum() + token_scores(policy.model, batch).sum()).backward()
    trained = {name for name, p in policy.model.named_parameters() if p.requires_grad}
    assert any("score" in name for name in trained) and not any("lm_head" in name for name in trained)
    assert not any("lora" in name and "score" in name for name in trained)  # heads are trained whole


def test_padding_that_is_the_end_token_is_not_skipped(model_directory: Path, tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.pad_token = tokenizer.eos_token
    policy = load_policy(
        ModelConfig(name_or_path=str(model_directory), dtype="float64"), head="score", seed=0, tokenizer=tokenizer
    )
    save_policy(policy, tmp_path / "saved")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved", dtype=torch.float64)
    group = ragged_groups(n=1)[0]
    ids = np.append(group.completions[0], tokenizer.eos_token_id).astype(np.int32)
    group = group.replace(
        completions=(ids,), masks=(np.ones(len(ids), bool),), trained=(True,), completion_columns={}, token_columns={}
    )
    row = torch.from_numpy(np.concatenate([group.prompt, ids]).astype(np.int64))[None]
    with torch.no_grad():
        ours = completion_scores(policy.model, pack([group], 1000)[0])
        assert torch.allclose(plain(input_ids=row).logits[0], ours, atol=1e-12)


def test_the_head_of_a_directory_is_read_from_its_config(model_directory: Path, tmp_path: Path) -> None:
    for head in ("lm", *AUTO):
        save_policy(policy_of(model_directory, head), tmp_path / head)
        assert saved_head(tmp_path / head) == head
    assert saved_head("owner/name") == "lm"
    assert load_facts(tmp_path / "score") == RewardFacts(head="score")
    with pytest.raises(ModelError, match="a language model, not a reward model"):
        load_facts(tmp_path / "lm")


def test_facts_are_written_and_read(model_directory: Path, tmp_path: Path) -> None:
    facts = RewardFacts("implicit_prm", "lm", beta=0.05, reference="builtin:0.1m")
    save_facts(facts, tmp_path)
    assert load_facts(tmp_path) == facts and json.loads((tmp_path / "reward_model.json").read_text())["schema"] == 1
    (tmp_path / "reward_model.json").write_text('{"head": "token_sore"}')
    with pytest.raises(ModelError, match="Did you mean 'token_score'"):
        load_facts(tmp_path)
    (tmp_path / "reward_model.json").write_text('{"heads": 1}')
    with pytest.raises(ModelError, match="not the facts"):
        load_facts(tmp_path)


def test_a_head_of_another_size_is_refused(model_directory: Path, tmp_path: Path) -> None:
    save_policy(policy_of(model_directory, "token_labels"), tmp_path / "two")
    with pytest.raises(ModelError, match="cannot be loaded"):
        policy_of(tmp_path / "two", "token_score")


def test_an_lm_head_is_wanted_by_the_language_model_term_only() -> None:
    assert keeps_lm_head("token_score", {"lm_weight": 0.5})
    assert not keeps_lm_head("token_score", {"lm_weight": 0.0})
    assert not keeps_lm_head("token_labels", {}) and not keeps_lm_head("lm", {"lm_weight": 1.0})


def test_values_of_completions(model_directory: Path) -> None:
    groups = ragged_groups(n=5)
    for head, facts in {
        "score": RewardFacts(head="score"),
        "token_score": RewardFacts(head="token_score"),
        "token_labels": RewardFacts(head="token_labels"),
    }.items():
        policy = policy_of(model_directory, head)
        values = completion_values(policy, facts, groups)
        small = completion_values(policy, facts, groups, budget=1)
        for group, rows, others in zip(groups, values, small, strict=True):
            scored = [1 if head == "score" else int(mask.sum()) for mask in group.masks]
            assert [len(row) for row in rows] == scored
            for row, other in zip(rows, others, strict=True):
                np.testing.assert_allclose(row, other, atol=1e-12)
            if head == "token_labels":
                assert all(((row > 0) & (row < 1)).all() for row in rows)


def test_an_implicit_reward_is_a_scaled_log_ratio(model_directory: Path) -> None:
    reference = policy_of(model_directory, "lm")
    policy = policy_of(model_directory, "lm")
    facts, groups = RewardFacts("implicit_prm", "lm", beta=0.5), ragged_groups(n=4)
    with pytest.raises(ModelError, match="relative to its reference"):
        completion_values(policy, facts, groups)
    zero = completion_values(policy, facts, groups, reference=reference)
    assert all(not row.any() for rows in zero for row in rows)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.01)
    values = completion_values(policy, facts, groups, reference=reference)
    (batch,) = pack(groups, 10_000)
    with torch.no_grad():
        expected = 0.5 * (token_logprobs(policy.model, batch).logp - token_logprobs(reference.model, batch).logp)
    np.testing.assert_allclose(np.concatenate([r for rows in values for r in rows]), expected.numpy(), atol=1e-12)


def test_a_score_that_is_not_finite_is_an_error(model_directory: Path) -> None:
    policy = policy_of(model_directory, "score")
    with torch.no_grad():
        policy.model.score.weight.fill_(float("nan"))
    with pytest.raises(NumericalError, match="not finite"):
        completion_values(policy, RewardFacts(head="score"), ragged_groups(n=1))
