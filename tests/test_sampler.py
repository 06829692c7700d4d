"""The native sampler against transformers' generate, teacher forcing, and its own promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from steelyard.errors import ConfigError, DataError
from steelyard.models.attention import base_of, standard_attention
from steelyard.rollout import decode, sampler
from steelyard.rollout.sampler import NativeSampler, SamplingParams
from steelyard.rollout.sampling import choose, filter_logits, uniforms
from steelyard.types import Group

EOS, PAD, VOCABULARY = 1, 0, 61
STOPS = tuple(range(3, 9))  # enough of them that completions end at many different lengths

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # far from uniform
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": 2,
}
SLIDING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}


def build(family: str, **changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {**SHAPE, **changes}
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape)).eval()
    if family == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**shape)).eval()
    if family == "gemma2":
        caps = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 10.0}
        return Gemma2ForCausalLM(Gemma2Config(**shape, **SLIDING, **caps)).eval()
    return Gemma3ForCausalLM(Gemma3TextConfig(**shape, **SLIDING)).eval()


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma2", "gemma3"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build(request.param)


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return build("llama")


def ragged_prompts(count: int, longest: int = 14) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(9, VOCABULARY, rng.integers(1, longest + 1)) for _ in range(count)]


def native(model: torch.nn.Module, **options: int) -> NativeSampler:
    return NativeSampler(model, eos_ids=[EOS], pad_id=PAD, **options)


def logits_of(model: torch.nn.Module, group: Group, completion: np.ndarray) -> torch.Tensor:
    """Plain transformers logits ``[t, v]`` that predict every token of ``completion``."""
    ids = torch.from_numpy(np.concatenate([group.prompt, completion]).astype(np.int64))
    with standard_attention(model), torch.no_grad():
        return model(input_ids=ids[None]).logits[0, len(group.prompt) - 1 : -1].float()


def same_completions(a: list[Group], b: list[Group]) -> bool:
    return all(
        len(x.completions) == len(y.completions)
        and all(np.array_equal(p, q) for p, q in zip(x.completions, y.completions, strict=True))
        for x, y in zip(a, b, strict=True)
    )


# --------------------------------------------------------------------------------------------------
# Against transformers


def assert_greedy_equals_generate(model: torch.nn.Module, prompts: list[np.ndarray], length: int = 20) -> None:
    params = SamplingParams(temperature=0.0, max_completion_length=length)
    config = GenerationConfig(do_sample=False, max_new_tokens=length, eos_token_id=EOS, pad_token_id=PAD)
    for group in native(model).generate(prompts, params, seed=0):
        ids = torch.from_numpy(group.prompt.astype(np.int64))[None]
        with standard_attention(model):
            reference = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)[
                0, ids.shape[1] :
            ].numpy()
        ours = group.completions[0]
        if not np.array_equal(ours, reference):
            place = int(np.flatnonzero(ours[: len(reference)] != reference[: len(ours)])[0])
            top = logits_of(model, group, ours[: place + 1])[-1].topk(2).values
            assert top[0] - top[1] < 1e-5, f"different token at {place} without a tie"


def test_greedy_equals_generate(model: PreTrainedModel) -> None:
    assert_greedy_equals_generate(model, ragged_prompts(9))


def test_greedy_equals_generate_through_adapters() -> None:
    from peft import LoraConfig, get_peft_model

    peft_model = get_peft_model(build("llama"), LoraConfig(r=4, target_modules="all-linear"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in peft_model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    assert_greedy_equals_generate(peft_model, ragged_prompts(4))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_behaviour_logprobs_equal_teacher_forcing(model: PreTrainedModel, temperature: float) -> None:
    params = SamplingParams(n=5, temperature=temperature, max_completion_length=20, stop_ids=STOPS)
    groups = native(model).generate(ragged_prompts(6), params, seed=3)
    for group in groups:
        columns = zip(group.completions, group.token_columns["behaviour"], strict=True)
        for completion, behaviour in columns:
            logp = (logits_of(model, group, completion) / temperature).log_softmax(-1)
            expected = logp.gather(1, torch.from_numpy(completion.astype(np.int64))[:, None])[:, 0]
            assert behaviour.dtype == np.float32
            np.testing.assert_allclose(behaviour, expected.numpy(), atol=1e-4, rtol=0)


def test_the_shape_of_what_comes_back(llama: PreTrainedModel) -> None:
    params = SamplingParams(n=4, max_completion_length=12, stop_ids=STOPS)
    prompts = ragged_prompts(5)
    groups = native(llama, policy_version=7).generate(prompts, params, seed=0, keys=list("abcde"))
    assert [group.key for group in groups] == list("abcde")
    ends = {EOS, *STOPS}
    seen = set()
    for group, prompt in zip(groups, prompts, strict=True):
        assert np.array_equal(group.prompt, prompt) and group.prompt.dtype == np.int32
        assert group.k == 4 and group.policy_version == 7 and all(mask.all() for mask in group.masks)
        finished = group.completion_columns["finished"]
        for completion, done in zip(group.completions, finished, strict=True):
            assert completion.dtype == np.int32 and not ends & set(completion[:-1].tolist())
            assert done == (int(completion[-1]) in ends) and (done or len(completion) == 12)
            seen.add(bool(done))
    assert seen == {True, False}  # both kinds occur, or the test shows nothing
    (one,) = native(llama).generate(prompts[:1], SamplingParams(max_completion_length=1), seed=0)
    assert len(one.completions[0]) == 1


def test_a_length_limit_is_not_an_end(llama: PreTrainedModel) -> None:
    sampler_without_end = NativeSampler(llama, eos_ids=[], pad_id=PAD)
    (group,) = sampler_without_end.generate([np.array([9])], SamplingParams(max_completion_length=5), seed=0)
    assert len(group.completions[0]) == 5 and not group.completion_columns["finished"].any()


# --------------------------------------------------------------------------------------------------
# Randomness belongs to the sequence


def test_streams_depend_on_seed_key_and_index_only() -> None:
    base = uniforms(0, "a", 0, 50)
    assert np.array_equal(base[:10], uniforms(0, "a", 0, 10)) and ((base >= 0) & (base < 1)).all()
    for other in (uniforms(1, "a", 0, 50), uniforms(0, "b", 0, 50), uniforms(0, "a", 1, 50)):
        assert not np.isin(other, base).any()


def test_same_seed_same_output_and_other_seed_other_output(llama: PreTrainedModel) -> None:
    params = SamplingParams(n=3, max_completion_length=16, stop_ids=STOPS)
    prompts = ragged_prompts(4)
    first, again, other = (native(llama).generate(prompts, params, seed=seed) for seed in (5, 5, 6))
    assert same_completions(first, again) and not same_completions(first, other)
    for x, y in zip(first, again, strict=True):
        for p, q in zip(x.token_columns["behaviour"], y.token_columns["behaviour"], strict=True):
            assert np.array_equal(p, q)
    assert len({c.tobytes() for group in first for c in group.completions}) > 8  # samples differ


def test_a_sequence_does_not_depend_on_its_company(model: PreTrainedModel) -> None:
    params = SamplingParams(n=4, max_completion_length=16, stop_ids=STOPS)
    prompts = ragged_prompts(7)
    keys = [f"row{i}" for i in range(7)]
    together = native(model).generate(prompts, params, seed=1, keys=keys)
    for batch in (1, 3, 4, 9, 12):  # several waves, and groups split over waves
        apart = native(model, max_batch=batch).generate(prompts, params, seed=1, keys=keys)
        assert same_completions(together, apart), batch
    backwards = native(model).generate(prompts[::-1], params, seed=1, keys=keys[::-1])
    assert same_completions(together, backwards[::-1])
    alone = native(model).generate(prompts[3:4], params, seed=1, keys=keys[3:4])
    assert same_completions(together[3:4], alone)
    fewer = SamplingParams(n=2, max_completion_length=16, stop_ids=STOPS)
    for group, some in zip(together, native(model).generate(prompts, fewer, seed=1, keys=keys), strict=True):
        assert all(np.array_equal(p, q) for p, q in zip(group.completions, some.completions, strict=False))


# --------------------------------------------------------------------------------------------------
# Compaction


def test_compaction_changes_nothing(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(n=6, temperature=4.0, max_completion_length=40, stop_ids=STOPS)
    prompts = ragged_prompts(6)
    calls: list[int] = []
    select = decode.DecodeCache.select

    def counted(self: decode.DecodeCache, blocks: np.ndarray, sources: np.ndarray) -> None:
        calls.append(sources.size)
        select(self, blocks, sources)

    monkeypatch.setattr(decode.DecodeCache, "select", counted)
    compacted = native(model).generate(prompts, params, seed=2)
    assert len(calls) >= 2 and calls == sorted(calls, reverse=True)
    monkeypatch.setattr(sampler, "COMPACT_BELOW", 0.0)
    plain = native(model).generate(prompts, params, seed=2)
    assert same_completions(compacted, plain)
    for x, y in zip(compacted, plain, strict=True):
        for p, q in zip(x.token_columns["behaviour"], y.token_columns["behaviour"], strict=True):
            np.testing.assert_allclose(p, q, atol=2e-5)


def test_dealing_keeps_every_live_row_once_and_prompts_together() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        prompts = rng.permutation(np.repeat(np.arange(rng.integers(1, 9)), rng.integers(1, 9)))
        alive = rng.random(len(prompts)) < rng.random()
        alive[rng.integers(len(prompts))] = True
        rows = rng.permutation(len(prompts)) + 100
        sources, identity = decode.deal(prompts, alive, rows, -1)
        full = identity >= 0
        assert np.array_equal(np.sort(identity[full]), np.sort(rows[alive]))
        assert np.array_equal(identity[full], rows[sources[full]])
        assert (prompts[sources] == prompts[sources[:, :1]]).all()


# --------------------------------------------------------------------------------------------------
# The distribution


def test_first_tokens_follow_the_softmax(llama: PreTrainedModel) -> None:
    from scipy.stats import chisquare

    count = 6000
    prompt = np.array([11, 12, 13])
    params = SamplingParams(n=count, max_completion_length=1, temperature=1.3)
    (group,) = native(llama, max_batch=2000).generate([prompt], params, seed=0)
    observed = np.bincount([int(c[0]) for c in group.completions], minlength=VOCABULARY)
    probs = (logits_of(llama, group, group.completions[0]) / 1.3).double().softmax(-1)[0].numpy()
    common = probs * count >= 5
    seen, expected = observed[common], probs[common] * count
    seen, expected = np.append(seen, count - seen.sum()), np.append(expected, count - expected.sum())
    assert chisquare(seen, expected).pvalue > 0.01
    assert 0.5 * np.abs(observed / count - probs).sum() < 0.03


def allowed(logits: np.ndarray, params: SamplingParams) -> set[int]:
    """The support by definition, one filter after the other."""
    keep = list(np.argsort(-logits, kind="stable"))
    if params.top_k:
        keep = keep[: params.top_k]
    probs = np.exp(logits - logits.max())
    if params.top_p < 1:
        share, mass, nucleus = probs[keep] / probs[keep].sum(), 0.0, []
        for token, p in zip(keep, share, strict=True):
            if mass < params.top_p:
                nucleus.append(token)
            mass += p
        keep = nucleus
    return {int(t) for t in keep if probs[t] >= params.min_p * probs.max()}


@pytest.mark.parametrize(
    "filters",
    [{"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.1}, {"top_k": 8, "top_p": 0.9, "min_p": 0.05}, {"top_k": 1}],
)
def test_filters_restrict_the_support(llama: PreTrainedModel, filters: dict[str, float]) -> None:
    params = SamplingParams(**filters, temperature=1.2)  # type: ignore[arg-type]
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)) * 2
    kept = filter_logits(logits, params).isfinite()
    for row in range(20):
        assert set(kept[row].nonzero()[:, 0].tolist()) == allowed(logits[row].numpy(), params)

    params = SamplingParams(**filters, n=300, temperature=1.2, max_completion_length=1)  # type: ignore[arg-type]
    (group,) = native(llama).generate([np.array([10, 11])], params, seed=0)
    scaled = logits_of(llama, group, group.completions[0])[0] / 1.2
    support = allowed(scaled.numpy(), params)
    drawn = {int(c[0]) for c in group.completions}
    assert drawn <= support and len(drawn) >= min(len(support), 3)
    # the log-probability is that of the filtered distribution
    total = torch.logsumexp(scaled[sorted(support)], 0)
    for completion, behaviour in zip(group.completions, group.token_columns["behaviour"], strict=True):
        assert behaviour[0] == pytest.approx(float(scaled[int(completion[0])] - total), abs=1e-4)


def test_inverse_cdf_at_its_ends() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, 0.0, float("-inf")]]).repeat(4, 1)
    u = torch.tensor([0.0, 0.499999, 0.5, 1.0 - 2.0**-40], dtype=torch.float64)
    tokens, logp = choose(logits, u, SamplingParams())
    assert tokens.tolist() == [1, 1, 2, 2] and torch.allclose(logp, torch.tensor(0.5).log())


# --------------------------------------------------------------------------------------------------
# Good manners


def test_the_model_is_left_as_it_was() -> None:
    model = build("gemma3")
    model.train()
    model.model.layers[0].eval()
    model.set_attn_implementation("steelyard_packed")
    before = [module.training for module in model.modules()]
    params = SamplingParams(n=2, max_completion_length=4)
    groups = native(model).generate(ragged_prompts(2), params, seed=0)
    assert [module.training for module in model.modules()] == before
    assert base_of(model).config._attn_implementation == "steelyard_packed"
    model.set_attn_implementation("sdpa")
    model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters()) and len(groups) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_weight_types(dtype: torch.dtype) -> None:
    params = SamplingParams(n=3, max_completion_length=10, stop_ids=STOPS)
    for group in native(build("gemma2").to(dtype)).generate(ragged_prompts(3), params, seed=0):
        for behaviour in group.token_columns["behaviour"]:
            assert behaviour.dtype == np.float32 and np.isfinite(behaviour).all() and (behaviour <= 0).all()


def test_prompts_are_read_in_pieces(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(n=2, max_completion_length=10, stop_ids=STOPS)
    whole = native(llama).generate(ragged_prompts(6), params, seed=0)
    monkeypatch.setattr(sampler, "PREFILL_TOKENS", 16)
    assert same_completions(whole, native(llama).generate(ragged_prompts(6), params, seed=0))


def test_models_without_the_attention_interface_fall_back_and_say_so() -> None:
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.3
    )
    mamba = MambaForCausalLM(config).eval()
    sampler_of_mamba = native(mamba)
    assert "generate" in sampler_of_mamba.why
    params = SamplingParams(n=3, max_completion_length=10, stop_ids=STOPS)
    prompts = ragged_prompts(4)
    groups = sampler_of_mamba.generate(prompts, params, seed=0)
    again = native(mamba, max_batch=2).generate(prompts, params, seed=0)
    assert same_completions(groups, again)
    for group in groups:
        columns = zip(group.completions, group.token_columns["behaviour"], strict=True)
        for completion, behaviour in columns:
            ids = torch.from_numpy(np.concatenate([group.prompt, completion]).astype(np.int64))
            with torch.no_grad():
                logp = mamba(input_ids=ids[None]).logits[0, len(group.prompt) - 1 : -1].log_softmax(-1)
            expected = logp.gather(1, torch.from_numpy(completion.astype(np.int64))[:, None])[:, 0]
            np.testing.assert_allclose(behaviour, expected.numpy(), atol=1e-4)


def test_both_engines_draw_the_same(llama: PreTrainedModel) -> None:
    assert native(llama).why == ""
    params = SamplingParams(n=4, max_completion_length=16, stop_ids=STOPS, top_p=0.9)
    slow = native(llama)
    slow.why = "compared with"
    prompts = ragged_prompts(5)
    assert same_completions(native(llama).generate(prompts, params, seed=0), slow.generate(prompts, params, seed=0))


def test_bad_input_is_refused(llama: PreTrainedModel) -> None:
    params = SamplingParams(max_completion_length=2)
    with pytest.raises(DataError, match="distinct keys"):
        native(llama).generate([np.array([9])] * 2, params, seed=0, keys=["a", "a"])
    with pytest.raises(DataError, match="'b' has no token"):
        native(llama).generate([np.array([9]), np.array([])], params, seed=0, keys=["a", "b"])
    with pytest.raises(DataError, match="'0' has 100 tokens.*the model's 128 positions"):
        native(llama).generate([np.full(100, 9)], SamplingParams(max_completion_length=29), seed=0)
    with pytest.raises(ConfigError, match="top_p must be in"):
        SamplingParams(top_p=0.0)
    assert native(llama).generate([], params, seed=0) == []
