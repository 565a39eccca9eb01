"""What a file really is: found by its first bytes and its members; the name only tells text formats apart."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from glm4.documents.formats.archive import open_archive, read_member
from glm4.documents.formats.decoding import decode_any
from glm4.documents.formats.parsed import Parsed, RefusedError

_OFFICE = "application/vnd.openxmlformats-officedocument."
PDF = "application/pdf"
DOCX = _OFFICE + "wordprocessingml.document"
PPTX = _OFFICE + "presentationml.presentation"
XLSX = _OFFICE + "spreadsheetml.sheet"
XLSB = "application/vnd.ms-excel.sheet.binary.macroenabled.12"
XLS = "application/vnd.ms-excel"
ODS = "application/vnd.oasis.opendocument.spreadsheet"
EPUB = "application/epub+zip"
HTML = "text/html"
MARKDOWN = "text/markdown"
PLAIN = "text/plain"
CSV = "text/csv"
TSV = "text/tab-separated-values"
JSON = "application/json"
NOTEBOOK = "application/x-ipynb+json"
CODE = "text/x-source"

_SUFFIXES = {
    "html": HTML, "htm": HTML, "xhtml": HTML, "md": MARKDOWN, "markdown": MARKDOWN, "csv": CSV, "tsv": TSV, "tab": TSV,
    "json": JSON, "ipynb": NOTEBOOK,
}  # fmt: skip
_CODE_SUFFIXES_WORDS = """
asm bash bat c cc cfg clj cmake conf cpp cs css cu cxx dart diff el erl ex f90 fs go gradle graphql h hpp hs
ini java jl js jsonl jsx kt lean less lisp lua m makefile ml mm nim patch php pl proto ps1 py pyi r rb rs rst
scala scss sh sol sql svelte swift tcl tex toml ts tsx v vb vim vue xml xsd xsl yaml yml zig zsh
"""
_CODE_SUFFIXES = frozenset(_CODE_SUFFIXES_WORDS.split())
_OTHER_NAMES = {
    "pdf": (PDF,), "docx": (DOCX,), "pptx": (PPTX,), "xlsx": (XLSX, XLSB), "xls": (XLS,), "ods": (ODS,),
    "epub": (EPUB,),
}  # fmt: skip
_WORDS = {
    PDF: "a PDF file", DOCX: "a Word document", PPTX: "a presentation", XLSX: "a workbook", XLS: "a workbook",
    XLSB: "a workbook", ODS: "a workbook", EPUB: "an EPUB book",
}  # fmt: skip
_UNPACK = "an archive; unpack it and send the files"
_BINARY = (
    (b"\x89PNG", "a picture; send it as a picture"), (b"\xff\xd8\xff", "a picture; send it as a picture"),
    (b"GIF8", "a picture; send it as a picture"), (b"II*\0", "a picture; send it as PNG"),
    (b"MM\0*", "a picture; send it as PNG"), (b"RIFF", "a picture, a sound or a film, not a document"),
    (b"\x7fELF", "a program, not a document"), (b"MZ", "a program, not a document"),
    (b"\x1f\x8b", _UNPACK), (b"Rar!", _UNPACK),
    (b"7z\xbc\xaf", _UNPACK), (b"BZh", _UNPACK),
    (b"\xfd7zXZ", _UNPACK), (b"\x28\xb5\x2f\xfd", _UNPACK),
    (b"{\\rtf", "in Rich Text Format; save it as DOCX or PDF"), (b"%!PS", "PostScript; save it as PDF"),
    (b"SQLite format 3", "a database, not a document"), (b"ID3", "a sound, not a document"),
)  # fmt: skip
_TEXTUAL = (b"{\\rtf", b"%!PS")
_HTML_START = re.compile(r"\s*(?:<\?xml[^>]*>\s*|<!--.*?-->\s*)*<(?:!doctype\s+html|html)\b", re.IGNORECASE | re.DOTALL)
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_MAIN_PARTS = {"word/document": DOCX, "ppt/presentation": PPTX, "xl/workbook": XLSX}
_MIME_NBYTES = 100


@dataclass(frozen=True)
class Content:
    """A file on its way to a loader.

    Attributes:
        text: of a text format, decoded; "" otherwise.
    """

    data: bytes
    name: str
    media_type: str
    text: str = ""


def detect(data: bytes, name: str, parsed: Parsed) -> Content:
    """What a file is.

    Raises:
        RefusedError: empty, or nothing that is read.
    """
    if not data.strip(b"\0 \t\r\n"):
        raise RefusedError("is empty")
    suffix = _suffix(name)
    media_type = _binary_type(data)
    if media_type is not None:
        if suffix in ("txt", *_SUFFIXES, *_OTHER_NAMES) and media_type not in _OTHER_NAMES.get(suffix, ()):
            parsed.warn(f"its name says {suffix}, but it is {_WORDS[media_type]}")
        return Content(data, name, media_type)
    text = decode_any(data, parsed)
    if text is None:
        raise RefusedError("is neither text nor a document in a format that is read (PDF, DOCX, PPTX, XLSX, EPUB …)")
    if suffix in _OTHER_NAMES:
        parsed.warn(f"its name says {suffix}, but it is text")
    return Content(data, name, _text_type(text, suffix), text)


def _suffix(name: str) -> str:
    path = PurePosixPath(name.replace("\\", "/"))
    return (path.suffix[1:] or (path.name if path.name.lower() == "makefile" else "")).lower()


def _binary_type(data: bytes) -> str | None:
    if data.startswith(b"PK\x03\x04"):
        return _archive_type(data)
    if data.startswith(_OLE):
        return _ole_type(data)
    for magic, what in _BINARY:
        if data.startswith(magic) and (magic in _TEXTUAL or b"\0" in data[:4096] or not data[:4096].isascii()):
            raise RefusedError(f"is {what}")
    if data[4:8] == b"ftyp":
        raise RefusedError("is a picture, a sound or a film, not a document")
    return PDF if b"%PDF-" in data[:1024] and _is_pdf(data) else None


def _is_pdf(data: bytes) -> bool:
    """Whether it begins like one, or ends like one after a few bytes that mail programs and printers have put first."""
    return data.startswith(b"%PDF-") or b"startxref" in data[-2048:]


def _archive_type(data: bytes) -> str:
    archive = open_archive(data)
    names = archive.namelist()
    if "mimetype" in names and archive.getinfo("mimetype").file_size <= _MIME_NBYTES:
        stated = read_member(archive, "mimetype").strip().decode("ascii", "replace")
        if stated in (ODS, EPUB):
            return stated
        if stated.startswith("application/vnd.oasis.opendocument"):
            raise RefusedError("is an OpenDocument text or presentation; save it as DOCX, PPTX or PDF")
    if "[Content_Types].xml" in names:
        for start, media_type in _MAIN_PARTS.items():
            if any(name.startswith(start) for name in names):
                return XLSB if "xl/workbook.bin" in names else media_type
    if "META-INF/container.xml" in names:
        return EPUB
    raise RefusedError("is a zip archive, not a document; unpack it and send the files")


def _ole_type(data: bytes) -> str:
    """Old Office files. Names of their streams are in UTF-16."""

    def has(name: str) -> bool:
        return name.encode("utf-16-le") in data

    if has("EncryptedPackage"):
        raise RefusedError("is encrypted and needs a password; remove the password in Office first")
    if has("WordDocument"):
        raise RefusedError("is in the old Word format; save it as DOCX")
    if has("PowerPoint Document"):
        raise RefusedError("is in the old PowerPoint format; save it as PPTX")
    if has("Workbook") or has("Book"):
        return XLS
    raise RefusedError("is in an old Office format that is not read; save it as DOCX, PPTX, XLSX or PDF")


def _text_type(text: str, suffix: str) -> str:
    if suffix in _CODE_SUFFIXES:
        return CODE
    head = text[:4096]
    if _HTML_START.match(head) and suffix not in ("md", "markdown", "txt", "csv", "tsv"):
        return HTML
    named = _SUFFIXES.get(suffix)
    if named == HTML and "<" not in head:
        named = PLAIN
    if named is None and text.lstrip()[:1] in ("{", "["):
        named = JSON if _is_json(text) else None
    if named in (JSON, NOTEBOOK):
        return NOTEBOOK if '"nbformat"' in text and '"cells"' in text and named == NOTEBOOK else JSON
    return named or PLAIN


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
