"""What is done to an answer's text as it streams: placeholders are filled in, and citations are found."""

from __future__ import annotations

import re
from collections.abc import Mapping

from glm4.agent.cited_files import quotation
from glm4.agent.tool import Sources
from glm4.chat.parsers.base import overlap
from glm4.documents.citations import Citation

_OPENING = "【"
_CITATION = re.compile(r"【\s*(\d{1,6})\s*†[^【】]{0,300}】")
_LONGEST = 320  # characters of a citation that is still open
_REMEMBERED = 1200  # characters before a citation, in which its sentence begins


class Placeholders:
    """Replaces placeholders in growing text; what may become one is held back."""

    def __init__(self, replacements: Mapping[str, str]) -> None:
        self._replacements = replacements
        self._held = ""

    def push(self, text: str) -> str:
        """The text that is now certain."""
        if not self._replacements:
            return text
        text = self.whole(self._held + text)
        keep = max(overlap(text, placeholder) for placeholder in self._replacements)
        text, self._held = text[: len(text) - keep], text[len(text) - keep :]
        return text

    def finish(self) -> str:
        """What was held back."""
        text, self._held = self._held, ""
        return text

    def whole(self, text: str) -> str:
        """A whole text, with every placeholder filled in."""
        for placeholder, meaning in self._replacements.items():
            text = text.replace(placeholder, meaning)
        return text


class CitationFinder:
    """Finds `【7†…】` in the growing text of one part; numbers of no source are left alone.

    Of a file, the source has the sentence that is meant; see `cited_files.quotation`.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._open = ""  # from the last bracket that may begin a citation
        self._at = 0  # place of `_open` in the part
        self._said = ""  # before `_open`

    def push(self, text: str) -> list[Citation]:
        """The citations that this text completes."""
        text = self._open + text
        found = []
        end = 0
        for match in _CITATION.finditer(text):
            end = match.end()
            source = self._sources.get(int(match.group(1)))
            if source is not None:
                said = self._said + text[: match.start()]
                found.append(Citation(quotation(source, said), self._at + match.start(), self._at + end))
        opening = text.rfind(_OPENING, end)
        keep = opening if opening >= 0 and len(text) - opening <= _LONGEST else len(text)
        self._open, self._at = text[keep:], self._at + keep
        self._said = (self._said + text[:keep])[-_REMEMBERED:]
        return found
