"""`Agent`: a model that uses tools, for programs without an event loop.

>>> agent = Agent(llm, [weather])                                           # doctest: +SKIP
>>> conversation = Conversation()                                           # doctest: +SKIP
>>> conversation.ask("Is it raining in Beijing?")                           # doctest: +SKIP
>>> for event in agent.run(conversation): print(event)                      # doctest: +SKIP
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from datetime import date
from functools import partial
from itertools import count
from types import TracebackType

from glm4.agent.conversation import Conversation
from glm4.agent.events import AgentEvent
from glm4.agent.limits import AgentLimits
from glm4.agent.loop import AgentLoop
from glm4.agent.running import Happening, start
from glm4.agent.steps import Ask, Decision, Generate, RunCalls, turn_options
from glm4.agent.tool import Invocation, Tool
from glm4.errors import Glm4Error, InvalidRequestError
from glm4.llm import LLM
from glm4.sampling_params import SamplingParams

_NUMBERS = count(1)

Approve = Callable[[Tool, Invocation], Decision]


class Agent:
    """A model with tools, for one conversation at a time: tools may keep state.

    Args:
        tools: closed by `close`, not before.
        system: instructions; a system message of the conversation takes their place.
        params: sampling options of every round; None uses the model's own.
        adapter: name of the adapter to answer with.
        constrain_calls: a call that the model begins must match the function's schema.
        approve: asked before calls of tools whose approval is "ask"; None denies them.
        today: the date that the model is told; None is today.
    """

    def __init__(
        self,
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
        self._llm = llm
        self.tools = tuple(tools)
        self._options = partial(
            turn_options, llm, self.tools, system, today,
            limits=limits, params=params, adapter=adapter, constrain_calls=constrain_calls,
        )  # fmt: skip
        self._approve = approve
        self._stopped = False  # no Event: its lock is not for signal handlers
        self._happened: queue.SimpleQueue[Happening | None] = queue.SimpleQueue()
        self._busy = threading.Lock()

    def run(self, conversation: Conversation) -> Generator[AgentEvent, None, None]:
        """Answer the last message of a conversation, and add the answer to it; ends with `TurnEnded`.

        Closing the iterator ends the turn within a step: the model's answer stops, and running tools are told to.
        The conversation then has what was written, and is well-formed.

        Raises:
            InvalidRequestError: another turn of this agent is running.
        """
        if not self._busy.acquire(blocking=False):
            raise InvalidRequestError("this agent is in a turn already; its tools serve one conversation")
        self._stopped = False
        try:
            loop = AgentLoop(conversation, self._options(), clock=time.monotonic)
        except BaseException:
            self._busy.release()
            raise
        try:
            while (step := loop.step()) is not None:
                yield from loop.take()
                if isinstance(step, Generate):
                    yield from self._generate(step, loop)
                elif isinstance(step, Ask):
                    loop.decide(self._approve(step.tool, step.invocation) if self._approve else "never")
                else:
                    yield from self._run_calls(step, loop, conversation)
                if self._was_stopped():
                    loop.stop()
            yield from loop.take()
        finally:
            loop.stop()
            self._busy.release()

    def stop(self) -> None:
        """End the running turn within a step, as closing its iterator does; it ends with `TurnEnded`.

        From any thread, and from a signal handler.
        """
        self._stopped = True
        self._happened.put(None)

    def _was_stopped(self) -> bool:
        return self._stopped

    def close(self) -> None:
        """Close the tools. Idempotent."""
        for tool in self.tools:
            tool.close()

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _generate(self, step: Generate, loop: AgentLoop) -> Generator[AgentEvent, None, None]:
        try:
            with closing(self._llm.run_steps([(f"agent-{next(_NUMBERS)}", step.request)])) as steps:
                for chunks in steps:
                    loop.add(chunks)
                    if self._was_stopped():
                        loop.stop()
                    yield from loop.take()
                    if not loop.generating:
                        return
        except Glm4Error as error:
            loop.fail(error)

    def _run_calls(
        self, step: RunCalls, loop: AgentLoop, conversation: Conversation
    ) -> Generator[AgentEvent, None, None]:
        arrived: queue.SimpleQueue[Happening | None] = queue.SimpleQueue()
        self._happened = arrived  # a new one: what calls that were left behind say goes nowhere
        batch = start(step, conversation, arrived.put)
        try:
            while not batch.done and not self._was_stopped():
                happened = list(batch.check())
                if not happened:
                    try:
                        item = arrived.get(timeout=batch.wait_seconds())
                    except queue.Empty:
                        continue
                    if item is None:
                        continue
                    batch.note(item)
                    happened = [item]
                for one in happened:
                    one.tell(loop)
                yield from loop.take()
        finally:
            batch.cancel()
