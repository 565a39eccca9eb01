"""`AgentLoop`: one turn of an agent, without input and output: drivers do what its steps say, and tell it the outcome.

A turn is rounds: the model answers, its calls are run, and their results are in the next prompt. Only whole rounds get
into the conversation, so it is well-formed whenever a turn ends; of a round that was cut short, the text and the calls
with a result do.

Drivers: `agent.Agent`, and `async_agent.AsyncAgent` for asyncio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import count

from glm4.agent.answer_text import Placeholders
from glm4.agent.calls import NOT_ALLOWED, Call, CallReader
from glm4.agent.conversation import Conversation
from glm4.agent.events import (
    AgentEvent,
    CallChanged,
    CallState,
    Channel,
    EndStatus,
    ErrorRaised,
    FileAdded,
    OutputAdded,
    TurnEnded,
    UsageAdded,
)
from glm4.agent.files import StoredFile
from glm4.agent.prompting import cut_text
from glm4.agent.round import Round
from glm4.agent.steps import Ask, Decision, Generate, RunCalls, Step, TurnOptions
from glm4.agent.tool import Invocation, Tool, ToolResult
from glm4.chat.chat_request import ChatOptions, ChatRequest
from glm4.chat.messages import Message
from glm4.errors import (
    BusyError,
    Glm4Error,
    InvalidRequestError,
    ModelClosedError,
    OutOfMemoryError,
    PromptTooLongError,
    RemoteError,
    RemoteUnavailableError,
)
from glm4.outputs import RequestOutput, StreamChunk


class AgentLoop:
    """One turn: answers the last message of a conversation, and adds to it.

    Args:
        clock: seconds, from any start.

    Attributes:
        ended: nothing more will happen.
    """

    def __init__(self, conversation: Conversation, options: TurnOptions, *, clock: Callable[[], float]) -> None:
        self._conversation = conversation
        self._options = options
        self._clock = clock
        seconds = options.limits.seconds
        self._deadline = None if seconds is None else clock() + seconds
        self._parts = count()
        self._events: list[AgentEvent] = []
        self._round: Round | None = None  # the model is writing
        self._reader = CallReader(options.prompting)
        self._message: Message | None = None  # of the answer whose calls are being run
        self._calls: list[Call] = []
        self._asked_at = 0.0
        self._rounds = 0
        self._tokens = 0
        self._last = False  # this round is without tools: the model is to answer
        self._limit: str | None = None  # why it is
        self._constrain = options.constrain_calls
        for problem in options.prompting.problems:
            self._events.append(ErrorRaised("tool", "tool_unavailable", problem))
        self.ended = False

    @property
    def generating(self) -> bool:
        """The model's answer is wanted."""
        return self._round is not None

    @property
    def deadline(self) -> float | None:
        """When the turn must have ended, on the loop's clock."""
        return self._deadline

    def take(self) -> Sequence[AgentEvent]:
        """The events since the last time, in order."""
        if self._round is not None:
            self._events += self._round.take()
        events, self._events = self._events, []
        return events

    def step(self) -> Step | None:
        """What is to be done next; None at the end. Events of the step are to be shown before it is done."""
        while not self.ended:
            if self._message is None:
                return self._generate()
            step = self._next_call()
            if step is not None:
                return step
            self._keep(self._message, self._calls)
            self._reader.note(self._calls)
            self._message, self._calls = None, []
        return None

    # The model

    def _generate(self) -> Generate | None:
        limits = self._options.limits
        if self._expired():
            self._end("limit", "seconds")
            return None
        if self._reader.repeats >= limits.repeats:
            self._limit = "repeated_calls"
        elif self._rounds >= limits.rounds:
            self._limit = "rounds"
        self._last = self._last or self._limit is not None
        self._rounds += 1
        try:
            request = self._request()
        except InvalidRequestError as error:
            self.fail(error)
            return None
        placeholders = Placeholders(self._options.prompting.replacements)
        self._round = Round(self._parts, self._conversation.sources, placeholders, limits.calls_per_round)
        return Generate(request)

    def _request(self) -> ChatRequest:
        prompting = self._options.prompting
        options: ChatOptions = {"adapter": self._options.adapter}
        tools = prompting.definitions()
        if tools:
            options["tools"] = tools
            options["tool_choice"] = "none" if self._last else "auto"
            options["constrain_calls"] = self._constrain
        return ChatRequest.of(prompting.messages(self._conversation.messages), self._options.params, **options)

    def add(self, chunks: Iterable[StreamChunk]) -> None:
        """Take what the model wrote in a step; none if it was busy with something else."""
        for chunk in chunks:
            if self._round is None:
                return
            self._tokens += len(chunk.token_ids)
            self._round.add(chunk)
            if chunk.output is not None:
                self._answered(chunk.output)
            elif self._round.full:
                self._called(self._round.message())
        if self.generating and self._expired():
            self.stop("limit", "seconds")
        most = self._options.limits.tokens
        if self.generating and most is not None and self._tokens >= most:
            self.stop("limit", "tokens")

    def _answered(self, output: RequestOutput) -> None:
        if output.error is not None:
            self.fail(output.error)
            return
        assert self._round is not None  # noqa: S101 (for the type checker)
        self._events += self._round.take()
        self._events.append(_usage(output, self._options.context))
        reason = output.outputs[0].finish_reason
        message = self._round.message()
        if message.tool_calls and reason != "length":
            self._called(message)
        elif self._rounds > 1 and not self._last and not message.text:
            # Small models have nothing to say after a result. Without tools, they do.
            self._last, self._round = True, None
        elif self._limit is not None:
            self.stop("limit", self._limit)
        else:
            self.stop("completed", "length" if reason == "length" else "stop")

    def _called(self, message: Message) -> None:
        """The model has made calls, and waits for their results."""
        assert self._round is not None  # noqa: S101 (for the type checker)
        self._events += self._round.take()
        parts, self._round = self._round.call_parts, None
        self._message = message
        self._calls = self._reader.read(message.tool_calls, parts, self._conversation.approved)
        for call in self._calls:
            if call.result is not None:
                self._show_result(call, "denied" if call.allowed is False else "error")

    def fail(self, error: Glm4Error) -> None:
        """The model failed, which ends the turn.

        If it has not begun, the reason may be that a function's schema cannot be enforced, or not by this model: it is
        asked again without that.
        """
        if self._constrain and self._round is not None and not self._round.begun and _is_refusal(error):
            self._constrain = False
            self._rounds -= 1
            self._round = None
            return
        code, retry = next((found for kind, found in _CODES if isinstance(error, kind)), ("model_failed", False))
        if not self.ended:
            if self._round is not None:
                self._events += self._round.take()
            self._events.append(ErrorRaised("model", code, str(error), retry))
            self.stop("error", code)

    # Calls

    def _next_call(self) -> Ask | RunCalls | None:
        waiting = [call for call in self._calls if call.result is None]
        for call in waiting:
            if call.allowed is None and call.approval_key in self._conversation.approved:
                call.allowed = True
            if call.allowed is None:
                assert call.tool is not None  # noqa: S101 (for the type checker, as below)
                assert call.invocation is not None  # noqa: S101
                self._asked_at = self._clock()
                self._change(call, "waiting", about=_about(call.tool, call.invocation))
                return Ask(call.tool, call.invocation)
        batch: list[Call] = []
        for call in waiting:
            assert call.tool is not None  # noqa: S101
            if batch and not call.tool.parallel:
                break
            batch.append(call)
            if not call.tool.parallel:
                break
        for call in batch:
            self._change(call, "running")
        pairs = tuple((c.tool, c.invocation) for c in batch if c.tool is not None and c.invocation is not None)
        return RunCalls(pairs, self._deadline) if pairs else None

    def decide(self, decision: Decision) -> None:
        """The user's decision on the call of the latest `Ask`."""
        call = next(call for call in self._calls if call.result is None and call.allowed is None)
        if self._deadline is not None:  # the user's time does not count
            self._deadline += self._clock() - self._asked_at
        call.allowed = decision in ("once", "always")
        if decision == "always":
            self._conversation.approved.add(call.approval_key)
        if not call.allowed:
            call.result = ToolResult.error(NOT_ALLOWED)
            self._show_result(call, "denied")

    def output(self, call_id: str, text: str, channel: Channel, *, truncated: bool = False) -> None:
        """A running call said something."""
        if self._running(call_id) is not None:
            self._events.append(OutputAdded(call_id, channel, text, truncated))

    def file(self, call_id: str, file: StoredFile) -> None:
        """A running call made a file."""
        if self._running(call_id) is not None:
            self._events.append(FileAdded(file, call_id))

    def finish(self, call_id: str, result: ToolResult, seconds: float | None, *, news: bool = True) -> None:
        """A running call ended.

        Args:
            news: the tool has not shown the result's text to people, or could not.
        """
        call = self._running(call_id)
        if call is not None:
            call.result = result
            self._show_result(call, "error" if result.failed else "done", seconds, news=news)

    def _running(self, call_id: str) -> Call | None:
        return next((call for call in self._calls if call.written.id == call_id and call.result is None), None)

    def _show_result(self, call: Call, state: CallState, seconds: float | None = None, *, news: bool = True) -> None:
        assert call.result is not None  # noqa: S101
        text = "\n\n".join(one.text for one in call.result.observations)
        if text and news and state != "denied":
            channel: Channel = "error" if call.result.failed else "output"
            self._events.append(OutputAdded(call.written.id, channel, cut_text(text, self._options.output_chars)))
        self._change(call, state, seconds=seconds)

    def _change(self, call: Call, state: CallState, *, about: str = "", seconds: float | None = None) -> None:
        written = call.written
        self._events.append(CallChanged(call.part, written.id, written.name, state, about=about, seconds=seconds))

    # The end

    def stop(self, status: EndStatus = "stopped", reason: str = "stopped") -> None:
        """End the turn here: what the model wrote is kept, and the calls that have a result. Idempotent."""
        if self.ended:
            return
        if self._round is not None:
            self._round.finish()
            self._events += self._round.take()
            message = self._round.message()
            parts, self._round = self._round.call_parts, None
            for call in message.tool_calls:
                self._events.append(CallChanged(parts[call.id], call.id, call.name, "error"))
            self._keep(message, [])
        elif self._message is not None:
            for unfinished in (call for call in self._calls if call.result is None):
                self._change(unfinished, "error")
            self._keep(self._message, self._calls)
        self._message, self._calls = None, []
        self._end(status, reason)

    def _end(self, status: EndStatus, reason: str) -> None:
        self.ended = True
        self._events.append(TurnEnded(status, reason))

    def _keep(self, message: Message, calls: Sequence[Call]) -> None:
        """Add an answer to the conversation, with the calls that have a result and these."""
        made = [(call.written, call.result) for call in calls if call.result is not None]
        message = replace(message, tool_calls=tuple(written for written, _ in made))
        if message.text or message.reasoning or made:
            self._conversation.messages.append(message)
        for written, result in made:
            self._conversation.messages += self._options.prompting.results(
                written.id, result, alone=len(made) == 1, chars=self._options.output_chars
            )

    def _expired(self) -> bool:
        return self._deadline is not None and self._clock() >= self._deadline


