"""The batch unit, and what the family views hand out: masked, detached where frozen, joinable."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from steelyard.conform.inputs import BUILD, random_inputs, widen
from steelyard.errors import DataError
from steelyard.types import (
    Distill,
    Group,
    Pairs,
    Ranked,
    Rollouts,
    Scores,
    Sequences,
    Tokens,
    TokenScores,
    Unpaired,
    View,
)

same = torch.testing.assert_close


def group(**changes: Any) -> Group:
    """A prompt of two tokens with completions of three and one tokens, one of them a tool's."""
    values: dict[str, Any] = {
        "prompt": np.array([1, 2], dtype=np.int32),
        "completions": (np.array([3, 4, 5], dtype=np.int32), np.array([6], dtype=np.int32)),
        "masks": (np.array([True, False, True]), np.array([True])),
        "key": "rows.jsonl:7",
    }
    return Group(**values | changes)


# --------------------------------------------------------------------------------------------------
# Group


def test_a_group_counts_the_prompt_once() -> None:
    assert (group().k, group().tokens, group().scored) == (2, 6, 3)
    assert group().trained == (True, True)
    assert group(completions=(), masks=()).k == 0  # a prompt that waits for its rollouts


def test_replace_checks_again() -> None:
    ref = (np.zeros(3, np.float32), np.zeros(1, np.float32))
    changed = group().replace(token_columns={"ref": ref}, trained=(True, False))
    assert changed.token_columns["ref"] is ref and changed.trained == (True, False)
    assert group().token_columns == {}
    with pytest.raises(DataError, match="rows.jsonl:7: token column 'ref' does not fit the tokens"):
        changed.replace(token_columns={"ref": ref[::-1]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": np.zeros(0, np.int32)}, "the prompt has no token"),
        ({"masks": (np.ones(3, bool),)}, "differ in number"),
        ({"trained": (True,)}, "differ in number"),
        ({"masks": (np.ones(2, bool), np.ones(1, bool))}, "a mask of 2 for 3 tokens"),
        ({"token_columns": {"old": (np.zeros(3), np.zeros(2))}}, "token column 'old'"),
    ],
)
def test_a_group_that_does_not_fit_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"rows.jsonl:7: .*{message}"):
        group(**changes)


# --------------------------------------------------------------------------------------------------
# Sequences

MASK = torch.tensor([[True, True, False, True], [True, False, False, False]])
LOGP = torch.tensor([[-1.0, -2.0, 99.0, -3.0], [-4.0, float("nan"), 99.0, float("inf")]])
REF = LOGP - 1.0


def test_sequences_hold_masked_values() -> None:
    found = Sequences.of_tokens(LOGP, MASK, REF)
    assert found.logp.tolist() == [-6.0, -4.0] and found.length.tolist() == [3, 1]
    assert found.mean.tolist() == [-2.0, -4.0]
    assert found.ref.tolist() == [-9.0, -5.0]
    assert found.logratio.tolist() == [3.0, 1.0] and found.mean_logratio.tolist() == [1.0, 1.0]
    assert found.token_logp.tolist() == [[-1.0, -2.0, 0.0, -3.0], [-4.0, 0.0, 0.0, 0.0]]
    assert found.token_ref.tolist() == [[-2.0, -3.0, 0.0, -4.0], [-5.0, 0.0, 0.0, 0.0]]
    assert torch.equal(found.mask, MASK)


def test_sums_and_tokens_agree() -> None:
    tokens = Sequences.of_tokens(LOGP, MASK, REF)
    sums = Sequences.of_sums([-6.0, -4.0], [3, 1], [-9.0, -5.0])
    for name in ("logp", "mean", "ref", "logratio", "mean_logratio"):
        same(getattr(sums, name), getattr(tokens, name))


def test_what_a_view_lacks_is_named() -> None:
    sums = Sequences.of_sums([-6.0, -4.0])
    for name, what in {
        "ref": "reference log-probabilities",
        "logratio": "reference log-probabilities",
        "token_logp": "token-level log-probabilities",
        "token_ref": "token-level reference log-probabilities",
        "mask": "a token mask",
        "mean": "uses completion lengths",
    }.items():
        with pytest.raises(DataError, match=what):
            getattr(sums, name)
    with pytest.raises(DataError, match="uses completion lengths"):
        _ = Sequences.of_sums([-6.0, -4.0], [3, 0]).mean
    with pytest.raises(DataError, match="no token-level terms"):
        _ = Scores.from_scores([1.0], [0.0]).token_mask


