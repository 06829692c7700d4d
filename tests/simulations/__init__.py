"""Simulated studies: how often do intervals cover, and how often do tests claim what is not there?

``cd tests && python -m simulations`` runs everything and writes the tables into ``docs/statistics.md`` and
``src/steelyard/stats/coverage.py``; ``test_stats_simulations.py`` (slow) repeats it and compares.
"""
