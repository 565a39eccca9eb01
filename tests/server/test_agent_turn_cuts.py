"""`Turn`: whoever joins, at any moment and any number of times, has the same in the end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm4.agent.events import (
    AgentEvent,
    CallChanged,
    CallState,
    Channel,
    ErrorRaised,
    OutputAdded,
    PartBegan,
    Progress,
    TextAdded,
    TurnEnded,
    UsageAdded,
)
from glm4.agent.transcript import Transcript
from glm4.server.agent import turn as module
from glm4.server.agent.turn import Numbered, Turn

_T = TypeVar("_T")
CHANNELS: tuple[Channel, ...] = ("output", "error", "log")
STATES: tuple[CallState, ...] = ("writing", "writing", "waiting", "running", "done")


def run(work: Coroutine[Any, Any, _T]) -> _T:
    async def bounded() -> _T:
        return await asyncio.wait_for(work, 60)

    return asyncio.run(bounded())


def made_turn(**options: Any) -> Turn:
    return Turn("t", "me", "c", "m", {"turn": "t", "conversation": "c", "parent": "p", "message": "m"}, **options)


def events_of(source: random.Random, length: int) -> list[AgentEvent]:
    """A turn in which parts, texts, calls and their output follow each other in any order that the loop may give."""
    made: list[AgentEvent] = []
    texts: list[int] = []
    calls: list[tuple[int, str]] = []
    parts = 0
    for _ in range(length):
        kind = source.randrange(9)
        if kind == 0 or parts == 0:
            tool = bool(parts) and source.random() < 0.5
            made.append(PartBegan(parts, "tool" if tool else "text"))
            if tool:
                calls.append((parts, f"call{parts}"))
                made.append(CallChanged(parts, f"call{parts}", "python", "writing"))
            else:
                texts.append(parts)
            parts += 1
        elif kind in (1, 2, 3):
            made.append(TextAdded(source.choice(texts), source.choice(["", "a", "字", "long " * 40])))
        elif kind == 4 and calls:
            part, call = source.choice(calls)
            state = source.choice(STATES)
            add = source.choice(["x", "y" * 50]) if state == "writing" else ""
            seconds = 0.5 if state == "done" else None
            made.append(CallChanged(part, call, "python", state, add, "about" * (state == "waiting"), seconds))
        elif kind in (5, 6) and calls:
            last = source.random() < 0.1
            made.append(OutputAdded(source.choice(calls)[1], source.choice(CHANNELS), "out ", truncated=last))
        elif kind == 7:
            made.append(Progress(source.choice(["queued", "prefill"]), source.randrange(9), 9))
        elif source.random() < 0.3:
            made.append(UsageAdded(3, 1, 2, 100))
            made.append(ErrorRaised("tool", "tool_failed", "no"))
    return [*made, TurnEnded("completed")]


class Reader:
    """A client: a snapshot replaces what it has, other events are added to that."""

    def __init__(self) -> None:
        self.after: int | None = None
        self.parts: list[dict[str, Any]] = []
        self.errors: list[Any] = []
        self.usage = 0
        self.end: Any = None

    def add(self, event: Numbered) -> None:
        data = dict(event.data)
        if data["type"] == "snapshot":
            assert data["seq"] == event.seq
            self.parts = [dict(part) for part in data["parts"]]
            self.errors, self.usage = list(data["errors"]), data["usage"]["rounds"]
        else:
            assert self.after is None or event.seq == self.after + 1 or data["type"] == "end"
            self._change(data)
        self.after = event.seq

    def _change(self, data: dict[str, Any]) -> None:
        kind = data.pop("type")
        if kind == "part":
            self.parts.append({"kind": data["kind"]} | ({"text": ""} if data["kind"] == "text" else {}))
        elif kind == "text":
            self.parts[data["part"]]["text"] += data["add"]
        elif kind == "call":
            part = self.parts[data["part"]]
            if "call" not in part:
                part |= {"call": data["call"], "tool": data["tool"], "arguments": "", "output": [], "files": []}
            part["state"] = data["state"]
            part["arguments"] += data["add"]
            part |= {key: data[key] for key in ("about", "seconds") if key in data}
        elif kind == "output":
            output = next(part for part in self.parts if part.get("call") == data["call"])["output"]
            if not output or output[-1]["channel"] != data["channel"]:
                output.append({"channel": data["channel"], "text": ""})
            output[-1]["text"] += data["add"]
            output[-1] |= {"truncated": True} if data.get("truncated") else {}
        elif kind == "error":
            self.errors.append(data)
        elif kind == "usage":
            self.usage += 1
        elif kind == "end":
            self.end = data


async def followed(turn: Turn, reader: Reader, source: random.Random) -> None:
    """Read to the end, hanging up now and then and going on from the last number, or from nowhere."""
    while reader.end is None:
        stop_after = source.randrange(1, 12)
        after = reader.after if source.random() < 0.8 else None
        stream = turn.follow(after)
        async for event in stream:
            reader.add(event)
            stop_after -= 1
            if stop_after == 0 and reader.end is None:
                break
            if source.random() < 0.3:
                await asyncio.sleep(0)
        await stream.aclose()
        await asyncio.sleep(source.choice([0, 0, 0.001]))


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32), length=st.integers(0, 120), ring=st.sampled_from([1, 300, 2000, 1 << 20]))
def test_every_reader_has_the_same_in_the_end(seed: int, length: int, ring: int) -> None:
    source = random.Random(seed)
    events = events_of(source, length)

    async def play() -> list[Reader]:
        turn = made_turn()
        readers = [Reader() for _ in range(4)]
        tasks = [asyncio.create_task(followed(turn, reader, random.Random(source.random()))) for reader in readers[:3]]
        for event in events:
            turn.add(event)
            if source.random() < 0.4:
                await asyncio.sleep(source.choice([0, 0, 0.001]))
        tasks.append(asyncio.create_task(followed(turn, readers[3], source)))
        await asyncio.gather(*tasks)
        return readers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "RING_NBYTES", ring)
        patch.setattr(module, "FLUSH_SECONDS", source.choice([0.0, 0.001, 0.02]))
        readers = run(play())
    whole = Transcript(events).as_dict()
    for reader in readers:
        assert reader.parts == whole["parts"]
        assert reader.errors == whole["errors"]
        assert reader.usage == whole["usage"]["rounds"]
        assert reader.end == whole["end"]


def test_numbers_have_no_gaps_and_text_that_came_together_is_one_event() -> None:
    async def play() -> list[Numbered]:
        turn = made_turn()
        turn.add(PartBegan(0, "text"))
        for _ in range(1000):
            turn.add(TextAdded(0, "ab"))
            turn.add(Progress("generate", 1, 2))
        for n in range(1000):
            turn.add(Progress("prefill", n, 1000))
        turn.add(TurnEnded("completed"))
        return [one async for one in turn.follow(0)]

    found = run(play())
    assert [one.seq for one in found] == list(range(1, len(found) + 1))
    assert sum(one.data.get("phase") == "prefill" for one in found) == 1
    assert "".join(one.data.get("add", "") for one in found) == "ab" * 1000


def test_what_is_kept_for_readers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.0)

    async def play() -> int:
        turn = made_turn()
        turn.add(PartBegan(0, "text"))
        for _ in range(100):
            turn.add(TextAdded(0, "x" * 50_000))
        return sum(len(str(one.data)) for one, _ in turn._ring)

    assert run(play()) < module.RING_NBYTES + 60_000


def test_a_decision_may_come_before_the_question_is_asked() -> None:
    """Readers know of a call that waits as soon as its event is sent; the agent may ask only later."""

    async def play() -> str:
        turn = made_turn()
        turn.add(PartBegan(0, "tool"))
        turn.add(CallChanged(0, "call", "launch", "waiting"))
        assert not turn.decide("other", "once")
        assert turn.decide("call", "always")
        assert not turn.decide("call", "never")
        decision = await turn.decision("call")
        assert not turn.decide("call", "never")
        return decision

    assert run(play()) == "always"


def test_nothing_can_be_decided_after_the_end() -> None:
    async def play() -> bool:
        turn = made_turn()
        turn.add(PartBegan(0, "tool"))
        turn.add(CallChanged(0, "call", "launch", "waiting"))
        turn.add(TurnEnded("stopped"))
        return turn.decide("call", "once")

    assert not run(play())


def test_to_stop_twice_or_after_the_end_does_no_harm() -> None:
    async def play() -> list[str]:
        stops: list[str] = []
        turn = made_turn(stop=lambda: stops.append("stop"))
        turn.end()
        turn.end()
        turn.add(TurnEnded("stopped"))
        turn.end()
        return stops

    assert run(play()) == ["stop"]
