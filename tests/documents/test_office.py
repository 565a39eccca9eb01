"""Office documents: headings, lists and tables in place; slides and sheets are pages."""

from __future__ import annotations

import datetime
import io
from pathlib import Path

import docx
import pptx
import pytest
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls
from office_files import ods_file, rezipped_as, saved, slides_file, word_file, workbook_file
from pptx.util import Inches
from reading import find, headings, read, rezipped, texts

from picture_files import encoded, picture


def test_word_headings_lists_and_tables_are_kept_in_place() -> None:
    document = read(word_file(), "report.docx")
    assert document.title == "年度报告"
    assert document.num_pages is None
    assert [(block.kind, block.text) for block in document.blocks] == [
        ("heading", "Overview"),
        ("paragraph", "The first paragraph\twith a tab."),
        ("list", "- apples\n- pears\n1. first\n2. second"),
        ("heading", "Figures"),
        ("table", "| City | 2023 | 2024 |\n| --- | --- | --- |\n| 北京 | 1\\|2 | 3 |\n| Total |  | 42 |"),
        ("paragraph", "After the table."),
    ]
    assert headings(document) == [(1, "Overview"), (2, "Figures")]
    assert document.place(document.text.index("北京")).section == "Figures"


def test_word_text_boxes_tracked_changes_and_content_controls() -> None:
    document = docx.Document()
    paragraph = document.add_paragraph("kept ")
    word = nsdecls("w")
    paragraph._p.append(parse_xml(f"<w:ins {word}><w:r><w:t>inserted</w:t></w:r></w:ins>"))
    paragraph._p.append(parse_xml(f"<w:del {word}><w:r><w:delText>deleted</w:delText></w:r></w:del>"))
    box = (
        f"<w:r {word}><w:pict><w:txbxContent><w:p><w:r><w:t>in the box</w:t></w:r></w:p></w:txbxContent></w:pict></w:r>"
    )
    paragraph._p.append(parse_xml(box))
    control = f"<w:sdt {word}><w:sdtContent><w:p><w:r><w:t>in a control</w:t></w:r></w:p></w:sdtContent></w:sdt>"
    document.element.body.insert(1, parse_xml(control))
    assert texts(read(saved(document), "a.docx")) == ["kept inserted", "in the box", "in a control"]


def test_word_footnotes_are_notes_that_the_text_refers_to() -> None:
    document = docx.Document()
    word = nsdecls("w")
    paragraph = document.add_paragraph("A claim")
    paragraph._p.append(parse_xml(f'<w:r {word}><w:footnoteReference w:id="2"/></w:r>'))
    notes = f'<w:footnotes {word}><w:footnote w:type="separator" w:id="0"><w:p/></w:footnote>'
    notes += '<w:footnote w:id="2"><w:p><w:r><w:t>Its source.</w:t></w:r></w:p></w:footnote></w:footnotes>'
    from docx.opc.constants import CONTENT_TYPE, RELATIONSHIP_TYPE
    from docx.opc.packuri import PackURI
    from docx.opc.part import Part

    package = document.part.package
    part = Part(PackURI("/word/footnotes.xml"), CONTENT_TYPE.WML_FOOTNOTES, notes.encode(), package)
    document.part.relate_to(part, RELATIONSHIP_TYPE.FOOTNOTES)
    read_document = read(saved(document), "a.docx")
    assert [(block.kind, block.text) for block in read_document.blocks] == [
        ("paragraph", "A claim[^2]"), ("note", "[^2]: Its source."),
    ]  # fmt: skip


def test_word_files_with_macros_are_read_and_the_macros_ignored() -> None:
    data = word_file()
    plain = b"application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    macros = b"application/vnd.ms-word.document.macroEnabled.main+xml"
    types = rezipped_as(data, "[Content_Types].xml", plain, macros)
    document = read(rezipped(types, {"word/vbaProject.bin": b"\xd0\xcf\x11\xe0 Sub AutoOpen() Shell"}), "a.docm")
    assert "After the table." in document.text
    assert "Shell" not in document.text


