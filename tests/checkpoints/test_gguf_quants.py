"""GGUF block formats against the `gguf` package's own dequantisation: every bit equal."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from glm4.checkpoints.gguf_quants import BLOCK_FORMATS, OTHER_TYPES, BlockFormat, dequantize, read_codes

FORMATS = pytest.mark.parametrize(
    ("number", "block_format"), BLOCK_FORMATS.items(), ids=[row.name for row in BLOCK_FORMATS.values()]
)


def decoded(packed: NDArray[np.uint8], block_format: BlockFormat) -> NDArray[np.float32]:
    out = np.full(len(packed) // block_format.nbytes * block_format.weights, 7.0, np.float32)
    dequantize(packed, block_format, out)
    return out


def oracle(packed: NDArray[np.uint8], number: int) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        values = gguf.quants.dequantize(packed, GGMLQuantizationType(number))
    return np.ascontiguousarray(values, np.float32).reshape(-1)


@FORMATS
def test_name_and_block_size_are_ggmls(number: int, block_format: BlockFormat) -> None:
    assert GGMLQuantizationType(number).name == block_format.name
    assert GGML_QUANT_SIZES[GGMLQuantizationType(number)] == (block_format.weights, block_format.nbytes)


@FORMATS
@pytest.mark.parametrize("blocks", [1, 3, 2049])
def test_random_bytes_decode_as_in_ggml(number: int, block_format: BlockFormat, blocks: int) -> None:
    """Random bytes meet every nibble, every high bit and, among the scales, infinities, NaN and subnormals.

    2049 blocks are no multiple of a chunk for any format.
    """
    rng = np.random.default_rng(number)
    packed = rng.integers(0, 256, blocks * block_format.nbytes, dtype=np.uint8)
    ours, theirs = decoded(packed, block_format), oracle(packed, number)
    finite = ~np.isnan(theirs)
    np.testing.assert_array_equal(np.isnan(ours), ~finite)
    np.testing.assert_array_equal(ours.view(np.uint32)[finite], theirs.view(np.uint32)[finite])


@FORMATS
def test_chunks_do_not_show(number: int, block_format: BlockFormat) -> None:
    """A tensor of several chunks equals its halves decoded apart."""
    blocks = 2 * (65536 // block_format.weights) + 2
    packed = np.random.default_rng(1).integers(0, 100, blocks * block_format.nbytes, dtype=np.uint8)
    middle = blocks // 2 * block_format.nbytes
    halves = np.concatenate([decoded(packed[:middle], block_format), decoded(packed[middle:], block_format)])
    np.testing.assert_array_equal(decoded(packed, block_format), halves)


@FORMATS
def test_codes_are_what_the_weights_are_made_of(number: int, block_format: BlockFormat) -> None:
    """step * code + base of random bytes is the decoded weight, bit for bit; every type with 4-bit codes has them."""
    assert (block_format.codes is not None) == (block_format.name in ("Q4_0", "Q4_1", "Q4_K"))
    if block_format.codes is None:
        return
    packed = np.random.default_rng(number).integers(0, 256, 6 * 64 * block_format.nbytes, dtype=np.uint8)
    codes = read_codes(packed.view(block_format.block), block_format.codes, rows=6)
    assert codes.codes.shape == (6, 64 * block_format.weights)
    assert codes.step.shape == codes.base.shape == (6, codes.codes.shape[1] // 32)
    assert codes.codes.max() == 15
    expected = oracle(packed, number).reshape(6, -1)
    finite = np.isfinite(expected).reshape(6, -1, 32).all(axis=2)  # 0 * infinity is no weight
    with np.errstate(all="ignore"):
        values = codes.values()
    assert 0.5 < finite.mean() < 1
    np.testing.assert_array_equal(values.reshape(6, -1, 32)[finite], expected.reshape(6, -1, 32)[finite])


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_weights_come_back_close(name: str) -> None:
    """Independent of the oracle's decoder: what the quantiser wrote is near what it was given."""
    kind = GGMLQuantizationType[name]
    weights = np.random.default_rng(2).standard_normal((4, 256)).astype(np.float32)
    back = decoded(gguf.quants.quantize(weights, kind).reshape(-1), BLOCK_FORMATS[kind.value]).reshape(weights.shape)
    step = (
        np.abs(weights).max() * {"Q8_0": 1 / 127, "Q4_0": 1 / 7, "Q4_1": 2 / 15, "Q5_0": 1 / 15, "Q5_1": 2 / 31}[name]
    )
    assert np.abs(back - weights).max() <= step


def test_names_of_refused_types_are_ggmls() -> None:
    known = {kind.value: kind.name for kind in GGMLQuantizationType}
    assert not OTHER_TYPES.keys() & BLOCK_FORMATS.keys()
    for number, name in OTHER_TYPES.items():
        assert known.get(number, name) == name
