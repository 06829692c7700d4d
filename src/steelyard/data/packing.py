"""Groups into packed prefix trees under a token budget, and the seeded order of training rows.

A *tree* is a prompt with its k completions.  A packed batch is one row without padding: every prompt once,
followed by its completions.  Positions restart at the prompt's length for every completion, and a completion
attends to its prompt and to itself, never to its siblings or to another tree
(:mod:`steelyard.models.attention`).  The padded variant repeats the prompt for every completion and pads on
the right; it works for every causal model and is the slow reference.  Both give the same
``predict``/``targets`` order, so everything after the forward pass is the same code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from steelyard.errors import ConfigError, DataError
from steelyard.types import Group

NEVER = 1 << 30
"""Position of a padding key: later than every query, so that causality alone hides it."""

_CALL = 8192
"""What one more attention call costs, in (query, key) entries of one head; measured flat from 1000 to 20000."""


@dataclass(frozen=True, eq=False)
class Bucket:
    """Segments of similar size whose attention is computed in one batched call.

    A query attends to a key of its line iff ``key_positions <= query_positions`` (and, with a sliding window
    w, ``query_positions - key_positions < w``): positions alone say who is an ancestor, because the keys of a
    line are only the ancestors and the segment itself.

    Attributes:
        queries: ``int64[b, l]`` rows of the queries; padding repeats the last row of its line.
        keys: ``int64[b, s]`` rows of the keys; padding repeats a row.
        query_positions: ``int64[b, l]``.
        key_positions: ``int64[b, s]``, :data:`NEVER` at padding.
        causal: keys and queries are the same rows from position 0 on, so that plain causality needs no mask.
    """

    queries: Tensor
    keys: Tensor
    query_positions: Tensor
    key_positions: Tensor
    causal: bool

    def to(self, device: torch.device | str) -> Self:
        """The same bucket on ``device``."""
        return type(self)(**{f.name: _moved(getattr(self, f.name), device) for f in fields(self)})

    def allowed(self, window: int | None = None) -> Tensor:
        """``bool[b, 1, l, s]``: True where a query attends to a key."""
        distance = self.query_positions[:, :, None] - self.key_positions[:, None, :]
        allowed = distance >= 0
        if window is not None:
            allowed &= distance < window
        return allowed[:, None]


@dataclass(frozen=True, eq=False)
class TreeLayout:
    """How the attention of a packed row is computed: buckets, and where each row stands in them.

    Attributes:
        buckets: prompts (causal) and completions (prompt + own keys); every row is a query at least once.
        queries: ``int64[Q]`` the buckets' queries, flat, one bucket after the other.
        keys: ``int64[S]`` the buckets' keys likewise.
        place: ``int64[N]`` index in ``queries`` of each row's (first) occurrence.
    """

    buckets: tuple[Bucket, ...]
    queries: Tensor
    keys: Tensor
    place: Tensor
    _masks: dict[Any, Tensor | None] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, buckets: Sequence[Bucket], rows: int) -> Self:
        """The layout of a row of ``rows`` positions that ``buckets`` cover."""
        queries = torch.cat([b.queries.flatten() for b in buckets])
        place = np.empty(rows, dtype=np.int64)
        place[queries.numpy()[::-1]] = np.arange(len(queries))[::-1]
        return cls(tuple(buckets), queries, torch.cat([b.keys.flatten() for b in buckets]), _int64(place))

    def to(self, device: torch.device | str) -> Self:
        """The same layout on ``device``."""
        moved = {name: getattr(self, name).to(device) for name in ("queries", "keys", "place")}
        return replace(self, buckets=tuple(b.to(device) for b in self.buckets), **moved, _masks={})

    def fresh(self) -> Self:
        """The same layout with masks of its own, which live as long as one forward pass and its graph."""
        return replace(self, _masks={})

    def mask(self, index: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """What is added to the scores of bucket ``index``: ``[b, 1, l, s]``, 0 or -inf; None: plain causality.

        Made by the first layer that asks for it, and shared by the others.
        """
        bucket = self.buckets[index]
        if window is not None and window >= bucket.keys.shape[1]:  # no two keys of a line are so far apart
            window = None
        if bucket.causal and window is None:
            return None
        if (index, window) not in self._masks:
            hidden = ~bucket.allowed(window)
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            self._masks[index, window] = mask.masked_fill_(hidden, float("-inf"))
        return self._masks[index, window]


@dataclass(frozen=True, eq=False)
class PaddedLayout:
    """Ordinary right-padded rows.

    Attributes:
        attention_mask: ``int64[rows, width]``: 1 at tokens, 0 at padding.
    """

    attention_mask: Tensor

    def to(self, device: torch.device | str) -> Self:
        """The same layout on ``device``."""
        return replace(self, attention_mask=self.attention_mask.to(device))


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Groups as the input of one forward pass, and where their scored tokens are read off.

    ``n`` counts the scored tokens (mask True) and ``K`` the completions, both in flat order: groups in order,
    completions in order, positions in order.

    Attributes:
        groups: the groups, in order.
        input_ids: ``int64[N]``, one packed row; padded variant: ``int64[rows, width]``.
        position_ids: like ``input_ids``; they restart at the prompt's length for every completion.
        predict: ``int64[n]`` flat row whose hidden state predicts scored token i.  The first token of each of
            the k completions is predicted by the same row, the prompt's last: read with ``index_select``.
        targets: ``int64[n]`` token ids.
        last: ``int64[K]`` flat row of the last token of each completion.
        lengths: ``int64[K]`` scored tokens of each completion.
        layout: how attention is computed.
    """

    groups: tuple[Group, ...]
    input_ids: Tensor
    position_ids: Tensor
    predict: Tensor
    targets: Tensor
    last: Tensor
    lengths: Tensor
    layout: TreeLayout | PaddedLayout

    def to(self, device: torch.device | str) -> Self:
        """The same batch with its tensors (and layout) on ``device``."""
        moved = {f.name: _moved(getattr(self, f.name), device) for f in fields(self)}
        return type(self)(**moved)

    @property
    def tokens(self) -> int:
        """Positions that the forward pass computes, padding included."""
        return self.input_ids.numel()

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Cut ``values [n]`` (one per scored token) into one tensor per completion, in flat order."""
        return values.split(self.lengths.tolist())


def pack(groups: Sequence[Group], tokens_per_microbatch: int, *, padded: bool = False) -> list[PackedBatch]:
    """Distribute ``groups`` over batches of at most ``tokens_per_microbatch`` positions, keeping their order.

    Raises:
        DataError: a group without completions, or one that alone exceeds the budget.
    """
    batches: list[list[Group]] = []
    filled: list[int] = []  # positions of the open batch, or (rows, width) when padded
    for group in groups:
        size = _size(group, padded)
        if math.prod(size) > tokens_per_microbatch:
            raise DataError(_too_large(group, math.prod(size), tokens_per_microbatch, padded))
        if batches:
            joined = [filled[0] + size[0], max(filled[1], size[1])] if padded else [filled[0] + size[0]]
            if math.prod(joined) <= tokens_per_microbatch:
                batches[-1].append(group)
                filled = joined
                continue
        batches.append([group])
        filled = list(size)
    build = _padded_batch if padded else _tree_batch
    return [build(batch) for batch in batches]


def _size(group: Group, padded: bool) -> tuple[int, ...]:
    """Positions of a tree, or (rows, width) of its padded rows."""
    if group.k == 0:
        raise DataError(f"group {group.key or '?'}: it has no completion, so there is nothing to compute")
    if not padded:
        return (group.tokens,)
    return group.k, len(group.prompt) + max(len(c) for c in group.completions)


def _too_large(group: Group, size: int, budget: int, padded: bool) -> str:
    lengths = "+".join(str(len(c)) for c in group.completions)
    return (
        f"group {group.key or '?'}: prompt {len(group.prompt)} and completions {lengths} take {size} "
        f"positions{' with padding' if padded else ''}, more than train.tokens_per_microbatch = {budget}; "
        f"raise it to at least {size} or lower data.max_length"
    )


def _tree_batch(groups: list[Group]) -> PackedBatch:
    ids, positions, predict, targets, last, lengths = [], [], [], [], [], []
    prompts: list[_Segment] = []
    completions: list[_Segment] = []
    row = 0
    for group in groups:
        p = len(group.prompt)
        prompts.append(_Segment(row, p, row, 0))
        ids.append(group.prompt)
        positions.append(np.arange(p))
        prompt_row, row = row, row + p
        for tokens, mask in zip(group.completions, group.masks, strict=True):
            t = len(tokens)
            # The token before each completion token: the prompt's last row, then the completion's own rows.
            before = np.arange(row - 1, row + t - 1)
            before[:1] = prompt_row + p - 1
            mask = np.asarray(mask, dtype=bool)
            ids.append(tokens)
            positions.append(np.arange(p, p + t))
            predict.append(before[mask])
            targets.append(tokens[mask])
            last.append(row + t - 1 if t else prompt_row + p - 1)
            lengths.append(int(mask.sum()))
            if t:
                completions.append(_Segment(row, t, prompt_row, p))
            row += t
    buckets = [*_buckets(prompts), *_buckets(completions)]
    return PackedBatch(
        groups=tuple(groups),
        input_ids=_int64(np.concatenate(ids)),
        position_ids=_int64(np.concatenate(positions)),
        predict=_int64(np.concatenate(predict)),
        targets=_int64(np.concatenate(targets)),
        last=_int64(last),
        lengths=_int64(lengths),
        layout=TreeLayout.of(buckets, row),
    )


def _padded_batch(groups: list[Group]) -> PackedBatch:
    rows = [
        (g.prompt, c, np.asarray(m, dtype=bool)) for g in groups for c, m in zip(g.completions, g.masks, strict=True)
    ]
    width = max(len(prompt) + len(tokens) for prompt, tokens, _ in rows)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    present = np.zeros((len(rows), width), dtype=np.int64)
    predict, targets, last, lengths = [], [], [], []
    for i, (prompt, tokens, mask) in enumerate(rows):
        p, t = len(prompt), len(tokens)
        ids[i, :p], ids[i, p : p + t] = prompt, tokens
        present[i, : p + t] = 1
        predict.append(i * width + p - 1 + np.flatnonzero(mask))
        targets.append(tokens[mask])
        last.append(i * width + p + t - 1)
        lengths.append(int(mask.sum()))
    return PackedBatch(
        groups=tuple(groups),
        input_ids=_int64(ids),
        position_ids=torch.arange(width).repeat(len(rows), 1),
        predict=_int64(np.concatenate(predict)),
        targets=_int64(np.concatenate(targets)),
        last=_int64(last),
        lengths=_int64(lengths),
        layout=PaddedLayout(_int64(present)),
    )


# --------------------------------------------------------------------------------------------------
# Buckets


@dataclass(frozen=True)
class _Segment:
    """A prompt (``prefix`` = 0) or a completion: consecutive rows, and the rows of its prefix."""

    start: int
    length: int
    prefix_start: int
    prefix: int


def _buckets(segments: list[_Segment]) -> list[Bucket]:
    """Group segments of similar size so that the calls are few and the padding is small.

    Greedy over segments sorted by size: one joins the open bucket as long as the padding of the whole bucket
    costs less than a call of its own.
    """
    order = sorted(segments, key=lambda s: (s.prefix + s.length, s.length, s.start), reverse=True)
    buckets: list[list[_Segment]] = []
    length = prefix = exact = 0  # of the open bucket: largest length and prefix, entries without padding
    for segment in order:
        entries = segment.length * (segment.prefix + segment.length)
        if buckets:
            joined_length, joined_prefix = max(length, segment.length), max(prefix, segment.prefix)
            padded = (len(buckets[-1]) + 1) * joined_length * (joined_prefix + joined_length)
            if padded - exact - entries <= _CALL:
                buckets[-1].append(segment)
                length, prefix, exact = joined_length, joined_prefix, exact + entries
                continue
        buckets.append([segment])
        length, prefix, exact = segment.length, segment.prefix, entries
    return [_bucket(sorted(bucket, key=lambda s: s.start)) for bucket in buckets]


def _bucket(segments: list[_Segment]) -> Bucket:
    """Queries padded on the right; keys are the prefix (padded on the left), then the segment itself."""
    start, length, prefix_start, prefix = (
        np.array([getattr(s, name) for s in segments])[:, None]
        for name in ("start", "length", "prefix_start", "prefix")
    )
    own = np.minimum(np.arange(length.max()), length - 1)  # [b, l], padding repeats the last row
    queries, query_positions = start + own, prefix + own
    padding = np.arange(length.max()) >= length
    before = np.arange(prefix.max()) - (prefix.max() - prefix)  # [b, prefix], negative at padding
    keys = np.concatenate([prefix_start + np.maximum(before, 0), queries], axis=1)
    key_positions = np.concatenate(
        [np.where(before < 0, NEVER, before), np.where(padding, NEVER, query_positions)], axis=1
    )
    return Bucket(
        queries=_int64(queries),
        keys=_int64(keys),
        query_positions=_int64(query_positions),
        key_positions=_int64(key_positions),
        causal=not prefix.any(),
    )


def _int64(values: object) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.int64))


def _moved(value: Any, device: torch.device | str) -> Any:
    return value.to(device) if isinstance(value, Tensor | TreeLayout | PaddedLayout) else value


# --------------------------------------------------------------------------------------------------
# Order


@dataclass(frozen=True)
class StepOrder:
    """Which rows an optimizer step trains on: a pure function of (seed, step).

    Epochs are seeded permutations of the rows, laid end to end and cut into steps of ``prompts_per_step``
    rows; so every step has the same size and every row comes once per epoch.  A step across the end of an
    epoch takes its last rows from the next permutation.
    """

    n_rows: int
    prompts_per_step: int
    seed: int

    def __post_init__(self) -> None:
        if self.n_rows < 1:
            raise DataError("no row is left to train on")
        if self.prompts_per_step < 1:
            raise ConfigError(f"train.prompts_per_step must be at least 1, not {self.prompts_per_step}")

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every row has been seen at least once."""
        return math.ceil(self.n_rows / self.prompts_per_step)

    def indices(self, step: int) -> list[int]:
        """Row numbers of optimizer step ``step`` (0-based)."""
        first = step * self.prompts_per_step
        last = first + self.prompts_per_step
        rows: list[int] = []
        for epoch in range(first // self.n_rows, (last - 1) // self.n_rows + 1):
            order = self._permutation(epoch)
            rows += order[max(first - epoch * self.n_rows, 0) : last - epoch * self.n_rows].tolist()
        return rows

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.n_rows)
