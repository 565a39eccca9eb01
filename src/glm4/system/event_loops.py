"""From other threads to an asyncio event loop, which may already be closed when a program ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

_T = TypeVar("_T")


def post(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """Run a callback on an event loop, unless it is closed."""
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        if not loop.is_closed():
            raise


def set_outcome(done: asyncio.Future[_T], function: Callable[[], _T]) -> None:
    """Run a function here and pass its result, or its exception, to a future of an event loop."""
    try:
        outcome = partial(done.set_result, function())
    except BaseException as error:  # passed to the task that waits, not lost on this thread
        outcome = partial(done.set_exception, error)

    def tell() -> None:
        if not done.cancelled():
            outcome()

    post(done.get_loop(), tell)
