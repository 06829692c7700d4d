"""The report of a study: one self-contained HTML file, ``results.json`` beside it, a table for the terminal."""

from __future__ import annotations

from pathlib import Path


def build(study_dir: str | Path) -> Path:
    """Write ``report.html`` and ``results.json`` into ``study_dir``; returns the page's path.

    Raises:
        StudyError: the evidence is degenerate, or there is none (:mod:`steelyard.stats.table`).
    """
    from steelyard.report.html import write  # matplotlib is imported only where something is drawn

    return write(study_dir)
