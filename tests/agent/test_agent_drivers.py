"""Both drivers: the same events, and a turn that is ended anywhere leaves a conversation that can go on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted_agent import TODAY, PlainTool, Script, ending, outputs, shown_text, states

from glm4.agent import running
from glm4.agent.agent import Agent
from glm4.agent.async_agent import AsyncAgent
from glm4.agent.conversation import Conversation
from glm4.agent.events import (
    AgentEvent,
    CallChanged,
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
from glm4.agent.limits import AgentLimits
from glm4.agent.steps import Decision
from glm4.agent.tool import Invocation, Tool, ToolContext
from glm4.async_llm import AsyncLLM
from glm4.chat.chat_request import ChatRequest
from glm4.chat.events import TextDelta
from glm4.chat.messages import Message
from glm4.errors import BusyError
from glm4.outputs import RequestMetrics, RequestOutput, StreamChunk
from glm4.sampling_params import SamplingParams

HANG = 60.0
"""Seconds after which something hangs, on however slow a machine."""

PLOT = StoredFile("0" * 64, "plot.png", "image/png", 3)
SCRIPTS = {
    "glm4": [
        "\nA moment.<|assistant|>draw\n{}<|observation|>",
        'weather\n{"at": 1}<|observation|>',
        "\nDone: 【7†a】.",
    ],
    "chatml": [
        'A moment.\n<tool_call>\n{"name": "draw", "arguments": {}}\n</tool_call>\n<tool_call>\n'
        '{"name": "weather", "arguments": {"at": 1}}\n</tool_call>',
        "Done: 【7†a】.",
    ],
}


def tools() -> list[Tool]:
    def draw(invocation: Invocation, context: ToolContext) -> str:
        context.output("drawing …")
        context.file(PLOT)
        context.sources.add("A page", url="https://example.org/")
        return "drawn"

    def weather(invocation: Invocation, context: ToolContext) -> str:
        raise ValueError("no weather today")

    return [PlainTool("draw", draw), PlainTool("weather", weather, approval="ask")]


def question() -> Conversation:
    conversation = Conversation()
    conversation.ask("Draw the weather.")
    return conversation


def run_sync(script: Script, conversation: Conversation) -> list[AgentEvent]:
    with Agent(script.llm, tools(), approve=lambda tool, invocation: "once", today=TODAY) as agent:
        return list(agent.run(conversation))


async def once(tool: Tool, invocation: Invocation) -> Decision:
    return "once"


async def run_async(script: Script, conversation: Conversation, stop_at: int | None = None) -> list[AgentEvent]:
    """The events; with `stop_at`, only so many, and then the iterator is closed."""
    engine = AsyncLLM(script.llm)
    agent = AsyncAgent.of(engine, tools(), approve=once, today=TODAY)
    found: list[AgentEvent] = []
    try:
        events = agent.run(conversation)
        async for event in events:
            found.append(event)
            if len(found) == stop_at:
                break
        await events.aclose()
        await nothing_runs(script)
    finally:
        await engine.close()
    return found


async def nothing_runs(script: Script) -> None:
    """Wait until the model has nothing to do."""
    deadline = time.monotonic() + HANG
    while script.backend.has_unfinished_requests():
        assert time.monotonic() < deadline, "the model still runs"
        await asyncio.sleep(0.01)


def plain(events: list[AgentEvent]) -> list[AgentEvent]:
    """Events without ids and times; text of one part in one piece, because a slow reader gets it in larger ones."""
    names: dict[str, str] = {}
    found: list[AgentEvent] = []
    for event in events:
        if isinstance(event, (CallChanged, OutputAdded, FileAdded)) and event.call is not None:
            event = replace(event, call=names.setdefault(event.call, f"call {len(names)}"))
        if isinstance(event, CallChanged):
            event = replace(event, seconds=None)
        if isinstance(event, UsageAdded):
            event = replace(event, prefill_seconds=None, decode_seconds=None)
        last = found[-1] if found else None
        if isinstance(event, TextAdded) and isinstance(last, TextAdded) and last.part == event.part:
            found[-1] = replace(last, add=last.add + event.add)
            continue
        if isinstance(event, CallChanged) and isinstance(last, CallChanged) and event.state == last.state == "writing":
            found[-1] = replace(last, add=last.add + event.add)
            continue
        found.append(event)
    return found


@pytest.mark.parametrize("dialect", list(SCRIPTS))
def test_both_drivers_give_the_same_events_and_conversation(tmp_path: Path, dialect: str) -> None:
    one, other = question(), question()
    script = Script(tmp_path / "a", SCRIPTS[dialect], dialect=dialect)
    events = run_sync(script, one)
    again = Script(tmp_path / "b", SCRIPTS[dialect], dialect=dialect)
    assert plain(asyncio.run(run_async(again, other))) == plain(events)
    assert again.prompts == script.prompts
    assert [(m.role, m.text, m.metadata) for m in one.messages] == [
        (m.role, m.text, m.metadata) for m in other.messages
    ]
    assert shown_text(events) == "A moment.Done: 【7†a】."
    assert outputs(events) == "drawing …ValueError: no weather today"
    assert states(events)[-1] == ("weather", "error")
    assert ending(events) == ("completed", "stop")


def check_valid(conversation: Conversation, script: Script) -> None:
    """The conversation can be shown to its model, to one of another dialect, and saved."""
    assert conversation.messages[0] == Message("user", "Draw the weather.")
    restored = Conversation.from_dict(conversation.as_dict())
    assert restored.messages == conversation.messages
    messages = [*restored.messages, Message("user", "And now?")]
    called = {call.id for message in messages for call in message.tool_calls}
    answered = [message.tool_call_id for message in messages if message.role in ("tool", "observation")]
    assert sorted(called) == sorted(filter(None, answered)), "every call has its result, and every result its call"
    script.llm.prepare(ChatRequest.of(messages))


@pytest.mark.parametrize("dialect", list(SCRIPTS))
def test_closing_after_any_event_leaves_a_valid_conversation(tmp_path: Path, dialect: str) -> None:
    whole = len(run_sync(Script(tmp_path / "whole", SCRIPTS[dialect], dialect=dialect), question()))
    assert whole > 40
    script = Script(tmp_path / "cut", SCRIPTS[dialect], dialect=dialect)
    said = 0
    for stop_at in range(1, whole + 1):
        script._answers[:] = SCRIPTS[dialect]
        conversation = question()
        agent = Agent(script.llm, tools(), approve=lambda tool, invocation: "once", today=TODAY)
        events = agent.run(conversation)
        seen = [next(events) for _ in range(stop_at)]
        events.close()
        assert not script.backend.has_unfinished_requests()
        check_valid(conversation, script)
        text = "".join(message.text for message in conversation.messages if message.role == "assistant")
        assert text.startswith(shown_text(seen)), "what was shown is kept"
        said = max(said, len(text))
    assert said == len("A moment.Done: 【7†a】.")


@pytest.mark.parametrize("dialect", list(SCRIPTS))
def test_closing_an_asynchronous_turn_after_any_event(tmp_path: Path, dialect: str) -> None:
    whole = len(run_sync(Script(tmp_path / "whole", SCRIPTS[dialect], dialect=dialect), question()))
    for stop_at in range(1, whole + 1):
        script = Script(tmp_path / str(stop_at), SCRIPTS[dialect], dialect=dialect)
        conversation = question()
        asyncio.run(run_async(script, conversation, stop_at))
        check_valid(conversation, Script(tmp_path / f"check{stop_at}", ["\nHello."], dialect=dialect))


def waiting_tool(seen: list[ToolContext], *, listens: bool, **options: Any) -> PlainTool:
    """A tool that waits for ever, or until it is told to stop; `seen` gets the context when it has begun."""

    def wait(invocation: Invocation, context: ToolContext) -> str:
        seen.append(context)
        if listens:
            assert context.cancelled.wait(HANG), "nobody said to stop"
            return "stopped early"
        time.sleep(2.0)
        return "too late"

    return PlainTool("draw", wait, **options)


CALL = "draw\n{}<|observation|>"


def test_canceling_the_task_stops_the_tool(tmp_path: Path) -> None:
    seen: list[ToolContext] = []
    script = Script(tmp_path, [CALL, "\nDone."])

    async def main() -> Conversation:
        engine = AsyncLLM(script.llm)
        conversation = question()
        agent = AsyncAgent.of(engine, [waiting_tool(seen, listens=True)])

        async def consume() -> None:
            async for _ in agent.run(conversation):
                pass

        task = asyncio.create_task(consume())
        await until(lambda: bool(seen))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await engine.close()
        return conversation

    conversation = asyncio.run(main())
    assert seen[0].cancelled.is_set()
    assert conversation.messages == [Message("user", "Draw the weather.")]


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("where", ["model", "tool", "approval"])
def test_stop_ends_an_asynchronous_turn_with_an_event(tmp_path: Path, where: str) -> None:
    begun: list[Any] = []
    asked = asyncio.Event

    async def ask(tool: Tool, invocation: Invocation) -> Decision:
        begun.append(tool)
        await asked().wait()
        return "once"

    async def main() -> list[AgentEvent]:
        script = Script(tmp_path, ["\n" + "x" * 20_000 if where == "model" else CALL, "\nDone."])
        engine = AsyncLLM(script.llm)
        tool = waiting_tool(begun, listens=True, approval="ask" if where == "approval" else "always")
        agent = AsyncAgent.of(engine, [tool], approve=ask)
        found: list[AgentEvent] = []

        async def consume() -> None:
            async for event in agent.run(question()):
                found.append(event)
                if where == "model" and isinstance(event, TextAdded):
                    begun.append(event)

        task = asyncio.create_task(consume())
        await until(lambda: bool(begun))
        agent.stop()
        await asyncio.wait_for(task, HANG)
        await nothing_runs(script)
        await engine.close()
        return found

    events = asyncio.run(main())
    assert ending(events) == ("stopped", "stopped")
    assert len(shown_text(events)) < 20_000


def test_stop_from_another_thread_ends_a_synchronous_turn(tmp_path: Path) -> None:
    seen: list[ToolContext] = []
    agent = Agent(Script(tmp_path, [CALL, "\nDone."]).llm, [waiting_tool(seen, listens=True)])

    def stop() -> None:
        while not seen:
            time.sleep(0.01)
        agent.stop()

    thread = threading.Thread(target=stop)
    thread.start()
    conversation = question()
    events = list(agent.run(conversation))
    thread.join()
    assert ending(events) == ("stopped", "stopped")
    assert states(events) == [("draw", "writing"), ("draw", "running"), ("draw", "error")]
    assert conversation.messages == [Message("user", "Draw the weather.")]


@pytest.mark.parametrize("driver", ["sync", "async"])
@pytest.mark.parametrize("listens", [True, False])
def test_a_call_that_takes_too_long_is_stopped_and_the_model_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: str, listens: bool
) -> None:
    monkeypatch.setattr(running, "GRACE", HANG if listens else 0.1)
    seen: list[ToolContext] = []
    script = Script(tmp_path, [CALL, 'draw\n{"again": 1}<|observation|>', "\nDone."])
    tool = waiting_tool(seen, listens=listens, timeout=0.1)
    conversation = question()

    async def main() -> list[AgentEvent]:
        engine = AsyncLLM(script.llm)
        events = [event async for event in AsyncAgent.of(engine, [tool]).run(conversation)]
        await engine.close()
        return events

    events = list(Agent(script.llm, [tool]).run(conversation)) if driver == "sync" else asyncio.run(main())
    assert ending(events) == ("completed", "stop")
    assert seen[0].cancelled.is_set()
    results = [message.text for message in conversation.messages if message.role == "observation"]
    if listens:
        assert results == ["stopped early"] * 2
    else:
        assert results[0] == "draw was stopped: it took longer than 0.1 seconds."
        assert len(seen) == 1, "a second call does not run beside one that was left behind"


def test_the_time_limit_stops_a_tool_and_then_the_turn(tmp_path: Path) -> None:
    seen: list[ToolContext] = []
    agent = Agent(
        Script(tmp_path, [CALL, "\nDone."]).llm, [waiting_tool(seen, listens=True)], limits=AgentLimits(seconds=0.5)
    )
    conversation = question()
    events = list(agent.run(conversation))
    assert ending(events) == ("limit", "seconds")
    assert [message.role for message in conversation.messages] == ["user", "assistant", "observation"]


@pytest.mark.parametrize("driver", ["sync", "async"])
def test_the_time_limit_stops_the_model(tmp_path: Path, driver: str) -> None:
    script = Script(tmp_path, ["\n" + "x" * 60_000], max_model_len=65_536)
    conversation = question()
    limits = AgentLimits(seconds=0.2)

    async def main() -> list[AgentEvent]:
        engine = AsyncLLM(script.llm)
        events = [event async for event in AsyncAgent.of(engine, limits=limits).run(conversation)]
        await engine.close()
        return events

    events = list(Agent(script.llm, limits=limits).run(conversation)) if driver == "sync" else asyncio.run(main())
    assert ending(events) == ("limit", "seconds")
    assert shown_text(events) == conversation.messages[-1].text


def test_the_time_limit_ends_a_model_that_says_nothing(tmp_path: Path) -> None:
    closed = []

    async def silent(request: ChatRequest) -> AsyncIterator[StreamChunk]:
        try:
            await asyncio.Event().wait()
            yield StreamChunk("", 0)
        finally:
            closed.append(request)

    async def main() -> list[AgentEvent]:
        agent = AsyncAgent(silent, Script(tmp_path, ["\n"]).llm, limits=AgentLimits(seconds=0.1))
        return [event async for event in agent.run(question())]

    assert ending(asyncio.run(main())) == ("limit", "seconds")
    assert len(closed) == 1


def test_a_model_that_ends_without_an_end_is_an_error(tmp_path: Path) -> None:
    async def short(request: ChatRequest) -> AsyncIterator[StreamChunk]:
        yield StreamChunk("", 0)

    async def main() -> list[AgentEvent]:
        agent = AsyncAgent(short, Script(tmp_path, ["\n"]).llm)
        return [event async for event in agent.run(question())]

    assert ending(asyncio.run(main())) == ("error", "model_failed")


def test_a_model_that_fails_midway_keeps_what_it_said(tmp_path: Path) -> None:
    async def failing(request: ChatRequest) -> AsyncIterator[StreamChunk]:
        yield StreamChunk("", 0, (TextDelta("Half of"),), (1,))
        output = RequestOutput("", None, [], [], None, RequestMetrics(), error=BusyError("too many pictures"))
        yield StreamChunk("", 0, (TextDelta(" it"),), (2,), finish_reason="error", output=output)

    conversation = question()

    async def main() -> list[AgentEvent]:
        agent = AsyncAgent(failing, Script(tmp_path, ["\n"]).llm)
        return [event async for event in agent.run(conversation)]

    assert asyncio.run(main()) == [
        Progress("prefill"),
        Progress("generate"),
        PartBegan(0, "text"),
        TextAdded(0, "Half of"),
        TextAdded(0, " it"),
        ErrorRaised("model", "busy", "too many pictures", retry=True),
        TurnEnded("error", "busy"),
    ]
    assert conversation.messages[-1] == Message("assistant", "Half of it")


def test_one_sample_is_asked_for_whatever_the_parameters_say(tmp_path: Path) -> None:
    agent = Agent(Script(tmp_path, ["\nHello."]).llm, params=SamplingParams(n=3, temperature=1.0))
    assert shown_text(list(agent.run(question()))) == "Hello."


def test_the_time_a_user_takes_to_decide_does_not_count(tmp_path: Path) -> None:
    def approve(tool: Tool, invocation: Invocation) -> Decision:
        time.sleep(1.0)
        return "once"

    tool = PlainTool("draw", lambda invocation, context: "drawn", approval="ask")
    agent = Agent(Script(tmp_path, [CALL, "\nDone."]).llm, [tool], approve=approve, limits=AgentLimits(seconds=0.9))
    assert ending(list(agent.run(question())))[0] == "completed"


@pytest.mark.parametrize(("parallel", "together"), [(True, 3), (False, 1)])
def test_calls_run_at_the_same_time_only_if_the_tool_allows_it(tmp_path: Path, parallel: bool, together: int) -> None:
    lock = threading.Lock()
    everybody = threading.Barrier(together)
    now = most = 0

    def run(invocation: Invocation, context: ToolContext) -> str:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        everybody.wait(HANG)
        with lock:
            now -= 1
        return invocation.arguments

    calls = "\n".join(f'<tool_call>\n{{"name": "draw", "arguments": {{"n": {n}}}}}\n</tool_call>' for n in range(3))
    script = Script(tmp_path, [calls, "Done."], dialect="chatml")
    conversation = question()
    list(Agent(script.llm, [PlainTool("draw", run, parallel=parallel)]).run(conversation))
    assert most == together
    results = [message.text for message in conversation.messages if message.role == "tool"]
    assert results == ['{"n": 0}', '{"n": 1}', '{"n": 2}']


def test_a_flood_of_output_is_cut_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "MOST_OUTPUT", 100)

    def run(invocation: Invocation, context: ToolContext) -> str:
        for _ in range(1000):
            context.output("x" * 30)
        return "printed"

    script = Script(tmp_path, [CALL, "\nDone."])
    events = list(Agent(script.llm, [PlainTool("draw", run)]).run(question()))
    assert len(outputs(events)) == 100
    assert [event.truncated for event in events if isinstance(event, OutputAdded)] == [False, False, False, True]


def test_progress_says_when_the_model_reads_and_when_it_writes(tmp_path: Path) -> None:
    events = run_sync(Script(tmp_path, SCRIPTS["glm4"]), question())
    assert [event.phase for event in events if isinstance(event, Progress)] == ["prefill", "generate"] * 3
    assert isinstance(events[-1], TurnEnded)
