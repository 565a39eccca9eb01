"""Reading llama.cpp's completion bodies. Prompts may mix text and token ids.

Fields for llama.cpp's other samplers are refused by name, like every unsupported field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from glm4.api.fields import (
    BOOLEAN,
    IDS,
    OBJECT,
    OPTIONS,
    STRING,
    Field,
    as_it_is,
    boolean,
    integer,
    is_int,
    sampling_params,
    text,
)
from glm4.api.openai.fields import read_fields
from glm4.chat.parts import ImagePart
from glm4.errors import InvalidRequestError, shown
from glm4.sampling_params import SamplingParams
from glm4.tokenizer import Tokenizer

MAX_PROMPTS = 1024
MAX_BIAS_TEXT = 1 << 16
MEDIA_MARKER = "<__media__>"
"""Stands for a picture in a prompt's text; `/props` tells clients."""
_FILES = "multimodal_data"


@dataclass(frozen=True)
class LlamaCppRequest:
    """A parsed body.

    Attributes:
        prompts: as received; `prompt_ids` reads one.
        several: the prompts are a list, so the answers are too.
        return_tokens: the answer includes its token ids.
        response_fields: paths (`a/b`) of the fields to include in the answer; empty means all.
    """

    prompts: list[Any]
    several: bool
    params: SamplingParams
    stream: bool = False
    return_tokens: bool = False
    response_fields: tuple[str, ...] = ()


def parse_completion(body: Mapping[str, Any], defaults: SamplingParams, tokenizer: Tokenizer) -> LlamaCppRequest:
    """Read a /completion body.

    Raises:
        InvalidRequestError: a field is unknown, unsupported or has an invalid value; `.param` names it.
    """
    given = read_fields(body, FIELDS)
    prompts, several = _prompts(given.get("prompt"))
    params = _params(given, defaults, tokenizer)
    if several and given.get("stream"):
        raise InvalidRequestError("one prompt at a time can be streamed", param="stream")
    return LlamaCppRequest(
        prompts=prompts,
        several=several,
        params=params,
        stream=given.get("stream", False),
        return_tokens=given.get("return_tokens", False),
        response_fields=tuple(given.get("response_fields", ())),
    )


def pictures_of(prompt: Any, where: str = "prompt") -> tuple[ImagePart, ...]:
    """The pictures of one prompt: of an object with `multimodal_data`.

    Raises:
        InvalidRequestError: they are not base64; `.param` is the location.
    """
    files = prompt.get(_FILES) if isinstance(prompt, Mapping) else None
    place = f"{where}.{_FILES}"
    if files is None:
        return ()
    if not isinstance(files, list):
        raise InvalidRequestError(f"{place} must be a list of files in base64", param=place)
    read = []
    for index, file in enumerate(files):
        at = f"{place}[{index}]"
        if not isinstance(file, str):
            raise InvalidRequestError(f"{at} must be a file in base64", param=at)
        read.append(ImagePart.from_base64(file, "image/*", where=at))
    return tuple(read)


def prompt_ids(
    prompt: Any,
    tokenizer: Tokenizer,
    *,
    marks: Sequence[int] = (),
    parse_special: bool = False,
    most: int | None = None,
) -> list[int]:
    """Convert one prompt to ids: text, ids, a list mixing both, or an object with `prompt_string`.

    Args:
        marks: stand where an object with pictures has `MEDIA_MARKER`.
        parse_special: read spellings of special tokens in texts as these tokens.
        most: see `Tokenizer.encode`.

    Raises:
        InvalidRequestError: it is none of these, or empty; or an object has another number of markers than of pictures.
    """
    if isinstance(prompt, Mapping):
        if "prompt_string" not in prompt or not set(prompt) <= {"prompt_string", _FILES}:
            raise InvalidRequestError(f"a prompt object has a prompt_string, and {_FILES} or nothing", param="prompt")
        text, count = prompt["prompt_string"], len(prompt.get(_FILES) or ())
        if count and isinstance(text, str):
            return _with_marks(text.split(MEDIA_MARKER), count, tokenizer, marks, parse_special, most)
        prompt = text
    if isinstance(prompt, str) and prompt:
        return tokenizer.encode_prompt(prompt, allow_special=parse_special, most=most)
    if not isinstance(prompt, list) or not prompt or not all(is_int(one) or isinstance(one, str) for one in prompt):
        raise InvalidRequestError("prompt must be a text, token ids, or a list of such", param="prompt")
    parts: list[Any] = list(prompt)
    head: list[int] = []
    if isinstance(parts[0], str):
        head, parts = tokenizer.encode_prompt(parts[0], allow_special=parse_special, most=most), parts[1:]
    encode = partial(tokenizer.encode, allow_special=parse_special, most=most)
    return head + [id_ for one in parts for id_ in ([one] if is_int(one) else encode(one))]


