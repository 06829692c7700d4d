"""A preference loss of your own, in ten lines: DPO with Cauchy noise in the comparisons instead of logistic noise.

steelyard algorithms conform examples/my_algorithm.py
steelyard train recipes/dpo.yaml --plugin examples/my_algorithm.py --algorithm.name cauchy_dpo
"""

from math import pi
from typing import Annotated

from annotated_types import Gt
from torch import Tensor

from steelyard import algorithm
from steelyard.types import Pairs


@algorithm(paper="an example (2026)", reference=True, beta_scale="sum")
def cauchy_dpo(pairs: Pairs, *, beta: Annotated[float, Gt(0.0)] = 0.1) -> Tensor:
    r"""DPO under Cauchy noise (an example, 2026).

    $-\log(1/2+\arctan(\beta(l_w-l_l))/\pi)$: the tails are heavy, so that a mislabelled pair pulls ever less.

    Args:
        beta: strength of the pull towards the reference.
    """
    margin = beta * (pairs.chosen.logratio - pairs.rejected.logratio)
    return -(0.5 + margin.atan() / pi).log()
