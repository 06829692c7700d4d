"""Attention for sampling: a prompt's keys and values are kept, and attended to, once for all its samples.

A :class:`DecodeCache` holds *blocks* of *slots*.  A block is one prompt with its keys and values; its slots
are the completions being written after it.  In one decoding step all slots of a block attend to the prompt
with one matrix product and each to its own past, and both parts go through one softmax, so the result is
exact.  When completions have finished, the live ones are dealt anew into fewer blocks
(:meth:`DecodeCache.select`); a prompt may then own several blocks.

The attention is registered with transformers under :data:`NAME` and reaches every layer of a stock model;
the cache travels as the extra keyword ``decode``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from steelyard.data.packing import PaddedLayout
from steelyard.errors import ModelError
from steelyard.models.attention import packed_attention

NAME = "steelyard_decode"
"""The attention implementation's name in transformers."""

_FIRST_CAPACITY = 32

REPEATED_PROMPT = 0.75
"""What a block costs in units of a slot, when completions are dealt anew.  Measured on CPU with models of 0.1
to 2M parameters: throughput is flat between 0.25 and 1, the higher end being better for long prompts."""


@dataclass
class _Layer:
    """One layer's keys and values; ``d`` may differ between keys and values."""

    prompt_k: Tensor  # [blocks, kv_heads, width, d]
    prompt_v: Tensor
    own_k: Tensor | None = None  # [blocks, kv_heads, slots, capacity, d]
    own_v: Tensor | None = None


