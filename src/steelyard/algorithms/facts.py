"""What a catalogue entry says, in words: for the command line and the generated pages.  No torch here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

Entry = Mapping[str, Any]

LEARNS_FROM = {
    "none": "nothing",
    "gold": "gold completions",
    "correct": "its own verified samples",
    "pairs": "preference pairs",
    "step_pairs": "pairs of one next step",
    "ranked": "ranked lists",
    "judged": "judged completions",
    "steps": "completions with judged steps",
    "prompts": "online samples and a reward",
    "rounds": "its own samples, in rounds",
}
"""Data stage -> what a method learns from."""

FILE_ROWS = {
    "Tokens": ("prompt-completion", "messages", "text", "preference"),
    "Distill": ("prompt-completion", "messages", "text", "preference"),
    "Pairs": ("preference",),
    "Scores": ("preference",),
    "Unpaired": ("unpaired", "preference"),
    "TokenScores": ("unpaired", "preference"),
    "Ranked": ("ranked",),
    "StepLabels": ("stepwise", "first-mistake"),
}
"""Which rows a file may have, by family: those of :data:`steelyard.data.schemas.SCHEMAS`, which a test compares.
Rollouts take whatever has a prompt."""

ROW_COLUMNS = {
    "prompt-completion": "prompt, completion",
    "messages": "messages",
    "text": "text",
    "preference": "prompt, chosen, rejected",
    "unpaired": "prompt, completion, label",
    "ranked": "prompt, completions, scores or ranks",
    "stepwise": "prompt, completions, labels",
    "first-mistake": "prompt, steps, mistake_index",
}
"""The columns of each kind of row."""

GROUPS = {
    "supervised": "Supervised",
    "distillation": "Distillation",
    "reward-model": "Reward models",
    "pairwise": "Pairwise preferences, with a reference",
    "reference-free": "Pairwise preferences, without a reference",
    "unpaired": "Unpaired preferences",
    "listwise": "Listwise preferences",
    "iterative": "Self-play and iterative methods",
    "online": "Online reinforcement learning",
    "baseline": "Baseline",
}
"""Families in the order in which they are listed."""

SAME_LOSS = {
    "cpt": ("sft", "the prompt is trained on, too"),
    "neftune": ("sft", "noise is added to the embeddings"),
    "rft": ("sft", "on its own verified samples"),
    "raft": ("sft", "on the best of its own samples, in rounds"),
    "best_of_n": ("sft", "on the best of its own samples"),
    "rest": ("sft", "on its own samples above a rising threshold"),
    "rest_em": ("sft", "on its own right samples, from the start's weights in every round"),
    "star": ("sft", "on its own right rationales"),
    "seqkd": ("sft", "on the teacher's samples"),
    "kto_pair": ("kto", "on both members of a pair"),
    "step_dpo": ("dpo", "on pairs of one next step"),
    "tr_dpo": ("dpo", "with a reference that follows the policy"),
    "online_dpo": ("dpo", "on its own judged samples"),
    "iterative_dpo": ("dpo", "on its own judged samples, in rounds"),
    "filtered_dpo": ("dpo", "on the pairs that its own samples do not beat"),
    "spin": ("dpo", "of the data against its own samples"),
}
"""Methods that are no objective of their own: (the key whose loss function they share, what differs).  The rest of
what they do is data, the reference, or the forward pass; a test checks that the functions are equal."""

MISSING = "not verified yet"


def sections(doc: str) -> dict[str, str]:
    """A docstring's parts: ``about`` (what comes after the title), ``watch`` and ``differs`` ("" if absent)."""
    body = doc.split("\nArgs:\n")[0]
    _, _, rest = body.partition("\n")
    found = {"about": [], "watch": [], "differs": []}
    for paragraph in re.split(r"\n\s*\n", rest.strip()):
        mark = re.match(r"(Watch|Differs):\s*", paragraph)
        name = mark.group(1).lower() if mark else "about"
        found[name].append(paragraph[mark.end() :] if mark else paragraph)
    joined = {name: "\n\n".join(parts).strip() for name, parts in found.items()}
    return {name: text if name == "about" else " ".join(text.split()) for name, text in joined.items()}


def group_of(entry: Entry) -> str:
    """The family under which a method is listed (a key of :data:`GROUPS`)."""
    if entry["data"] == "none":
        return "baseline"
    if entry.get("module", "").endswith(".rewardmodel") or entry["head"] != "lm":
        return "reward-model"
    if entry["teacher"]:
        return "distillation"
    if entry["data"] == "rounds":
        return "iterative"
    if entry["family"] == "Pairs":
        return "pairwise" if entry["reference"] != "none" else "reference-free"
    named = {"Tokens": "supervised", "Unpaired": "unpaired", "Ranked": "listwise", "Rollouts": "online"}
    return named[entry["family"]]


def paper_link(paper: str) -> str:
    """Where the paper is; a citation stays as it is."""
    return f"https://arxiv.org/abs/{paper}" if re.fullmatch(r"\d{4}\.\d{4,5}", paper) else paper


_REFERENCES = {
    "frozen": "frozen: the policy at step 0",
    "moving": "moving: a copy that follows the policy",
    "previous": "the policy at the start of the round",
    "teacher": "the teacher",
}
_HEADS = {
    "score": "one score per completion",
    "token_score": "one score per token",
    "token_labels": "two label logits per token",
}
_EXTRAS = {
    "entropy": "the entropy",
    "log_sum_p2": "log of the sum of squared probabilities",
    "ref_kl": "KL(reference || policy) over the vocabulary",
}