def _with_marks(
    texts: list[str], count: int, tokenizer: Tokenizer, marks: Sequence[int], parse_special: bool, most: int | None
) -> list[int]:
    """Ids of a prompt with pictures between its texts."""
    if len(texts) - 1 != count:
        raise InvalidRequestError(
            f"the prompt_string needs {MEDIA_MARKER} once for each of the files in {_FILES} ({count}), and has it"
            f" {len(texts) - 1} times",
            param="prompt",
        )
    tokenizer.check_length(texts, most)
    ids = tokenizer.encode_prompt(texts[0], allow_special=parse_special, most=most)
    for following in texts[1:]:
        ids += [*marks, *tokenizer.encode(following, allow_special=parse_special, most=most)]
    return ids


def _prompts(value: Any) -> tuple[list[Any], bool]:
    """The prompts of a request, and whether they are a list: a list that contains token ids is one prompt."""
    if not isinstance(value, list) or any(is_int(one) for one in value):
        return [value], False
    if not 1 <= len(value) <= MAX_PROMPTS:
        raise InvalidRequestError(f"prompt must have 1 to {MAX_PROMPTS} entries", param="prompt")
    return value, len(value) > 1 or not isinstance(value[0], str)


def _params(given: Mapping[str, Any], defaults: SamplingParams, tokenizer: Tokenizer) -> SamplingParams:
    changes: dict[str, Any] = {name: given[name] for name in (*SAME_NAMES, "stop") if name in given}
    if "repeat_penalty" in given:
        changes["repetition_penalty"] = given["repeat_penalty"]
    if "seed" in given:
        changes["seed"] = None if given["seed"] == -1 else given["seed"]
    tokens = given.get("n_predict", given.get("max_tokens", -1))
    changes["max_tokens"] = None if tokens == -1 else tokens
    if given.get("n_probs"):
        changes["logprobs"] = given["n_probs"]
    if "logit_bias" in given:
        changes["logit_bias"] = {
            one: bias
            for token, bias in given["logit_bias"]
            for one in (tokenizer.encode(token) if isinstance(token, str) else [token])
        }
    limit = "n_predict" if "n_predict" in given else "max_tokens"
    sent_as = {"repetition_penalty": "repeat_penalty", "max_tokens": limit, "logprobs": "n_probs"}
    return sampling_params(defaults, changes, sent_as)


def _at_least(low: int) -> Field:
    def read(name: str, value: Any) -> int:
        if not is_int(value) or value < low:
            raise InvalidRequestError(f"{name} must be a whole number of at least {low}", param=name)
        return int(value)

    return Field(integer(low), read)


def _strings(name: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise InvalidRequestError(f"{name} must be a list of strings", param=name)
    return value


def _bias(name: str, value: Any) -> list[tuple[int | str, float]]:
    """Pairs of a token (its id or text) and its bias; false means "never"."""
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    read: list[tuple[int | str, float]] = []
    length = 0
    for pair in pairs if isinstance(pairs, list) else [None]:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not (is_int(pair[0]) or isinstance(pair[0], str)):
            raise InvalidRequestError(f"{name} must be a list of [token, bias] pairs, or an object", param=name)
        token, bias = pair
        length += len(token) if isinstance(token, str) else 0
        if length > MAX_BIAS_TEXT:
            raise InvalidRequestError(f"{name} has texts of more than {MAX_BIAS_TEXT} characters in all", param=name)
        if isinstance(value, Mapping) and token.isascii() and token.isdigit():
            token = int(token)
        if bias is not False and (isinstance(bias, bool) or not isinstance(bias, (int, float))):
            raise InvalidRequestError(f"{name} has a bias that is no number: {shown(bias)}", param=name)
        read.append((token, -100.0 if bias is False else bias))  # range checked with the other options
    return read


SAME_NAMES = ("temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty", "ignore_eos")
"""Sampling options with the same name here as in `SamplingParams`."""

FIELDS: Mapping[str, Field] = {
    **{name: OPTIONS[name] for name in (*SAME_NAMES, "stop")},
    "model": Field(STRING, text),
    "prompt": Field({"anyOf": [STRING, IDS, {"type": "array"}, OBJECT]}, as_it_is),
    "n_predict": _at_least(-1),
    "max_tokens": _at_least(-1),
    "repeat_penalty": Field({"type": "number"}, OPTIONS["repetition_penalty"].read),
    "seed": _at_least(-1),
    "logit_bias": Field({"anyOf": [{"type": "array"}, OBJECT]}, _bias),
    "n_probs": _at_least(0),
    "stream": Field(BOOLEAN, boolean),
    "return_tokens": Field(BOOLEAN, boolean),
    "response_fields": Field({"type": "array", "items": STRING}, _strings),
    # No effect on results: a cached prefix gives the same bits here, and every slot in the batch the same answer.
    "cache_prompt": Field(BOOLEAN, boolean),
    "id_slot": _at_least(-1),
}
"""Supported fields of llama.cpp's /completion."""
