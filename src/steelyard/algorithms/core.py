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
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import annotated_types
import torch
from torch import Tensor

from steelyard.errors import ConfigError, DataError, unknown
from steelyard.registry import Registry
from steelyard.types import FAMILIES, Distill, View

Terms = Tensor | dict[str, Tensor]
Reduce = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"]
Reference = Literal["none", "frozen", "moving", "previous", "teacher"]
"""Whose log-probabilities ``view.ref`` holds: the policy at step 0 (``frozen``), a copy that follows the policy
(``moving``), the policy at the start of the round (``previous``), or another model (``teacher``)."""
Head = Literal["lm", "score", "token_score", "token_labels"]
"""What the model puts out: token log-probabilities; one score per completion; one score, or two label logits, per
token."""
DataStage = Literal["gold", "correct", "pairs", "step_pairs", "ranked", "judged", "steps", "prompts", "rounds", "none"]
"""What an algorithm learns from on a task: gold completions; its own samples, verified and selected once (``correct``
ones, ``pairs`` of right and wrong ones, ``step_pairs`` of their first different steps, ``ranked`` lists, ``judged``
completions with a label, completions with labels at their ``steps``); its own samples, anew in every round
(``rounds``, see :class:`Rounds`); prompts that it samples from online; or nothing (the untrained baseline)."""
Extra = Literal["entropy", "log_sum_p2", "ref_kl"]
"""Quantities of the forward pass beside log-probabilities, ``[b, t]``: the entropy, log sum p^2, and
KL(reference || policy) over the whole vocabulary."""


