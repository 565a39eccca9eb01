"""Ctrl-C as a flag: the engine finishes its step, then the answer stops. Nothing is cut off midway.

Meanwhile keys are not echoed, because they would show up in the middle of the answer. Typed text is read afterward.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

FORCE_AFTER = 3


class Interrupt:
    """Collects SIGINT (and any further signals) while the `with` block runs.

    `requested` becomes True at the first signal. The third one raises KeyboardInterrupt immediately, for a step
    that takes too long. Outside the main thread, where Python does not allow handlers, it collects nothing.

    Inside another `Interrupt`, signals that the outer one has collected but not taken count here.

    Attributes:
        wake: called from the signal handler, to end a wait.
    """

    def __init__(self, *extra: signal.Signals) -> None:
        self._signals = (signal.SIGINT, *extra)
        self._previous: dict[signal.Signals, Any] = {}
        self._count = 0
        self.wake: Callable[[], None] | None = None

    @property
    def requested(self) -> bool:
        """True once the user has asked to stop."""
        return self._count > 0

    def take(self) -> bool:
        """Whether the user has asked to stop since the last call."""
        requested, self._count = self.requested, 0
        return requested

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in self._signals}
            outer = getattr(self._previous[signal.SIGINT], "__self__", None)
            if isinstance(outer, Interrupt) and outer.take():
                self._count += 1
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self.wake is not None:
            self.wake()
        if self._count >= FORCE_AFTER:
            raise KeyboardInterrupt


@contextlib.contextmanager
def silent_keyboard() -> Iterator[None]:
    """Do not echo keys while the block runs, and keep them exactly as typed for the next reader.

    Without the latter, the terminal would turn the Enter of a line typed ahead into a newline, which means something
    else to the line editor. Ctrl-C still sends a signal. No effect if standard input is not a terminal.
    """
    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (termios.error, OSError, ValueError):
        yield
        return
    silent = [*before]
    silent[0] &= ~termios.ICRNL
    silent[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(descriptor, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
