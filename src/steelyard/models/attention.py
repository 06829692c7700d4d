"""Attention over packed prefix trees, registered with transformers as ``"steelyard_packed"``.

Any transformers model whose layers all call the attention interface computes packed rows without a change to its
code: the backbone gets ``position_ids`` and the extra keyword ``layout``, which reaches the function below in every
layer.  No mask is made for the row, because the layout says who attends to whom.

Attention is computed per bucket of similar segments (:class:`steelyard.data.packing.Bucket`) with
``scaled_dot_product_attention``, so its cost follows the sizes of the trees and not the square of the row.  Kernels
for other devices (FlexAttention, variable-length) belong into :func:`packed_attention`, chosen by ``query.device``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from steelyard.data.packing import PackedBatch, PaddedLayout, TreeLayout, pack
from steelyard.errors import ModelError
from steelyard.types import Group

PACKED = "steelyard_packed"
"""Name of the attention implementation."""

_PROBE = PACKED + "_probe"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    layout: TreeLayout | PaddedLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function of transformers' interface.

    Args:
        module: the attention layer.
        query: ``[1, h, N, d]`` (padded layout: ``[rows, h, width, d]``), rotated.
        key: ``[1, h_kv, N, d]``.
        value: ``[1, h_kv, N, d_v]``.
        attention_mask: unused; the layout says who attends to whom.
        scaling: factor of the scores; default ``d ** -0.5``.
        sliding_window: a query attends to this many positions, its own included.
        softcap: scores become ``softcap * tanh(scores / softcap)`` (Gemma 2).
        layout: of the batch; required.

    Returns:
        ``[1, N, h, d_v]`` and ``None`` (no attention weights).

    Raises:
        ModelError: no layout, or an attention feature that is not supported.
    """
    _refuse_unsupported(module, layout, kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attend = _Attend(scale, dropout, softcap)
    if isinstance(layout, PaddedLayout):
        # Right padding needs no mask: it comes after every real query.
        mask = None if sliding_window is None else _causal_mask(query.shape[2], sliding_window, query)
        return attend(query, key, value, mask).transpose(1, 2), None
    assert isinstance(layout, TreeLayout)
    # One gather per layer for all buckets: in the backward pass each makes a tensor of the row's size.
    q = _flat_rows(query).index_select(0, layout.queries).split([b.queries.numel() for b in layout.buckets])
    sizes = [b.keys.numel() for b in layout.buckets]
    k = _flat_rows(key).index_select(0, layout.keys).split(sizes)
    v = _flat_rows(value).index_select(0, layout.keys).split(sizes)
    outputs = []
    for i, bucket in enumerate(layout.buckets):
        lines = len(bucket.queries)
        out = attend(
            _per_head(q[i], lines, query.shape[1]),
            _per_head(k[i], lines, key.shape[1]),
            _per_head(v[i], lines, value.shape[1]),
            layout.mask(i, sliding_window, query.dtype),
        )
        outputs.append(out.transpose(1, 2).reshape(bucket.queries.numel(), -1))
    output = torch.cat(outputs).index_select(0, layout.place)
    return output.view(1, len(output), query.shape[1], -1), None


# No mask function is registered under this name, so transformers makes no mask: the layout replaces it.
AttentionInterface.register(PACKED, packed_attention)


class _Attend:
    """Softmax attention of one layer: ``[b, h, l, d], [b, h_kv, s, d], [b, h_kv, s, d_v] -> [b, h, l, d_v]``."""

    def __init__(self, scale: float, dropout: float, softcap: float | None) -> None:
        self.scale = scale
        self.dropout = dropout
        self.softcap = softcap

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """``mask`` is added to the scores; None means causal."""
        if self.softcap is not None:
            return self._soft_capped(query, key, value, mask, self.softcap)
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout,
            is_causal=mask is None,
            scale=self.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )

    def _soft_capped(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, cap: float) -> Tensor:
        repeat = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeat, dim=1), value.repeat_interleave(repeat, dim=1)
        scores = ((query @ key.transpose(2, 3)) * (self.scale / cap)).tanh() * cap
        if mask is None:
            mask = _causal_mask(query.shape[2], query.shape[2], query)
        weights = (scores + mask).softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        return F.dropout(weights.to(query.dtype), self.dropout) @ value


