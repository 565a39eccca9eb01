"""What readers of the page have of a turn and of conversations: always what is stored, whenever they come and go."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from page_clients import ANN, BOB, conversation, followed, logged_in, page_server, started, tools_of
from page_folding import Folded, read_events

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
from glm4.server.agent.reading import Readers, Shared
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


def test_a_reader_that_is_too_slow_gets_another_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "RING_NBYTES", 2000)
    monkeypatch.setattr(turns, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(views, "SHORTEST_PAUSE", 60.0)  # so that there is text without HTML

    async def watch() -> None:
        turn = Turn("t", "", "c", "m", {"turn": "t", "conversation": "c", "message": "m"})
        rendering = Readers(2)
        folded = Folded()
        async with aclosing(turn_view(turn, rendering)) as events:
            folded.add(await anext(events))
            turn.add(PartBegan(0, "text"))
            for _ in range(3):
                turn.add(TextAdded(0, "word *word* "))
            while folded.parts == [] or len(folded.parts[0]["text"]) < 36:
                folded.add(await anext(events))
            for _ in range(100):
                turn.add(TextAdded(0, "more `more` "))
            while folded.snapshots < 2:
                folded.add(await anext(events))
            turn.add(TurnEnded("completed", "stop"))
            async for event in events:
                folded.add(event)
        rendering.close()
        assert folded.snapshots == 2
        assert folded.stored_parts() == expected(turn)

    asyncio.run(watch())


def test_html_comes_no_more_often_than_is_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text event is sent for each piece of text; HTML for several at once."""
    monkeypatch.setattr(turns, "FLUSH_SECONDS", 0.0)

    async def watch() -> tuple[float, list[str]]:
        turn = Turn("t", "", "c", "m", {"turn": "t", "conversation": "c", "message": "m"})
        rendering = Readers(2)
        kinds: list[str] = []

        async def read() -> None:
            async for event in turn_view(turn, rendering):
                kinds.append(event["type"])

        reading = asyncio.create_task(read())
        await asyncio.sleep(0)
        started = time.monotonic()
        turn.add(PartBegan(0, "text"))
        for _ in range(300):
            turn.add(TextAdded(0, "word *word* "))
            await asyncio.sleep(0.002)
        seconds = time.monotonic() - started
        turn.add(TurnEnded("completed", "stop"))
        await reading
        rendering.close()
        return seconds, kinds

    seconds, kinds = asyncio.run(watch())
    assert kinds.count("text") > 200
    assert 2 <= kinds.count("html") <= seconds / views.SHORTEST_PAUSE + 2
    first = kinds.index("html")
    assert kinds[:first].count("text") == 1  # as soon as there is some
    assert kinds[-2:] == ["html", "end"]


ANSWER = "".join(MARKDOWN)


def test_readers_of_a_server_have_what_it_stores(tmp_path: Path) -> None:
    """Two at once who stay, one who comes and goes, one who is late; with tools, a file and a call that asks."""

    def answer(prompt: str) -> str:
        if "made it" in prompt:
            return f"\n{ANSWER}"
        if "is up" in prompt:
            return 'note\n{"text": "Buy milk."}'
        return "\nBefore the **call**." if "Say" in prompt else 'launch\n{"what": "a <rocket>"}'

    with page_server(tmp_path, answer=answer, delay=0.001) as live, live.client() as client:
        turn = started(client, "Launch", tools=tools_of(tmp_path))
        found: list[Folded] = []

        def stay() -> None:
            with live.client() as own:
                found.append(followed(own, turn["turn"]))

        def come_and_go() -> None:
            rng = random.Random(0)
            with live.client() as own:
                while (folded := followed(own, turn["turn"], rng.randrange(1, 30))).status == "running":
                    pass
            found.append(folded)

        readers = [threading.Thread(target=one) for one in (stay, stay, come_and_go)]
        for one in readers:
            one.start()
        with client.stream("GET", f"/ui/turns/{turn['turn']}/events") as events:
            for event in read_events(events.iter_lines()):
                if _is_waiting(event):
                    call = _call_of(event)
                    break
        allowed = client.post(f"/v1/agent/turns/{turn['turn']}/approvals/{call}", json={"decision": "once"})
        assert allowed.json() == {"done": True}
        for one in readers:
            one.join()
        found.append(followed(client, turn["turn"]))
        shown = conversation(client, turn["conversation"])
        message = shown["messages"][-1]
        assert [part["kind"] for part in message["parts"]] == ["tool", "tool", "text"]
        assert message["parts"][-1]["text"] == ANSWER
        assert "rocket" in message["parts"][0]["code"]
        assert "<rocket>" not in message["parts"][0]["code"]
        assert len(found) == 4
        for folded in found:
            assert folded.stored_parts() == message["parts"]
            assert (folded.status, folded.message) == (message["status"], message["id"])
            for name in ("rounds", "prompt", "cached", "completion"):
                assert folded.usage[name] == message["usage"][name]
        assert [file["name"] for file in shown["files"]] == ["note.txt"]


