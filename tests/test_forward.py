"""The proof: packed and shared = padded and repeated = the plain model, in values and gradients."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    CohereConfig,
    GptOssConfig,
    GraniteConfig,
    MambaConfig,
    PreTrainedModel,
    Qwen3NextConfig,
)

from conftest import CONFIGS, build_model, build_tokenizer, make_group, ragged_groups
from steelyard.config import LoraConfig, ModelConfig
from steelyard.data.packing import pack
from steelyard.errors import ModelError
from steelyard.models.attention import (
    PACKED,
    attention_implementation,
    hidden_states,
    standard_attention,
    standard_implementation,
    supports_packing,
)
from steelyard.models.load import freeze_copy, load_policy, save_policy, weights_sha256
from steelyard.models.logprobs import check_head, completion_scores, output_head, token_logprobs
from steelyard.types import Group

FAMILIES = sorted(CONFIGS)
EXTRAS = frozenset({"entropy", "log_sum_p2"})
"""Quantities of one model; `ref_kl` needs two."""


def packed_model(family: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    model = build_model(family, dtype)
    model.set_attn_implementation(PACKED)
    return model


def values_and_gradients(
    model: torch.nn.Module, groups: list[Group], budget: int, *, padded: bool = False, chunk: int = 4096
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All outputs over ``groups``, and the gradient of a weighted sum that tells all of them apart."""
    model.zero_grad()
    outputs = [
        token_logprobs(model, batch, temperature=0.7, extras=EXTRAS, chunk=chunk)
        for batch in pack(groups, budget, padded=padded)
    ]
    values = {name: torch.cat([getattr(o, name) for o in outputs]) for name in ("logp", *EXTRAS)}
    loss = sum(
        (torch.linspace(-1, 1 + i, len(x), dtype=x.dtype) * x).sum() for i, (_, x) in enumerate(sorted(values.items()))
    )
    loss.backward()  # type: ignore[union-attr]
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {name: x.detach() for name, x in values.items()}, gradients


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float) -> None:
    assert first.keys() == second.keys()
    for name, a in first.items():
        scale = float(second[name].abs().max()) or 1.0
        assert torch.isfinite(a).all(), name
        assert float((a - second[name]).abs().max()) <= tolerance * max(scale, 1.0), name


