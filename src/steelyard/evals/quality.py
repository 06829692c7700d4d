"""How good a reward model is on rows that it has not seen: is it right, does it know how sure it may be, what else
does it reward?

Everything here works on plain numbers (numpy and scipy, no model).  Three kinds of judgement have a report each:
preferences between two completions, outcomes of single completions, and single steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special, stats

from steelyard.errors import DataError

Report = dict[str, Any]

BINS = 10
"""Reliability bins of equal width."""

RESAMPLES = 2000
"""Bootstrap samples of an F1's interval."""

MARGIN_GROUPS = 4
"""Groups by margin: one per value where there are no more values than this, otherwise quantiles."""


def pair_quality(chosen: Any, rejected: Any, length_chosen: Any, length_rejected: Any, margin: Any = None) -> Report:
    """Preferences: the score of the chosen completion should be the higher one.

    Args:
        chosen, rejected: ``[n]`` scores, higher is better.
        length_chosen, length_rejected: ``[n]`` tokens.
        margin: ``[n]`` how strong the preference is, where rows say so.

    Returns:
        ``accuracy`` (a tie counts one half; with a 95 % interval), ``calibration`` of sigmoid(score difference) as the
        probability that the higher score is right, ``length`` (accuracy where the chosen completion is longer, shorter
        or as long; rank correlation of score and length over all completions; share of pairs in which the longer
        one is preferred), ``by_margin``.
    """
    chosen, rejected = _floats(chosen), _floats(rejected)
    longer = np.sign(_floats(length_chosen) - _floats(length_rejected))
    difference = chosen - rejected
    right = correctness(chosen, rejected)
    confidence = special.expit(np.abs(difference))
    unequal = longer != 0
    prefers_longer = np.where(longer > 0, right, 1 - right)[unequal]
    scores, lengths = np.concatenate([chosen, rejected]), np.concatenate([length_chosen, length_rejected])
    report: Report = {
        "kind": "pairs",
        "n": len(right),
        "accuracy": proportion(right),
        "calibration": calibration(confidence, right, low=0.5),
        "length": {
            "chosen_longer": proportion(right[longer > 0]),
            "chosen_shorter": proportion(right[longer < 0]),
            "same_length": proportion(right[longer == 0]),
            "prefers_longer": proportion(prefers_longer),
            "chosen_is_longer": _mean(longer[unequal] > 0),
            "correlation": rank_correlation(scores, lengths),
        },
    }
    if margin is not None:
        report["by_margin"] = _by_margin(_floats(margin), right)
    return report


def outcome_quality(score: Any, probability: Any, label: Any, length: Any) -> Report:
    """Outcomes: single completions are right or wrong.

    Args:
        score: ``[n]``, higher is better.
        probability: ``[n]`` that the completion is right.
        label: ``[n]`` whether it is.
        length: ``[n]`` tokens.

    Returns:
        ``accuracy`` (right where the probability is above one half), ``majority`` (that of always saying the more
        frequent answer), ``auc``, ``brier``, ``calibration``, and the rank correlation of ``score`` with length, over
        all completions and among right and wrong ones alone.
    """
    score, probability, length = _floats(score), np.clip(_floats(probability), 0.0, 1.0), _floats(length)
    label = np.asarray(label, dtype=bool)
    return {
        "kind": "outcomes",
        "n": len(label),
        "share_right": _mean(label),
        "accuracy": proportion((probability > 0.5) == label),
        "majority": max(_mean(label), 1 - _mean(label)),
        "auc": auc(score, label),
        "brier": float(np.mean((probability - label) ** 2)),
        "calibration": calibration(probability, label.astype(float)),
        "length": {
            "correlation": rank_correlation(score, length),
            "correlation_right": rank_correlation(score[label], length[label]),
            "correlation_wrong": rank_correlation(score[~label], length[~label]),
        },
    }


def step_quality(probability: Any, label: Any, row: Any) -> Report:
    """Steps: each is right or wrong; finding the wrong ones is the task.

    Args:
        probability: ``[n]`` that the step is right.
        label: ``[n]`` whether it is (a soft label of at least one half counts as right).
        row: ``[n]`` which completion the step belongs to; steps of a completion in order.

    Returns:
        ``f1`` with a wrong step as the positive class (``f1_low``, ``f1_high``: 95 % bootstrap over completions, since
        steps of one are not independent), its ``precision`` and ``recall``, ``f1_macro`` (mean of both classes' F1),
        ``accuracy`` (its interval takes steps for independent),
        ``auc``, ``brier``, ``calibration``; ``majority`` and ``always_wrong``: the same
        measures of saying the more frequent answer, or "wrong", of every step; ``first_mistake``: the share of
        completions whose first wrong step (or having none) is found exactly, and that of always saying the most
        frequent place.
    """
    probability, label = _floats(probability), np.asarray(label, dtype=float) >= 0.5
    row = np.asarray(row)
    said = probability >= 0.5
    return {
        "kind": "steps",
        "n": len(label),
        "completions": len(np.unique(row)),
        "share_wrong": _mean(~label),
        **_classes(said, label),
        **_f1_interval(said, label, row),
        "accuracy": proportion(said == label),
        "auc": auc(probability, label),
        "brier": float(np.mean((probability - label) ** 2)),
        "calibration": calibration(probability, label.astype(float)),
        "majority": _classes(np.full(len(label), _mean(label) >= 0.5), label),
        "always_wrong": _classes(np.zeros(len(label), dtype=bool), label),
        "first_mistake": _first_mistakes(said, label, row),
    }


