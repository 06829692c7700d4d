"""Populations of binary outcomes with the variances of real runs.

An outcome of arm a, seed s, item i is right when ``mu + seed + item + noise > 0``, all normal with total variance one.
The shares of variance are chosen so that mean and variance components of the *outcomes* are the measured ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import optimize, special, stats


@dataclass(frozen=True)
class Population:
    """Where simulated studies are drawn from.

    Attributes:
        mean: share of right answers.
        seed, item: variance components of an arm's outcomes.
        seed_apart, item_apart: the same of the difference between two arms (with the same seeds).
        source: where the numbers come from.
    """

    name: str
    mean: float
    seed: float
    item: float
    seed_apart: float
    item_apart: float
    source: str

    def threshold(self, shift: float = 0.0) -> float:
        """Latent mean of an arm whose share of right answers is ``mean + shift``."""
        return float(stats.norm.ppf(self.mean + shift))

    @cached_property
    def shares(self) -> tuple[float, float, float, float]:
        """Latent variance of seed and item, and the part of each that arms have in common."""
        seed, item = self._correlation(self.seed), self._correlation(self.item)
        common_seed = self._correlation(max(0.0, self.seed - self.seed_apart / 2))
        common_item = self._correlation(max(0.0, self.item - self.item_apart / 2))
        return seed, item, common_seed, common_item

    def _correlation(self, covariance: float) -> float:
        mu = self.threshold()

        def excess(rho: float) -> float:
            both = stats.multivariate_normal.cdf([mu, mu], cov=[[1, rho], [rho, 1]], allow_singular=True)
            return float(both) - self.mean**2 - covariance

        if covariance <= 0:
            return 0.0
        root = optimize.brentq(excess, 0.0, 0.99999, xtol=1e-9, full_output=False)
        assert isinstance(root, float)
        return root


QUICK = "the study `quick`, 3 seeds x 250 items, averaged over its nine methods"
POPULATIONS = (
    Population("facts 0.1m", 0.800, 0.0, 0.1574, 0.0, 0.0005, QUICK),
    Population("arithmetic 0.1m", 0.824, 0.00051, 0.1038, 0.00054, 0.0260, QUICK),
    Population("chains 0.1m", 0.547, 0.00267, 0.1694, 0.00347, 0.0300, QUICK),
    Population(
        "GSM8K matrix",
        0.379,
        0.00051,
        0.148,
        0.00054,
        0.122,
        "mean and covariance between the four systems of the GSM8K item matrix (one run each); seeds as in arithmetic, "
        "a cell's own variance as in chains",
    ),
)


@dataclass(frozen=True)
class Draw:
    """Simulated studies: three arms ``[studies, seeds, items]`` and the latent effects behind them.

    ``a`` and ``b`` have the same seeds, ``c`` has its own; all have the same items.  ``b`` and ``c`` are worse by
    the shift.  ``*_items`` are the arms' expectations over seeds for the drawn items, ``*_seeds`` over items for the
    drawn seeds (``[studies]``).
    """

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    a_items: np.ndarray
    b_items: np.ndarray
    c_items: np.ndarray
    a_seeds: np.ndarray
    b_seeds: np.ndarray
    a_model: np.ndarray


def draw(
    population: Population, studies: int, seeds: int, items: int, shift: float, rng: np.random.Generator
) -> Iterator[Draw]:
    """Studies in blocks that fit in memory."""
    seed, item, common_seed, common_item = population.shares
    block = max(1, min(studies, 4_000_000 // (seeds * items)))
    for start in range(0, studies, block):
        k = min(block, studies - start)

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, dtype=np.float32)

        def effects(own: float, common: float, shared: np.ndarray) -> np.ndarray:
            return np.sqrt(common) * shared + np.sqrt(max(0.0, own - common)) * normal(*shared.shape)

        shared_seed, shared_item = normal(k, seeds, 1), normal(k, 1, items)
        found = {}
        for arm, lower in (("a", 0.0), ("b", shift), ("c", shift)):
            u = effects(seed, common_seed, shared_seed if arm != "c" else normal(k, seeds, 1)).astype(np.float32)
            v = effects(item, common_item, shared_item).astype(np.float32)
            mu = population.threshold(-lower)
            noise = np.float32(np.sqrt(1 - seed - item)) * normal(k, seeds, items)
            found[arm] = (noise + u + (v + np.float32(mu)) > 0).astype(np.float32)
            found[f"{arm}_items"] = special.ndtr((mu + v[:, 0]) / np.sqrt(1 - item)).mean(axis=1)
            by_seed = special.ndtr((mu + u[:, :, 0]) / np.sqrt(1 - seed))
            found[f"{arm}_seeds"] = by_seed.mean(axis=1)
            if arm == "a":
                found["a_model"] = by_seed[:, 0]
        del found["c_seeds"]
        yield Draw(**found)
