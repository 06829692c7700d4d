"""What is known of the losses of iterative methods: closed forms, settings, golden numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rows import VOCABULARY, Row

LOG2 = math.log(2)
DPO = (({"beta": 0.1}, [0.644397, 0.728760, 0.501084]), ({"beta": 0.1}, 0.624747))


def _dpo(**settings: Any) -> Row:
    """A method whose loss is DPO's."""
    return Row(lambda hp, raw: LOG2, settings=({"beta": 0.5, **settings},), golden=DPO)


def _sft(*settings: dict[str, Any]) -> Row:
    """A method whose loss is that of supervised learning."""
    return Row(lambda hp, raw: math.log(VOCABULARY), settings=settings, golden=(({}, 0.974785),))


def _sums(raw: Mapping[str, Tensor], key: str, mask: str) -> Tensor:
    return (raw[key] * raw[mask]).sum(-1)


def _nll(hp: Mapping[str, Any], raw: Mapping[str, Tensor]) -> float:
    return -float(_sums(raw, "logp", "mask").sum() / raw["mask"].sum())


def _xpo(hp: Mapping[str, Any], raw: Mapping[str, Tensor]) -> float:
    chosen, rejected = (_sums(raw, f"policy_{side}", f"mask_{side}") for side in ("chosen", "rejected"))
    share = raw["from_reference"]
    return LOG2 + hp["alpha"] * float((share * chosen + (1 - share) * rejected).mean())


def _sppo(hp: Mapping[str, Any], raw: Mapping[str, Tensor]) -> float:
    sides = [raw["p_chosen"], raw["p_rejected"]]
    wins = [x.new_full(x.shape, float(not i)) for i, x in enumerate(sides)] if hp["hard"] else sides
    return float(sum(((p - 0.5) / hp["beta"]).square().mean() for p in wins))


def _nash(hp: Mapping[str, Any], raw: Mapping[str, Tensor]) -> float:
    return -float(((raw["rewards"] - 0.5) * _sums(raw, "logp", "mask")).mean())


ROWS = {
    "spin": _dpo(rounds=2),
    "online_dpo": _dpo(missing_eos_penalty=0.0),
    "iterative_dpo": _dpo(rounds=2),
    "filtered_dpo": _dpo(threshold=0.1),
    "xpo": Row(
        _xpo,
        settings=({"beta": 0.5, "alpha": 0.01}, {"alpha": 0.0}),
        exceptions={"doubling": "the optimism is weighted by alpha, not by beta"},
    ),
    "sppo": Row(
        _sppo,
        settings=({"beta": 0.1}, {"hard": True}),
        golden=(
            ({"beta": 1e-3, "hard": True}, [499005.0, 500700.29, 495723.29]),
            ({"beta": 0.1, "hard": True}, [45.0, 57.29, 30.29]),
        ),
        exceptions={
            "direction": "each side is drawn to its own target, from above as well",
            "doubling": "beta is the inverse of the targets, not a factor of the log-ratios",
        },
    ),
    "nash_md": Row(
        _nash,
        settings=({"beta": 0.5}, {"b": 0.0}),
        exceptions={
            "direction": "the judge's preference, not the view's advantage, says what is better",
            "doubling": "the preference is not weighted by beta",
            "gradient": "the log-ratio in front of log pi is a constant; tested in test_rounds.py",
        },
    ),
    "raft": _sft({"rounds": 2, "keep": 2}),
    "best_of_n": _sft(),
    "rest": _sft({"rounds": 4, "improve": 2}),
    "rest_em": _sft({"keep": 2}),
    "star": _sft({"rounds": 2}),
    "seqkd": Row(_nll, golden=(({}, 0.974785),)),
}
