"""Plain text, source code and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from glm4.documents.cleaning import clean
from glm4.documents.formats.detection import Content
from glm4.documents.formats.parsed import Parsed

_PARAGRAPH_CHARACTERS = 2000
_CODE_LINES = 60
_LINE_CHARACTERS = 2000
_BLANK = re.compile(r"\n[ \t]*\n")
CHAPTER = re.compile(
    r"(?:第[一二三四五六七八九十百千零〇两\d]{1,8}[章节節回卷部篇集](?:[\s:：].{0,60})?|(?:chapter|part|book)\s+[\divxlc]+\b.{0,60})",
    re.IGNORECASE,
)
"""A line that begins a chapter: "第三章 …", "Chapter 3: …"."""


def load(content: Content, parsed: Parsed) -> None:
    """Paragraphs, which blank lines separate; lines like "Chapter 3" or "第三章 …" are headings."""
    for paragraph in _BLANK.split(clean(content.text)):
        for part in _parts(paragraph):
            if CHAPTER.fullmatch(part.strip()):
                parsed.add(part, "heading", level=1)
            else:
                parsed.add(part)


def load_code(content: Content, parsed: Parsed) -> None:
    """The text as it is, cut at blank lines every `_CODE_LINES` lines."""
    lines: list[str] = []
    for line in clean(content.text).split("\n"):
        if (not line.strip() and len(lines) >= _CODE_LINES) or len(lines) >= 4 * _CODE_LINES:
            parsed.add("\n".join(lines), "code")
            lines = []
        lines.append(line)
    parsed.add("\n".join(lines), "code")


def load_json(content: Content, parsed: Parsed) -> None:
    """JSON as it is; what stands on one long line is laid out first."""
    text = content.text
    if max(map(len, text.split("\n"))) > _LINE_CHARACTERS:
        try:
            text = json.dumps(json.loads(text), ensure_ascii=False, indent=1)
        except (ValueError, RecursionError):
            parsed.warn("it is not valid JSON; it was read as text")
    load_code(Content(content.data, content.name, content.media_type, text), parsed)


def _parts(paragraph: str) -> Iterator[str]:
    """A paragraph; lines of chapters alone; one that is too long in pieces that end at line ends, or anywhere."""
    lines: list[str] = []
    length = 0
    for line in paragraph.split("\n"):
        chapter = CHAPTER.fullmatch(line.strip())
        if lines and (chapter or length + len(line) > _PARAGRAPH_CHARACTERS):
            yield "\n".join(lines)
            lines, length = [], 0
        if chapter:
            yield line
            continue
        for start in range(0, len(line), 4 * _PARAGRAPH_CHARACTERS):
            lines.append(line[start : start + 4 * _PARAGRAPH_CHARACTERS])
        length += len(line)
    if lines:
        yield "\n".join(lines)