def plain_logps(model: PreTrainedModel, group: Group) -> Tensor:
    """The scored tokens' log-probabilities by the plain model: one unpacked sequence at a time."""
    values = []
    with standard_attention(model):
        for tokens, mask in zip(group.completions, group.masks, strict=True):
            ids = torch.from_numpy(np.concatenate([group.prompt, tokens]).astype(np.int64))
            logps = model(ids[None]).logits[0].log_softmax(-1)
            p = len(group.prompt)
            rows = torch.arange(p - 1, p - 1 + len(tokens))
            values.append(logps[rows, ids[p:]][torch.from_numpy(mask)])
    return torch.cat(values)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_is_padded_is_split_in_values_and_gradients(family: str) -> None:
    model, groups = packed_model(family), ragged_groups(n=9)
    assert not any(module.training for module in model.modules())
    packed = values_and_gradients(model, groups, 10_000)
    for other in (
        values_and_gradients(model, groups, 10_000, padded=True),
        values_and_gradients(model, groups, 90),  # other micro-batches
        values_and_gradients(model, groups, 10_000, chunk=7),  # logits chunk by chunk
    ):
        assert_same(packed[0], other[0], 1e-10)
        assert_same(packed[1], other[1], 1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_is_the_plain_model(family: str) -> None:
    model, groups = packed_model(family), ragged_groups(n=6)
    # Eager attention of transformers takes its softmax in float32; only Gemma 2 needs it (soft cap).
    tolerance = 1e-6 if standard_implementation(model) == "eager" else 1e-10
    with torch.no_grad():
        (batch,) = pack(groups, 10_000)
        ours = token_logprobs(model, batch).logp
        theirs = torch.cat([plain_logps(model, group) for group in groups])
    assert (ours - theirs).abs().max() < tolerance


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_plain_model(family: str) -> None:
    model, groups = packed_model(family), ragged_groups(n=3)
    tolerance = 1e-5 if standard_implementation(model) == "eager" else 1e-10
    gradients = []
    for compute in (
        lambda: token_logprobs(model, pack(groups, 10_000)[0]).logp,
        lambda: torch.cat([plain_logps(model, group) for group in groups]),
    ):
        model.zero_grad()
        logps = compute()
        (torch.linspace(-1, 2, len(logps), dtype=logps.dtype) * logps).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert_same(gradients[0], gradients[1], tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_standard_attention_serves_padded_batches(family: str) -> None:
    model = build_model(family, torch.float32)
    model.set_attn_implementation(standard_implementation(model))
    groups = ragged_groups(n=6)
    with torch.no_grad():
        theirs = torch.cat([token_logprobs(model, b).logp for b in pack(groups, 10_000, padded=True)])
        model.set_attn_implementation(PACKED)
        ours = torch.cat([token_logprobs(model, b).logp for b in pack(groups, 10_000)])
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_gradient_checkpointing_changes_nothing(family: str) -> None:
    model, groups = packed_model(family).train(), ragged_groups(n=6)
    expected = values_and_gradients(model, groups, 10_000)
    model.gradient_checkpointing_enable()
    found = values_and_gradients(model, groups, 10_000)
    assert_same(expected[0], found[0], 1e-12)
    assert_same(expected[1], found[1], 1e-12)


def test_nothing_of_a_sibling_is_seen() -> None:
    model = packed_model("llama")
    first = make_group([5, 6, 7], [8, 9], [10, 11, 12])
    second = make_group([5, 6, 7], [8, 9], [20, 21, 22])
    with torch.no_grad():
        a, b = (token_logprobs(model, pack([g, make_group([4], [30])], 100)[0]).logp for g in (first, second))
    assert torch.equal(a[[0, 1, 5]], b[[0, 1, 5]])
    assert not torch.equal(a[2:5], b[2:5])


def test_extras_by_definition() -> None:
    model = packed_model("gemma2")
    (batch,) = pack(ragged_groups(n=3), 10_000)
    with torch.no_grad():
        outputs = token_logprobs(model, batch, temperature=0.5, extras=EXTRAS)
        logits = output_head(model)(hidden_states(model, batch).index_select(0, batch.predict))
        p = (logits / 0.5).softmax(-1)
    assert outputs.entropy is not None and outputs.log_sum_p2 is not None
    torch.testing.assert_close(outputs.logp, p.gather(1, batch.targets[:, None])[:, 0].log())
    torch.testing.assert_close(outputs.entropy, -(p * p.log()).sum(-1))
    torch.testing.assert_close(outputs.log_sum_p2, p.pow(2).sum(-1).log())
    assert float(logits.abs().max()) < 3.0  # the soft cap of the configuration


def test_unknown_extra() -> None:
    with pytest.raises(ModelError, match="unknown extras"):
        token_logprobs(packed_model("llama"), pack(ragged_groups(), 10_000)[0], extras=frozenset({"entropi"}))


def test_nothing_scored() -> None:
    model = packed_model("llama")
    group = make_group([5, 6], [7, 8]).replace(masks=(np.zeros(2, dtype=bool),))
    (batch,) = pack([group], 10)
    outputs = token_logprobs(model, batch, extras=EXTRAS)
    assert outputs.logp.shape == outputs.entropy.shape == (0,)  # type: ignore[union-attr]
    outputs.logp.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_are_float32(dtype: torch.dtype) -> None:
    model = packed_model("llama", dtype)
    assert token_logprobs(model, pack(ragged_groups(), 10_000)[0]).logp.dtype == torch.float32


def test_chunks_do_not_hold_the_logits() -> None:
    """Only one chunk of logits may be kept for the backward pass."""
    model, (batch,) = packed_model("llama"), pack(ragged_groups(n=9), 10_000)
    kept: list[int] = []

    def pack_hook(x: Tensor) -> Tensor:
        if x.shape[-1:] == (model.config.vocab_size,) and x.shape[0] != model.config.hidden_size:  # not the head
            kept.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda x: x):
        token_logprobs(model, batch, chunk=10)
    chunk = 10 * model.config.vocab_size
    assert len(batch.targets) > 50 and sum(kept) <= 2 * chunk


@pytest.mark.parametrize("family", FAMILIES)
def test_all_tensors_follow_the_device(family: str) -> None:
    """On the meta device, mixing in a CPU tensor raises; no accelerator is needed to notice."""
    model = packed_model(family, torch.float32).to("meta")
    for padded in (False, True):
        (batch,) = pack(ragged_groups(), 10_000, padded=padded)
        assert token_logprobs(model, batch.to("meta"), extras=EXTRAS).logp.device.type == "meta"


@pytest.mark.slow
def test_gradients_are_the_same_bits_with_several_threads() -> None:
    """The row before the completions is read k times: its gradient must not depend on who adds first."""
    rng = np.random.default_rng(0)
    groups = [make_group(rng.integers(3, 97, 40), *(rng.integers(3, 97, 60) for _ in range(8))) for _ in range(8)]
    model, batches = packed_model("llama", torch.float32), pack(groups, 10_000)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        found = set()
        for _ in range(8):
            model.zero_grad()
            for batch in batches:
                token_logprobs(model, batch).logp.sum().backward()
            found.add(b"".join(p.grad.numpy().tobytes() for p in model.parameters() if p.grad is not None))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


# --------------------------------------------------------------------------------------------------
# Other families


SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    "config",
    [
        CohereConfig(**SMALL, logit_scale=0.25),
        GraniteConfig(**SMALL, logits_scaling=4.0, attention_multiplier=0.3, residual_multiplier=0.5),
    ],
    ids=["cohere", "granite"],
)
def test_scaled_logits(config: object) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    check_head(model)
    assert supports_packing(model) == (True, "")
    groups = ragged_groups(n=3)
    with torch.no_grad(), attention_implementation(model, PACKED):
        ours = token_logprobs(model, pack(groups, 10_000)[0]).logp
        theirs = torch.cat([plain_logps(model, group) for group in groups])
    assert (ours - theirs).abs().max() < 1e-4


