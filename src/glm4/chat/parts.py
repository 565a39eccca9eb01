"""The parts of a message: text, images, audio. Nothing is fetched or decoded here."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from glm4.errors import InvalidRequestError, shown

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_MEDIA_NBYTES = 32 << 20
MAX_URL_LENGTH = 8192
AUDIO_FORMATS = ("wav", "mp3")
DETAILS = ("auto", "low", "high", "original")
"""OpenAI's hint about how closely to look at an image. It has no effect: our models have one resolution."""


def refusal(where: str, problem: str) -> InvalidRequestError:
    """An error that names a location in the request; "" means no particular location."""
    return InvalidRequestError(f"{where}: {problem}" if where else problem, param=where or "messages")


@dataclass(frozen=True)
class TextPart:
    """Text."""

    text: str
    kind: ClassVar[str] = "text"

    def as_dict(self) -> dict[str, Any]:
        """In OpenAI's format."""
        return {"type": "text", "text": self.text}


@dataclass(frozen=True)
class MediaPart:
    """A file inside a message: either its bytes or its URL.

    Attributes:
        data: the unmodified file, at most `MAX_MEDIA_NBYTES`.
        url: an http(s) URL.
        media_type: what the sender says the file is, such as "image/png"; "" if unspecified.
        where: its location in the request, such as "messages[2].content[1]", for error messages.
        type: what the request calls such a part, also for error messages.

    Raises:
        InvalidRequestError: not exactly one of data and url, too large, or not an http(s) URL; `.param` is `where`.
    """

    data: bytes | None = field(default=None, repr=False)
    url: str | None = None
    media_type: str = field(default="", compare=False)
    where: str = field(default="", compare=False, repr=False)
    type: str = field(default="", compare=False, repr=False)
    kind: ClassVar[str]

    def __post_init__(self) -> None:
        if (self.data is None) == (self.url is None):
            raise refusal(self.where, f"an {self.kind} needs either data or url")
        if self.data is not None and not 0 < len(self.data) <= MAX_MEDIA_NBYTES:
            problem = f"is larger than {MAX_MEDIA_NBYTES >> 20} MB" if self.data else "is empty"
            raise refusal(self.where, f"the {self.kind} {problem}")
        if self.url is not None and not self.url.lower().startswith(("http://", "https://")):
            raise refusal(self.where, "the address must be a data: URL or begin with http:// or https://")
        if self.url is not None and len(self.url) > MAX_URL_LENGTH:
            raise refusal(self.where, f"the address is longer than {MAX_URL_LENGTH} characters")

    @cached_property
    def digest(self) -> str | None:
        """SHA-256 of the data, in hexadecimal; None while only the URL is known."""
        return None if self.data is None else hashlib.sha256(self.data).hexdigest()

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, where: str = "", type: str = "") -> Self:
        """A part from a file of this machine. For paths from the program itself, never from a request.

        Raises:
            InvalidRequestError: it cannot be read, is empty or too large.
        """
        try:
            with Path(path).open("rb") as file:
                data = file.read(MAX_MEDIA_NBYTES + 1)
        except (OSError, ValueError) as error:  # a path with a null character is a ValueError
            reason = getattr(error, "strerror", None) or str(error)
            raise refusal(where, f"the {cls.kind} {shown(os.fspath(path))} cannot be read: {reason}") from None
        return cls(data, where=where, type=type)

    @classmethod
    def from_url(cls, url: str, *, where: str = "", type: str = "") -> Self:
        """A part from a URL; the bytes inside a `data:` URL are extracted.

        Raises:
            InvalidRequestError: malformed, of a different kind, or too large.
        """
        if url[:5].lower() != "data:":
            return cls(url=url, where=where, type=type)
        header, comma, encoded = url.partition(",")
        media_type, *options = header[5:].lower().split(";")
        if not comma or options[-1:] != ["base64"]:
            raise refusal(where, f"malformed data URL; expected data:{cls.kind}/…;base64,…")
        return cls.from_base64(encoded, media_type, where=where, type=type)

    @classmethod
    def from_base64(cls, encoded: str, media_type: str, *, where: str = "", type: str = "") -> Self:
        """A part from its bytes in base64; see `from_url` for the errors."""
        if not media_type.startswith(f"{cls.kind}/"):
            raise refusal(where, f"the media type must be {cls.kind}/…, not {media_type[:80]!r}")
        if len(encoded) > (MAX_MEDIA_NBYTES + 2) // 3 * 4:
            raise refusal(where, f"the {cls.kind} is larger than {MAX_MEDIA_NBYTES >> 20} MB")
        try:
            data = base64.b64decode(encoded, validate=True)
        except ValueError:
            raise refusal(where, f"the {cls.kind} is not valid base64") from None
        return cls(data, media_type=media_type, where=where, type=type)

    def as_dict(self) -> dict[str, Any]:
        """In the format of OpenAI's `image_url`, which vLLM's `audio_url` shares."""
        url = self.url
        if self.data is not None:
            url = f"data:{self.media_type or self.kind + '/*'};base64,{base64.b64encode(self.data).decode()}"
        return {"type": f"{self.kind}_url", f"{self.kind}_url": {"url": url}}


