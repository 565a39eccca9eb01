"""From other threads to an asyncio event loop, which may be gone when a program ends in the middle of something."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

_T = TypeVar("_T")


def post(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """Run a callback on an event loop, if that still runs."""
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        if not loop.is_closed():
            raise


def settle(done: asyncio.Future[_T], function: Callable[[], _T]) -> None:
    """Run a function here and hand its result, or what it raised, to a future of an event loop."""
    try:
        outcome = partial(done.set_result, function())
    except BaseException as error:  # handed to the task that waits, not lost on this thread
        outcome = partial(done.set_exception, error)

    def tell() -> None:
        if not done.cancelled():
            outcome()

    post(done.get_loop(), tell)