def _causal_mask(width: int, window: int, like: Tensor) -> Tensor:
    """``[width, width]``, added to scores: 0 at the ``window`` positions up to the query's own, else -inf."""
    mask = torch.full((width, width), float("-inf"), dtype=like.dtype, device=like.device)
    return mask.triu(1) + mask.tril(-window)


def _per_head(rows: Tensor, lines: int, heads: int) -> Tensor:
    """``[lines * l, heads * d]`` -> ``[lines, heads, l, d]``, a view."""
    return rows.view(lines, -1, heads, rows.shape[1] // heads).transpose(1, 2)


def _flat_rows(x: Tensor) -> Tensor:
    """``[1, h, N, d]`` -> ``[N, h*d]``: a view when the layer's projection was not copied."""
    return x[0].transpose(0, 1).reshape(x.shape[2], -1)


def _refuse_unsupported(module: nn.Module, layout: object, kwargs: dict[str, Any]) -> None:
    name = type(module).__name__
    if layout is None:
        raise ModelError(
            f"{name}: attention '{PACKED}' was called without a layout; compute log-probabilities with "
            "token_logprobs, or switch with `standard_attention(model)` before calling the model directly"
        )
    if not getattr(module, "is_causal", True):
        raise ModelError(f"{name}: attention in both directions cannot be packed")
    for feature in ("s_aux", "position_bias"):
        if kwargs.get(feature) is not None:
            raise ModelError(f"{name}: attention feature '{feature}' cannot be packed")


# --------------------------------------------------------------------------------------------------
# Which implementation a model uses


def base_of(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside ``model`` (itself, or what a peft wrapper wraps)."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if unwrap is not None else model  # type: ignore[return-value]


def standard_implementation(model: nn.Module) -> str:
    """``"sdpa"``, or ``"eager"`` for models that cap their scores (sdpa has no soft cap) or know no sdpa."""
    base = base_of(model)
    config = base.config.get_text_config()
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return "eager" if capped or not getattr(base, "_supports_sdpa", False) else "sdpa"


@contextmanager
def attention_implementation(model: nn.Module, name: str) -> Iterator[None]:
    """Use attention ``name`` inside the block, then restore the previous one."""
    base = base_of(model)
    before = base.config._attn_implementation or "eager"
    base.set_attn_implementation(name)
    try:
        yield
    finally:
        base.set_attn_implementation(before)


@contextmanager
def standard_attention(model: nn.Module) -> Iterator[None]:
    """Use the model's ordinary attention inside the block (to call, generate with or save it)."""
    with attention_implementation(model, standard_implementation(model)):
        yield


def hidden_states(model: nn.Module, batch: PackedBatch) -> Tensor:
    """The backbone's last hidden states as flat rows: ``[N, d]``, or ``[rows * width, d]`` of a padded batch.

    Works for a transformers model with any head and for a peft wrapper around one.  A packed batch needs the
    attention implementation :data:`PACKED`; a padded batch works with every implementation.
    """
    base = base_of(model)
    packed = (base.config._attn_implementation or "").startswith(PACKED)
    inputs: dict[str, Any] = {"use_cache": False}
    if isinstance(batch.layout, TreeLayout):
        if not packed:
            raise ModelError(
                f"a packed batch needs attention '{PACKED}', but the model uses "
                f"'{base.config._attn_implementation}'; pack with padded=True"
            )
        inputs |= {"input_ids": batch.input_ids[None], "position_ids": batch.position_ids[None]}
    else:
        # Rows are padded on the right, so the model's own positions (0, 1, ...) are those of the batch.
        inputs |= {"input_ids": batch.input_ids, "attention_mask": batch.layout.attention_mask}
    if packed:
        inputs["layout"] = batch.layout.fresh() if isinstance(batch.layout, TreeLayout) else batch.layout
    return base.base_model(**inputs).last_hidden_state.flatten(0, 1)


# --------------------------------------------------------------------------------------------------
# Can this model be packed?


def supports_packing(model: nn.Module) -> tuple[bool, str]:
    """Whether packed prefix trees are exact for ``model``, and if not, why.

    What the config declares is checked first.  Then a small tree is computed: every layer must call the
    packed attention exactly once (state-space and linear attention layers do not), and changing a completion
    must leave the hidden states of its sibling and of the next tree as they were.

    Returns:
        ``(True, "")`` or ``(False, reason)``.
    """
    base = base_of(model)
    config = base.config.get_text_config()
    if getattr(base.config, "is_encoder_decoder", False):
        return False, "encoder-decoder models cannot be packed"
    if not base._can_set_attn_implementation():
        return False, f"{type(base).__name__} does not use the attention interface of transformers"
    if getattr(config, "attention_chunk_size", None):
        return False, "chunked attention cannot be packed"
    if getattr(config, "use_bidirectional_attention", False):
        return False, "attention in both directions cannot be packed"
    if not _takes_keywords(base.base_model):
        return False, f"{type(base.base_model).__name__}.forward passes no keywords on to its attention layers"
    return _probe(base)


def _takes_keywords(backbone: nn.Module) -> bool:
    kinds = {parameter.kind for parameter in inspect.signature(backbone.forward).parameters.values()}
    return inspect.Parameter.VAR_KEYWORD in kinds


def _probe(base: PreTrainedModel) -> tuple[bool, str]:
    """Compute one small row of two trees twice, with two versions of one completion, and see what changes."""
    windows: list[int | None] = []

    def recording(module: nn.Module, *args: Any, sliding_window: int | None = None, **kwargs: Any) -> Any:
        windows.append(sliding_window)
        return packed_attention(module, *args, sliding_window=sliding_window, **kwargs)

    AttentionInterface.register(_PROBE, recording)
    training = base.training
    base.eval()
    try:
        with attention_implementation(base, _PROBE), torch.no_grad():
            first, second = (hidden_states(base, _probe_batch(base, own)) for own in ([4, 5], [5, 4]))
    except ModelError as error:
        return False, str(error)
    finally:
        base.train(training)

    config = base.config.get_text_config()
    layers, sliding = config.num_hidden_layers, _sliding_layers(config)
    if len(windows) != 2 * layers:
        return False, f"only {len(windows) // 2} of {layers} layers use the attention interface"
    if sum(window is not None for window in windows) != 2 * sliding:
        return False, "its layers do not tell the attention function about their sliding window"
    change = (first - second).abs().amax(-1)
    changed, others = change[3:5].max(), torch.cat([change[:3], change[5:]]).max()
    # Rounding may differ where experts regroup tokens; a leak is of the size of the change itself.
    if others > 0.01 * changed:
        return False, "completions of a packed row influence each other outside attention"
    return True, ""


def _probe_batch(base: PreTrainedModel, own: list[int]) -> PackedBatch:
    def group(prompt: list[int], *completions: list[int]) -> Group:
        arrays = tuple(np.array(ids, dtype=np.int32) for ids in completions)
        return Group(np.array(prompt, dtype=np.int32), arrays, tuple(np.ones(len(a), dtype=bool) for a in arrays))

    (batch,) = pack([group([1, 2, 3], own, [6, 7]), group([2, 1], [3])], 16)
    return batch.to(base.device)


def _sliding_layers(config: Any) -> int:
    """How many layers have a sliding window, as far as the config says."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return sum(kind == "sliding_attention" for kind in kinds)
    return config.num_hidden_layers if getattr(config, "sliding_window", None) is not None else 0
