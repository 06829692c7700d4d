"""Supervised methods: weighted negative log-likelihood of given completions."""

from __future__ import annotations

from torch import Tensor

from steelyard.algorithms.core import algorithm
from steelyard.types import Tokens


@algorithm(paper="2203.02155", length_normalized=True)
def sft(tokens: Tokens) -> Tensor:
    r"""Supervised fine-tuning (Ouyang et al., 2022; Wei et al., 2021).

    $-\log\pi_\theta(y_t|x,y_{<t})$, averaged over all trained tokens of the optimizer step.  Returns [b, t].
    """
    return -tokens.completions.token_logp


@algorithm(paper="2308.01825", data="correct", length_normalized=True)
def rft(tokens: Tokens) -> Tensor:
    r"""Rejection-sampling fine-tuning (Yuan et al., 2023).

    $-\log\pi_\theta(y_t|x,y_{<t})$, the SFT loss, on the model's own completions: k samples per prompt, the
    verified ones kept, duplicates of a reasoning path removed.  Returns [b, t].
    """
    return -tokens.completions.token_logp
