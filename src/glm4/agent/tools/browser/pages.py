"""`PageReader`: a page of the web as text that a model can read, with its links numbered.

HTML is read in a sandbox, one page each (`extraction.py`), as it is hostile input to native code. Where there is no
sandbox, it is read in a helper process: that one is limited in time and memory, but has the rights of this process.
PDF and office files are read by `documents`, in the sandbox or not at all. What comes back is treated as if the page
had said it: its form is checked, and what nobody sees is removed again.

Not covered: what a page says. It is for whoever shows it to a model to mark it as somebody else's words.
"""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote

from glm4.agent.tools.browser.visible import visible, visible_line, without_unseen
from glm4.agent.tools.endpoint import fetch_problem
from glm4.errors import Glm4Error, InvalidRequestError, SandboxError, SandboxUnavailableError, shown
from glm4.multimodal.fetch import Fetched, Fetcher
from glm4.sandbox.function import run_function
from glm4.sandbox.limits import Limits as SandboxLimits
from glm4.system.helper import Helper, HelperError, Limits

KINDS = ("text/", "application/")
"""Media types that are fetched; what is inside decides about the rest."""

_FUNCTION = "glm4.agent.tools.browser.extraction:extract"
_SECONDS = 30.0
_SANDBOX_LIMITS = SandboxLimits(memory_nbytes=2 << 30, cpu_seconds=20, file_nbytes=1 << 20, disk_nbytes=1 << 20)
_HELPER_LIMITS = Limits(cpu_seconds=20, memory_bytes=2 << 30, stack_bytes=8 << 20)
_AT_ONCE = 2
_MAX_TEXT_CHARS = 500_000
_MAX_LINKS = 10_000
_HTML_TYPES = ("text/html", "application/xhtml+xml")
_TEXT_TYPES = ("application/json", "application/xml", "application/yaml", "application/javascript")
_PDF = b"%PDF-"
_ARCHIVE = b"PK\x03\x04"
_LINK = re.compile(r"【\d+†([^【】†]*)(?:†[^【】]*)?】")
_BINARY = bytes({*range(32)} - {*b"\t\n\f\r\x1b"})


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        url: where it was found, after redirects.
        text: Markdown; links are `【n†words】`, with `†host` if they lead to another host.
        links: addresses, by number.
    """

    url: str
    title: str
    text: str
    links: tuple[str, ...] = ()

    def without_links(self) -> str:
        """The text with the words of links, but not their numbers, which stand for links of this page only."""
        return _LINK.sub(r"\1", self.text)


def in_parts(text: str, most: int) -> list[str]:
    """A text in pieces of at most `most` characters, cut between lines or words where there are any."""
    pieces, at = [], 0
    while at < len(text):
        end = min(at + most, len(text))
        if end < len(text):
            breaks = (text.rfind(mark, at + most // 2, end) for mark in ("\n", " "))
            end = next((found + 1 for found in breaks if found > 0), end)
        pieces.append(text[at:end])
        at = end
    return pieces or [""]


class PageError(Glm4Error):
    """A page that cannot be read; the text is for the model."""


class PageReader:
    """Fetches and reads pages. Thread-safe; `close` it.

    Args:
        sandboxed: HTML is read in a sandbox if there is one.
    """

    def __init__(self, fetcher: Fetcher, *, sandboxed: bool = True) -> None:
        self._fetcher = fetcher
        self._sandboxed = sandboxed
        self._turns = threading.BoundedSemaphore(_AT_ONCE)
        self._helper = Helper(_HELPER_LIMITS)

    def read(self, url: str) -> Page:
        """A page, however long; blocks.

        Raises:
            PageError: it cannot be fetched, or is none that can be read.
            MissingExtraError: a package is missing.
        """
        try:
            found = self._fetcher.fetch(url, kinds=KINDS)
        except InvalidRequestError as error:
            raise PageError(fetch_problem(error)) from None
        kind = _kind(found)
        with self._turns:
            page = _document(found) if kind == "document" else self._page(found, html=kind == "html")
        if not page.text.strip():
            raise PageError("it has no text; it may be one that only scripts fill, or that only shows pictures")
        return page

    def close(self) -> None:
        """End the helper process, if there is one. Idempotent."""
        self._helper.close()

    def _page(self, found: Fetched, *, html: bool) -> Page:
        given = {"url": found.url, "charset": found.charset, "html": html}
        argument = json.dumps(given).encode() + b"\n" + found.data
        try:
            return _checked(self._extracted(argument), found)
        except (SandboxError, HelperError) as error:
            problem = {"time": "takes too long", "memory": "takes too much memory"}.get(error.cause, "fails")
            raise PageError(f"reading it {problem}; it may be broken or made to be hard to read") from None
        except (ValueError, TypeError, KeyError, RecursionError):
            raise PageError("it could not be read: what came of it is malformed") from None

    def _extracted(self, argument: bytes) -> bytes:
        if self._sandboxed:
            try:
                packages = ("lxml", "trafilatura")
                return run_function(_FUNCTION, argument, limits=_SANDBOX_LIMITS, seconds=_SECONDS, packages=packages)
            except SandboxUnavailableError:
                self._sandboxed = False
        return self._helper.call(_FUNCTION, argument)


def _checked(result: bytes, found: Fetched) -> Page:
    raw = json.loads(result)
    title, text, links = raw["title"], raw["text"], raw["links"]
    if not isinstance(title, str) or not isinstance(text, str) or not isinstance(links, list):
        raise TypeError
    if not all(isinstance(link, str) for link in links):
        raise TypeError
    return Page(
        found.url,
        visible_line(title) or _name(found),
        without_unseen(text[:_MAX_TEXT_CHARS]),
        tuple(links[:_MAX_LINKS]),
    )


def _kind(found: Fetched) -> str:
    """html, text or document, by what is in the file and then by what the server says.

    Raises:
        PageError: it is none of them, or not what the server says.
    """
    media_type, head = found.media_type, found.data[:4096]
    if head.startswith(_PDF) or (head.startswith(_ARCHIVE) and media_type not in _HTML_TYPES):
        return "document"
    if media_type == "application/pdf":
        if _PDF in head[:1024]:
            return "document"
        raise PageError("it calls itself a PDF, but is none")
    if media_type in _HTML_TYPES and not _is_binary(head):
        return "html"
    unknown = media_type in ("", "application/octet-stream", "binary/octet-stream")
    if unknown and head.lstrip().lower().startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "html"
    textual = (
        unknown or media_type.startswith("text/") or media_type in _TEXT_TYPES or media_type.endswith(("+xml", "+json"))
    )
    if textual and not _is_binary(head):
        return "text"
    said = f"calls itself {shown(media_type)}" if media_type else "does not say what it is"
    raise PageError(f"it {said} and is no web page, text or document that can be read")


def _is_binary(head: bytes) -> bool:
    wide = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    return not wide and len(head) - len(head.translate(None, _BINARY)) > len(head) // 20


def _document(found: Fetched) -> Page:
    from glm4.documents.loading import load_document

    name = _name(found)
    try:
        document = load_document(found.data, name)
    except SandboxUnavailableError as error:
        raise PageError(f"it is a file that is only read in a sandbox, and there is none: {error}") from None
    except InvalidRequestError as error:
        raise PageError(f"the file {name} cannot be read: {visible_line(str(error), 400)}") from None
    return Page(found.url, visible_line(document.title or name), visible(document.text[:_MAX_TEXT_CHARS]))


def _name(found: Fetched) -> str:
    """The last part of the address, as a file's name."""
    path = PurePosixPath(unquote(found.url.partition("://")[2].partition("?")[0]))
    return visible_line(path.name, 80) or "page"
