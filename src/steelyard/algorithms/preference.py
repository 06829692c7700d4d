"""DPO and its variants by another link on the same margin, by noise in the labels, or by the reference's motion.

Notation of the catalogue: S and R are the summed log-probabilities of policy and reference, n the number of
tokens, A = S/n, l = S - R, D = l_w - l_l, h = beta D.  Every function returns one term per pair, ``[b]``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt
from torch import Tensor

from steelyard.algorithms import links
from steelyard.algorithms.core import algorithm
from steelyard.algorithms.links import NonNegative, Positive, Share, Smoothing, margin
from steelyard.types import Pairs


@algorithm(paper="2305.18290", reference=True, beta_scale="sum")
def dpo(pairs: Pairs, *, beta: Positive = 0.1) -> Tensor:
    r"""Direct Preference Optimization (Rafailov et al., 2023, eq. 7).

    $-\log\sigma(\beta(l_w-l_l))$ with $l=\log\pi_\theta(y|x)-\log\pi_{ref}(y|x)$, summed over tokens.

    Watch: the margin can grow while both log-probabilities fall.

    Args:
        beta: strength of the pull towards the reference.
    """
    return links.logistic(beta * margin(pairs))


@algorithm(paper="Mitchell, 2023 (ericmitchell.ai/cdpo.pdf)", reference=True, beta_scale="sum")
def cdpo(pairs: Pairs, *, beta: Positive = 0.1, label_smoothing: Smoothing = 0.1) -> Tensor:
    r"""Conservative DPO (Mitchell, 2023, eq. 3).

    $-(1-\varepsilon)\log\sigma(h)-\varepsilon\log\sigma(-h)$, $h=\beta(l_w-l_l)$: labels are taken to be wrong with
    probability $\varepsilon$, so the margin stops at $h=\log((1-\varepsilon)/\varepsilon)$.

    Watch: past that margin the loss pulls the pair together again.

    Differs: TRL 1.x ignores `label_smoothing` in its `sigmoid` loss.

    Args:
        beta: strength of the pull towards the reference.
        label_smoothing: epsilon, the share of flipped labels; 0 is DPO.
    """
    return links.smooth(beta * margin(pairs), label_smoothing)


@algorithm(paper="2403.00409", reference=True, beta_scale="sum")
def robust_dpo(pairs: Pairs, *, beta: Positive = 0.1, label_smoothing: Smoothing = 0.1) -> Tensor:
    r"""Robust DPO, provably unbiased under label flips (Ray Chowdhury et al., 2024).

    $[-(1-\varepsilon)\log\sigma(h)+\varepsilon\log\sigma(-h)]/(1-2\varepsilon)$, $h=\beta(l_w-l_l)$.  Its mean over
    labels that are flipped with probability $\varepsilon$ is DPO's loss on the clean ones.

    Watch: the loss may be negative, and is unbounded below.

    Differs: oxRL adds the flipped term, which is cDPO divided by $1-2\varepsilon$.

    Args:
        beta: strength of the pull towards the reference.
        label_smoothing: epsilon, the share of flipped labels; 0 is DPO.
    """
    return links.robust(beta * margin(pairs), label_smoothing)


@algorithm(paper="2407.15229", reference=True, length_normalized=True, beta_scale="avg")
def dpo_norm(pairs: Pairs, *, beta: Positive = 5.0) -> Tensor:
    r"""Length-normalised DPO (LN-DPO; Ahrabian et al., 2024; Lambert et al., 2024).

    $-\log\sigma(\beta(l_w/n_w-l_l/n_l))$.  The default is Tülu 3's; TRL calls the loss `sigmoid_norm`.

    Watch: with DPO's usual beta of 0.1 the loss is almost flat.

    Args:
        beta: multiplies averages, so useful values are 2 to 10, not 0.1.
    """
    return links.logistic(beta * (pairs.chosen.mean_logratio - pairs.rejected.mean_logratio))


@algorithm(paper="2310.12036", reference=True, length_normalized=True, beta_scale="avg")
def ipo(pairs: Pairs, *, beta: Positive = 0.1, average: bool = True) -> Tensor:
    r"""Identity Preference Optimization (Azar et al., 2023, eq. 17).

    $(D-1/(2\tau))^2$ with $\tau$ = `beta`.  The paper prints sums; its authors confirmed averages over
    tokens, which is the default here and in TRL.

    Watch: past its target the margin is pulled back.

    Differs: oxRL uses sums.

    Args:
        beta: the paper's tau; the target margin is 1/(2 beta).
        average: log-ratios per token (True) or summed over the completion (False).
    """
    gap = pairs.chosen.mean_logratio - pairs.rejected.mean_logratio if average else margin(pairs)
    return links.square(gap, at=1 / (2 * beta))


@algorithm(paper="2309.06657", reference=True, beta_scale="sum")
def hinge(pairs: Pairs, *, beta: Positive = 0.05) -> Tensor:
    r"""Hinge loss on the normalised likelihood, of RSO (Liu et al., 2023).

    $\max(0,1-\beta(l_w-l_l))$.

    Watch: a pair past the margin of 1 has no gradient at all.

    Differs: TRL and oxRL use beta 0.1; oxRL and others call it SLiC-HF, which has no reference (`slic_hf`).

    Args:
        beta: the paper's gamma.
    """
    return links.hinge(beta * margin(pairs))


@algorithm(paper="2402.05749", reference=True, beta_scale="sum")
def gpo(
    pairs: Pairs,
    *,
    beta: Positive = 0.1,
    link: Literal["logistic", "hinge", "square", "exp", "trunc_quad", "savage"] = "exp",
) -> Tensor:
    r"""Generalized Preference Optimization (Tang et al., 2024).

    $\varphi(\beta(l_w-l_l))$ for any convex $\varphi$ with $\varphi'(0)<0$: logistic $\log(1+e^{-h})$, hinge
    $\max(0,1-h)$, square $(h-1)^2$, exp $e^{-h}$, trunc_quad $\max(0,1-h)^2$, and savage $(1+e^h)^{-2}$, which is
    not convex.

    Watch: logistic is DPO, hinge is RSO's, and square is IPO on sums up to a factor; the exponential weighs the
    worst pair most (and is cut at $e^{40}$).

    Args:
        beta: strength of the pull towards the reference.
        link: the function of the margin; the default is oxRL's, the paper has none.
    """
    return links.CLASSIFICATION[link](beta * margin(pairs))


@algorithm(paper="2402.00856", reference=True, beta_scale="sum")
def exo_pair(pairs: Pairs, *, beta: Positive = 0.1, eps: Annotated[float, Gt(0.0), Lt(0.5)] = 1e-3) -> Tensor:
    r"""Efficient exact optimization on pairs, EXO (Ji et al., 2024, eq. 16).

    $q\log\frac{q}{1-\varepsilon}+(1-q)\log\frac{1-q}{\varepsilon}$ with $q=\sigma(\beta(l_w-l_l))$: the reverse KL from
    the policy's preference to the smoothed label.

    Watch: past $h=\log((1-\varepsilon)/\varepsilon)$ the loss pulls the pair together again.

    Differs: the official code smooths with about $e^{-10}$ and leaves out the target's normalisation.

    Args:
        beta: strength of the pull towards the reference; the paper uses 0.1 to 0.5.
        eps: probability that the label gives to the rejected completion.
    """
    return links.reverse_kl(beta * margin(pairs), eps)


@algorithm(paper="2406.08414", reference=True, beta_scale="sum")
def discopop(pairs: Pairs, *, beta: Positive = 0.05, tau: Positive = 0.05) -> Tensor:
    r"""DiscoPOP, the log-ratio modulated loss (Lu et al., 2024, eq. 5).

    $(1-u)\log(1+e^{-h})+u\,e^{-h}$ with $h=\beta(l_w-l_l)$ and $u=\sigma(h/\tau)$; found by a language model.

    Watch: it is not convex: just left of $h=0$ a better order raises the loss.

    Differs: TRL and oxRL use beta 0.1.

    Args:
        beta: strength of the pull towards the reference.
        tau: width of the blend between the two parts.
    """
    return links.log_ratio_modulated(beta * margin(pairs), tau)


@algorithm(
    paper="2501.06645",
    reference=True,
    beta_scale="sum",
    provisional="the default of g, and whether the published runs detach the factor",
)
def focalpo(pairs: Pairs, *, beta: Positive = 0.1, g: NonNegative = 0.05) -> Tensor:
    r"""FocalPO (Liu et al., 2025).

    $-p^{\gamma}\log\sigma(h)$ with $h=\beta(l_w-l_l)$ and $p=\sigma(h)$, not detached: pairs that are already ordered
    right weigh more.

    Watch: below $p=e^{-1/\gamma}$ a better order raises the loss: never with 0.05, for $p<0.37$ with 1.

    Differs: oxRL detaches the factor and uses gamma = 1.

    Args:
        beta: strength of the pull towards the reference.
        g: the paper's gamma; 0 is DPO.
    """
    return links.focal(beta * margin(pairs), g)


@algorithm(paper="2404.09656", reference="moving", moving=("a", "tau"), beta_scale="sum")
def tr_dpo(pairs: Pairs, *, beta: Positive = 0.1, a: Share = 0.6, tau: Annotated[int, Ge(1)] = 512) -> Tensor:
    r"""Trust-region DPO, with a moving reference (Gorbatovski et al., 2024).

    DPO's $-\log\sigma(\beta(l_w-l_l))$; every $\tau$ optimizer steps the reference becomes
    $a\theta+(1-a)\theta_{ref}$.

    Watch: a run shorter than tau is plain DPO.

    Differs: TRL moves the reference by `sync_ref_model`, with the same defaults.

    Args:
        beta: strength of the pull towards the reference.
        a: the policy's share in an update of the reference; 1 copies the policy (the paper's hard update).
        tau: optimizer steps between two updates.
    """
    return links.logistic(beta * margin(pairs))


@algorithm(paper="2406.18629", reference=True, data="step_pairs", beta_scale="sum")
def step_dpo(pairs: Pairs, *, beta: Positive = 0.5) -> Tensor:
    r"""Step-wise DPO for chains of reasoning (Lai et al., 2024).

    $-\log\sigma(\beta(l_w-l_l))$ where the prompt ends with the shared correct steps, and the completions are one
    right and one wrong next step.

    Watch: the shared steps are prompt; only the disputed step is trained on.

    Args:
        beta: strength of the pull towards the reference; the paper uses 0.4 to 0.5.
    """
    return links.logistic(beta * margin(pairs))