class ImagePart(MediaPart):
    """An image; see `MediaPart`."""

    kind = "image"


class AudioPart(MediaPart):
    """An audio clip; see `MediaPart`."""

    kind = "audio"


Part = TextPart | ImagePart | AudioPart


def read_part(raw: object, where: str) -> Part:
    """A content part in OpenAI's format; a part object is returned as is.

    Raises:
        InvalidRequestError: malformed, or of an unknown type; `.param` is `where` or a location inside it.
    """
    if isinstance(raw, Part):
        return raw
    if not isinstance(raw, Mapping):
        raise refusal(where, f"a content part must be an object, not {type(raw).__name__}")
    kind = raw.get("type")
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        hint = "; pictures are sent as image_url" if kind == ImagePart.kind else ""
        raise refusal(where, f"content parts of type {shown(kind)} are not supported; {', '.join(_READERS)} are{hint}")
    return reader(raw, where)


def read_audio(raw: Mapping[str, Any], where: str) -> AudioPart:
    """OpenAI's `input_audio`."""
    given = _members(raw, "input_audio", where, ("data", "format"))
    if given["format"] not in AUDIO_FORMATS:
        raise refusal(f"{where}.input_audio.format", f"must be {' or '.join(AUDIO_FORMATS)}")
    return AudioPart.from_base64(given["data"], f"audio/{given['format']}", where=where, type="input_audio")


def _read_text(raw: Mapping[str, Any], where: str) -> TextPart:
    if not isinstance(raw.get("text"), str):
        raise refusal(f"{where}.text", "must be a string")
    return TextPart(raw["text"])


def _read_refusal(raw: Mapping[str, Any], where: str) -> TextPart:
    """OpenAI's part for what the assistant said instead of an answer."""
    if not isinstance(raw.get("refusal"), str):
        raise refusal(f"{where}.refusal", "must be a string")
    return TextPart(raw["refusal"])


def read_thinking(raw: object, where: str) -> str | None:
    """The text of a part with thinking, as vLLM's and litellm's answers have it; None if `raw` is another part.

    Thinking that another server encrypted cannot be read, and is "".

    Raises:
        InvalidRequestError: malformed.
    """
    kind = raw.get("type") if isinstance(raw, Mapping) else None
    if not isinstance(raw, Mapping) or kind not in ("thinking", "redacted_thinking"):
        return None
    text = raw.get("thinking", "") if kind == "thinking" else ""
    if not isinstance(text, str):
        raise refusal(f"{where}.thinking", "must be a string")
    return text


def _read_image(raw: Mapping[str, Any], where: str) -> ImagePart:
    given = _members(raw, "image_url", where, ("url",), ("detail",))
    check_detail(given.get("detail", "auto"), f"{where}.image_url.detail")
    return ImagePart.from_url(given["url"], where=where, type="image_url")


def check_detail(value: object, where: str) -> None:
    """Reject a value that is not one of `DETAILS`."""
    if value not in DETAILS:
        raise refusal(where, f"must be {', '.join(DETAILS)}")


def _read_audio_url(raw: Mapping[str, Any], where: str) -> AudioPart:
    given = _members(raw, "audio_url", where, ("url",))
    return AudioPart.from_url(given["url"], where=where, type="audio_url")


def _members(
    raw: Mapping[str, Any], name: str, where: str, required: Sequence[str], optional: Sequence[str] = ()
) -> Mapping[str, str]:
    """The object under `name`, which has exactly these members, all strings."""
    inner = raw.get(name)
    if not isinstance(inner, Mapping):
        raise refusal(f"{where}.{name}", "must be an object")
    given = {key: value for key, value in inner.items() if value is not None}
    for key in (*given, *required):
        if key not in (*required, *optional):
            raise refusal(f"{where}.{name}.{str(key)[:80]}", "this field is not supported")
        if not isinstance(given.get(key), str):
            raise refusal(f"{where}.{name}.{key}", "must be a string")
    return given


_READERS: Mapping[str, Callable[[Mapping[str, Any], str], Part]] = {
    "text": _read_text,
    "input_text": _read_text,
    "output_text": _read_text,
    "refusal": _read_refusal,
    "image_url": _read_image,
    "input_audio": read_audio,
    "audio_url": _read_audio_url,
}
