"""Distillation: a student learns a teacher's next-token distributions, on given or on its own completions.

T and S are teacher and student at temperature tau.  Every function returns ``[b, t]`` terms.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from steelyard.algorithms import rounds
from steelyard.algorithms.core import Rounds, algorithm
from steelyard.algorithms.policy import clipped_surrogate
from steelyard.types import Distill, Rollouts

Positive = Annotated[float, Gt(0.0)]
NonNegative = Annotated[float, Ge(0.0)]
Share = Annotated[float, Ge(0.0), Le(1.0)]

LEAST = -1e4
"""Log-probabilities below this count as this: a token that one side excludes gives a large, finite divergence."""


def kl(p: Tensor, q: Tensor) -> Tensor:
    """``[...]`` KL(p || q) of log-probabilities ``[..., v]``."""
    p, q = p.clamp(min=LEAST), q.clamp(min=LEAST)
    return (p.exp() * (p - q)).sum(-1)


def jensen_shannon(student: Tensor, teacher: Tensor, b: float) -> Tensor:
    """``[...]`` b KL(T || M) + (1-b) KL(S || M), M = bT + (1-b)S; by definition KL(T || S) at b=0, KL(S || T) at 1."""
    if b in (0.0, 1.0):
        return kl(teacher, student) if b == 0 else kl(student, teacher)
    student, teacher = student.clamp(min=LEAST), teacher.clamp(min=LEAST)
    mixture = torch.logaddexp(teacher + math.log(b), student + math.log1p(-b))
    return b * kl(teacher, mixture) + (1 - b) * kl(student, mixture)


@algorithm(paper="1503.02531", length_normalized=True)
def kd(distill: Distill, *, alpha: Share = 0.5, tau: Positive = 2.0) -> dict[str, Tensor]:
    r"""Knowledge distillation on given completions (Hinton et al., 2015; Sanh et al., 2019).

    $-\alpha\log S(y_t)+(1-\alpha)\tau^2\,KL(T_\tau\|S_\tau)$, averaged over all trained tokens.

    Watch: with a teacher's top-k both sides are normalised on its support.

    Differs: the papers choose alpha and tau per task; the defaults are oxRL's, which also divides by padding.

    Args:
        alpha: weight of the cross-entropy of the tokens themselves; 1 is SFT.
        tau: temperature of both sides.
    """
    student, teacher = distill.at(tau)
    divergence = (1 - alpha) * tau**2 * kl(teacher, student)
    return {"cross_entropy": -alpha * distill.logp, "divergence": divergence}


@algorithm(
    paper="2306.13649",
    length_normalized=True,
    rounds=Rounds(rounds.own_or_gold, ("gold", "policy"), rounds=None, judged=False),
)
def gkd(distill: Distill, *, b: Share = 0.5, lam: Share = 0.5, tau: Positive = 1.0) -> Tensor:
    r"""Generalised on-policy distillation, GKD (Agarwal et al., 2023).

    $b\,KL(T\|M)+(1-b)\,KL(S\|M)$ with $M=bT+(1-b)S$; the limits are $KL(T\|S)$ at 0 and $KL(S\|T)$ at 1.  A share
    `lam` of the completions is the student's own; no gradient flows through the sampling.  Returns [b, t].

    Watch: some libraries swap the meaning of b.

    Differs: TRL samples and distils at temperature 0.9.

    Args:
        b: from forward (0) to reverse (1) KL divergence.
        lam: share of completions that the student samples; the others are the data's.
        tau: temperature of both sides.
    """
    return jensen_shannon(*distill.at(tau), b)


def remaining(values: Tensor) -> Tensor:
    """``[b, t]`` the sum of ``values`` from each position to the end."""
    return values.flip(1).cumsum(1).flip(1)


def minillm_statistics(distill: Distill) -> dict[str, Tensor]:
    """The whitened return-to-go of every sampled token, and how many of the step's tokens stand for each sampled and
    each given one."""
    own = distill.mask & distill.own[:, None]
    count, given = (x.sum().clamp(min=1).to(distill.logp.dtype) for x in (own, distill.mask & ~own))
    reward = torch.where(own, distill.teacher_logp - distill.old, 0.0)
    to_go = torch.where(own, remaining(reward) / remaining(own.to(reward.dtype)).clamp(min=1), 0.0)
    centred = torch.where(own, to_go - to_go.sum() / count, 0.0)
    advantage = centred * (centred.square().sum() / count + 1e-8).rsqrt()
    tokens = distill.mask.sum()
    return {"advantage": advantage, "per_sampled": tokens / count, "per_given": tokens / given}


@algorithm(
    paper="2306.08543",
    coupled=minillm_statistics,
    rounds=Rounds(rounds.mixture_and_gold, ("gold", "mixture"), rounds=None, judged=False, mixture="teacher_mix"),
)
def minillm(
    distill: Distill, *, clip: Positive = 0.2, teacher_mix: Share = 0.2, lm_weight: NonNegative = 1.0
) -> dict[str, Tensor]:
    r"""MiniLLM, policy gradient of the reverse KL divergence (Gu et al., 2023).

    On sampled tokens $-\min(\rho A,\mathrm{clip}(\rho,1\pm\epsilon)A)+KL(S_t\|T_t)$, on given ones
    $-\lambda\log S(y_t)$; each is a mean over its own tokens of the step.  $A$ is the return-to-go
    $\sum_{s\ge t}(\log T_s-\log S_s)/(L-t)$, whitened over all sampled tokens of the step; $\rho$ is the policy against
    whatever sampled the token: a mixture of teacher and student, whose log-probabilities the column `behaviour`
    holds (without it, the student itself).

    Watch: a step needs both sampled and given completions, or one of the parts is missing.

    Differs: the paper's decomposition leaves step t out of its own return; the authors' code, followed here, keeps
    it and divides by the tokens that remain.  Their whitening counts padding as well.  Their language-model data is a
    pre-training corpus; here it is the task's completions.  TRL's default keeps only the single-step term.

    Args:
        clip: clip range of the ratio.
        teacher_mix: share of the teacher in the distribution that is sampled from.
        lm_weight: weight of the language-model term on given completions.
    """
    own, stats = distill.own[:, None], distill.stats
    behaviour = torch.where(own & distill.mask, distill.columns.get("behaviour", distill.old), distill.old)
    ratio = (distill.logp - behaviour).clamp(-20.0, 20.0).exp()
    advantage = stats["advantage"][:, : distill.mask.shape[1]]
    policy = clipped_surrogate(ratio, advantage, clip, clip)
    sampled, given = own * stats["per_sampled"], ~own * stats["per_given"]
    student, teacher = distill.at()
    return {
        "policy": sampled * policy,
        "single_step": sampled * kl(student, teacher),
        "language_model": -lm_weight * given * distill.logp,
    }


@algorithm(
    paper="Thinking Machines Lab, On-Policy Distillation, 2025",
    reference="teacher",
    length_normalized=True,
    rounds=Rounds(rounds.keep_all, rounds=None, judged=False),
)
def opd(rollouts: Rollouts) -> Tensor:
    r"""On-policy distillation by token rewards (Thinking Machines Lab, 2025).

    $-\rho_t A_t$ with $A_t=\mathrm{sg}(\log T(y_t)-\log S_{old}(y_t))$ on the student's own samples: a policy
    gradient of the reverse KL divergence in which each token is rewarded only for itself (discount 0).  Averaged over
    all sampled tokens.  Returns [b, t].

    Watch: no baseline and no clip; the reward needs the teacher's log-probability of the sampled token only.
    """
    return -rollouts.ratio * (rollouts.ref - rollouts.old)
