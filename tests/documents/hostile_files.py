"""Files that are damaged, encrypted, or made to harm who reads them, by name; each with what its refusal says."""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Callable

from office_files import book_file, rezipped_as, slides_file, word_file, workbook_file
from reading import rezipped, zipped

from pdf_files import PdfFile, assemble, lines

LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE z [<!ENTITY a "lol">'
    + "".join(f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in zip("abcdefgh", "bcdefghi", strict=True))
    + "]>"
)
OUTSIDE = '<?xml version="1.0"?><!DOCTYPE z [<!ENTITY i SYSTEM "file:///etc/passwd">]>'
CONTENTS = "<< /Length 44 >>\nstream\nBT /F 12 Tf 72 700 Td (Some readable text) Tj ET\nendstream"
PAGE = "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << /Font << /F 5 0 R >> >> >>"
FONT = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"


def pdf(*objects: str | bytes, pages: str = "<< /Type /Pages /Count 1 /Kids [3 0 R] >>", catalog: str = "") -> bytes:
    """A PDF file of one page, with objects from the third on replaced, and entries of its catalog."""
    own = [f"<< /Type /Catalog /Pages 2 0 R {catalog} >>", pages, *(objects or (PAGE, CONTENTS, FONT))]
    return assemble([item if isinstance(item, bytes) else item.encode() for item in own])


def stream(data: bytes, filters: str) -> bytes:
    return f"<< /Length {len(data)} /Filter {filters} >>\nstream\n".encode() + data + b"\nendstream"


def encrypted_pdf() -> bytes:
    """By a password that nobody knows."""
    encryption = f"<< /Filter /Standard /V 1 /R 2 /O <{'12' * 32}> /U <{'34' * 32}> /P -4 >>"
    data = pdf(PAGE, CONTENTS, FONT, encryption)
    return data.replace(b"/Root 1 0 R", f"/Root 1 0 R /Encrypt 6 0 R /ID [<{'56' * 16}><{'56' * 16}>]".encode())


def ole_file(*names: str) -> bytes:
    """The beginning of an old Office file with streams of these names, and nothing in them."""
    return (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(1016) + b"".join(n.encode("utf-16-le") + bytes(64) for n in names)
    )


