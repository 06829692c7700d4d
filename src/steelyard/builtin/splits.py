"""Splits by canonical form: where an item belongs is a function of what it asks, not of when it was drawn.

The canonical form of an item leaves out what does not change the work (names, objects, wording) and keeps
what does (operations, numbers).  Its digest decides the split, so two splits cannot share a canonical form
whatever the seeds are, and a generator only has to skip the items that belong elsewhere.
"""

from __future__ import annotations

import random
from hashlib import blake2b
from typing import Literal

Bucket = Literal["pretrain", "train", "selection", "test"]

_UPPER: tuple[tuple[Bucket, float], ...] = (
    ("pretrain", 0.6),
    ("train", 0.8),
    ("selection", 0.88),
    ("test", 1.0),
)
"""Cumulative shares of the canonical forms."""


def digest(*parts: object) -> int:
    """64 bits that depend on ``parts`` alone (``hash()`` of a string changes with every process)."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def fraction(*parts: object) -> float:
    """A number in [0, 1) that depends on ``parts`` alone."""
    return digest(*parts) / 2**64


def stream(*parts: object) -> random.Random:
    """A random generator that depends on ``parts`` alone."""
    return random.Random(digest(*parts))


def bucket(task: str, canonical: str) -> Bucket:
    """The one split in which the canonical form ``canonical`` of ``task`` may appear."""
    place = fraction("split", task, canonical)
    return next(name for name, upper in _UPPER if place < upper)
