"""Algorithms: pure functions from a family view to unreduced loss terms.

This package's modules import torch; :mod:`steelyard.algorithms.catalogue` does not, so that configuration
and planning can read names and hyperparameters instantly.  :func:`load` imports the built-in families.
"""

from __future__ import annotations

from importlib import import_module

FAMILY_MODULES = (
    "supervised",
    "preference",
    "pointwise",
    "margins",
    "tokenwise",
    "coupled",
    "referencefree",
    "unpaired",
    "rewardmodel",
    "policy",
    "listwise",
    "distillation",
    "iterative",
)
"""Modules whose import registers the built-in algorithms."""


def load() -> None:
    """Register every built-in algorithm (idempotent)."""
    for module in FAMILY_MODULES:
        import_module(f"steelyard.algorithms.{module}")
