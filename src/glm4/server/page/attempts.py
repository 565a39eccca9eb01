"""`Attempts`: makes guessing keys slow without making others wait.

Not covered: who guesses with requests to the API, which are not slowed; keys are to be long and random.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from glm4.server.errors import busy

DELAY_SECONDS = 0.5
MOST = 64
MOST_OF_ONE = 4


class Attempts:
    """Attempts to log in that are being answered: a few of each client's address, and not too many of all."""

    def __init__(self) -> None:
        self._running: Counter[str] = Counter()

    @contextmanager
    def one(self, address: str) -> Iterator[None]:
        """An attempt from this address.

        Raises:
            ApiError: there are too many (429).
        """
        if self._running[address] >= MOST_OF_ONE or sum(self._running.values()) >= MOST:
            raise busy("too many attempts to log in; try again in a second", 1, status=429, code="too_many_attempts")
        self._running[address] += 1
        try:
            yield
        finally:
            self._running[address] -= 1
            if not self._running[address]:
                del self._running[address]

    async def failed(self) -> None:
        """Wait, because the key was wrong."""
        await asyncio.sleep(DELAY_SECONDS)