@dataclass(frozen=True)
class Rounds:
    """How an iterative method makes its rows, again and again, with the policy as it then is.

    In every round ``samplers`` complete prompts, the completions are judged, and ``select`` turns each prompt's
    group into training rows.  ``select(group, *, rng, ...)`` is pure: the group's completions carry the columns
    ``score`` (what the judge says), ``verdict`` (1 right, 0 wrong, -1 not judged), ``finished`` and ``origin``
    (index into ``samplers``), and the token column ``behaviour`` (log-probabilities of whoever wrote them, NaN for
    ``gold``); hyperparameters, and ``round`` (from 0), are passed by name.  Returns any number of groups of the
    family.

    Attributes:
        select: judged group -> training groups.
        samplers: who completes the prompts: ``policy``, ``reference`` (the policy at step 0), ``teacher``,
            ``mixture`` (of policy and teacher, or of policy and reference), ``greedy`` (the policy's most likely
            tokens), ``hinted`` (the same after the prompt with its answer, where nothing else was right), or
            ``gold`` for the row's own completions.
        rounds: the hyperparameter that says how many rounds there are, or their number; None: every optimizer step
            is one.
        restart: every round trains from the start's weights again.
        accumulate: the rows of the previous round stay for one more.
        base: what a row gives a round: a prompt (with its gold completion), or a preference pair.
        judged: False: selection does not look at scores, so rows need no answers.
        count: completions per sampler; None: ``data.generate.num_generations``.
        reuse: the hyperparameter that says how many rounds select from the same samples.
        mixture: the hyperparameter that says the other model's share in a ``mixture``.
    """

    select: Callable[..., Any]
    samplers: tuple[str, ...] = ("policy",)
    rounds: str | int | None = "rounds"
    restart: bool = False
    accumulate: bool = False
    base: Literal["prompts", "pairs"] = "prompts"
    judged: bool = True
    count: int | None = None
    reuse: str | None = None
    mixture: str | None = None


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
        paper: arXiv id (or a citation with its year) of the definition.
        reference: whose log-probabilities the view carries as ``ref`` (see :data:`Reference`).
        reference_unless_zero: a hyperparameter that, at zero, makes the reference unnecessary.
        reduce: how ``[b, t]`` terms are averaged (``algorithms.md`` 3.10).
        coupled: a function (detached view of the whole step, hyperparameters by name, and if it asks for them
            ``state`` and ``generator``) -> named statistics, computed in a first pass and handed to the loss as
            ``view.stats``; tensors ``[b, ...]`` are handed out item by item.  A `Distill` view comes to it without
            the distributions (a whole step of them is too large), with the token values only.
        state: makes the running state (named tensors) at step 0; ``coupled`` reads it, and those of its
            statistics that bear the same names are the next state.
        columns: numbers that every row must carry besides its texts, as ``view.columns[name]`` ``[b]``.
        optional_columns: numbers that the rows may carry, all of them or none; ``view.columns`` has them then.
        ordered: (higher, lower): two of ``columns``, the first of which must exceed the second in every row.
        extras: further quantities of the forward pass (see :data:`Extra`), as ``sequences.extra(name)``.
        head: what the model puts out (see :data:`Head`).
        costs: what the head puts out is a cost: less is better.
        mismatched: each prompt is also scored with another row's completion (KTO's z0).
        advantage: name of the advantage estimator (online methods).
        teacher: another model takes part, named by the recipe's ``teacher`` section.
        moving: of a moving reference, the hyperparameters (share of the policy, steps between updates).
        noise: the hyperparameter that scales uniform noise on the embeddings in training (NEFTune).
        whole_text: prompts are trained on as well.
        data: the stage that makes its rows (see :data:`DataStage`).
        rounds: how an iterative method makes its rows.
        length_normalized: repeating every token twice leaves the loss unchanged.
        beta_scale: whether ``beta`` multiplies summed or averaged log-probabilities.
        provisional: what must be checked in the paper before fidelity is claimed; "" if nothing.
    """

    key: str
    family: str
    loss: Callable[..., Terms] | None
    paper: str
    reference: Reference = "none"
    reference_unless_zero: str | None = None
    reduce: Reduce = "token-mean"
    coupled: Callable[..., dict[str, Tensor]] | None = None
    state: Callable[[], dict[str, Tensor]] | None = None
    columns: tuple[str, ...] = ()
    optional_columns: tuple[str, ...] = ()
    ordered: tuple[str, str] | None = None
    extras: tuple[Extra, ...] = ()
    head: Head = "lm"
    costs: bool = False
    mismatched: bool = False
    advantage: str | None = None
    teacher: bool = False
    moving: tuple[str, str] | None = None
    noise: str | None = None
    whole_text: bool = False
    data: DataStage = "gold"
    rounds: Rounds | None = None
    length_normalized: bool = False
    beta_scale: Literal["sum", "avg", "none"] = "none"
    provisional: str = ""
    hyperparameters: Mapping[str, Hyperparameter] = field(default_factory=dict)
    title: str = ""
    doc: str = ""

    @property
    def online(self) -> bool:
        """Groups are sampled from the policy during training."""
        return self.data == "prompts"

    @property
    def random(self) -> bool:
        """The loss draws random numbers: its ``coupled`` function asks for a ``generator``."""
        return self.coupled is not None and "generator" in inspect.signature(self.coupled).parameters

    @staticmethod
    def _describe_rounds(rounds: Rounds) -> dict[str, Any]:
        return {
            "select": rounds.select.__name__,
            "samplers": list(rounds.samplers),
            "rounds": rounds.rounds,
            "restart": rounds.restart,
            "accumulate": rounds.accumulate,
            "base": rounds.base,
            "judged": rounds.judged,
            "count": rounds.count,
            "reuse": rounds.reuse,
            "mixture": rounds.mixture,
        }

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
            "state": self.state is not None,
            "columns": list(self.columns),
            "optional_columns": list(self.optional_columns),
            "ordered": None if self.ordered is None else list(self.ordered),
            "extras": list(self.extras),
            "head": self.head,
            "costs": self.costs,
            "mismatched": self.mismatched,
            "advantage": self.advantage,
            "teacher": self.teacher,
            "moving": self.moving is not None,
            "noise": self.noise is not None,
            "whole_text": self.whole_text,
            "data": self.data,
            "rounds": None if self.rounds is None else self._describe_rounds(self.rounds),
            "random": self.random,
            "online": self.online,
            "length_normalized": self.length_normalized,
            "beta_scale": self.beta_scale,
            "provisional": self.provisional,
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
    reference: bool | Reference = False,
    reference_unless_zero: str | None = None,
    reduce: Reduce = "token-mean",
    coupled: Callable[..., dict[str, Tensor]] | None = None,
    state: Callable[[], dict[str, Tensor]] | None = None,
    columns: tuple[str, ...] = (),
    optional_columns: tuple[str, ...] = (),
    ordered: tuple[str, str] | None = None,
    extras: tuple[Extra, ...] = (),
    head: Head | None = None,
    costs: bool = False,
    mismatched: bool = False,
    advantage: str | None = None,
    teacher: bool = False,
    moving: tuple[str, str] | None = None,
    noise: str | None = None,
    whole_text: bool = False,
    data: DataStage | None = None,
    rounds: Rounds | None = None,
    length_normalized: bool = False,
    beta_scale: Literal["sum", "avg", "none"] = "none",
    provisional: str = "",
    name: str | None = None,
) -> Callable[[Callable[..., Terms]], Callable[..., Terms]]:
    """Register a loss function; its keyword-only defaults become its hyperparameters.

    The annotation of the first argument names the family view.  The docstring's first line is the title; its
    ``Args:`` section describes the hyperparameters; paragraphs that begin with ``Watch:`` and ``Differs:`` say
    what to look out for and where peers or the paper differ.  See :class:`AlgorithmSpec` for the arguments
    (``reference=True`` means ``frozen``).
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
        if state is not None and coupled is None:
            raise ConfigError(f"{key}: a running state needs a `coupled` function that updates it")
        if twice := sorted({*columns} & {*optional_columns}):
            raise ConfigError(f"{key}: the column '{twice[0]}' is declared as needed and as optional")
        if undeclared := [column for column in ordered or () if column not in columns]:
            raise ConfigError(f"{key}: `ordered` names '{undeclared[0]}', which is not among its `columns`")
        kind: Reference = reference if not isinstance(reference, bool) else "frozen" if reference else "none"
        algorithms.register(
            key,
            AlgorithmSpec(
                key=key,
                family=family,
                loss=loss,
                paper=paper,
                reference=kind,
                reference_unless_zero=reference_unless_zero,
                reduce=reduce,
                coupled=coupled,
                state=state,
                columns=columns,
                optional_columns=optional_columns,
                ordered=ordered,
                extras=extras,
                head=head or _DEFAULT_HEAD.get(family, "lm"),
                costs=costs,
                mismatched=mismatched,
                advantage=advantage,
                teacher=teacher or kind == "teacher" or family == "Distill",
                moving=moving,
                noise=noise,
                whole_text=whole_text,
                data=data or ("rounds" if rounds else _DEFAULT_DATA[family]),
                rounds=rounds,
                length_normalized=length_normalized,
                beta_scale=beta_scale,
                provisional=provisional,
                hyperparameters={p.name: _hyperparameter(key, p, hints[p.name], helps) for p in rest},
                title=doc.splitlines()[0] if doc else key,
                doc=doc,
            ),
        )
        return loss

    return decorate


