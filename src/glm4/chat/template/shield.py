"""Keeps users' text from becoming special tokens on its way through a chat template.

A template produces one string in which its own `<|user|>` and a user's `<|user|>` look the same. So before
rendering, every spelling of a special token inside the caller's data is replaced by one private-use character that
occurs nowhere else; after rendering, the string is split at special tokens (now certainly the template's own), the
spellings are restored, and each segment between two special tokens is encoded as plain text. Text without such
spellings is unchanged, so its ids equal the encoding of the rendered string.

The end of a text that what the template puts after it could complete to a spelling (`<|us`) is replaced as well. Not
covered: a template that itself builds special tokens out of callers' data, or removes characters inside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from glm4.errors import InvalidRequestError
from glm4.tokenizer.base import Tokenizer

MAX_DEPTH = 64  # of tool descriptions and other structured values
_PRIVATE_USE = (range(0xF0000, 0xFFFFE), range(0xE000, 0xF900), range(0x100000, 0x10FFFE))


class Shield:
    """One rendering's replacements.

    Args:
        tokenizer: the one whose special tokens must be kept out.
        values: everything passed to the template; determines which private-use characters are free.
        template_source: the template's text, for the same purpose.
    """

    def __init__(self, tokenizer: Tokenizer, values: object, template_source: str = "") -> None:
        self._tokenizer = tokenizer
        self._texts = [*texts(values), template_source]
        self._free: Iterator[str] | None = None
        self._placeholders: dict[str, str] = {}  # spelling (or its first character) → placeholder
        self._originals: dict[str, str] = {}
        visible = {token.content for token in tokenizer.added_tokens.values() if not token.special}
        self._all = _Spellings(tokenizer.added_tokens)
        self._control = _Spellings(name for name in tokenizer.added_tokens if name not in visible)

    def cover(self, value: Any, *, model_text: bool = False) -> Any:
        """A copy of a value (text, or a JSON-like structure) in which no special token is spelled.

        Args:
            model_text: the text is the model's own earlier output: visible markers such as `<tool_call>` stay.
        """
        return self._cover(value, self._control if model_text else self._all, 0)

    def uncover(self, text: str) -> str:
        """Restore the spellings, for human readers."""
        return text.translate({ord(p): o for p, o in self._originals.items()}) if self._originals else text

    def encode(self, text: str, most: int | None = None) -> list[int]:
        """Ids of rendered (covered) text: the template's special tokens as ids, everything else as plain text.

        Raises:
            PromptTooLongError: it certainly has more than `most` ids.
        """
        restored = {ord(placeholder): original for placeholder, original in self._originals.items()}
        return self._tokenizer.encode(self._unescape(text), allow_special=True, restored=restored, most=most)

    def _cover(self, value: Any, spellings: _Spellings, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise InvalidRequestError(f"tools or messages are nested more than {MAX_DEPTH} levels deep", param="tools")
        if isinstance(value, str):
            return self._cover_text(value, spellings)
        if isinstance(value, Mapping):
            return {
                self._cover(key, spellings, depth + 1): self._cover(item, spellings, depth + 1)
                for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self._cover(item, spellings, depth + 1) for item in value]
        return value

    def _cover_text(self, text: str, spellings: _Spellings) -> str:
        for name in spellings.inside(text):
            text = text.replace(name, self._placeholder(name))
        starts = spellings.unfinished(text)
        if not starts:
            return text
        first = starts[0]
        tail = list(text[first:])
        for at in starts:
            tail[at - first] = self._placeholder(text[at])
        return text[:first] + "".join(tail)

    def _placeholder(self, original: str) -> str:
        if original not in self._placeholders:
            if self._free is None:
                self._free = self._unused_characters()
            placeholder = next(self._free, None)
            if placeholder is None:
                raise InvalidRequestError(
                    "the messages use up every private-use character of Unicode", param="messages"
                )
            self._placeholders[original] = placeholder
            self._originals[placeholder] = original
        return self._placeholders[original]

    def _unused_characters(self) -> Iterator[str]:
        used: set[str] = set()
        escapes = False
        for text in self._texts:
            if not text.isascii():
                used.update(text)
            escapes = escapes or "\\ud" in text or "\\ue" in text
        escaped = "".join(self._texts) if escapes else ""
        for code in (code for block in _PRIVATE_USE for code in block):
            character = chr(code)
            if character not in used and _json_escape(character) not in escaped:
                yield character

    def _unescape(self, text: str) -> str:
        """Undo JSON's ensure_ascii, with which a template may write our placeholders as escapes."""
        if "\\u" in text:
            for placeholder in self._originals:
                text = text.replace(_json_escape(placeholder), placeholder)
        return text


class _Spellings:
    """Finds spellings of special tokens, complete ones anywhere and unfinished ones at the end of a text."""

    def __init__(self, names: Any) -> None:
        self._names = sorted(names, key=len, reverse=True)
        self._beginnings = {name[:size] for name in self._names for size in range(1, len(name))}
        self._longest = max(map(len, self._names), default=0)

    def inside(self, text: str) -> list[str]:
        """Spellings that occur in a text, longest first."""
        return [name for name in self._names if name in text]

    def unfinished(self, text: str) -> list[int]:
        """Positions of spellings that are cut off by the end of the text (trailing whitespace does not count)."""
        end = len(text.rstrip())
        start = max(0, end - self._longest + 1)
        return [at for at in range(start, end) if text[at:end] in self._beginnings]


def _json_escape(character: str) -> str:
    return json.dumps(character)[1:-1]


def texts(value: object) -> Iterator[str]:
    """Every string inside a JSON-like value."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, Mapping):
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, (list, tuple)):
            stack.extend(item)
