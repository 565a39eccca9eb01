"""EPUB books: chapters in the order of the spine, with their headings; pictures and scripts are left out.

Encrypted books (with digital rights management) are refused. Nothing outside the archive is read.
"""

from __future__ import annotations

import posixpath
import re
import zipfile
from typing import TYPE_CHECKING
from urllib.parse import unquote, urldefrag

from glm4.documents.formats.archive import open_archive, read_member
from glm4.documents.formats.decoding import decode_any
from glm4.documents.formats.detection import Content
from glm4.documents.formats.html import add_elements, parse_html
from glm4.documents.formats.parsed import Parsed, RefusedError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
_FONTS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_PAGES = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml")


def load(content: Content, parsed: Parsed) -> None:
    """Read an EPUB book."""
    archive = open_archive(content.data)
    _check_encryption(archive)
    container = _xml(archive, _CONTAINER)
    package = next((item.get("full-path", "") for item in container.iter() if _local(item) == "rootfile"), "")
    book = _xml(archive, package)
    folder = posixpath.dirname(package)
    parsed.set_title(next((item.text for item in book.iter() if _local(item) == "title"), None))
    manifest = {item.get("id", ""): item for item in book.iter() if _local(item) == "item"}
    titles = _titles(archive, list(manifest.values()), folder)
    for reference in (item for item in book.iter() if _local(item) == "itemref"):
        item = manifest.get(reference.get("idref", ""))
        if item is None or item.get("media-type") not in _PAGES or "nav" in item.get("properties", "").split():
            continue
        name = _resolve(folder, item.get("href", ""))
        if name not in archive.namelist():
            parsed.warn(f"the chapter {name} is missing")
            continue
        _add_chapter(read_member(archive, name), titles.get(name), parsed)


def _add_chapter(data: bytes, title: str | None, parsed: Parsed) -> None:
    text = decode_any(data, parsed)
    if not text or not text.strip():
        return
    root = parse_html(text)
    start = len(parsed.blocks)
    if title is not None and not any(True for _ in root.iter("h1", "h2", "h3", "h4", "h5", "h6")):
        parsed.add(title, "heading", level=1)
    add_elements(root, parsed)
    if len(parsed.blocks) == start + 1 and parsed.blocks[start].text == title:
        del parsed.blocks[start]  # a picture


def _titles(archive: zipfile.ZipFile, items: list[Element], folder: str) -> dict[str, str]:
    """Titles of chapters by file, from the table of contents of EPUB 2 or 3."""
    titles: dict[str, str] = {}
    for item in items:
        name = _resolve(folder, item.get("href", ""))
        is_nav = "nav" in item.get("properties", "").split()
        if name not in archive.namelist() or not (is_nav or item.get("media-type") == "application/x-dtbncx+xml"):
            continue
        contents = _xml(archive, name)
        base = posixpath.dirname(name)
        if is_nav:
            links = (
                (link.get("href", ""), "".join(link.itertext())) for link in contents.iter() if _local(link) == "a"
            )
        else:
            links = (_point(point) for point in contents.iter() if _local(point) == "navPoint")
        for href, text in links:
            titles.setdefault(_resolve(base, href), " ".join(text.split()))
    return titles


def _point(point: Element) -> tuple[str, str]:
    text = next((item.text or "" for item in point.iter() if _local(item) == "text"), "")
    return next((item.get("src", "") for item in point if _local(item) == "content"), ""), text


def _check_encryption(archive: zipfile.ZipFile) -> None:
    """Obfuscated fonts do no harm; anything else encrypted does."""
    if _ENCRYPTION not in archive.namelist():
        return
    methods = {
        item.get("Algorithm", "") for item in _xml(archive, _ENCRYPTION).iter() if _local(item) == "EncryptionMethod"
    }
    if any(method not in _FONTS for method in methods):
        raise RefusedError("is encrypted (digital rights management); a copy without it is needed")


def _xml(archive: zipfile.ZipFile, name: str) -> Element:
    """The root of an XML member; entities and external references are errors."""
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    data = read_member(archive, name)
    try:
        root: Element = fromstring(re.sub(rb"<!DOCTYPE[^>\[]*>", b"", data, count=1))
    except DefusedXmlException:
        raise RefusedError(f"declares XML entities in {name}, which books do not have; it is not read") from None
    except (ParseError, ValueError, LookupError) as error:
        raise RefusedError(f"is damaged: {name} is not XML ({error})") from None
    return root


def _resolve(folder: str, href: str) -> str:
    return posixpath.normpath(posixpath.join(folder, unquote(urldefrag(href)[0]))) if href else ""


def _local(element: Element) -> str:
    return str(element.tag).rpartition("}")[2]
