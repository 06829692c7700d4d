"""Packing: every group once, the right rows, the budget; the seeded order of steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import make_group, ragged_groups
from steelyard.data.packing import NEVER, PaddedLayout, StepOrder, TreeLayout, pack
from steelyard.errors import DataError
from steelyard.types import Group


def test_one_tree_by_hand() -> None:
    group = make_group([7, 8, 9], [10, 11], [12])
    (batch,) = pack([group], 6)
    assert batch.input_ids.tolist() == [7, 8, 9, 10, 11, 12]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 3]
    assert batch.predict.tolist() == [2, 3, 2]  # both first tokens are predicted by the prompt's last row
    assert batch.targets.tolist() == [10, 11, 12]
    assert batch.last.tolist() == [4, 5]
    assert batch.lengths.tolist() == [2, 1]
    assert batch.tokens == 6


def test_masked_tokens_are_computed_but_not_scored() -> None:
    group = make_group([7], [10, 11, 12]).replace(masks=(np.array([True, False, True]),))
    (batch,) = pack([group], 10)
    assert batch.input_ids.tolist() == [7, 10, 11, 12]
    assert batch.predict.tolist() == [0, 2] and batch.targets.tolist() == [10, 12]
    assert batch.lengths.tolist() == [2] and batch.last.tolist() == [3]


def test_padded_by_hand() -> None:
    (batch,) = pack([make_group([7, 8], [10, 11], [12])], 8, padded=True)
    assert batch.input_ids.tolist() == [[7, 8, 10, 11], [7, 8, 12, 0]]
    assert isinstance(batch.layout, PaddedLayout)
    assert batch.layout.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch.predict.tolist() == [1, 2, 5] and batch.targets.tolist() == [10, 11, 12]
    assert batch.last.tolist() == [3, 6]


@pytest.mark.parametrize("padded", [False, True])
@given(seed=st.integers(0, 1000), n=st.integers(1, 12), budget=st.integers(80, 300))
@settings(max_examples=25, deadline=None)
def test_every_group_lands_once_within_the_budget(padded: bool, seed: int, n: int, budget: int) -> None:
    groups = ragged_groups(seed, n)
    budget = budget if not padded else 2 * budget
    batches = pack(groups, budget, padded=padded)
    assert [g.key for b in batches for g in b.groups] == [g.key for g in groups]
    for batch in batches:
        assert batch.tokens <= budget
        flat = [t for g in batch.groups for c, m in zip(g.completions, g.masks, strict=True) for t in c[m]]
        assert batch.targets.tolist() == flat
        assert batch.lengths.tolist() == [int(m.sum()) for g in batch.groups for m in g.masks]
        ends = [c[-1] for g in batch.groups for c in g.completions]
        assert batch.input_ids.flatten()[batch.last].tolist() == ends
        assert [len(part) for part in batch.split(batch.targets)] == batch.lengths.tolist()


@given(seed=st.integers(0, 1000), n=st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_layout_lets_each_row_attend_to_its_ancestors_only(seed: int, n: int) -> None:
    groups = ragged_groups(seed, n)
    (batch,) = pack(groups, 10_000)
    expected, row = {}, 0
    for group in groups:
        prompt = list(range(row, row + len(group.prompt)))
        row += len(prompt)
        branches = [prompt]
        for tokens in group.completions:
            branches.append(prompt + list(range(row, row + len(tokens))))
            row += len(tokens)
        for branch in branches:
            for i, own in enumerate(branch):
                expected[own] = branch[: i + 1]
    assert isinstance(batch.layout, TreeLayout)
    seen, flat = {}, []
    for bucket in batch.layout.buckets:
        mask = bucket.allowed()[:, 0]
        for line in range(len(bucket.queries)):
            for i, query in enumerate(bucket.queries[line].tolist()):
                flat.append(query)
                keys = bucket.keys[line][mask[line, i]].tolist()
                seen.setdefault(query, sorted(keys))
                assert seen[query] == sorted(keys)
                assert len(set(keys)) == len(keys)
    assert seen == expected
    assert [flat[i] for i in batch.layout.place] == list(range(row))


def test_padding_keys_are_never_attended_to() -> None:
    (batch,) = pack(ragged_groups(3, 9), 10_000)
    assert isinstance(batch.layout, TreeLayout)
    for bucket in batch.layout.buckets:
        for window in (None, 4):
            mask = bucket.allowed(window)[:, 0]
            assert not mask[(bucket.key_positions == NEVER)[:, None].expand_as(mask)].any()
            assert mask.any(-1).all()  # a query without any key would give NaN


def test_a_group_larger_than_the_budget_is_named() -> None:
    groups = [make_group([5], [6], key="a.jsonl:1"), make_group([5] * 10, [6] * 8, [6] * 4, key="a.jsonl:2")]
    with pytest.raises(
        DataError, match=r"a\.jsonl:2: prompt 10 and completions 8\+4 take 22 .* = 20; raise it to .* 22"
    ):
        pack(groups, 20)
    with pytest.raises(DataError, match="a.jsonl:2.* take 36 positions with padding"):
        pack(groups, 22, padded=True)


def test_a_group_without_completions_is_refused() -> None:
    with pytest.raises(DataError, match="x:1: it has no completion"):
        pack([Group(np.array([5]), (), (), key="x:1")], 100)


def test_nothing_to_pack() -> None:
    assert pack([], 100) == []


def test_a_batch_moves_with_everything_in_it() -> None:
    for padded in (False, True):
        (batch,) = pack(ragged_groups(), 10_000, padded=padded)
        moved = batch.to("meta")
        assert moved.input_ids.device.type == moved.predict.device.type == "meta"
        tensors = moved.layout.attention_mask if isinstance(moved.layout, PaddedLayout) else moved.layout.place
        assert tensors.device.type == "meta"
        assert moved.groups == batch.groups


@given(n=st.integers(1, 40), size=st.integers(1, 50), seed=st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_every_row_comes_once_per_epoch(n: int, size: int, seed: int) -> None:
    order = StepOrder(n, size, seed)
    steps = [order.indices(step) for step in range(3 * order.steps_per_epoch)]
    assert all(len(step) == size for step in steps)
    stream = [row for step in steps for row in step]
    for epoch in range(len(stream) // n):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert (order.steps_per_epoch - 1) * size < n <= order.steps_per_epoch * size
    assert order.indices(2) == StepOrder(n, size, seed).indices(2)


def test_the_seed_and_the_epoch_change_the_order() -> None:
    first = StepOrder(100, 100, 0)
    assert first.indices(0) != first.indices(1) != StepOrder(100, 100, 1).indices(1)


def test_no_rows() -> None:
    with pytest.raises(DataError, match="no row"):
        StepOrder(0, 4, 0)


def test_tensors_are_integers() -> None:
    (batch,) = pack(ragged_groups(), 10_000)
    for tensor in (
        batch.input_ids,
        batch.position_ids,
        batch.predict,
        batch.targets,
        batch.last,
        batch.lengths,
    ):
        assert tensor.dtype == torch.int64
