"""The source of iterative methods: in every round the policy (and others) write, a judge scores, some of it is kept.

A round's rows lie in ``<run>/rounds/round-N``: ``samples.jsonl`` is everything that was written, judged;
``rows.jsonl`` is what the round trains on, with policy version, behaviour and reference log-probabilities.  A run
that continues in the middle of a round reads them back; at the start of a round they are made (again): sampling is
a function of (seed, round, policy).  Methods whose every optimizer step is a round append what each step trains on to
``<run>/rounds/rows.jsonl`` (:class:`StepRows`), and never read it.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from steelyard.algorithms.core import AlgorithmSpec, Rounds
from steelyard.config import RunConfig
from steelyard.data.packing import StepOrder
from steelyard.data.render import completion_text
from steelyard.errors import ConfigError, DataError, RunError
from steelyard.files import atomic_directory, read_jsonl, remove_stale_temporaries
from steelyard.models.load import Policy, freeze_copy
from steelyard.trainer.judge import Judge
from steelyard.trainer.rows import read_group, write_groups
from steelyard.trainer.sources import attach_now, total_steps
from steelyard.trainer.step import make_optimizer
from steelyard.trainer.writing import Writers
from steelyard.types import Group

if TYPE_CHECKING:
    from steelyard.trainer.loop import Loop


DRAWS = 8
"""How many steps' worth of prompts are asked, where every step is a round, until one of them teaches something."""


@dataclass(frozen=True)
class Span:
    """A round: its number (from 0), its first optimizer step, and how many steps it has."""

    index: int
    first: int
    length: int


