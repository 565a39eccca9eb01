"""How `glm4 serve` logs: one line per request on standard error, as text or as JSON."""

from __future__ import annotations

import json
import logging
import sys
import time

from glm4.errors import InvalidRequestError

_LEVELS = ("debug", "info", "warning", "error")


class JsonLines(logging.Formatter):
    """One JSON object per record: time, level, logger, message, request id, and the traceback of an error."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        request_id = getattr(record, "request_id", None)
        if request_id is not None:
            entry["request_id"] = request_id
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


class TextLines(logging.Formatter):
    """Time, level if it is not info, message, request id."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        level = "" if record.levelno == logging.INFO else f" {record.levelname}"
        request_id = getattr(record, "request_id", None)
        line = f"{time.strftime('%H:%M:%S', time.localtime(record.created))}{level} {record.getMessage()}"
        line += f" {request_id}" if request_id else ""
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def set_up_logging(form: str, level: str) -> None:
    """Send the server's log to standard error.

    Raises:
        InvalidRequestError: an unknown format or level.
    """
    if form not in ("text", "json"):
        raise InvalidRequestError(f"--log-format must be text or json, not {form!r}", param="log_format")
    if level not in _LEVELS:
        raise InvalidRequestError(f"--log-level must be one of {', '.join(_LEVELS)}, not {level!r}", param="log_level")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("uvicorn.error").setLevel("DEBUG" if level == "debug" else "WARNING")
    logging.getLogger("httpx").setLevel("WARNING")
