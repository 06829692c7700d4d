"""Statistics on run directories: what is known, what is not resolved, what the design could have found.

Reads files only and imports no torch.  :func:`steelyard.stats.table.load_study` makes the tidy table,
:func:`steelyard.stats.analyse.analyse` every comparison on it; the estimators beneath take plain numbers.
"""
