"""Losses of other people that cannot be installed here, by recorded numbers: values and gradients.

``data/recorded_oracles.json`` holds, per line, random inputs, our hyperparameters, and what the lines of a
repository at a commit (or of RAX 0.4.0, a JAX library) computed from them in double precision: the value, and its
gradient by the policy's log-probabilities, scores or logits.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from steelyard.algorithms import load
from steelyard.algorithms.core import loss
from steelyard.types import Distill, Pairs, Ranked, Rollouts, Scores, Unpaired

load()

Record = dict[str, Any]
RECORDS: list[Record] = json.loads((Path(__file__).parent / "data" / "recorded_oracles.json").read_text())

ORACLES: dict[str, list[Record]] = {}
for _record in RECORDS:
    ORACLES.setdefault(_record["key"], []).append(_record)
COVERS: dict[str, str] = {
    key: "; ".join(dict.fromkeys(f"{record['by']}, recorded" for record in records)) for key, records in ORACLES.items()
}


def leaf(values: Any) -> Tensor:
    """Recorded numbers to differentiate by."""
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def given(values: Any) -> Tensor:
    """Recorded numbers that are constants."""
    return torch.tensor(values, dtype=torch.float64)


def columns(record: Record) -> dict[str, Any]:
    return {name: given(values) for name, values in record.get("columns", {}).items()}


def agree(record: Record, found: Tensor, leaves: list[Tensor], *, rtol: float = 1e-9) -> None:
    """The recorded value, and the recorded gradient by every leaf."""
    assert float(found.detach()) == pytest.approx(record["value"], rel=rtol, abs=1e-12)
    expected = record["gradient"] if len(leaves) > 1 else [record["gradient"]]
    for mine, theirs in zip(torch.autograd.grad(found, leaves), expected, strict=True):
        torch.testing.assert_close(mine, given(theirs), rtol=10 * rtol, atol=1e-11)


def pairs_of(record: Record) -> tuple[Pairs, list[Tensor]]:
    leaves = [leaf(record["S_w"]), leaf(record["S_l"])]
    chosen, rejected = leaves
    refs = given(record["R_w"]), given(record["R_l"])
    lengths = record["n_w"], record["n_l"]
    return Pairs.from_logps(chosen, rejected, refs[0], refs[1], lengths[0], lengths[1], **columns(record)), leaves


def check_pairs(record: Record) -> None:
    view, leaves = pairs_of(record)
    found = loss(record["key"], view, reduce=True, progress=record.get("progress", 0.0), **record["settings"])
    # The share of the training is a single precision scalar, and so is what a schedule makes of it.
    agree(record, found, leaves, rtol=1e-6 if "progress" in record else 1e-9)


def check_steps(record: Record) -> None:
    """Several steps in a row: the running state goes from one to the next."""
    state = None
    for step in record["steps"]:
        view, leaves = pairs_of(step)
        found, state = loss(record["key"], view, reduce=True, state=state, return_state=True, **record["settings"])
        agree(step, found, leaves, rtol=1e-6)  # their running means are single precision


def check_unpaired_steps(record: Record) -> None:
    """The same for labelled completions: the chosen, then the rejected."""
    state = None
    for step in record["steps"]:
        leaves = [leaf(step["S_w"]), leaf(step["S_l"])]
        label = torch.tensor([True] * len(leaves[0]) + [False] * len(leaves[1]))
        view = Unpaired.from_logps(torch.cat(leaves), label, given(step["R_w"] + step["R_l"]))
        found, state = loss(record["key"], view, reduce=True, state=state, return_state=True, **record["settings"])
        agree(step, found, leaves, rtol=1e-6)


def check_lists(record: Record) -> None:
    policy = leaf(record["policy"])
    view = Ranked.from_logps(
        policy, given(record["ref"]), rewards=given(record["rewards"]), present=torch.tensor(record["present"])
    )
    agree(record, loss(record["key"], view, reduce=True, **record["settings"]), [policy])


def check_scored_lists(record: Record) -> None:
    """RAX knows scores only: a reward head's, or log-ratios to a reference of zero at beta 1."""
    scores = leaf(record["scores"])
    given_lists = {"rewards": given(record["rewards"]), "present": torch.tensor(record["present"])}
    if record["key"] == "rm_listwise":
        view, settings = Ranked.from_scores(scores, **given_lists), record["settings"]
    else:
        view = Ranked.from_logps(scores, torch.zeros_like(scores), **given_lists)
        settings = {"beta": 1.0, **record["settings"]}
    terms = loss(record["key"], view, **settings)
    torch.testing.assert_close(terms.detach(), given(record["terms"]), rtol=1e-9, atol=1e-11)
    agree({**record, "value": sum(record["terms"]) / len(terms)}, terms.mean(), [scores])


def check_rollouts(record: Record) -> None:
    policy, mask = leaf(record["policy"]), torch.tensor(record["mask"])
    ref, rewards = given(record["ref"]), given(record["rewards"])
    view = Rollouts.from_logps(policy, policy.detach(), mask, rewards, torch.arange(len(rewards)), ref)
    agree(record, loss(record["key"], view, reduce=True, **record["settings"]), [policy])


def check_scores(record: Record) -> None:
    chosen, rejected = leaf(record["chosen"]), leaf(record["rejected"])
    view = Scores.from_scores(chosen, rejected, **columns(record))
    agree(record, loss(record["key"], view, reduce=True, **record["settings"]), [chosen, rejected])


def check_logits(record: Record) -> None:
    """From both models' logits: the chosen half, then the rejected half; -100 where nothing is trained."""
    policy, reference, labels = leaf(record["policy"]), given(record["ref"]), torch.tensor(record["labels"])[:, 1:]
    mine, theirs = (x[:, :-1].log_softmax(-1) for x in (policy, reference))
    index, mask = labels.clamp(min=0)[..., None], labels >= 0
    kl = (theirs.exp() * (theirs - mine)).sum(-1)
    logp, ref = (x.gather(-1, index)[..., 0] for x in (mine, theirs))
    half = len(labels) // 2
    view = Pairs.from_logps(
        logp[:half],
        logp[half:],
        ref[:half],
        ref[half:],
        mask_chosen=mask[:half],
        mask_rejected=mask[half:],
        extras_chosen={"ref_kl": kl[:half]},
        extras_rejected={"ref_kl": kl[half:]},
    )
    agree(record, loss(record["key"], view, reduce=True, **record["settings"]), [policy])


def check_distill(record: Record) -> None:
    """From both models' logits, with the log-probabilities that the completions were sampled with."""
    policy = leaf(record["policy"])
    view = Distill.from_logits(
        policy,
        given(record["teacher"]),
        torch.tensor(record["labels"]),
        torch.tensor(record["mask"]),
        old=given(record["old"]),
        own=record["own"],
        behaviour=given(record["behaviour"]),
    )
    agree(record, loss(record["key"], view, reduce=True, **record["settings"]), [policy])


CHECKS: dict[str, Callable[[Record], None]] = {
    "pairs": check_pairs,
    "steps": check_steps,
    "unpaired_steps": check_unpaired_steps,
    "lists": check_lists,
    "scored_lists": check_scored_lists,
    "rollouts": check_rollouts,
    "scores": check_scores,
    "logits": check_logits,
    "distill": check_distill,
}


def name_of(record: Record) -> str:
    return "-".join([record["key"], *(f"{name}={value}" for name, value in record["settings"].items())])


@pytest.mark.parametrize("record", RECORDS, ids=name_of)
def test_recorded_losses(record: Record) -> None:
    CHECKS[record["kind"]](record)
