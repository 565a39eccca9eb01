"""A page of a PDF document as a picture, for a model that sees."""

from __future__ import annotations

import struct
import zlib

from glm4.documents.formats.parsed import RefusedError
from glm4.documents.formats.pdf import open_pdf

_MOST_SCALE = 10.0
_LEAST_SIDE = 1e-3


def draw_page(data: bytes, number: int, max_side: int) -> bytes:
    """PNG, RGB, white where the page is empty; its longer side has `max_side` pixels.

    Args:
        number: of the page, from 1.

    Raises:
        RefusedError: there is no such page, or it cannot be drawn.
    """
    from pypdfium2 import PdfiumError

    with open_pdf(data) as document:
        if not 1 <= number <= len(document):
            raise RefusedError(f"has no page {number}; it has {len(document)}")
        try:
            page = document[number - 1]
            side = max(page.get_width(), page.get_height())
            if not side > _LEAST_SIDE:
                raise RefusedError(f"has a page {number} without size")
            scale = min(_MOST_SCALE, max_side / side)
            bitmap = page.render(scale=scale, rev_byteorder=True, may_draw_forms=False, draw_annots=False)
        except PdfiumError:
            raise RefusedError(f"is damaged: page {number} cannot be drawn") from None
        rows, stride, width, height = bytes(bitmap.buffer), bitmap.stride, bitmap.width, bitmap.height
    lines = b"".join(b"\0" + rows[at * stride : at * stride + 3 * width] for at in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(lines, 3)), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
