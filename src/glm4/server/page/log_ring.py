"""`LogRing`: the latest warnings and errors of a server, for its operator.

Messages are what the log has; of an exception only its type and its place are kept, as its text may quote a client.
Not covered: a message of ours that quotes another program (an upstream or MCP server) may have what that was sent.
"""

from __future__ import annotations

import logging
import traceback
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any

MAX_RECORDS = 200
_MAX_MESSAGE, _MAX_FRAMES = 1000, 6
_PACKAGE = Path(__file__).parents[2]


class LogRing(logging.Handler):
    """The latest records of WARNING and above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: deque[dict[str, Any]] = deque(maxlen=MAX_RECORDS)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit
            message = str(record.msg)
        message = message if len(message) <= _MAX_MESSAGE else message[: _MAX_MESSAGE - 1] + "…"
        raised = _exception(record.exc_info)
        self.records.append(
            {
                "time": record.created,
                "level": record.levelname,
                "logger": record.name,
                "message": f"{message}\n{raised}" if raised else message,
            }
        )


def _exception(
    info: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None] | None,
) -> str | None:
    """Its type and where it was raised, the innermost place first. Its text may have what a client sent."""
    if info is None or info[0] is None:
        return None
    frames = traceback.extract_tb(info[2])[-_MAX_FRAMES:]
    places = [f"{_short(frame.filename)}:{frame.lineno} in {frame.name}" for frame in reversed(frames)]
    return " ← ".join([info[0].__name__, *places])


def _short(filename: str) -> str:
    """A file of ours as from the package; of another one only the name."""
    path = Path(filename)
    return path.relative_to(_PACKAGE).as_posix() if path.is_relative_to(_PACKAGE) else path.name
