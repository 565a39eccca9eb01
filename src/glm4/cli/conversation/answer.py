"""One answer: run the request step by step, show what arrives, stop when the user asks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from glm4.chat.answer import Answer
from glm4.chat.chat_request import ChatRequest
from glm4.chat.events import Event
from glm4.chat.messages import Message
from glm4.chat.pictures import images_of
from glm4.cli.conversation.interrupt import Interrupt, silent_keyboard
from glm4.cli.conversation.render import View

if TYPE_CHECKING:
    from glm4.llm import LLM, Request
    from glm4.outputs import RequestOutput
    from glm4.sampling_params import SamplingParams


@dataclass(frozen=True)
class Reply:
    """The result of a request.

    Attributes:
        message: the assistant turn, possibly incomplete.
        output: the engine's output; None if the answer was stopped.
        interrupted: the user stopped it.
        looked: the model had to look at a picture first, which took more than one step.
    """

    message: Message
    output: RequestOutput | None
    interrupted: bool
    looked: bool = False


def answer(
    llm: LLM, messages: Sequence[Message], params: SamplingParams, view: View, *, adapter: str | None = None
) -> Reply:
    """Stream one answer into `view`; Ctrl-C stops it and keeps what has arrived.

    Args:
        adapter: name of the adapter to answer with.

    Raises:
        PromptTooLongError: the conversation does not fit the context.
        Glm4Error: the conversation cannot be rendered.
    """
    so_far = Answer()
    looked = False

    def show(new: Sequence[Event]) -> None:
        so_far.add(new)
        view.show(new)

    def looking(share: float | None) -> None:
        nonlocal looked
        looked = looked or share is not None
        view.looking(share)

    with view:
        request = ChatRequest.of(messages, params, adapter=adapter)
        output = run_request(llm, request, show, looking=looking if images_of(request.messages) else None)
    if output is not None:
        return Reply(output.outputs[0].as_message(), output, interrupted=False, looked=looked)
    # An unfinished call is useless; text and reasoning are kept.
    return Reply(replace(so_far.message(), tool_calls=()), None, interrupted=True)


def run_request(
    llm: LLM,
    request: Request,
    show: Callable[[Sequence[Event]], None] | None = None,
    count: Callable[[int], None] | None = None,
    looking: Callable[[float | None], None] | None = None,
) -> RequestOutput | None:
    """Run one request to completion, or until Ctrl-C; None if it was stopped.

    Args:
        show: called with the events of each step.
        count: called after each step with the number of tokens so far.
        looking: called after each step until the first token: the share of a picture that is encoded, see `View`.

    Raises:
        Glm4Error: the request failed.
    """
    tokens = 0
    with Interrupt() as interrupt, silent_keyboard(), contextlib.closing(llm.run_steps([("cli", request)])) as steps:
        while not interrupt.requested and (chunks := next(steps, None)) is not None:
            if looking is not None and tokens == 0:
                looking(llm.stats().encoding)
            for chunk in chunks:
                if show is not None:
                    show(chunk.events)
                tokens += len(chunk.token_ids)
                if chunk.output is not None:
                    if chunk.output.error is not None:
                        raise chunk.output.error
                    return chunk.output
            if count is not None:
                count(tokens)
    return None