@pytest.mark.parametrize("tokens", [True, False])
def test_references_are_detached(tokens: bool) -> None:
    policy = torch.randn(2, 3, requires_grad=True)
    ref = torch.randn(2, 3, requires_grad=True)
    if tokens:
        found = Sequences.of_tokens(policy, torch.ones(2, 3), ref)
        assert not found.token_ref.requires_grad
    else:
        found = Sequences.of_sums(policy.sum(-1), ref=ref.sum(-1))
    assert not found.ref.requires_grad and found.logratio.requires_grad


# --------------------------------------------------------------------------------------------------
# Family views


def test_rollouts_spread_and_mask() -> None:
    found = Rollouts.from_logps(LOGP, LOGP - 1, MASK, [1.0, 0.0], [0, 0], ref=REF, advantage=[2.0, -1.0])
    assert found.advantage.tolist() == [[2.0, 2.0, 0.0, 2.0], [-1.0, 0.0, 0.0, 0.0]]
    same(found.ratio, torch.where(MASK, torch.e, 1.0))  # one where nothing was sampled
    same(found.logp - found.ref, MASK.float())
    assert found.items == 2 and found.groups.tolist() == [0, 0]
    per_token = torch.arange(8.0).view(2, 4)
    found = Rollouts.from_logps(LOGP, LOGP, MASK, [1.0, 0.0], [0, 1], advantage=per_token)
    same(found.advantage, per_token * MASK)
    with pytest.raises(DataError, match="reference log-probabilities"):
        _ = found.ref
    assert not Rollouts.from_logps(LOGP, LOGP, MASK, [1.0, 0.0], [0, 1]).advantage.any()


def test_ratios_do_not_overflow() -> None:
    logp = torch.tensor([[0.0, -1000.0, -1.0]], requires_grad=True)
    found = Rollouts.from_logps(logp, [[-1000.0, 0.0, -2.0]], [[1, 1, 1]], [0.0], [0]).ratio
    (gradient,) = torch.autograd.grad(found.sum(), logp)
    assert bool(found.isfinite().all()) and gradient[0].tolist() == pytest.approx([0.0, 0.0, torch.e])


def test_the_token_mask_of_a_family() -> None:
    other = torch.ones(2, 3, dtype=torch.bool)
    pairs = Pairs.from_logps(LOGP, torch.zeros(2, 3), mask_chosen=MASK, mask_rejected=other)
    assert torch.equal(pairs.token_mask, MASK)  # NLL terms are means over the chosen tokens
    for view in (
        Tokens.from_logps(LOGP, MASK),
        Unpaired.from_logps(LOGP, [1, 0], mask=MASK),
        Rollouts.from_logps(LOGP, LOGP, MASK, [0.0, 0.0], [0, 1]),
    ):
        assert torch.equal(view.token_mask, MASK) and view.token_mask_or_none is not None
    for view in (
        Tokens.from_logps([-1.0]),
        Pairs.from_logps([-1.0], [-2.0]),
        Unpaired.from_logps([-1.0], [True]),
        Scores.from_scores([1.0], [0.0]),
    ):
        assert view.token_mask_or_none is None and view.items == 1


def test_columns_become_tensors() -> None:
    assert Pairs.from_logps([-1.0], [-2.0], gap=[0.5]).columns["gap"].tolist() == [0.5]
    assert Scores.from_scores([1.0], [0.0], margin=[1.0]).columns["margin"].tolist() == [1.0]


def leaves(value: Any) -> list[Tensor]:
    """All tensors of a view."""
    found: list[Tensor] = []
    for item in vars(value).values():
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, View | Sequences):
            found += leaves(item)
        elif isinstance(item, dict):
            found += list(item.values())
    return found


