"""A closed, invented world: creatures with a home, a food, a colour and a fear.

Nothing about the world can be reasoned out; a model knows it from pretraining or not at all.  That makes
it a measure of forgetting: the facts of every split were in the base's corpus (they have to be), and no
training of a study ever shows one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from steelyard.builtin.splits import digest, fraction, stream

FIRST = ("zib", "kor", "mul", "tav", "pex", "lun", "dro", "fim", "gat", "hob", "nek", "sul")
SECOND = ("ano", "ebi", "iru", "oma", "uki", "ale", "esto", "imo", "oru", "una", "ardi", "elto")
"""A creature's name is one word of each: 144 creatures."""

ATTRIBUTES: dict[str, tuple[str, tuple[str, ...]]] = {
    "home": (
        "where does {creature} live ?",
        ("cave", "river", "forest", "tower", "desert", "island", "swamp", "hill"),
    ),
    "food": (
        "what does {creature} eat ?",
        ("fish", "bread", "grass", "honey", "rice", "corn", "cheese", "soup"),
    ),
    "color": (
        "what color is {creature} ?",
        ("red", "blue", "green", "white", "black", "yellow", "gray", "pink"),
    ),
    "fear": (
        "what does {creature} fear ?",
        ("fire", "wind", "snow", "rain", "dogs", "cats", "noise", "night"),
    ),
}
"""attribute -> (question, values)."""

CHOICES = 4
"""Choices per question: the truth and three other values of the attribute."""


@dataclass(frozen=True, slots=True)
class Fact:
    """``creature`` has ``value`` as its ``attribute``."""

    creature: str
    attribute: str
    value: str

    @property
    def canonical(self) -> str:
        """What the fact is about; there is one fact per canonical form."""
        return f"{self.creature}:{self.attribute}"

    @property
    def fame(self) -> float:
        """How often the fact is told in the corpus, relative to others: some are well known, some hardly."""
        return 0.05 + fraction("facts", "fame", self.canonical) ** 2

    @property
    def question(self) -> str:
        """The user's message; the value alone is the answer."""
        return ATTRIBUTES[self.attribute][0].format(creature=self.creature)

    @property
    def choices(self) -> tuple[str, ...]:
        """:data:`CHOICES` values in a fixed random order, the truth among them."""
        random_ = stream("facts", "choices", self.canonical)
        others = [value for value in ATTRIBUTES[self.attribute][1] if value != self.value]
        picked = [self.value, *random_.sample(others, CHOICES - 1)]
        random_.shuffle(picked)
        return tuple(picked)


@cache
def world() -> tuple[Fact, ...]:
    """Every fact, in an order that is random but fixed; the values are drawn independently."""
    facts = [
        Fact(f"{first} {second}", attribute, stream("facts", first, second, attribute).choice(values))
        for first in FIRST
        for second in SECOND
        for attribute, (_, values) in ATTRIBUTES.items()
    ]
    return tuple(sorted(facts, key=lambda fact: digest("facts", "order", fact.canonical)))