def _is_waiting(event: dict[str, Any]) -> bool:
    return any(one.get("state") == "waiting" for one in [event, *event.get("parts", ())])


def _call_of(event: dict[str, Any]) -> str:
    return next(str(one["call"]) for one in [event, *event.get("parts", ())] if one.get("state") == "waiting")


def test_a_turn_that_is_stopped_is_whole_for_its_readers(tmp_path: Path) -> None:
    with page_server(tmp_path, answer=lambda prompt: "\n" + ANSWER * 20, delay=0.001) as live, live.client() as client:
        turn = started(client, "Tell")
        running = conversation(client, turn["conversation"])["messages"][-1]
        assert (running["status"], running["turn"]) == ("running", turn["turn"])
        followed(client, turn["turn"], 30)
        assert client.post(f"/v1/agent/turns/{turn['turn']}/stop").status_code == 200
        folded = followed(client, turn["turn"])
        message = conversation(client, turn["conversation"])["messages"][-1]
        assert folded.status == message["status"] == "stopped"
        assert "turn" not in message
        assert folded.stored_parts() == message["parts"]
        assert (ANSWER * 20).startswith(message["parts"][0]["text"])


def test_a_conversation_is_a_tree_of_which_one_branch_is_shown(tmp_path: Path) -> None:
    said = iter(["*one*", "*two*"])
    with page_server(tmp_path, answer=lambda prompt: f"\n{next(said)}") as live, live.client() as client:
        first = started(client, "**Q** <b>")
        followed(client, first["turn"])
        again = {"conversation": first["conversation"], "parent": first["user_message"]}
        second = client.post("/v1/agent/turns", json=again).json()
        followed(client, second["turn"])
        shown = conversation(client, first["conversation"])
        assert [(one["id"], one["parent"], one["role"]) for one in shown["tree"]] == [
            (first["user_message"], None, "user"),
            (first["message"], first["user_message"], "assistant"),
            (second["message"], first["user_message"], "assistant"),
        ]
        assert {one["status"] for one in shown["tree"]} == {"completed"}
        assert [one["id"] for one in shown["messages"]] == [first["user_message"], second["message"]]
        assert shown["messages"][0]["parts"][0]["text"] == "**Q** <b>"
        assert "<b>" not in "".join(shown["messages"][0]["parts"][0]["blocks"])
        assert "<em>two</em>" in shown["messages"][1]["parts"][0]["blocks"][0]
        public = client.get(f"/v1/agent/conversations/{first['conversation']}").json()
        assert shown["conversation"] == public["conversation"]
        other = conversation(client, first["conversation"], leaf=first["message"])
        assert "<em>one</em>" in other["messages"][1]["parts"][0]["blocks"][0]
        path = f"/ui/conversations/{first['conversation']}"
        assert client.get(path, params={"leaf": "x"}).status_code == 404
        assert client.get("/ui/conversations/x").status_code == 404
        assert client.get("/ui/turns/x/events").status_code == 404


def test_an_imported_conversation_brings_no_html_of_its_own(tmp_path: Path) -> None:
    own = {"blocks": ["<form>"], "code": "<form>"}
    call = {"kind": "tool", "call": "c", "tool": "python", "arguments": "x", "state": "writing"}
    parts = [{"kind": "text", "text": "Hi"}, call, {**call, "state": "done"}, {"kind": "tool", "tool": "x"}]
    parts += [{"kind": "file", "file": "0" * 64, "name": "a.txt"}, {"kind": "error"}]
    shown_parts = [{**part, **own} for part in parts]
    message = {"id": "a", "role": "assistant", "status": "completed", "messages": [], "parts": shown_parts}
    with page_server(tmp_path) as live, live.client() as client:
        document = {"format": "glm4-conversation", "version": 1, "messages": [message]}
        made = client.post("/v1/agent/conversations", json=document)
        assert made.status_code == 200, made.text
        (shown,) = conversation(client, made.json()["id"])["messages"]
        assert len(shown["parts"]) == len(parts)
        assert "<form>" not in str(shown)


