"""A tabular bandit with a known optimum, and the optimisers that take a loss to it.

Answers are sequences of one or two tokens of a complete prefix-free code, so a table of logits per node can
represent every distribution over the answers, and the best policy under a population of preferences can be
written down.  Everything is float64 and deterministic; a population is a finite data set with exact shares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steelyard.algorithms.core import algorithms, loss
from steelyard.types import Pairs, Ranked, Tokens, Unpaired

Objective = Callable[[Tensor], Tensor]
"""Parameters -> the scalar that is minimised."""


@dataclass(frozen=True)
class Policy:
    """What a table says of every answer: ``[prompts, answers]`` sums, ``[prompts, answers, 2]`` tokens."""

    token_logp: Tensor
    token_ref: Tensor
    n: Tensor
    """``[answers]`` tokens of each answer."""
    token_kl: Tensor
    """KL(reference || policy) of the node where each token is chosen."""
    token_log_sum_p2: Tensor
    """log of the sum of squared probabilities of that node."""

    @property
    def logp(self) -> Tensor:
        """S"""
        return self.token_logp.sum(-1)

    @property
    def ref(self) -> Tensor:
        """R"""
        return self.token_ref.sum(-1)

    @property
    def logratio(self) -> Tensor:
        """l = S - R"""
        return self.logp - self.ref

    @property
    def mean(self) -> Tensor:
        """A = S / n"""
        return self.logp / self.n

    @property
    def kl(self) -> Tensor:
        """The sequential KL of each answer."""
        return self.token_kl.sum(-1)


class Bandit:
    """``prompts`` with ``short`` answers of one token and ``2 * long`` of two; the reference is a random table."""

    def __init__(self, prompts: int = 1, short: int = 2, long: int = 2, seed: int = 0):
        self.prompts, self.short, self.long = prompts, short, long
        self.answers = short + 2 * long
        generator = torch.Generator().manual_seed(seed)
        size = prompts * (short + 3 * long)
        self.reference = 0.7 * torch.randn(size, generator=generator, dtype=torch.float64)
        self.n = torch.tensor([1.0] * short + [2.0] * 2 * long, dtype=torch.float64)
        self.mask = torch.stack([self.n > 0, self.n > 1], dim=-1).expand(prompts, -1, -1)

    def nodes(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the first token ``[m, short + long]`` and of the second ``[m, long, 2]``."""
        theta = theta.view(self.prompts, -1)
        root, child = theta[:, : self.short + self.long], theta[:, self.short + self.long :]
        return root.log_softmax(-1), child.reshape(self.prompts, self.long, 2).log_softmax(-1)

    def _of_nodes(self, root: Tensor, child: Tensor) -> Tensor:
        """A number per first and second node, handed to the tokens ``[m, answers, 2]`` chosen there."""
        first = root.expand(-1, self.answers)
        second = torch.cat([root.new_zeros(self.prompts, self.short), child.expand(-1, -1, 2).flatten(1)], -1)
        return torch.stack([first, second], -1)

    def tokens(self, theta: Tensor) -> Tensor:
        """``[m, answers, 2]`` log-probabilities of the answers' tokens, zero where there is none."""
        root, child = self.nodes(theta)
        first = torch.cat([root[:, : self.short], root[:, self.short :].repeat_interleave(2, -1)], -1)
        second = torch.cat([root.new_zeros(self.prompts, self.short), child.flatten(1)], -1)
        return torch.stack([first, second], -1)

    def policy(self, theta: Tensor, reference: Tensor | None = None) -> Policy:
        """Everything that is known of a table beside the reference."""
        reference = self.reference if reference is None else reference
        nodes, ref_nodes = self.nodes(theta), self.nodes(reference)
        kl = [(r.exp() * (r - p)).sum(-1, keepdim=True) for p, r in zip(nodes, ref_nodes, strict=True)]
        square = [(2 * p).logsumexp(-1, keepdim=True) for p in nodes]
        return Policy(
            self.tokens(theta),
            self.tokens(reference),
            self.n,
            self._of_nodes(kl[0], kl[1]),
            self._of_nodes(square[0], square[1]),
        )

    def pairs(self, policy: Policy, chosen: Tensor, rejected: Tensor, **columns: Any) -> Pairs:
        """Pairs of answers by flat index (prompt * answers + answer), with every extra of the forward pass."""
        logp, ref, mask = policy.token_logp.flatten(0, 1), policy.token_ref.flatten(0, 1), self.mask.flatten(0, 1)
        extras = {"ref_kl": policy.token_kl.flatten(0, 1), "log_sum_p2": policy.token_log_sum_p2.flatten(0, 1)}
        return Pairs.from_logps(
            logp[chosen],
            logp[rejected],
            ref[chosen],
            ref[rejected],
            mask_chosen=mask[chosen],
            mask_rejected=mask[rejected],
            extras_chosen={name: values[chosen] for name, values in extras.items()},
            extras_rejected={name: values[rejected] for name, values in extras.items()},
            **columns,
        )

    def unpaired(self, policy: Policy, which: Tensor, label: Tensor) -> Unpaired:
        """Labelled answers by flat index; the mismatched pass holds the same answers once each."""
        logp, ref, mask = policy.token_logp.flatten(0, 1), policy.token_ref.flatten(0, 1), self.mask.flatten(0, 1)
        every = torch.arange(len(logp))
        return Unpaired.from_logps(
            logp[which],
            label,
            ref[which],
            mask=mask[which],
            mismatched=logp[every],
            mismatched_ref=ref[every],
            mismatched_mask=mask[every],
        )

    def ranked(self, policy: Policy, lists: Tensor, rewards: Tensor) -> Ranked:
        """Lists ``[b, k]`` of answers by flat index with their rewards."""
        logp, ref = policy.token_logp.flatten(0, 1), policy.token_ref.flatten(0, 1)
        mask = self.mask.flatten(0, 1)
        return Ranked.from_logps(logp[lists], ref[lists], rewards=rewards, mask=mask[lists])

    def supervised(self, policy: Policy, which: Tensor, **columns: Any) -> Tokens:
        """Answers to imitate, by flat index."""
        return Tokens.from_logps(policy.token_logp.flatten(0, 1)[which], self.mask.flatten(0, 1)[which], **columns)


