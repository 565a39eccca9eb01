"""Markdown that is complete, as blocks of safe HTML."""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from threading import Lock
from typing import Any

from markdown_it.token import Token

from glm4.markup.code import plain_code
from glm4.markup.formula_rules import BAR, show_bars
from glm4.markup.parser import parse, write
from glm4.markup.sanitizer import sanitize

VERSION = 1  # of the HTML: who keeps it, renders again when this changes

LONGEST_PART = 200_000  # characters with Markdown; what follows is one plain block
_KEPT_BYTES = 16 << 20

_REFUSED = re.compile(f"[\0\ud800-\udfff{BAR}]")


def normalize(markdown: str) -> str:
    """Line ends as one newline; what HTML cannot hold, as the sign for it."""
    return _REFUSED.sub("\ufffd", markdown.replace("\r\n", "\n").replace("\r", "\n"))


def render(markdown: str) -> list[str]:
    """Text of a model -> HTML, one safe top-level element per block. Kept for a while: the next call costs nothing."""
    key = hashlib.blake2b(markdown.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    blocks = _kept.get(key)
    if blocks is None:
        blocks = tuple(render_normalized(normalize(markdown)))
        _kept.put(key, blocks)
    return list(blocks)


def render_normalized(source: str) -> list[str]:
    """`render` of what `normalize` gave, not kept."""
    env: dict[str, Any] = {}
    blocks = [render_block(tokens, env) for tokens in parse(source[:LONGEST_PART], env)]
    if len(source) > LONGEST_PART:
        blocks.append(plain_code(source[LONGEST_PART:], ""))
    return blocks


def render_block(tokens: list[Token], env: dict[str, Any]) -> str:
    """One block that `parse` found."""
    return sanitize(show_bars(write(tokens, env))).strip("\n")


class _Kept:
    """Blocks of whole texts, the least recently used ones dropped."""

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, key: bytes) -> tuple[str, ...] | None:
        with self._lock:
            blocks = self._entries.get(key)
            if blocks is not None:
                self._entries.move_to_end(key)
            return blocks

    def put(self, key: bytes, blocks: tuple[str, ...]) -> None:
        with self._lock:
            if key in self._entries:
                return
            self._entries[key] = blocks
            self._bytes += _size(blocks)
            while self._bytes > _KEPT_BYTES:
                _, dropped = self._entries.popitem(last=False)
                self._bytes -= _size(dropped)


def _size(blocks: tuple[str, ...]) -> int:
    return sum(2 * len(block) + 100 for block in blocks)


_kept = _Kept()
