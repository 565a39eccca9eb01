"""Reads documents as a program does: in the sandbox where there is one, else in a process with limits."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

import pytest

from glm4.documents.document import Block, Document
from glm4.documents.loading import load_document
from glm4.errors import InvalidRequestError
from glm4.sandbox.launch import unavailable

SANDBOXED = unavailable() is None


def read(data: bytes, name: str) -> Document:
    return load_document(data, name, sandboxed=SANDBOXED)


def refusal(data: bytes, name: str) -> str:
    """The text of the error with which a file is refused."""
    with pytest.raises(InvalidRequestError) as caught:
        read(data, name)
    assert str(caught.value).startswith(name.split("/")[-1])
    return str(caught.value)


def read_or_refused(data: bytes, name: str) -> Document | str:
    """The document, or the text of the error: nothing else comes out of a file."""
    try:
        return read(data, name)
    except InvalidRequestError as error:
        return str(error)


def texts(document: Document, kind: str | None = None) -> list[str]:
    return [block.text for block in document.blocks if kind in (None, block.kind)]


def headings(document: Document) -> list[tuple[int, str]]:
    return [(block.level, block.text) for block in document.blocks if block.kind == "heading"]


def find(document: Document, text: str) -> Block:
    """The block in which a text stands; its place in the whole text must agree."""
    offset = document.text.index(text)
    place = document.place(offset)
    block = document.blocks[place.block]
    assert text in block.text
    assert place.page == block.page
    return block


def zipped(members: Mapping[str, bytes | str], *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def rezipped(data: bytes, changes: Mapping[str, bytes | str]) -> bytes:
    """An archive with members replaced or added."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members: dict[str, bytes | str] = {name: archive.read(name) for name in archive.namelist()}
    return zipped({**members, **changes})
