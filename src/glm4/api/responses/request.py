"""Reading /v1/responses bodies. One table row per field; unsupported fields are refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from glm4.api.fields import (
    BOOLEAN,
    OPTIONS,
    STRING,
    Field,
    boolean,
    is_int,
    mapping,
    only,
    read_fields,
    sampling_params,
    text,
)
from glm4.api.openai.fields import CHAT_FIELDS, EFFORTS
from glm4.api.openai.request import with_effort
from glm4.api.responses.builtin import BuiltinTool, builtin_tools, is_builtin
from glm4.api.responses.items import Item, read_input, to_messages
from glm4.api.responses.tools import offer, read_object, read_tool_choice, read_tools
from glm4.api.schemas import schemas
from glm4.chat.chat_request import ChatOptions, ChatRequest
from glm4.chat.messages import Message
from glm4.errors import InvalidRequestError, shown
from glm4.sampling_params import MAX_LOGPROBS, SamplingParams, StructuredOutputs

_SCHEMAS = schemas("responses")
LOGPROBS, ENCRYPTED = "message.output_text.logprobs", "reasoning.encrypted_content"
OUTPUTS = "code_interpreter_call.outputs"
"""They are always in the response."""
INCLUDABLE = (LOGPROBS, ENCRYPTED, OUTPUTS)


@dataclass(frozen=True)
class ResponsesRequest:
    """A parsed /v1/responses body.

    Attributes:
        items: what this request adds to the conversation; references are not resolved yet.
        options: tools and tool choice in chat-completions format, and the template's variables.
        builtin: tools that the server runs.
        max_tool_calls: of those; None for no limit but the server's own.
        logprobs: the response includes log-probabilities.
        echo: the fields of the response object that repeat the request.
    """

    items: list[Item]
    params: SamplingParams
    echo: Mapping[str, Any]
    instructions: str | None = None
    previous_response_id: str | None = None
    options: ChatOptions = field(default_factory=ChatOptions)
    builtin: tuple[BuiltinTool, ...] = ()
    max_tool_calls: int | None = None
    stream: bool = False
    store: bool = True
    logprobs: bool = False

    def chat(self, earlier: Sequence[Item], items: Sequence[Item], raw: Sequence[str] = ()) -> ChatRequest:
        """Convert to a chat request.

        Args:
            earlier: the conversation so far.
            items: what this request adds to it, with references resolved.
            raw: tools whose arguments the model writes as they are; see `TemplateDialect.builtin_tools`.
        """
        messages = to_messages([*earlier, *items], len(earlier), raw)
        if self.instructions is not None:
            messages.insert(0, Message("system", self.instructions))
        if not messages:
            raise InvalidRequestError("input is empty", param="input")
        return ChatRequest.of(messages, self.params, **self.options)


def parse_responses(body: Mapping[str, Any], defaults: SamplingParams, *, thinks: bool) -> ResponsesRequest:
    """Read a /v1/responses body.

    Args:
        body: the decoded JSON object.
        defaults: the model's own sampling options, used if the body has none.
        thinks: the model writes its thinking before it answers.

    Raises:
        InvalidRequestError: a field is unknown, unsupported or has an invalid value; `.param` names it.
    """
    given = read_fields(body, RESPONSES_FIELDS, REFUSED)
    return _request(given, defaults, thinks)


def parse_input_tokens(body: Mapping[str, Any], defaults: SamplingParams, *, thinks: bool) -> ResponsesRequest:
    """Read a /v1/responses/input_tokens body; see `parse_responses`."""
    given = read_fields(body, INPUT_TOKENS_FIELDS, REFUSED)
    return _request(given, defaults, thinks)


def _request(given: Mapping[str, Any], defaults: SamplingParams, thinks: bool) -> ResponsesRequest:
    if "input" not in given and "previous_response_id" not in given:
        raise InvalidRequestError("input is missing", param="input")
    if "stream_options" in given and not given.get("stream"):
        raise InvalidRequestError("stream_options needs stream = true", param="stream_options")
    _check_thinking(given, thinks)
    logprobs = LOGPROBS in given.get("include", ()) or bool(given.get("top_logprobs"))
    changes: dict[str, Any] = {
        row.sampling: given[name] for name, row in OPTIONS.items() if row.sampling and name in given
    }
    if "max_output_tokens" in given:
        changes["max_tokens"] = given["max_output_tokens"]
    if logprobs:
        changes["logprobs"] = given.get("top_logprobs", 0)
    form = _structured(given.get("text", {}).get("format", {"type": "text"}))
    if form is not None:
        changes["structured_outputs"] = form
    sent_as = {"max_tokens": "max_output_tokens", "logprobs": "top_logprobs"}
    params = sampling_params(defaults, changes, sent_as)
    listed = given.get("tools", ())
    builtin = builtin_tools(listed)
    if builtin:
        _check_builtin(given, logprobs=logprobs)
    own = [tool for tool in listed if not is_builtin(tool["type"])]
    tools, choice = offer(own, given.get("tool_choice", "auto"))
    return ResponsesRequest(
        items=given.get("input", []),
        params=params,
        echo=_echo(given, params),
        instructions=given.get("instructions"),
        previous_response_id=given.get("previous_response_id"),
        options={
            "tools": tools,
            "tool_choice": choice,
            "parallel_tool_calls": given.get("parallel_tool_calls", True),
            "template_kwargs": with_effort(
                given.get("chat_template_kwargs", {}), given.get("reasoning", {}).get("effort")
            ),
        },
        builtin=tuple(builtin) if given.get("tool_choice") != "none" else (),
        max_tool_calls=given.get("max_tool_calls"),
        stream=given.get("stream", False),
        store=given.get("store", True),
        logprobs=logprobs,
    )


def _check_thinking(given: Mapping[str, Any], thinks: bool) -> None:
    if thinks and given.get("reasoning", {}).get("effort") == "none":
        raise InvalidRequestError("this model always thinks before it answers", param="reasoning.effort")
    if thinks and ENCRYPTED in given.get("include", ()):
        raise InvalidRequestError(
            f"include: {ENCRYPTED} is not supported; thinking is returned in plain text", param="include"
        )


def _check_builtin(given: Mapping[str, Any], *, logprobs: bool) -> None:
    if given.get("tool_choice", "auto") not in ("auto", "none"):
        raise InvalidRequestError("with built-in tools, tool_choice is auto or none", param="tool_choice")
    if logprobs and given.get("tool_choice") != "none":
        name = "include" if LOGPROBS in given.get("include", ()) else "top_logprobs"
        raise InvalidRequestError("log-probabilities cannot be had together with built-in tools", param=name)


def _echo(given: Mapping[str, Any], params: SamplingParams) -> dict[str, Any]:
    """The request fields that OpenAI's response object repeats, with the values in effect."""
    form = given.get("text", {}).get("format", {"type": "text"})
    return {
        "background": False,
        "instructions": given.get("instructions"),
        "max_output_tokens": given.get("max_output_tokens"),
        "max_tool_calls": given.get("max_tool_calls"),
        "metadata": given.get("metadata", {}),
        "parallel_tool_calls": given.get("parallel_tool_calls", True),
        "previous_response_id": given.get("previous_response_id"),
        "prompt_cache_key": given.get("prompt_cache_key"),
        "reasoning": {"effort": given.get("reasoning", {}).get("effort"), "summary": None},
        "safety_identifier": given.get("safety_identifier"),
        "service_tier": "default",
        "store": given.get("store", True),
        "temperature": params.temperature,
        "text": {"format": form, "verbosity": "medium"},
        "tool_choice": given.get("tool_choice", "auto"),
        "tools": list(given.get("tools", ())),
        "top_logprobs": given.get("top_logprobs", 0),
        "top_p": params.top_p,
        "truncation": "disabled",
        "user": given.get("user"),
    }


