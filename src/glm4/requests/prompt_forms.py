"""The forms in which programs give prompts and conversations: those of vLLM's `LLM`. All others are refused by name.

Text is never taken for ids or the other way around: bytes look like a sequence of small integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import index
from typing import Any, NamedTuple, NoReturn, cast

from glm4.chat.chat_request import Conversation
from glm4.chat.messages import Message
from glm4.chat.parts import ImagePart
from glm4.errors import InvalidRequestError
from glm4.prompt import Prompt
from glm4.requests.local_images import read_image

PromptLike = str | Sequence[int] | Prompt | Mapping[str, Any]
"""Text, token ids (a list or an array), a `Prompt`, or vLLM's `{"prompt": text}` and `{"prompt_token_ids": ids}`.

The dictionaries may have `"multi_modal_data": {"image": …}` beside them: a picture in a form of `read_image`, or a list
of them, one for every `<|begin_of_image|><|endoftext|><|end_of_image|>` of the prompt.
"""

_FORMS = "text, a list of token ids, {'prompt': text} or {'prompt_token_ids': ids}"
_BYTES = (bytes, bytearray, memoryview)


def read_prompts(given: PromptLike | Sequence[PromptLike]) -> list[PromptLike]:
    """One prompt or a batch of them as a list; `read_prompt` checks each."""
    listed = _listed(given)
    if isinstance(listed, (str, Prompt, Mapping, *_BYTES)) or not isinstance(listed, Sequence) or _begins_ids(listed):
        return [cast(PromptLike, listed)]
    return list(listed)


class RawPrompt(NamedTuple):
    """A prompt's text, if it was given, its ids, and its pictures; without ids the text has to be encoded."""

    text: str | None
    ids: Prompt | list[int] | None
    images: tuple[ImagePart, ...] = ()


def read_prompt(given: PromptLike) -> RawPrompt:
    """A prompt in any of the forms.

    Raises:
        InvalidRequestError: it is not a prompt.
    """
    if isinstance(given, str):
        return RawPrompt(given, None)
    if isinstance(given, Prompt):
        return RawPrompt(None, given)
    if isinstance(given, Mapping):
        return _read_mapping(given)
    if isinstance(given, _BYTES):
        _refuse("a prompt is text or token ids, not bytes; decode them first: data.decode()")
    listed = _listed(given)
    if not isinstance(listed, Sequence):
        _refuse(f"a prompt is {_FORMS}, not {type(given).__name__} ({str(given)[:40]})")
    return RawPrompt(None, _ids(listed))


def read_conversations(given: Conversation | Sequence[Conversation]) -> list[Conversation]:
    """One conversation or a batch of them as a list; a bare message is a conversation.

    Raises:
        InvalidRequestError: it is not a list.
    """
    if isinstance(given, (Message, Mapping)):
        return [[given]]
    if isinstance(given, (str, *_BYTES)) or not isinstance(given, Sequence):
        raise InvalidRequestError(
            f'messages is a list such as [{{"role": "user", "content": "Hello"}}], not {type(given).__name__}',
            param="messages",
        )
    if given and all(isinstance(one, Sequence) and not isinstance(one, (str, *_BYTES)) for one in given):
        return list(cast("Sequence[Conversation]", given))
    return [cast(Conversation, given)]


def _read_mapping(given: Mapping[str, Any]) -> RawPrompt:
    known = {key: value for key, value in given.items() if value is not None}
    text, ids = known.pop("prompt", None), known.pop("prompt_token_ids", None)
    images = _read_images(known.pop("multi_modal_data", {}))
    for key in known:
        hint = "; for messages there is `chat`" if key in ("role", "content", "messages") else ""
        _refuse(f"a prompt is {_FORMS}; {key!r} is not supported{hint}")
    if text is not None and not isinstance(text, str):
        _refuse(f"'prompt' is text, not {type(text).__name__}; token ids are given as 'prompt_token_ids'")
    if ids is None:
        if text is None:
            _refuse(f"a prompt is {_FORMS}; this dictionary has neither")
        return RawPrompt(text, None, images)
    listed = _listed(ids)
    if isinstance(listed, (str, *_BYTES)) or not isinstance(listed, Sequence):
        _refuse(f"'prompt_token_ids' is a list of token ids, not {type(ids).__name__}")
    return RawPrompt(text, _ids(listed), images)


def _read_images(given: object) -> tuple[ImagePart, ...]:
    """The pictures of vLLM's `multi_modal_data`."""
    name = "multi_modal_data"
    if not isinstance(given, Mapping) or set(given) - {"image"}:
        _refuse(f"{name} is {{'image': a picture or a list of pictures}}; nothing else is supported")
    images = given.get("image", [])
    listed = list(images) if isinstance(images, (list, tuple)) else [images]
    return tuple(read_image(image, f"{name}.image[{at}]") for at, image in enumerate(listed))


def _listed(value: object) -> object:
    """An array of NumPy or another library as a list of Python's numbers."""
    tolist = None if isinstance(value, _BYTES) else getattr(value, "tolist", None)
    return value if tolist is None else tolist()


def _begins_ids(values: Sequence[object]) -> bool:
    return len(values) > 0 and _is_integer(values[0])


def _is_integer(value: object) -> bool:
    """True for Python's and NumPy's integers. An array has `__index__`, too, and so have older NumPy's booleans."""
    if type(value).__name__ in ("bool", "bool_") or hasattr(value, "__len__"):
        return False
    try:
        index(cast(int, value))
    except TypeError:
        return False
    return True


def _ids(values: Sequence[object]) -> list[int]:
    if set(map(type, values)) == {int}:
        return list(cast("Sequence[int]", values))
    for position, value in enumerate(values):
        if not _is_integer(value):
            _refuse(f"token ids are whole numbers; number {position} of the prompt is {str(value)[:40]!r}")
    return [index(cast(int, value)) for value in values]


def _refuse(message: str) -> NoReturn:
    raise InvalidRequestError(message, param="prompt")