def needs(entry: Entry) -> list[tuple[str, str]]:
    """What a method needs beside the policy and what it learns from, as (what, which)."""
    found = [("learns from", learns_from(entry))]
    if entry["data"] != "none":
        found.append(("file rows", file_rows(entry)))
    if entry["reference"] != "none":
        switch = entry["reference_unless_zero"]
        found.append(("reference", _REFERENCES[entry["reference"]] + (f", unless {switch} is 0" if switch else "")))
    if entry["teacher"] and entry["reference"] != "teacher":
        found.append(("teacher", "another model (the recipe's `teacher` section)"))
    if entry["columns"]:
        order = " ({} above {} in every row)".format(*entry["ordered"]) if entry["ordered"] else ""
        found.append(("columns", ", ".join(entry["columns"]) + order))
    if entry["optional_columns"]:
        found.append(("may carry", ", ".join(entry["optional_columns"]) + " (a number in every row, or in none)"))
    if entry["extras"]:
        found.append(("per token", "; ".join(_EXTRAS[name] for name in entry["extras"])))
    if entry["head"] != "lm":
        found.append(("head", _HEADS[entry["head"]]))
    if entry["mismatched"]:
        found.append(("mismatched", "every prompt is also scored with another row's completion"))
    if entry["coupled"]:
        found.append(("coupled", "statistics over the whole optimizer step"))
    if entry["state"]:
        found.append(("state", "running averages, saved with checkpoints"))
    if entry["random"] or entry["noise"]:
        found.append(("randomness", "noise on the embeddings" if entry["noise"] else "draws from the run's seed"))
    if entry["advantage"]:
        found.append(("advantage", entry["advantage"]))
    if entry["rounds"]:
        found.append(("rounds", _rounds(entry["rounds"])))
    if entry["length_normalized"]:
        found.append(("lengths", "normalised: repeating every token changes nothing"))
    if entry["beta_scale"] != "none":
        found.append(("beta scale", "sums" if entry["beta_scale"] == "sum" else "averages per token"))
    return found


def learns_from(entry: Entry) -> str:
    """What a method learns from, in words."""
    labelled = entry["family"] == "Unpaired" and entry["data"] == "pairs"
    return "labelled completions, or preference pairs" if labelled else LEARNS_FROM[entry["data"]]


def rows_of_rounds(rounds: Mapping[str, Any]) -> str:
    """The family whose rows a file must have for a method that makes its own in rounds."""
    if rounds["base"] == "pairs":
        return "Pairs"
    return "Tokens" if "gold" in rounds["samplers"] else "Rollouts"


def file_rows(entry: Entry) -> str:
    """Which rows a file may have for this method, with their columns."""
    if entry["rounds"]:
        answer = ", and an answer to judge by (or `rewards`)" if entry["rounds"]["judged"] else ""
        return _rows(rows_of_rounds(entry["rounds"])) + answer
    rows = _rows("StepLabels" if entry["head"] == "token_labels" else entry["family"])
    if entry["data"] == "correct":
        return "prompt and answer, with `data.generate`"
    own = entry["data"] not in ("gold", "prompts", "none")
    return rows + ("; with `data.generate`: prompt and answer" if own else "")


def _rows(family: str) -> str:
    if family == "Rollouts":
        return "any with a prompt"
    return " or ".join(f"{kind} ({ROW_COLUMNS[kind]})" for kind in FILE_ROWS[family])


def _rounds(rounds: Mapping[str, Any]) -> str:
    samplers = ", ".join(rounds["samplers"])
    count = f"`{rounds['rounds']}` rounds" if rounds["rounds"] else "every optimizer step is a round"
    restart = "; each trains from the start's weights" if rounds["restart"] else ""
    kept = "; earlier rounds' rows stay" if rounds["accumulate"] else ""
    return f"{count}, completions by {samplers}{restart}{kept}"


def recipe_of(key: str) -> str:
    """The recipe that trains ``key`` (``recipes/dpo.yaml``); "" if none is its own."""
    package = Path(__file__).parents[1]
    for folder in (package / "recipes", package.parents[1] / "recipes"):
        if (folder / f"{key}.yaml").is_file():
            return f"recipes/{key}.yaml"
    return ""


def shown(value: Any) -> str:
    """A hyperparameter's value as a recipe spells it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"


_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def range_of(hp: Mapping[str, Any]) -> str:
    """Type, choices and bounds of a hyperparameter: ``float > 0``, ``logistic|hinge``."""
    bounds = " ".join(f"{_SIGNS[bound]} {limit:g}" for bound, limit in hp["bounds"].items())
    kind = "|".join(hp["choices"]) or hp["type"]
    return f"{kind} {bounds}".strip() + (" or null" if hp["optional"] else "")


@cache
def load_verification() -> dict[str, Any]:
    """What the tests show of every algorithm (see ``docs/verification.md``): ``counts`` and ``algorithms``."""
    return json.loads(files("steelyard.algorithms").joinpath("verification.json").read_text(encoding="utf-8"))


def verification_of(key: str) -> dict[str, Any]:
    """The status of one algorithm and its evidence; ``status`` is :data:`MISSING` for what is not in the table."""
    return load_verification()["algorithms"].get(key, {"status": MISSING, "evidence": {}})
