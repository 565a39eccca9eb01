"""The fields of Ollama's request bodies and of their `options`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from glm4.api.fields import BOOLEAN, OBJECT, OPTIONS, STRING, Field, boolean, integer, is_int, mapping, only, text
from glm4.api.openai.fields import CHAT_FIELDS as OPENAI_CHAT
from glm4.errors import InvalidRequestError, shown
from glm4.sampling_params import MAX_LOGPROBS

_LEVELS = ("low", "medium", "high", "max")


def _whole(low: int) -> Field:
    def read(name: str, value: Any) -> int:
        if not is_int(value) or value < low:
            raise InvalidRequestError(f"{name} must be a whole number of at least {low}", param=name)
        return int(value)

    return Field(integer(low), read)


def _keep_alive(name: str, value: Any) -> str | float:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise InvalidRequestError(f'{name} must be a number of seconds or a text such as "5m"', param=name)
    return value


def _think(name: str, value: Any) -> bool | str:
    if not isinstance(value, bool) and value not in _LEVELS:
        choice = ", ".join(_LEVELS)
        raise InvalidRequestError(f"{name} must be true, false or one of {choice}, not {shown(value)}", param=name)
    return value  # type: ignore[no-any-return]


def _format(name: str, value: Any) -> str | Mapping[str, Any]:
    if not isinstance(value, Mapping) and value not in ("", "json"):
        raise InvalidRequestError(f'{name} must be "json" or a JSON schema, not {shown(value)}', param=name)
    return value  # type: ignore[no-any-return]


def _list(name: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise InvalidRequestError(f"{name} must be a list", param=name)
    return value


def _texts(name: str, value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(one, str) and one for one in texts):
        raise InvalidRequestError(f"{name} must be a text or a list of texts, none of them empty", param=name)
    return texts


_ARRAY = {"type": "array"}
_NAME = {"model": Field(STRING, text)}
_OLD_NAME = {**_NAME, "name": Field(STRING, text)}
_COMMON = {
    **_NAME,
    "options": Field(OBJECT, mapping),
    "keep_alive": Field({"anyOf": [STRING, {"type": "number"}]}, _keep_alive),
}
_GENERATING = {
    **_COMMON,
    "stream": Field(BOOLEAN, boolean),
    "format": Field({"anyOf": [{"enum": ["", "json"]}, OBJECT]}, _format),
    "think": Field({"anyOf": [BOOLEAN, {"enum": list(_LEVELS)}]}, _think),
    "logprobs": Field(BOOLEAN, boolean),
    "top_logprobs": Field(integer(0, MAX_LOGPROBS), _whole(0).read),
    # What Ollama does with a conversation that is too long; here that is an error.
    "truncate": Field({"enum": [False]}, only(False)),
    "shift": Field({"enum": [False]}, only(False)),
}

CHAT_FIELDS: Mapping[str, Field] = MappingProxyType(
    {**_GENERATING, "messages": Field(_ARRAY, _list), "tools": OPENAI_CHAT["tools"]}
)
"""Fields of an /api/chat body."""

GENERATE_FIELDS: Mapping[str, Field] = MappingProxyType(
    {
        **_GENERATING,
        "prompt": Field(STRING, text),
        "system": Field(STRING, text),
        "raw": Field(BOOLEAN, boolean),
        "images": Field(_ARRAY, _list),
    }
)
"""Fields of an /api/generate body."""

EMBED_FIELDS: Mapping[str, Field] = MappingProxyType(
    {
        **_COMMON,
        "input": Field({"anyOf": [STRING, {"type": "array", "items": STRING}]}, _texts),
        "truncate": Field(BOOLEAN, boolean),
        "dimensions": _whole(1),
    }
)
"""Fields of an /api/embed body."""

OLD_EMBED_FIELDS: Mapping[str, Field] = MappingProxyType({**_COMMON, "prompt": Field(STRING, text)})
"""Fields of an /api/embeddings body."""

SHOW_FIELDS: Mapping[str, Field] = MappingProxyType({**_OLD_NAME, "verbose": Field(BOOLEAN, boolean)})
"""Fields of an /api/show body."""

PULL_FIELDS: Mapping[str, Field] = MappingProxyType(
    {**_OLD_NAME, "stream": Field(BOOLEAN, boolean), "insecure": Field(BOOLEAN, boolean)}
)
"""Fields of an /api/pull body."""

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "suffix": "these models continue text; they do not fill gaps",
        "template": "the model's own chat template is used; send raw = true with a prompt you wrote yourself",
        "context": "send the conversation to /api/chat",
        "system": "send it as the first message",
        "prompt": "send it as the last message",
    }
)
"""Fields of Ollama's that are not supported, and why."""

SAME_NAMES = ("temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty", "stop")
"""Options with the same name here as in `SamplingParams`."""

_OF_THE_SERVER = (
    "num_keep", "num_batch", "num_gpu", "main_gpu", "num_thread", "numa", "low_vram", "use_mmap", "use_mlock",
)  # fmt: skip


def _setting(name: str, value: Any) -> Any:
    if not isinstance(value, int):
        raise InvalidRequestError(f"{name} must be a whole number, true or false", param=name)
    return value


OPTION_FIELDS: Mapping[str, Field] = MappingProxyType(
    {
        **{name: OPTIONS[name] for name in SAME_NAMES},
        "repeat_penalty": Field({"type": "number"}, OPTIONS["repetition_penalty"].read),
        "seed": _whole(-1),
        "num_predict": _whole(-2),
        "num_ctx": _whole(1),
        "repeat_last_n": Field({"enum": [-1]}, only(-1)),
        # Other samplers, in the values that turn them off.
        "mirostat": Field({"enum": [0]}, only(0)),
        "typical_p": Field({"enum": [1]}, only(1, 1.0)),
        "tfs_z": Field({"enum": [1]}, only(1, 1.0)),
        # How a model is computed is set when the server starts; these change no answer.
        **{name: Field({"type": ["integer", "boolean"]}, _setting) for name in _OF_THE_SERVER},
    }
)
"""Members of `options`."""
