"""Keep other libraries' progress bars and advice out of our output."""

from __future__ import annotations

import warnings


def quiet_libraries() -> None:
    """Only errors of transformers, no bars while it loads weights, and a warning of our own in one line.

    Advice to programmers about coming versions of a library (``FutureWarning``) is nothing that a user of the
    command line can follow.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.formatwarning = lambda message, *_, **__: f"steelyard: warning: {message}\n"
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
