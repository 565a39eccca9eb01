"""Presentations: a slide is a page: title, texts, tables, charts as tables, notes.

Macros, embedded files, sounds and films are not looked at, links never followed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from glm4.documents.formats.archive import check_office_xml, open_archive
from glm4.documents.formats.detection import Content
from glm4.documents.formats.parsed import FullError, Parsed, RefusedError

_MOST_DEPTH = 30


def load(content: Content, parsed: Parsed) -> None:
    """Read a presentation."""
    check_office_xml(open_archive(content.data))
    import pptx

    try:
        presentation = pptx.Presentation(io.BytesIO(content.data))
        slides = list(presentation.slides)
    except (KeyError, ValueError, OSError) as error:
        raise RefusedError(f"is a damaged presentation ({error}); save it again") from None
    parsed.set_title(presentation.core_properties.title)
    for page in parsed.pages(len(slides), "slides"):
        start = len(parsed.blocks)
        try:
            has_picture = _add_slide(slides[page - 1], page, parsed)
        except (FullError, RecursionError):
            raise
        except Exception:  # of a library that trusts the file: a slide without what it must have
            parsed.warn(f"slide {page} is damaged and was read in part")
            continue
        if has_picture and len(parsed.blocks) == start:
            parsed.warn(f"slide {page} is a picture without text")


def _add_slide(slide: Any, page: int, parsed: Parsed) -> bool:
    """Append a slide; gives whether it has a picture."""
    from pptx.enum.shapes import MSO_SHAPE_TYPE

    title = slide.shapes.title
    if title is not None and title.has_text_frame:
        parsed.add(title.text_frame.text, "heading", page=page, level=1)
    has_picture = False
    for shape in _shapes(slide.shapes, 0):
        if title is not None and shape.shape_id == title.shape_id:
            continue
        if shape.has_text_frame:
            _add_text(shape.text_frame, page, parsed)
        elif getattr(shape, "has_table", False):
            parsed.add_table([[cell.text for cell in row.cells] for row in shape.table.rows], page=page)
        elif getattr(shape, "has_chart", False):
            _add_chart(shape.chart, page, parsed)
        elif shape.shape_type == MSO_SHAPE_TYPE.PICTURE:
            has_picture = True
    if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
        parsed.add(slide.notes_slide.notes_text_frame.text, "note", page=page)
    return has_picture


def _shapes(shapes: Any, depth: int) -> Iterator[Any]:
    """Shapes and those of groups, from top to bottom, then from left to right."""
    if depth > _MOST_DEPTH:
        raise RecursionError
    for shape in sorted(shapes, key=lambda shape: (shape.top or 0, shape.left or 0)):
        if hasattr(shape, "shapes"):
            yield from _shapes(shape.shapes, depth + 1)
        else:
            yield shape


def _add_text(frame: Any, page: int, parsed: Parsed) -> None:
    """A text with several paragraphs is a list, as slides have it."""
    lines = [(paragraph.level, " ".join(paragraph.text.split())) for paragraph in frame.paragraphs]
    lines = [(level, text) for level, text in lines if text]
    if len(lines) > 1:
        parsed.add("\n".join(f"{'  ' * level}- {text}" for level, text in lines), "list", page=page)
    elif lines:
        parsed.add(lines[0][1], page=page)


def _add_chart(chart: Any, page: int, parsed: Parsed) -> None:
    if chart.has_title and chart.chart_title.has_text_frame:
        parsed.add(chart.chart_title.text_frame.text, "caption", page=page)
    for plot in chart.plots:
        series = list(plot.series)
        rows = [["", *(str(one.name) for one in series)]]
        for at, category in enumerate(plot.categories):
            values = (one.values[at] if at < len(one.values) else None for one in series)
            rows.append([str(category), *("" if value is None else f"{value:g}" for value in values)])
        parsed.add_table(rows, page=page)
