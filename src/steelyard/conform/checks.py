"""What is promised of every algorithm and needs no number from outside: one check each.

A check takes the specification and hyperparameters, looks at the loss on random inputs, and returns nothing if
the promise holds.  It raises ``AssertionError`` where it does not, and :class:`DoesNotApply` where it means
nothing for this kind of loss.  Whatever else the loss raises counts as broken, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steelyard.algorithms.core import (
    AlgorithmSpec,
    coupled_stats,
    evaluate_loss,
    items_of,
    loss,
    reduce_terms,
    view_counts,
)
from steelyard.conform.inputs import (
    POLICY,
    REFERENCE,
    Raw,
    at_reference,
    build,
    directions,
    inputs_of,
    kind_of,
    mask_of,
    policy_inputs,
    take,
    tokens_of,
    widen,
)
from steelyard.errors import DataError
from steelyard.types import View

Hyperparameters = Mapping[str, Any]


class DoesNotApply(Exception):
    """This promise means nothing for this kind of loss; says why."""


@dataclass(frozen=True)
class Check:
    """One promise.

    Attributes:
        name: short, for tables; a row or a plugin excepts a method from it by this name.
        promise: the sentence that must be true.
        run: looks whether it is.
        once: depends on the declaration more than on the values of hyperparameters: defaults are enough.
    """

    name: str
    promise: str
    run: Callable[[AlgorithmSpec, Hyperparameters], None]
    once: bool = False


CHECKS: dict[str, Check] = {}
"""Every check by name, in the order in which they are reported."""


def check(name: str, promise: str, *, once: bool = False) -> Callable[[Any], Any]:
    """Enter a function into :data:`CHECKS`."""

    def enter(run: Callable[[AlgorithmSpec, Hyperparameters], None]) -> Any:
        CHECKS[name] = Check(name, promise, run, once)
        return run

    return enter


def expect(holds: bool, otherwise: str) -> None:
    """Like ``assert``, but not switched off by ``python -O``."""
    if not holds:
        raise AssertionError(otherwise)


# --------------------------------------------------------------------------------------------------
# Tools


def settings(spec: AlgorithmSpec, hp: Hyperparameters) -> dict[str, Any]:
    """The defaults with ``hp`` on top."""
    return {key: entry.default for key, entry in spec.hyperparameters.items()} | dict(hp)


def total(spec: AlgorithmSpec, raw: Raw, hp: Hyperparameters) -> Tensor:
    """The loss of a step that consists of ``raw`` alone."""
    value = loss(spec.key, build(spec, raw), reduce=True, **hp)
    expect(isinstance(value, Tensor) and value.dim() == 0, "the reduced loss is no scalar")
    return value


def seeded() -> torch.Generator:
    """The generator that :func:`loss` takes by default."""
    return torch.Generator().manual_seed(0)


def gradients(spec: AlgorithmSpec, raw: Raw, hp: Hyperparameters) -> tuple[Tensor, Raw]:
    """The loss, and its gradient by every floating-point input (zero where there is none)."""
    leaves = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in raw.items()}
    value = total(spec, leaves, hp)
    value.backward()
    found = {k: v.grad for k, v in leaves.items() if v.is_floating_point()}
    return value.detach(), {k: torch.zeros_like(raw[k]) if g is None else g for k, g in found.items()}


def needs_reference(spec: AlgorithmSpec, hp: Hyperparameters) -> bool:
    """Whether the declared reference is used with these hyperparameters."""
    switch = spec.reference_unless_zero
    return spec.reference != "none" and not (switch and settings(spec, hp)[switch] == 0)


def _refused(spec: AlgorithmSpec, raw: Raw, hp: Hyperparameters, word: str, why: str) -> None:
    """The loss must raise a :class:`DataError` that names ``word`` on inputs that lack something."""
    try:
        total(spec, raw, hp)
    except DataError as error:
        expect(word in str(error), f"{why}: the error does not name it: {error}")
    else:
        raise AssertionError(f"{why}, but the loss does not need it")


# --------------------------------------------------------------------------------------------------
# The function itself


@check("pure", "terms are [b] or [b, t], unreduced, float64 in float64 out, finite; inputs are not changed")
def _pure(spec: AlgorithmSpec, hp: Hyperparameters) -> None:
    raw = inputs_of(spec)
    view, before = build(spec, raw), {key: value.clone() for key, value in raw.items()}
    terms = loss(spec.key, view, **hp)
    shapes = [(view.items,)] + ([] if view.token_mask_or_none is None else [tuple(view.token_mask.shape)])
    for name, term in terms.items() if isinstance(terms, dict) else [("the term", terms)]:
        expect(tuple(term.shape) in shapes, f"{name} has shape {list(term.shape)}, expected one of {shapes}")
        expect(term.dtype == torch.float64, f"{name} is {term.dtype} on float64 inputs")
        expect(bool(term.isfinite().all()), f"{name} is not finite")
    expect(torch.equal(total(spec, raw, hp), total(spec, raw, hp)), "two calls give two values")
    changed = [key for key in raw if not torch.equal(raw[key], before[key])]
    expect(not changed, f"the loss changes its inputs: {', '.join(changed)}")


@check("gradient", "the gradient agrees with finite differences in float64")
def _gradient(spec: AlgorithmSpec, hp: Hyperparameters) -> None:
    raw = inputs_of(spec, items=3)
    values, policy = settings(spec, hp), policy_inputs(spec)
    stats = coupled_stats(spec, build(spec, raw), values, generator=seeded()) if spec.coupled else {}

    def function(*inputs: Tensor) -> Tensor:  # coupled statistics belong to the whole step and stay fixed
        view = build(spec, raw | dict(zip(policy, inputs, strict=True))).with_stats(stats)
        return reduce_terms(evaluate_loss(spec, view, values), view, spec.reduce, view_counts(view))[0]

    live = tuple(raw[key].clone().requires_grad_() for key in policy)
    try:
        torch.autograd.gradcheck(function, live)
    except RuntimeError as error:  # GradcheckError
        raise AssertionError(f"analytical and numerical gradient differ: {' '.join(str(error).split())}") from error


@check("policy", "the policy has a gradient, and nothing else has one")
def _policy(spec: AlgorithmSpec, hp: Hyperparameters) -> None:
    _, found = gradients(spec, inputs_of(spec), hp)
    live = policy_inputs(spec)
    for key, gradient in found.items():
        if key in live and key not in POLICY[kind_of(spec)]:
            continue  # an extra of the policy may be detached on one side
        wrong = f"no gradient by {key}" if key in live else f"a gradient by {key}, which is a constant"
        expect(bool(gradient.any()) == (key in live), wrong)


@check("extreme", "loss and gradient are finite at log-ratios (scores) of 1000 in float32")
def _extreme(spec: AlgorithmSpec, hp: Hyperparameters) -> None:
    if kind_of(spec) in ("TokenLabels", "Distill"):
        raise DoesNotApply("its inputs are logits, tested at 1000 with the family")
    points = ((-1200.0, -200.0), (-200.0, -1200.0), (0.0, -1000.0), (-1000.0, 0.0))
    for policy, reference in points:
        for swapped in (False, True):  # which side of a pair is the likely one
            raw = {k: v.float() if v.is_floating_point() else v for k, v in inputs_of(spec).items()}
            for key in [*policy_inputs(spec), *REFERENCE[kind_of(spec)]]:
                live = (key in policy_inputs(spec)) != (swapped and key.endswith("rejected"))
                summed = raw[key].dim() == 2 and spec.family != "Ranked"
                length = raw[mask_of(key)].sum(-1, keepdim=True) if summed else 1
                raw[key] = torch.full_like(raw[key], policy if live else reference) / length
            value, found = gradients(spec, raw, hp)
            place = f"policy {policy:g}, reference {reference:g}"
            expect(bool(value.isfinite()), f"the loss is {float(value)} at {place}")
            bad = [key for key, gradient in found.items() if not bool(gradient.isfinite().all())]
            expect(not bad, f"the gradient by {', '.join(bad)} is not finite at {place}")


@check("direction", "the loss falls when the better completion becomes likelier, and the worse less likely")
def _direction(spec: AlgorithmSpec, hp: Hyperparameters) -> None:
    raw = inputs_of(spec)
    if spec.family == "Rollouts":  # on policy, where nothing is clipped and the KL term is at its minimum
        raw = at_reference(spec, raw, 7)
    wanted = directions(spec, raw)
    if not wanted:
        raise DoesNotApply("labels and teachers, not an order, say what is better")
    _, found = gradients(spec, raw, hp)
    moved = {key: found[key] * direction for key, direction in wanted.items()}
    wrong = [key for key, step in moved.items() if not bool((step >= 0).all())]
    expect(not wrong, f"the gradient by {', '.join(wrong)} has the wrong sign")
    expect(any(bool((step > 0).any()) for step in moved.values()), "the loss does not move")


# --------------------------------------------------------------------------------------------------
# What the specification declares, probed


@check("reference", "a NaN in the reference (the teacher) reaches the loss if and only if one is declared")
def _reference(spec: AlgorithmSpec, hp: Hyperparameters) -> None:
    raw = inputs_of(spec)
    used = needs_reference(spec, hp) or spec.family == "Distill"
    frozen = [key for key in REFERENCE[kind_of(spec)] if key not in ("old", "mismatched_ref")]
    for key in frozen:
        poisoned = raw | {key: raw[key].clone()}
        poisoned[key][2][raw[mask_of(key)][2].nonzero()[0]] = float("nan")  # one token of one item is enough
        reaches = bool(total(spec, poisoned, hp).isnan())
        expect(reaches or not used, f"a NaN in {key} does not reach the loss: declared, but not used")
        expect(used or not reaches, f"a NaN in {key} reaches the loss: used, but not declared (`reference=True`)")
        if spec.family == "Distill":
            continue
        without = {name: value for name, value in raw.items() if not name.startswith("ref")}
        if used:
            _refused(spec, without, hp, "reference", "a reference is declared")
        else:
            expect(torch.equal(total(spec, without, hp), total(spec, raw, hp)), "the value depends on a reference")
    if not frozen:
        raise DoesNotApply(f"{spec.family} with this head carries no reference")


@check("needs", "columns, extras and the mismatched pass are needed if and only if they are declared", once=True)
def _needs(spec: AlgorithmSpec, hp: Hyperparameters) -> None:
    raw = inputs_of(spec)
    for name in spec.columns:
        without = {key: value for key, value in raw.items() if key != name}
        _refused(spec, without, hp, name, f"the column '{name}' is declared")
    for name in spec.optional_columns:
        items = len(next(iter(raw.values())))
        with_it = raw | {name: torch.linspace(2.0, 3.0, items, dtype=torch.float64)}
        used = not torch.equal(total(spec, with_it, hp), total(spec, raw, hp))
        expect(used, f"the column '{name}' is declared as optional, but does not change the loss")
    for name in spec.extras:
        without = {key: value for key, value in raw.items() if not key.startswith(f"{name}_")}
        _refused(spec, without, hp, name, f"the extra '{name}' is declared")
    without = {key: value for key, value in raw.items() if not key.startswith("mismatched")}
    if spec.mismatched:
        _refused(spec, without, hp, "mismatched", "the mismatched pass is declared")
    else:
        expect(bool(total(spec, without, hp).isfinite()), "the mismatched pass is used, but not declared")


@check("repeating", "repeating every token changes nothing if and only if `length_normalized` is declared", once=True)
def _repeating(spec: AlgorithmSpec, hp: Hyperparameters) -> None:
    once, again = _repeated(spec, hp)
    same = torch.allclose(once, again, rtol=1e-12)
    expect(same or not spec.length_normalized, "declared length-normalised, but twice the tokens change the loss")
    expect(spec.length_normalized or not same, "twice the tokens change nothing: declare `length_normalized=True`")
    expect(spec.beta_scale != "avg" or spec.length_normalized, "beta_scale='avg' goes with `length_normalized=True`")


@check("doubling", "where beta multiplies sums, twice the tokens are twice the beta", once=True)
def _doubling(spec: AlgorithmSpec, hp: Hyperparameters) -> None:
    if spec.beta_scale != "sum":
        raise DoesNotApply("beta does not multiply sums (`beta_scale`)")
    _, again = _repeated(spec, hp)
    doubled = total(spec, inputs_of(spec), {"beta": 2 * spec.hyperparameters["beta"].default})
    expect(torch.allclose(again, doubled, rtol=1e-12, atol=0), "twice the tokens are not twice the beta")


def _repeated(spec: AlgorithmSpec, hp: Hyperparameters) -> tuple[Tensor, Tensor]:
    if spec.family in ("Scores", "Ranked", "TokenScores"):
        expect(not spec.length_normalized, "scores and lists have no tokens: `length_normalized` means nothing")
        raise DoesNotApply("scores and lists have no tokens to repeat")
    raw = inputs_of(spec)
    twice = {key: v.repeat_interleave(2, 1) if v.dim() > 1 else v for key, v in raw.items()}
    return total(spec, raw, hp), total(spec, twice, hp)


# --------------------------------------------------------------------------------------------------
# Masks, padding, and any split of a step


@check("masking", "junk in masked positions, and more of them, changes neither the loss nor the gradient")
def _masking(spec: AlgorithmSpec, hp: Hyperparameters) -> None:
    raw = inputs_of(spec)
    clean_value, clean = gradients(spec, raw, hp)
    for junk in (1e30, float("inf"), float("-inf"), float("nan")):
        dirty = {k: widen(v, 3) for k, v in raw.items()}  # more padding, too
        for key in tokens_of(raw):
            mask = dirty[mask_of(key)]
            dirty[key] = torch.where(mask if dirty[key].dim() == 2 else mask[..., None], dirty[key], junk)
        value, found = gradients(spec, dirty, hp)
        _close(value, clean_value, 1e-13, 0.0, f"the loss, with {junk} in masked positions")
        for key, gradient in found.items():
            _close(gradient, widen(clean[key], 3), 1e-12, 1e-15, f"the gradient by {key}, with {junk}")


@check("split", "any split of a step into micro-batches, in any order, gives the same loss and gradient")
def _split(spec: AlgorithmSpec, hp: Hyperparameters) -> None:
    # a random loss draws in the order of the step, which no split changes: the order is not permuted there
    orders = [[[0, 1], [], [2, 3, 4]]] if spec.random else [[[4, 1], [], [3, 0, 2]]]
    raw, values = inputs_of(spec), settings(spec, hp)
    counts = view_counts(build(spec, raw))
    whole, wanted = gradients(spec, raw, hp)
    for parts in ([[0], [1], [2], [3], [4]], *orders):
        leaves = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in raw.items()}
        views = [build(spec, take(leaves, part)) for part in parts]
        step = View.concat([view.detach() for view in views])
        stats = coupled_stats(spec, step, values, generator=seeded()) if spec.coupled else {}
        shares, done = [], 0
        for view in views:
            view, done = view.with_stats(items_of(stats, done, view.items)), done + view.items
            share, terms = reduce_terms(evaluate_loss(spec, view, values), view, spec.reduce, counts)
            share.backward()
            if terms:
                _close(torch.stack(list(terms.values())).sum(), share, 1e-9, 1e-12, "the sum of the terms")
            shares.append(share.detach())
        _close(torch.stack(shares).sum(), whole, 1e-12, 1e-14, f"the loss, split as {parts}")
        for key in policy_inputs(spec):
            grad = leaves[key].grad
            found = torch.zeros_like(wanted[key]) if grad is None else grad
            _close(found, wanted[key], 1e-11, 1e-14, f"the gradient by {key}, split as {parts}")


def _close(found: Tensor, wanted: Tensor, rtol: float, atol: float, what: str) -> None:
    try:
        torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol)
    except AssertionError as error:
        raise AssertionError(f"{what}: {' '.join(str(error).split())}") from None


@check("coupled", "statistics over the whole step matter if and only if `coupled` is declared", once=True)
def _coupled(spec: AlgorithmSpec, hp: Hyperparameters) -> None:
    raw = inputs_of(spec)
    counts = view_counts(build(spec, raw))
    shares = []
    for part in ([0, 1], [2, 3, 4]):
        view = build(spec, take(raw, part))
        shares.append(reduce_terms(loss(spec.key, view, **hp), view, spec.reduce, counts)[0])  # its own statistics
    same = torch.allclose(torch.stack(shares).sum(), total(spec, raw, hp), rtol=1e-9)
    expect(same or spec.coupled is not None, "items depend on each other: declare a `coupled` function")
    expect(not same or spec.coupled is None, "coupled is declared, but a part of a step gives the same")


# --------------------------------------------------------------------------------------------------
# Documentation


@check("documented", "title with authors and year, formula, source, and a line per hyperparameter", once=True)
def _documented(spec: AlgorithmSpec, hp: Hyperparameters) -> None:
    year = r"\b(19|20)\d\d\b"
    cited = re.fullmatch(r"\d{4}\.\d{4,5}", spec.paper) or re.search(year, spec.paper)
    expect(bool(cited), f"paper={spec.paper!r}: expected an arXiv id, or a citation with its year")
    titled = spec.title.endswith(").") and re.search(year, spec.title)
    expect(bool(titled), f"the docstring must begin with a title 'Name (Authors, year).', not {spec.title!r}")
    expect("$" in spec.doc, "the docstring must give the formula between dollar signs")
    silent = [name for name, hyperparameter in spec.hyperparameters.items() if not hyperparameter.help]
    expect(not silent, f"describe {', '.join(silent)} under Args")
    fits = spec.beta_scale == "none" or "beta" in spec.hyperparameters
    expect(fits, f"beta_scale={spec.beta_scale!r}, but there is no hyperparameter beta")