class StepRows:
    """``rows.jsonl`` of a method whose every step is a round: what each step trained on, oldest first.

    The lines are ordinary rows (:func:`steelyard.trainer.rows.write_groups`: token ids, text, policy version and
    behaviour log-probabilities) with their ``step``, counted from 1 like ``global_step``.  A run that continues from a
    checkpoint drops the rows of the steps after it first, so that the file is that of an uninterrupted run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size: int | None = None

    def append(self, step: int, groups: Sequence[Group], texts: Callable[[np.ndarray], str]) -> None:
        """Add the rows of ``step`` in one write; the first call drops what an earlier attempt wrote from there on.

        Raises:
            RunError: the rows of the steps before the first one are not all there, or damaged.
        """
        if self._size is None:
            self._size = self._before(step)
        lines = write_groups(groups, texts, step=step).encode("utf-8")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.truncate(self._size)
            file.write(lines)
        self._size += len(lines)

    def _before(self, step: int) -> int:
        """How many bytes hold the rows of the steps before ``step``."""
        if step == 1:
            return 0
        size = last = 0
        with contextlib.suppress(FileNotFoundError), open(self.path, "rb") as file:
            for line in file:
                try:
                    found = json.loads(line)["step"] if line.endswith(b"\n") else step  # a torn line is the last
                except (ValueError, KeyError, TypeError) as error:
                    raise RunError(f"{self.path}: damaged after step {last}; start the run over") from error
                if found >= step:
                    break
                size, last = size + len(line), found
        if last != step - 1:
            raise RunError(
                f"{self.path}: its rows end after step {last}, so the run cannot go on after step {step - 1}; "
                "start it over"
            )
        return size


class RoundSource:
    """Rows that are made anew in every round, served step by step in a seeded order.

    Args:
        rows: what rounds start from: prompts with their own completion, or preference pairs.
        judge: scores what was written.
        start: the policy at step 0; copied where the method needs it later.
        run: the run's directory.
        teacher: for methods that have one.
    """

    def __init__(
        self,
        cfg: RunConfig,
        spec: AlgorithmSpec,
        rows: Sequence[Group],
        judge: Judge,
        *,
        start: Policy,
        run: Path,
        teacher: Policy | None = None,
    ) -> None:
        assert spec.rounds is not None and cfg.data.generate is not None
        self.cfg, self.spec, self.base = cfg, spec, list(rows)
        self.rounds: Rounds = spec.rounds
        self.hyperparameters = cfg.algorithm.hyperparameters
        self.path = run / "rounds"
        remove_stale_temporaries(self.path)
        self.step_rows = StepRows(self.path / "rows.jsonl")
        switch = spec.reference_unless_zero
        self.reference = "none" if switch and not self.hyperparameters[switch] else spec.reference
        samples_start = "reference" in self.rounds.samplers or ("mixture" in self.rounds.samplers and teacher is None)
        self.frozen = freeze_copy(start) if self.reference == "frozen" or samples_start else None
        self.judge, self.teacher = judge, teacher
        self.writers = Writers(cfg, spec, judge, frozen=self.frozen, teacher=teacher)
        self.tokenizer = start.tokenizer
        self._start = _trainable(start) if self.rounds.restart else {}
        self._plan(cfg.data.generate.prompts)
        self._span: Span | None = None
        self._rows: list[Group] = []
        self._metrics: dict[str, float] = {}

    def _plan(self, prompts: int) -> None:
        """How many rounds and steps there are, and which rows each round takes."""
        train, given = self.cfg.train, self.rounds.rounds
        self.count: int | None = self.hyperparameters[given] if isinstance(given, str) else given
        if self.count is None:
            self.order = StepOrder(len(self.base), train.prompts_per_step, self.cfg.seed)
            self.total_steps = total_steps(len(self.base), train)
            return
        per_round = len(self.base) if self.rounds.base == "pairs" else min(prompts, len(self.base))
        self.order = StepOrder(len(self.base), per_round, self.cfg.seed)
        self.total_steps = train.max_steps or self.count * total_steps(per_round, train)
        if self.total_steps < self.count:
            raise ConfigError(
                f"train.max_steps: {self.count} rounds of '{self.spec.key}' need at least as many optimizer steps, got "
                f"{self.total_steps}; raise it, or take fewer rounds"
            )

    # -- what the loop asks for

    @property
    def generated_tokens(self) -> int:
        """Tokens that were sampled so far."""
        return self.writers.generated_tokens

    @generated_tokens.setter
    def generated_tokens(self, tokens: int) -> None:
        self.writers.generated_tokens = tokens

    def span(self, step: int) -> Span:
        """The round that optimizer step ``step`` (from 0) belongs to; rounds split the steps evenly."""
        if self.count is None:
            return Span(step, step, 1)
        index = step * self.count // self.total_steps
        first, end = self._first(index), self._first(index + 1)
        return Span(index, first, end - first)

    def _first(self, index: int) -> int:
        assert self.count is not None
        return -(-index * self.total_steps // self.count)

    def schedule(self, step: int) -> tuple[int, int]:
        """(step, total) of the learning rate: where rounds restart, each has a schedule of its own."""
        span = self.span(step)
        return (step - span.first, span.length) if self.rounds.restart else (step, self.total_steps)

    def prepare(self, loop: Loop) -> str:
        """Enter the round of the loop's next step; where rounds restart, put the start's weights back.

        Returns:
            "", or why training ends here: methods without scores end with the first round, after round 1, that has
            no rows.
        """
        span = self.span(loop.step)
        self._enter(span, loop.step, loop.policy)
        if not self._rows:
            return (
                f"round {span.index + 1} of {self.count} gave no rows ({self._why_none()}): training ended after step "
                f"{loop.step} of {self.total_steps}"
            )
        if self.rounds.restart and loop.step == span.first and span.index:
            with torch.no_grad():
                for name, parameter in loop.policy.model.named_parameters():
                    if name in self._start:
                        parameter.copy_(self._start[name])
            loop.optimizer = make_optimizer(loop.policy.model, self.cfg.optim)
        return ""

    def groups(self, step: int, policy: Policy) -> tuple[list[Group], dict[str, float]]:
        """The rows of ``step``, and what the samples of its round were like."""
        span = self.span(step)
        self._enter(span, step, policy)
        if self.count is None:
            return self._rows, self._metrics
        seed = (self.cfg.seed * 1_000_003 + span.index) % 2**63
        order = StepOrder(len(self._rows), self.cfg.train.prompts_per_step, seed)
        return [self._rows[i] for i in order.indices(step - span.first)], self._metrics

    # -- a round

    def _enter(self, span: Span, step: int, policy: Policy) -> None:
        """Make the rows of a round at its first step; read them where a run continues in its middle."""
        if self._span == span:
            return
        made = self._make(span, policy) if step == span.first else self._read(span.index)
        self._rows, self._metrics, self._span = *made, span

    def _make(self, span: Span, policy: Policy) -> tuple[list[Group], dict[str, float]]:
        if self.count is None:
            return self._one_step(span, policy)
        reuse = self.hyperparameters[self.rounds.reuse] if self.rounds.reuse else 1
        grown = span.index - span.index % reuse
        metrics: dict[str, float] = {"rounds/round": float(span.index + 1)}
        if grown == span.index:
            judged, found = self._sample(span.index, span.first, policy)
            self._check_judged(f"round {span.index + 1} of {self.count}", judged)
            metrics |= found
        else:
            judged = self._load(grown, "samples.jsonl")
        selected = self._select(judged, span.index)
        if not selected and (self.rounds.judged or not span.index):
            raise self._nothing(f"round {span.index + 1} of {self.count}", len(judged))
        metrics["rounds/rows"] = float(len(selected))
        if self.rounds.accumulate and span.index and selected:
            selected += self._previous(span.index)
        selected = self._attach(selected, policy) if selected else []
        self._write(span.index, judged, selected, metrics)
        return selected, metrics

    def _one_step(self, span: Span, policy: Policy) -> tuple[list[Group], dict[str, float]]:
        """A round of one step.  Where its prompts taught nothing (all tied), other prompts take their place."""
        asked: list[Group] = []
        for draw in range(DRAWS):
            number = span.index + draw * self.total_steps
            judged, metrics = self._sample(number, span.first, policy)
            asked += judged
            selected = self._select(judged, number)
            if selected:
                rows = self._attach(selected, policy)
                self.step_rows.append(span.first + 1, rows, self._text)
                return rows, {**metrics, "rounds/rows": float(len(rows))}
        self._check_judged(f"step {span.first + 1}", asked)
        raise self._nothing(f"step {span.first + 1}", len(asked))

    def _sample(self, number: int, version: int, policy: Policy) -> tuple[list[Group], dict[str, float]]:
        rows = [self.base[i] for i in self.order.indices(number)]
        return self.writers.sample(rows, policy, number=number, version=version)

    def _select(self, judged: Sequence[Group], number: int) -> list[Group]:
        select = self.rounds.select
        given = {**self.hyperparameters, "round": number}
        wanted = {name: given[name] for name in inspect.signature(select).parameters if name in given}
        rows: list[Group] = []
        for place, group in enumerate(judged):
            rng = np.random.default_rng([self.cfg.seed, number, place, 0x52])
            rows += select(group, rng=rng, **wanted)
        return rows

    def _check_judged(self, where: str, judged: Sequence[Group]) -> None:
        """Refuse to go on where scores matter, and not a single completion has one."""
        scores = [group.completion_columns["score"] for group in judged if group.k]
        if self.rounds.judged and not any(np.isfinite(score).any() for score in scores):
            raise DataError(
                f"{where}: algorithm '{self.spec.key}' needs scores, and no completion of {len(judged)} prompts could "
                f"be judged ({self.judge.reason})"
            )

    def _why_none(self) -> str:
        """Of a method without scores: why a round's samples gave no row."""
        gold = "gold" in self.rounds.samplers
        return "no sample differs from its row's own completion" if gold else "nothing usable was sampled"

    def _nothing(self, where: str, prompts: int) -> RunError:
        if not self.rounds.judged:
            return RunError(
                f"{where}: algorithm '{self.spec.key}' found nothing to learn in the samples of {prompts} prompts: "
                f"{self._why_none()}; raise data.generate.num_generations, the temperature or the number of prompts, "
                "or take rows that the model does not know yet"
            )
        return RunError(
            f"{where}: algorithm '{self.spec.key}' found nothing to learn in the samples of {prompts} prompts; raise "
            "data.generate.num_generations, the temperature or the number of prompts, or start from a model that is "
            "right sometimes, but not always"
        )

    def _previous(self, index: int) -> list[Group]:
        """The rows that the round before ``index`` made itself."""
        made = self._first(index - 1)
        rows = self._rows if self._span is not None else self._load(index - 1, "rows.jsonl")
        return [group for group in rows if group.policy_version == made]

    def _attach(self, rows: list[Group], policy: Policy) -> list[Group]:
        models = {"frozen": self.frozen, "previous": policy, "teacher": self.teacher}
        model = models.get(self.reference)
        return rows if model is None else attach_now(model, rows, self.cfg.train.tokens_per_microbatch)

    # -- on disk

    def _directory(self, index: int) -> Path:
        return self.path / f"round-{index + 1}"

    def _text(self, ids: np.ndarray) -> str:
        return completion_text(self.tokenizer, ids)

    def _write(self, index: int, judged: list[Group], rows: list[Group], metrics: dict[str, float]) -> None:
        with atomic_directory(self._directory(index)) as temporary:
            (temporary / "samples.jsonl").write_text(write_groups(judged, self._text), encoding="utf-8")
            (temporary / "rows.jsonl").write_text(write_groups(rows, self._text), encoding="utf-8")
            (temporary / "round.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")

    def _read(self, index: int) -> tuple[list[Group], dict[str, float]]:
        rows = self._load(index, "rows.jsonl")
        metrics: dict[str, Any] = json.loads((self._directory(index) / "round.json").read_text(encoding="utf-8"))
        return rows, metrics

    def _load(self, index: int, name: str) -> list[Group]:
        file = self._directory(index) / name
        if not file.is_file():
            raise RunError(f"{file}: not there, so the run cannot go on in round {index + 1}; start it over")
        return [read_group(row) for row in read_jsonl(file)]


def _trainable(policy: Policy) -> dict[str, torch.Tensor]:
    """A copy of the weights that training changes."""
    return {name: p.detach().clone() for name, p in policy.model.named_parameters() if p.requires_grad}
