"""`Source` and `Citation`: what an answer rests on, and where in the answer that is said."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A web page, or a part of a document, that a model was shown.

    Attributes:
        n: its number in the conversation, which answers cite as `【n†…】`.
        url: of a web page; None for a file.
        file: sha256 of a file, in hexadecimal; None for a web page.
        page: of a file with pages, counted from 1.
        section: heading above the part, if there is one.
        text: what was shown of it; may be shortened. In a citation of a file: the sentence that is meant, white space
            as single spaces, or nothing if it is not known.
    """

    n: int
    title: str
    url: str | None = None
    file: str | None = None
    page: int | None = None
    section: str | None = None
    text: str = ""


@dataclass(frozen=True)
class Citation:
    """A place in an answer that names its source.

    Attributes:
        start: first character of the place, in the text of its part of the answer.
        end: the character after it.
    """

    source: Source
    start: int
    end: int