def test_nothing_is_there_for_another_key(tmp_path: Path) -> None:
    with (
        page_server(tmp_path, ANN, BOB, answer=lambda prompt: "\n" + "on and on " * 200, delay=0.002) as live,
        logged_in(live, ANN) as ann,
        logged_in(live, BOB) as bob,
    ):
        file = ann.post("/v1/agent/files?name=a.txt", content=b"Secret.").json()["file"]
        turn = started(ann, "Tell", files=[file])
        artifact = ann.post("/ui/artifacts", json={"kind": "html", "source": "x"}).json()["id"]
        talk, at = f"/v1/agent/conversations/{turn['conversation']}", f"/v1/agent/turns/{turn['turn']}"
        frame = {"Sec-Fetch-Dest": "iframe"}
        for path in (f"/ui/conversations/{turn['conversation']}", talk, f"{talk}/export", f"/v1/agent/files/{file}"):
            assert (ann.get(path).status_code, bob.get(path).status_code) == (200, 404), path
        assert ann.get(f"/ui/artifacts/{artifact}", headers=frame).status_code == 200
        for answer in (
            bob.get(f"/ui/turns/{turn['turn']}/events"), bob.get(f"{at}/events"), bob.post(f"{at}/stop"),
            bob.post(f"{at}/approvals/x", json={"decision": "once"}), bob.get(f"/ui/documents/{file}"),
            bob.get(f"/ui/artifacts/{artifact}", headers=frame), bob.patch(talk, json={"title": "x"}),
            bob.delete(talk),
        ):  # fmt: skip
            assert answer.status_code == 404, answer.url
        assert bob.get("/v1/agent/conversations").json() == {"conversations": []}
        assert bob.get("/v1/agent/turns").json() == {"turns": []}
        assert ann.post(f"{at}/stop").status_code == 200
        with live.client() as nobody:
            for path in (f"/ui/conversations/{turn['conversation']}", f"/ui/turns/{turn['turn']}/events",
                         f"/ui/documents/{file}", f"/ui/artifacts/{artifact}"):  # fmt: skip
                assert nobody.get(path).status_code == 401
            assert nobody.post("/ui/artifacts", json={"kind": "html", "source": "x"}).status_code == 401


def test_one_owners_rendering_does_not_keep_others_waiting() -> None:
    going_on = threading.Event()

    async def run() -> None:
        shared = Shared(Readers(2))
        anns = [asyncio.ensure_future(shared.of("ann").run(lambda: going_on.wait(60))) for _ in range(5)]
        await asyncio.sleep(0)
        try:
            assert await shared.of("bob").run(lambda: not going_on.is_set())
            anns[1].cancel()
            going_on.set()
            assert [await anns[at] for at in (0, 2, 3, 4)] == [True] * 4
        finally:
            going_on.set()
            shared.close()

    asyncio.run(run())


def test_others_go_on_while_a_long_conversation_is_rendered(tmp_path: Path) -> None:
    with page_server(tmp_path) as live, live.client() as client:
        turn = started(client, "Tell")
        followed(client, turn["turn"])
        exported = client.get(f"/v1/agent/conversations/{turn['conversation']}/export").json()
        long = "".join(f"- item {n} with *some* text and [a link](https://example.com/{n})\n" for n in range(20_000))
        exported["messages"][1]["parts"] = [{"kind": "text", "text": long[:190_000]}]
        copy = client.post("/v1/agent/conversations", json=exported).json()["id"]
        shown: list[dict[str, Any]] = []

        def show() -> None:
            with live.client() as own:
                shown.append(conversation(own, copy))

        reader = threading.Thread(target=show)
        reader.start()
        answers = 0
        while reader.is_alive():
            assert client.get("/health").status_code == 200
            answers += 1
        reader.join()
        assert answers > 5
        assert shown[0]["messages"][1]["parts"][0]["blocks"]
