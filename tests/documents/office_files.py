"""Word, PowerPoint, Excel, OpenDocument and EPUB files for tests, written by the libraries that write such files."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence

import docx
import openpyxl
import pptx
from pptx.util import Inches
from reading import rezipped, zipped

CONTAINER = (
    '<?xml version="1.0"?><container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    '<rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
)


def word_file() -> bytes:
    """Headings, lists, a table with merged cells, and text after it."""
    document = docx.Document()
    document.core_properties.title = "年度报告"
    document.add_heading("Overview", 1)
    document.add_paragraph("The first paragraph\twith a tab.")
    document.add_paragraph("apples", style="List Bullet")
    document.add_paragraph("pears", style="List Bullet")
    document.add_paragraph("first", style="List Number")
    document.add_paragraph("second", style="List Number")
    document.add_heading("Figures", 2)
    table = document.add_table(rows=3, cols=3)
    for row, texts in zip(
        table.rows, [["City", "2023", "2024"], ["北京", "1|2", "3"], ["Total", "", "42"]], strict=True
    ):
        for cell, text in zip(row.cells, texts, strict=True):
            cell.text = text
    table.cell(2, 0).merge(table.cell(2, 1))
    document.add_paragraph("After the table.")
    return saved(document)


def slides_file() -> bytes:
    """A slide with bullets and notes, one with a table, one with a chart."""
    from pptx.chart.data import CategoryChartData
    from pptx.enum.chart import XL_CHART_TYPE

    presentation = pptx.Presentation()
    presentation.core_properties.title = "Plan"
    first = presentation.slides.add_slide(presentation.slide_layouts[1])
    first.shapes.title.text = "目标"
    first.placeholders[1].text = "Grow\nSave costs"
    first.notes_slide.notes_text_frame.text = "Say this slowly."
    second = presentation.slides.add_slide(presentation.slide_layouts[5])
    second.shapes.title.text = "Budget"
    table = second.shapes.add_table(2, 2, Inches(1), Inches(2), Inches(4), Inches(1)).table
    for at, text in enumerate(["Item", "Cost", "Rent", "900"]):
        table.cell(at // 2, at % 2).text = text
    third = presentation.slides.add_slide(presentation.slide_layouts[6])
    data = CategoryChartData()  # type: ignore[no-untyped-call]
    data.categories = ["Q1", "Q2"]
    data.add_series("Sales", (10.5, 20))  # type: ignore[no-untyped-call]
    third.shapes.add_chart(XL_CHART_TYPE.COLUMN_CLUSTERED, Inches(1), Inches(1), Inches(4), Inches(3), data)
    return saved(presentation)


def workbook_file(sheets: Mapping[str, Sequence[Sequence[object]]], *, hidden: Sequence[str] = ()) -> bytes:
    workbook = openpyxl.Workbook()
    workbook.remove(workbook.active)
    for name, rows in sheets.items():
        sheet = workbook.create_sheet(name)
        for row in rows:
            sheet.append(list(row))
        if name in hidden:
            sheet.sheet_state = "hidden"
    return saved(workbook)


def ods_file(rows: Sequence[Sequence[str]]) -> bytes:
    cells = "".join(
        "<table:table-row>"
        + "".join(
            f'<table:table-cell office:value-type="string"><text:p>{text}</text:p></table:table-cell>' for text in row
        )
        + "</table:table-row>"
        for row in rows
    )
    namespaces = " ".join(
        f'xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"' for name in ("office", "table", "text")
    )
    content = (
        f'<?xml version="1.0"?><office:document-content {namespaces}><office:body><office:spreadsheet>'
        f'<table:table table:name="Sheet">{cells}</table:table></office:spreadsheet></office:body>'
        "</office:document-content>"
    )
    manifest = (
        '<?xml version="1.0"?><manifest:manifest xmlns:manifest="urn:oasis:names:tc:opendocument:xmlns:manifest:1.0">'
        "</manifest:manifest>"
    )
    members = {"mimetype": "application/vnd.oasis.opendocument.spreadsheet", "content.xml": content}
    return zipped({**members, "META-INF/manifest.xml": manifest})


def book_file(chapters: Mapping[str, str], *, extra: Mapping[str, bytes | str] | None = None) -> bytes:
    """An EPUB book of HTML chapters by title; the spine runs against the order of the names."""
    names = {f"c{len(chapters) - at:03}.xhtml": (title, body) for at, (title, body) in enumerate(chapters.items())}
    items = "".join(f'<item id="{name[:4]}" href="text/{name}" media-type="application/xhtml+xml"/>' for name in names)
    points = "".join(
        f'<navPoint id="n{name[:4]}"><navLabel><text>{title}</text></navLabel><content src="text/{name}"/></navPoint>'
        for name, (title, _) in names.items()
    )
    package = (
        '<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="2.0"><metadata '
        'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>红楼梦</dc:title></metadata><manifest>'
        f'{items}<item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/></manifest><spine toc="ncx">'
        + "".join(f'<itemref idref="{name[:4]}"/>' for name in names)
        + "</spine></package>"
    )
    contents = (
        '<?xml version="1.0"?><!DOCTYPE ncx PUBLIC "-//NISO//DTD ncx 2005-1//EN" '
        '"http://www.daisy.org/z3986/2005/ncx-2005-1.dtd"><ncx xmlns="http://www.daisy.org/z3986/2005/ncx/">'
        f"<navMap>{points}</navMap></ncx>"
    )
    page = '<?xml version="1.0" encoding="utf-8"?><!DOCTYPE html><html xmlns="http://www.w3.org/1999/xhtml"><body>'
    members: dict[str, bytes | str] = {"mimetype": "application/epub+zip", "META-INF/container.xml": CONTAINER}
    members |= {"OEBPS/book.opf": package, "OEBPS/toc.ncx": contents}
    members |= {f"OEBPS/text/{name}": f"{page}{body}</body></html>" for name, (_, body) in names.items()}
    return zipped({**members, **(extra or {})})


def saved(document: object) -> bytes:
    buffer = io.BytesIO()
    document.save(buffer)  # type: ignore[attr-defined]
    return buffer.getvalue()


def rezipped_as(data: bytes, member: str, old: bytes, new: bytes) -> bytes:
    """An archive with bytes of a member replaced, which must be there."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        content = archive.read(member)
    assert old in content
    return rezipped(data, {member: content.replace(old, new)})