def test_an_unknown_scaling_of_the_logits_is_noticed() -> None:
    model = build_model("llama", torch.float32)
    model.config.logit_scale = 2.0  # the model itself ignores it
    with pytest.raises(ModelError, match="log-probabilities would be wrong"):
        check_head(model)
    del model.config.logit_scale
    check_head(model)


def test_models_that_cannot_be_packed_say_why() -> None:
    mamba = MambaConfig(vocab_size=97, hidden_size=32, state_size=4, num_hidden_layers=2, pad_token_id=0)
    hybrid = Qwen3NextConfig(
        **SMALL,
        head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )
    sinks = GptOssConfig(**SMALL, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=4)
    for config, reason in ((mamba, "attention interface"), (hybrid, "1 of 2 layers"), (sinks, "s_aux")):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        before = model.config._attn_implementation
        possible, why = supports_packing(model)
        assert not possible and reason in why, (config.model_type, why)
        assert model.config._attn_implementation == before


def test_a_state_space_model_runs_padded() -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=97, hidden_size=32, state_size=4, num_hidden_layers=2, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    groups = ragged_groups(n=3)
    with torch.no_grad():
        ours = token_logprobs(model, pack(groups, 10_000, padded=True)[0]).logp
        theirs = torch.cat([plain_logps(model, group) for group in groups])
    assert (ours - theirs).abs().max() < 1e-4


