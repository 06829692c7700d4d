"""Supervised methods: weighted negative log-likelihood of given completions."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from steelyard.algorithms.core import algorithm
from steelyard.types import Pairs, Tokens

NonNegative = Annotated[float, Ge(0.0)]


@algorithm(paper="2203.02155", length_normalized=True)
def sft(tokens: Tokens) -> Tensor:
    r"""Supervised fine-tuning (Ouyang et al., 2022; Wei et al., 2021).

    $-\log\pi_\theta(y_t|x,y_{<t})$, averaged over all trained tokens of the optimizer step.  Returns [b, t].

    Watch: long completions weigh more than short ones, because every token counts alike.

    Differs: oxRL divides by all positions, padding included, so that its step length depends on the padding.
    """
    return tokens.completions.token_nll


@algorithm(paper="2308.01825", data="correct", length_normalized=True)
def rft(tokens: Tokens) -> Tensor:
    r"""Rejection-sampling fine-tuning (Yuan et al., 2023).

    $-\log\pi_\theta(y_t|x,y_{<t})$, the SFT loss, on the model's own completions: k samples per prompt, the
    verified ones kept, each once.  Returns [b, t].

    Differs: the paper also drops right completions whose list of equations repeats another's; here only identical
    token sequences count as repeated.  oxRL trains on the rows it is given; nothing is sampled.
    """
    return tokens.completions.token_nll


@algorithm(paper="2004.10964", whole_text=True, length_normalized=True)
def cpt(tokens: Tokens) -> Tensor:
    r"""Continued pre-training (Gururangan et al., 2020).

    $-\log\pi_\theta(y_t|x,y_{<t})$ of every token of the text, prompts included, averaged over all tokens of the
    optimizer step.  Returns [b, t].

    Watch: each document begins anew; none is predicted from the one before it.
    """
    return tokens.completions.token_nll


@algorithm(paper="2310.05914", noise="alpha", length_normalized=True)
def neftune(tokens: Tokens, *, alpha: NonNegative = 5.0) -> Tensor:
    r"""Noisy embeddings, NEFTune (Jain et al., 2023).

    $-\log\pi_\theta(y_t|x,y_{<t})$ as in SFT, with $\mathrm{uniform}(-1,1)\cdot\alpha/\sqrt{Ld}$ added to the input
    embeddings in training: $L$ real tokens of the sequence, $d$ the width of the embedding.  Returns [b, t].

    Watch: the noise is the forward pass's, not the loss's; evaluation and references see none.

    Differs: Hugging Face's hook takes the padded length for $L$.

    Args:
        alpha: scale of the noise; 5 to 15 in the paper, 0 is SFT.
    """
    return tokens.completions.token_nll


@algorithm(paper="2508.05629", length_normalized=True)
def dft(tokens: Tokens) -> Tensor:
    r"""Dynamic fine-tuning (Wu et al., 2025).

    $-\mathrm{sg}(p_t)\log p_t$ with $p_t=\pi_\theta(y_t|x,y_{<t})$: SFT without the weight $1/p_t$ that its gradient
    puts on unlikely tokens.  Averaged over all trained tokens.  Returns [b, t].

    Watch: the weight is a constant; with a gradient through it, tokens below $p=1/e$ would be pushed down.
    """
    logp = tokens.completions.token_logp
    return -logp.detach().exp() * logp


def negatives(pairs: Pairs) -> dict[str, Tensor]:
    """Items per token of the rejected completions, over the whole step: turns a mean over items into one over
    those tokens."""
    count = pairs.rejected.mask.sum().clamp(min=1)
    return {"items_per_negative": pairs.items / count.to(pairs.rejected.logp.dtype)}


@algorithm(paper="1908.04319", coupled=negatives, length_normalized=True)
def unlikelihood(pairs: Pairs, *, alpha: NonNegative = 1.0) -> dict[str, Tensor]:
    r"""Unlikelihood training (Welleck et al., 2019).

    $-\log p_t$ on the chosen completion, $-\alpha\log(1-p_t)$ on the tokens of the rejected one; each is a mean over
    all its tokens of the optimizer step, and $1-p_t$ is at least $10^{-5}$.

    Watch: tokens that the rejected completion shares with the chosen one are pushed down as well.

    Differs: the paper's token-level negatives are the previous tokens of the context, its sequence-level negatives
    repeated n-grams of own samples; here they are a rejected completion.

    Args:
        alpha: weight of the unlikelihood term.
    """
    push_down = -log1mexp(pairs.rejected.token_logp) * pairs.rejected.mask
    share = alpha * pairs.stats["items_per_negative"]
    return {"nll": pairs.chosen.token_nll, "unlikelihood": share * push_down.sum(-1)}


def log1mexp(logp: Tensor, floor: float = 1e-5) -> Tensor:
    """log(1 - p) of log-probabilities, elementwise; accurate at both ends; 1 - p is at least ``floor``."""
    a = logp.clamp(max=math.log1p(-floor))
    near_one = a > -0.6931471805599453
    # Each branch sees only arguments on which it is accurate, so that no gradient is NaN.
    small = torch.log(-torch.expm1(torch.where(near_one, a, -1.0)))
    large = torch.log1p(-torch.exp(torch.where(near_one, -1.0, a)))
    return torch.where(near_one, small, large)
