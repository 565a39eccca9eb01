"""Turns and conversations as JSON: every event has a form, transcripts add them up, and what is saved is read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripted_agent import TODAY, PlainTool, Script, shown_text

from glm4.agent.agent import Agent
from glm4.agent.conversation import Conversation
from glm4.agent.events import (
    AgentEvent,
    CallChanged,
    CitationAdded,
    ErrorRaised,
    FileAdded,
    OutputAdded,
    PartBegan,
    Progress,
    TextAdded,
    TurnEnded,
    UsageAdded,
)
from glm4.agent.files import StoredFile
from glm4.agent.tool import Invocation, ToolContext
from glm4.agent.transcript import Transcript, event_dict
from glm4.chat.messages import Message, ToolCall
from glm4.chat.parts import ImagePart, TextPart
from glm4.documents.citations import Citation, Source
from glm4.errors import InvalidRequestError

FILE = StoredFile("ab", "plot.png", "image/png", 9, width=3, height=2, alt="a line")
SOURCE = Source(7, "A page", url="https://example.org/")
EVENTS: list[tuple[AgentEvent, dict[str, object]]] = [
    (Progress("prefill", 0, 10), {"type": "progress", "phase": "prefill", "done": 0, "total": 10}),
    (PartBegan(0, "reasoning"), {"type": "part", "part": 0, "kind": "reasoning"}),
    (TextAdded(0, "Hm."), {"type": "text", "part": 0, "add": "Hm."}),
    (PartBegan(1, "tool"), {"type": "part", "part": 1, "kind": "tool"}),
    (
        CallChanged(1, "c1", "draw", "writing", add="{}"),
        {"type": "call", "part": 1, "call": "c1", "tool": "draw", "state": "writing", "add": "{}"},
    ),
    (
        CallChanged(1, "c1", "draw", "waiting", about="draw {}"),
        {"type": "call", "part": 1, "call": "c1", "tool": "draw", "state": "waiting", "add": "", "about": "draw {}"},
    ),
    (
        OutputAdded("c1", "output", "on it", truncated=True),
        {"type": "output", "call": "c1", "channel": "output", "add": "on it", "truncated": True},
    ),
    (
        FileAdded(FILE, "c1"),
        {
            "type": "file", "file": "ab", "name": "plot.png", "media_type": "image/png", "bytes": 9, "width": 3,
            "height": 2, "alt": "a line", "call": "c1",
        },
    ),
    (
        CallChanged(1, "c1", "draw", "done", seconds=0.12345),
        {"type": "call", "part": 1, "call": "c1", "tool": "draw", "state": "done", "add": "", "seconds": 0.123},
    ),
    (PartBegan(2, "text"), {"type": "part", "part": 2, "kind": "text"}),
    (TextAdded(2, "See【7†a】"), {"type": "text", "part": 2, "add": "See【7†a】"}),
    (
        CitationAdded(2, Citation(SOURCE, 3, 8)),
        {
            "type": "citation", "part": 2, "n": 7, "title": "A page", "url": "https://example.org/", "start": 3,
            "end": 8,
        },
    ),
    (
        UsageAdded(10, 2, 5, 100, 0.5, None),
        {"type": "usage", "prompt": 10, "cached": 2, "completion": 5, "context": 100, "prefill_seconds": 0.5},
    ),
    (
        ErrorRaised("model", "busy", "too much", retry=True),
        {"type": "error", "where": "model", "code": "busy", "message": "too much", "retry": True},
    ),
    (TurnEnded("error", "busy"), {"type": "end", "status": "error", "reason": "busy"}),
]  # fmt: skip


@pytest.mark.parametrize(("event", "expected"), EVENTS, ids=lambda value: type(value).__name__)
def test_every_event_has_its_form(event: AgentEvent, expected: dict[str, object]) -> None:
    assert json.loads(json.dumps(event_dict(event))) == expected


def test_a_transcript_adds_events_up() -> None:
    transcript = Transcript(event for event, _ in EVENTS)
    transcript.add(UsageAdded(20, 10, 5, 100, 0.25, 1.0))
    made = json.loads(json.dumps(transcript.as_dict()))
    assert made["parts"] == [
        {"kind": "reasoning", "text": "Hm."},
        {
            "kind": "tool", "call": "c1", "tool": "draw", "arguments": "{}", "state": "done", "about": "draw {}",
            "seconds": 0.123, "output": [{"channel": "output", "text": "on it", "truncated": True}],
            "files": [
                {
                    "file": "ab", "name": "plot.png", "media_type": "image/png", "bytes": 9, "width": 3, "height": 2,
                    "alt": "a line",
                }
            ],
        },
        {
            "kind": "text", "text": "See【7†a】",
            "citations": [{"n": 7, "title": "A page", "url": "https://example.org/", "start": 3, "end": 8}],
        },
    ]  # fmt: skip
    assert made["usage"] == {
        "rounds": 2, "prompt": 30, "cached": 12, "completion": 10, "context": 100, "prefill_seconds": 0.75,
        "decode_seconds": 1.0, "last": {"prompt": 20, "completion": 5},
    }  # fmt: skip
    assert made["errors"] == [{"where": "model", "code": "busy", "message": "too much", "retry": True}]
    assert made["end"] == {"status": "error", "reason": "busy"}
    assert transcript.answer == "See【7†a】"


def test_a_snapshot_does_not_change_with_later_events() -> None:
    transcript = Transcript([PartBegan(0, "text"), TextAdded(0, "a")])
    before = transcript.as_dict()
    transcript.add(TextAdded(0, "b"))
    assert before["parts"] == [{"kind": "text", "text": "a"}]
    assert before["end"] is None


def test_the_transcript_of_a_real_turn(tmp_path: Path) -> None:
    def draw(invocation: Invocation, context: ToolContext) -> str:
        context.output("one ")
        context.output("two")
        context.output("odd", "error")
        context.file(FILE)
        return "drawn"

    script = Script(tmp_path, ["\nA moment.<|assistant|>draw\n{}<|observation|>", "\nDone."])
    conversation = Conversation()
    conversation.ask("Draw.")
    events = list(Agent(script.llm, [PlainTool("draw", draw)], today=TODAY).run(conversation))
    transcript = Transcript(events)
    made = transcript.as_dict()
    assert [part["kind"] for part in made["parts"]] == ["text", "tool", "text"]
    assert made["parts"][1]["output"] == [{"channel": "output", "text": "one two"}, {"channel": "error", "text": "odd"}]
    assert made["parts"][1]["files"][0]["name"] == "plot.png"
    assert transcript.answer.replace("\n\n", "") == shown_text(events)
    assert made["usage"]["rounds"] == 2
    assert made["end"] == {"status": "completed", "reason": "stop"}


def conversation() -> Conversation:
    made = Conversation(
        messages=[
            Message("system", "Be brief."),
            Message("user", [TextPart("What is this?"), ImagePart(b"png", media_type="image/png")]),
            Message("assistant", "", reasoning="hm", tool_calls=(ToolCall("c1", "python", "print(1)"),)),
            Message("observation", "1", tool_call_id="c1", metadata="execution"),
            Message("assistant", "It is 1【7†a】."),
        ],
        approved={"python/python"},
    )
    made.sources.add("A page", url="https://example.org/", text="…")
    made.sources.add("A file", file="ab", page=3)
    return made


def test_a_saved_conversation_is_read_back() -> None:
    before = conversation()
    after = Conversation.from_dict(json.loads(json.dumps(before.as_dict())))
    assert [message.as_dict() for message in after.messages] == [message.as_dict() for message in before.messages]
    assert (after.id, after.sources.all(), after.approved) == (before.id, before.sources.all(), before.approved)
    assert after.sources.add("New", url="https://example.org/new").n == 9
    assert len({Conversation().id for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"version": 2}, "version 2 cannot be read"),
        ({"version": None}, "version None"),
        ({"messages": 7}, "not a saved conversation"),
        ({"messages": [{"role": "robot"}]}, r"role must be one of"),
        ({"sources": [{"n": 7}]}, "not a saved conversation"),
        ({"sources": None}, "not a saved conversation"),
        ({"approved": 3}, "not a saved conversation"),
    ],
)
def test_anything_else_is_refused(change: dict[str, object], problem: str) -> None:
    with pytest.raises(InvalidRequestError, match=problem):
        Conversation.from_dict(conversation().as_dict() | change)