def test_a_packed_batch_needs_packed_attention() -> None:
    model = build_model("llama")
    (batch,) = pack(ragged_groups(), 10_000)
    with pytest.raises(ModelError, match="pack with padded=True"):
        token_logprobs(model, batch)
    model.set_attn_implementation(PACKED)
    with pytest.raises(ModelError, match="without a layout"):
        model(torch.tensor([[3, 4]]))


# --------------------------------------------------------------------------------------------------
# Heads and adapters


def test_scores_of_a_reward_head(model_directory: Path) -> None:
    cfg = ModelConfig(name_or_path=str(model_directory), dtype="float64")
    policy = load_policy(cfg, head="score", seed=3)
    groups = ragged_groups(n=6)
    with torch.no_grad():
        packed = torch.cat([completion_scores(policy.model, b) for b in pack(groups, 10_000)])
        padded = torch.cat([completion_scores(policy.model, b) for b in pack(groups, 10_000, padded=True)])
        plain = []
        with standard_attention(policy.model):
            for group in groups:
                for tokens in group.completions:
                    ids = torch.from_numpy(np.concatenate([group.prompt, tokens]).astype(np.int64))
                    plain.append(policy.model(ids[None]).logits[0, 0])
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-6)
    torch.testing.assert_close(packed, torch.stack(plain), rtol=0, atol=1e-6)
    with pytest.raises(ModelError, match="no `score` head"):
        completion_scores(build_model("llama"), pack(groups, 10_000, padded=True)[0])
    with pytest.raises(ModelError, match="no output head"):
        token_logprobs(policy.model, pack(groups, 10_000)[0])


def test_lora_packed_is_padded(model_directory: Path) -> None:
    cfg = ModelConfig(name_or_path=str(model_directory), dtype="float64")
    policy = load_policy(cfg, LoraConfig(r=4), seed=0)
    assert policy.packed and policy.adapter == "fresh"
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1), std=0.1)
    groups = ragged_groups(n=6)
    packed = values_and_gradients(policy.model, groups, 10_000)
    padded = values_and_gradients(policy.model, groups, 10_000, padded=True)
    assert packed[1] and all("lora_" in name for name in packed[1])
    assert not any("lm_head" in name for name in packed[1])
    assert_same(packed[0], padded[0], 1e-6)  # norms of transformers are float32
    assert_same(packed[1], padded[1], 1e-5)


# --------------------------------------------------------------------------------------------------
# Loading and saving


def logps(model: torch.nn.Module, *, padded: bool = False) -> Tensor:
    with torch.no_grad():
        return torch.cat([token_logprobs(model, b).logp for b in pack(ragged_groups(), 10_000, padded=padded)])


def test_a_saved_model_is_a_plain_transformers_model(model_directory: Path, tmp_path: Path) -> None:
    policy = load_policy(ModelConfig(name_or_path=str(model_directory)), seed=0)
    assert policy.packed and policy.why_not_packed == "" and policy.model.config._attn_implementation == PACKED
    assert policy.eos_ids == (2,) and policy.pad_id == 0
    save_policy(policy, tmp_path / "saved")
    assert policy.model.config._attn_implementation == PACKED
    assert "steelyard" not in (tmp_path / "saved" / "config.json").read_text()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert weights_sha256(plain) == policy.identity["weights"] == weights_sha256(policy.model)
    torch.testing.assert_close(logps(plain, padded=True), logps(policy.model), rtol=0, atol=1e-5)
    again = load_policy(ModelConfig(name_or_path=str(model_directory)), seed=5, directory=tmp_path / "saved")
    assert again.identity == policy.identity


def test_half_precision_weights_are_loaded_as_float32(model_directory: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float16).save_pretrained(tmp_path / "half")
    build_tokenizer().save_pretrained(tmp_path / "half")
    policy = load_policy(ModelConfig(name_or_path=str(tmp_path / "half")), seed=0)
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}


