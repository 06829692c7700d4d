"""oxRL's 51 algorithm names: the key of each here, and what oxRL computes under it where that is something else.

oxRL (arXiv:2603.19335) is the study that this package replicates; its names are the only aliases.  Three of
them (BCO, EXO, NCA) differ from a key of ours by nothing but their case: a key is always read as itself, and
``BCO`` means what it means in oxRL.  No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steelyard.errors import ConfigError


@dataclass(frozen=True)
class Alias:
    """One name of oxRL's.

    Attributes:
        name: as oxRL writes it.
        key: ours.
        related: further keys that the name may be taken to mean.
        remark: what oxRL computes instead, or what its defaults change; "" where both agree.
    """

    name: str
    key: str
    remark: str = ""
    related: tuple[str, ...] = ()


ONLINE = frozenset({"ppo", "sgrpo", "gspo", "cispo", "rlhf", "rlaif"})
"""Keys that stand for online reinforcement learning."""

_NAMES = (
    Alias("SFT", "sft", "divides by all positions, padding included"),
    Alias("CPT", "cpt"),
    Alias("KD", "kd", "divides by all positions, padding included"),
    Alias("RM", "rm", "the head's gradient is not reduced across ranks"),
    Alias("RFT", "rft", "SFT on the given rows: nothing is sampled or verified, `reward_threshold` is unused"),
    Alias("SPIN", "spin", "DPO on the given pairs: nothing is generated, no iterations"),
    Alias("OnlineDPO", "online_dpo", "DPO on the given pairs: nothing is generated or judged"),
    Alias("RLHF", "rlhf", "SGRPO under another name"),
    Alias("RLAIF", "rlaif", "SGRPO under another name, without an AI judge"),
    Alias("SGRPO", "sgrpo", "the advantage stands on the last response token only; micro-batch token mean"),
    Alias("GSPO", "gspo", "the advantage stands on the last response token only; clip 0.2 (paper: 3e-4 and 4e-4)"),
    Alias("CISPO", "cispo", "the advantage stands on the last response token only; symmetric clip [0.8, 1.2]"),
    Alias("PPO", "ppo", "the terminal reward is masked out; the critic is a detached linear probe"),
    Alias("DPO", "dpo"),
    Alias("IPO", "ipo", "sums of log-ratios (`average: false`) instead of averages"),
    Alias("SimPO", "simpo", "beta 0.1 on averages, which is degenerate (paper: 2 and more)"),
    Alias("KTO", "kto", "-log sigmoid instead of 1 - sigmoid; z0 is an average of chosen log-ratios; pairs only"),
    Alias("ORPO", "orpo"),
    Alias("CPO", "cpo"),
    Alias("AlphaPO", "alphapo", "beta 0.1 on averages, which is degenerate (paper: 2.5), and alpha 1"),
    Alias("SPO", "spo", "-SiLU(h) instead of SiLU(-h): unbounded below; and a reference"),
    Alias("BPO", "bpo", "the logistic link; the authors' runs use the hinge"),
    Alias("DiscoPOP", "discopop"),
    Alias("DPOP", "dpop", "lambda 5 (paper: 50)"),
    Alias("FocalPO", "focalpo", "the focal factor is detached, which is another gradient; gamma 1"),
    Alias("GPO", "gpo", "the exponential link"),
    Alias("ODPO", "odpo", "a constant offset of 1 instead of the gap of the scores"),
    Alias("SamPO", "sampo", "the mask is shifted twice; policy and reference draw different positions"),
    Alias("SPPO", "sppo", "hard labels, no iterations, no factor 1/2, targets of 5 instead of 500"),
    Alias("WPO", "wpo", "no alignment term, not detached, divided by the weights' sum: DPO at micro-batch 1"),
    Alias("RDPO", "rdpo", "the length term has the opposite sign and favours long chosen completions"),
    Alias("CDPO", "cdpo"),
    Alias("RobustDPO", "robust_dpo", "the flipped term is added: cDPO / (1 - 2 eps)"),
    Alias("DPNLL", "rpo_nll", "the NLL is a token mean instead of a mean per completion"),
    Alias("MinorDPO", "minor_dpo"),
    Alias("C2DPO", "c2_dpo"),
    Alias("AlphaDPO", "alpha_dpo", "a running variance (0.99), with 1 for the variance of a batch of one"),
    Alias("BetaDPO", "beta_dpo", "a beta per pair with a gradient through it, nothing is filtered, a = 0.5"),
    Alias("CalDPO", "cal_dpo", "no factor 1/2, and beta 0.1: targets of 5 instead of 500"),
    Alias("ChiPO", "chi_po", "no clipping"),
    Alias("CPO-SimPO", "cpo_simpo", "beta 2, gamma 0.5, alpha 1 (authors: 10, 5.4, 0.05)"),
    Alias("DPO-Shift", "dpo_shift", "f = 0.5, the extreme, and no schedule"),
    Alias("DrDPO", "dr_dpo", "per micro-batch; at micro-batch 1, as in its runs, plain DPO"),
    Alias("EXO", "exo_pair", "", ("exo",)),
    Alias(
        "FDPO",
        "fdpo",
        "wrong for every divergence but the reverse KL; its README says filtered DPO",
        ("filtered_dpo",),
    ),
    Alias("HDPO", "h_dpo", "alpha 1, which is DPO"),
    Alias("Hinge", "hinge", "the hinge of RSO, although it is called SLiC-HF, which has no reference", ("slic_hf",)),
    Alias("NCA", "nca_pair", "", ("nca",)),
    Alias("BCO", "bco_pair", "delta is fixed to 0, which drops the reward shift", ("bco",)),
    Alias("APO", "apo_zero", "", ("apo_down",)),
    Alias("AOT", "aot", "the unpaired formula, per micro-batch; at micro-batch 1 plain DPO", ("aot_unpaired",)),
)
ALIASES: Mapping[str, Alias] = {alias.name: alias for alias in _NAMES}
"""The 51 names as oxRL writes them."""


def _folded(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


_FOLDED = {_folded(alias.name): alias for alias in _NAMES}


def find(name: str) -> Alias | None:
    """The alias that ``name`` spells, in any case and with or without dashes; None if it spells none."""
    return _FOLDED.get(_folded(name))


def target(name: str, keys: Mapping[str, Any], *, where: str = "algorithm.name") -> str | None:
    """Our key for oxRL's ``name``; None if it is none of oxRL's.

    Raises:
        ConfigError: the name is oxRL's, but its algorithm is not among ``keys``.
    """
    alias = find(name)
    if alias is None or alias.key in keys:
        return None if alias is None else alias.key
    what = "online reinforcement learning, which is" if alias.key in ONLINE else "an algorithm that is"
    raise ConfigError(f"{where}: '{name}' is oxRL's name of `{alias.key}`, {what} not built yet")


def note(name: str, key: str) -> str:
    """One sentence for the user: that ``name`` was read as ``key``, and where oxRL computes something else."""
    alias = find(name)
    if alias is None:
        return f"'{name}' is `{key}`"
    remark = f"; oxRL: {alias.remark}" if alias.remark else ""
    also = f" (`{'`, `'.join(alias.related)}` {'is' if len(alias.related) == 1 else 'are'} something else)"
    return f"'{name}' is oxRL's name of `{key}`{also if alias.related else ''}{remark}"


PROFILES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "paper": {},
    "oxrl": {
        "dpo": {"beta": 0.1},
        "ipo": {"beta": 0.1, "average": False},
        "simpo": {"beta": 0.1, "gamma": 0.5},
        "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
        "hinge": {"beta": 0.1},
        "cpo": {"beta": 0.1, "alpha": 1.0},
        "orpo": {"lam": 0.1},
        "rdpo": {"beta": 0.1, "alpha": 0.01},
        "cdpo": {"beta": 0.1, "label_smoothing": 0.1},
        "beta_dpo": {"beta": 0.1, "a": 0.5, "momentum": 0.9},
        "cal_dpo": {"beta": 0.1},
        "dpop": {"beta": 0.1, "lam": 5.0},
        "odpo": {"beta": 0.1},
        "exo_pair": {"beta": 0.1, "eps": 1e-3},
        "alphapo": {"beta": 0.1, "alpha": 1.0, "gamma": 0.5},
        "apo_zero": {"beta": 0.1},
        "sppo": {"beta": 0.1, "hard": True},
        "robust_dpo": {"beta": 0.1, "label_smoothing": 0.1},
        "gpo": {"beta": 0.1, "link": "exp"},
        "focalpo": {"beta": 0.1, "g": 1.0},
    },
}
"""Hyperparameters that replace the papers' where a recipe gives none: the shared beta of oxRL's comparison of 20
methods, with the further values of its table.  Algorithms without an entry keep their paper's.  The losses stay
the papers': what oxRL computes differently is in the remarks above."""


def fill_from_profile(section: Mapping[str, Any], profile: Any, key: str) -> dict[str, Any]:
    """An ``algorithm`` section with the profile's values where it gives none; an unknown profile fills nothing."""
    return {**PROFILES.get(str(profile), {}).get(key, {}), **section}


def profile_note(profile: str, key: str, hyperparameters: Mapping[str, Any]) -> str:
    """One sentence for the user where a recipe's own values win over the profile's; "" where none does.

    Args:
        hyperparameters: all of the algorithm's, resolved: what differs from the profile was given.
    """
    theirs = PROFILES.get(profile, {}).get(key, {})
    kept = {name: value for name, value in theirs.items() if hyperparameters[name] != value}
    if not kept:
        return ""
    sets = " and ".join(f"{name} {value}" for name, value in kept.items())
    gives = ", ".join(f"{name} {hyperparameters[name]}" for name in kept)
    return f"`{key}`: profile {profile} sets {sets}; the recipe gives {gives}, which win{'s' * (len(kept) == 1)}"
