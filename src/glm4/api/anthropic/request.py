"""Reading /v1/messages and /v1/messages/count_tokens bodies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from glm4.api.anthropic.fields import COUNT_FIELDS, COUNT_REQUIRED, MESSAGE_FIELDS, MESSAGE_REQUIRED, REFUSED
from glm4.api.anthropic.members import refusal
from glm4.api.anthropic.tools import Choice
from glm4.api.fields import Field, read_fields, sampling_params
from glm4.chat.chat_request import ChatRequest
from glm4.chat.messages import Message
from glm4.sampling_params import SamplingParams, StructuredOutputs

Thinking = Literal["shown", "omitted", "hidden"]


@dataclass(frozen=True)
class MessageRequest:
    """A parsed body.

    Attributes:
        chat: the request as glm4's `ChatRequest`.
        max_tokens: limit on the answer's length, in tokens.
        stream: send events.
        generate: False if the prompt is only to be cached (max_tokens 0); `chat.params` then request one token, which
            is left out of the response.
        thinking: how the model's thinking is shown: "omitted" is a block without text, "hidden" is no block.
        manages_context: context_management was given, so the response has it too.
        compares_cache: prompt cache diagnostics were requested.
    """

    chat: ChatRequest
    max_tokens: int = 0
    stream: bool = False
    generate: bool = True
    thinking: Thinking = "shown"
    manages_context: bool = False
    compares_cache: bool = False


def parse_message(body: Mapping[str, Any], defaults: SamplingParams) -> MessageRequest:
    """Read a /v1/messages body.

    Args:
        body: the decoded JSON object.
        defaults: the model's own sampling options, used if the body has none.

    Raises:
        InvalidRequestError: a field is unknown, unsupported or has an invalid value; `.param` names it.
    """
    given = _read(body, MESSAGE_FIELDS, MESSAGE_REQUIRED)
    changes: dict[str, Any] = {
        row.sampling: given[name] for name, row in MESSAGE_FIELDS.items() if row.sampling and name in given
    }
    stream, tokens = given.get("stream", False), given["max_tokens"]
    if stream and not tokens:
        raise refusal("max_tokens", "0 leaves nothing to stream")
    changes |= {**_form(given), "max_tokens": max(tokens, 1)}
    chat = _chat(given, sampling_params(defaults, changes, {"stop": "stop_sequences"}))
    if chat.continue_final_message and (chat.tool_choice.mode == "required" or _form(given)):
        raise refusal("messages", "the form of the answer is given, so the last message cannot be its beginning")
    return MessageRequest(
        chat=chat,
        max_tokens=tokens,
        stream=stream,
        generate=tokens > 0,
        thinking=_thinking(given.get("thinking", {})),
        manages_context="context_management" in given,
        compares_cache=given.get("diagnostics", False),
    )


def parse_count(body: Mapping[str, Any], defaults: SamplingParams) -> MessageRequest:
    """Read a /v1/messages/count_tokens body; see `parse_message`."""
    given = _read(body, COUNT_FIELDS, COUNT_REQUIRED)
    return MessageRequest(_chat(given, defaults), manages_context="context_management" in given)


def _read(body: Mapping[str, Any], table: Mapping[str, Field], required: Sequence[str]) -> dict[str, Any]:
    given = read_fields(body, table, REFUSED)
    for name in required:
        if name not in given:
            raise refusal(name, "this field is required")
    return given


def _chat(given: Mapping[str, Any], params: SamplingParams) -> ChatRequest:
    messages: list[Message] = [*given.get("system", ()), *given["messages"]]
    if not messages:
        raise refusal("messages", "there is nothing in them")
    tools, choice = given.get("tools", ()), given.get("tool_choice", Choice())
    if choice.tool_choice not in ("auto", "none"):
        named = choice.tool_choice["function"]["name"] if isinstance(choice.tool_choice, Mapping) else None
        if not any(named in (None, tool["function"]["name"]) for tool in tools):
            raise refusal("tool_choice", "asks for a call of a tool that is not among tools")
    chat = ChatRequest.of(
        messages,
        params,
        tools=tools,
        tool_choice=choice.tool_choice,
        parallel_tool_calls=choice.parallel,
    )
    *turns, last = chat.messages
    if last.role != "assistant":
        return chat
    if last.tool_calls or last.reasoning or not turns:
        raise refusal("messages", "an answer can only be begun with text, and after a message of the user")
    return replace(chat, continue_final_message=True) if last.text else replace(chat, messages=tuple(turns))


def _form(given: Mapping[str, Any]) -> dict[str, StructuredOutputs]:
    """The required format of the answer."""
    form = given.get("output_config", {}).get("format")
    if form is None:
        return {}
    return {"structured_outputs": StructuredOutputs(json=form["schema"], param="output_config.format")}


def _thinking(wanted: Mapping[str, Any]) -> Thinking:
    if wanted.get("type") == "disabled":
        return "hidden"
    return "omitted" if wanted.get("display") == "omitted" else "shown"