@pytest.mark.parametrize("family", BUILD)
def test_detach(family: str) -> None:
    raw = {k: v.requires_grad_(v.is_floating_point()) for k, v in random_inputs(family).items()}
    view = BUILD[family](**raw)
    assert any(tensor.requires_grad for tensor in leaves(view))
    detached = view.detach()
    assert not any(tensor.requires_grad for tensor in leaves(detached))
    for left, right in zip(leaves(view), leaves(detached), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("wide", [0, 1])
@pytest.mark.parametrize("family", BUILD)
def test_concat_of_different_widths_is_the_whole(family: str, wide: int) -> None:
    raw = random_inputs(family)
    parts = [{key: value[rows] for key, value in raw.items()} for rows in (slice(0, 3), slice(3, 5))]
    parts[wide] = {key: widen(v, 2) for key, v in parts[wide].items()}
    joined, whole = View.concat([BUILD[family](**part) for part in parts]), BUILD[family](**raw)
    assert joined.items == 5
    for left, right in zip(leaves(joined), leaves(whole), strict=True):
        if right.dim() > 1:
            assert left.shape[1] == right.shape[1] + 2 and not left[:, right.shape[1] :].any()
            left = left[:, : right.shape[1]]
        same(left, right)


def test_views_that_carry_different_things_do_not_join() -> None:
    with_ref, without = Pairs.from_logps([-1.0], [-2.0], [-1.0], [-2.0]), Pairs.from_logps([-1.0], [-2.0])
    for views in ([with_ref, without], [without, with_ref]):
        with pytest.raises(DataError, match="cannot be joined"):
            View.concat(views)


def test_statistics_travel_with_a_view_and_leave_the_original_alone() -> None:
    view = Pairs.from_logps([-1.0], [-2.0])
    assert view.with_stats({"delta": torch.tensor(0.5)}).stats["delta"] == 0.5
    assert view.stats == {}


# --------------------------------------------------------------------------------------------------
# Plain numbers, right and wrong


def test_sums_with_lengths_have_a_token_mean() -> None:
    view = Pairs.from_logps([-4.0, -9.0], [-1.0, -1.0], len_chosen=[2, 3], len_rejected=[1, 1])
    assert view.token_mask.tolist() == [[True, True, False], [True, True, True]]
    assert view.chosen.token_nll.tolist() == [[2.0, 2.0, 0.0], [3.0, 3.0, 3.0]]
    with pytest.raises(DataError, match="token-level log-probabilities"):
        _ = view.chosen.token_logp  # what each token has is not known


def test_integers_are_numbers() -> None:
    assert Pairs.from_logps([-4, -9], [-1, -1]).chosen.logp.tolist() == [-4.0, -9.0]
    assert Ranked.from_logps([[-4, -9, -5]], rewards=[[0.3, 0.2, 0.1]]).rewards.unique().numel() == 3
    assert Scores.from_scores([1, 2], [0, 0]).chosen.is_floating_point()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Pairs.from_logps(LOGP, LOGP), "need a mask"),
        (lambda: Pairs.from_logps([-1.0, -2.0], [-1.0]), r"rejected has the shape \[1\], the chosen side has \[2\]"),
        (lambda: Pairs.from_logps([-1.0], [-1.0], [-1.0], [-1.0], gap=[1.0, 2.0]), r"gap has the shape \[2\]"),
        (lambda: Tokens.from_logps(LOGP, MASK[:, :2]), "they must agree"),
        (lambda: Unpaired.from_logps(LOGP, [1, 0], ref=[-1.0, -2.0], mask=MASK), "reference has the shape"),
        (lambda: Unpaired.from_logps([-1.0], [-1.5]), "label: expected labels"),
        (lambda: Ranked.from_logps([[-1.0, -2.0], [-1.0]]), "rows of one length"),
        (lambda: Ranked.from_scores([[1.0, 2.0]], [[1.0]]), "rewards has the shape"),
        (lambda: Rollouts.from_logps(LOGP, LOGP[:1], MASK, [0.0, 0.0], [0, 1]), "old has the shape"),
    ],
)
def test_what_does_not_fit_is_never_broadcast(build: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build()


def test_labels_and_ignored_positions() -> None:
    assert Unpaired.from_logps([-1.0, -1.0], [1, -1]).label.tolist() == [True, False]
    found = TokenScores.from_scores([[0.1, 0.2]], [[1, -100]], [[1, 1]])
    assert found.mask.tolist() == [[True, False]] and found.labels.tolist() == [[1.0, 0.0]]
    logits = torch.zeros(1, 2, 3)
    assert Distill.from_logits(logits, logits, [[0, -100]]).mask.tolist() == [[True, False]]


def test_the_catalogues_suffixes_name_columns_too() -> None:
    assert Pairs.from_logps([-1.0], [-1.0], p_w=[0.75]).column("p_chosen").tolist() == [0.75]
