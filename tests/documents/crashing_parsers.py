"""Parsers that crash, hang, eat memory, or answer what the file says: what a hostile file could make of a real one."""

from __future__ import annotations

import ctypes
import json
import os
from typing import Any


def segfault(argument: bytes) -> bytes:
    return ctypes.string_at(1)


def hang(argument: bytes) -> bytes:
    while True:
        pass


def eat(argument: bytes) -> bytes:
    held = []
    while True:
        held.append(bytes(1 << 24))


def leave(argument: bytes) -> bytes:
    os._exit(0)


def _document(**changes: Any) -> str:
    document = {"media_type": "text/plain", "blocks": [["text", "paragraph", None, 0]], "title": None}
    return json.dumps({**document, "num_pages": None, "warnings": [], "scanned": [], **changes})


def _blocks(*rows: Any, num_pages: int | None = None) -> str:
    return _document(blocks=list(rows), num_pages=num_pages)


ANSWERS = [
    "", "{", "[]", "null", '"x"', "{}", "[" * 100_000, '{"refused": 3}', '{"refused": "a", "missing": "b"}', "NaN",
    _document(evil="other"), _document(media_type="text/x-evil"), _document(media_type=[1]),
    _document(title=7), _document(title="x" * 5000), _document(title="\x1b[2J"), _document(num_pages=-1),
    _document(num_pages=True), _document(num_pages=10**9), _document(warnings="abc"), _document(warnings=["\x07"]),
    _document(warnings=["x"] * 1000), _document(scanned=[1]), _document(scanned=[2, 1], num_pages=3),
    _document(scanned=[1, 1], num_pages=3), _document(blocks={}), _blocks("text"), _blocks(["text"]),
    _blocks([1, "paragraph", None, 0]), _blocks(["a", "evil", None, 0]), _blocks(["a", ["list"], None, 0]),
    _blocks(["a", "heading", None, 0]), _blocks(["a", "heading", None, 7]), _blocks(["a", "paragraph", None, 1]),
    _blocks(["a", "paragraph", 1, 0]), _blocks(["a", "paragraph", 4, 0], num_pages=3),
    _blocks(["a", "paragraph", 2, 0], ["b", "paragraph", 1, 0], num_pages=3), _blocks(["a\x00", "paragraph", None, 0]),
    _blocks(["\ud800", "paragraph", None, 0]), _blocks(["a\u202eb", "paragraph", None, 0]),
    _blocks(["x" * 4_000_001, "paragraph", None, 0]), _blocks(["a", "paragraph", None, 0.0]),
    _blocks(*[["", "paragraph", None, 0]] * 200_001),
]  # fmt: skip