# --------------------------------------------------------------------------------------------------
# Measures


def correctness(chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """1, 0, or 0.5 for a tie: a difference within the rounding of float32 values of that size is none."""
    scale = np.maximum(1.0, np.maximum(np.abs(chosen), np.abs(rejected)))
    difference = chosen - rejected
    return np.where(np.abs(difference) <= 1e-6 * scale, 0.5, (difference > 0).astype(float))


def proportion(values: Any) -> Report:
    """``value`` (the mean), ``n``, and the 95 % Wilson interval ``low``, ``high``; None where there is nothing."""
    values = _floats(values)
    n = len(values)
    if n == 0:
        return {"value": None, "n": 0, "low": None, "high": None}
    p, z = float(values.mean()), float(stats.norm.ppf(0.975))
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return {"value": p, "n": n, "low": float(max(0.0, centre - half)), "high": float(min(1.0, centre + half))}


def calibration(probability: Any, outcome: Any, *, low: float = 0.0) -> Report:
    """Reliability bins of equal width on [low, 1], and the expected calibration error over them.

    Returns:
        ``ece``: mean over all items of \\|mean probability - share that came true\\| of the item's bin; ``bins``: the
        occupied ones, each with its ``low``, ``high``, ``n``, ``probability`` and ``outcome``.
    """
    probability, outcome = _floats(probability), _floats(outcome)
    if len(probability) == 0:
        return {"ece": None, "bins": []}
    width = (1.0 - low) / BINS
    place = np.clip(((probability - low) / width).astype(int), 0, BINS - 1)
    bins = [
        {
            "low": low + i * width,
            "high": low + (i + 1) * width,
            "n": int((place == i).sum()),
            "probability": float(probability[place == i].mean()),
            "outcome": float(outcome[place == i].mean()),
        }
        for i in np.unique(place)
    ]
    gaps = [b["n"] * abs(b["probability"] - b["outcome"]) for b in bins]
    return {"ece": float(sum(gaps) / len(probability)), "bins": bins}


def auc(score: Any, label: Any) -> float | None:
    """The probability that a right item scores above a wrong one, ties one half; None without both kinds."""
    score, label = _floats(score), np.asarray(label, dtype=bool)
    right, wrong = int(label.sum()), int((~label).sum())
    if not right or not wrong:
        return None
    ranks = stats.rankdata(score)
    return float((ranks[label].sum() - right * (right + 1) / 2) / (right * wrong))


def rank_correlation(x: Any, y: Any) -> float | None:
    """Spearman's; None where one side is constant."""
    x, y = _floats(x), _floats(y)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    found: Any = stats.spearmanr(x, y)
    return float(found.statistic)


def _classes(said: np.ndarray, label: np.ndarray) -> Report:
    """F1 of both classes; a wrong step is the positive one."""
    wrong, right = _f1(~said, ~label), _f1(said, label)
    return {
        "f1": wrong["f1"],
        "precision": wrong["precision"],
        "recall": wrong["recall"],
        "f1_macro": (wrong["f1"] + right["f1"]) / 2,
    }


def _f1(said: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1; zero where nothing is found (as scikit-learn has it)."""
    hits = float((said & true).sum())
    precision = hits / said.sum() if said.any() else 0.0
    recall = hits / true.sum() if true.any() else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1)}


def _f1_interval(said: np.ndarray, label: np.ndarray, row: np.ndarray) -> dict[str, float]:
    """Percentiles of the F1 of wrong steps over resampled completions; a function of the data alone."""
    names, owner = np.unique(row, return_inverse=True)
    kinds = (~said & ~label, ~said & label, said & ~label)
    hits, false, missed = (np.bincount(owner, weights=kind, minlength=len(names)) for kind in kinds)
    weights = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    hits, false, missed = weights @ hits, weights @ false, weights @ missed
    f1 = np.where(hits > 0, 2 * hits / np.maximum(2 * hits + false + missed, 1), 0.0)
    low, high = np.quantile(f1, [0.025, 0.975])
    return {"f1_low": float(low), "f1_high": float(high)}


def _first_mistakes(said: np.ndarray, label: np.ndarray, row: np.ndarray) -> Report:
    found, places = [], []
    for name in np.unique(row):
        mine = row == name
        places.append(_first(label[mine]))
        found.append(_first(said[mine]) == places[-1])
    common = max(places.count(place) for place in set(places)) / len(places) if places else None
    return {**proportion(found), "most_frequent": common}


def _first(right: np.ndarray) -> int | None:
    """Index of the first wrong step; None when all are right."""
    wrong = np.flatnonzero(~right)
    return int(wrong[0]) if len(wrong) else None


def _by_margin(margin: np.ndarray, right: np.ndarray) -> list[Report]:
    values = np.unique(margin)
    if len(values) <= MARGIN_GROUPS:
        return [{"margin": [float(v), float(v)], **proportion(right[margin == v])} for v in values]
    edges = np.quantile(margin, np.linspace(0, 1, MARGIN_GROUPS + 1))
    place = np.clip(np.searchsorted(edges, margin, side="right") - 1, 0, MARGIN_GROUPS - 1)
    groups = [(margin[place == i], right[place == i]) for i in range(MARGIN_GROUPS)]
    return [{"margin": [float(m.min()), float(m.max())], **proportion(r)} for m, r in groups if len(m)]


def _floats(values: Any) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if not np.isfinite(values).all():
        raise DataError("quality report: a value is not finite")
    return values


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else 0.0


# --------------------------------------------------------------------------------------------------
# What is printed and ranked of it


def headline(report: Report) -> dict[str, float]:
    """The few numbers of a report that go into a run's metrics."""
    numbers: dict[str, Any] = {"accuracy": report["accuracy"]["value"], "ece": report["calibration"]["ece"]}
    if report["kind"] == "pairs":
        numbers["length_correlation"] = report["length"]["correlation"]
    if report["kind"] == "outcomes":
        numbers |= {"auc": report["auc"], "brier": report["brier"], "majority": report["majority"]}
        numbers["length_correlation"] = report["length"]["correlation"]
    if report["kind"] == "steps":
        numbers |= {"f1": report["f1"], "f1_macro": report["f1_macro"], "auc": report["auc"]}
        numbers |= {f"majority_{key}": report["majority"][key] for key in ("f1", "f1_macro")}
        numbers["always_wrong_f1"] = report["always_wrong"]["f1"]
    return {**{key: float(value) for key, value in numbers.items() if value is not None}, "n": float(report["n"])}


def lines(report: Report) -> list[str]:
    """A report as printable lines."""
    accuracy = _share(report["accuracy"])
    ece = report["calibration"]["ece"]
    sure = f"calibration error {ece:.3f}" if ece is not None else "calibration unknown"
    if report["kind"] == "pairs":
        length = report["length"]
        result = [
            f"{report['n']} pairs: accuracy {accuracy}, {sure}",
            f"length: accuracy {_share(length['chosen_longer'])} where the chosen completion is longer, "
            f"{_share(length['chosen_shorter'])} where it is shorter; "
            f"rank correlation of score and length {_number(length['correlation'])}",
        ]
        rows = report.get("by_margin", [])
        if len(rows) > 1:
            parts = [f"{row['margin'][0]:.2g} to {row['margin'][1]:.2g}: {_share(row)}" for row in rows]
            result.append(f"by margin: {'; '.join(parts)}")
        return result
    if report["kind"] == "outcomes":
        return [
            f"{report['n']} completions, {100 * report['share_right']:.1f} % right: accuracy {accuracy} "
            f"(always the same answer: {100 * report['majority']:.1f} %), AUC {_number(report['auc'])}, "
            f"Brier {report['brier']:.3f}, {sure}",
            f"length: rank correlation with the score {_number(report['length']['correlation'])}",
        ]
    majority, wrong = report["majority"], report["always_wrong"]
    return [
        f"{report['n']} steps of {report['completions']} completions, {100 * report['share_wrong']:.1f} % wrong: "
        f"accuracy {accuracy}, AUC {_number(report['auc'])}, {sure}",
        f"F1 of wrong steps {report['f1']:.3f} [{report['f1_low']:.3f}, {report['f1_high']:.3f}] "
        f"(majority {majority['f1']:.3f}, always wrong {wrong['f1']:.3f}); macro F1 {report['f1_macro']:.3f} "
        f"(majority {majority['f1_macro']:.3f}, always wrong {wrong['f1_macro']:.3f})",
        f"first mistake found in {_share(report['first_mistake'])} of the completions "
        f"(most frequent place: {100 * (report['first_mistake']['most_frequent'] or 0):.1f} %)",
    ]


def _share(value: Report) -> str:
    if value["value"] is None:
        return "-"
    return f"{100 * value['value']:.1f} % [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
