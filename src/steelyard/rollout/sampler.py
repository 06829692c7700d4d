"""Sampling completions from the policy itself: the sampler protocol and the native engine.

The native sampler runs any transformers causal language model whose layers use the attention interface, with
the weights that are being trained, so that there is nothing to synchronise.  A prompt is read once for all
its samples and its keys and values are attended to once per prompt (:mod:`steelyard.rollout.decode`);
finished completions leave the batch.  Models with other kinds of layers are sampled through transformers'
``generate`` with the same token choice, and :attr:`NativeSampler.why` says so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from steelyard.data.packing import PaddedLayout
from steelyard.data.render import stop_ids
from steelyard.errors import DataError, ModelError
from steelyard.models.attention import (
    attention_implementation,
    base_of,
    standard_attention,
    supports_packing,
)
from steelyard.models.load import Policy
from steelyard.models.logprobs import output_head
from steelyard.rollout.decode import NAME, DecodeCache, deal
from steelyard.rollout.mixture import Mixture
from steelyard.rollout.sampling import SamplingParams, choose, stream_matrix
from steelyard.types import Group

__all__ = ["Mixture", "NativeSampler", "Sampler", "SamplingParams"]

PREFILL_TOKENS = 4096
"""Prompt tokens per forward pass (at least one prompt): bounds the temporaries of long prompts."""

COMPACT_BELOW = 0.75
"""Finished completions are removed when no more than this share of the batch is still being written."""

_support: WeakKeyDictionary[nn.Module, tuple[bool, str]] = WeakKeyDictionary()


class Sampler(Protocol):
    """Anything that writes completions: the native engine, or a server."""

    def generate(
        self, prompts: Sequence[np.ndarray], params: SamplingParams, *, seed: int, keys: Sequence[str] = ()
    ) -> list[Group]:
        """One :class:`~steelyard.types.Group` with ``params.n`` completions per prompt, in order."""
        ...


class NativeSampler:
    """Samples from a transformers model in this process.

    Args:
        model: a causal language model or a peft wrapper around one.  Its attention implementation, training
            flags and gradient mode are as before after every call.
        eos_ids: tokens that end a completion; they are part of it.
        pad_id: any valid token id; it is computed on and never seen.
        max_batch: completions that are written at the same time.
        policy_version: stored in every group; may be set between calls.
        using: entered around every use of the model (a policy whose adapter is disabled).
        mixture: another model that writes along.

    Attributes:
        why: empty, or why the model is sampled through transformers' ``generate`` instead.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        eos_ids: Collection[int],
        pad_id: int,
        max_batch: int = 256,
        policy_version: int = 0,
        using: Callable[[], AbstractContextManager[object]] = nullcontext,
        mixture: Mixture | None = None,
    ) -> None:
        self.model = model
        self.mixture = mixture
        self._voices = [_Voice(model, using)]
        self.eos_ids = tuple(sorted(set(eos_ids)))
        self.pad_id = pad_id
        self.max_batch = max_batch
        self.policy_version = policy_version
        self.why = self._why_not_native(model)
        if mixture is not None:
            reason = self.why or self._why_not_native(mixture.other.model)
            if reason:
                raise ModelError(f"a mixture of two models needs both to use the attention interface; one is {reason}")
            self._voices.append(_Voice(mixture.other.model, mixture.other.measuring))

    @staticmethod
    def _why_not_native(model: nn.Module) -> str:
        base = base_of(model)
        if base not in _support:
            with _evaluating(model):  # the question is asked by a small forward pass
                _support[base] = supports_packing(model)
        able, reason = _support[base]
        return "" if able else f"sampled through transformers' generate: {reason}"

    @classmethod
    def of(cls, policy: Policy, *, policy_version: int = 0, mixture: Mixture | None = None) -> NativeSampler:
        """The sampler of a policy: it stops where the policy's tokenizer, template or generation config end."""
        ends = {*policy.eos_ids, *stop_ids(policy.tokenizer)}
        using = policy.measuring if policy.adapter_disabled else nullcontext
        return cls(
            policy.model,
            eos_ids=ends,
            pad_id=policy.pad_id,
            policy_version=policy_version,
            using=using,
            mixture=mixture,
        )

    def generate(
        self, prompts: Sequence[np.ndarray], params: SamplingParams, *, seed: int, keys: Sequence[str] = ()
    ) -> list[Group]:
        """Write ``params.n`` completions for every prompt.

        Args:
            prompts: arrays of token ids, none empty.
            seed: with a prompt's key and a completion's index it determines that completion's randomness.
            keys: one distinct name per prompt; default: its place in ``prompts``.

        Returns:
            One group per prompt, in order: ``completions`` end with the end token where one was reached;
            ``token_columns["behaviour"]`` holds the float32 log-probability of every token under the
            distribution that it was drawn from; ``completion_columns["finished"]`` is False where the length
            limit cut a completion off.

        Raises:
            DataError: an empty prompt, one that may outgrow the model's positions, or keys that are not one
                distinct name per prompt.
        """
        names = list(keys) if len(keys) else [str(index) for index in range(len(prompts))]
        if len(names) != len(prompts) or len(set(names)) != len(names):
            raise DataError(f"sampling: {len(prompts)} prompts need as many distinct keys, got {len(names)}")
        bases = [base_of(voice.model) for voice in self._voices]
        room = min(getattr(b.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize for b in bases)
        for name, prompt in zip(names, prompts, strict=True):
            if len(prompt) == 0:
                raise DataError(f"sampling: prompt '{name}' has no token (an empty prompt is BOS)")
            if len(prompt) + params.max_completion_length > room:
                raise DataError(
                    f"sampling: prompt '{name}' has {len(prompt)} tokens, and with max_completion_length "
                    f"{params.max_completion_length} it may exceed the model's {room} positions"
                )

        device = bases[0].device
        stop = torch.tensor(sorted({*self.eos_ids, *params.stop_ids}), dtype=torch.long, device=device)
        written: dict[tuple[int, int], tuple[np.ndarray, np.ndarray, bool]] = {}
        with torch.no_grad(), ExitStack() as stack:
            for voice in self._voices:
                stack.enter_context(_evaluating(voice.model))
            for wave, samples in _waves(prompts, params.n, self.max_batch, equal_lengths=bool(self.why)):
                rows = [(prompt, sample) for prompt in wave for sample in samples]
                streams = stream_matrix(
                    seed, [names[p] for p, _ in rows], [s for _, s in rows], params.max_completion_length
                )
                uniforms = torch.from_numpy(streams).to(device)
                tokens, logps = self._write([prompts[p] for p in wave], len(samples), params, uniforms, stop)
                for row, result in zip(rows, _cut(tokens, logps, stop), strict=True):
                    written[row] = result
        return [
            self._group(prompt, name, [written[place, sample] for sample in range(params.n)])
            for place, (prompt, name) in enumerate(zip(prompts, names, strict=True))
        ]

    def _write(
        self, prompts: Sequence[np.ndarray], n: int, params: SamplingParams, streams: Tensor, stop: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens and log-probabilities ``[t, g * n]`` of one wave (see :func:`_native`)."""
        if not self.why:
            return _native(self._voices, self.mixture, prompts, n, params, streams, stop, self.pad_id)
        with self._voices[0].using():
            return _through_generate(self.model, prompts, n, params, streams, stop, self.pad_id)

    def _group(self, prompt: np.ndarray, key: str, completions: list[tuple[np.ndarray, np.ndarray, bool]]) -> Group:
        tokens = tuple(ids for ids, _, _ in completions)
        return Group(
            prompt=np.asarray(prompt, dtype=np.int32),
            completions=tokens,
            masks=tuple(np.ones(len(ids), dtype=bool) for ids in tokens),
            completion_columns={"finished": np.array([finished for _, _, finished in completions])},
            token_columns={"behaviour": tuple(logp for _, logp, _ in completions)},
            policy_version=self.policy_version,
            key=key,
        )


# --------------------------------------------------------------------------------------------------
# What both engines share


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every module's own training flag is restored."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _waves(
    prompts: Sequence[np.ndarray], n: int, max_batch: int, *, equal_lengths: bool
) -> Iterator[tuple[list[int], range]]:
    """Prompts (sorted by length, so that little is padded) and sample indices that are written together."""
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    if n > max_batch:
        for place in order:
            for start in range(0, n, max_batch):
                yield [place], range(start, min(n, start + max_batch))
        return
    wave: list[int] = []
    for place in order:
        unequal = equal_lengths and wave and len(prompts[wave[0]]) != len(prompts[place])
        if len(wave) == max_batch // n or unequal:
            yield wave, range(n)
            wave = []
        wave.append(place)
    if wave:
        yield wave, range(n)


def _is_stop(tokens: Tensor, stop: Tensor) -> Tensor:
    return tokens == stop if len(stop) == 1 else torch.isin(tokens, stop)


def _cut(tokens: Tensor, logps: Tensor, stop: Tensor) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """``[t, rows]`` tokens and log-probabilities -> every row's own, up to and with its first stop token."""
    stops = _is_stop(tokens, stop)
    finished = stops.any(0).cpu().numpy()
    lengths = torch.where(stops.any(0), stops.int().argmax(0) + 1, len(tokens)).cpu().numpy()
    ids = tokens.T.to(torch.int32).cpu().numpy()
    values = logps.T.float().cpu().numpy()
    for row, length in enumerate(lengths):
        yield ids[row, :length].copy(), values[row, :length].copy(), bool(finished[row])


# --------------------------------------------------------------------------------------------------
# The native engine


@dataclass(frozen=True, eq=False)
class _Voice:
    """A model that writes, and what has to be entered around every use of it."""

    model: nn.Module
    using: Callable[[], AbstractContextManager[object]]


class _Writer:
    """A voice at work: its keys and values, and the hidden states that predict the next tokens."""

    def __init__(self, voice: _Voice, prompts: Sequence[np.ndarray], n: int, steps: int, pad_id: int) -> None:
        self.using = voice.using
        base = base_of(voice.model)
        self.backbone, self.head = base.base_model, output_head(base)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=base.device)
        self.cache = DecodeCache(lengths, slots=n, max_steps=steps - 1)
        with self.using():
            first = _read_prompts(self.backbone, self.cache, prompts, pad_id)
        self.hidden = first.repeat_interleave(n, 0)

    def logits(self) -> Tensor:
        """``[rows, v]`` of the next tokens, in float32 at least."""
        with self.using():
            return self.head(self.hidden).to(torch.promote_types(self.hidden.dtype, torch.float32))

    def append(self, token: Tensor, position: Tensor) -> None:
        """Read the token that was chosen for each row."""
        with self.using():
            self.hidden = self.backbone(
                input_ids=token[:, None], position_ids=position, use_cache=False, decode=self.cache
            ).last_hidden_state[:, 0]
        self.cache.step += 1


def _native(
    voices: Sequence[_Voice],
    mixture: Mixture | None,
    prompts: Sequence[np.ndarray],
    n: int,
    params: SamplingParams,
    streams: Tensor,
    stop: Tensor,
    pad_id: int,
) -> tuple[Tensor, Tensor]:
    """Write n completions per prompt together.

    Args:
        voices: the model that writes; with a mixture, both.
        prompts: g arrays of token ids.
        streams: ``float64[max_completion_length, g * n]`` uniforms, one column per completion.
        stop: ids that end a completion.

    Returns:
        Tokens ``int64[t, g * n]`` and log-probabilities ``[t, g * n]``; what follows a stop is meaningless.
    """
    steps, rows = streams.shape
    with ExitStack() as stack:
        for voice in voices:
            stack.enter_context(attention_implementation(voice.model, NAME))
        writers = [_Writer(voice, prompts, n, steps, pad_id) for voice in voices]
        device = streams.device
        row_of = torch.arange(rows, device=device)
        prompt_of = np.repeat(np.arange(len(prompts)), n)
        alive = torch.ones(rows, dtype=torch.bool, device=device)
        position = writers[0].cache.lengths.repeat_interleave(n)[:, None]
        logits = [writer.logits() for writer in writers]
        # One column more than rows: empty slots of the batch write there.
        tokens = torch.full((steps, rows + 1), pad_id, dtype=torch.long, device=device)
        logps = torch.zeros(steps, rows + 1, dtype=logits[0].dtype, device=device)
        streams = torch.nn.functional.pad(streams, (0, 1))
        for t in range(steps):
            joined = logits[0] if mixture is None else mixture.join(*logits)
            token, logp = choose(joined, streams[t].index_select(0, row_of), params)
            tokens[t, row_of] = token
            logps[t, row_of] = logp.to(logps.dtype)
            alive &= ~_is_stop(token, stop)
            left = int(alive.sum())
            if left == 0 or t + 1 == steps:
                return tokens[: t + 1, :rows], logps[: t + 1, :rows]
            if left <= COMPACT_BELOW * len(alive):
                sources, identity = deal(prompt_of, alive.cpu().numpy(), row_of.cpu().numpy(), rows)
                if identity.size <= COMPACT_BELOW * len(alive):
                    for writer in writers:
                        writer.cache.select(sources[:, 0] // writer.cache.slots, sources)
                    prompt_of = prompt_of[sources.ravel()]
                    keep = torch.from_numpy(sources.ravel()).to(device)
                    token, position = token.index_select(0, keep), position.index_select(0, keep)
                    row_of = torch.from_numpy(identity.ravel()).to(device)
                    alive = row_of < rows
            for writer in writers:
                writer.append(token, position)
            logits = [writer.logits() for writer in writers]
            position = position + 1
        raise AssertionError("unreachable: the last step returns")


def _read_prompts(backbone: nn.Module, cache: DecodeCache, prompts: Sequence[np.ndarray], pad_id: int) -> Tensor:
    """Fill the cache with the prompts' keys and values; returns the last hidden states ``[g, d]``."""
    device = cache.lengths.device
    states = []
    start = 0
    while start < len(prompts):
        stop, width = start, 0
        while stop < len(prompts):
            wider = max(width, len(prompts[stop]))
            if stop > start and wider * (stop + 1 - start) > PREFILL_TOKENS:
                break
            stop, width = stop + 1, wider
        ids = np.full((stop - start, width), pad_id, dtype=np.int64)
        for row, prompt in enumerate(prompts[start:stop]):
            ids[row, : len(prompt)] = prompt
        lengths = cache.lengths[start:stop]
        real = torch.arange(width, device=device) < lengths[:, None]
        cache.reading = slice(start, stop), PaddedLayout(real.long())
        hidden = backbone(
            input_ids=torch.from_numpy(ids).to(device),
            position_ids=torch.arange(width, device=device)[None],
            use_cache=False,
            decode=cache,
        ).last_hidden_state
        last = torch.arange(stop - start, device=device) * width + lengths - 1
        states.append(hidden.flatten(0, 1).index_select(0, last))
        start = stop
    cache.reading = None
    return torch.cat(states)


# --------------------------------------------------------------------------------------------------
# Models that cannot use the attention interface


class _Choice(LogitsProcessor):
    """Makes ``generate`` take our token choice: everything else gets a logit of minus infinity."""

    def __init__(self, params: SamplingParams, streams: Tensor) -> None:
        self.params = params
        self.streams = streams
        self.tokens: list[Tensor] = []
        self.logps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        token, logp = choose(scores, self.streams[len(self.tokens)], self.params)
        self.tokens.append(token)
        self.logps.append(logp)
        return torch.full_like(scores, float("-inf")).scatter_(1, token[:, None], 0.0)


def _through_generate(
    model: nn.Module,
    prompts: Sequence[np.ndarray],
    n: int,
    params: SamplingParams,
    streams: Tensor,
    stop: Tensor,
    pad_id: int,
) -> tuple[Tensor, Tensor]:
    """The same as :func:`_native` for prompts of one length, by transformers' own loop and cache."""
    base = base_of(model)
    ids = torch.from_numpy(np.repeat(np.stack(prompts), n, axis=0).astype(np.int64)).to(base.device)
    choice = _Choice(params, streams)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=params.max_completion_length,
        eos_token_id=stop.tolist() or None,
        pad_token_id=pad_id,
        use_cache=True,
    )
    with standard_attention(model):
        base.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            logits_processor=LogitsProcessorList([choice]),
        )
    return torch.stack(choice.tokens), torch.stack(choice.logps)
