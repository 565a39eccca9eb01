"""Reading /inference/v1/generate bodies. Options left out have the model's own values, as on every other route."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from glm4.api.fields import (
    BOOLEAN,
    IDS,
    OPTIONS,
    SALT,
    STRING,
    Field,
    as_it_is,
    body_schema,
    boolean,
    integer,
    mapping,
    only,
    read_fields,
    sampling_params,
    text,
    token_ids,
)
from glm4.api.openai.fields import COMPLETION_FIELDS
from glm4.api.openai.request import StreamOptions, stream_options, structured_outputs
from glm4.errors import InvalidRequestError
from glm4.sampling_params import MAX_LOGPROBS, SamplingParams

PATH = "/inference/v1/generate"

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_PARAMS = "sampling_params"


@dataclass(frozen=True)
class GenerateRequest:
    """A parsed body.

    Attributes:
        token_ids: the prompt, at least one id; not checked against a vocabulary yet.
        stream: None if the answer is not streamed.
        request_id: the client's name for the request.
        return_token_ids: the answer includes the prompt.
    """

    token_ids: list[int]
    params: SamplingParams
    stream: StreamOptions | None = None
    request_id: str | None = None
    return_token_ids: bool = False


def parse_generate(body: Mapping[str, Any], defaults: SamplingParams) -> GenerateRequest:
    """Read a body.

    Raises:
        InvalidRequestError: a field is missing, unknown, unsupported or has an invalid value; `.param` names it.
    """
    given = read_fields(body, FIELDS, _REFUSED)
    for name in REQUIRED:
        if name not in given:
            raise InvalidRequestError(f"{name} is missing", param=name)
    if not given["token_ids"]:
        raise InvalidRequestError("token_ids is empty: there is nothing to continue", param="token_ids")
    stream = stream_options(given)
    try:
        params = _params(given[_PARAMS], defaults)
        if stream is not None and params.prompt_logprobs is not None:
            raise InvalidRequestError("prompt_logprobs cannot be streamed", param="prompt_logprobs")
    except InvalidRequestError as error:
        error.param = f"{_PARAMS}.{error.param}"
        raise
    return GenerateRequest(
        given["token_ids"], params, stream, given.get("request_id"), given.get("return_token_ids", False)
    )


def renamed(error: InvalidRequestError) -> InvalidRequestError:
    """A later error about the prompt or an option, with the field of this body as its `param`."""
    if error.param == "prompt":
        error.param = "token_ids"
    elif (error.param or "").partition(".")[0] in SAMPLING:
        error.param = f"{_PARAMS}.{error.param}"
    return error


def _params(sampling: Mapping[str, Any], defaults: SamplingParams) -> SamplingParams:
    changes = read_fields(sampling, SAMPLING, _REFUSED_SAMPLING)
    if not changes.pop("detokenize", True) and changes.get("stop"):
        raise InvalidRequestError("stop strings need the text (detokenize = true)", param="stop")
    if "structured_outputs" in changes:
        changes["structured_outputs"] = structured_outputs("structured_outputs", changes["structured_outputs"])
    return sampling_params(defaults, changes)


def _request_id(name: str, value: Any) -> str:
    if not _ID.fullmatch(text(name, value)):
        raise InvalidRequestError(f"{name} must be 1 to 128 letters, digits, dots, dashes and underscores", param=name)
    return str(value)


SAMPLING: Mapping[str, Field] = MappingProxyType(
    {
        **OPTIONS,
        "logprobs": Field(integer(0, MAX_LOGPROBS), as_it_is),
        "structured_outputs": COMPLETION_FIELDS["structured_outputs"],
        # No text is returned either way; without it there are no stop strings.
        "detokenize": Field(BOOLEAN, boolean),
    }
)
"""Members of `sampling_params`."""

FIELDS: Mapping[str, Field] = MappingProxyType(
    {
        "model": Field(STRING, text),
        "token_ids": Field({**IDS, "minItems": 1}, token_ids),
        _PARAMS: Field(body_schema(SAMPLING, ()), mapping),
        "request_id": Field({"type": "string", "pattern": f"^{_ID.pattern}$"}, _request_id),
        "stream": COMPLETION_FIELDS["stream"],
        "stream_options": COMPLETION_FIELDS["stream_options"],
        "cache_salt": SALT,
        "return_token_ids": Field(BOOLEAN, boolean),
        "output_mode": Field({"enum": ["tokens"]}, only("tokens")),
        "priority": Field({"enum": [0]}, only(0)),
    }
)
"""Fields of a body."""

REQUIRED = ("token_ids", _PARAMS)

_IDS_ONLY = "this route takes token ids only; send pictures to /v1/chat/completions"
_ONE_PLACE = "prompts are computed where they are continued"
_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "features": _IDS_ONLY,
        "content_parts": _IDS_ONLY,
        "kv_transfer_params": _ONE_PLACE,
        "ec_transfer_params": _ONE_PLACE,
        "assistant_tokens_mask": "it is for training, not for generation",
        "token_offsets": "there is no text that they would refer to",
    }
)
_REFUSED_SAMPLING: Mapping[str, str] = MappingProxyType(
    {
        "bad_words": "send logit_bias",
        "allowed_token_ids": "send logit_bias or structured_outputs",
        "logits_processors": "send logit_bias or structured_outputs",
        "output_kind": "send stream",
        "truncate_prompt_tokens": "send fewer token_ids",
        "spaces_between_special_tokens": "no text is returned",
        "extra_args": "there are no plugins here",
    }
)
"""What vLLM knows beside these fields, and why it is not supported."""
