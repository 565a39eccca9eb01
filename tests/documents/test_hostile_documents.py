"""Damaged, encrypted and hostile files: refused with the reason, or read without harm; the process goes on."""

from __future__ import annotations

from collections.abc import Callable

import crashing_parsers
import pytest
from hostile_files import CONTENTS, FONT, PAGE, REFUSED, TEXT_PDF, pdf
from office_files import book_file, rezipped_as, word_file
from reading import SANDBOXED, read, read_or_refused, refusal, rezipped, texts, zipped

from glm4.documents import loading
from glm4.documents.limits import MAX_CHARACTERS, MAX_PAGES
from glm4.documents.loading import checked_document, load_document, render_page
from glm4.errors import InvalidRequestError, MissingExtraError
from glm4.system.helper import Limits
from pdf_files import PdfFile, lines

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_file_is_refused_with_the_reason(name: str) -> None:
    data, says = REFUSED[name]
    message = refusal(data() if callable(data) else data, name)
    assert says in message
    assert len(message) < 500
    assert "root:" not in message


JAVASCRIPT = "/OpenAction << /S /JavaScript /JS (while(true){app.alert(1)}) >>"
LAUNCH = "/OpenAction << /S /Launch /F (/bin/sh) /Win << /F (cmd.exe) >> >>"
FETCHED = "<< /Length 0 /F << /FS /URL /F (http://127.0.0.1:9/x) >> >>\nstream\n\nendstream"
SELF = "<< /Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /S 6 0 R >> >> /Length 5 >>"
SELF += "\nstream\n/S Do\nendstream"
DRAWS_SELF = PAGE.replace("/Resources <<", "/Resources << /XObject << /S 6 0 R >>")
DOUBLED = [f"<< /Type /Pages /Count {2 ** (20 - at)} /Kids [{7 + at} 0 R {7 + at} 0 R] >>" for at in range(20)]


@pytest.mark.parametrize(
    "data",
    [
        pdf(catalog=JAVASCRIPT), pdf(catalog=LAUNCH), pdf(DRAWS_SELF, CONTENTS, FONT, SELF),
        pdf(catalog="/Outlines 6 0 R").replace(b"%%EOF", b"%%EOF\n"), TEXT_PDF + zipped({"a.txt": b"x"}),
        pdf(PAGE, CONTENTS, FONT, "[" * 100_000), pdf(catalog="/AcroForm << /XFA (<x/>) /Fields [6 0 R] >>"),
        pdf().replace(b"startxref\n", b"startxref\n9"), pdf().replace(b"/Size", b"/Prev 15 /Size"),
    ],
    ids=["javascript", "launch", "draws-itself", "no-outline", "zip-behind", "deep", "forms", "no-table", "circle"],
)  # fmt: skip
def test_pdf_files_with_traps_are_read_without_them(data: bytes) -> None:
    document = read(data, "a.pdf")
    assert "ome readable text" in document.text
    assert "alert" not in document.text


def test_pdf_streams_of_other_places_are_not_fetched() -> None:
    assert "no text" in refusal(pdf(PAGE, FETCHED, FONT), "a.pdf")


def test_a_million_pages_are_bounded() -> None:
    leaf = PAGE.replace("/Parent 2 0 R", "/Parent 26 0 R").replace("4 0 R", "4 0 R")
    tree = pdf(PAGE, CONTENTS, FONT, *DOUBLED, leaf, pages="<< /Type /Pages /Count 1048576 /Kids [6 0 R] >>")
    outcome = read_or_refused(tree, "a.pdf")
    if isinstance(outcome, str):
        assert "damaged" in outcome or "seconds" in outcome
    else:
        assert outcome.num_pages is not None
        assert outcome.num_pages <= MAX_PAGES
        assert len(outcome.text) <= MAX_CHARACTERS


def test_the_first_pages_of_a_very_long_file_are_read() -> None:
    data = bytes(PdfFile([lines([f"This is page {n}"]) for n in range(MAX_PAGES + 10)]))
    document = read(data, "long.pdf")
    assert document.num_pages == MAX_PAGES
    assert any("5,000 of 5,010 pages" in warning for warning in document.warnings)


def test_a_page_of_monstrous_size_is_drawn_small() -> None:
    page = PAGE.replace("612 792", "100000000 3")
    assert len(render_page(pdf(page, CONTENTS, FONT), 1, max_side=64, sandboxed=SANDBOXED)) < 10_000


def test_a_file_that_is_two_things_is_what_it_begins_with() -> None:
    assert read(word_file() + TEXT_PDF, "a.pdf").media_type.endswith("wordprocessingml.document")
    assert read(TEXT_PDF + word_file(), "a.docx").media_type == "application/pdf"


