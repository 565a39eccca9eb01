"""Keeps what libraries print off the user's terminal; what matters of it is said by us."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

_LOGGERS = ("transformers", "peft", "accelerate", "bitsandbytes", "torch", "datasets", "matplotlib")


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Libraries' warnings and log lines below errors are dropped while the block runs."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Old names of theirs that they call themselves, and advice for programmers.
            for category in (FutureWarning, UserWarning, DeprecationWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
