"""Record what rliable 1.2.0 computes: run it in an environment of its own (``pip install rliable==1.2.0 'pandas<3'``).

    python tests/data/record_rliable.py > tests/data/rliable.json

Its dependency arch does not import with pandas 3, which the tests' environment has; hence numbers, not a dependency.
"""

import json

import numpy as np
from rliable import library, metrics

records = []
for seed, (runs, tasks) in enumerate([(3, 4), (5, 7), (10, 2), (4, 26)]):
    rng = np.random.default_rng(seed)
    a = np.round(rng.normal(0.7, 0.4, (runs, tasks)), 2)  # two decimals: some ties, some scores above one
    b = np.round(rng.normal(0.6, 0.4, (runs + 2, tasks)), 2)
    thresholds = np.linspace(0, 1.5, 7)
    profile = library.score_distributions(a, thresholds)
    np.random.seed(0)  # the bootstrap draws from numpy's global generator
    _, interval = library.get_interval_estimates(
        {"a": a}, lambda x: np.array([metrics.aggregate_iqm(x), metrics.aggregate_mean(x)]), reps=20_000
    )
    _, better = library.get_interval_estimates(
        {"a": [a, b]}, lambda x, y: np.array([metrics.probability_of_improvement(x, y)]), reps=20_000
    )
    records.append(
        {
            "a": a.tolist(),
            "b": b.tolist(),
            "thresholds": thresholds.tolist(),
            "iqm": float(metrics.aggregate_iqm(a)),
            "mean": float(metrics.aggregate_mean(a)),
            "median": float(metrics.aggregate_median(a)),
            "optimality gap": float(metrics.aggregate_optimality_gap(a)),
            "profile": profile.tolist(),
            "improvement": float(metrics.probability_of_improvement(a, b)),
            "interval": interval["a"].tolist(),
            "improvement interval": better["a"].tolist(),
        }
    )
print(json.dumps(records))
