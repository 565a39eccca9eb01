"""Pictures become the pixels that Pillow makes of them in this process, and no file harms more than its own request."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from glm4.errors import BusyError, InvalidRequestError
from glm4.multimodal import image as module
from glm4.multimodal.image import MAX_PIXELS, ImageDecoder
from glm4.system.helper import Limits
from picture_files import (
    by_pillow,
    encoded,
    gif_of_many_frames,
    pattern,
    picture,
    png,
    png16,
    png_chunk,
    qoi,
    slow_file,
    tiff,
)

SIZE = 28
WHERE = "messages[0].content[1]"
FORMATS: dict[str, dict[str, Any]] = {
    "PNG": {}, "JPEG": {}, "GIF": {}, "WEBP": {"lossless": True}, "BMP": {}, "DIB": {}, "JPEG2000": {}, "PPM": {},
    "TIFF": {"compression": "tiff_lzw"}, "ICO": {}, "ICNS": {}, "QOI": {}, "TGA": {}, "MPO": {},
    "AVIF": {},
}  # fmt: skip
if "avif" not in features.get_supported():  # since Pillow 11.3
    del FORMATS["AVIF"]


def file_of(name: str, height: int = 37, width: int = 53) -> bytes:
    image = picture(height=height, width=width)
    if name == "QOI":
        return qoi(np.asarray(image))
    return encoded(image, name, **FORMATS[name], **({"sizes": [image.size]} if name == "ICO" else {}))


@pytest.fixture(scope="module")
def decoder() -> Iterator[ImageDecoder]:
    made = ImageDecoder(SIZE)
    yield made
    made.close()


def refusal(decoder: ImageDecoder, data: bytes) -> str:
    """The error of a bad file; a good one is decoded after it."""
    with pytest.raises(InvalidRequestError) as caught:
        decoder.decode(data, WHERE)
    assert caught.value.param == WHERE
    assert str(caught.value).startswith(f"{WHERE}: the image ")
    good = encoded(picture(seed=zlib.crc32(data)), "PNG")
    np.testing.assert_array_equal(decoder.decode(good), by_pillow(good, SIZE))
    return str(caught.value)


@pytest.mark.parametrize(("height", "width"), [(37, 53), (200, 9), (SIZE, SIZE), (5, 7), (300, 400)])
def test_pixels_are_those_of_the_original_preprocessing(decoder: ImageDecoder, height: int, width: int) -> None:
    for data in (
        encoded(picture(height=height, width=width), "PNG"),
        encoded(picture(height=height, width=width), "JPEG"),
    ):
        pixels = decoder.decode(data)
        assert pixels.shape == (SIZE, SIZE, 3)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, by_pillow(data, SIZE))
    with pytest.raises(ValueError, match="read-only"):
        pixels[0, 0, 0] = 1


@pytest.mark.parametrize("name", FORMATS)
def test_formats(decoder: ImageDecoder, name: str) -> None:
    data = file_of(name)
    np.testing.assert_array_equal(decoder.decode(data), by_pillow(data, SIZE))


@pytest.mark.parametrize("name", FORMATS)
def test_an_incomplete_file_is_an_error(decoder: ImageDecoder, name: str) -> None:
    data = file_of(name, height=200, width=200)
    for length in (len(data) // 2, len(data) // 10, 30):
        text = refusal(decoder, data[:length])
        assert "damaged" in text or "not supported" in text
        assert "send PNG" in text or "save it again as PNG" in text


@pytest.mark.parametrize("name", ["EPS", "PCX", "SGI", "XBM", "DDS", "PDF", "SPIDER", "MSP", "BLP"])
def test_formats_that_are_left_out(decoder: ImageDecoder, name: str) -> None:
    mode = {"XBM": "1", "MSP": "1", "SPIDER": "F", "BLP": "P"}.get(name, "RGB")
    assert "send PNG, JPEG" in refusal(decoder, encoded(picture().convert(mode), name))


def test_plugins_that_are_left_out_are_not_even_loaded(decoder: ImageDecoder) -> None:
    decoder.decode(encoded(picture(), "PNG"))
    refusal(decoder, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    code = b"','.join(name for name in __import__('sys').modules if name.endswith('ImagePlugin')).encode()"
    loaded = decoder._helper.call("builtins:eval", code).decode().split(",")
    assert "PIL.PngImagePlugin" in loaded
    assert not {f"PIL.{name}ImagePlugin" for name in ("Eps", "Psd", "Fpx", "Wmf", "Fits", "Iptc", "Pdf")} & {*loaded}


def test_a_picture_of_one_pixel_is_a_picture(decoder: ImageDecoder) -> None:
    pixels = decoder.decode(encoded(Image.new("RGB", (1, 1), (10, 200, 30)), "PNG"))
    np.testing.assert_array_equal(pixels, np.broadcast_to(np.array([10, 200, 30], np.uint8), (SIZE, SIZE, 3)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_the_upright_one(decoder: ImageDecoder, orientation: int) -> None:
    """The pixels in the file are the upright ones, moved by the inverse of what the orientation asks for."""
    upright = picture()
    inverse = [None, None, "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE",
               "ROTATE_270"][orientation]  # fmt: skip
    stored = upright if inverse is None else upright.transpose(Image.Transpose[inverse])
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("PNG", "TIFF"):
        data = encoded(stored, name, exif=exif)
        np.testing.assert_array_equal(decoder.decode(data), by_pillow(upright, SIZE))
    broken = encoded(stored, "PNG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")
    np.testing.assert_array_equal(decoder.decode(broken), by_pillow(stored, SIZE))


def on_white(rgba: np.ndarray[Any, Any]) -> Image.Image:
    color, alpha = rgba[..., :3].astype(np.int64), rgba[..., 3:].astype(np.int64)
    return Image.fromarray(((color * alpha + 255 * (255 - alpha)) / 255 + 0.5).astype(np.uint8))


def test_transparency_shows_white(decoder: ImageDecoder) -> None:
    rgba = pattern(channels=4)
    rgba[:9, :, 3], rgba[9:18, :, 3] = 0, 255
    for data in (encoded(Image.fromarray(rgba), name, **FORMATS[name]) for name in ("PNG", "WEBP", "TIFF")):
        np.testing.assert_array_equal(decoder.decode(data), by_pillow(on_white(rgba), SIZE))
    gray = Image.fromarray(rgba).convert("LA")
    expected = by_pillow(on_white(np.asarray(gray)[..., [0, 0, 0, 1]]), SIZE)
    np.testing.assert_array_equal(decoder.decode(encoded(gray, "PNG")), expected)


def test_transparency_of_palettes_and_of_a_color(decoder: ImageDecoder) -> None:
    indices = Image.fromarray((pattern(channels=1)[..., 0] // 64).astype(np.uint8)).convert("P")
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)
    indices.putpalette(colors.tobytes())
    for alphas, options in (
        ((255, 0, 255, 255), {"transparency": 1}),
        ((0, 100, 200, 255), {"transparency": bytes((0, 100, 200, 255))}),
    ):
        rgba = np.concatenate((colors, np.array(alphas, np.uint8)[:, None]), 1)[np.asarray(indices)]
        expected = by_pillow(on_white(rgba), SIZE)
        for name in ("PNG", "GIF") if 255 in alphas[:1] else ("PNG",):
            np.testing.assert_array_equal(decoder.decode(encoded(indices, name, **options)), expected)
    one = Image.fromarray((pattern(channels=1)[..., 0] // 128 * 200).astype(np.uint8))
    expected = by_pillow(Image.fromarray(np.where(np.asarray(one) == 200, 255, 0).astype(np.uint8)), SIZE)
    np.testing.assert_array_equal(decoder.decode(encoded(one, "PNG", transparency=200)), expected)


def test_cmyk_of_either_polarity(decoder: ImageDecoder) -> None:
    """Adobe's files, and Pillow's, hold inverted values, which a marker tells."""
    for name in ("JPEG", "TIFF"):
        data = encoded(picture().convert("CMYK"), name)
        pixels = decoder.decode(data)
        np.testing.assert_array_equal(pixels, by_pillow(data, SIZE))
        assert np.abs(pixels.astype(int) - by_pillow(picture(), SIZE)).mean() < 6, name


def test_other_modes(decoder: ImageDecoder) -> None:
    gray = pattern(channels=1)[..., 0]
    for image in (Image.fromarray(gray), Image.fromarray(gray > 99), picture().convert("P", palette=Image.Palette.WEB)):
        data = encoded(image, "PNG")
        np.testing.assert_array_equal(decoder.decode(data), by_pillow(image, SIZE))
    data = encoded(Image.merge("YCbCr", picture(height=32, width=48).split()), "TIFF", compression="tiff_lzw")
    np.testing.assert_array_equal(decoder.decode(data), by_pillow(data, SIZE))


def test_gray_of_16_bits_is_scaled(decoder: ImageDecoder) -> None:
    ramp = np.linspace(0, 65535, 37 * 53).astype(np.uint16).reshape(37, 53)
    upper = (ramp >> 8).astype(np.uint8)
    expected = by_pillow(Image.fromarray(upper), SIZE)
    assert np.ptp(expected) > 240
    pgm = b"P5 53 37 65535\n" + ramp.astype(">u2").tobytes()
    samples = {256: (3, 53), 257: (3, 37), 258: (3, 16), 262: (3, 1), 277: (3, 1), 278: (3, 37)}
    files = (
        png16(ramp), png16(np.repeat(ramp[..., None], 3, 2)), pgm, tiff(samples, ramp.astype("<u2").tobytes()),
        tiff({**samples, 262: (3, 0)}, (65535 - ramp).astype("<u2").tobytes()), encoded(Image.fromarray(ramp), "TIFF"),
    )  # fmt: skip
    for data in files:
        np.testing.assert_array_equal(decoder.decode(data), expected)


def test_gray_of_12_bits_is_scaled(decoder: ImageDecoder) -> None:
    ramp = np.linspace(0, 4095, 36 * 54).astype(np.uint16).reshape(36, 54)
    first, second = ramp[:, ::2], ramp[:, 1::2]
    packed = np.stack((first >> 4, (first & 15) << 4 | second >> 8, second & 255), -1).astype(np.uint8)
    samples = {256: (3, 54), 257: (3, 36), 258: (3, 12), 262: (3, 1), 277: (3, 1), 278: (3, 36)}
    expected = by_pillow(Image.fromarray((ramp >> 4).astype(np.uint8)), SIZE)
    np.testing.assert_array_equal(decoder.decode(tiff(samples, packed.tobytes())), expected)


def test_a_transparent_gray_of_16_bits(decoder: ImageDecoder) -> None:
    ramp = np.repeat(np.arange(40, dtype=np.uint16)[:, None] * 1000, 30, 1)
    expected = by_pillow(Image.fromarray(np.where(ramp == 7000, 255, ramp >> 8).astype(np.uint8)), SIZE)
    data = png16(ramp, png_chunk(b"tRNS", struct.pack(">H", 7000)))
    np.testing.assert_array_equal(decoder.decode(data), expected)


@pytest.mark.parametrize(("lowest", "highest"), [(0.0, 1.0), (-3.0, 12.5), (0.0, 60000.0), (-70000, 70000), (5.0, 5.0)])
def test_wide_values_are_stretched(decoder: ImageDecoder, lowest: float, highest: float) -> None:
    ramp = np.linspace(lowest, highest, 37 * 53, dtype=np.float32).reshape(37, 53)
    if lowest == -70000:
        ramp = ramp.astype(np.int32).astype(np.float32)
        data = encoded(Image.fromarray(ramp.astype(np.int32)), "TIFF")
    else:
        data = encoded(Image.fromarray(ramp), "TIFF")
    share = (ramp - lowest) / max(highest - lowest, 1e-30)
    expected = by_pillow(Image.fromarray((share * 255 + 0.5).astype(np.uint8)), SIZE)
    assert np.abs(decoder.decode(data).astype(int) - expected).max() <= 1  # rounding of the scale to float32
    broken = ramp.copy()
    broken[0, 0] = np.nan
    assert "not finite" in refusal(decoder, encoded(Image.fromarray(broken), "TIFF"))


def test_of_many_frames_only_the_first_is_decoded(decoder: ImageDecoder) -> None:
    first = by_pillow(Image.fromarray(pattern(channels=1)[..., 0]), SIZE)
    for broken in (False, True):
        np.testing.assert_array_equal(decoder.decode(gif_of_many_frames(10_000, broken=broken)), first)
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "lime", "blue")]
    for name in ("PNG", "WEBP", "TIFF", "MPO", *(["AVIF"] if "AVIF" in FORMATS else [])):
        data = encoded(frames[0], name, save_all=True, append_images=frames[1:])
        assert np.abs(decoder.decode(data).astype(int) - (255, 0, 0)).max() < 9, name


HUGE = {
    "PNG": png(50_000, 50_000, 8, 2, bytes(100)),
    "GIF": b"GIF89a" + struct.pack("<HHBBB", 50_000, 50_000, 0x80, 0, 0) + bytes(6)
    + b"\x2c" + struct.pack("<HHHHB", 0, 0, 50_000, 50_000, 0) + b"\x02\x02\x44\x01\0\x3b",
    "BMP": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "JPEG": b"\xff\xd8\xff\xc0\0\x11\x08" + struct.pack(">HH", 50_000, 50_000) + b"\3\1\x11\0\2\x11\0\3\x11\0\xff\xda"
    b"\0\x0c\3\1\0\2\0\3\0\0\x3f\0",
    "QOI": b"qoif" + struct.pack(">II", 50_000, 50_000) + b"\3\0" + b"\xfd" * 1000,
    "PPM": b"P6 50000 50000 255\n",
    "TIFF": tiff({256: (4, 50_000), 257: (4, 50_000), 258: (3, 8), 262: (3, 1), 277: (3, 1), 278: (4, 9)}, bytes(9)),
    "one row": png(2**31 - 1, 1, 8, 0, bytes(100)),
}  # fmt: skip


@pytest.mark.parametrize("name", HUGE)
def test_too_many_pixels_are_refused_before_they_are_decoded(decoder: ImageDecoder, name: str) -> None:
    assert "more than 100 million pixels; make it smaller" in refusal(decoder, HUGE[name])


def test_huge_webp_is_refused(decoder: ImageDecoder) -> None:
    """By its pixels; by older releases of Pillow, as its canvas does not fit into the memory."""
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + (16_382).to_bytes(3, "little") * 2
    data = encoded(picture(), "WEBP", lossless=True)[12:]
    data = b"RIFF" + struct.pack("<I", 4 + len(canvas) + len(data)) + b"WEBP" + canvas + data
    text = refusal(decoder, data)
    assert "more than 100 million pixels" in text or "could not create decoder" in text


def test_compressed_bombs_beside_the_pixels(decoder: ImageDecoder) -> None:
    bomb = zlib.compress(bytes(200_000_000), 9)
    rows = b"".join(b"\0" + row.tobytes() for row in pattern())
    for chunk in (
        png_chunk(b"zTXt", b"Comment\0\0" + bomb),
        png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + bomb),
        png_chunk(b"iCCP", b"profile\0\0" + bomb),
    ):
        assert "damaged" in refusal(decoder, png(53, 37, 8, 2, rows, chunk))
    many = png_chunk(b"tEXt", b"Comment\0" + bytes(1000)) * 1000
    np.testing.assert_array_equal(decoder.decode(png(53, 37, 8, 2, rows, many)), by_pillow(picture(), SIZE))


NO_PICTURES = {
    "SVG": b'\xef\xbb\xbf<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"><rect/></svg>',
    "a web page (HTML)": b"  <!DOCTYPE html><html><body>404 Not Found</body></html>",
    "text": b"not a picture, but a text named .png\n" * 20,
    "a PDF document": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj",
    "a ZIP archive or an Office document": b"PK\x03\x04\x14\0\x06\0\x08\0\0\0!\0",
    "HEIC": b"\0\0\0\x24ftypheic\0\0\0\0mif1heic",
    "a video": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41",
    "JPEG XL": b"\xff\x0a" + bytes(30),
    "Photoshop's PSD": b"8BPS\0\1" + bytes(40),
}


@pytest.mark.parametrize("name", NO_PICTURES)
def test_what_is_not_a_picture_is_named(decoder: ImageDecoder, name: str) -> None:
    text = refusal(decoder, NO_PICTURES[name])
    assert f"looks like {name}" in text
    assert "send PNG, JPEG, WebP" in text


def test_other_data(decoder: ImageDecoder) -> None:
    assert "is empty" in refusal(decoder, b"")
    rng = np.random.default_rng(3)
    for length in (1, 2, 17, 100, 100_000):
        for _ in range(5):
            assert "PNG" in refusal(decoder, rng.bytes(length))
    chinese = "这是一个文本文件，不是图片。\n".encode()
    assert "not an image" in refusal(decoder, chinese * 9)


@pytest.mark.thorough
def test_damaged_files_end_in_pixels_or_an_error(decoder: ImageDecoder) -> None:
    rng = np.random.default_rng(5)
    for name in FORMATS:
        data = bytearray(file_of(name))
        for _ in range(15):
            broken = data.copy()
            for place in rng.integers(0, len(data), 8):
                broken[place] = rng.integers(256)
            try:
                assert decoder.decode(bytes(broken)).shape == (SIZE, SIZE, 3)
            except InvalidRequestError as error:
                assert "PNG" in str(error) or "smaller" in str(error)  # noqa: PT017


def test_too_much_time_and_too_much_memory() -> None:
    slow = ImageDecoder(SIZE, Limits(cpu_seconds=1, memory_bytes=256 << 20))
    assert "takes more than 1 seconds; send a smaller picture" in refusal(slow, slow_file())
    slow.close()
    small = ImageDecoder(SIZE, Limits(memory_bytes=96 << 20))
    large = encoded(Image.new("RGB", (8000, 8000)), "PNG")
    assert "takes more than 96 MB of memory; send a smaller picture" in refusal(small, large)
    small.close()


@pytest.mark.parametrize(("sent", "text"), [(signal.SIGKILL, "of memory"), (signal.SIGSEGV, "decoder crashed")])
def test_a_decoder_that_dies_takes_one_picture_with_it(sent: signal.Signals, text: str) -> None:
    decoder = ImageDecoder(SIZE)
    decoder.decode(encoded(picture(), "PNG"))
    process = decoder._helper._process
    assert process is not None
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(decoder.decode, slow_file())
        _until(lambda: decoder._num_waiting == 1)
        time.sleep(0.3)  # it is at it, for seconds
        os.kill(process.pid, sent)
        error = result.exception(60)
    assert isinstance(error, InvalidRequestError)
    assert text in str(error)
    data = encoded(picture(seed=1), "PNG")
    np.testing.assert_array_equal(decoder.decode(data), by_pillow(data, SIZE))
    decoder.close()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_many_threads() -> None:
    decoder = ImageDecoder(SIZE)
    files = [encoded(picture(seed=seed), "PNG") for seed in range(6)]
    start = threading.Barrier(4)

    def run(shift: int) -> None:
        start.wait(60)
        for index in range(12):
            data = files[(index * (1 + shift % 2) + shift) % len(files)]
            np.testing.assert_array_equal(decoder.decode(data), by_pillow(data, SIZE))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    decoder.close()


def test_a_picture_is_decoded_once_until_others_displace_it() -> None:
    decoder = ImageDecoder(SIZE)
    files = [encoded(picture(seed=seed), "PNG") for seed in range(9)]
    first = decoder.decode(files[0])
    refused = refusal(decoder, b"no picture")
    decoder.close()
    assert decoder.decode(files[0]) is first
    with pytest.raises(InvalidRequestError) as caught:
        decoder.decode(b"no picture", "elsewhere")
    assert str(caught.value) == refused.replace(WHERE, "elsewhere")
    assert decoder._helper._process is None, "nothing was asked again"
    for data in files:  # also after `close`
        np.testing.assert_array_equal(decoder.decode(data), by_pillow(data, SIZE))
    assert decoder.decode(files[0]) is not first
    decoder.close()
    decoder.close()


def test_whoever_would_wait_too_long_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = ImageDecoder(SIZE)
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(decoder.decode, slow_file(2_000_000))
        _until(lambda: decoder._num_waiting == 1)
        time.sleep(0.1)
        with pytest.raises(BusyError, match="other pictures have taken"):
            decoder.decode(encoded(picture(), "PNG"))
        monkeypatch.setattr(module, "_MOST_WAITING", 1)
        with pytest.raises(BusyError, match="too many pictures"):
            decoder.decode(encoded(picture(), "PNG"))
        assert slow.result(120).shape == (SIZE, SIZE, 3)
    monkeypatch.setattr("glm4.system.helper.sys.executable", "/nonexistent/python")
    decoder.close()
    with pytest.raises(BusyError, match="cannot be started"):
        decoder.decode(encoded(picture(), "PNG"))
    assert decoder._num_waiting == 0


def test_pillow_is_never_loaded_in_this_process() -> None:
    code = """
import sys
import glm4
assert "numpy" not in sys.modules
import numpy
from glm4.multimodal.image import ImageDecoder, encode_picture
array = numpy.arange(48, dtype=numpy.uint8).reshape(4, 4, 3)
decoder = ImageDecoder(4)
assert (decoder.decode(encode_picture(array)) == array).all()
decoder.close()
assert not [name for name in sys.modules if name.split(".")[0] == "PIL"]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_limit_of_pixels_is_one_that_pillow_can_check() -> None:
    assert MAX_PIXELS % 2 == 0
