"""What is known of pairwise preference methods: closed forms, settings, golden numbers.

Golden numbers are those of the catalogue; where it has none, they are worked by hand on the same three pairs,
whose log-ratios are l_w = 2, -0.5, -0.5 and l_l = 1, 0.2, -4.8 (so D = 1, -0.7, 4.3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rows import VOCABULARY, Row
from steelyard.types import Pairs

LOG2 = math.log(2)
LOGV = math.log(VOCABULARY)
"""Minus the log-probability of every token where a policy without a reference is uniform."""

Settings = Mapping[str, Any]
Raw = dict[str, Tensor]


def sp(x: float) -> float:
    """log(1 + exp(x)): DPO's loss at h = -x."""
    return math.log1p(math.exp(x))


def log2(hp: Settings, raw: Raw) -> float:
    """DPO's loss where the margin is zero."""
    return LOG2


def lengths(raw: Raw) -> tuple[Tensor, Tensor]:
    """The numbers of trained tokens."""
    return raw["mask_chosen"].sum(-1).double(), raw["mask_rejected"].sum(-1).double()


def sums(raw: Raw, name: str = "policy") -> tuple[Tensor, Tensor]:
    """An input summed over the trained tokens of the chosen and the rejected completions."""
    chosen, rejected = ((raw[f"{name}_{side}"] * raw[f"mask_{side}"]).sum(-1) for side in ("chosen", "rejected"))
    return chosen, rejected


def mean_sp(x: Tensor) -> float:
    """The mean over pairs of log(1 + exp(x))."""
    return float(F.softplus(x).mean())


# --------------------------------------------------------------------------------------------------
# Closed forms where the policy is the reference


def gpo_link(hp: Settings, raw: Raw) -> float:
    return {"logistic": LOG2, "savage": 0.25}.get(hp["link"], 1.0)


def exo_pair(hp: Settings, raw: Raw) -> float:
    return -LOG2 - 0.5 * math.log(hp["eps"] * (1 - hp["eps"]))


def rdpo(hp: Settings, raw: Raw) -> float:
    chosen, rejected = lengths(raw)
    return mean_sp(hp["alpha"] * (rejected - chosen))


def odpo(hp: Settings, raw: Raw) -> float:
    better, worse = raw["score_chosen"], raw["score_rejected"]
    return mean_sp(hp["alpha"] * (better / worse if hp["f"] == "log_ratio" else better - worse).log())


def h_dpo(hp: Settings, raw: Raw) -> float:
    chosen, rejected = sums(raw)
    return mean_sp(hp["beta"] * (1 - hp["alpha"]) * (chosen - rejected))


def rpo_nll(hp: Settings, raw: Raw) -> float:
    logp, n = -sums(raw)[0], lengths(raw)[0]
    means = {"sequence": (logp / n).mean(), "token": logp.sum() / n.sum(), "sum": logp.mean()}
    return LOG2 + hp["alpha"] * float(means[hp["nll_norm"]])


def wpo(hp: Settings, raw: Raw) -> float:
    per_token = [(p - q) / n for p, q, n in zip(sums(raw), sums(raw, "log_sum_p2"), lengths(raw), strict=True)]
    weight = sum(per_token, torch.zeros(())).exp()
    return LOG2 * float((weight.clamp(max=1) if hp["cap"] else weight).mean())


def tdpo(hp: Settings, raw: Raw) -> float:
    chosen, rejected = sums(raw, "ref_kl")
    return mean_sp(hp["beta"] * (1.0 if hp["variant"] == "tdpo1" else hp["alpha"]) * (rejected - chosen))


def alpha_dpo(hp: Settings, raw: Raw) -> float:
    (chosen, rejected), (n_chosen, n_rejected) = sums(raw), lengths(raw)
    return mean_sp(hp["gamma"] - hp["beta"] * (chosen / n_chosen - rejected / n_rejected))


# Without a reference: where the policy is uniform


def uniform_margin(raw: Raw) -> Tensor:
    """S_w - S_l."""
    chosen, rejected = lengths(raw)
    return LOGV * (rejected - chosen)


def spo(hp: Settings, raw: Raw) -> float:
    h = hp["beta"] * uniform_margin(raw)
    return 0.0 if hp["average"] else float((-h * torch.sigmoid(-h)).mean())


