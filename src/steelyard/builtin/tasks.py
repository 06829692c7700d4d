"""The built-in tasks: arithmetic (development), chains (transfer) and facts (forgetting).

A task's version names its generator: numbers of different versions must not be compared.
"""

from __future__ import annotations

from functools import cache

from steelyard.builtin import arithmetic, facts
from steelyard.evals.task import Item, Split, Task, Verdict, tasks

SIZES: dict[str, dict[Split, int]] = {
    "arithmetic": {"train": 4000, "selection": 300, "test": 500},
    "chains": {"train": 0, "selection": 300, "test": 500},
    "facts": {"train": 0, "selection": 200, "test": 376},
}
"""Items per split.  An unseen task has nothing to train on."""

STEPS = {"arithmetic": (1, 2, 3, 4), "chains": (5, 6)}
"""Steps per problem; a task's items take them in turn, so that any prefix of a split is balanced."""

_SEED = 1


def _word_problems(task: str, split: Split) -> tuple[Item, ...]:
    source = arithmetic.problems(task, split, STEPS[task], seed=_SEED)
    items = []
    for number in range(SIZES[task][split]):
        problem = next(source)
        completion, value = arithmetic.solution(problem)
        columns = {"steps": len(problem.steps), "canonical": problem.canonical, "name": problem.name}
        items.append(Item(f"{task}/{split}/{number}", problem.question, str(value), completion, columns=columns))
    return tuple(items)


@cache
def _arithmetic(split: Split) -> tuple[Item, ...]:
    return _word_problems("arithmetic", split)


@cache
def _chains(split: Split) -> tuple[Item, ...]:
    return _word_problems("chains", split)


@cache
def _facts(split: Split) -> tuple[Item, ...]:
    first = {"train": 0, "selection": 0, "test": SIZES["facts"]["selection"]}[split]
    chosen = facts.world()[first : first + SIZES["facts"][split]]
    return tuple(
        Item(
            f"facts/{split}/{number}",
            fact.question,
            fact.value,
            choices=fact.choices,
            columns={"attribute": fact.attribute, "canonical": fact.canonical},
        )
        for number, fact in enumerate(chosen)
    )


def _verify(text: str, item: Item) -> Verdict:
    # Imported when the first completion is judged: listing tasks needs no rewards.
    from steelyard.rewards.verifiers import verify_number

    return verify_number(text, item.answer)


ARITHMETIC = tasks.register(
    "arithmetic",
    Task(
        name="arithmetic",
        version="1",
        kind="generative",
        role="development",
        load=_arithmetic,
        verify=_verify,
        description="word problems of 1-4 steps, the chain written out and '#### N' at the end",
    ),
)
CHAINS = tasks.register(
    "chains",
    Task(
        name="chains",
        version="1",
        kind="generative",
        role="unseen",
        load=_chains,
        verify=_verify,
        description="the same word problems with 5-6 steps: does what was learned carry over?",
    ),
)
FACTS = tasks.register(
    "facts",
    Task(
        name="facts",
        version="1",
        kind="choice",
        role="unseen",
        load=_facts,
        description="multiple choice about an invented world of the pretraining corpus: was it forgotten?",
    ),
)