@pytest.mark.parametrize("name", ["page.pdf", "page.docx", "page.png"])
def test_a_web_page_under_another_name_is_a_web_page(name: str) -> None:
    document = read(b"<!doctype html><html><body><p>Hello there</p></body></html>", name)
    assert document.media_type == "text/html"
    assert texts(document) == ["Hello there"]


def test_books_cannot_read_files_of_this_machine() -> None:
    manifest = '<item id="x" href="../../../../etc/passwd" media-type="application/xhtml+xml"/>'

    data = rezipped_as(
        book_file({"A": "<p>Text</p>"}), "OEBPS/book.opf", b"<manifest>", f"<manifest>{manifest}".encode()
    )
    data = rezipped_as(data, "OEBPS/book.opf", b"</spine>", b'<itemref idref="x"/></spine>')
    document = read(data, "a.epub")
    assert texts(document, "paragraph") == ["Text"]
    assert any("missing" in warning for warning in document.warnings)


DEEP = 100_000


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"<html><body>" + b"<div>" * DEEP + b"deep text" + b"</div>" * DEEP, "a.html"),
        (b"<html><body>" + b"<ul><li>" * DEEP + b"deep text", "a.html"),
        (b"<html><body>" + b"<b><i>" * DEEP + b"deep text", "a.html"),
        (b"<html><body>" + b"<table><tr><td>" * DEEP + b"deep text", "a.html"),
        (b'["deep text",' + b"[" * DEEP * 10, "a.json"), (b"# deep text " + b"> " * DEEP + b"[" * DEEP, "a.md"),
        (b'"' + b"deep text," * DEEP, "a.csv"), (b"deep text" + b"," * DEEP * 5, "a.csv"),
        (b"<!--" * DEEP + b"<html>deep text", "a.html"), (b"deep text\n" + b"=" * DEEP * 10, "a.md"),
    ],
    ids=["div", "ul", "b", "table", "json", "md", "quote", "columns", "comments", "underline"],
)  # fmt: skip
def test_deep_and_endless_nesting_ends(data: bytes, name: str) -> None:
    outcome = read_or_refused(data, name)
    if isinstance(outcome, str):
        assert "seconds" not in outcome
        assert "crashes" not in outcome
    else:
        assert "deep text" in outcome.text
        assert len(outcome.text) <= MAX_CHARACTERS


def test_a_book_that_is_too_long_is_read_in_part() -> None:
    data = ("这是一个句子。" * 10 + "\n\n").encode() * 70_000
    document = read(data, "long.txt")
    assert 3_000_000 < len(document.text) <= MAX_CHARACTERS
    assert any("only the first" in warning for warning in document.warnings)


def test_files_beyond_the_limit_are_refused_unread() -> None:
    assert "at most 100 MB" in refusal(bytes((100 << 20) + 1), "a.txt")


@pytest.mark.parametrize(
    ("function", "says"), [("segfault", "crashes"), ("hang", "seconds"), ("eat", "memory"), ("leave", "crashes")]
)
def test_what_a_broken_parser_does_ends_one_request(function: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a sandbox too; its own tests show the same of functions in it."""
    monkeypatch.setattr(loading, "_PARSE", f"{crashing_parsers.__name__}:{function}")
    monkeypatch.setattr(loading, "HelperLimits", lambda **_: Limits(cpu_seconds=1, memory_bytes=256 << 20))
    with pytest.raises(InvalidRequestError, match=says):
        load_document(b"text", "a.txt", sandboxed=False)


@pytest.mark.parametrize("answer", crashing_parsers.ANSWERS)
def test_what_a_parser_says_that_was_taken_over_is_checked(answer: str) -> None:
    with pytest.raises(InvalidRequestError, match="crashes"):
        checked_document(answer.encode(), b"file", "a.txt")


def test_refusals_of_a_parser_that_was_taken_over_are_harmless() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        checked_document(b'{"refused": "\\u001b]0;evil\\u0007' + b"x" * 5000 + b'"}', b"file", "a.txt")
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 700
    with pytest.raises(MissingExtraError, match="pip install"):
        checked_document(b'{"missing": "reading PDF needs x; pip install y"}', b"file", "a.txt")


@pytest.mark.parametrize("make", [word_file, lambda: TEXT_PDF], ids=["docx", "pdf"])
def test_damaged_bytes_anywhere_never_break_the_reader(make: Callable[[], bytes]) -> None:
    data = bytearray(make())
    for at in range(20, len(data), max(1, len(data) // 12)):
        damaged = bytes(data[:at]) + b"\xff\x00\x80" + bytes(data[at + 3 :])
        outcome = read_or_refused(damaged, "a.bin")
        assert not isinstance(outcome, str) or "crashes" not in outcome


def test_names_are_shown_without_folders_and_controls() -> None:
    document = read(rezipped(word_file(), {}), "../../etc/\x1b[31mreport\u202e.docx\n")
    assert document.name == "[31mreport.docx"
