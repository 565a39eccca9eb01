"""Pictures in memory come out as their files do."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glm4.errors import InvalidRequestError
from glm4.multimodal.image import ImageDecoder, encode_picture
from picture_files import encoded, pattern, picture, png16

SIZE = 28


@pytest.fixture(scope="module")
def decoder() -> Iterator[ImageDecoder]:
    made = ImageDecoder(SIZE)
    yield made
    made.close()


def test_arrays_are_encoded_without_loss() -> None:
    for array in (pattern(), pattern(channels=4), pattern(channels=1), pattern()[::-1, ::2], pattern(1, 1),
                  np.asfortranarray(pattern())):  # fmt: skip
        pixels = np.asarray(Image.open(io.BytesIO(encode_picture(array))))
        np.testing.assert_array_equal(pixels, array if array.shape[2] > 1 else array[..., 0])
    gray = pattern(channels=1)[..., 0]
    assert encode_picture(gray) == encode_picture(gray[..., None])


def files() -> dict[str, bytes]:
    turned = Image.Exif()
    turned[0x0112] = 6
    palette = picture().convert("P", palette=Image.Palette.ADAPTIVE)
    return {
        "RGB": encoded(picture(), "PNG"),
        "turned": encoded(picture(), "JPEG", exif=turned),
        "alpha": encoded(Image.fromarray(pattern(channels=4)), "PNG"),
        "gray and alpha": encoded(Image.fromarray(pattern(channels=4)).convert("LA"), "PNG"),
        "palette": encoded(palette, "GIF", transparency=3),
        "CMYK": encoded(picture().convert("CMYK"), "JPEG"),
        "16 bits": png16(np.linspace(0, 65535, 999).astype(np.uint16).reshape(37, 27)),
        "float": encoded(Image.fromarray(np.linspace(-1, 5, 999, dtype=np.float32).reshape(37, 27)), "TIFF"),
        "1 bit": encoded(picture().convert("1"), "PNG"),
        "YCbCr": encoded(Image.merge("YCbCr", picture(height=32, width=48).split()), "TIFF", compression="tiff_lzw"),
    }


@pytest.mark.parametrize("name", files())
def test_pil_images_are_what_their_files_are(decoder: ImageDecoder, name: str) -> None:
    data = files()[name]
    pixels = decoder.decode(encode_picture(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(pixels, decoder.decode(data))


def test_premultiplied_alpha(decoder: ImageDecoder) -> None:
    rgba = Image.fromarray(pattern(channels=4))
    for mode, premultiplied in (("RGBA", "RGBa"), ("LA", "La")):
        image = rgba.convert(mode)
        pixels = decoder.decode(encode_picture(image.convert(premultiplied)))
        assert np.abs(pixels.astype(int) - decoder.decode(encode_picture(image))).max() <= 2


def test_the_current_frame_of_a_pil_image_counts() -> None:
    frames = [picture(seed=seed) for seed in range(2)]
    image = Image.open(io.BytesIO(encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])))
    image.seek(1)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_picture(image)))), np.asarray(frames[1]))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.zeros((4, 4, 3), np.float32), r"uint8.*not float32.*\(array \* 255\)"),
        (np.zeros((4, 4, 3), np.uint16), "uint8.*not uint16"),
        (np.zeros((4, 4), bool), "uint8.*not bool"),
        (np.zeros((3, 9, 9), np.uint8), r"\[height, width, 3 or 4\], not \[3, 9, 9\]"),
        (np.zeros((4, 4, 2), np.uint8), "height, width"),
        (np.zeros(4, np.uint8), "height, width"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.broadcast_to(np.uint8(0), (20_000, 20_000)), "more than 100 million pixels"),
        (Image.new("RGB", (0, 5)), "no pixels"),
        (Image.new("1", (20_000, 20_000)), "more than 100 million pixels"),
        (7, "a path, bytes, a PIL image or a NumPy array, not int"),
        ([[1, 2]], "not list"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_encoded(value: Any, text: str) -> None:
    with pytest.raises(InvalidRequestError, match=text):
        encode_picture(value)


def test_a_pil_image_of_a_damaged_file() -> None:
    image = Image.open(io.BytesIO(encoded(picture(), "PNG")[:-3000]))
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        encode_picture(image)


def test_too_large_a_file() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    assert len(encode_picture(noise)) > 1 << 20
    with pytest.raises(InvalidRequestError, match="more than 1 MB as a PNG file; make it smaller"):
        encode_picture(noise, 1 << 20)