# The format of the answer


def _text_options(name: str, value: Any) -> dict[str, Any]:
    return read_object(value, name, {"format": _format, "verbosity": only("medium")})


def _format(name: str, value: Any) -> dict[str, Any]:
    form = read_object(value, name)
    kind = form.get("type")
    if kind in ("text", "json_object"):
        return read_object(form, name, {"type": text})
    if kind != "json_schema":
        raise InvalidRequestError(
            f"{name}.type must be text, json_object or json_schema, not {shown(kind)}", param=f"{name}.type"
        )
    fields = {"type": text, "name": text, "schema": mapping, "strict": boolean, "description": text}
    form = read_object(form, name, fields)
    for key in ("name", "schema"):
        if key not in form:
            raise InvalidRequestError(f"{name}.{key} is missing", param=f"{name}.{key}")
    return form


def _structured(form: Mapping[str, Any]) -> StructuredOutputs | None:
    if form["type"] == "json_schema":
        return StructuredOutputs(json=form["schema"], param="text.format", strict=form.get("strict") is True)
    return StructuredOutputs(json_object=True, param="text.format") if form["type"] == "json_object" else None


# Other nested fields


def _reasoning(name: str, value: Any) -> dict[str, Any]:
    return read_object(
        value,
        name,
        {
            "effort": only(*EFFORTS),
            "context": only("auto", "current_turn"),
            "mode": only("standard"),
        },
    )


