"""Reading /v1/chat/completions and /v1/completions bodies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glm4.api.fields import is_int, sampling_params
from glm4.api.openai.fields import CHAT_FIELDS, COMPLETION_FIELDS, GUIDED, NO_EFFORT, read_fields
from glm4.chat.chat_request import ChatOptions, ChatRequest
from glm4.errors import InvalidRequestError, shown
from glm4.requests.input_processor import PromptOptions
from glm4.sampling_params import SamplingParams, StructuredOutputs

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's (and vLLM's) default answer length for /v1/completions."""

MAX_PROMPTS = 1024
_SCHEMA_PARAM = "response_format.json_schema.schema"
_STRUCTURED = ("json", "json_object", "regex", "choice", "grammar")


@dataclass(frozen=True)
class StreamOptions:
    """How to stream an answer.

    Attributes:
        include_usage: a last chunk without choices carries the token counts.
        continuous_usage: every chunk carries the counts so far; only with include_usage, as in vLLM.
    """

    include_usage: bool = False
    continuous_usage: bool = False


@dataclass(frozen=True)
class ResponseOptions:
    """What a response carries in addition to the answer: see the fields of the same names in `fields`."""

    metadata: Mapping[str, str] | None = None
    return_token_ids: bool = False
    tokens_as_ids: bool = False
    include_reasoning: bool = True


@dataclass(frozen=True)
class ChatBody:
    """A parsed /v1/chat/completions body.

    Attributes:
        request: the chat request.
        stream: None if the answer is not streamed.
    """

    request: ChatRequest
    model: str | None = None
    stream: StreamOptions | None = None
    response: ResponseOptions = ResponseOptions()


@dataclass(frozen=True)
class CompletionRequest:
    """A parsed /v1/completions body.

    Attributes:
        prompts: texts or lists of token ids, at least one.
        echo: put the prompt before each answer.
        generate: False if only the prompt is to be scored (max_tokens 0); `params` then request one token, which
            is left out of the response.
        options: how the prompts become ids, as far as the body says.
    """

    prompts: list[str | list[int]]
    params: SamplingParams
    model: str | None = None
    echo: bool = False
    generate: bool = True
    stream: StreamOptions | None = None
    response: ResponseOptions = ResponseOptions()
    options: PromptOptions = field(default_factory=PromptOptions)


def parse_chat(body: Mapping[str, Any], defaults: SamplingParams) -> ChatBody:
    """Read a /v1/chat/completions body.

    Args:
        body: the decoded JSON object.
        defaults: the model's own sampling options, used if the body has none.

    Raises:
        InvalidRequestError: a field is unknown, unsupported or has an invalid value; `.param` names it.
    """
    given = read_fields(body, CHAT_FIELDS)
    if "messages" not in given:
        raise InvalidRequestError("messages is missing", param="messages")
    options: ChatOptions = {
        "tools": given.get("tools"),
        "tool_choice": given.get("tool_choice"),
        "parallel_tool_calls": given.get("parallel_tool_calls", True),
        "continue_final_message": given.get("continue_final_message", False),
        "template_kwargs": with_effort(given.get("chat_template_kwargs", {}), given.get("reasoning_effort")),
    }
    if "add_generation_prompt" in given:
        options["add_generation_prompt"] = given["add_generation_prompt"]
    request = ChatRequest.of(given["messages"], _chat_params(given, defaults), **options)
    return ChatBody(request, given.get("model"), stream_options(given), _response(given))


def with_effort(template_kwargs: Mapping[str, Any], effort: str | None) -> Mapping[str, Any]:
    """The variables of the chat template with the effort of reasoning among them, as vLLM passes it.

    A template that has a switch for thinking reads `enable_thinking`; variables it does not read change nothing.
    """
    if effort is None:
        return template_kwargs
    switch = {"enable_thinking": False} if effort == NO_EFFORT else {}
    return {"reasoning_effort": effort, **switch, **template_kwargs}


def parse_completion(body: Mapping[str, Any], defaults: SamplingParams) -> CompletionRequest:
    """Read a /v1/completions body; see `parse_chat`."""
    given = read_fields(body, COMPLETION_FIELDS)
    changes = _sampling_options(given)
    tokens = given.get("max_tokens", DEFAULT_COMPLETION_TOKENS)
    scoring_only = is_int(tokens) and tokens == 0
    changes["max_tokens"] = 1 if scoring_only else tokens
    if scoring_only and not given.get("echo"):
        raise InvalidRequestError("max_tokens must be at least 1 unless echo is true", param="max_tokens")
    if "logprobs" in given:
        changes["logprobs"] = given["logprobs"]
        if given.get("echo"):
            changes.setdefault("prompt_logprobs", given["logprobs"])
    if "best_of" in given and given["best_of"] != given.get("n", 1):
        raise InvalidRequestError("best_of must equal n: all answers are returned", param="best_of")
    changes |= _structured(given)
    return CompletionRequest(
        prompts=read_prompts(given.get("prompt"), "prompt"),
        params=sampling_params(defaults, changes),
        model=given.get("model"),
        echo=given.get("echo", False),
        generate=not scoring_only,
        stream=stream_options(given),
        response=_response(given),
        options=_prompt_options(given),
    )


def _prompt_options(given: Mapping[str, Any]) -> PromptOptions:
    options = PromptOptions()
    if "add_special_tokens" in given:
        options["add_special_tokens"] = given["add_special_tokens"]
    if "parse_special" in given:
        options["parse_special"] = given["parse_special"]
    return options


