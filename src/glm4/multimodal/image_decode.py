"""Decoding of pictures with Pillow: what runs in the helper process of `ImageDecoder` (`image.py`).

Formats that are opened: those that cameras, browsers, scanners and paint programs write today, and whose decoder is
part of Pillow. Left out on purpose:

- EPS (starts Ghostscript), WMF, BUFR, GRIB, HDF5, MPEG (handed on to another program or library, or only recognized);
- FPX, MIC and IPTC (containers that open whatever they hold), PDF (Pillow only writes it);
- PSD, DDS, FITS, BLP, FLI, PCX, SGI, SUN, PCD, XBM, XPM and others of games, editors and the past: more native code
  within an attacker's reach, and of the least tested kind, for files that nobody sends as a picture.

A picture means its first frame, upright (EXIF orientation), in RGB, on white where it is transparent. Embedded color
profiles are ignored, as in the original model's preprocessing. Gray values of more than 8 bits: the upper 8 of 16;
floating-point numbers as 0..1; other integers and numbers are stretched from the smallest to the largest.
"""

from __future__ import annotations

import importlib
import io
import math
from contextlib import suppress
from types import ModuleType
from typing import Any

from PIL import Image, UnidentifiedImageError

_FORMATS = {
    "PNG": "Png", "JPEG": "Jpeg", "GIF": "Gif", "WEBP": "WebP", "AVIF": "Avif", "BMP": "Bmp", "DIB": "Bmp",
    "TIFF": "Tiff", "JPEG2000": "Jpeg2K", "PPM": "Ppm", "ICO": "Ico", "ICNS": "Icns", "QOI": "Qoi",
    "TGA": "Tga",  # last, as it has no signature
}  # fmt: skip
_WANTED = "send PNG, JPEG, WebP, GIF, AVIF, BMP or TIFF"
_SIGNATURES = (
    ("PNG", 0, b"\x89PNG"), ("JPEG", 0, b"\xff\xd8\xff"), ("GIF", 0, b"GIF8"), ("WebP", 8, b"WEBP"),
    ("AVIF", 8, b"avi"), ("BMP", 0, b"BM"), ("TIFF", 0, b"II*\0"), ("TIFF", 0, b"MM\0*"), ("QOI", 0, b"qoif"),
    ("JPEG 2000", 4, b"jP  "),
)  # fmt: skip
_OTHER_SIGNATURES = (
    ("a PDF document", 0, b"%PDF"), ("PostScript", 0, b"%!PS"), ("Photoshop's PSD", 0, b"8BPS"),
    ("JPEG XL", 0, b"\xff\x0a"), ("JPEG XL", 4, b"JXL "), ("HEIC", 8, b"hei"), ("HEIC", 8, b"mif1"),
    ("a video", 4, b"ftyp"), ("a video", 0, b"\x1a\x45\xdf\xa3"), ("a video", 8, b"AVI "), ("audio", 8, b"WAVE"),
    ("audio", 0, b"OggS"), ("audio", 0, b"ID3"), ("a ZIP archive or an Office document", 0, b"PK\x03\x04"),
    ("a gzip archive", 0, b"\x1f\x8b"),
)  # fmt: skip

_LARGE = 30_000_000  # pixels
_ORIENTATION, _BITS_PER_SAMPLE, _PHOTOMETRIC = 0x0112, 0x0102, 0x0106
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def _import_plugins() -> dict[str, ModuleType]:
    """Those of `_FORMATS` that this Pillow has; here, since imports do not belong into a call's limits."""
    found = {}
    for name, module in {"MPO": "Mpo", **_FORMATS}.items():
        with suppress(ImportError):  # AVIF came with Pillow 11.3
            found[name] = importlib.import_module(f"PIL.{module}ImagePlugin")
    return {name: module for name, module in found.items() if name in Image.OPEN}  # JPEG's plugin opens MPO


_PLUGINS = _import_plugins()