def _include(name: str, value: Any) -> list[str]:
    if not isinstance(value, list):
        raise InvalidRequestError(f"{name} must be a list", param=name)
    for one in value:
        if one not in INCLUDABLE:
            raise InvalidRequestError(f"{name}: {shown(one)} is not supported; {', '.join(INCLUDABLE)} are", param=name)
    return value


def _stream_options(name: str, value: Any) -> dict[str, Any]:
    return read_object(value, name, {"include_obfuscation": only(False)})


def _whole(low: int, high: int | None = None) -> Field:
    def read(name: str, value: Any) -> int:
        if not is_int(value) or value < low or (high is not None and value > high):
            limits = f"of at least {low}" if high is None else f"between {low} and {high}"
            raise InvalidRequestError(f"{name} must be a whole number {limits}, not {shown(value)}", param=name)
        return int(value)

    schema: dict[str, Any] = {"type": "integer", "minimum": low}
    return Field(schema if high is None else {**schema, "maximum": high}, read)


INPUT_TOKENS_FIELDS: Mapping[str, Field] = MappingProxyType(
    {
        "model": CHAT_FIELDS["model"],
        "input": Field(_SCHEMAS["input"], read_input),
        "instructions": Field(STRING, text),
        "previous_response_id": Field(STRING, text),
        "tools": Field(_SCHEMAS["tools"], read_tools),
        "tool_choice": Field(_SCHEMAS["tool_choice"], read_tool_choice),
        "parallel_tool_calls": CHAT_FIELDS["parallel_tool_calls"],
        "text": Field(_SCHEMAS["text"], _text_options),
        "reasoning": Field(_SCHEMAS["reasoning"], _reasoning),
        "truncation": Field({"enum": ["disabled"]}, only("disabled")),
        "chat_template_kwargs": CHAT_FIELDS["chat_template_kwargs"],
    }
)
"""Fields of a /v1/responses/input_tokens body."""

RESPONSES_FIELDS: Mapping[str, Field] = MappingProxyType(
    {
        **{name: row for name, row in OPTIONS.items() if name not in ("n", "max_tokens", "prompt_logprobs")},
        **INPUT_TOKENS_FIELDS,
        **{
            name: CHAT_FIELDS[name]
            for name in (
                *("user", "safety_identifier", "prompt_cache_key", "cache_salt"),
                *("metadata", "service_tier", "stream"),
            )
        },
        "stream_options": Field(_SCHEMAS["stream_options"], _stream_options),
        "include": Field({"type": "array", "items": {"enum": list(INCLUDABLE)}}, _include),
        "max_output_tokens": _whole(1),
        "max_tool_calls": _whole(1, 1000),
        "top_logprobs": _whole(0, MAX_LOGPROBS),
        "store": Field(BOOLEAN, boolean),
        "background": Field({"enum": [False]}, only(False)),
    }
)
"""Fields of a /v1/responses body."""

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "access_programs": "there are none here",
        "background_options": "nothing runs in the background; stream the response instead",
        "context_management": "the conversation is read as it is; shorten it yourself",
        "conversation": "send previous_response_id",
        "image": "these models read text only",
        "max_tokens": "send max_output_tokens",
        "moderation": "this server has no moderation model",
        "n": "a response is one answer",
        "personality": "send instructions",
        "prompt": "prompt templates are not kept here; send instructions and input",
        "prompt_cache_options": "prompts are kept for as long as memory allows",
        "prompt_cache_retention": "prompts are kept for as long as memory allows",
    }
)
"""Fields of OpenAI's schema (and of chat completions) that are not supported, and why."""
