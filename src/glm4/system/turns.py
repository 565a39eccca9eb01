"""`Turns`: threads share something that is not thread-safe, one at a time, in the order in which they asked."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

# The third Ctrl-C does not wait for the end of the turn: the step takes too long.
_FORCE_AFTER = 3
# A thread that waits looks again after so many seconds, in case an interrupt hit the one that was to wake it.
_LOOK_AGAIN = 0.5


class Turns:
    """A fair lock: `with turns:` holds it. Not reentrant.

    A plain lock would let a thread that takes it again and again, as every loop over steps does, starve the others.

    Free of locks of its own, because `post` is called by finalizers, which may run at any point of any thread.
    """

    def __init__(self) -> None:
        self._queue: deque[threading.Lock] = deque()  # of the thread that has the turn and those that wait, in order
        self._posted: deque[Callable[[], None]] = deque()
        self._owner = 0
        self._holds_back = False
        self._interrupts = 0

    @property
    def taken(self) -> bool:
        """True while a thread has the turn."""
        return bool(self._queue)

    def __enter__(self) -> None:
        """Wait for the turn.

        Raises:
            RuntimeError: this thread has it already; a signal handler called something that needs it.
        """
        if self._owner == threading.get_ident():
            raise RuntimeError(
                "this was called in the middle of a step on the same thread, by a signal handler perhaps"
            )
        ticket = threading.Lock()
        ticket.acquire()
        self._queue.append(ticket)
        try:
            while self._queue[0] is not ticket:
                ticket.acquire(timeout=_LOOK_AGAIN)
            self._owner = threading.get_ident()
        except BaseException:
            self._leave(ticket)
            raise

    def __exit__(self, *_: object) -> None:
        """Run what was posted, and pass the turn on."""
        try:
            while self._posted:
                self._posted.popleft()()
        finally:
            interrupted = self._let_through()
            self._leave(self._queue[0])
            self._run_posted()  # posted after the loop above
            if interrupted:
                raise KeyboardInterrupt

    def post(self, work: Callable[[], None]) -> None:
        """Run something in a turn: now if nobody has it, else when that turn ends, on its thread. For short work."""
        self._posted.append(work)
        self._run_posted()

    def _run_posted(self) -> None:
        while self._posted and not self._queue:
            with self:
                pass

    def _leave(self, ticket: threading.Lock) -> None:
        if self._queue[0] is ticket:
            self._owner = 0
        self._queue.remove(ticket)
        if self._queue:
            with suppress(IndexError, RuntimeError):  # nobody waits any more, or the next one has been woken already
                self._queue[0].release()

    def hold_back_interrupts(self) -> None:
        """Raise a Ctrl-C as KeyboardInterrupt only when this turn ends; for the thread that has it.

        What other threads share is then not left half changed. A program's own handler of SIGINT is left alone.
        """
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._interrupts, self._holds_back = 0, True
            signal.signal(signal.SIGINT, self._note)

    def _let_through(self) -> bool:
        """End `hold_back_interrupts`; True if there was a Ctrl-C."""
        if not self._holds_back:
            return False
        self._holds_back = False
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return self._interrupts > 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += 1
        if self._interrupts >= _FORCE_AFTER:
            raise KeyboardInterrupt