def slic_hf(hp: Settings, raw: Raw) -> float:
    pull = hp["lam"] * LOGV * lengths(raw)[0].mean()
    return float((hp["delta"] - uniform_margin(raw)).clamp(min=0).mean() + pull)


# --------------------------------------------------------------------------------------------------
# The table


def exact_pairs() -> Pairs:
    """The three pairs from their sums, without rounding; with scores that differ by 2, 0.5 and 1."""
    columns = {"score_chosen": [3.0, 1.5, 2.0], "score_rejected": [1.0, 1.0, 1.0]}
    values = ([-20.0, -31.0, -12.5], [-24.0, -30.0, -18.0], [-22.0, -30.5, -12.0], [-25.0, -30.2, -13.2])
    return Pairs.from_logps(*torch.tensor(values, dtype=torch.float64), **columns)


DPO = [0.644397, 0.728760, 0.501084]
NOT_DOUBLED = "beta is not the only scale of its terms"
RANDOM = "the draw differs"

ROWS = {
    # DPO's margin under another link
    "dpo": Row(log2, settings=({"beta": 0.5},), golden=(({"beta": 0.1}, DPO), ({"beta": 0.1}, 0.624747))),
    "cdpo": Row(
        log2,
        settings=({"beta": 0.5, "label_smoothing": 0.3}, {"label_smoothing": 0.0}),
        golden=(({"beta": 0.1, "label_smoothing": 0.1}, [0.654397, 0.721760, 0.544084]), ({}, 0.640080)),
    ),
    "robust_dpo": Row(
        log2,
        settings=({"beta": 0.5, "label_smoothing": 0.3}, {"label_smoothing": 0.0}),
        golden=(({"beta": 0.1, "label_smoothing": 0.1}, [0.631897, 0.737510, 0.447334]), ({}, 0.605580)),
    ),
    "dpo_norm": Row(
        log2,
        settings=({"beta": 2.0},),
        golden=(({"beta": 5.0}, [0.594396, 0.793566, 0.063659]), ({}, 0.483873)),
    ),
    "ipo": Row(
        lambda hp, raw: (1 / (2 * hp["beta"])) ** 2,
        settings=({"beta": 0.5}, {"average": False}),
        golden=(
            ({"beta": 0.1}, [24.585069, 25.384803, 19.851975]),
            ({"beta": 0.1, "average": False}, [16.0, 32.49, 0.49]),
        ),
    ),
    "hinge": Row(
        lambda hp, raw: 1.0,
        settings=({"beta": 0.5},),
        golden=(({"beta": 0.1}, [0.9, 1.07, 0.57]), ({"beta": 0.1}, 0.846667), ({"beta": 0.5}, [0.5, 1.35, 0.0])),
    ),
    "gpo": Row(
        gpo_link,
        settings=tuple({"link": link} for link in ("logistic", "hinge", "square", "trunc_quad", "savage")),
        golden=(
            ({"link": "exp"}, [0.904837, 1.072508, 0.650509]),
            ({"link": "trunc_quad"}, [0.81, 1.1449, 0.3249]),
            ({"link": "square"}, [0.81, 1.1449, 0.3249]),
            ({"link": "savage"}, [0.225645, 0.267799, 0.155336]),
            ({"link": "logistic"}, DPO),
            ({"link": "hinge"}, [0.9, 1.07, 0.57]),
            # past the margin of 1 (h = 0.5, -0.35, 2.15) the square rises again
            ({"link": "square", "beta": 0.5}, [0.25, 1.8225, 1.3225]),
            ({"link": "trunc_quad", "beta": 0.5}, [0.25, 1.8225, 0.0]),
        ),
    ),
    "exo_pair": Row(
        exo_pair,
        settings=({"beta": 0.5, "eps": 0.1},),
        golden=(({"beta": 0.1, "eps": 1e-3}, [2.589954, 2.882662, 2.052576]), ({}, 2.508397)),
    ),
    "discopop": Row(
        lambda hp, raw: 0.5 * (LOG2 + 1),
        settings=({"beta": 0.1, "tau": 1.5},),
        golden=(({"beta": 0.05, "tau": 0.05}, [0.875181, 0.818579, 0.803662]), ({}, 0.832474)),
        exceptions={"direction": "not convex: just left of a zero margin the loss rises with it"},
    ),
    "focalpo": Row(
        lambda hp, raw: 0.5 ** hp["g"] * LOG2,
        settings=({"g": 0.0}, {"beta": 0.5, "g": 0.5}),
        golden=(({"beta": 0.1, "g": 0.05}, [0.623965, 0.702683, 0.488685]), ({}, 0.605111)),
    ),
    "tr_dpo": Row(log2, settings=({"a": 1.0, "tau": 1},), golden=(({"beta": 0.1}, DPO),)),
    "step_dpo": Row(log2, settings=({"beta": 0.4},), golden=(({"beta": 0.1}, DPO),)),
    # Rewards one by one, and further terms
    "nca_pair": Row(
        lambda hp, raw: 2 * LOG2,
        settings=({"beta": 0.1},),
        golden=(({"beta": 0.01}, [1.383876, 1.388049, 1.375693]), ({}, 1.382539)),
    ),
    "apo_zero": Row(
        lambda hp, raw: 1.0,
        settings=({"beta": 0.5},),
        golden=(({"beta": 0.1}, [0.975145, 1.017497, 0.894750]), ({}, 0.962464)),
    ),
    "apo_down": Row(
        lambda hp, raw: 1.0,
        settings=({"beta": 0.5},),
        golden=(({"beta": 0.1}, [1.024855, 1.004995, 0.881629]), ({}, 0.970493)),
        exceptions={"direction": "both sides are to fall, the rejected one more"},
    ),
    "cal_dpo": Row(
        lambda hp, raw: LOG2 + (1 / (2 * hp["beta"])) ** 2,
        settings=({"beta": 0.02},),
        golden=(({"beta": 0.1}, [22.813262, 29.748186, 15.158477]), ({"beta": 0.1}, 22.573308)),
        exceptions={"doubling": NOT_DOUBLED},
    ),
    "c2_dpo": Row(
        log2,
        settings=({"lam": 0.0}, {"beta": 0.5, "lam": 1e-3}),
        golden=(({"beta": 0.1, "lam": 2e-4}, [0.646197, 0.728778, 0.506702]), ({}, 0.627225)),
        exceptions={"doubling": NOT_DOUBLED},
    ),
    "rpo_nll": Row(
        rpo_nll,
        settings=({"nll_norm": "token", "alpha": 0.2}, {"nll_norm": "sum", "alpha": 0.005}),
        golden=(
            ({"beta": 0.1}, {"preference": DPO, "nll": [1.25, 1.55, 12.5 / 9]}),
            ({"nll_norm": "token", "alpha": 0.2}, {"nll": 0.2 * 63.5 / 45}),
            ({"nll_norm": "sum", "alpha": 0.005}, {"nll": [0.1, 0.155, 0.0625]}),
        ),
    ),
    # Another margin
    "fdpo": Row(
        log2,
        settings=(
            {"divergence": "reverse_kl"},
            {"divergence": "forward_kl"},
            {"divergence": "alpha"},
            {"divergence": "alpha", "alpha": 0.3, "beta": 0.5},
        ),
        golden=(
            ({"divergence": "reverse_kl"}, DPO),
            ({"divergence": "forward_kl"}, [0.681588, 0.735508, 0.000006]),
            ({"divergence": "forward_kl"}, 0.472367),
            ({"divergence": "js"}, [0.683874, 0.712121, 0.519705]),
            ({"divergence": "js"}, 0.638567),
            ({"divergence": "alpha", "alpha": 0.5}, [0.669567, 0.731785, 0.133292]),
            ({"divergence": "alpha", "alpha": 0.5}, 0.511548),
        ),
        exceptions={"doubling": NOT_DOUBLED},
    ),
    "rdpo": Row(
        rdpo,
        settings=({"alpha": 0.0}, {"beta": 0.5, "alpha": 0.3}),
        golden=(({"beta": 0.1, "alpha": 0.01}, [0.625595, 0.703197, 0.497154]), ({}, 0.608649)),
        exceptions={"doubling": NOT_DOUBLED},
    ),
    "odpo": Row(
        odpo,
        settings=({"f": "log_ratio"}, {"alpha": 0.0}),
        golden=(
            ({"beta": 0.1, "alpha": 1.0}, [1.033069, 0.429347, 0.501084]),
            ({"beta": 0.1, "alpha": 1.0}, 0.654500),
            # the ratios are 3, 1.5 and 2
            ({"f": "log_ratio"}, [sp(math.log(3) - 0.1), sp(math.log(1.5) + 0.07), sp(LOG2 - 0.43)]),
        ),
        fixture=exact_pairs,
    ),
    "dpop": Row(
        log2,
        settings=({"beta": 0.1, "lam": 5.0},),
        golden=(({"beta": 0.3, "lam": 50.0}, [0.554355, 7.710448, 6.212007]), ({}, 4.825604)),
    ),
    "dpo_shift": Row(
        log2,
        settings=({"f": 0.5}, {"f": 0.95, "f_end": 1.0}),
        golden=(({"beta": 0.01, "f": 0.95}, [0.687911, 0.696603, 0.673053]), ({}, 0.685856)),
    ),
    "h_dpo": Row(
        h_dpo,
        settings=({"alpha": 1.2}, {"alpha": 1.0}),
        golden=(({"beta": 0.1, "alpha": 0.9}, [0.663597, 0.723597, 0.523123]), ({}, 0.636772)),
    ),
    "bpo": Row(
        lambda hp, raw: LOG2 if hp["link"] == "logistic" else 1.0,
        settings=({"link": "logistic"}, {"alpha": 1.0}),
        golden=(
            ({"beta": 0.1, "alpha": 0.3, "link": "logistic"}, [0.708260, 0.718460, 0.718460]),
            ({"beta": 0.1, "alpha": 0.3, "link": "logistic"}, 0.715060),
            ({"beta": 0.1, "alpha": 0.3, "link": "hinge"}, [1.03, 1.05, 1.05]),
            ({}, 1.043333),
        ),
    ),
    "chi_po": Row(
        log2,
        settings=({"r_max": 0.05}, {"a": 0.5, "g": 2.0}),
        golden=(
            ({"beta": 0.1, "r_max": 1.0}, [0.449278, 0.761050, 0.477929]),
            ({"beta": 0.1, "r_max": 1.0}, 0.562752),
            # the margins are 0.567, -0.131 and 0.490: the clip at 0.4 binds for two, at 0.1 for all
            ({"beta": 0.1, "r_max": 0.2}, [sp(-0.4), 0.761050, sp(-0.4)]),
            ({"beta": 0.1, "r_max": 0.05}, [sp(-0.1), sp(0.1), sp(-0.1)]),
        ),
        exceptions={"doubling": NOT_DOUBLED},
    ),
    "minor_dpo": Row(
        log2,
        settings=({"beta": 0.5},),
        golden=(({"beta": 0.1}, [0.644397, 0.728760, 0.718460]), ({}, 0.697205)),
    ),
    # Single tokens (on these pairs a completion's tokens are all alike: 12 of 16, 15 of 20 and 8 of 9 are shared)
    "ld_dpo": Row(
        log2,
        settings=({"alpha": 0.0}, {"alpha": 1.0}, {"beta": 0.5, "alpha": 0.3}),
        golden=(
            ({"alpha": 0.5}, [sp(0.1 - 0.175), sp(0.02 + 0.04375), sp(-0.48 + 0.05 * 8.5 / 9)]),
            ({"alpha": 0.0}, [sp(0.1 - 0.15), sp(0.02 + 0.0375), sp(-0.48 + 0.05 * 8 / 9)]),
            ({"alpha": 1.0}, DPO),
        ),
    ),
    "sampo": Row(
        log2,
        settings=({"beta": 0.5},),
        golden=(({}, [sp(0.1 - 0.15), sp(0.02 + 0.0375), sp(-0.48 + 0.05 * 8 / 9)]),),
        exceptions={"doubling": RANDOM},
    ),
    "wpo": Row(wpo, settings=({"cap": False}, {"beta": 0.1}), exceptions={"gradient": "the weights are detached"}),
    "tdpo": Row(
        tdpo,
        settings=({"variant": "tdpo1"}, {"alpha": 0.0}),
        exceptions={"gradient": "TDPO2's divergence on the chosen side is detached"},
    ),
    # Over the whole step
    "bco_pair": Row(
        lambda hp, raw: 2 * LOG2,
        settings=({"beta": 0.5}, {"shift": False}),
        golden=(
            ({"shift": False}, [1.342536, 1.421657, 1.200135]),
            ({"shift": False}, 1.321442),
            ({}, [1.346243, 1.421801, 1.194948]),
            ({}, 1.320997),
        ),
    ),
    "aot": Row(
        log2,
        settings=({"label_smoothing": 0.1},),
        # the catalogue's columns are sorted positions: pair 1, pair 0, pair 2
        golden=(({"beta": 0.1}, [0.562915, 0.728760, 0.575939]), ({"beta": 0.1}, 0.622538)),
    ),
    "aot_unpaired": Row(
        log2,
        settings=({"label_smoothing": 0.1},),
        # sorted positions: pairs 1 and 2 (a tie), then pair 0
        golden=(({"beta": 0.1}, [0.644397, 0.501084, 0.728760]), ({"beta": 0.1}, 0.624747)),
        fixture=exact_pairs,
    ),
    "dr_dpo": Row(log2, settings=({"beta": 0.5, "b_prime": 0.3},), golden=(({"beta": 0.1, "b_prime": 1.0}, 0.620293),)),
    "beta_dpo": Row(log2, settings=({"keep": 1.0}, {"a": 0.0, "keep": 0.5}), exceptions={"doubling": RANDOM}),
    "alpha_dpo": Row(
        alpha_dpo,
        settings=({"bias_correction": True}, {"alpha": 0.0}),
        golden=(({"alpha": 0.0, "beta": 2.5, "gamma": 1.375}, [0.474077, 0.825939, 0.378043]),),
    ),
    # Without a reference
    "simpo": Row(
        lambda hp, raw: sp(hp["gamma"]) - hp["label_smoothing"] * hp["gamma"],
        settings=({"beta": 2.5, "gamma": 1.375}, {"gamma": -0.5}, {"label_smoothing": 0.2}),
        golden=(({"beta": 2.5, "gamma": 1.375}, [0.474077, 0.825939, 0.378043]),),
    ),
    "cpo": Row(
        lambda hp, raw: (
            mean_sp(-hp["beta"] * uniform_margin(raw))
            + hp["label_smoothing"] * hp["beta"] * float(uniform_margin(raw).mean())
            + hp["alpha"] * LOGV
        ),
        settings=({"beta": 0.5, "alpha": 0.1}, {"alpha": 0.0}, {"label_smoothing": 0.2}),
        golden=(
            ({"beta": 0.1}, {"preference": [0.513015, 0.744397, 0.455492], "nll": 63.5 / 45}),
            ({"beta": 0.1}, {"preference": 0.570968}),
        ),
    ),
    "cpo_simpo": Row(
        lambda hp, raw: sp(hp["gamma"]) + hp["alpha"] * LOGV,
        settings=({"beta": 2.0, "gamma": 0.5, "alpha": 1.0},),
        golden=(
            (
                {"beta": 2.5, "gamma": 1.375, "alpha": 0.5},
                {"preference": [0.474077, 0.825939, 0.378043], "nll": 63.5 / 90},
            ),
        ),
    ),
    "orpo": Row(
        lambda hp, raw: LOGV + hp["lam"] * LOG2,
        settings=({"lam": 1.0},),
        golden=(
            ({"lam": 1.0}, {"odds_ratio": [0.329147, 0.458001, 0.303562]}),
            ({"lam": 0.1}, {"odds_ratio": 0.0363570, "nll": 63.5 / 45}),
        ),
    ),
    "alphapo": Row(
        lambda hp, raw: sp(hp["gamma"]),
        settings=({"alpha": -0.5}, {"alpha": 0.0, "gamma": 1.0}, {"alpha": 1.0, "beta": 0.1}),
        golden=(({"alpha": 0.25, "beta": 2.5, "gamma": 0.1}, [0.063868, 0.174986, 0.036246]), ({}, 0.091700)),
    ),
    "simper": Row(
        lambda hp, raw: 0.0,
        golden=(({}, [-0.151170, -0.076913, -0.143953]), ({}, -0.124012)),
    ),
    "spo": Row(
        spo,
        settings=({"beta": 2.0, "average": True},),
        golden=(({"beta": 0.1}, [-0.160525, 0.052498, -0.201225]), ({}, -0.103084)),
    ),
    "slic_hf": Row(
        slic_hf,
        settings=({"delta": 0.5, "lam": 0.0},),
        golden=(
            ({"delta": 1.0}, {"calibration": [0.0, 2.0, 0.0], "nll": [2.0, 3.1, 1.25]}),
            ({"delta": 1.0}, {"calibration": 0.666667}),
        ),
    ),
}
