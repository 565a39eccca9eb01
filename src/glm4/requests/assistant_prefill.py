"""Prefill: the caller writes the beginning of the answer, and the model continues from there."""

from __future__ import annotations

from dataclasses import dataclass, replace

from glm4.chat.chat_request import ChatRequest
from glm4.chat.events import Event, TextDelta
from glm4.chat.messages import Message
from glm4.chat.parsers.base import StreamParser, moved
from glm4.errors import InvalidRequestError
from glm4.requests.input_processor import PreparedRequest
from glm4.requests.processor import Processor
from glm4.tokenizer import Detokenizer


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
    def find(cls, processor: Processor, request: ChatRequest, begun: str) -> AssistantPrefill:
        """The prefill of an answer to this request.

        Raises:
            InvalidRequestError: the template has no prefill: its prompts begin with thinking, or it changes the text.
        """

        def render(turns: tuple[Message, ...], *, prompt: bool) -> str:
            return processor.dialect.render_text(
                replace(request, messages=turns, add_generation_prompt=prompt),
                tokenizer=processor.tokenizer,
                template=processor.template,
            )

        asked = render(request.messages, prompt=True)
        answered = render((*request.messages, Message("assistant", begun)), prompt=False)
        at = answered.rfind(begun)
        if at < len(asked) or not answered.startswith(asked):
            raise InvalidRequestError(
                "the last message is the assistant's; this model cannot go on from there (it thinks first, or its chat"
                " template changes the text, which must not end with whitespace)",
                param="messages",
            )
        head = answered[len(asked) : at]
        ids = [*processor.tokenizer.encode(head, allow_special=True), *processor.tokenizer.encode(begun)]
        return cls(head, begun, tuple(ids))

    def before(self, prepared: PreparedRequest) -> PreparedRequest:
        """The request whose answer continues after this prefill, which is not part of the answer."""

        def decoder() -> tuple[Detokenizer, StreamParser]:
            detokenizer, parser = prepared.decoder()
            return detokenizer, _Continued(parser, self)

        prompt = replace(prepared.prompt, ids=[*prepared.prompt_ids, *self.ids])
        return replace(prepared, prompt=prompt, decoder=decoder)


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
