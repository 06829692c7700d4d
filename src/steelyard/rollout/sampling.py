"""How one token is chosen: random streams per sequence, filters, inverse-CDF sampling.

A sequence's randomness is a function of (seed, key of its prompt, index among the prompt's samples) alone:
it has its own Philox stream and spends exactly one uniform number per token.  Who shares its batch, in which
order, and how long the others run changes nothing beyond the rounding of the model's logits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from steelyard.errors import ConfigError

_ALMOST_ONE = 1.0 - 2.0**-40


@dataclass(frozen=True)
class SamplingParams:
    """How completions are drawn.

    Filters are applied in the order top_k, top_p, min_p, on the distribution at ``temperature``.
    """

    n: int = 1
    """Completions per prompt."""
    temperature: float = 1.0
    """0 is greedy decoding (ties: the lowest token id)."""
    top_p: float = 1.0
    """Keep the most likely tokens whose probability reaches this; 1 is off."""
    top_k: int = 0
    """Keep the k most likely tokens (and those tied with the last); 0 is off."""
    min_p: float = 0.0
    """Keep tokens of at least this share of the most likely one's probability; 0 is off."""
    max_completion_length: int = 96
    """Tokens at most, the end token included."""
    stop_ids: tuple[int, ...] = ()
    """Token ids that end a completion, besides the end-of-sequence tokens."""

    def __post_init__(self) -> None:
        for name, holds, expected in (
            ("n", self.n >= 1, "at least 1"),
            ("temperature", 0.0 <= self.temperature < float("inf"), "zero or more"),
            ("top_p", 0.0 < self.top_p <= 1.0, "in (0, 1]"),
            ("top_k", self.top_k >= 0, "zero (off) or more"),
            ("min_p", 0.0 <= self.min_p <= 1.0, "in [0, 1]"),
            ("max_completion_length", self.max_completion_length >= 1, "at least 1"),
        ):
            if not holds:
                raise ConfigError(f"sampling: {name} must be {expected}, got {getattr(self, name)}")


def uniforms(seed: int, key: str, index: int, count: int) -> np.ndarray:
    """``float64[count]`` in [0, 1): the stream of completion ``index`` of the prompt called ``key``.

    Asking for more numbers extends the stream without changing its beginning.
    """
    digest = hashlib.sha256(repr((seed, key, index)).encode()).digest()
    stream = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    return np.minimum(np.random.Generator(stream).random(count), _ALMOST_ONE)


def stream_matrix(seed: int, keys: Sequence[str], indices: Sequence[int], count: int) -> np.ndarray:
    """``float64[count, rows]``: :func:`uniforms` of many sequences, one column each."""
    matrix = np.empty((count, len(keys)))
    for row, (key, index) in enumerate(zip(keys, indices, strict=True)):
        matrix[:, row] = uniforms(seed, key, index, count)
    return matrix


def filter_logits(logits: Tensor, params: SamplingParams) -> Tensor:
    """Set the logits ``[r, v]`` (already divided by the temperature) of excluded tokens to minus infinity."""
    if 0 < params.top_k < logits.shape[-1]:
        last = logits.topk(params.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < last, float("-inf"))
    if params.top_p < 1.0:
        probs, order = logits.softmax(-1).sort(dim=-1, descending=True)
        before = probs.cumsum(-1, dtype=torch.float64) - probs  # mass of the more likely tokens
        excluded = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, order, before >= params.top_p)
        logits = logits.masked_fill(excluded, float("-inf"))
    if params.min_p > 0.0:
        probs = logits.softmax(-1)
        weak = probs < params.min_p * probs.amax(-1, keepdim=True)
        logits = logits.masked_fill(weak, float("-inf"))
    return logits


def choose(logits: Tensor, u: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Choose one token per row.

    Args:
        logits: ``[r, v]``, float32 or float64.
        u: ``float64[r]`` in [0, 1), one fresh uniform per row (unused when greedy).

    Returns:
        Tokens ``int64[r]`` and their log-probabilities ``[r]`` under the distribution that they were drawn
        from (temperature and filters applied).  Greedy choices report the log-probability at temperature 1,
        because the distribution at temperature 0 is degenerate.
    """
    if params.temperature == 0.0:
        tokens = logits.argmax(-1)
        return tokens, logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
    if params.temperature != 1.0:
        logits = logits / params.temperature
    logp = filter_logits(logits, params).log_softmax(-1)
    # The first token whose cumulative probability exceeds u: never one of probability zero.
    cdf = logp.exp().cumsum(-1, dtype=torch.float64)
    tokens = torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True)
    return tokens[:, 0], logp.gather(1, tokens)[:, 0]