def evaluate(name: str, view: Any, **keywords: Any) -> Any:
    """The loss of the package.  Every case computes it here, so that tests can put a wrong one in its place."""
    return loss(name, view, **keywords)


def population(name: str, view: Callable[[Tensor], Any], weight: Tensor | None = None, **hp: Any) -> Objective:
    """The loss as a function of the parameters; ``weight`` ``[b]``: shares of the items (``[b]`` terms only)."""
    if weight is None:
        return lambda theta: evaluate(name, view(theta), reduce=True, **hp)

    def weighted(theta: Tensor) -> Tensor:
        terms = evaluate(name, view(theta), **hp)
        terms = terms if isinstance(terms, dict) else {name: terms}
        assert all(term.dim() == 1 for term in terms.values()), "token-level terms have no items to weigh"
        return sum((term * weight).sum() for term in terms.values()) / weight.sum()

    return weighted


def minimise(objective: Objective, start: Tensor, *, steps: int = 100) -> Tensor:
    """LBFGS with a line search, to machine precision: for losses whose gradient is that of their value."""
    theta = start.detach().clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=steps, tolerance_grad=1e-11, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        value = objective(theta)
        value.backward()
        return float(value.detach())

    optimizer.step(closure)
    return theta.detach()


def slope(objective: Objective, theta: Tensor) -> Tensor:
    """The gradient, of the value or of what stands in its place where statistics are detached."""
    at = theta.detach().clone().requires_grad_()
    return torch.autograd.grad(objective(at), at)[0]


def follow(objective: Objective, start: Tensor, *, steps: int = 300, lr: float = 0.1) -> Tensor:
    """Adam with a rate that falls to zero: for kinks, running state, and optima at infinity."""
    theta, mean, square = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, steps + 1):
        gradient = slope(objective, theta)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        direction = mean / (1 - 0.9**step) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        theta = theta - lr * (1 - (step - 1) / steps) ** 2 * direction
    return theta


def descend(objective: Objective, start: Tensor, *, steps: int = 400, lr: float = 0.5) -> Tensor:
    """Plain gradient descent with a rate that falls to zero: stops at the border of a flat valley."""
    theta = start.clone()
    for step in range(steps):
        theta = theta - lr * (1 - step / steps) * slope(objective, theta)
    return theta


def settle(objective: Objective, start: Tensor, *, steps: int = 150, lr: float = 0.1) -> Tensor:
    """Adam, then Newton steps on the gradient alone: for detached statistics, where it is no value's gradient."""
    theta = follow(objective, start, steps=steps, lr=lr)
    for _ in range(4):
        columns = torch.eye(len(theta), dtype=theta.dtype) * 1e-5
        jacobian = torch.stack(
            [(slope(objective, theta + d) - slope(objective, theta - d)) / 2e-5 for d in columns], dim=1
        )
        theta = theta - torch.linalg.pinv(jacobian, rtol=1e-6) @ slope(objective, theta)
    return theta


def offline_algorithms() -> list[str]:
    """The package's own algorithms that learn from rows: all but online RL and the untrained start."""
    return [
        name
        for name, spec in algorithms.items()
        if spec.loss is not None and spec.family != "Rollouts" and spec.loss.__module__.startswith("steelyard.")
    ]
