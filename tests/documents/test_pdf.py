"""PDF: text by page, in reading order, in Chinese and English; scanned pages are listed and can be drawn."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from reading import SANDBOXED, find, headings, read, refusal, texts

from glm4.documents.formats.parsed import pipe_table
from glm4.documents.loading import load_document, render_page
from glm4.errors import InvalidRequestError
from pdf_files import PdfFile, Words, lines

GOLDEN = Path(__file__).parents[1] / "golden" / "documents"


class _Frame(Words):
    def drawn(self) -> str:
        return "72 72 400 600 re S"


CHINESE = ["国际合作的主要目标是提高效率，并且", "降低成本。这是第二行文字。"]
JOINED = "国际合作的主要目标是提高效率，并且降低成本。这是第二行文字。"


@pytest.mark.parametrize("font", ["cjk", "mapped"])
def test_chinese_text_is_read_through_standard_and_embedded_character_maps(font: str) -> None:
    document = read(bytes(PdfFile([lines(CHINESE, font=font)], title="合作报告")), "报告.pdf")
    assert texts(document) == [JOINED]
    assert document.title == "合作报告"
    assert document.name == "报告.pdf"
    assert document.media_type == "application/pdf"


def test_every_block_knows_its_page() -> None:
    pages = [lines([f"This is what page {number} says about topic {number}."]) for number in range(1, 8)]
    document = read(bytes(PdfFile(pages)), "a.pdf")
    assert document.num_pages == 7
    for number in range(1, 8):
        assert find(document, f"about topic {number}").page == number


def test_words_hyphenated_at_line_ends_are_joined_and_compounds_keep_their_hyphen() -> None:
    written = [
        "This inter-",
        "national and well-",
        "known re-",
        "sult is a well-known fact (2020-",
        "2024), as they say.",
    ]
    document = read(bytes(PdfFile([lines(written)])), "a.pdf")
    assert texts(document) == [
        "This international and well-known result is a well-known fact (2020-2024), as they say."
    ]


@pytest.mark.parametrize("rotate", [0, 90, 270])
def test_text_that_runs_upward_is_read_like_any_other(rotate: int) -> None:
    written = [replace(words, upward=True) for words in lines(["The first line and", "the second line."], top=500)]
    document = read(bytes(PdfFile([written], rotate=rotate)), "a.pdf")
    assert texts(document) == ["The first line and the second line."]


def test_columns_are_read_one_after_the_other_whatever_the_order_in_the_file() -> None:
    left = lines([f"left column line {n}" for n in range(8)], x=60, top=600)
    right = lines([f"right column line {n}" for n in range(8)], x=330, top=600)
    title = Words(60, 700, "A title that spans both of the columns of this page entirely and fully so", 14)
    mixed = [words for pair in zip(left, right[3:] + right[:3], strict=True) for words in pair]
    for written in ([title, *left, *right], [*mixed, title]):
        text = read(bytes(PdfFile([written])), "a.pdf").text
        expected = [title.text, *(words.text for words in (*left, *right))]
        positions = [text.index(part) for part in expected]
        assert positions == sorted(positions)


def test_columns_that_the_file_has_written_line_by_line_are_taken_apart() -> None:
    left = lines([f"the left column, line {n}, goes on" for n in range(8)], x=60, top=600)
    right = lines([f"the right column, line {n}, goes on" for n in range(8)], x=330, top=600)
    mixed = [words for pair in zip(left, right, strict=True) for words in pair]
    text = read(bytes(PdfFile([[Words(60, 700, "A title", 18), *mixed]])), "a.pdf").text
    positions = [text.index(words.text) for words in (*left, *right)]
    assert positions == sorted(positions)


def test_tables_are_found_by_their_columns() -> None:
    rows = [["City", "Population", "Area"], ["Beijing", "21,890,000", "16,411"], ["Total area", "", "99"]]
    cells = [
        Words(x, 600 - 15 * at, text)
        for at, row in enumerate(rows)
        for x, text in zip((72, 200, 320), row, strict=True)
        if text
    ]
    around = lines(["This text stands above the table."], top=640), lines(["This stands below."], top=500)
    document = read(bytes(PdfFile([[*around[0], *cells, *around[1]]])), "a.pdf")
    assert [(block.kind, block.text) for block in document.blocks] == [
        ("paragraph", "This text stands above the table."),
        ("table", pipe_table(rows)),
        ("paragraph", "This stands below."),
    ]


def test_numbers_and_bullets_before_items_make_no_table() -> None:
    items = [Words(x, 600 - 15 * at, text) for at in range(4) for x, text in ((72, f"{at + 1}."), (110, f"item {at}"))]
    assert not texts(read(bytes(PdfFile([items])), "a.pdf"), "table")


def test_headers_footers_and_page_numbers_are_dropped_and_chapter_titles_kept() -> None:
    pages = []
    for number in range(1, 11):
        page = [Words(72, 760, "Annual Report of the Company", 9), Words(300, 30, f"Page {number} of 10", 9)]
        page.append(Words(72, 700, f"Chapter {number}", 20))
        pages.append(page + lines([f"The body of chapter {number} is here,", "and it goes on."], top=650))
    document = read(bytes(PdfFile(pages)), "a.pdf")
    assert "Annual Report" not in document.text
    assert "of 10" not in document.text
    assert headings(document) == [(1, f"Chapter {number}") for number in range(1, 11)]
    assert document.place(document.text.index("body of chapter 4")).section == "Chapter 4"


def test_a_line_that_repeats_on_few_pages_or_in_their_middle_is_kept() -> None:
    pages = [lines(["Start", f"1 {n}", f"2 {n}", "Please note", f"3 {n}", f"4 {n}", "End"]) for n in range(3)]
    assert read(bytes(PdfFile(pages)), "a.pdf").text.count("Please note") == 3
    pages = [
        [Words(72, 700 - 40 * at, "Please note." if at == 3 else f"{at} {n} words") for at in range(7)]
        for n in range(6)
    ]
    assert read(bytes(PdfFile(pages)), "a.pdf").text.count("Please note.") == 6


def test_pages_that_begin_alike_keep_their_first_lines() -> None:
    pages = [lines([f"Section {n} is about the following:", f"{n} this", f"{n} that", f"{n} others"]) for n in range(9)]
    assert read(bytes(PdfFile(pages)), "a.pdf").text.count("is about the following") == 9


def test_bookmarks_make_headings_of_lines_in_the_size_of_the_body() -> None:
    pages = [
        lines(["Introduction"]) + lines(["Body of the first.", "More."], top=600),
        lines(["第二章 方法"], font="cjk"),
    ]
    pages[1] += lines(["Body of the second."], top=600)
    document = read(bytes(PdfFile(pages, bookmarks=[("Introduction", 1), ("第二章 方法", 2)])), "a.pdf")
    assert headings(document) == [(1, "Introduction"), (1, "第二章 方法")]
    assert find(document, "Body of the second").page == 2


def test_chapters_in_the_size_of_the_body_are_headings_but_not_in_a_table_of_contents() -> None:
    contents = lines(["第一章 总则……1", "第二章 职责……2"], font="cjk")
    body = lines(["第一章 总则"], font="cjk") + lines(["本章规定了基本原则。"], top=650, font="cjk")
    document = read(bytes(PdfFile([contents, body])), "a.pdf")
    assert headings(document) == [(1, "第一章 总则")]
    assert find(document, "本章规定").page == 2


def test_paragraphs_end_at_gaps_indents_and_items() -> None:
    first = lines(["The first paragraph has two lines, and this is the", "second one of them."], top=700)
    second = lines(["A second one follows after a gap."], top=650)
    items = lines(["1. item one", "2. item two"], top=600)
    document = read(bytes(PdfFile([first + second + items])), "a.pdf")
    assert texts(document) == [
        "The first paragraph has two lines, and this is the second one of them.",
        "A second one follows after a gap.", "1. item one", "2. item two",
    ]  # fmt: skip


def test_scanned_pages_are_listed_and_blank_ones_are_not() -> None:
    document = read(bytes(PdfFile([lines(["Some text on the first page."]), None, [], None])), "a.pdf")
    assert document.scanned == (2, 4)
    assert document.num_pages == 4
    assert any("2, 4" in warning for warning in document.warnings)


def test_a_page_with_a_few_words_and_lines_around_them_is_not_scanned() -> None:
    page = [Words(200, 400, "Part II", 20), _Frame(0, 0, "")]
    assert read(bytes(PdfFile([page, lines(["Some text on this page."])])), "a.pdf").scanned == ()


def test_a_wholly_scanned_file_is_a_document_without_blocks() -> None:
    document = read(bytes(PdfFile([None, None])), "scan.pdf")
    assert document.blocks == ()
    assert document.scanned == (1, 2)


def test_fonts_that_do_not_tell_their_characters_give_no_wrong_text() -> None:
    document = read(bytes(PdfFile([lines(CHINESE, font="mute"), lines(["Readable text is here."])])), "a.pdf")
    assert texts(document) == ["Readable text is here."]
    assert document.scanned == (1,)
    assert any("fonts" in warning for warning in document.warnings)


def test_a_page_can_be_drawn_for_a_model_that_sees() -> None:
    data = bytes(PdfFile([lines(["Text"]), None]))
    picture = render_page(data, 2, max_side=400, sandboxed=SANDBOXED)
    width, height = struct.unpack_from(">II", picture, 16)
    assert (width, height) == (310, 400)
    start = picture.index(b"IDAT")
    rows = zlib.decompress(picture[start + 4 : start + 4 + struct.unpack_from(">I", picture, start - 4)[0]])
    assert len(rows) == height * (1 + 3 * width)
    assert rows[1:4] == b"\xff\xff\xff"  # the margin is white
    middle = 200 * (1 + 3 * width) + 1 + 3 * 155
    assert rows[middle : middle + 3] != b"\xff\xff\xff"


def test_pages_that_are_not_there_or_files_of_another_kind_cannot_be_drawn() -> None:
    data = bytes(PdfFile([lines(["Text"])]))
    with pytest.raises(InvalidRequestError, match=r"has no page 2; it has 1"):
        render_page(data, 2, sandboxed=SANDBOXED)
    with pytest.raises(InvalidRequestError, match="not a PDF"):
        render_page(b"Hello there", 1, sandboxed=SANDBOXED)
    with pytest.raises(InvalidRequestError, match="4096"):
        render_page(data, 1, max_side=100_000, sandboxed=SANDBOXED)


def test_three_hundred_pages_are_read_in_bounded_time(record_property: Callable[[str, object], None]) -> None:
    text = [f"Line {n} of this page has some more words, so that it is as long as it is in a book." for n in range(45)]
    data = bytes(PdfFile([lines([f"Page {page} begins here.", *text], size=9) for page in range(1, 301)]))
    start = time.perf_counter()
    document = read(data, "book.pdf")
    seconds = time.perf_counter() - start
    record_property("seconds", round(seconds, 2))
    assert find(document, "Page 300 begins").page == 300
    assert len(document.text) > 1_000_000
    assert seconds < 60


def test_a_file_that_is_empty_inside_is_refused() -> None:
    assert "has no text" in refusal(bytes(PdfFile([[]])), "a.pdf")


@pytest.mark.parametrize("cipher", ["", "-aes"])
def test_encrypted_files_need_a_password_unless_everybody_may_read_them(cipher: str) -> None:
    document = read((GOLDEN / f"owner{cipher}.pdf").read_bytes(), "a.pdf")
    assert texts(document) == ["This page may be read but not printed."]
    data = (GOLDEN / f"secret{cipher}.pdf").read_bytes()
    assert "needs a password" in refusal(data, "a.pdf")
    with pytest.raises(InvalidRequestError, match="needs a password"):
        render_page(data, 1, sandboxed=SANDBOXED)


def test_a_local_file_can_be_read_without_a_sandbox() -> None:
    data = bytes(PdfFile([lines(["Some text."]), None]))
    assert load_document(data, "a.pdf", sandboxed=False) == read(data, "a.pdf")
    assert render_page(data, 2, sandboxed=False) == render_page(data, 2, sandboxed=SANDBOXED)
