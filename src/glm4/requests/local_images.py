"""Pictures in the forms in which Python programs have them: paths, bytes, NumPy arrays, images of Pillow.

Only for messages that a program in this process wrote: a path reads any file that the process may read. What came over
the network goes to `ChatRequest.of` without passing here, and knows addresses and encoded bytes only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

from glm4.chat.parts import ImagePart, refusal
from glm4.errors import InvalidRequestError, shown

_T = TypeVar("_T")
_URLS = ("data:", "http://", "https://")


def with_local_images(messages: _T) -> _T:
    """A conversation whose pictures are `ImagePart`; everything else is left as it is, also what is malformed.

    Read are parts `{"type": "image", "image": …}` (see `read_image`; Hugging Face's `url`, `path` and `base64` instead
    of `image`, too), and messages `{"role": "user", "image": …, "content": "…"}`, as the GLM-4V demo has them.

    Raises:
        InvalidRequestError: a picture is malformed or cannot be read.
    """
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        return messages
    read = [_with_parts(message, f"messages[{index}]") for index, message in enumerate(messages)]
    return cast(_T, read)


def read_image(value: object, where: str) -> ImagePart:
    """A picture: a path (text or path object), a data: or http(s) URL, the bytes of a file, an image of Pillow, or an
    array: uint8 [height, width], gray, or [height, width, 1, 3 or 4]; see `multimodal.image.encode_picture`.

    Raises:
        InvalidRequestError: it is none of these, or cannot be read; `.param` is `where`.
    """
    if isinstance(value, ImagePart):
        return value
    if isinstance(value, str) and value[:8].lower().startswith(_URLS):
        return ImagePart.from_url(value, where=where, type=ImagePart.kind)
    if isinstance(value, (str, os.PathLike)):
        return ImagePart.open(value, where=where, type=ImagePart.kind)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return ImagePart(bytes(value), where=where, type=ImagePart.kind)
    from glm4.multimodal.image import encode_picture

    try:
        return ImagePart(encode_picture(value), media_type="image/png", where=where, type=ImagePart.kind)
    except InvalidRequestError as error:
        raise refusal(where, str(error)) from None


def _with_parts(message: object, where: str) -> object:
    if not isinstance(message, Mapping):
        return message
    given = dict(message)
    content = given.get("content")
    parts: list[object] | None = None
    if isinstance(content, Sequence) and not isinstance(content, (str, bytes)):
        given["content"] = parts = [_part(part, f"{where}.content[{at}]") for at, part in enumerate(content)]
    picture = given.pop("image", None)
    if picture is not None:
        if parts is None:
            parts = [] if content in (None, "") else [{"type": "text", "text": content}]
        # Last, so that errors name the other parts by the numbers they have; a prompt has pictures first anyway.
        given["content"] = [*parts, read_image(picture, f"{where}.image")]
    return given


def _part(part: object, where: str) -> object:
    if not isinstance(part, Mapping) or part.get("type") != ImagePart.kind:
        return part
    given = {key: value for key, value in part.items() if value is not None and key != "type"}
    if len(given) != 1 or (key := next(iter(given))) not in _SOURCES:
        raise refusal(
            where, f"an image part needs exactly one of {', '.join(_SOURCES)}, not {shown(sorted(map(str, given)))}"
        )
    return _SOURCES[key](given[key], where)


def _from_url(value: object, where: str) -> ImagePart:
    url = value.get("url") if isinstance(value, Mapping) else value
    if not isinstance(url, str):
        raise refusal(where, "the address of an image must be a string")
    return ImagePart.from_url(url, where=where, type=ImagePart.kind)


def _from_path(value: object, where: str) -> ImagePart:
    if not isinstance(value, (str, os.PathLike)):
        raise refusal(where, f"the path of an image must be a string or a path, not {type(value).__name__}")
    return ImagePart.open(value, where=where, type=ImagePart.kind)


def _from_base64(value: object, where: str) -> ImagePart:
    if not isinstance(value, str):
        raise refusal(where, "the base64 of an image must be a string")
    return ImagePart.from_base64(value, "image/*", where=where, type=ImagePart.kind)


_SOURCES: Mapping[str, Callable[[object, str], ImagePart]] = {
    "image": read_image,
    "url": _from_url,
    "image_url": _from_url,
    "path": _from_path,
    "base64": _from_base64,
}
