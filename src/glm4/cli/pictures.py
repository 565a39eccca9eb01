"""Pictures that the user names: paths, addresses, and what a terminal pastes when a file is dropped on it.

Here a path may be any file and an address any host: who types them could open them as well. What only arrives as text
of a conversation or in a batch file does not pass here.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from glm4.errors import InvalidRequestError

if TYPE_CHECKING:
    from glm4.chat.messages import Message
    from glm4.chat.parts import ImagePart

_URL = re.compile(r"https?://", re.IGNORECASE)
# What cameras, browsers and paint programs call their files; those that cannot be read are refused with the reason.
_ENDINGS = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".gif", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".jp2", ".ico", ".icns"),
    *(".ppm", ".pgm", ".pbm", ".qoi", ".tga", ".heic", ".heif", ".jxl"),
)
# A word as shells read it: terminals quote or escape the paths of dropped files.
_WORD = r"""(?:'[^']*'|"[^"]*"|\\.|[^\s\\'"])+"""
_FIRST, _LAST = re.compile(rf"({_WORD})(?:\s+|$)"), re.compile(rf"\s({_WORD})$")
_CHECKED_SIZE = 28  # pixels


def check_sees(model: str) -> None:
    """Check that a model takes pictures, before its weights are fetched.

    Args:
        model: as for `LLM`.

    Raises:
        InvalidRequestError: it reads text only.
        Glm4Error: it cannot be found or read.
    """
    from glm4.checkpoints.text_files import read_text_files
    from glm4.cli.console import progress
    from glm4.hub import resolve
    from glm4.variants import get_variant

    variant = get_variant(model)
    if variant is not None and not Path(model).exists():
        sees = variant.sees
    else:
        with progress() as report:
            files = read_text_files(resolve(model, weights=False, progress=report), variant=variant)
        sees = files.image is not None
    if not sees:
        raise takes_text_only(model)


def takes_text_only(model: str) -> InvalidRequestError:
    """The error for a picture where the model cannot see."""
    from glm4.variants import VARIANTS

    names = ", ".join(name for name, variant in VARIANTS.items() if variant.sees)
    return InvalidRequestError(f"{model} takes text only; a model that sees: {names} (-m {names.split(',')[0]})")


def read_picture(name: str) -> ImagePart:
    """A picture by its path or http(s) address, fetched and known to be one. `.where` is a short name for it.

    Raises:
        InvalidRequestError: it cannot be read, or is not a picture that can be decoded.
        BusyError: no process that decodes can be started.
    """
    from glm4.chat.parts import ImagePart
    from glm4.multimodal.image import ImageDecoder

    if _URL.match(name):
        part = _fetched(name)
    else:
        path = _expanded(name)
        part = replace(ImagePart.open(path), where=path.name)
    assert part.data is not None  # noqa: S101 (both have read it)
    decoder = ImageDecoder(_CHECKED_SIZE)
    try:
        decoder.decode(part.data, part.where)
    finally:
        decoder.close()
    return part


def _fetched(url: str) -> ImagePart:
    """A picture from any host, the user's own network included; where it redirects to must be public or the same."""
    from glm4.chat.parts import ImagePart
    from glm4.cli.console import progress
    from glm4.multimodal.addresses import AddressError, parse_url
    from glm4.multimodal.fetch import Fetcher, FetchPolicy

    try:
        target = parse_url(url)
    except AddressError as error:
        raise InvalidRequestError(f"the address cannot be fetched: {error}") from None
    name = unquote(urlsplit(url).path).rpartition("/")[2] or target.host
    policy = FetchPolicy(private_hosts=(target.host,), ports=(80, 443, target.port))
    with progress() as report:
        report(f"fetching {name}", 0, 0)
        got = Fetcher(policy).fetch(url)
    return ImagePart(got.data, media_type=got.media_type, where=name)


def pasted_picture(line: str) -> tuple[str, str] | None:
    """The path of a picture's file with which a line begins or ends, and the rest of the line; None if there is none.

    At the end only absolute paths count, as terminals paste them: "what is in cat.png" may just be a question.
    """
    text = line.strip()
    if _is_picture(whole := plain_path(text)):
        return whole, ""
    first, last = _FIRST.match(text), _LAST.search(text)
    if first is not None and _is_picture(path := plain_path(first[1])):
        return path, text[first.end() :]
    if last is not None and Path(path := plain_path(last[1])).is_absolute() and _is_picture(path):
        return path, text[: last.start()].rstrip()
    return None


def plain_path(text: str) -> str:
    """A path without the quotes, escapes or `file://` that a terminal or a user has put around it."""
    if text[:7].lower() == "file://":
        return unquote(urlsplit(text).path)
    path = _expanded(text)
    if _exists(path):
        return str(path)
    try:
        words = shlex.split(text)
    except ValueError:  # a quote without its partner
        return text
    if len(words) != 1:
        return text
    return plain_path(words[0]) if words[0][:7].lower() == "file://" else str(_expanded(words[0]))


def shown_text(message: Message) -> str:
    """A message as one line: its pictures in brackets, then its text."""
    from glm4.chat.pictures import images_of

    return " ".join([*bracketed(images_of([message])), message.text]).strip()


def bracketed(pictures: Sequence[ImagePart]) -> list[str]:
    """Names of pictures as the conversation shows them, such as "[cat.png]"."""
    return [f"[{picture.where}]" for picture in pictures]


def _is_picture(path: str) -> bool:
    return path.lower().endswith(_ENDINGS) and _exists(Path(path)) and Path(path).is_file()


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # "~" and a name that nobody has
        return Path(path)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a null character
        return False