def test_random_weights_come_from_the_seed(model_directory: Path, tmp_path: Path) -> None:
    cfg = ModelConfig(name_or_path=str(model_directory), init="random")
    tokenizer = build_tokenizer([f"t{i}" for i in range(50)])
    state = torch.get_rng_state()
    first, same, other = (load_policy(cfg, seed=seed, tokenizer=tokenizer) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.identity == same.identity
    assert first.identity["weights"] != other.identity["weights"]
    config = first.model.config
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id) == (54, 1, 2, 0)
    save_policy(first, tmp_path / "saved")
    again = load_policy(cfg, seed=9, directory=tmp_path / "saved")  # trained weights, not fresh ones
    assert again.identity == first.identity


def test_a_builtin_shape_needs_no_weights() -> None:
    cfg = ModelConfig(name_or_path="builtin:1.8m", init="random")
    for tokenizer in (build_tokenizer(), None):
        policy = load_policy(cfg, seed=0, tokenizer=tokenizer)
        assert policy.packed and policy.model.config.vocab_size == len(policy.tokenizer)


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2)])
def test_a_new_score_head_comes_from_the_seed(model_directory: Path, tmp_path: Path, lora: LoraConfig | None) -> None:
    cfg = ModelConfig(name_or_path=str(model_directory))
    (batch,) = pack(ragged_groups(), 10_000)
    first, same, other = (load_policy(cfg, lora, head="score", seed=seed) for seed in (1, 1, 2))
    scores = [completion_scores(p.model, batch) for p in (first, same, other)]
    assert torch.equal(scores[0], scores[1]) and not torch.equal(scores[0], scores[2])
    save_policy(first, tmp_path / "saved")
    again = load_policy(cfg, lora, head="score", seed=7, directory=tmp_path / "saved")
    assert torch.equal(completion_scores(again.model, batch), scores[0])