def test_slides_are_pages_with_titles_lists_tables_charts_and_notes() -> None:
    document = read(slides_file(), "plan.pptx")
    assert document.num_pages == 3
    assert document.title == "Plan"
    assert [(block.page, block.kind, block.text) for block in document.blocks] == [
        (1, "heading", "目标"), (1, "list", "- Grow\n- Save costs"), (1, "note", "Say this slowly."),
        (2, "heading", "Budget"), (2, "table", "| Item | Cost |\n| --- | --- |\n| Rent | 900 |"),
        (3, "table", "| | Sales |\n| --- | --- |\n| Q1 | 10.5 |\n| Q2 | 20 |".replace("| |", "|  |")),
    ]  # fmt: skip


def test_a_slide_that_is_a_picture_is_told() -> None:
    presentation = pptx.Presentation()
    slide = presentation.slides.add_slide(presentation.slide_layouts[6])
    slide.shapes.add_picture(io.BytesIO(encoded(picture(), "PNG")), 0, 0, Inches(1))
    presentation.slides.add_slide(presentation.slide_layouts[0]).shapes.title.text = "Text"
    document = read(saved(presentation), "a.pptx")
    assert document.warnings == ("slide 1 is a picture without text",)


def test_sheets_are_pages_with_tables() -> None:
    rows: list[list[object]] = [
        ["Name", "Amount", "Day", "Paid"],
        ["张三", 3, datetime.date(2024, 5, 1), True],
        ["Total", 2.5, datetime.datetime(2024, 5, 1, 12, 30), None],
    ]
    document = read(workbook_file({"Data": rows, "Other": [["x"], ["y|z"]]}), "a.xlsx")
    assert document.num_pages == 2
    assert find(document, "张三").page == 1
    assert texts(document, "table") == [
        "| Name | Amount | Day | Paid |\n| --- | --- | --- | --- |\n| 张三 | 3 | 2024-05-01 | TRUE |\n"
        "| Total | 2.5 | 2024-05-01 12:30:00 |  |",
        "| x |\n| --- |\n| y\\|z |",
    ]
    assert headings(document) == [(1, "Data"), (1, "Other")]
    assert document.place(document.text.index("y\\|z")).page == 2


def test_hidden_sheets_are_left_out_and_named() -> None:
    document = read(workbook_file({"Shown": [["a", "b"]], "Secret": [["c"]]}, hidden=["Secret"]), "a.xlsx")
    assert texts(document, "table") == ["| a | b |\n| --- | --- |"]
    assert document.warnings == ("sheet 'Secret' is hidden and was left out",)


def test_long_sheets_repeat_their_header_and_are_bounded() -> None:
    rows: list[list[object]] = [["n", "square"]]
    rows += [[n, n * n] for n in range(25_000)]
    document = read(workbook_file({"Long": rows}), "a.xlsx")
    tables = texts(document, "table")
    assert all(table.startswith("| n | square |\n| --- | --- |\n") for table in tables)
    assert "| 19998 | 399920004 |" in tables[-1]
    assert document.warnings == ("sheet 'Long': only the first 20,000 rows were read",)


def test_open_document_sheets() -> None:
    document = read(ods_file([["Stadt", "Zahl"], ["Köln", "1"]]), "a.ods")
    assert document.media_type == "application/vnd.oasis.opendocument.spreadsheet"
    assert texts(document, "table") == ["| Stadt | Zahl |\n| --- | --- |\n| Köln | 1 |"]


def test_old_workbooks() -> None:
    data = (Path(__file__).parents[1] / "golden" / "documents" / "table.xls").read_bytes()
    document = read(data, "table.xls")
    assert document.media_type == "application/vnd.ms-excel"
    assert headings(document) == [(1, "数据")]
    assert texts(document, "table") == ["| Name | Amount |\n| --- | --- |\n| 张三 | 3 |\n| 李四 | 2.5 |"]


@pytest.mark.parametrize("name", ["report.pdf", "report.txt", "report"])
def test_the_content_decides_what_a_file_is(name: str) -> None:
    document = read(word_file(), name)
    assert document.media_type.endswith("wordprocessingml.document")
    assert bool(document.warnings) == ("." in name)


def test_links_to_other_files_are_never_followed() -> None:
    """The sandbox has no network; that nothing is even tried is what this shows, as it would take long or be said."""
    document = docx.Document()
    document.part.relate_to("http://127.0.0.1:9/template.dotm", "http://x/attachedTemplate", is_external=True)
    document.part.relate_to("file:///etc/passwd", "http://x/footnotes", is_external=True)
    document.add_paragraph("Body.")
    read_document = read(saved(document), "a.docx")
    assert texts(read_document) == ["Body."]
    assert read_document.warnings == ()
