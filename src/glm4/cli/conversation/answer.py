"""One answer: run the request step by step, show what arrives, stop when the user says so."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glm4.chat.messages import Event, Message, ReasoningDelta, TextDelta
from glm4.cli.conversation.interrupt import Interrupt, silent_keyboard
from glm4.cli.conversation.render import View

if TYPE_CHECKING:
    from glm4.llm import LLM
    from glm4.outputs import RequestOutput
    from glm4.sampling_params import SamplingParams

_request_numbers = itertools.count(1)


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Attributes:
        message: the assistant turn, as far as it got.
        output: the engine's own account; None when the answer was stopped.
        interrupted: the user stopped it.
    """

    message: Message
    output: RequestOutput | None
    interrupted: bool


def answer(
    llm: LLM, messages: Sequence[Message], params: SamplingParams, view: View, *, adapter: str | None = None
) -> Answer:
    """Stream one answer into `view`; Ctrl-C stops it and keeps what is there.

    Args:
        adapter: name of the LoRA adapter to answer with.

    Raises:
        PromptTooLongError: the conversation does not fit the context.
        Glm4Error: the conversation cannot be rendered.
    """
    request_id = f"chat-{next(_request_numbers)}"
    events: list[Event] = []

    def show(new: Sequence[Event]) -> None:
        events.extend(new)
        view.show(new)

    llm.add_chat(request_id, messages, params, adapter=adapter)
    with view:
        output = run_request(llm, request_id, show)
    if output is not None:
        return Answer(output.outputs[0].as_message(), output, interrupted=False)
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    reasoning = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    return Answer(Message("assistant", text, reasoning=reasoning or None), None, interrupted=True)


def run_request(
    llm: LLM,
    request_id: str,
    show: Callable[[Sequence[Event]], None] | None = None,
    count: Callable[[int], None] | None = None,
) -> RequestOutput | None:
    """Run one queued request to its end, or until Ctrl-C; None when it was stopped.

    Args:
        show: called with the events of every step.
        count: called with the number of tokens there are, after every step.
    """
    output: RequestOutput | None = None
    tokens = 0
    try:
        with Interrupt() as interrupt, silent_keyboard():
            while output is None and not interrupt.requested:
                for chunk in llm.step():
                    if show is not None:
                        show(chunk.events)
                    tokens += len(chunk.token_ids)
                    output = chunk.output or output
                if count is not None:
                    count(tokens)
    finally:
        if output is None:
            llm.abort(request_id)
    return output
