"""The decorator that makes a loss function an algorithm, its specification, and the one reducer.

An algorithm is a pure function from a family view to unreduced terms, ``[b]`` or ``[b, t]``, or a dict of
such terms (each becomes a metric; the loss is their sum).  It never averages: the reducer divides by the
counts of the whole optimizer step, so that no split into micro-batches or ranks changes the gradient.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import annotated_types
from torch import Tensor

from steelyard.errors import ConfigError
from steelyard.registry import Registry
from steelyard.types import FAMILIES, View

Terms = Tensor | dict[str, Tensor]
Reduce = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"]
DataStage = Literal["gold", "correct", "pairs", "prompts", "none"]
"""What an algorithm learns from on a task: gold completions, its own verified completions, pairs of its own
right and wrong completions, prompts that it samples from online, or nothing (the untrained baseline)."""


@dataclass(frozen=True)
class Hyperparameter:
    """One keyword-only argument of an algorithm."""

    name: str
    type: str
    default: Any
    optional: bool = False
    bounds: Mapping[str, float] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    help: str = ""


@dataclass(frozen=True)
class AlgorithmSpec:
    """Everything that the rest of the system knows about an algorithm.

    Attributes:
        family: name of the view that the loss takes; selects schema, collation, forward and diagnostics.
        paper: arXiv id (or a citation) of the definition.
        reference: whose log-probabilities the view carries: ``none`` or ``frozen`` (the policy at step 0).
        reference_unless_zero: a hyperparameter that, at zero, makes the reference unnecessary.
        reduce: how ``[b, t]`` terms are averaged (``algorithms.md`` 3.10).
        coupled: a function (detached view of the whole step, hyperparameters) -> named statistics,
            computed in a first pass and handed to the loss as ``view.stats``.
        mismatched: each prompt is also scored with another row's completion (KTO's z0).
        advantage: name of the advantage estimator (online methods).
        data: the stage that makes its rows (see :data:`DataStage`).
        length_normalized: repeating every token twice leaves the loss unchanged.
        beta_scale: whether ``beta`` multiplies summed or averaged log-probabilities.
    """

    key: str
    family: str
    loss: Callable[..., Terms] | None
    paper: str
    reference: Literal["none", "frozen"] = "none"
    reference_unless_zero: str | None = None
    reduce: Reduce = "token-mean"
    coupled: Callable[..., dict[str, Tensor]] | None = None
    mismatched: bool = False
    advantage: str | None = None
    data: DataStage = "gold"
    length_normalized: bool = False
    beta_scale: Literal["sum", "avg", "none"] = "none"
    hyperparameters: Mapping[str, Hyperparameter] = field(default_factory=dict)
    title: str = ""
    doc: str = ""

    @property
    def online(self) -> bool:
        """Groups are sampled from the policy during training."""
        return self.data == "prompts"

    def describe(self) -> dict[str, Any]:
        """The catalogue entry: plain JSON, readable without torch."""
        return {
            "title": self.title,
            "family": self.family,
            "paper": self.paper,
            "reference": self.reference,
            "reference_unless_zero": self.reference_unless_zero,
            "reduce": self.reduce,
            "coupled": self.coupled is not None,
            "mismatched": self.mismatched,
            "advantage": self.advantage,
            "data": self.data,
            "online": self.online,
            "length_normalized": self.length_normalized,
            "beta_scale": self.beta_scale,
            "hyperparameters": {
                name: {
                    "type": hp.type,
                    "default": hp.default,
                    "optional": hp.optional,
                    "bounds": dict(hp.bounds),
                    "choices": list(hp.choices),
                    "help": hp.help,
                }
                for name, hp in self.hyperparameters.items()
            },
            "doc": self.doc,
        }


algorithms: Registry[AlgorithmSpec] = Registry("algorithm")
"""Every algorithm by key."""

algorithms.register(
    "base",
    AlgorithmSpec(
        key="base",
        family="none",
        loss=None,
        paper="-",
        data="none",
        title="The untrained start",
        doc="The untrained start: the model is evaluated as it is.  The baseline of every study.",
    ),
)


def algorithm(
    *,
    paper: str,
    reference: bool = False,
    reference_unless_zero: str | None = None,
    reduce: Reduce = "token-mean",
    coupled: Callable[..., dict[str, Tensor]] | None = None,
    mismatched: bool = False,
    advantage: str | None = None,
    data: DataStage | None = None,
    length_normalized: bool = False,
    beta_scale: Literal["sum", "avg", "none"] = "none",
    name: str | None = None,
) -> Callable[[Callable[..., Terms]], Callable[..., Terms]]:
    """Register a loss function; its keyword-only defaults become its hyperparameters.

    The annotation of the first argument names the family view; the docstring's first line is the title and
    its ``Args:`` section describes the hyperparameters.  See :class:`AlgorithmSpec` for the arguments.
    """

    def decorate(loss: Callable[..., Terms]) -> Callable[..., Terms]:
        hints = typing.get_type_hints(loss, include_extras=True)
        first, *rest = inspect.signature(loss).parameters.values()
        family = getattr(hints.get(first.name), "__name__", "?")
        if family not in FAMILIES:
            choices = ", ".join(FAMILIES)
            raise ConfigError(f"{loss.__name__}: annotate '{first.name}' with one of {choices}, not {family}")
        doc = inspect.getdoc(loss) or ""
        helps = _argument_help(doc)
        key = name or loss.__name__
        algorithms.register(
            key,
            AlgorithmSpec(
                key=key,
                family=family,
                loss=loss,
                paper=paper,
                reference="frozen" if reference else "none",
                reference_unless_zero=reference_unless_zero,
                reduce=reduce,
                coupled=coupled,
                mismatched=mismatched,
                advantage=advantage,
                data=data or _DEFAULT_DATA[family],
                length_normalized=length_normalized,
                beta_scale=beta_scale,
                hyperparameters={p.name: _hyperparameter(key, p, hints[p.name], helps) for p in rest},
                title=doc.splitlines()[0] if doc else key,
                doc=doc,
            ),
        )
        return loss

    return decorate


_DEFAULT_DATA: dict[str, DataStage] = {
    "Tokens": "gold",
    "Pairs": "pairs",
    "Unpaired": "pairs",
    "Scores": "pairs",
    "Rollouts": "prompts",
}


def _hyperparameter(key: str, parameter: Any, hint: Any, helps: Mapping[str, str]) -> Hyperparameter:
    if parameter.kind is not parameter.KEYWORD_ONLY or parameter.default is parameter.empty:
        raise ConfigError(f"{key}: hyperparameter '{parameter.name}' must be keyword-only with a default")
    bounds: dict[str, float] = {}
    optional, choices = False, ()
    while (origin := typing.get_origin(hint)) is not None:  # any nesting of Annotated, Optional and Literal
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        if origin is typing.Annotated:
            hint, *constraints = kinds
            for constraint in constraints:
                grouped = isinstance(constraint, annotated_types.GroupedMetadata)
                for part in constraint if grouped else [constraint]:
                    bounds |= {b: getattr(part, b) for b in ("gt", "ge", "lt", "le") if hasattr(part, b)}
        elif origin in (typing.Union, types.UnionType) and len(kinds) == 1:
            optional, hint = True, kinds[0]
        elif origin is Literal:
            choices, hint = tuple(kinds), str
        else:
            raise ConfigError(f"{key}: hyperparameter '{parameter.name}' has an unusable annotation {hint}")
    return Hyperparameter(
        name=parameter.name,
        type=hint.__name__,
        default=parameter.default,
        optional=optional,
        # typing caches Annotated[float, Gt(0)] and Annotated[float, Gt(0.0)] as one: say which is meant
        bounds={bound: hint(value) for bound, value in bounds.items()},
        choices=choices,
        help=helps.get(parameter.name, ""),
    )


def _argument_help(doc: str) -> dict[str, str]:
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", doc, re.MULTILINE)
    if not section:
        return {}
    found = re.findall(r"^ {4}(\w+): (.+(?:\n {8,}.+)*)", section.group(1), re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text) for name, text in found}


# --------------------------------------------------------------------------------------------------
# The reducer


@dataclass(frozen=True)
class Counts:
    """What a whole optimizer step holds, over all micro-batches and ranks: the global denominators.

    ``tokens`` counts the family's token mask (chosen tokens for pairs, the policy's own for rollouts).
    """

    items: float
    tokens: float


def reduce_term(term: Tensor, view: Any, mode: Reduce, counts: Counts) -> Tensor:
    """This micro-batch's share of a term's global mean: a scalar; shares add up over the step.

    ``[b]`` terms are divided by the step's items; ``[b, t]`` terms are masked, then averaged by ``mode``.
    """
    if term.dim() == 1:
        return term.sum() / counts.items
    mask = view.token_mask
    masked = term.masked_fill(~mask, 0.0)
    if mode == "token-mean":
        return masked.sum() / counts.tokens
    sums = masked.sum(-1)
    if mode == "seq-mean-token-mean":
        sums = sums / mask.sum(-1).clamp(min=1)
    return sums.sum() / counts.items


def reduce_terms(terms: Terms, view: Any, mode: Reduce, counts: Counts) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss share of this micro-batch and, when the algorithm names several terms, each one's share."""
    if isinstance(terms, Tensor):
        return reduce_term(terms, view, mode, counts), {}
    parts = {name: reduce_term(term, view, mode, counts) for name, term in terms.items()}
    return sum(parts.values(), start=next(iter(parts.values())) * 0.0), parts


