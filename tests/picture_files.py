"""Pictures for tests, as files."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def pattern(height: int = 37, width: int = 53, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """A gradient with noise: no two rows, columns or channels are alike."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, height)[:, None, None] + np.linspace(0, 50, width)[None, :, None]
    noise = rng.integers(-30, 30, (height, width, channels))
    return (ramp * np.linspace(1, 0.6, channels) + noise).clip(0, 255).astype(np.uint8)


def picture(**changes: Any) -> Image.Image:
    return Image.fromarray(pattern(**changes))


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def qoi(pixels: NDArray[np.uint8]) -> bytes:
    """QOI of plain pixels, which not every Pillow writes."""
    rows = np.concatenate((np.full((*pixels.shape[:2], 1), 0xFE, np.uint8), pixels), 2)
    height, width = pixels.shape[:2]
    return b"qoif" + struct.pack(">II", width, height) + b"\x03\0" + rows.tobytes() + bytes(7) + b"\x01"


def by_pillow(data: bytes | Image.Image, size: int) -> NDArray[np.uint8]:
    """The original's preprocessing, in this process."""
    image = data if isinstance(data, Image.Image) else Image.open(io.BytesIO(data))
    return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, color: int, rows: bytes, *more: bytes) -> bytes:
    """A PNG file of rows that begin with their filters; `more`: chunks before them."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + body


def png16(values: NDArray[np.uint16], *more: bytes) -> bytes:
    """16 bits per channel: [H, W] gray or [H, W, 3]."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(width, height, 16, 0 if values.ndim == 2 else 2, rows, *more)


def tiff(tags: dict[int, tuple[int, int]], pixels: bytes) -> bytes:
    """One uncompressed strip; tags of type SHORT (3) or LONG (4) as {tag: (type, value)}."""
    start = 8 + 2 + 12 * (len(tags) + 2) + 4
    entries = {**tags, 273: (4, start), 279: (4, len(pixels))}
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, entries[tag][1]) for tag in sorted(entries)
                         for kind in (entries[tag][0],))  # fmt: skip
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + pixels


def gif_of_many_frames(count: int, *, broken: bool) -> bytes:
    """All but the first frame are broken, if so."""
    first = encoded(Image.fromarray(pattern(channels=1)[..., 0]), "GIF")
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + (b"\x0c\x01\xff\0" if broken else b"\x02\x02\x44\x01\0")
    return first[:-1] + b"\x21\xf9\x04\0\x01\0\0\0" + frame * (count - 1) + b"\x3b"


def slow_file(pixels: int = 8_000_000) -> bytes:
    """QOI, which Pillow decodes in Python, about a microsecond per pixel."""
    height = pixels // 1000
    return b"qoif" + struct.pack(">II", 1000, height) + b"\x03\0" + bytes(1000 * height) + bytes(7) + b"\x01"