def read_prompts(value: Any, name: str) -> list[str | list[int]]:
    """One prompt or a list of them, each text or token ids.

    Raises:
        InvalidRequestError: `.param` is `name`.
    """
    prompts = value if isinstance(value, list) and value and not is_int(value[0]) else [value]
    for one in prompts:
        ids = isinstance(one, list) and all(is_int(token) for token in one)
        if not (isinstance(one, str) or ids) or not one:
            raise InvalidRequestError(
                f"{name} must be a non-empty string, a list of token ids, or a list of such prompts", param=name
            )
    if len(prompts) > MAX_PROMPTS:
        raise InvalidRequestError(f"{name} has {len(prompts)} entries; at most {MAX_PROMPTS} are taken", param=name)
    if len({type(one) for one in prompts}) > 1:
        raise InvalidRequestError(f"{name} mixes texts and token ids", param=name)
    return prompts


def _sampling_options(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        row.sampling: given[name] for name, row in CHAT_FIELDS.items() if row.sampling is not None and name in given
    }


def _chat_params(given: Mapping[str, Any], defaults: SamplingParams) -> SamplingParams:
    changes = _sampling_options(given)
    if "max_completion_tokens" in given:
        if given.get("max_tokens", given["max_completion_tokens"]) != given["max_completion_tokens"]:
            raise InvalidRequestError("max_tokens and max_completion_tokens disagree; give one", param="max_tokens")
        changes["max_tokens"] = given["max_completion_tokens"]
    wanted = given.get("logprobs", False)
    if given.get("top_logprobs") and not wanted:
        raise InvalidRequestError("top_logprobs needs logprobs = true", param="top_logprobs")
    if wanted:
        changes["logprobs"] = given.get("top_logprobs", 0)
    sent_as = {"logprobs": "top_logprobs"}
    if "max_completion_tokens" in given:
        sent_as["max_tokens"] = "max_completion_tokens"
    return sampling_params(defaults, {**changes, **_structured(given)}, sent_as)


def _structured(given: Mapping[str, Any]) -> dict[str, StructuredOutputs]:
    """The answer's required format, from response_format, structured_outputs, or an older name of vLLM's."""
    forms = {name: given[name] for name in ("response_format", "structured_outputs", *GUIDED) if name in given}
    if forms.get("response_format", {}).get("type") == "text" and len(forms) > 1:
        _response_format(forms.pop("response_format"))
    if len(forms) > 1:
        raise InvalidRequestError(f"{' and '.join(forms)} exclude each other", param=next(iter(forms)))
    for name in forms:
        form = _response_format(forms[name]) if name == "response_format" else structured_outputs(name, forms[name])
        return {} if form is None else {"structured_outputs": form}
    return {}


def structured_outputs(name: str, wanted: Any) -> StructuredOutputs:
    """vLLM's `structured_outputs`, or the older form of one of its members; errors name the field `name`."""
    if name in GUIDED:
        return StructuredOutputs(**{GUIDED[name]: wanted}, param=name)
    for key in wanted:
        if key not in _STRUCTURED:
            raise InvalidRequestError(f"unsupported field {shown(key)}", param=f"{name}.{key}")
    return StructuredOutputs(**{key: one for key, one in wanted.items() if one is not None}, param=name)


def _response_format(value: Mapping[str, Any]) -> StructuredOutputs | None:
    kind = value.get("type")
    for key in value:
        # llama.cpp and others accept a schema with json_object; ignoring it would break the caller's expectation.
        known = {"json_object": "schema", "json_schema": "json_schema"}.get(str(kind))
        if key not in ("type", known) and value[key] is not None:
            raise InvalidRequestError(f"unsupported field {shown(key)}", param=f"response_format.{key}")
    if kind == "text":
        return None
    if kind == "json_object" and value.get("schema") is not None:
        checked = _schema(value["schema"], "response_format.schema")
        return StructuredOutputs(json=checked, param="response_format")
    if kind == "json_object":
        return StructuredOutputs(json_object=True, param="response_format")
    if kind == "json_schema":
        wrapper = value.get("json_schema")
        schema = wrapper.get("schema") if isinstance(wrapper, Mapping) else None
        if not isinstance(wrapper, Mapping) or not isinstance(wrapper.get("name"), str):
            raise InvalidRequestError(
                "response_format.json_schema needs a name and a schema", param="response_format.json_schema"
            )
        checked = _schema(schema if schema is not None else {}, _SCHEMA_PARAM)
        return StructuredOutputs(json=checked, param="response_format", strict=wrapper.get("strict") is True)
    raise InvalidRequestError(
        f"response_format.type must be text, json_object or json_schema, not {shown(kind)}", param="response_format"
    )


def _schema(value: Any, param: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidRequestError("the schema must be an object", param=param)
    return value


def stream_options(given: Mapping[str, Any]) -> StreamOptions | None:
    """How a body wants its answer streamed; None if it does not."""
    options = given.get("stream_options")
    if not given.get("stream"):
        if options:
            raise InvalidRequestError("stream_options needs stream = true", param="stream_options")
        return None
    options = options or {}
    include = options.get("include_usage", False)
    return StreamOptions(include, include and options.get("continuous_usage_stats", False))


def _response(given: Mapping[str, Any]) -> ResponseOptions:
    return ResponseOptions(
        metadata=given.get("metadata"),
        return_token_ids=given.get("return_token_ids", False),
        tokens_as_ids=given.get("return_tokens_as_token_ids", False),
        include_reasoning=given.get("include_reasoning", True),
    )
