"""`AsyncAgent`: `agent.Agent` for servers and asyncio programs: the same turns and events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import date
from functools import partial
from typing import Any

from glm4.agent.conversation import Conversation
from glm4.agent.events import AgentEvent
from glm4.agent.limits import AgentLimits
from glm4.agent.loop import AgentLoop
from glm4.agent.running import Happening, start
from glm4.agent.steps import Ask, Decision, RunCalls, turn_options
from glm4.agent.steps import Generate as GenerateStep
from glm4.agent.tool import Invocation, Tool
from glm4.async_llm import AsyncLLM
from glm4.chat.chat_request import ChatRequest
from glm4.errors import Glm4Error, InvalidRequestError
from glm4.llm import LLM
from glm4.outputs import StreamChunk
from glm4.sampling_params import SamplingParams
from glm4.system.event_loops import post

Generate = Callable[[ChatRequest], AsyncIterator[StreamChunk]]
"""Answers a request, chunk by chunk; an asynchronous generator, which ends the request when it is closed."""
Approve = Callable[[Tool, Invocation], Awaitable[Decision]]


class AsyncAgent:
    """`agent.Agent` for asyncio; tools run on threads.

    Args:
        generate: answers requests; see `of` for a plain one.
        llm: the model behind it, for its dialect and limits.
        tools, system, params, adapter, limits, constrain_calls, approve, today: see `agent.Agent`.
    """

    def __init__(
        self,
        generate: Generate,
        llm: LLM,
        tools: Sequence[Tool] = (),
        *,
        system: str | None = None,
        params: SamplingParams | None = None,
        adapter: str | None = None,
        limits: AgentLimits = AgentLimits(),  # noqa: B008 (immutable)
        constrain_calls: bool = True,
        approve: Approve | None = None,
        today: date | None = None,
    ) -> None:
        self._ask_model = generate
        self.tools = tuple(tools)
        self._options = partial(
            turn_options, llm, self.tools, system, today,
            limits=limits, params=params, adapter=adapter, constrain_calls=constrain_calls,
        )  # fmt: skip
        self._approve = approve
        self._running = False
        self._stopped = False
        self._interrupt: Callable[[], object] | None = None  # makes what is awaited return

    @classmethod
    def of(cls, engine: AsyncLLM, tools: Sequence[Tool] = (), **options: Any) -> AsyncAgent:
        """An agent on an `AsyncLLM`; options are those of the class."""

        async def generate(request: ChatRequest) -> AsyncIterator[StreamChunk]:
            prepared = await asyncio.to_thread(engine.llm.prepare, request)
            stream = await engine.submit(prepared)
            try:
                async for chunk in stream:
                    yield chunk
            finally:
                stream.close()

        return cls(generate, engine.llm, tools, **options)

    async def run(self, conversation: Conversation) -> AsyncGenerator[AgentEvent, None]:
        """Answer the last message of a conversation, and add the answer to it; ends with `TurnEnded`.

        Canceling the task that iterates, or `aclose`, ends the turn within a step: the model's answer stops, and
        running tools are told to. The conversation then has what was written, and is well-formed.

        Raises:
            InvalidRequestError: another turn of this agent is running.
        """
        if self._running:
            raise InvalidRequestError("this agent is in a turn already; its tools serve one conversation")
        self._running, self._stopped = True, False
        try:
            options = await asyncio.to_thread(self._options)  # a tool may have to ask another process what it can do
        except BaseException:
            self._running = False
            raise
        loop = AgentLoop(conversation, options, clock=time.monotonic)
        try:
            while (step := loop.step()) is not None:
                for event in loop.take():
                    yield event
                if isinstance(step, Ask):
                    loop.decide(await self._decision(step))
                else:
                    async with aclosing(self._events(step, loop, conversation)) as events:
                        async for event in events:
                            yield event
                if self._was_stopped():
                    loop.stop()
            for event in loop.take():
                yield event
        finally:
            loop.stop()
            self._running = False

    def stop(self) -> None:
        """End the running turn within a step, as canceling it does; it ends with `TurnEnded`. On the event loop."""
        self._stopped = True
        if self._interrupt is not None:
            self._interrupt()

    def close(self) -> None:
        """Close the tools; may wait for their processes. Idempotent."""
        for tool in self.tools:
            tool.close()

    def _was_stopped(self) -> bool:
        return self._stopped

    async def _decision(self, step: Ask) -> Decision:
        if self._approve is None or self._was_stopped():
            return "never"
        asking = asyncio.ensure_future(self._approve(step.tool, step.invocation))
        self._interrupt = asking.cancel
        try:
            return await asking
        except asyncio.CancelledError:
            if not self._was_stopped():
                raise
            return "never"
        finally:
            self._interrupt = None
            asking.cancel()

    def _events(
        self, step: GenerateStep | RunCalls, loop: AgentLoop, conversation: Conversation
    ) -> AsyncGenerator[AgentEvent, None]:
        if isinstance(step, RunCalls):
            return self._run_calls(step, loop, conversation)
        return self._generate(step, loop)

    async def _generate(self, step: GenerateStep, loop: AgentLoop) -> AsyncGenerator[AgentEvent, None]:
        arrived: asyncio.Queue[StreamChunk | None] = asyncio.Queue()
        pump = asyncio.create_task(_pump(self._ask_model(step.request), arrived))
        pump.add_done_callback(lambda _: arrived.put_nowait(None))
        self._interrupt = pump.cancel
        timer = None
        if loop.deadline is not None:
            left = max(0.0, loop.deadline - time.monotonic()) + 0.01  # timers may be early by as much as clocks differ
            timer = asyncio.get_running_loop().call_later(left, pump.cancel)
        try:
            while loop.generating and not self._was_stopped():
                chunk = await arrived.get()
                loop.add(() if chunk is None else (chunk,))
                if chunk is None:
                    _check(pump, loop)
                for event in loop.take():
                    yield event
                arrived.task_done()
        finally:
            self._interrupt = None
            if timer is not None:
                timer.cancel()
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)

    async def _run_calls(
        self, step: RunCalls, loop: AgentLoop, conversation: Conversation
    ) -> AsyncGenerator[AgentEvent, None]:
        arrived: asyncio.Queue[Happening | None] = asyncio.Queue()
        here = asyncio.get_running_loop()
        batch = start(step, conversation, lambda item: post(here, partial(arrived.put_nowait, item)))
        self._interrupt = partial(arrived.put_nowait, None)
        try:
            while not batch.done and not self._was_stopped():
                happened = batch.check()
                if not happened:
                    timer = here.call_later(batch.wait_seconds(), arrived.put_nowait, None)
                    try:
                        item = await arrived.get()
                    finally:
                        timer.cancel()
                    if item is None:
                        continue
                    batch.note(item)
                    happened = [item]
                for one in happened:
                    one.tell(loop)
                for event in loop.take():
                    yield event
        finally:
            self._interrupt = None
            batch.cancel()


async def _pump(chunks: AsyncIterator[StreamChunk], arrived: asyncio.Queue[StreamChunk | None]) -> None:
    """Pass chunks on, each when the one before it has been dealt with: a slow reader gets larger chunks."""
    try:
        async for chunk in chunks:
            arrived.put_nowait(chunk)
            await arrived.join()
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()


def _check(pump: asyncio.Task[None], loop: AgentLoop) -> None:
    """The model's answer ended, one way or another."""
    error = None if pump.cancelled() else pump.exception()
    if isinstance(error, Glm4Error):
        loop.fail(error)
    elif error is not None:
        raise error
    elif pump.cancelled():
        loop.stop()
    elif loop.generating:
        loop.fail(Glm4Error("the model's answer ended without an end"))