_DEFAULT_HEAD: dict[str, Head] = {"Scores": "score", "TokenScores": "token_score"}
_DEFAULT_DATA: dict[str, DataStage] = {
    "Tokens": "gold",
    "Pairs": "pairs",
    "Unpaired": "pairs",
    "Ranked": "ranked",
    "Scores": "pairs",
    "TokenScores": "judged",
    "Distill": "gold",
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
    """The loss share of this micro-batch and, when the algorithm names several terms, each one's share.

    Raises:
        DataError: a term is neither ``[b]`` nor ``[b, t]``, for instance because the loss averages by itself.
    """
    for name, term in terms.items() if isinstance(terms, dict) else [("loss", terms)]:
        mask = view.token_mask_or_none
        if tuple(term.shape) not in ((view.items,), None if mask is None else tuple(mask.shape)):
            raise DataError(
                f"the term '{name}' has the shape {list(term.shape)} for {view.items} items: a loss returns one value "
                "per item, or per token, and leaves averaging to the trainer"
            )
    if isinstance(terms, Tensor):
        return reduce_term(terms, view, mode, counts), {}
    parts = {name: reduce_term(term, view, mode, counts) for name, term in terms.items()}
    return sum(parts.values(), start=next(iter(parts.values())) * 0.0), parts


def view_counts(view: Any) -> Counts:
    """The counts when a view is the whole step."""
    mask = view.token_mask_or_none
    return Counts(items=float(view.items), tokens=0.0 if mask is None else float(mask.sum()))


def check_family(spec: AlgorithmSpec, view: Any) -> None:
    """Raise :class:`DataError` when ``view`` is not of the algorithm's family."""
    if type(view).__name__ != spec.family:
        raise DataError(f"algorithm '{spec.key}' takes a view of type {spec.family}, not {type(view).__name__}")


def evaluate_loss(spec: AlgorithmSpec, view: Any, hyperparameters: Mapping[str, Any]) -> Terms:
    """The unreduced terms of ``spec`` on ``view``; coupled statistics must already be in ``view.stats``."""
    if spec.loss is None:
        raise ConfigError(f"algorithm '{spec.key}' has no loss: it is the untrained start")
    check_family(spec, view)
    return spec.loss(view, **hyperparameters)


def coupled_stats(
    spec: AlgorithmSpec,
    view: View,
    hyperparameters: Mapping[str, Any],
    *,
    state: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """The statistics of a coupled algorithm over the detached view of a whole step (see :class:`AlgorithmSpec`)."""
    assert spec.coupled is not None
    wanted = inspect.signature(spec.coupled).parameters
    given = {"state": initial_state(spec) if state is None else state, "generator": generator, **hyperparameters}
    return spec.coupled(without_distributions(view), **{name: value for name, value in given.items() if name in wanted})


def without_distributions(view: View) -> View:
    """What a coupled function sees: the detached view, and of a `Distill` view the token values only."""
    if isinstance(view, Distill):
        # new tensors: a slice would keep the whole distributions alive
        empty = view.logp.new_zeros(*view.logp.shape, 0)
        view = replace(view, student=empty, teacher=empty)
    return view.detach()


def initial_state(spec: AlgorithmSpec) -> dict[str, Tensor]:
    """The running state at step 0; empty when the algorithm has none."""
    return {} if spec.state is None else spec.state()


def next_state(state: Mapping[str, Tensor], stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The running state after a step with these coupled statistics."""
    return {name: stats[name].detach() for name in state}


def items_of(stats: Mapping[str, Tensor], start: int, count: int) -> dict[str, Tensor]:
    """The statistics that a micro-batch gets: scalars as they are, of ``[b, ...]`` the rows of its items."""
    return {name: value[start : start + count] if value.dim() else value for name, value in stats.items()}


def loss(
    name: str,
    view: Any,
    *,
    state: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
    reduce: bool = False,
    return_state: bool = False,
    progress: float = 0.0,
    **hyperparameters: Any,
) -> Any:
    """The loss of a named algorithm on a view built from plain numbers.

    Returns the per-item terms (a dict if the algorithm has several), or with ``reduce=True`` the scalar.
    Coupled statistics are computed from the view itself, taken as the whole optimizer step.

    Args:
        state: the running state before this step; default: that of step 0.
        generator: for algorithms that draw random numbers; default: one seeded with 0.
        return_state: also return the running state after this step.
        progress: share of the training that is over, for schedules.
    """
    from steelyard.algorithms.catalogue import resolve_hyperparameters

    spec = algorithms.get(name)
    values = resolve_hyperparameters(name, hyperparameters, declared=spec.describe()["hyperparameters"])
    given = {name: torch.as_tensor(value) for name, value in (state or {}).items()}
    state = initial_state(spec)
    if given.keys() - state.keys():
        raise ConfigError(unknown("running state", sorted(given.keys() - state.keys())[0], state, where=name))
    state |= given
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    stats = {"progress": torch.tensor(progress)}
    view = view.with_stats(stats)
    if spec.coupled is not None:
        check_family(spec, view)
        stats |= coupled_stats(spec, view, values, state=state, generator=generator)
        view = view.with_stats(stats)
    terms = evaluate_loss(spec, view, values)
    result = reduce_terms(terms, view, spec.reduce, view_counts(view))[0] if reduce else terms
    return (result, next_state(state, stats)) if return_state else result
