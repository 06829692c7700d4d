"""Reference log-probabilities: computed once, kept on disk under the hash of everything that they depend on.

The key is made of the weights as they are, their type, adapter, tokenizer and template, the groups' token ids
and masks, and how they were computed (temperature, token budget, thread count, torch), so that a hit has the
very bits that a computation would give.  All runs of a study share one cache directory.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch

from steelyard.data.packing import pack
from steelyard.errors import DataError
from steelyard.files import atomic_write, canonical_json, sha256_json
from steelyard.models.load import Policy
from steelyard.models.logprobs import token_logprobs
from steelyard.types import Group

SCHEMA = 1
"""Version of the files' content."""

_AT_ONCE = 1024
"""Groups packed at a time, so that the index tensors of a large file are never all in memory."""


class ReferenceCache:
    """Log-probabilities of groups under a frozen policy, one safetensors file per (policy, groups).

    Processes may share ``root``: files appear whole, and whoever computes the same key writes the same bytes.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def logps(
        self,
        policy: Policy,
        groups: Sequence[Group],
        *,
        tokens_per_microbatch: int,
        temperature: float = 1.0,
    ) -> list[tuple[np.ndarray, ...]]:
        """Log-probabilities of completion tokens: per group k arrays ``float32[t_k]``, NaN at mask False.

        Computed in eval mode without gradients, in the order of ``groups``, packed alone: the values do not
        depend on the batches of any training run.
        """
        facts = {
            "schema": SCHEMA,
            "policy": policy.fingerprint(),
            "groups": _groups_sha256(groups),
            "temperature": temperature,
            "tokens_per_microbatch": tokens_per_microbatch,
            "packed": policy.packed,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "device": policy.device.type,
        }
        path = self.root / f"{sha256_json(facts)}.safetensors"
        flat = _read(path, tokens=sum(len(c) for g in groups for c in g.completions)) if path.is_file() else None
        if flat is None:
            flat = _compute(policy, groups, tokens_per_microbatch, temperature)
            content = safetensors.numpy.save({"logps": flat}, metadata={"facts": canonical_json(facts)})
            atomic_write(path, content)
        return _unflatten(flat, groups)


def attach_reference(groups: Sequence[Group], logps: Sequence[tuple[np.ndarray, ...]]) -> list[Group]:
    """The groups with ``token_columns["ref"]`` set, group by group."""
    if len(groups) != len(logps):
        raise DataError(f"reference log-probabilities of {len(logps)} groups for {len(groups)} groups")
    return [
        group.replace(token_columns={**group.token_columns, "ref": values})
        for group, values in zip(groups, logps, strict=True)
    ]


def _compute(policy: Policy, groups: Sequence[Group], budget: int, temperature: float) -> np.ndarray:
    """Flat ``float32`` values of all completion tokens, NaN where the mask is False."""
    masks = [np.asarray(m, dtype=bool) for g in groups for m in g.masks]
    flat = np.full(sum(map(len, masks)), np.nan, dtype=np.float32)
    if not masks:
        return flat
    scored = []
    with policy.measuring() as model:
        for start in range(0, len(groups), _AT_ONCE):
            for batch in pack(groups[start : start + _AT_ONCE], budget, padded=not policy.packed):
                outputs = token_logprobs(model, batch.to(policy.device), temperature=temperature)
                scored.append(outputs.logp.float().cpu().numpy())
    flat[np.concatenate(masks)] = np.concatenate(scored)
    return flat


def _unflatten(flat: np.ndarray, groups: Sequence[Group]) -> list[tuple[np.ndarray, ...]]:
    values, start = [], 0
    for group in groups:
        completions = []
        for tokens in group.completions:
            completions.append(flat[start : start + len(tokens)])
            start += len(tokens)
        values.append(tuple(completions))
    return values


def _groups_sha256(groups: Sequence[Group]) -> str:
    """Hash of prompts, completions and masks, with their lengths; names and columns do not matter."""
    digest = hashlib.sha256()

    def add(array: Any, dtype: str) -> None:
        digest.update(len(array).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(array, dtype=dtype).tobytes())

    for group in groups:
        digest.update(group.k.to_bytes(8, "little"))
        add(group.prompt, "<i4")
        for tokens, mask in zip(group.completions, group.masks, strict=True):
            add(tokens, "<i4")
            add(mask, "|u1")
    return digest.hexdigest()


def _read(path: Path, tokens: int) -> np.ndarray | None:
    """The stored values; None, with a warning, when the file is damaged: its name says what to compute again."""
    try:
        flat = safetensors.numpy.load_file(path)["logps"]
        problem = "" if flat.shape == (tokens,) else f"{flat.size} values where {tokens} are expected"
    except (safetensors.SafetensorError, KeyError) as error:
        flat, problem = None, f"not readable: {error}"
    if problem:
        warnings.warn(f"{path}: damaged reference log-probabilities are computed again ({problem})", stacklevel=3)
        return None
    return flat
