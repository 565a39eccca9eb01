"""Pictures in the forms in which Python programs have them: paths, bytes, NumPy arrays, images of Pillow.

Only for messages that a program in this process wrote: a path reads any file that the process may read. What came over
the network goes to `ChatRequest.of` without passing here, and knows addresses and encoded bytes only.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from glm4.chat.parts import ImagePart, refusal
from glm4.errors import shown

_FORMS = "a path, bytes, a URL, an image of Pillow or a NumPy array"
_URLS = ("data:", "http://", "https://")
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # of Pillow; others are converted to RGB
_PNG_COLORS = {1: 0, 2: 4, 3: 2, 4: 6}  # channels → PNG's number for gray, gray and alpha, RGB, RGBA

_T = TypeVar("_T")


def with_local_images(messages: _T) -> _T:
    """A conversation whose pictures are `ImagePart`; everything else is left as it is, also what is malformed.

    Read are parts `{"type": "image", "image": …}` (see `read_image`; Hugging Face's `url`, `path` and `base64` instead
    of `image`, too), and messages `{"role": "user", "image": …, "content": "…"}`, as the GLM-4V demo has them.

    Raises:
        InvalidRequestError: a picture is malformed or cannot be read.
    """
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        return messages
    read: Any = [_with_parts(message, f"messages[{index}]") for index, message in enumerate(messages)]
    return read


def read_image(value: object, where: str) -> ImagePart:
    """A picture: a path (text or path object), a data: or http(s) URL, the bytes of a file, a NumPy array or Pillow's.

    An array is uint8 [height, width] or [height, width, channels], with 1 to 4 channels: gray, gray and alpha, RGB,
    RGBA. Pillow's images are taken as their pixels are: an orientation in EXIF does not turn them, as in files it does.

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
        data = bytes(value)
    elif hasattr(value, "save") and hasattr(value, "mode"):
        data = _pillow_png(value)
    elif hasattr(value, "__array_interface__"):
        data = _array_png(value, where)
    else:
        raise refusal(where, f"an image is {_FORMS}, not {type(value).__name__}")
    return ImagePart(data, where=where, type=ImagePart.kind)


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
            where, f"an image part has exactly one of {', '.join(_SOURCES)}, not {shown(sorted(map(str, given)))}"
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


def _pillow_png(image: Any) -> bytes:
    file = io.BytesIO()
    plain = image if image.mode in _PNG_MODES else image.convert("RGB")
    plain.save(file, format="PNG", compress_level=1, exif=b"")
    return file.getvalue()


def _array_png(value: object, where: str) -> bytes:
    """An array as a PNG file, unfiltered; Pillow's own encoder runs in its own process only."""
    import numpy as np

    array = np.asarray(value)
    shape = array.shape if array.ndim == 3 else (*array.shape, 1)
    if array.dtype != np.uint8 or len(shape) != 3 or shape[2] not in _PNG_COLORS or 0 in shape:
        raise refusal(
            where,
            "an array must be uint8 of shape [height, width] or [height, width, channels] with up to 4 channels, not"
            f" {array.dtype} of shape {list(array.shape)}",
        )
    height, width, channels = shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each row begins with its filter, 0: none
    rows[:, 1:] = array.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, _PNG_COLORS[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
