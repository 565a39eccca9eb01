"""A real backend whose steps a test lets happen one by one, so that nothing depends on how fast this machine is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from glm4.backends.base import Backend
from glm4.engine.protocol import GenerationOutput
from glm4.llm import LLM


class SteppedBackend:
    """Everything is the backend's own, but `step` waits until it is allowed.

    Attributes:
        steps: how many happened.
        waits: the engine is about to step and may not.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._allowed = threading.Semaphore(0)
        self._free = False
        self._failure: Exception | None = None
        self.steps = 0
        self.waits = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def step(self) -> list[GenerationOutput]:
        self.waits = not (self._free or self._allowed.acquire(blocking=False))
        if self.waits:
            self._allowed.acquire()
            self.waits = False
        if self._failure is not None:
            raise self._failure
        self.steps += 1
        return self._backend.step()

    def allow(self, count: int = 1) -> None:
        """Let so many steps happen."""
        self._allowed.release(count)

    def open(self) -> None:
        """Let all steps happen."""
        self._free = True
        self.allow()

    def fail(self, error: Exception) -> None:
        """Let the next step raise this."""
        self._failure = error
        self.allow()


def stepped(llm: LLM) -> SteppedBackend:
    """Put a model under the test's control; `open` it before its server is closed."""
    backend = SteppedBackend(llm.backend)
    llm.backend = llm._requests._backend = backend
    return backend


def until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Wait for something that must happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.005)