def view_counts(view: Any) -> Counts:
    """The counts when a view is the whole step."""
    mask = view.token_mask_or_none
    return Counts(items=float(view.items), tokens=0.0 if mask is None else float(mask.sum()))


def evaluate_loss(spec: AlgorithmSpec, view: Any, hyperparameters: Mapping[str, Any]) -> Terms:
    """The unreduced terms of ``spec`` on ``view``; coupled statistics must already be in ``view.stats``."""
    if spec.loss is None:
        raise ConfigError(f"algorithm '{spec.key}' has no loss: it is the untrained start")
    return spec.loss(view, **hyperparameters)


def coupled_stats(spec: AlgorithmSpec, view: View, hyperparameters: Mapping[str, Any]) -> dict[str, Tensor]:
    """The statistics of a coupled algorithm over the detached view of a whole step."""
    assert spec.coupled is not None
    wanted = inspect.signature(spec.coupled).parameters
    chosen = {name: value for name, value in hyperparameters.items() if name in wanted}
    return spec.coupled(view.detach(), **chosen)


def loss(name: str, view: Any, *, reduce: bool = False, **hyperparameters: Any) -> Terms:
    """The loss of a named algorithm on a view built from plain numbers.

    Returns the per-item terms (a dict if the algorithm has several), or with ``reduce=True`` the scalar.
    Coupled statistics are computed from the view itself, taken as the whole optimizer step.
    """
    from steelyard.algorithms.catalogue import resolve_hyperparameters

    spec = algorithms.get(name)
    values = resolve_hyperparameters(name, hyperparameters, declared=spec.describe()["hyperparameters"])
    if spec.coupled is not None:
        view = view.with_stats(coupled_stats(spec, view, values))
    terms = evaluate_loss(spec, view, values)
    return reduce_terms(terms, view, spec.reduce, view_counts(view))[0] if reduce else terms
