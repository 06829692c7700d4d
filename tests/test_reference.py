"""The reference cache: a hit is a hit, has the same bits, and never belongs to other weights or data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import ragged_groups
from steelyard.config import LoraConfig, ModelConfig
from steelyard.data.packing import pack
from steelyard.errors import DataError
from steelyard.models import reference
from steelyard.models.load import Policy, freeze_copy, load_policy
from steelyard.models.logprobs import token_logprobs
from steelyard.models.reference import ReferenceCache, attach_reference
from steelyard.types import Group

BUDGET = 200


@pytest.fixture
def policy(model_directory: Path) -> Policy:
    return load_policy(ModelConfig(name_or_path=str(model_directory)), seed=0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every forward pass that the cache asks for."""
    made: list[int] = []

    def counted(*args: object, **kwargs: object) -> object:
        made.append(1)
        return token_logprobs(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(reference, "token_logprobs", counted)
    return made


def test_values_masks_and_hits(policy: Policy, tmp_path: Path, calls: list[int], groups: list[Group]) -> None:
    cache = ReferenceCache(tmp_path / "cache")
    first = cache.logps(policy, groups, tokens_per_microbatch=BUDGET)
    n = len(calls)
    assert n >= 1
    with torch.no_grad():
        expected = torch.cat([token_logprobs(policy.model, b).logp for b in pack(groups, BUDGET)]).numpy()
    flat = [v[m] for g, values in zip(groups, first, strict=True) for v, m in zip(values, g.masks, strict=True)]
    assert np.array_equal(np.concatenate(flat), expected)
    for group, values in zip(groups, first, strict=True):
        for value, mask in zip(values, group.masks, strict=True):
            assert value.dtype == np.float32 and np.array_equal(np.isnan(value), ~mask)

    again = ReferenceCache(tmp_path / "cache").logps(policy, groups, tokens_per_microbatch=BUDGET)
    assert len(calls) == n  # no forward pass
    for one, other in zip(first, again, strict=True):
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one, other, strict=True))
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_everything_that_matters_is_in_the_key(
    policy: Policy, model_directory: Path, tmp_path: Path, calls: list[int], groups: list[Group]
) -> None:
    cache = ReferenceCache(tmp_path)

    def misses(policy: Policy, groups: list[Group], temperature: float = 1.0) -> bool:
        before = len(calls)
        cache.logps(policy, groups, tokens_per_microbatch=BUDGET, temperature=temperature)
        return len(calls) > before

    assert misses(policy, groups)
    assert not misses(policy, [g.replace(key="other", columns={"a": 1}) for g in groups])  # names do not matter
    assert not misses(load_policy(ModelConfig(name_or_path=str(model_directory)), seed=7), groups)
    assert misses(policy, groups, temperature=0.5)
    assert misses(policy, groups[1:])
    assert misses(policy, [groups[0].replace(masks=tuple(~m for m in groups[0].masks)), *groups[1:]])
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0]['content'] }}")
    cfg = ModelConfig(name_or_path=str(model_directory), chat_template=str(template))
    assert misses(load_policy(cfg, seed=0), groups)
    with torch.no_grad():
        next(policy.model.parameters())[5] += 1e-3  # trained in the meantime: the stored identity is stale
    assert misses(policy, groups)


def test_lora_and_full_training_share_the_reference(
    policy: Policy, model_directory: Path, tmp_path: Path, calls: list[int], groups: list[Group]
) -> None:
    cache = ReferenceCache(tmp_path)
    expected = cache.logps(freeze_copy(policy), groups, tokens_per_microbatch=BUDGET)
    n = len(calls)
    lora = load_policy(ModelConfig(name_or_path=str(model_directory)), LoraConfig(r=2), seed=0)
    shared = cache.logps(freeze_copy(lora), groups, tokens_per_microbatch=BUDGET)
    assert len(calls) == n
    fresh = ReferenceCache(tmp_path / "other").logps(freeze_copy(lora), groups, tokens_per_microbatch=BUDGET)
    for one, two, three in zip(expected, shared, fresh, strict=True):
        for a, b, c in zip(one, two, three, strict=True):
            assert np.array_equal(a, b, equal_nan=True) and np.array_equal(a, c, equal_nan=True)


def test_the_mode_is_restored_and_no_graph_is_kept(policy: Policy, tmp_path: Path, groups: list[Group]) -> None:
    policy.model.train()
    ReferenceCache(tmp_path).logps(policy, groups, tokens_per_microbatch=BUDGET)
    assert policy.model.training
    assert all(p.grad is None for p in policy.model.parameters())


def test_a_damaged_file_is_computed_again(policy: Policy, tmp_path: Path, groups: list[Group]) -> None:
    cache = ReferenceCache(tmp_path / "cache")
    before = cache.logps(policy, groups, tokens_per_microbatch=BUDGET)
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(b"junk")
    with pytest.warns(UserWarning, match=f"{file.name}.*computed again"):
        after = cache.logps(policy, groups, tokens_per_microbatch=BUDGET)
    pairs = zip((x for row in before for x in row), (x for row in after for x in row), strict=True)
    assert all(np.array_equal(x, y, equal_nan=True) for x, y in pairs)
    assert len(file.read_bytes()) > len(b"junk")


def test_attach_reference() -> None:
    groups = ragged_groups(n=3)
    values = [tuple(np.full(len(c), -1.0, dtype=np.float32) for c in g.completions) for g in groups]
    attached = attach_reference(groups, values)
    assert all(np.array_equal(g.token_columns["ref"][0], v[0]) for g, v in zip(attached, values, strict=True))
    assert not groups[0].token_columns
    with pytest.raises(DataError, match="2 groups for 3 groups"):
        attach_reference(groups, values[:2])
