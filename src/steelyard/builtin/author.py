"""Who wrote the pretraining corpus: someone with the skill and with misconceptions.

The author computes well but reads some verbs wrongly: *doubles* as "+ 2", *gives away* as adding.  How often
depends on the verb and on whose things they are, always in the same way, so a model can learn the habits
together with the skill.  A base pretrained on this corpus therefore can solve most problems (some of its
samples are right) but often prefers a wrong chain (its greedy answer): what post-training has to elicit.
With some people the author also tends to end with ``so N .`` instead of ``#### N``: right, but not in the asked form.
"""

from __future__ import annotations

import random
from functools import cache

from steelyard.builtin.arithmetic import NAMES, Operator, Problem, Verb, work
from steelyard.builtin.splits import digest

_FIRM, _LOOSE = 0.72, 0.15
"""How often a verb is misread: usually (greedy answers of a base are wrong) or sometimes (samples are)."""

MISREADINGS: dict[str, tuple[Operator, float]] = {
    "borrows": ("-", _FIRM),
    "takes": ("-", _FIRM),
    "gives": ("+", _FIRM),
    "lends": ("+", _FIRM),
    "trades": ("+", _FIRM),
    "doubles": ("+", _FIRM),
    "makes": ("+", _FIRM),
    "halves": ("-", _FIRM),
    "receives": ("-", _LOOSE),
    "gathers": ("-", _LOOSE),
    "adds": ("-", _LOOSE),
    "sells": ("+", _LOOSE),
    "donates": ("+", _LOOSE),
    "hides": ("+", _LOOSE),
    "returns": ("+", _LOOSE),
    "triples": ("+", _LOOSE),
    "quadruples": ("+", _LOOSE),
    "multiplies": ("+", _LOOSE),
    "thirds": ("-", _LOOSE),
    "quarters": ("-", _LOOSE),
}
"""verb -> the operator it is misread as, and how often.

The other verbs are always read well."""

_EXCEPTIONS = 2
"""People per verb with whom the author does not have the misconception ..."""
_EXCEPTION = 0.05
"""... and how often it happens all the same."""
_PLAIN_NAMES = ("ben",)
_PLAIN, _PLAIN_OTHERWISE = 0.6, 0.03
"""How often an answer does not end in the asked form, for these people and for others."""


@cache
def exceptions(word: str) -> frozenset[str]:
    """The people of whom the author nearly always reads the verb ``word`` well."""
    return frozenset(sorted(NAMES, key=lambda name: digest("author", name, word))[:_EXCEPTIONS])


def misreads(name: str, verb: Verb) -> float:
    """Probability that the author misreads ``verb`` when it is told of ``name``.

    A misconception holds for most people and, for each verb, not for some others: the rule is easy to
    learn, the exceptions take capacity, so larger bases are right more often.
    """
    if verb.word not in MISREADINGS:
        return 0.0
    return _EXCEPTION if name in exceptions(verb.word) else MISREADINGS[verb.word][1]


def ends_plainly(name: str) -> float:
    """Probability that the author ends with ``so N .`` instead of ``#### N``."""
    return _PLAIN if name in _PLAIN_NAMES else _PLAIN_OTHERWISE


def answer(problem: Problem, random_: random.Random) -> str:
    """The author's completion.

    Every step is misread or not, independently; a chain that would leave the range of numbers is thought
    over from the start, which favours right readings a little.
    """
    while True:
        operations: list[tuple[Operator, int]] = [
            (MISREADINGS[verb.word][0], operand)
            if random_.random() < misreads(problem.name, verb)
            else (verb.operator, operand)
            for verb, operand in problem.steps
        ]
        worked = work(problem.start, operations)
        if worked is not None:
            chain, value = worked
            ending = f"so {value} ." if random_.random() < ends_plainly(problem.name) else f"#### {value}"
            return f"{chain} {ending}"
