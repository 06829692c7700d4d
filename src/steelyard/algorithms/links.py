r"""What pairwise losses are made of: the margin of a pair, the links $\varphi(h)$ on it, and bounds.

Every link is a function of the margin ``h`` ``[b]``; it is smallest where the pair is ordered right.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from steelyard.types import Pairs

Positive = Annotated[float, Gt(0.0)]
NonNegative = Annotated[float, Ge(0.0)]
Share = Annotated[float, Gt(0.0), Le(1.0)]
Smoothing = Annotated[float, Ge(0.0), Lt(0.5)]

MAX_EXPONENT = 40.0
"""Where exponentials of a margin are cut: float32 gradients stay finite, and so do the squares in their norm."""


def margin(pairs: Pairs) -> Tensor:
    """``[b]`` D = l_w - l_l, of summed log-ratios."""
    return pairs.chosen.logratio - pairs.rejected.logratio


def mean_margin(pairs: Pairs) -> Tensor:
    """``[b]`` A_w - A_l, of average log-probabilities, without a reference."""
    return pairs.chosen.mean - pairs.rejected.mean


def bounded_exp(x: Tensor) -> Tensor:
    """exp(min(x, MAX_EXPONENT)): constant, so without a gradient, beyond."""
    return torch.exp(x.clamp(max=MAX_EXPONENT))


def logistic(h: Tensor) -> Tensor:
    """-log sigmoid(h)."""
    return -F.logsigmoid(h)


def smooth(h: Tensor, label_smoothing: float) -> Tensor:
    """The logistic link when labels are flipped with probability ``label_smoothing``."""
    return (1 - label_smoothing) * logistic(h) + label_smoothing * logistic(-h)


def robust(h: Tensor, label_smoothing: float) -> Tensor:
    """Its expectation under flips is the logistic link on clean labels; it may be negative."""
    return ((1 - label_smoothing) * logistic(h) - label_smoothing * logistic(-h)) / (1 - 2 * label_smoothing)


def hinge(h: Tensor, at: float = 1.0) -> Tensor:
    """max(0, at - h)."""
    return F.relu(at - h)


def square(h: Tensor, at: float = 1.0) -> Tensor:
    """(h - at)^2."""
    return (h - at) ** 2


def exponential(h: Tensor) -> Tensor:
    """exp(-h), cut at :data:`MAX_EXPONENT`."""
    return bounded_exp(-h)


def truncated_quadratic(h: Tensor) -> Tensor:
    """max(0, 1 - h)^2."""
    return F.relu(1 - h) ** 2


def savage(h: Tensor) -> Tensor:
    """1 / (1 + exp(h))^2; not convex."""
    return torch.sigmoid(-h) ** 2


def reverse_kl(h: Tensor, eps: float) -> Tensor:
    """KL(q || (1 - eps, eps)) with q = sigmoid(h): the smoothed label is the target."""
    target, other = torch.tensor([1 - eps, eps], dtype=h.dtype, device=h.device).log()
    return torch.sigmoid(h) * (F.logsigmoid(h) - target) + torch.sigmoid(-h) * (F.logsigmoid(-h) - other)


def log_ratio_modulated(h: Tensor, tau: float) -> Tensor:
    """(1 - u) log(1 + exp(-h)) + u exp(-h) with u = sigmoid(h / tau); not convex near zero."""
    # u exp(-h) in one exponential: apart, u underflows where exp(-h) overflows
    return torch.sigmoid(-h / tau) * logistic(h) + bounded_exp(F.logsigmoid(h / tau) - h)


def focal(h: Tensor, g: float) -> Tensor:
    """-p^g log p with p = sigmoid(h); the factor has a gradient, too."""
    return (g * F.logsigmoid(h)).exp() * logistic(h)


def self_limited(h: Tensor) -> Tensor:
    """silu(-h) = -h sigmoid(-h): the smallest value is -0.27846, at h = 1.27846."""
    return F.silu(-h)


CLASSIFICATION = {
    "logistic": logistic,
    "hinge": hinge,
    "square": square,
    "exp": exponential,
    "trunc_quad": truncated_quadratic,
    "savage": savage,
}
"""Links that stand for a binary classification loss, by the name that a recipe gives them."""
