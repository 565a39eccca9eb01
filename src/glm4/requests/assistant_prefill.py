"""Prefill: the caller writes the beginning of the answer, and the model continues from there."""

from __future__ import annotations

from dataclasses import dataclass, replace

from glm4.chat.chat_request import ChatRequest
from glm4.chat.events import Event, TextDelta
from glm4.chat.messages import Message
from glm4.chat.parsers.base import StreamParser, moved
from glm4.errors import InvalidRequestError
from glm4.prompt import Prompt
from glm4.requests.processor import Processor

_PROBE = "Words."  # what any chat template leaves as it is


@dataclass(frozen=True)
class AssistantPrefill:
    """The text between the prompt of a conversation and the point where the model continues.

    Attributes:
        head: what the chat template writes before an answer.
        begun: the beginning of the answer.
        ids: `head` and `begun` as token ids; only `head` may contain special tokens.
    """

    head: str
    begun: str
    ids: tuple[int, ...]

    @classmethod
    def split(cls, processor: Processor, request: ChatRequest) -> tuple[ChatRequest, AssistantPrefill | None]:
        """The request without an answer that its last message begins, and that beginning; None if there is none.

        Raises:
            InvalidRequestError: the template has no prefill: its prompts begin with thinking, or it changes the text.
        """
        if not request.continue_final_message:
            return request, None
        *turns, last = request.messages
        asked = replace(request, messages=tuple(turns), continue_final_message=False, add_generation_prompt=True)
        return asked, cls._find(processor, asked, last.text) if last.text else None

    @classmethod
    def _find(cls, processor: Processor, request: ChatRequest, begun: str) -> AssistantPrefill:
        def render(*last: Message) -> str:
            return processor.render_text(
                replace(request, messages=(*request.messages, *last), add_generation_prompt=not last)
            )

        asked, probed = render(), render(Message("assistant", _PROBE))
        head, found, tail = probed.removeprefix(asked).partition(_PROBE)
        whole = asked + head + begun + tail
        if not found or not probed.startswith(asked) or render(Message("assistant", begun)) != whole:
            raise InvalidRequestError(
                "the last message is the assistant's; this model cannot go on from there (it thinks first, or its chat"
                " template changes the text, which must not end with whitespace)",
                param="messages",
            )
        ids = [*processor.tokenizer.encode(head, allow_special=True), *processor.tokenizer.encode(begun)]
        return cls(head, begun, tuple(ids))

    def after(self, prompt: Prompt) -> Prompt:
        """A prompt that ends with this prefill, which is not part of the answer."""
        return replace(prompt, ids=[*prompt.ids, *self.ids])

    def parser(self, parser: StreamParser) -> StreamParser:
        """A parser of what follows the prefill, from one of whole answers."""
        return _Continued(parser, self)


class _Continued:
    """A parser that has already read the prefill, so that its state is right; events about the prefill are dropped."""

    def __init__(self, parser: StreamParser, opening: AssistantPrefill) -> None:
        self._parser = parser
        self._read = len(opening.head) + len(opening.begun)
        events = parser.push(opening.head + opening.begun)
        shown = [event.text for event in events if isinstance(event, TextDelta)]
        self._held = len(opening.begun) - len("".join(shown))  # prefill characters it still holds back

    def push(self, text: str) -> list[Event]:
        """See `StreamParser`."""
        return self._without_opening(self._parser.push(text))

    def finish(self, stop_token_id: int | None = None) -> list[Event]:
        """See `StreamParser`."""
        return self._without_opening(self._parser.finish(stop_token_id))

    def _without_opening(self, events: list[Event]) -> list[Event]:
        kept: list[Event] = []
        for event in moved(events, -self._read):
            if self._held > 0 and isinstance(event, TextDelta):
                drop, self._held = self._held, max(0, self._held - len(event.text))
                event = event.without(drop)  # noqa: PLW2901
                if not event.text:
                    continue
            self._held = self._held if isinstance(event, TextDelta) else 0
            kept.append(event)
        return kept
