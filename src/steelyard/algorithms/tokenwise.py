"""Pairwise losses that look at single tokens: which of them count, and what else the forward pass says of them.

Notation of the catalogue: l = S - R is the summed log-ratio of policy and reference, n the number of tokens,
D = l_w - l_l.  Every function returns one term per pair, ``[b]``.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from steelyard.algorithms.core import algorithm
from steelyard.algorithms.links import NonNegative, Positive, logistic, margin
from steelyard.types import Pairs, Sequences


def shared_length(pairs: Pairs) -> Tensor:
    """``[b]`` the number of tokens of the shorter completion."""
    return torch.minimum(pairs.chosen.n, pairs.rejected.n)


def prefix_weight(completions: Sequences, count: Tensor, alpha: float) -> Tensor:
    """``[b, t]`` 1 on the first ``count`` ``[b]`` trained tokens, alpha on the rest."""
    inside = (completions.mask.cumsum(-1) <= count[:, None]).to(completions.token_logp.dtype)
    return inside + alpha * (1 - inside)


@algorithm(paper="2409.06411", reference=True, beta_scale="sum")
def ld_dpo(pairs: Pairs, *, beta: Positive = 0.1, alpha: Annotated[float, Ge(0.0), Le(1.0)] = 0.5) -> Tensor:
    r"""Length-desensitised DPO, LD-DPO (Liu et al., 2024).

    DPO's $-\log\sigma(\beta(l_w-l_l))$ with $\sum_{t\le n_p}+\alpha\sum_{t>n_p}$ in place of every sum over tokens,
    where $n_p=\min(n_w,n_l)$: what is longer than the other completion weighs less.

    Watch: only the longer completion of a pair changes; untrained tokens do not count as positions.

    Args:
        beta: strength of the pull towards the reference.
        alpha: weight of the tokens past the shared length; 1 is DPO, 0 truncates.
    """
    shared = shared_length(pairs)
    chosen = pairs.chosen.weighted_logratio(prefix_weight(pairs.chosen, shared, alpha))
    rejected = pairs.rejected.weighted_logratio(prefix_weight(pairs.rejected, shared, alpha))
    return logistic(beta * (chosen - rejected))


def draw_tokens(mask: Tensor, count: Tensor, generator: torch.Generator) -> Tensor:
    """``[b, t]`` boolean: ``count`` ``[b]`` of the tokens in ``mask``, uniformly without replacement.

    One number is drawn per token in the mask, so padding does not change what is drawn.
    """
    draws = torch.rand(int(mask.sum()), generator=generator, device=generator.device)
    order = torch.full(mask.shape, 2.0, device=mask.device).masked_scatter(mask, draws.to(mask.device))
    return order.argsort(stable=True, dim=-1).argsort(-1) < count[:, None]


def sampled_tokens(pairs: Pairs, generator: torch.Generator) -> dict[str, Tensor]:
    """As many random tokens of the longer completion as the shorter one has; all of the shorter."""
    count = shared_length(pairs)
    return {
        "keep_chosen": draw_tokens(pairs.chosen.mask, count, generator),
        "keep_rejected": draw_tokens(pairs.rejected.mask, count, generator),
    }


@algorithm(paper="2406.10957", reference=True, coupled=sampled_tokens, beta_scale="sum")
def sampo(pairs: Pairs, *, beta: Positive = 0.1) -> Tensor:
    r"""Down-sampled token DPO, SamPO (Lu et al., 2024).

    DPO's $-\log\sigma(\beta(l_w-l_l))$ with both log-ratios over $\min(n_w,n_l)$ tokens, drawn anew in every step,
    uniformly without replacement; policy and reference are summed over the same ones.

    Watch: the draw depends on the run's seed and on the step, so two evaluations of a pair differ.

    Differs: oxRL shifts the mask twice and draws apart for policy and reference.

    Args:
        beta: strength of the pull towards the reference.
    """
    keep_chosen, keep_rejected = pairs.stats["keep_chosen"], pairs.stats["keep_rejected"]
    chosen = pairs.chosen.weighted_logratio(keep_chosen[:, : pairs.chosen.mask.shape[1]])
    rejected = pairs.rejected.weighted_logratio(keep_rejected[:, : pairs.rejected.mask.shape[1]])
    return logistic(beta * (chosen - rejected))


def alignment(completions: Sequences) -> Tensor:
    """``[b]`` WPO's weight: exp of the mean over tokens of log p - log sum_v p(v)^2, detached."""
    gain = completions.token_logp - completions.extra("log_sum_p2")
    return (gain.sum(-1) / completions.n).exp().detach()


@algorithm(paper="2406.11827", reference=True, extras=("log_sum_p2",), beta_scale="sum")
def wpo(pairs: Pairs, *, beta: Positive = 0.01, cap: bool = True) -> Tensor:
    r"""Weighted preference optimization, WPO (Zhou et al., 2024).

    $-w\log\sigma(\beta(l_w-l_l))$ with $w=\min(1,w_ww_l)$, detached, and
    $w_y=\exp\frac1n\sum_t(\log p_t-\log\sum_vp_t(v)^2)$: pairs that the policy could have written weigh more.  The sum
    is divided by the number of pairs, not by the weights.

    Watch: on text far from the policy all weights are small, and so is the step.

    Differs: TRL does not cap the weight; oxRL has no alignment term, does not detach, and divides by the weights.

    Args:
        beta: strength of the pull towards the reference.
        cap: no weight above 1, as in the authors' code.
    """
    weight = alignment(pairs.chosen) * alignment(pairs.rejected)
    return (weight.clamp(max=1.0) if cap else weight) * logistic(beta * margin(pairs))


@algorithm(paper="2404.11999", reference=True, extras=("ref_kl",), beta_scale="sum")
def tdpo(
    pairs: Pairs,
    *,
    beta: Positive = 0.1,
    alpha: NonNegative = 0.5,
    variant: Literal["tdpo1", "tdpo2"] = "tdpo2",
) -> Tensor:
    r"""Token-level DPO, TDPO1 and TDPO2 (Zeng et al., 2024).

    With $K=\sum_tKL(\pi_{ref}\|\pi_\theta)$ along a completion, over the whole vocabulary:
    $-\log\sigma(\beta(D-(K_l-K_w)))$ for TDPO1 and $-\log\sigma(\beta(D-\alpha(K_l-\mathrm{sg}[K_w])))$ for TDPO2.

    Watch: the divergence is forward, the reference first; TDPO2 does not push on the chosen side's.

    Args:
        beta: strength of the pull towards the reference.
        alpha: weight of TDPO2's divergences; 0 is DPO, and TDPO1 does not use it.
        variant: which of the two losses.
    """
    gap = margin(pairs)
    chosen, rejected = pairs.chosen.extra("ref_kl").sum(-1), pairs.rejected.extra("ref_kl").sum(-1)
    divergence = rejected - chosen if variant == "tdpo1" else alpha * (rejected - chosen.detach())
    return logistic(beta * (gap - divergence))