def with_entities(data: bytes, member: str, root: bytes, prolog: str, *, encoding: str = "utf-8") -> bytes:
    """An Office file of which a member declares entities and shows one where its root begins."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        xml = archive.read(member)
    start = xml.index(root)
    end = xml.index(b">", start) + 1
    changed = prolog.encode() + xml[start:end] + b"&i;" + xml[end:]
    return rezipped(data, {member: changed.decode().encode(encoding)})


def overlapping() -> bytes:
    """Members that share the same bytes: the directory has the first one ten times."""
    data = zipped({"[Content_Types].xml": "<a/>", "word/document.xml": b"0" * 100_000})
    start = data.index(b"PK\1\2")
    end = data.index(b"PK\5\6")
    records = data[start:end]
    second = records.index(b"PK\1\2", 4)
    copies = [records[second:].replace(b"document", f"documen{n}".encode()) for n in range(10)]
    directory = records + b"".join(copies)
    tail = bytearray(data[end:])
    struct.pack_into("<HHII", tail, 8, 12, 12, len(directory), start)
    return data[:start] + directory + bytes(tail)


def lying_size() -> bytes:
    """A member that declares a hundred bytes and holds 20 MB."""
    data = zipped({"[Content_Types].xml": "<a/>", "word/document.xml": bytes(20 << 20)})
    return data.replace(struct.pack("<I", 20 << 20), struct.pack("<I", 100))


def large_in_sum() -> bytes:
    """Members that unpack to a hundred times their size, each, and to 420 MB together."""
    part = b"".join(hashlib.sha512(bytes([at % 256, at // 256])).digest() * 4 + bytes(40_000) for at in range(260))
    return zipped({f"word/media/{n}.bin": part for n in range(42)})


def encrypted_zip() -> bytes:
    data = bytearray(word_file())
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = data.find(mark)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(mark, at + 4)
    return bytes(data)


def duplicate_names() -> bytes:
    buffer = io.BytesIO(word_file())
    with zipfile.ZipFile(buffer, "a") as archive:
        info = zipfile.ZipInfo("word/document.xmX")
        archive.writestr(info, "<other/>")
    return buffer.getvalue().replace(b"word/document.xmX", b"word/document.xml")


def nested_tables(depth: int) -> bytes:
    start = '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body>'
    inner = "<w:tbl><w:tr><w:tc>" * depth + "<w:p/>" + "</w:tc></w:tr></w:tbl>" * depth
    return rezipped(word_file(), {"word/document.xml": f"{start}{inner}</w:body></w:document>"})


def flate_bomb() -> bytes:
    """A page whose content is 4 GB of zeros, packed twice."""
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2)]
    once = parts[0] + parts[1] * 255 + packer.flush()
    return pdf(PAGE, stream(zlib.compress(once, 9), "[/FlateDecode /FlateDecode]"), FONT)


TEXT_PDF = bytes(PdfFile([lines(["Some readable text is here."])] * 3))
DOCX = word_file()
SHEET = workbook_file({"A": [["one", "two"], ["three", "four"]]})
BOOK = book_file({"One": "<p>Text</p>"})
MAIN = b"<w:document"

# name: (file, what is said). The name's end is the name the file is sent under.
REFUSED: dict[str, tuple[bytes | Callable[[], bytes], str]] = {
    "cut.pdf": (TEXT_PDF[:60], "damaged or truncated PDF"),
    "only-a-header.pdf": (b"%PDF-1.7\n", "damaged or truncated PDF"),
    "garbage.pdf": (b"%PDF-1.7\n" + bytes(range(256)) * 50, "damaged or truncated PDF"),
    "encrypted.pdf": (encrypted_pdf(), "password"),
    "pages-in-a-circle.pdf": (pdf(pages="<< /Type /Pages /Count 1 /Kids [2 0 R] >>"), "damaged"),
    "flate-bomb.pdf": (flate_bomb, "memory"),
    "bomb.docx": (lambda: rezipped(DOCX, {"word/document.xml": b" " * (32 << 20)}), "zip bomb"),
    "large-in-sum.docx": (large_in_sum, "unpacks to"),
    "large.docx": (lambda: bytes((100 << 20) + 1), "at most 100 MB"),
    "overlapping.docx": (overlapping(), "share bytes"),
    "lying.docx": (lying_size, "damaged"),
    "many-members.docx": (zipped({f"word/{n}": b"" for n in range(20_001)}), "20,001 files"),
    "up.docx": (rezipped(DOCX, {"../../etc/cron.d/x": b"x"}), "leads out"),
    "absolute.docx": (rezipped(DOCX, {"/etc/cron.d/x": b"x"}), "leads out"),
    "backslash.docx": (rezipped(DOCX, {"word\\..\\..\\x": b"x"}), "leads out"),
    "drive.docx": (rezipped(DOCX, {"C:/x": b"x"}), "leads out"),
    "encrypted.docx": (encrypted_zip(), "password"),
    "encrypted-office.docx": (ole_file("EncryptionInfo", "EncryptedPackage"), "password"),
    "old.doc": (ole_file("WordDocument"), "save it as DOCX"),
    "old.ppt": (ole_file("PowerPoint Document"), "save it as PPTX"),
    "broken.xls": (ole_file("Workbook"), "damaged workbook"),
    "twice.docx": (duplicate_names(), "same name"),
    "cut.docx": (DOCX[: len(DOCX) // 2], "damaged or truncated"),
    "flipped.docx": (DOCX.replace(b"word/document.xml", b"word/documentxxml"), "damaged"),
    "no-document.docx": (zipped({"[Content_Types].xml": "<Types/>", "word/document.xml": "<x/>"}), "damaged"),
    "nested.docx": (nested_tables(5000), "damaged"),
    "laughs.docx": (with_entities(DOCX, "word/document.xml", MAIN, LAUGHS), "entities"),
    "outside.docx": (with_entities(DOCX, "word/document.xml", MAIN, OUTSIDE), "entities"),
    "utf-16.docx": (with_entities(DOCX, "word/document.xml", MAIN, OUTSIDE, encoding="utf-16"), "entities"),
    "late.docx": (with_entities(DOCX, "word/document.xml", MAIN, f"<!--{'x' * 70_000}-->" + OUTSIDE[21:]), "entities"),
    "core.docx": (with_entities(DOCX, "docProps/core.xml", b"<cp:coreProperties", LAUGHS), "entities"),
    "laughs.pptx": (with_entities(slides_file(), "ppt/slides/slide1.xml", b"<p:sld", LAUGHS), "entities"),
    "outside.pptx": (with_entities(slides_file(), "ppt/presentation.xml", b"<p:presentation", OUTSIDE), "entities"),
    "laughs.xlsx": (with_entities(SHEET, "xl/worksheets/sheet1.xml", b"<worksheet", LAUGHS), "entities"),
    "outside.xlsx": (with_entities(SHEET, "xl/workbook.xml", b"<workbook", OUTSIDE), "entities"),
    "laughs.epub": (with_entities(BOOK, "OEBPS/book.opf", b"<package", LAUGHS), "entities"),
    "outside.epub": (with_entities(BOOK, "META-INF/container.xml", b"<container", OUTSIDE), "entities"),
    "protected.epub": (
        rezipped(BOOK, {"META-INF/encryption.xml": '<e><EncryptionMethod Algorithm="http://x/aes128-cbc"/></e>'}),
        "digital rights",
    ),
    "empty.epub": (zipped({"META-INF/container.xml": "<container/>"}), "damaged"),
    "zip-of-zips.docx": (zipped({"inner.docx": DOCX, "a.zip": zipped({"b.zip": DOCX})}), "zip archive, not a document"),
    "program.docx": (b"MZ\x90\0" + bytes(500), "a program"),
    "notes.ipynb": (b'{"nbformat": 4, "cells": [1, {"outputs": 3}, null]}', "no text"),
    "giant-range.xlsx": (
        rezipped_as(SHEET, "xl/worksheets/sheet1.xml", b'r="B2"', b'r="XFD1048576"'), "memory",
    ),
    "controls.txt": (b"\x01\x02\x03\x04\x05\x06" * 1000, "neither text"),
}  # fmt: skip
