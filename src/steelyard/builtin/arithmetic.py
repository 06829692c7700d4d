"""Word problems about a pile of things that grows and shrinks; the answer writes the chain out.

    tom has 5 apples . tom buys 3 more . tom doubles them . how many apples does tom have ?
    5 + 3 = 8 . 8 * 2 = 16 . #### 16

Every number, result and intermediate result lies in 0..:data:`LARGEST`, because the tokenizer has one
token per number.  Text is lower case with a space between any two tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from steelyard.builtin.splits import Bucket, bucket, stream

LARGEST = 199
"""The largest number that a problem or its chain contains."""

NAMES = ("tom", "anna", "sam", "lucy", "ben", "mia", "max", "eva", "leo", "ida", "jack", "rosa")
OBJECTS = ("apples", "books", "coins", "cards", "shells", "stamps", "pens", "rings", "nuts", "stones")

Operator = Literal["+", "-", "*", "/"]


@dataclass(frozen=True, slots=True)
class Verb:
    """One way to say an operation.

    Attributes:
        phrase: what stands after the name; ``{k}`` is the operand where the reader is told it.
        operator: what the phrase means.
        operands: from which the operand is drawn; one entry where the phrase implies it (doubles: 2).
    """

    phrase: str
    operator: Operator
    operands: range

    @property
    def word(self) -> str:
        """The verb itself, unique among :data:`VERBS`."""
        return self.phrase.split()[0]


_COUNTS = range(2, 21)
_GAINS = "buys finds wins picks earns gets collects receives gathers adds borrows takes"
_LOSSES = "loses sells drops uses lends breaks spends donates trades hides returns"
VERBS = (
    *(Verb(f"{word} {{k}} more", "+", _COUNTS) for word in _GAINS.split()),
    *(Verb(f"{word} {{k}}", "-", _COUNTS) for word in _LOSSES.split()),
    Verb("gives {k} away", "-", _COUNTS),
    Verb("throws {k} away", "-", _COUNTS),
    Verb("doubles them", "*", range(2, 3)),
    Verb("triples them", "*", range(3, 4)),
    Verb("quadruples them", "*", range(4, 5)),
    Verb("makes {k} times as many", "*", range(2, 7)),
    Verb("multiplies them by {k}", "*", range(2, 7)),
    Verb("halves them", "/", range(2, 3)),
    Verb("thirds them", "/", range(3, 4)),
    Verb("quarters them", "/", range(4, 5)),
)
_START = range(2, 51)
_FREQUENCY: dict[Operator, int] = {"+": 35, "-": 35, "*": 18, "/": 12}
_BY_OPERATOR = {operator: [verb for verb in VERBS if verb.operator == operator] for operator in _FREQUENCY}


@dataclass(frozen=True, slots=True)
class Problem:
    """One word problem.

    Attributes:
        name: who owns the things.
        thing: what is counted.
        start: how many there are at first.
        steps: (verb, operand) in the order told.
    """

    name: str
    thing: str
    start: int
    steps: tuple[tuple[Verb, int], ...]

    @property
    def canonical(self) -> str:
        """Numbers and operations without name, thing and wording: ``5 + 3 * 2``."""
        return " ".join([str(self.start), *(f"{verb.operator} {operand}" for verb, operand in self.steps)])

    @property
    def question(self) -> str:
        """The user's message."""
        told = "".join(f"{self.name} {verb.phrase.format(k=operand)} . " for verb, operand in self.steps)
        return f"{self.name} has {self.start} {self.thing} . {told}how many {self.thing} does {self.name} have ?"

    @property
    def operations(self) -> list[tuple[Operator, int]]:
        """What has to be done, in order."""
        return [(verb.operator, operand) for verb, operand in self.steps]


def apply(value: int, operator: Operator, operand: int) -> int:
    """One step of a chain; a division drops the remainder."""
    if operator == "+":
        return value + operand
    if operator == "-":
        return value - operand
    return value * operand if operator == "*" else value // operand


def work(start: int, operations: Sequence[tuple[Operator, int]]) -> tuple[str, int] | None:
    """The written chain (``5 + 3 = 8 . 8 * 2 = 16 .``) and its result; None if it leaves 0..LARGEST."""
    value, lines = start, []
    for operator, operand in operations:
        result = apply(value, operator, operand)
        if not 0 <= result <= LARGEST:
            return None
        lines.append(f"{value} {operator} {operand} = {result} .")
        value = result
    return " ".join(lines), value


def solution(problem: Problem) -> tuple[str, int]:
    """The right completion (chain and ``#### N``) and N."""
    worked = work(problem.start, problem.operations)
    assert worked is not None, f"{problem.canonical} leaves 0..{LARGEST}; draw() does not make such problems"
    chain, value = worked
    return f"{chain} #### {value}", value


def draw(random_: random.Random, steps: int) -> Problem:
    """A random problem of ``steps`` steps whose results stay in 1..LARGEST and whose divisions are exact."""
    name, thing, start = random_.choice(NAMES), random_.choice(OBJECTS), random_.choice(_START)
    value, told = start, []
    while len(told) < steps:
        operator = random_.choices(tuple(_FREQUENCY), tuple(_FREQUENCY.values()))[0]
        verb = random_.choice(_BY_OPERATOR[operator])
        operand = random_.choice(verb.operands)
        if verb.operator == "/" and value % operand:
            continue
        result = apply(value, verb.operator, operand)
        if 1 <= result <= LARGEST:
            told.append((verb, operand))
            value = result
    return Problem(name, thing, start, tuple(told))


def problems(task: str, split: Bucket, steps: tuple[int, ...], *, seed: int) -> Iterator[Problem]:
    """Endless problems of ``split``, the step counts taken in turn.

    Items to be measured on never repeat a canonical form; items to learn from never repeat a question
    (there are not many one-step sums, but they can be told of many people and things).
    Raises RuntimeError when a step count has nothing new left in ``split``.
    """
    random_ = stream(task, split, seed)
    measured = split in ("selection", "test")
    seen: set[str] = set()
    while True:
        for count in steps:
            for _ in range(10_000):
                problem = draw(random_, count)
                key = problem.canonical if measured else problem.question
                if key not in seen and bucket(task, problem.canonical) == split:
                    break
            else:
                raise RuntimeError(f"{task}/{split}: no new problem of {count} steps in 10000 draws")
            seen.add(key)
            yield problem
