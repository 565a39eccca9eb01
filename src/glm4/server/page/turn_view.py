"""`turn_view`: a turn's events for one reader of the page, with HTML between them.

It begins with a snapshot, so whoever comes back begins anew and nothing can be there twice. Text is sent as it comes;
its HTML follows, as often as rendering it is cheap. Readers share nothing but the turn itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from glm4.agent.session_html import arguments_html
from glm4.server.agent.reading import OfOwner, Readers
from glm4.server.agent.turn import Numbered, Turn
from glm4.server.page.parts import TEXTS, dressed

if TYPE_CHECKING:
    from glm4.markup import CodeAdded, IncrementalRenderer, Update

SHORTEST_PAUSE = 0.05
"""Seconds between two renderings of a part, at least."""
PAUSE_FACTOR = 10
"""And at least so many times as long as the last one took."""


async def turn_view(turn: Turn, rendering: Readers | OfOwner) -> AsyncGenerator[dict[str, Any], None]:
    """The events, from a snapshot of what there is now to the end.

    Args:
        rendering: threads for making HTML.
    """
    view, following = _View(rendering), turn.follow()
    upcoming: asyncio.Future[Numbered] | None = None
    try:
        while True:
            if view.pause() == 0:
                for event in await view.render():
                    yield event
            upcoming = upcoming or asyncio.ensure_future(anext(following))
            done, _ = await asyncio.wait({upcoming}, timeout=view.pause())
            if not done:
                continue
            arrived, upcoming = upcoming, None
            try:
                one = arrived.result()
            except StopAsyncIteration:
                return
            for event in await view.event(one.data):
                yield event
    finally:
        if upcoming is not None:
            upcoming.cancel()
            await asyncio.wait({upcoming})
        await following.aclose()


class _View:
    """What one reader has of a turn."""

    def __init__(self, rendering: Readers | OfOwner) -> None:
        self._rendering = rendering
        self._part: int | None = None  # the text that is being written
        self._renderer: IncrementalRenderer | None = None
        self._waiting: list[str] = []  # its text that has no HTML yet
        self._due = 0.0
        self._arguments: dict[int, str] = {}  # of calls that are being written, by part

    def pause(self) -> float | None:
        """Seconds until HTML is due; None if there is nothing to render."""
        return max(0.0, self._due - time.monotonic()) if self._waiting else None

    async def event(self, data: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What is to be sent for an event of the turn."""
        kind = data["type"]
        if kind == "snapshot":
            return [await self._rendering.run(partial(self._begin, data))]
        if kind == "text":
            self._waiting.append(data["add"])
        elif kind == "call":
            return [await self._call(data)]
        before = await self.render(last=True) if kind in ("part", "end") else []
        if kind == "part" and data["kind"] in TEXTS:
            self._part, self._due = data["part"], 0.0
        return [*before, dict(data)]

    async def render(self, *, last: bool = False) -> list[dict[str, Any]]:
        """HTML of the text that has come since the last time.

        Args:
            last: no more of this part comes.
        """
        if self._part is None:
            return []
        part, add, self._waiting = self._part, "".join(self._waiting), []
        seconds, updates = await self._rendering.run(partial(self._updates, add, last=last))
        self._due = time.monotonic() + max(SHORTEST_PAUSE, PAUSE_FACTOR * seconds)
        if last:
            self._part = self._renderer = None
        return [_update_dict(part, update) for update in updates]

    def _updates(self, add: str, *, last: bool) -> tuple[float, Sequence[Update | CodeAdded]]:
        from glm4.markup import IncrementalRenderer

        started = time.monotonic()
        if self._renderer is None:
            self._renderer = IncrementalRenderer()
        updates = [*self._renderer.feed(add), *(self._renderer.finish() if last else ())]
        return time.monotonic() - started, updates

    def _begin(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Take a snapshot in place of all that was before."""
        from glm4.markup import IncrementalRenderer

        parts = data["parts"]
        self._part = self._renderer = None
        self._waiting, self._due = [], 0.0
        self._arguments = {at: part["arguments"] for at, part in enumerate(parts) if part.get("state") == "writing"}
        shown = [dressed(part) for part in (parts if data["end"] is not None else parts[:-1])]
        for part in parts[len(shown) :]:  # one, or none
            if part["kind"] in TEXTS:
                self._part, self._renderer = len(shown), IncrementalRenderer()
                self._renderer.feed(part["text"])
                shown.append({**part, "blocks": list(self._renderer.blocks)})
            else:
                shown.append(dressed(part))
        return {**data, "parts": shown}

    async def _call(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """A call's event, with its arguments as HTML once they are complete."""
        part = data["part"]
        if data["state"] == "writing":
            self._arguments[part] = self._arguments.get(part, "") + data["add"]
            return dict(data)
        arguments = self._arguments.pop(part, None)
        if arguments is None:
            return dict(data)
        return {**data, "code": await self._rendering.run(partial(arguments_html, data["tool"], arguments))}


def _update_dict(part: int, update: Update | CodeAdded) -> dict[str, Any]:
    from glm4.markup import Update

    if isinstance(update, Update):
        return {"type": "html", "part": part, "first": update.first, "blocks": list(update.blocks)}
    return {"type": "code", "part": part, "block": update.block, "add": update.add}