def test_adapters_are_saved_and_continued(model_directory: Path, tmp_path: Path) -> None:
    cfg, lora = ModelConfig(name_or_path=str(model_directory)), LoraConfig(r=4)
    policy, other = load_policy(cfg, lora, seed=0), load_policy(cfg, lora, seed=1)
    assert policy.identity["weights"] == other.identity["weights"] == load_policy(cfg, seed=0).identity["weights"]
    assert policy.identity["adapter"] != other.identity["adapter"]
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1), std=0.1)
    save_policy(policy, tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    again = load_policy(cfg, lora, seed=3, directory=tmp_path / "adapter")
    assert again.adapter == "loaded" and again.fingerprint() == policy.fingerprint()
    assert torch.equal(logps(again.model), logps(policy.model))
    assert any(p.requires_grad for p in again.model.parameters())
    by_name = load_policy(ModelConfig(name_or_path=str(tmp_path / "adapter")), seed=3)
    assert torch.equal(logps(by_name.model), logps(policy.model))


def test_the_reference_of_lora_is_the_base(model_directory: Path) -> None:
    cfg = ModelConfig(name_or_path=str(model_directory))
    base, policy = load_policy(cfg, seed=0), load_policy(cfg, LoraConfig(r=4), seed=0)
    reference = freeze_copy(policy)
    assert reference.model is policy.model and reference.identity == base.identity
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    with reference.measuring() as model:
        assert torch.equal(logps(model), logps(base.model))
    assert not torch.equal(logps(policy.model), logps(base.model))


def test_the_reference_of_full_training_is_a_copy(model_directory: Path) -> None:
    policy = load_policy(ModelConfig(name_or_path=str(model_directory)), seed=0)
    reference, before = freeze_copy(policy), logps(policy.model)
    with torch.no_grad():
        next(policy.model.parameters()).add_(0.1)
    assert torch.equal(logps(reference.model), before)
    assert not any(p.requires_grad for p in reference.model.parameters())
    assert reference.identity == policy.identity != policy.fingerprint()


def test_measuring_restores_the_mode(model_directory: Path) -> None:
    policy = load_policy(ModelConfig(name_or_path=str(model_directory)), seed=0)
    policy.model.train()
    with policy.measuring() as model:
        assert not model.training and not torch.is_grad_enabled()
    assert policy.model.training and torch.is_grad_enabled()


def test_padded_on_request(model_directory: Path) -> None:
    policy = load_policy(ModelConfig(name_or_path=str(model_directory), attn="padded"), seed=0)
    assert not policy.packed and policy.why_not_packed and policy.model.config._attn_implementation == "sdpa"


def test_identity_names_tokenizer_and_template(model_directory: Path, tmp_path: Path) -> None:
    cfg = ModelConfig(name_or_path=str(model_directory))
    first = load_policy(cfg, seed=0).identity
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    second = load_policy(cfg.model_copy(update={"chat_template": str(template)}), seed=0).identity
    assert {k for k in first if first[k] != second[k]} == {"template"}
    third = load_policy(cfg, seed=0, tokenizer=build_tokenizer([f"v{i}" for i in range(60)])).identity
    assert {k for k in first if first[k] != third[k]} == {"tokenizer"}


def test_bad_models_get_one_sentence(model_directory: Path, tmp_path: Path) -> None:
    def load(path: Path | str, **options: object) -> None:
        load_policy(ModelConfig(name_or_path=str(path), **options), seed=0)  # type: ignore[arg-type]

    with pytest.raises(ModelError, match="is no directory; expected a model directory"):
        load("./no/such/model")
    with pytest.raises(ModelError, match=r"no config\.json"):
        load(tmp_path)
    with pytest.raises(ModelError, match="unknown ladder size"):
        load("builtin:0.2m")
    bare = tmp_path / "bare"
    shutil.copytree(model_directory, bare)
    (bare / "tokenizer.json").unlink()
    (bare / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="no tokenizer"):
        load(bare)
    load(bare, tokenizer=str(model_directory))
    with pytest.raises(ModelError, match="cannot be read"):
        load(model_directory, chat_template=str(tmp_path / "none.jinja"))
    for damaged, file in (("damaged-weights", "model.safetensors"), ("damaged-tokenizer", "tokenizer.json")):
        shutil.copytree(model_directory, tmp_path / damaged)
        (tmp_path / damaged / file).write_text("junk")
        with pytest.raises(ModelError, match=f"{damaged}.* cannot be loaded"):
            load(tmp_path / damaged)
    with pytest.raises(ModelError, match="model.tokenizer: './none' is neither"):
        load(model_directory, tokenizer="./none")
    with pytest.raises(ModelError, match="no tokenizer"):
        load(model_directory, tokenizer=str(bare))  # not silently the model's own
    weightless = tmp_path / "weightless"
    shutil.copytree(model_directory, weightless)
    (weightless / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(weightless)
    strange = tmp_path / "strange"
    shutil.copytree(model_directory, strange)
    (strange / "config.json").write_text('{"model_type": "no_such_model"}')
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(strange)
    with pytest.raises(ModelError, match="ids up to 203, but the model has only 97"):
        load_policy(
            ModelConfig(name_or_path=str(model_directory)),
            seed=0,
            tokenizer=build_tokenizer([f"w{i}" for i in range(200)]),
        )


def test_missing_weights_are_an_error(model_directory: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(model_directory, broken)
    weights = load_file(broken / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="1 weights are missing, among them 'model.layers.1.mlp.up_proj.weight'"):
        load_policy(ModelConfig(name_or_path=str(broken)), seed=0)


def test_the_classification_model_is_the_stock_one(model_directory: Path, tmp_path: Path) -> None:
    policy = load_policy(ModelConfig(name_or_path=str(model_directory)), head="score", seed=0)
    save_policy(policy, tmp_path / "rm")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    assert plain.config.num_labels == 1 and weights_sha256(plain) == policy.identity["weights"]