@dataclass
class DecodeCache:
    """Keys and values of g prompts and of the tokens written after them.

    Attributes:
        lengths: ``int64[blocks]`` tokens of each block's prompt (shorter prompts are padded on the right).
        slots: completions per block; a model row is ``block * slots + slot``.
        step: tokens already written after the prompts.
        max_steps: tokens that a completion may need room for.
        reading: while prompts are read: which of them the current forward pass reads, and their padding.
    """

    lengths: Tensor
    slots: int
    max_steps: int
    step: int = 0
    reading: tuple[slice, PaddedLayout] | None = None
    _layers: dict[nn.Module, _Layer] = field(default_factory=dict)
    _masks: dict[tuple[int, int | None, int], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._measure()

    def _measure(self) -> None:
        self.blocks = len(self.lengths)
        self.width = int(self.lengths.max())
        self._padded = int(self.lengths.min()) < self.width
        self._masks.clear()

    def select(self, blocks: np.ndarray, sources: np.ndarray) -> None:
        """Deal completions anew: new block i holds the prompt of old block ``blocks[i]``.

        Args:
            blocks: ``int64[g']`` old blocks.
            sources: ``int64[g', m']`` old model rows; they must belong to the same prompt as their block.
        """
        device = self.lengths.device
        source = torch.from_numpy(sources).to(device)
        block, slot = source // self.slots, source % self.slots
        prompt = torch.from_numpy(blocks).to(device)
        self.lengths = self.lengths.index_select(0, prompt)
        self.slots = sources.shape[1]
        self._measure()
        for layer in self._layers.values():
            layer.prompt_k = layer.prompt_k.index_select(0, prompt)[:, :, : self.width]
            layer.prompt_v = layer.prompt_v.index_select(0, prompt)[:, :, : self.width]
            layer.own_k = self._deal(layer.own_k, block, slot)
            layer.own_v = self._deal(layer.own_v, block, slot)

    def _deal(self, own: Tensor | None, block: Tensor, slot: Tensor) -> Tensor | None:
        if own is None:
            return None
        moved = own[block, :, slot, : self.step].transpose(1, 2)  # [g', m', kv, t, d] -> [g', kv, m', t, d]
        new = own.new_empty(*moved.shape[:3], own.shape[3], own.shape[4])
        new[:, :, :, : self.step] = moved
        return new

    def write_prompts(self, module: nn.Module, key: Tensor, value: Tensor, rows: slice) -> None:
        """Keep ``[r, kv_heads, w, d]`` of the prompts ``rows``; finite values stand behind shorter ones."""
        layer = self._layers.get(module)
        if layer is None:
            shape = (self.blocks, key.shape[1], self.width)
            layer = _Layer(key.new_zeros(*shape, key.shape[3]), value.new_zeros(*shape, value.shape[3]))
            self._layers[module] = layer
        layer.prompt_k[rows, :, : key.shape[2]] = key
        layer.prompt_v[rows, :, : value.shape[2]] = value

    def write_token(self, module: nn.Module, key: Tensor, value: Tensor) -> _Layer:
        """Keep ``[rows, kv_heads, 1, d]`` as token number ``step`` of every completion."""
        layer = self._layers[module]
        layer.own_k = self._put(layer.own_k, key)
        layer.own_v = self._put(layer.own_v, value)
        return layer

    def _put(self, own: Tensor | None, new: Tensor) -> Tensor:
        capacity = 0 if own is None else own.shape[3]
        shape = (self.blocks, new.shape[1], self.slots)
        if self.step >= capacity:  # doubling: no memory is touched that short completions never need
            larger = min(self.max_steps, max(_FIRST_CAPACITY, 2 * capacity))
            grown = new.new_empty(*shape, larger, new.shape[3])
            if own is not None:
                grown[:, :, :, :capacity] = own
            own = grown
        assert own is not None
        own[:, :, :, self.step] = new.view(self.blocks, self.slots, new.shape[1], -1).transpose(1, 2)
        return own

    def prompt_mask(self, window: int | None, heads: int, dtype: torch.dtype) -> Tensor | None:
        """Additive mask ``[blocks * heads, 1, width]`` on prompt keys at this step; ``None``: all are seen.

        A sliding window counts positions: the query at position p sees keys at positions > p - window.
        """
        if window is not None and window > self.width + self.step:
            window = None
        if window is None and not self._padded:
            return None
        memo = (heads, window, -1 if window is None else self.step)
        if memo not in self._masks:
            if window is not None:  # keep only this step's windows
                self._masks = {m: mask for m, mask in self._masks.items() if m[2] in (-1, self.step)}
            place = torch.arange(self.width, device=self.lengths.device)
            hidden = place >= self.lengths[:, None]
            if window is not None:
                hidden |= place <= (self.lengths + self.step - window)[:, None]
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            mask = mask.masked_fill_(hidden, float("-inf"))
            self._masks[memo] = mask.repeat_interleave(heads, 0)[:, None]
        return self._masks[memo]


def _decode(
    cache: DecodeCache,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """One new token per row: scores on the shared prompt and on its own past, then one softmax over both."""
    layer = cache.write_token(module, key, value)
    assert layer.own_k is not None and layer.own_v is not None
    g, m, kv = cache.blocks, cache.slots, key.shape[1]
    rows, heads, _, d = query.shape
    repeats = heads // kv
    end, width = cache.step + 1, cache.width
    begin = 0 if window is None else max(0, end - window)
    mask = cache.prompt_mask(window, kv, query.dtype)

    q = (query * scaling).view(g, m, kv, repeats, d).transpose(1, 2)  # [g, kv, m, repeats, d]
    q_prompt = q.reshape(g * kv, m * repeats, d)
    q_own = q_prompt.reshape(g * kv * m, repeats, d)
    prompt_k = layer.prompt_k.flatten(0, 1).transpose(1, 2)  # [g * kv, d, width]
    own_k = layer.own_k[:, :, :, begin:end].flatten(0, 2).transpose(1, 2)  # [g * kv * m, d, t]
    if mask is None or softcap is not None:
        on_prompt = torch.bmm(q_prompt, prompt_k)
    else:
        on_prompt = torch.baddbmm(mask, q_prompt, prompt_k)
    on_own = torch.bmm(q_own, own_k)
    scores = torch.cat([on_prompt.view(g * kv * m, repeats, width), on_own], -1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
        if mask is not None:
            scores.view(g * kv, m * repeats, -1)[:, :, :width] += mask
    weights = _softmax(scores)
    out = torch.bmm(weights.view(g * kv, m * repeats, -1)[:, :, :width], layer.prompt_v.flatten(0, 1)).view(
        g * kv * m, repeats, -1
    )
    out.baddbmm_(weights[:, :, width:], layer.own_v[:, :, :, begin:end].flatten(0, 2))
    return out.view(g, kv, m, heads // kv, -1).transpose(1, 2).reshape(rows, 1, heads, -1)


def _softmax(scores: Tensor) -> Tensor:
    """Softmax in at least float32, as transformers does it, returned in the scores' own type."""
    wide = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(-1, dtype=wide).to(scores.dtype)


def decode_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    decode: DecodeCache | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls in every layer (:data:`NAME`).

    ``query`` is ``[rows, heads, w, d]``, ``key`` and ``value`` ``[rows, kv_heads, w, d]``; returns
    ``[rows, w, heads, d]``.  ``w`` is 1 once the prompts have been read.
    """
    if decode is None:
        raise ModelError(f"attention '{NAME}' was called without its cache: use NativeSampler.generate")
    if decode.reading is not None:
        rows, layout = decode.reading
        decode.write_prompts(module, key, value, rows)
        return packed_attention(
            module,
            query,
            key,
            value,
            None,
            scaling=scaling,
            sliding_window=sliding_window,
            softcap=softcap,
            layout=layout,
            **kwargs,
        )
    if scaling is None:
        scaling = 1.0 / math.sqrt(query.shape[-1])
    return _decode(decode, module, query, key, value, scaling, sliding_window, softcap), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The cache knows what is visible; transformers need not build a mask."""


AttentionInterface.register(NAME, decode_attention)
AttentionMaskInterface.register(NAME, _no_mask)


def deal(prompts: np.ndarray, alive: np.ndarray, rows: np.ndarray, nobody: int) -> tuple[np.ndarray, np.ndarray]:
    """How live completions of unequally many per prompt are put into equal blocks, at least cost.

    With many slots per block a prompt is read for many rows at once, but slots stay empty; with few slots
    prompts are repeated.  The choice affects speed alone.

    Args:
        prompts: ``int64[r]`` the prompt of every current model row.
        alive: ``bool[r]``.
        rows: ``int64[r]`` an identity of every row; ``nobody`` is that of an empty slot.

    Returns:
        ``sources`` ``int64[g', m']``: current model rows (an empty slot repeats its block's first), and
        ``identity`` ``int64[g', m']``: entries of ``rows``, ``nobody`` for an empty slot.
    """
    live = np.flatnonzero(alive)
    live = live[np.argsort(prompts[live], kind="stable")]
    _, counts = np.unique(prompts[live], return_counts=True)
    options = np.arange(1, counts.max() + 1)
    blocks = np.ceil(counts[None, :] / options[:, None]).sum(1)
    slots = int(options[np.argmin(blocks * options + REPEATED_PROMPT * blocks)])
    sources, identity = [], []
    for members in np.split(live, np.cumsum(counts)[:-1]):
        for start in range(0, len(members), slots):
            chunk = members[start : start + slots]
            empty = slots - len(chunk)
            sources.append(np.concatenate([chunk, np.full(empty, chunk[0])]))
            identity.append(np.concatenate([rows[chunk], np.full(empty, nobody)]))
    return np.stack(sources), np.stack(identity)
