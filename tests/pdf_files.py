"""Small PDF files, written here so that tests know every byte: text in places, CJK fonts, pictures, bookmarks."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

CJK_FONT = (
    "<< /Type /Font /Subtype /Type0 /BaseFont /STSong-Light /Encoding /UniGB-UCS2-H /DescendantFonts [<< /Type /Font "
    "/Subtype /CIDFontType0 /BaseFont /STSong-Light /CIDSystemInfo << /Registry (Adobe) /Ordering (GB1) "
    "/Supplement 4 >> /DW 1000 "
    "/FontDescriptor << /Type /FontDescriptor /FontName /STSong-Light /Flags 6 /FontBBox [-25 -254 1000 880] "
    "/ItalicAngle 0 /Ascent 880 /Descent -120 /CapHeight 880 /StemV 93 >> >>] >>"
)


@dataclass(frozen=True)
class Words:
    """A line of text; `font` is "latin", "cjk", "mapped" (with a ToUnicode map) or "mute" (without).

    `upward` text runs from the bottom of the page to its top; seen so turned, its place is (`x`, `y`).
    """

    x: float
    y: float
    text: str
    size: float = 11
    font: str = "latin"
    upward: bool = False

    def drawn(self) -> str:
        if self.font == "latin":
            shown = "(" + self.text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)") + ")"
        else:
            codes = (_glyph(char) if self.font in ("mapped", "mute") else ord(char) for char in self.text)
            shown = "<" + "".join(f"{code:04x}" for code in codes) + ">"
        place = f"0 1 -1 0 {612 - self.y} {self.x}" if self.upward else f"1 0 0 1 {self.x} {self.y}"
        return f"BT /{self.font} {self.size} Tf {place} Tm {shown} Tj ET"


@dataclass
class PdfFile:
    """A file of pages, each with words; a page of None is a scan: a picture and nothing else.

    Attributes:
        bookmarks: (title, page from 1).
        extra: entries of the catalog, as PDF writes them.
    """

    pages: Sequence[Sequence[Words] | None]
    title: str = ""
    bookmarks: Sequence[tuple[str, int]] = ()
    rotate: int = 0
    extra: str = ""
    objects: list[bytes] = field(default_factory=list)

    def __bytes__(self) -> bytes:
        self.objects = [b""] * 2
        fonts = self._fonts()
        image = self._add(*_stream(bytes(range(0, 192)), "/Type /XObject /Subtype /Image /Width 8 /Height 8 "
                                   "/ColorSpace /DeviceRGB /BitsPerComponent 8"))  # fmt: skip
        kids: list[int] = []
        for page in self.pages:
            drawn = "q 500 0 0 700 50 50 cm /scan Do Q" if page is None else "\n".join(words.drawn() for words in page)
            content = self._add(*_stream(drawn.encode("latin-1")))
            kids.append(
                self._add(
                    f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Rotate {self.rotate} "
                    f"/Contents {content} 0 R "
                    f"/Resources << /Font << {fonts} >> /XObject << /scan {image} 0 R >> >> >>".encode()
                )
            )
        self.objects[1] = f"<< /Type /Pages /Count {len(kids)} /Kids [{' '.join(f'{n} 0 R' for n in kids)}] >>".encode()
        outline = self._outline(kids)
        self.objects[0] = f"<< /Type /Catalog /Pages 2 0 R {outline} {self.extra} >>".encode()
        info = self._add(b"<< /Title <feff" + self.title.encode("utf-16-be").hex().encode() + b"> >>")
        return assemble(self.objects, info)

    def _add(self, *parts: bytes) -> int:
        self.objects.append(b"".join(parts))
        return len(self.objects)

    def _fonts(self) -> str:
        latin = self._add(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>")
        cjk = self._add(CJK_FONT.encode())
        mapping = (
            "/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /Own def 1 begincodespacerange "
        )
        mapping += "<0000> <ffff> endcodespacerange "
        used = sorted({char for page in self.pages for words in page or () for char in words.text})
        for start in range(0, len(used), 100):
            part = used[start : start + 100]
            mapping += f"{len(part)} beginbfchar " + " ".join(
                f"<{_glyph(char):04x}> <{ord(char):04x}>" for char in part
            )
            mapping += " endbfchar "
        mapping += "endcmap end end"
        map_id = self._add(*_stream(mapping.encode()))
        own = CJK_FONT.replace("/UniGB-UCS2-H", "/Identity-H").replace("/Ordering (GB1)", "/Ordering (Identity)")
        own = own.replace("STSong-Light", "Own")
        mapped = self._add((own[:-2] + f"/ToUnicode {map_id} 0 R >>").encode())
        mute = self._add(own.encode())
        return f"/latin {latin} 0 R /cjk {cjk} 0 R /mapped {mapped} 0 R /mute {mute} 0 R"

    def _outline(self, kids: Sequence[int]) -> str:
        if not self.bookmarks:
            return ""
        root = len(self.objects) + 1
        self._add(f"<< /Type /Outlines /First {root + 1} 0 R /Last {root + len(self.bookmarks)} 0 R >>".encode())
        for at, (title, page) in enumerate(self.bookmarks, 1):
            following = f"/Next {root + at + 1} 0 R" if at < len(self.bookmarks) else ""
            shown = title.encode("utf-16-be").hex()
            self._add(
                f"<< /Title <feff{shown}> /Parent {root} 0 R {following} /Dest [{kids[page - 1]} 0 R /Fit] >>".encode()
            )
        return f"/Outlines {root} 0 R"


def lines(
    texts: Iterable[str], *, x: float = 72, top: float = 700, size: float = 11, font: str = "latin"
) -> list[Words]:
    """Lines below each other with the usual leading."""
    return [Words(x, top - 1.25 * size * at, text, size, font) for at, text in enumerate(texts)]


def tower_pdf(num_pages: int) -> bytes:
    """Page n says that tower number n is 50 + n meters high."""
    pages = (f"Tower number {page} is {50 + page} meters high." for page in range(1, num_pages + 1))
    return bytes(PdfFile([lines([text, "It stands near the river."]) for text in pages]))


def locked_pdf() -> bytes:
    """A file that needs a password."""
    encryption = f"/Encrypt << /Filter /Standard /V 1 /R 2 /O <{'12' * 32}> /U <{'34' * 32}> /P -4 >> /ID [<00> <00>]"
    return tower_pdf(1).replace(b"trailer\n<< ", b"trailer\n<< " + encryption.encode() + b" ")


def assemble(objects: Sequence[bytes], info: int | None = None) -> bytes:
    """A file of these objects; the first is its catalog."""
    data = bytearray(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n")
    starts = []
    for number, body in enumerate(objects, 1):
        starts.append(len(data))
        data += f"{number} 0 obj\n".encode() + body + b"\nendobj\n"
    table = len(data)
    data += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    data += b"".join(f"{start:010} 00000 n \n".encode() for start in starts)
    shown = f"/Info {info} 0 R" if info is not None else ""
    data += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R {shown} >>\nstartxref\n{table}\n%%EOF\n".encode()
    return bytes(data)


def _glyph(char: str) -> int:
    """Its number in a font of our own, which says nothing about the character."""
    return ord(char) ^ 0x0707


def _stream(data: bytes, entries: str = "") -> tuple[bytes, bytes, bytes]:
    packed = zlib.compress(data)
    head = f"<< {entries} /Filter /FlateDecode /Length {len(packed)} >>\nstream\n".encode()
    return head, packed, b"\nendstream"
