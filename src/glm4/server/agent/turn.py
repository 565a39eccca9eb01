"""`Turn`: one turn of an assistant as it happens: numbered events, for any number of readers, at any time.

A reader that was away asks for what follows the last event it has. If that is no longer kept, or it has none, it gets a
snapshot of everything so far and goes on from there.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from glm4.agent.events import AgentEvent
from glm4.agent.transcript import Transcript, event_dict

Decision = Literal["once", "always", "never"]

FLUSH_SECONDS = 0.05
"""Text that arrives within this time is one event."""
RING_NBYTES = 1 << 20
KEPT_SECONDS = 300.0
"""How long a turn can be followed after its end; its message can be read from then on."""


@dataclass(frozen=True)
class Numbered:
    """An event and its number; numbers begin at 1."""

    seq: int
    data: Mapping[str, Any]


@dataclass
class Turn:
    """A turn that runs, or has ended a short while ago.

    Attributes:
        owner: key it was started with; for others it does not exist.
        about: what the first event says: turn, conversation, parent, message, model, context.
        stop: ends it within a step.
        stopped: someone has asked for that.
        transcript: what has happened, including what readers do not have yet.
        waiting: calls that wait for approval, from the moment on that readers can know of them.
    """

    id: str
    owner: str
    conversation: str
    message: str
    about: Mapping[str, Any]
    transcript: Transcript = field(default_factory=Transcript)
    stop: Callable[[], None] = lambda: None
    stopped: bool = False
    waiting: dict[str, asyncio.Future[Decision]] = field(default_factory=dict)
    ended: bool = False
    seq: int = 0
    _progress: dict[str, Any] | None = None
    _ring: deque[tuple[Numbered, int]] = field(default_factory=deque)
    _nbytes: int = 0
    _pending: list[dict[str, Any]] = field(default_factory=list)
    _timer: asyncio.TimerHandle | None = None
    _flushed: float = 0.0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._pending.append({"type": "turn", **self.about})
        self._flush()

    def add(self, event: AgentEvent) -> None:
        """Something happened. The first text goes out at once, more of it every `FLUSH_SECONDS`."""
        self.transcript.add(event)
        data = event_dict(event)
        if data["type"] in ("progress", "part", "end"):
            self._progress = {**data} if data["type"] == "progress" else None
        if not (self._pending and _join(self._pending[-1], data)):
            self._pending.append(data)
        loop = asyncio.get_running_loop()
        if data["type"] == "call" and data["state"] == "waiting":
            self.waiting[data["call"]] = loop.create_future()
        if data["type"] == "end":
            self.ended = True
            self.waiting.clear()
        if self.ended or loop.time() - self._flushed >= FLUSH_SECONDS:
            self._flush()
        elif self._timer is None:
            self._timer = loop.call_later(FLUSH_SECONDS, self._flush)

    def decide(self, call: str, decision: Decision) -> bool:
        """Answer a call that waits for approval; False if none of this id does."""
        future = self.waiting.get(call)
        if future is None or future.done():
            return False
        future.set_result(decision)
        return True

    async def decision(self, call: str) -> Decision:
        """What the user says to a call that waits; it may have been said already."""
        future = self.waiting.setdefault(call, asyncio.get_running_loop().create_future())
        try:
            return await future
        finally:
            self.waiting.pop(call, None)

    def end(self) -> None:
        """See `stop`; heard also by a turn that has not begun to run."""
        if not self.ended and not self.stopped:  # once: a second time would interrupt what cleans up
            self.stopped = True
            self.stop()

    async def follow(self, after: int | None = None) -> AsyncGenerator[Numbered, None]:
        """Events behind number `after`, to the end; a snapshot comes first if those are gone, or without `after`."""
        at = after
        while True:
            self._flush()
            if at is None or at > self.seq or (self._ring and at < self._ring[0][0].seq - 1):
                at, ended = self.seq, self.ended
                yield self.snapshot()
                if ended:
                    yield self._ring[-1][0]
                    return
                continue  # the turn went on while that was sent
            changed = self._changed
            for event in [event for event, _ in self._ring if event.seq > at]:
                at = event.seq
                yield event
            if self.ended and at == self.seq:
                return
            if at == self.seq:
                await changed.wait()

    def snapshot(self) -> Numbered:
        """Everything so far as one event, with the number of the last one and what is going on before the next part."""
        data = {"type": "snapshot", "seq": self.seq, **self.about, **self.transcript.as_dict()}
        return Numbered(self.seq, data if self._progress is None else {**data, "progress": self._progress})

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._pending:
            return
        for data in self._pending:
            self.seq += 1
            nbytes = len(json.dumps(data, ensure_ascii=False)) + 64
            self._ring.append((Numbered(self.seq, data), nbytes))
            self._nbytes += nbytes
        self._pending.clear()
        while self._nbytes > RING_NBYTES and len(self._ring) > 1:
            self._nbytes -= self._ring.popleft()[1]
        self._flushed = asyncio.get_running_loop().time()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


_JOINED_BY = {"text": ("part",), "output": ("call", "channel"), "call": ("call", "state"), "progress": ("phase",)}


def _join(before: dict[str, Any], later: Mapping[str, Any]) -> bool:
    """Add a later event's text to one that has not been sent; False if they are of different things."""
    keys = _JOINED_BY.get(later["type"])
    if keys is None or before["type"] != later["type"] or any(before[key] != later[key] for key in keys):
        return False
    if before["type"] == "call" and later["state"] != "writing":
        return False
    if before.get("truncated"):
        return False
    before |= {**later, **({"add": before["add"] + later["add"]} if "add" in later else {})}
    return True
