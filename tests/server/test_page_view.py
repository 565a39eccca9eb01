"""What readers of the page have of a turn and of conversations: always what is stored, whenever they come and go."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any

import pytest
from page_folding import Folded

from glm4.agent.events import (
    AgentEvent,
    CallChanged,
    CallState,
    Channel,
    CitationAdded,
    ErrorRaised,
    FileAdded,
    OutputAdded,
    PartBegan,
    PartKind,
    Progress,
    TextAdded,
    TurnEnded,
    UsageAdded,
)
from glm4.agent.files import StoredFile
from glm4.documents.citations import Citation, Source
from glm4.server.agent import turn as turns
from glm4.server.agent.reading import Readers
from glm4.server.agent.turn import Turn
from glm4.server.page import turn_view as views
from glm4.server.page.parts import dressed
from glm4.server.page.turn_view import turn_view

MARKDOWN = (
    "# A heading\n\nSome *text* with `code`, <b>HTML</b> and a [link][1] that is defined later.\n\n",
    "```python\ndef f(x):\n    return x < 1 & 2\n```\n\n",
    "| a | b |\n|---|--:|\n| 1 | 2 |\n| 3 | 4 |\n\n",
    "1. one\n2. two\n   - nested\n   - more\n\n   ```js\n   let a = '<';\n   ```\n3. three\n\n",
    "Formulas: $a^2$ and \\(b\\), and\n\n\\[\\frac{1}{2}\\]\n\n",
    "中文，一段文字。" * 8 + "\n\n",
    "> a quote\nthat goes on\n\n",
    "[1]: https://example.com/\n\n",
    "* open list\n* with\r\n* other line ends\r\n\r\n",
    "A footnote[^1].\n\n[^1]: Said here.\n\n",
    "````\nfences ``` in fences\n```\n",
    "````\nafter it\n\n",
)


def turn_events(rng: random.Random) -> Iterator[AgentEvent]:
    """A turn with parts of all kinds, in pieces of all sizes."""
    for part in range(rng.randrange(2, 7)):
        kind: PartKind = rng.choice(("text", "text", "reasoning", "tool"))
        yield Progress("generate")
        yield PartBegan(part, kind)
        yield from _call_events(rng, part) if kind == "tool" else _text_events(rng, part)
        if rng.random() < 0.3:
            yield UsageAdded(10, 2, 5, 100, 0.1, 0.2)
    if rng.random() < 0.3:
        yield ErrorRaised("model", "broken", "It broke.")


def _text_events(rng: random.Random, part: int) -> Iterator[AgentEvent]:
    text = "".join(rng.choice(MARKDOWN) for _ in range(rng.randrange(1, 9)))
    text = text[: rng.randrange(1, len(text) + 1)]
    while text:
        length = rng.choice((1, 1, 2, 3, 7, 20, 200))
        yield TextAdded(part, text[:length])
        text = text[length:]
        if rng.random() < 0.02:
            yield CitationAdded(part, Citation(Source(1, "A page", url="https://example.com/"), 0, 3))


def _call_events(rng: random.Random, part: int) -> Iterator[AgentEvent]:
    call, tool = f"call{part}", rng.choice(("python", "weather"))
    arguments = rng.choice(('{"code": "print(1 < 2)\\n"}', "print('raw')", '{"city": "北京"}', "", "[1"))

    def change(state: CallState, **more: Any) -> CallChanged:
        return CallChanged(part, call, tool, state, **more)

    yield change("writing")
    for character in arguments:
        yield change("writing", add=character)
    if rng.random() < 0.4:
        yield change("waiting", about="Run it?")
        if rng.random() < 0.5:
            yield change("denied")
            return
    yield change("running")
    for _ in range(rng.randrange(5)):
        channel: Channel = rng.choice(("output", "error"))
        yield OutputAdded(call, channel, "said <this>\n")
    if rng.random() < 0.3:
        yield FileAdded(StoredFile("0" * 64, "plot.png", "image/png", 7, 1, 2, "a plot"), call)
    yield change(rng.choice(("done", "error")), seconds=0.5)


def expected(turn: Turn) -> list[dict[str, Any]]:
    told = turn.transcript.as_dict()
    return [dressed(part) for part in told["parts"]] + [{"kind": "error", **error} for error in told["errors"]]


async def reader(turn: Turn, rendering: Readers, rng: random.Random) -> Folded:
    """Comes at any moment, goes at any moment, comes back; sometimes it is slow."""
    await asyncio.sleep(rng.random() * 0.05)
    while True:
        folded = Folded()
        left = rng.choice((1, 3, 10, 50, 1000, 100_000))
        async with aclosing(turn_view(turn, rendering)) as events:
            async for event in events:
                assert folded.snapshots or event["type"] == "snapshot"
                folded.add(event)
                if rng.random() < 0.02:
                    await asyncio.sleep(0.02)
                left -= 1
                if left == 0:
                    break
        if folded.status != "running":
            return folded


async def watched(seed: int, events: Sequence[AgentEvent], pauses: Callable[[], float | None]) -> None:
    turn = Turn("t", "", "c", "m", {"turn": "t", "conversation": "c", "message": "m"})
    rendering = Readers(2)
    try:
        readers = [asyncio.create_task(reader(turn, rendering, random.Random(seed * 100 + n))) for n in range(4)]
        for event in events:
            turn.add(event)
            pause = pauses()
            if pause is not None:
                await asyncio.sleep(pause)
        turn.add(TurnEnded("completed", "stop"))
        late = await reader(turn, rendering, random.Random(seed))
        for folded in [*await asyncio.gather(*readers), late]:
            assert folded.stored_parts() == expected(turn)
            assert folded.status == "completed"
    finally:
        rendering.close()


@pytest.mark.parametrize("ring", [1 << 20, 600], ids=["all kept", "little kept"])
@pytest.mark.parametrize("seed", range(12))
def test_every_reader_has_what_was_said(seed: int, ring: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also readers that are so slow that events are gone before they have them."""
    monkeypatch.setattr(turns, "RING_NBYTES", ring)
    monkeypatch.setattr(turns, "FLUSH_SECONDS", 0.002)
    monkeypatch.setattr(views, "SHORTEST_PAUSE", 0.002)
    rng = random.Random(seed)
    events = list(turn_events(rng))
    asyncio.run(watched(seed, events, lambda: rng.choice((None, None, 0, 0.001))))
