"""What code printed, as text for people and for the model."""

from __future__ import annotations

import codecs
import re

# Sequences that control terminals: CSI, OSC, other strings, single ones; and what is left of controls.
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"
    r"|\x1b[PX^_][^\x1b]*\x1b\\|\x1b[ -/]*[0-OQ-WYZ\\`-~]"
)
_UNFINISHED = re.compile(
    r"(?:\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x1b]*\x1b?|[PX^_][^\x1b]*\x1b?|[ -/]*)|\x9b[0-?]*[ -/]*|\r)\Z"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_LONGEST_SEQUENCE = 4096


class OutputText:
    """Turns bytes into text without sequences that control terminals, and keeps the beginning and the end of it.

    Args:
        limit: characters kept for the model.
    """

    def __init__(self, limit: int) -> None:
        self._half = limit // 2
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # may be the beginning of a sequence
        self._head = self._tail = ""
        self._nchars = 0

    def add(self, data: bytes, *, final: bool = False) -> str:
        """More bytes; returns the text for people that has become certain."""
        text = self._held + self._decoder.decode(data, final)
        match = None if final else _UNFINISHED.search(text, max(0, len(text) - _LONGEST_SEQUENCE))
        cut = len(text) if match is None else match.start()
        text, self._held = text[:cut], text[cut:]
        text = _CONTROL.sub("", _SEQUENCE.sub("", text).replace("\r\n", "\n"))
        self._keep(text)
        return text.replace("\r", "\n")

    def _keep(self, text: str) -> None:
        self._nchars += len(text)
        room = self._half - len(self._head)
        self._head += text[:room]
        self._tail = (self._tail + text[room:])[-self._half :]

    def for_model(self) -> str:
        """The kept text; of lines that were overwritten (progress bars), what was seen last."""
        left_out = self._nchars - len(self._head) - len(self._tail)
        gap = f"\n[… {left_out:,} characters left out …]\n" if left_out else ""
        return re.sub(r"(?m)^[^\n]*\r(?!$)", "", self._head + gap + self._tail).replace("\r", "").strip("\n")
