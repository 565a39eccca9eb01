"""`ChatRequest`: a conversation to answer, parsed once on entry and passed whole to the renderer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypedDict

from glm4.chat.messages import Message, as_messages, without_nulls
from glm4.chat.parts import TextPart
from glm4.chat.tool_choice import AUTO, ToolChoice, ToolChoiceValue
from glm4.chat.tool_results import in_call_order
from glm4.errors import InvalidRequestError
from glm4.sampling_params import SamplingParams

if TYPE_CHECKING:
    from typing_extensions import Unpack

Conversation = Sequence[Message | Mapping[str, Any]]
Tool = Mapping[str, Any]


class ChatOptions(TypedDict, total=False):
    """What a request may set besides messages and sampling options; see `ChatRequest`."""

    tools: Sequence[Tool] | None
    tool_choice: ToolChoiceValue | None
    parallel_tool_calls: bool
    add_generation_prompt: bool
    continue_final_message: bool
    template_kwargs: Mapping[str, Any] | None
    chat_template_kwargs: Mapping[str, Any] | None
    """vLLM's name for `template_kwargs`."""
    adapter: str | None
    constrain_calls: bool


@dataclass(frozen=True)
class ChatRequest:
    """A conversation to answer. Create one with `ChatRequest.of`, which validates its input.

    Attributes:
        messages: the turns so far, at least one.
        params: sampling options; None uses the model's own. With `structured_outputs` the answer has that form; if
            tools are offered, the model may call them instead (`tool_choice="none"` leaves only the answer).
        tools: tools in OpenAI's form, or GLM-4's built-in types.
        tool_choice: "auto" (None is the same); "none": the tools are left out of the prompt, and nothing is parsed as a
            call; "required": the model must call; {"type": "function", "function": {"name": …}}: this one, once. A
            grammar enforces the last two, so arguments match their schema (unless `max_tokens` cuts them off).
        parallel_tool_calls: False ends the answer where a second call begins.
        add_generation_prompt: end the prompt with the start of the model's turn.
        continue_final_message: the last message, the assistant's, is the beginning of the answer, which has only what
            follows. The prompt then ends with that text, so `add_generation_prompt` is false.
        template_kwargs: extra variables for the chat template.
        adapter: name of the adapter to answer with.
        constrain_calls: with tool_choice "auto": a call that the model begins is one of the offered tools, and its
            arguments match their schema; text stays free. The docstrings of the dialects' `free_rules` say what calls
            escape. Other choices, and an answer with `structured_outputs`, are constrained anyway.
    """

    messages: tuple[Message, ...]
    params: SamplingParams | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = AUTO
    parallel_tool_calls: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    adapter: str | None = None
    constrain_calls: bool = False

    @classmethod
    def of(
        cls, messages: Conversation, params: SamplingParams | None = None, **options: Unpack[ChatOptions]
    ) -> ChatRequest:
        """Parse a conversation as callers write it.

        Args:
            messages: dictionaries in OpenAI's form, or `Message`.
            options: the attributes of the same names.

        Raises:
            InvalidRequestError: a message, the tools or the choice is malformed; `.param` names it.
        """
        unknown = set(options) - set(ChatOptions.__annotations__)
        if unknown:
            raise TypeError(f"unknown option {sorted(unknown)[0]!r}; known: {', '.join(ChatOptions.__annotations__)}")
        turns = in_call_order(as_messages(messages))
        if not turns:
            raise InvalidRequestError("messages must not be empty", param="messages")
        choice = ToolChoice.read(options.get("tool_choice"))
        tools = options.get("tools") or ()
        if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
            raise InvalidRequestError("tools must be a list", param="tools")
        continued = options.get("continue_final_message", False)
        if continued:
            _check_continued(turns, choice, options)
        if choice.mode == "none":  # the model does not call tools it does not see
            turns, tools = [replace(turn, tools=()) for turn in turns], ()
        return cls(
            messages=tuple(turns),
            params=params,
            tools=tuple(map(without_nulls, tools)),
            tool_choice=choice,
            parallel_tool_calls=options.get("parallel_tool_calls", True),
            add_generation_prompt=options.get("add_generation_prompt", not continued),
            continue_final_message=continued,
            template_kwargs=options.get("template_kwargs") or options.get("chat_template_kwargs") or {},
            adapter=options.get("adapter"),
            constrain_calls=options.get("constrain_calls", False),
        )

    @property
    def free_but_for_calls(self) -> bool:
        """Whether nothing but its calls is asked of the answer: see `constrain_calls`."""
        return self.constrain_calls and self.tool_choice.mode == "auto" and bool(self.offered_tools)

    @property
    def offered_tools(self) -> list[Tool]:
        """Every tool the model may call: attached to messages (GLM-4's own style) or passed with the request."""
        return [*(tool for message in self.messages for tool in message.tools), *self.tools]


def _check_continued(turns: Sequence[Message], choice: ToolChoice, options: ChatOptions) -> None:
    """Refuse a request to continue an answer that has not begun with text, or that must be a call."""
    last, name = turns[-1], "continue_final_message"
    if options.get("add_generation_prompt", False):
        raise InvalidRequestError(f"{name} and add_generation_prompt exclude each other; send one of them", param=name)
    text = all(isinstance(part, TextPart) for part in last.content)
    if last.role != "assistant" or not text or last.tool_calls or last.metadata or last.reasoning:
        raise InvalidRequestError(
            f"{name} needs a last message of the assistant with text alone; without one, leave {name} out", param=name
        )
    if options.get("constrain_calls", False):
        raise InvalidRequestError(f"{name} continues a text, which constrain_calls does not know", param=name)
    if choice.mode == "required":
        raise InvalidRequestError(f"{name} continues a text, but tool_choice asks for a call", param=name)
