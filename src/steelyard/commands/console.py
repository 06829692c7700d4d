"""Consoles for results: as wide as the terminal, and wide enough for a table where there is none."""

from __future__ import annotations

from rich.console import Console

WIDTH_WITHOUT_TERMINAL = 120
"""Columns of what goes to a file or a pipe."""


def wide_console() -> Console:
    """Stdout."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH_WITHOUT_TERMINAL)
