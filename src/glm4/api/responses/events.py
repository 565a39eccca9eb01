"""`ResponseWriter`: a model's output as a response's output items and as its stream events.

A whole response and a streamed one come from the same writer, so they cannot differ. The order of events:

    response.created, response.in_progress
    for each item: response.output_item.added
        message    content_part.added, output_text.delta …, output_text.done, content_part.done
        thinking   content_part.added, reasoning_text.delta …, reasoning_text.done, content_part.done
        call       function_call_arguments.delta …, function_call_arguments.done
      response.output_item.done
    response.completed | response.incomplete | error, response.failed
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from glm4.api.openai.answers import content_logprobs
from glm4.api.responses.answers import response_usage
from glm4.api.responses.item_writing import CallItem, ItemWriter, message_item, thinking_item
from glm4.api.responses.request import ResponsesRequest
from glm4.chat.events import EventVisitor, ReasoningDelta, TextDelta, ToolCallDelta
from glm4.outputs import RequestOutput, StreamChunk

if TYPE_CHECKING:
    from glm4.tokenizer import Tokenizer


class ResponseWriter(ItemWriter, EventVisitor[None]):
    """Writes one response of a model that is asked once.

    Args:
        model: the name the response carries.
    """

    def __init__(self, request: ResponsesRequest, model: str, tokenizer: Tokenizer) -> None:
        super().__init__(request, model)
        self._tokenizer = tokenizer

    def push(self, chunk: StreamChunk) -> list[dict[str, Any]]:
        """The events for one chunk; after the last one, `response` is the complete response."""
        for event in chunk.events:
            event.accept(self)
        if chunk.output is not None:
            self._finish(chunk.output)
        return self._take()

    def _finish(self, output: RequestOutput) -> None:
        (sample,) = output.outputs
        cut = sample.finish_reason == "length"
        if not cut and not self._answered():
            self._turn_to(("output_text", 0), message_item)  # an empty answer is still a message
        self._close("incomplete" if cut else "completed")
        self._end(
            "incomplete" if cut else "completed",
            usage=response_usage(output, self._tokenizer),
            reason="max_output_tokens" if cut else None,
            completed_at=None if cut else int(time.time()),
        )

    def text(self, event: TextDelta) -> None:
        """Visible text: more of a message."""
        item = self._turn_to(("output_text", 0), message_item)
        wanted = event.tokens if self._request.logprobs else ()
        item.delta(self._emit, event.text, content_logprobs(wanted, self._tokenizer))

    def reasoning(self, event: ReasoningDelta) -> None:
        """Thinking: more of a reasoning item."""
        self._turn_to(("reasoning_text", 0), thinking_item).delta(self._emit, event.text, [])

    def tool_call(self, event: ToolCallDelta) -> None:
        """A tool call: more of a function call's arguments."""
        key = ("function_call", event.index)
        call = self._turn_to(key, lambda place: CallItem(place, event.index, event.id or "", event.name or ""))
        call.delta(self._emit, event.arguments)
