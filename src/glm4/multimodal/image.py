"""`ImageDecoder`: files that strangers call pictures, as pixels of the size a model takes.

Pillow and its codecs are native code with a long list of past holes and of files that take forever. They run in a
helper process (`system/helper.py`, `image_decode.py`), within limits of time and memory, for the formats listed there.

Not covered: the helper has the rights of this process, so a file that takes over a codec has taken over the program.
Keep Pillow up to date.
"""

from __future__ import annotations

import hashlib
import struct
import sys
import threading
import zlib
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm4.errors import BusyError, InvalidRequestError
from glm4.system.helper import Cause, Helper, HelperError, Limits

MAX_PIXELS = 100_000_000
"""Of a file, before it is resized."""
LIMITS = Limits(cpu_seconds=10, memory_bytes=1536 << 20)
"""Of one picture. `MAX_PIXELS` of PNG with alpha take 1.0 GB and 2.5 s, of progressive JPEG in CMYK 1.25 GB and 3 s, of
AVIF 1.1 GB and 2 s. WebP with alpha and JPEG 2000 need more and end at some 70 million; QOI and plain PPM are slow."""

_REMEMBERED = 8
_MOST_WAITING = 16
_PATIENCE = 60.0  # seconds
_COLOR_TYPES = {1: 0, 3: 2, 4: 6}  # PNG's numbers, by channels
_INSTEAD = "send a smaller picture, as PNG or JPEG"


class ImageDecoder:
    """Decodes pictures in a process of its own, one at a time. Thread-safe.

    Args:
        size: side of the square that a model takes.
        limits: of one picture.
    """

    def __init__(self, size: int, limits: Limits = LIMITS) -> None:
        self.size = size
        self._helper = Helper(limits)
        self._lock, self._turn = threading.Lock(), threading.Lock()
        self._num_waiting = 0
        self._known: OrderedDict[bytes, NDArray[np.uint8] | str] = OrderedDict()

    def decode(self, data: bytes, where: str = "") -> NDArray[np.uint8]:
        """A file's pixels: RGB [size, size, 3], read-only; see `image_decode.py` for what they are made from.

        Normalization is the model's. A picture of a single pixel is a picture like any other.

        Args:
            data: the whole file.
            where: its location in the request, for errors.

        Raises:
            InvalidRequestError: it is not a picture, damaged, too large, or takes too long; `.param` is `where`.
            BusyError: others are being decoded for too long, or no helper process can be started.
        """
        if not data:
            raise _refusal(where, "the image is empty")
        key = hashlib.sha256(data).digest()
        known = self._remembered(key)
        if known is None:
            known = self._decoded_in_turn(key, data)
        if isinstance(known, str):
            raise _refusal(where, f"the image cannot be decoded: {known}")
        return known

    def close(self) -> None:
        """End the helper process, after the picture it is at; a later call starts another one. Idempotent."""
        self._helper.close()

    def _remembered(self, key: bytes) -> NDArray[np.uint8] | str | None:
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
            return self._known.get(key)

    def _decoded_in_turn(self, key: bytes, data: bytes) -> NDArray[np.uint8] | str:
        # Whoever waits holds a thread that prepares requests, and others need these.
        with self._lock:
            if self._num_waiting >= _MOST_WAITING:
                raise BusyError("too many pictures are being decoded; try again later")
            self._num_waiting += 1
        try:
            if not self._turn.acquire(timeout=_PATIENCE):
                raise BusyError(f"other pictures have taken {_PATIENCE:g} seconds to decode; try again later")
            try:
                known = self._remembered(key)  # another thread may have had the same picture
                if known is None:
                    known = self._decoded(data)
                    with self._lock:
                        self._known[key] = known
                        if len(self._known) > _REMEMBERED:
                            self._known.popitem(last=False)
                return known
            finally:
                self._turn.release()
        finally:
            with self._lock:
                self._num_waiting -= 1

    def _decoded(self, data: bytes) -> NDArray[np.uint8] | str:
        line = f"{self.size} {MAX_PIXELS}\n".encode()
        try:
            answer = self._helper.call("glm4.multimodal.image_decode:decode", line + data)
        except HelperError as error:
            return self._why(error.cause)
        except OSError as error:
            raise BusyError(f"the process that decodes pictures cannot be started ({error.strerror})") from None
        if answer[:1] != b"+":
            return answer[1:].decode()
        return np.frombuffer(answer, np.uint8, offset=1).reshape(self.size, self.size, 3)

    def _why(self, cause: Cause) -> str:
        limits = self._helper.limits
        if cause == "time":
            return f"it takes more than {limits.cpu_seconds} seconds; {_INSTEAD}"
        if cause == "memory":
            return f"it takes more than {limits.memory_bytes >> 20} MB of memory; {_INSTEAD}"
        return "the decoder crashed on it; save it again as PNG or JPEG"


def encode_picture(picture: object, max_nbytes: int = 32 << 20) -> bytes:
    """A picture in memory as a PNG file, which decodes to the pixels that its own file would decode to.

    Args:
        picture: a PIL image, of which the current frame counts; or a NumPy array of uint8: [H, W] or [H, W, 1] gray,
            [H, W, 3] RGB, [H, W, 4] RGB and alpha.
        max_nbytes: of the PNG file.

    Raises:
        InvalidRequestError: something else, empty, or too large.
    """
    module = sys.modules.get("PIL.Image")  # not loaded: then it is not one of its images
    if module is not None and isinstance(picture, module.Image):
        width, height = picture.size
        _check_size(height, width)
        try:
            from glm4.multimodal.image_decode import to_rgb

            array = np.asarray(to_rgb(picture))
        except Exception as error:  # it may come from a file that is only read now
            raise _refusal("", f"the PIL image cannot be read ({error})") from error
    elif isinstance(picture, np.ndarray):
        array = picture
    else:
        name = type(picture).__name__
        raise _refusal("", f"an image must be a path, bytes, a PIL image or a NumPy array, not {name}")
    _check_array(array)
    encoded = _png(array)
    if len(encoded) > max_nbytes:
        raise _refusal("", f"the image takes more than {max_nbytes >> 20} MB as a PNG file; make it smaller")
    return encoded


def _check_array(array: NDArray[Any]) -> None:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in _COLOR_TYPES):
        shape = list(array.shape)
        raise _refusal("", f"an array of an image must be [height, width], [height, width, 3 or 4], not {shape}")
    if array.dtype != np.uint8:
        problem = f"an array of an image must be uint8, 0 to 255, not {array.dtype}"
        if array.dtype.kind == "f":
            problem += "; if its values are 0 to 1: (array * 255).round().astype(numpy.uint8)"
        raise _refusal("", problem)
    _check_size(*array.shape[:2])


def _check_size(height: int, width: int) -> None:
    if height * width == 0:
        raise _refusal("", "the image has no pixels")
    if height * width > MAX_PIXELS:
        raise _refusal("", f"the image has more than {MAX_PIXELS // 1_000_000} million pixels; make it smaller")


def _png(array: NDArray[np.uint8]) -> bytes:
    """Each row has the filter "Sub": what it differs from its left neighbor, which halves a photograph."""
    height, width, channels = *array.shape[:2], array.shape[2] if array.ndim == 3 else 1
    pixels = array.reshape(height, width, channels)
    rows = np.empty((height, 1 + width * channels), np.uint8)
    rows[:, 0] = 1
    differences = rows[:, 1:].reshape(height, width, channels)
    differences[...] = pixels
    differences[:, 1:] -= pixels[:, :-1]
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOR_TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.data, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _refusal(where: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError(f"{where}: {problem}" if where else problem, param=where or "messages")