def decode(argument: bytes) -> bytes:
    """A file's pixels, resized as the original does it: after the conversion to RGB, bicubic with antialiasing, to a
    square whatever the aspect ratio.

    Args:
        argument: a line with the side of the square and the most pixels the file may have (even); then the file.

    Returns:
        "+" and the bytes of uint8 [size, size, 3]; or "-" and the reason in UTF-8.
    """
    line, _, data = argument.partition(b"\n")
    size, max_pixels = map(int, line.split())
    Image.MAX_IMAGE_PIXELS = max_pixels // 2  # Pillow warns above this, and fails above twice as many
    if "AVIF" in _PLUGINS:
        vars(_PLUGINS["AVIF"])["DEFAULT_MAX_THREADS"] = 1  # the processors are there for the model
    width = height = 0
    try:
        with Image.open(io.BytesIO(data), formats=list(_PLUGINS)) as opened:
            width, height = opened.size
            image = to_rgb(opened)
        return b"+" + image.resize((size, size), Image.Resampling.BICUBIC).tobytes()
    except UnidentifiedImageError:
        reason = _what_else(data)
    except Image.DecompressionBombError:
        reason = f"it has more than {max_pixels / 1e6:g} million pixels; make it smaller"
    except Exception as error:  # a decoder may raise anything
        if isinstance(error, MemoryError) or "memory" in str(error).lower():
            raise MemoryError from None
        text = f" ({str(error)[:120]})" if isinstance(error, OSError) else ""
        # JPEG 2000's says the same when memory runs out.
        large = f", or takes too much memory at {width} x {height} pixels" if width * height > _LARGE else ""
        reason = f"the file is damaged, incomplete or unusual{text}{large}; save it again as PNG or JPEG"
    return b"-" + reason.encode()


def to_rgb(image: Image.Image) -> Image.Image:
    """The current frame as the module's docstring says, in RGB and its own size. Raises what Pillow raises."""
    image.load()
    orientation = _orientation(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    if image.mode == "La":
        image = image.convert("LA")
    # Converting to the same mode would be a copy.
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a malformed note in a sound picture
        return 1


def _to_8_bits(image: Image.Image) -> Image.Image:
    if image.mode != "F":
        wide = image.convert("I")
        low, high = (int(value) for value in wide.getextrema())  # type: ignore[arg-type]
        if low >= 0 and high <= 0xFFFF:
            return _upper_8_bits(wide, image)
        image = wide.convert("F")
    lowest, highest = (float(value) for value in image.getextrema())  # type: ignore[arg-type]
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise OSError("its values are not finite numbers")
    if lowest >= 0 and highest <= 1:
        lowest, highest = 0.0, 1.0
    scale = 255 / max(highest - lowest, 1e-30)
    offset = 0.5 - lowest * scale  # half, as the conversion rounds down
    return image.point(lambda value: value * scale + offset).convert("L")


def _upper_8_bits(wide: Image.Image, image: Image.Image) -> Image.Image:
    tags: Any = getattr(image, "tag_v2", {})  # of TIFF, of which Pillow leaves these two to us
    shift = 4 if tags.get(_BITS_PER_SAMPLE) == (12,) else 8
    flip = 0xFF if tags.get(_PHOTOMETRIC) == 0 else 0
    gray = wide.point([min(value >> shift, 255) ^ flip for value in range(1 << 16)], "L")
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray.putalpha(wide.point([255 * (value != transparent) for value in range(1 << 16)], "L"))
    return gray


def _what_else(data: bytes) -> str:
    """What a file seems to be that no plugin opens."""
    for name, start, signature in _SIGNATURES:
        if data.startswith(signature, start):
            return (
                f"it looks like {name}, but damaged, or of a kind that this Pillow does not know; save it again as PNG"
            )
    for name, start, signature in _OTHER_SIGNATURES:
        if data.startswith(signature, start):
            return f"it looks like {name}, which is not supported; {_WANTED}"
    beginning = data[:4096].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    name = "text"
    if b"<svg" in beginning:
        name = "SVG"
    elif beginning.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        name = "a web page (HTML)"
    elif b"\0" in beginning or sum(byte > 126 for byte in beginning) > len(beginning) // 2:
        return f"it is not an image, or of a format that is not supported; {_WANTED}"
    return f"it looks like {name}, not like an image that is supported; {_WANTED}"
