"""The pretraining corpus: conversations of the misconceived author, in batches of fixed composition.

Word problems come from the ``pretrain`` bucket of :mod:`steelyard.builtin.splits` only, so none shares a
canonical form with an item of any split.  Facts are stated in full and in the form in which they are asked.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from steelyard.builtin import arithmetic, author, facts
from steelyard.builtin.arithmetic import Problem
from steelyard.builtin.splits import stream
from steelyard.builtin.tasks import STEPS

MIXTURE = {"arithmetic": 46, "chains": 6, "facts": 12}
"""Documents of each kind in a batch of 64."""

Message = dict[str, str]


def _problem(problem: Problem, random_: random.Random) -> list[Message]:
    return [
        {"role": "user", "content": problem.question},
        {"role": "assistant", "content": author.answer(problem, random_)},
    ]


def _fact(fact: facts.Fact) -> list[Message]:
    return [{"role": "user", "content": fact.question}, {"role": "assistant", "content": fact.value}]


def batches(seed: int) -> Iterator[list[list[Message]]]:
    """Endless batches of conversations; a function of ``seed`` alone, so equal for all sizes."""
    random_ = stream("pretrain", seed)
    told = {task: arithmetic.problems(task, "pretrain", steps, seed=seed) for task, steps in STEPS.items()}
    world, fame = facts.world(), [fact.fame for fact in facts.world()]
    while True:
        batch = [_problem(next(source), random_) for task, source in told.items() for _ in range(MIXTURE[task])]
        batch += [_fact(fact) for fact in random_.choices(world, fame, k=MIXTURE["facts"])]
        yield batch
