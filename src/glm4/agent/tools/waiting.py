"""Blocking work of tools on threads that nobody has to wait for, so that a call returns when it has to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from glm4.agent.tool import ToolContext
from glm4.errors import Glm4Error

_LOOK_SECONDS = 0.1
_MARGIN_SECONDS = 1.0
_MAX_PROBLEM = 500

_T = TypeVar("_T")


class Job(Generic[_T]):
    """A call on a thread of its own: it may block where nothing interrupts it, within limits of its own.

    Attributes:
        result: None until it is done, and if it failed.
        error: what it raised.
        done: set at its end.
    """

    def __init__(self, function: Callable[[], _T]) -> None:
        self.result: _T | None = None
        self.error: Exception | None = None
        self.done = threading.Event()
        self._function = function
        threading.Thread(target=self._call, name="glm4-tool-job", daemon=True).start()

    def problem(self) -> str:
        """Why there is no result, for the model: without a full stop."""
        if isinstance(self.error, Glm4Error):
            return " ".join(str(self.error).split())[:_MAX_PROBLEM].rstrip(".")
        if self.error is not None:
            return f"an internal error ({type(self.error).__name__})"
        return "it did not arrive in time"

    def _call(self) -> None:
        try:
            self.result = self._function()
        except Exception as error:  # for `problem`
            self.error = error
        finally:
            self.done.set()


def wait_for(jobs: Sequence[Job[Any]], context: ToolContext) -> None:
    """Until all are done, or the call has to return: shortly before its deadline, or when it is cancelled."""
    end = context.deadline - _MARGIN_SECONDS
    for job in jobs:
        while not job.done.wait(min(_LOOK_SECONDS, max(0.0, end - time.monotonic()))):
            if context.cancelled.is_set() or time.monotonic() >= end:
                return
