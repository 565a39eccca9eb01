"""Reading /api/chat and /api/generate bodies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from glm4.api.arguments import arguments_text
from glm4.api.fields import read_fields, sampling_params
from glm4.api.ollama.fields import CHAT_FIELDS, GENERATE_FIELDS, OPTION_FIELDS, REFUSED, SAME_NAMES
from glm4.api.openai.request import with_effort
from glm4.chat.chat_request import ChatRequest
from glm4.chat.messages import Message
from glm4.chat.parts import ImagePart, refusal
from glm4.errors import InvalidRequestError, shown
from glm4.sampling_params import SamplingParams, StructuredOutputs

_MEMBERS = frozenset({"role", "content", "thinking", "images", "tool_calls", "tool_name", "tool_call_id"})
_UNLOAD = (0, "0", "0s", "0m")


@dataclass(frozen=True)
class OllamaRequest:
    """A parsed body.

    Attributes:
        prompt: a `ChatRequest`; a text with `raw`; None asks to load the model and nothing else.
        params: sampling options, also those of `prompt`.
        stream: send lines as they come.
        shows_thinking: False leaves the thinking out of the answer.
        is_chat: the answer is a message, not a text.
    """

    prompt: ChatRequest | str | None
    params: SamplingParams
    stream: bool = True
    shows_thinking: bool = True
    is_chat: bool = True


def parse_chat(body: Mapping[str, Any], defaults: SamplingParams, *, context: int, thinks: bool) -> OllamaRequest:
    """Read an /api/chat body.

    Args:
        defaults: the model's own sampling options, used if the body has none.
        context: the model's context length in tokens.
        thinks: the model writes its thinking before it answers.

    Raises:
        InvalidRequestError: a field is unknown, unsupported or has an invalid value; `.param` names it.
    """
    given = read_fields(body, CHAT_FIELDS, REFUSED)
    messages = [_message(raw, f"messages[{index}]") for index, raw in enumerate(given.get("messages", ()))]
    return _request(given, messages, defaults, context, thinks)


def parse_generate(body: Mapping[str, Any], defaults: SamplingParams, *, context: int, thinks: bool) -> OllamaRequest:
    """Read an /api/generate body; see `parse_chat`."""
    given = read_fields(body, GENERATE_FIELDS, REFUSED)
    prompt, system = given.get("prompt", ""), given.get("system", "")
    images = _images(given.get("images", ()), "images")
    if given.get("raw", False):
        for name in ("system", "images", "think"):
            if given.get(name):
                raise InvalidRequestError(f"{name} has no place in a raw prompt; leave it or raw out", param=name)
        return replace(_request(given, prompt, defaults, context, thinks), is_chat=False)
    messages = [Message("system", system)] if system else []
    turn = [Message("user", [*images, *Message("user", prompt).content])] if prompt or images else []
    return replace(_request(given, [*messages, *turn] if turn else [], defaults, context, thinks), is_chat=False)


def _request(
    given: Mapping[str, Any], prompt: Sequence[Message] | str, defaults: SamplingParams, context: int, thinks: bool
) -> OllamaRequest:
    think = given.get("think")
    if think and not thinks:
        raise InvalidRequestError("think: this model does not support thinking; leave it out", param="think")
    params = _params(given, defaults, context)
    if not prompt and given.get("keep_alive") in _UNLOAD:
        raise InvalidRequestError("keep_alive: models stay loaded until the server stops", param="keep_alive")
    wanted: ChatRequest | str | None = prompt if prompt and isinstance(prompt, str) else None
    if prompt and not isinstance(prompt, str):
        switch = {"enable_thinking": False} if think is False else {}
        kwargs = with_effort(switch, think if isinstance(think, str) else None)
        wanted = ChatRequest.of(prompt, params, tools=given.get("tools"), template_kwargs=kwargs)
    return OllamaRequest(wanted, params, given.get("stream", True), think is not False)


def _params(given: Mapping[str, Any], defaults: SamplingParams, context: int) -> SamplingParams:
    options = read_fields(given.get("options", {}), OPTION_FIELDS)
    if options.get("num_ctx", 0) > context:
        raise InvalidRequestError(
            f"num_ctx is {shown(options['num_ctx'])}, but this model was loaded with {context} tokens of context; send"
            " less, or start the server with a larger --context",
            param="num_ctx",
        )
    changes: dict[str, Any] = {name: options[name] for name in SAME_NAMES if name in options}
    if "repeat_penalty" in options:
        changes["repetition_penalty"] = options["repeat_penalty"]
    if "seed" in options:
        changes["seed"] = None if options["seed"] < 0 else options["seed"]
    tokens = options.get("num_predict", -1)
    changes["max_tokens"] = None if tokens < 0 else tokens
    if given.get("top_logprobs") and not given.get("logprobs"):
        raise InvalidRequestError("top_logprobs needs logprobs = true", param="top_logprobs")
    if given.get("logprobs"):
        changes["logprobs"] = given.get("top_logprobs", 0)
    form = given.get("format")
    if form == "json":
        changes["structured_outputs"] = StructuredOutputs(json_object=True, param="format")
    elif isinstance(form, Mapping):
        changes["structured_outputs"] = StructuredOutputs(json=form, param="format")
    sent_as = {"repetition_penalty": "repeat_penalty", "max_tokens": "num_predict", "logprobs": "top_logprobs"}
    return sampling_params(defaults, changes, sent_as)


def _message(raw: object, where: str) -> Message:
    """One message in Ollama's form."""
    if not isinstance(raw, Mapping):
        raise refusal(where, "a message must be an object")
    given = {key: value for key, value in raw.items() if value is not None}
    for name, value in given.items():
        if name not in _MEMBERS:
            raise refusal(f"{where}.{name[:80]}", f"unknown message field {name[:80]!r}; leave it out")
        if name not in ("images", "tool_calls") and not isinstance(value, str):
            raise refusal(f"{where}.{name}", f"{name} must be a string")
    message = Message.from_dict(
        {
            "role": given.get("role"),
            "content": given.get("content", ""),
            "reasoning_content": given.get("thinking") or None,
            "tool_calls": _calls(given.get("tool_calls", ()), f"{where}.tool_calls"),
            "tool_call_id": given.get("tool_call_id") or None,
            "name": given.get("tool_name") or None,
        },
        where,
    )
    images = _images(given.get("images", ()), f"{where}.images")
    return replace(message, content=[*images, *message.content]) if images else message


def _calls(raw: object, where: str) -> list[dict[str, Any]]:
    """Calls in OpenAI's form: arguments are an object here, and `id` and `type` may be missing."""
    if not isinstance(raw, Sequence) or isinstance(raw, str):
        raise refusal(where, "tool_calls must be a list of calls")
    calls = []
    for index, call in enumerate(raw):
        function = call.get("function") if isinstance(call, Mapping) else None
        given = function.get("arguments") if isinstance(function, Mapping) else None
        arguments = {} if given is None else given
        if not isinstance(function, Mapping) or not isinstance(arguments, Mapping):
            raise refusal(
                f"{where}[{index}].function",
                "a call in tool_calls has a function with a name, and arguments as an object",
            )
        calls.append({**call, "function": {**function, "arguments": arguments_text(arguments)}})
    return calls


def _images(raw: object, where: str) -> list[ImagePart]:
    if not isinstance(raw, Sequence) or not all(isinstance(one, str) for one in raw) or isinstance(raw, str):
        raise refusal(where, "images must be a list of texts in base64")
    return [
        ImagePart.from_base64(one, "image/*", where=f"{where}[{index}]", type="images") for index, one in enumerate(raw)
    ]
