"""What a task is: rows to learn from, items to be measured on, a scorer, and a role.

A task of role ``unseen`` exists to be reported only.  Code that trains, tunes or selects must say so
through ``purpose``; asking an unseen task for anything but reporting raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from steelyard.errors import ConfigError
from steelyard.registry import Registry

Split = Literal["train", "selection", "test"]
Purpose = Literal["train", "select", "report"]


@dataclass(frozen=True, slots=True)
class Item:
    """One question.

    Attributes:
        id: stable within (task, version, split).
        prompt: the user's message.
        answer: the gold answer as text (``"42"``), or the gold choice's text.
        completion: the gold completion with its reasoning (generative tasks with training rows).
        choices: candidate completions (multiple choice), else empty.
        columns: anything else a reward or a report may want (``{"steps": 3}``).
    """

    id: str
    prompt: str
    answer: str
    completion: str = ""
    choices: tuple[str, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """Three-valued scoring of one completion: ``None`` means that it could not be judged (never zero)."""

    strict: bool | None
    """Right answer in the asked format."""
    flexible: bool | None
    """Right answer, wherever it stands."""


@dataclass(frozen=True)
class Task:
    """A named, versioned set of items with one scorer.

    Attributes:
        kind: ``generative`` (greedy decoding, then ``verify``) or ``choice`` (log-likelihood of choices).
        role: ``development`` may be trained and selected on; ``unseen`` is only reported.
        load: split -> items, deterministic, disjoint between splits.
        verify: (completion text, item) -> :class:`Verdict`; generative tasks only.
    """

    name: str
    version: str
    kind: Literal["generative", "choice"]
    role: Literal["development", "unseen"]
    load: Callable[[Split], Sequence[Item]]
    verify: Callable[[str, Item], Verdict] | None = None
    description: str = ""

    def items(self, split: Split, *, purpose: Purpose, limit: int | None = None) -> Sequence[Item]:
        """The items of ``split``; refuses training or selecting on an unseen task or on a test split."""
        if purpose != "report" and self.role == "unseen":
            raise ConfigError(f"task '{self.name}' is unseen: it may be reported, not used to {purpose}")
        if purpose != "report" and split == "test":
            raise ConfigError(f"task '{self.name}': the test split may be reported, not used to {purpose}")
        if purpose == "train" and split != "train":
            raise ConfigError(f"task '{self.name}': train on the train split, not on the {split} split")
        if purpose == "select" and split == "train":
            raise ConfigError(f"task '{self.name}': select on the selection split, not on training items")
        items = self.load(split)
        return items if limit is None else items[:limit]


tasks: Registry[Task] = Registry("task")
"""Every task by name; built-in ones register when :mod:`steelyard.evals.tasks` is imported."""