_CODES: tuple[tuple[type[Glm4Error], tuple[str, bool]], ...] = (
    (PromptTooLongError, ("prompt_too_long", False)),
    (InvalidRequestError, ("invalid_request", False)),
    (BusyError, ("busy", True)),
    (RemoteUnavailableError, ("unavailable", True)),
    (RemoteError, ("remote_failed", False)),
    (OutOfMemoryError, ("out_of_memory", True)),
    (ModelClosedError, ("model_closed", False)),
)
"""Kinds of errors → their code, and whether the same turn may work later."""


def _is_refusal(error: Glm4Error) -> bool:
    return isinstance(error, InvalidRequestError) and not isinstance(error, PromptTooLongError)


def _usage(output: RequestOutput, context: int) -> UsageAdded:
    metrics = output.metrics
    first, last = metrics.first_token_time, metrics.finished_time
    return UsageAdded(
        prompt=metrics.num_prompt_tokens,
        cached=metrics.num_cached_tokens,
        completion=metrics.num_generated_tokens,
        context=context,
        prefill_seconds=metrics.ttft,
        decode_seconds=None if first is None or last is None else last - first,
    )


def _about(tool: Tool, invocation: Invocation) -> str:
    try:
        return tool.about(invocation)
    except Exception:  # a tool's own code, on arguments of a model
        return f"{invocation.function} {invocation.arguments}"
