"""Output side: turns a stream of token ids into text, stop strings, reasoning and tool calls."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from glm4.chat.answer import Answer
from glm4.chat.events import Event, TextDelta, ToolCallDelta
from glm4.chat.parsers.base import StreamParser
from glm4.engine.protocol import GenerationOutput
from glm4.logprobs import TextToken, TokenLogprobs
from glm4.outputs import CompletionOutput
from glm4.requests.stop_strings import StopStringMatcher
from glm4.requests.text_trace import TextTrace
from glm4.sampling_params import SamplingParams
from glm4.tokenizer import Detokenizer


class SampleProcessor:
    """Turns one sample's token ids into events.

    Args:
        index: which of the request's samples.
        on_early_end: called once when a stop string or a surplus call ends the sample, to stop it at the backend.
        max_tool_calls: the sample ends where a call beyond this number begins; that call is not shown.
    """

    def __init__(
        self,
        index: int,
        params: SamplingParams,
        detokenizer: Detokenizer,
        parser: StreamParser,
        on_early_end: Callable[[], None],
        max_tool_calls: int | None = None,
    ) -> None:
        self.index = index
        self._params = params
        self._detokenizer = detokenizer
        self._parser = parser
        self._stops = StopStringMatcher(params.stop_strings, params.include_stop_str_in_output)
        self._on_early_end = on_early_end
        self._max_tool_calls = max_tool_calls
        self._has_enough = False  # a call beyond the limit has begun
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._trace = None if params.logprobs is None else TextTrace()
        self._text_tokens: list[TextToken] = []
        self._raw: list[str] = []
        self._answer = Answer()
        self.output: CompletionOutput | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens seen so far."""
        return len(self._token_ids)

    def push(self, new: GenerationOutput) -> list[Event]:
        """Take in one step's tokens; `output` is set once the sample is finished."""
        events: list[Event] = []
        for position, token in enumerate(new.token_ids):
            self._token_ids.append(token)
            self._logprobs += new.logprobs[position : position + 1]
            if token == new.stop_token_id and position == len(new.token_ids) - 1:
                continue  # the end of turn is not part of the text
            active = len(self._token_ids) >= self._params.min_tokens
            events += self._show(self._stops.push(self._decoded(token), active=active))
            if self._stops.matched is not None:
                self._on_early_end()
                return events + self._finish("stop", None, self._stops.matched)
            if self._has_enough:
                self._on_early_end()
                return events + self._finish("stop", None, None)
        if new.finish_reason is not None:
            tail = self._stops.push(self._decoded(None))
            events += self._show(tail + self._stops.flush())
            if self._stops.matched is not None:
                return events + self._finish("stop", None, self._stops.matched)
            reason = new.stop_token_id if new.stop_token_id in self._params.stop_token_ids else None
            events += self._finish(new.finish_reason, new.stop_token_id, reason)
        return events

    def end(self, reason: str) -> list[Event]:
        """End the sample here; returns the events of held-back text."""
        if self.output is not None:
            return []
        return self._show(self._stops.flush()) + self._finish(reason, None, None)

    def cut_off(self, reason: str) -> None:
        """End the sample with what has been read so far, without the parts that may have failed."""
        if self.output is None:
            text = ""
            with suppress(Exception):
                text = self._answer.message().text
            self.output = CompletionOutput(self.index, text, self._token_ids, reason, raw_text="".join(self._raw))

    def _decoded(self, token: int | None) -> str:
        """The text that is certain after this token, or at the end."""
        text = self._detokenizer.flush() if token is None else self._detokenizer.push(token)
        if self._trace is not None:
            written = b"" if token is None else self._detokenizer.bytes_of(token)
            self._trace.add(len(self._token_ids) - 1, written, text)
        return text

    def _show(self, text: str) -> list[Event]:
        if not text:
            return []
        self._raw.append(text)
        return self._collect(self._parser.push(text))

    def _finish(self, reason: str, stop_token_id: int | None, stop_reason: int | str | None) -> list[Event]:
        events = self._collect(self._parser.finish(stop_token_id), final=True)
        message = self._answer.message()
        self.output = CompletionOutput(
            index=self.index,
            text=message.text,
            token_ids=self._token_ids,
            finish_reason="tool_calls" if message.tool_calls and reason == "stop" else reason,
            stop_reason=stop_reason,
            reasoning=message.reasoning,
            tool_calls=message.tool_calls,
            logprobs=self._logprobs if self._params.logprobs is not None else None,
            text_logprobs=self._text_tokens if self._params.logprobs is not None else None,
            raw_text="".join(self._raw),
        )
        return events

    def _collect(self, events: list[Event], *, final: bool = False) -> list[Event]:
        events = self._without_surplus(events)
        if self._trace is not None:
            events = self._trace.attach(events, self._logprobs, final=final)
            self._text_tokens += [token for e in events if isinstance(e, TextDelta) for token in e.tokens]
        self._answer.add(events)
        return events

    def _without_surplus(self, events: list[Event]) -> list[Event]:
        """Events up to the first call beyond the limit."""
        if self._has_enough:
            return []
        for at, event in enumerate(events):
            if isinstance(event, ToolCallDelta) and event.index == self._max_tool_calls:
                self._has_enough = True
                return events[:at]
        return events
