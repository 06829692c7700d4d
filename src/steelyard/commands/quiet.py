"""Keep other libraries' progress bars and advice out of our output."""

from __future__ import annotations


def quiet_libraries() -> None:
    """Only errors of transformers, and no bars while it loads weights."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
