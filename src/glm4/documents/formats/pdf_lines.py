"""`Line`: a line of a PDF page, with its place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Line:
    """A line of a page, in points.

    Attributes:
        base: height of its base line; it grows upward.
        size: of its characters.
        cells: its parts, if there are wide gaps between them; else ().
        running_key: equal for lines of different pages that may be the same header; "" for lines that are none.
    """

    text: str
    left: float
    right: float
    base: float
    size: float
    cells: tuple[Line, ...] = ()
    running_key: str = ""
