"""Prefill: the caller writes the beginning of the answer, the model goes on from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from glm4.chat.messages import Event, Message, TextDelta
from glm4.errors import InvalidRequestError
from glm4.requests.input_processor import PreparedRequest
from glm4.requests.output_processor import Detokenizer, EventParser
from glm4.requests.processor import Processor


@dataclass(frozen=True)
class AssistantPrefill:
    """What stands between the prompt of a conversation and the point where the model goes on.

    Attributes:
        head: what the chat template writes in front of an answer.
        begun: the beginning of the answer.
        ids: both as token ids; only what the template wrote may be special tokens.
    """

    head: str
    begun: str
    ids: tuple[int, ...]

    @classmethod
    def find(
        cls, text: Processor, turns: Sequence[Message], tools: Sequence[Mapping[str, Any]], begun: str
    ) -> AssistantPrefill:
        """The opening of an answer to these turns.

        Raises:
            InvalidRequestError: the template has none: its prompts begin with thinking, or it changes the text.
        """

        def render(messages: Sequence[Message], *, prompt: bool) -> str:
            return text.dialect.render_text(
                messages, tokenizer=text.tokenizer, tools=tools, template=text.template, add_generation_prompt=prompt
            )

        asked = render(turns, prompt=True)
        answered = render([*turns, Message("assistant", begun)], prompt=False)
        at = answered.rfind(begun)
        if at < len(asked) or not answered.startswith(asked):
            raise InvalidRequestError(
                "the last message is the assistant's; this model cannot go on from there (it thinks first, or its chat"
                " template changes the text, which must not end with whitespace)",
                param="messages",
            )
        head = answered[len(asked) : at]
        ids = [*text.tokenizer.encode(head, allow_special=True), *text.tokenizer.encode(begun)]
        return cls(head, begun, tuple(ids))

    def before(self, prepared: PreparedRequest) -> PreparedRequest:
        """The request whose answer goes on after this opening, which is not part of the answer."""

        def decoder() -> tuple[Detokenizer, EventParser]:
            detokenizer, parser = prepared.decoder()
            return detokenizer, _Continued(parser, self)

        return replace(prepared, prompt_ids=[*prepared.prompt_ids, *self.ids], decoder=decoder)


class _Continued:
    """A parser that has read the opening before, so that it knows where it is; what it says about it is dropped."""

    def __init__(self, parser: EventParser, opening: AssistantPrefill) -> None:
        self._parser = parser
        events = parser.push(opening.head + opening.begun)
        shown = [event.text for event in events if isinstance(event, TextDelta)]
        self._held = len(opening.begun) - len("".join(shown))  # characters of the opening it still holds back

    def push(self, text: str) -> list[Event]:
        """See `StreamParser`."""
        return self._without_opening(self._parser.push(text))

    def finish(self, stop_token_id: int | None = None) -> list[Event]:
        """See `StreamParser`."""
        return self._without_opening(self._parser.finish(stop_token_id))

    def _without_opening(self, events: list[Event]) -> list[Event]:
        kept: list[Event] = []
        for event in events:
            if self._held > 0 and isinstance(event, TextDelta):
                drop, self._held = self._held, max(0, self._held - len(event.text))
                event = TextDelta(event.text[drop:])  # noqa: PLW2901
                if not event.text:
                    continue
            self._held = self._held if isinstance(event, TextDelta) else 0
            kept.append(event)
        return kept
