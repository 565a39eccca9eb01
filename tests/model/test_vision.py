"""The vision tower: the same bits in whatever pieces, threads and precisions it is computed; its tensors in files."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny_vision
from glm4.kernels import get_kernels
from glm4.kernels.base import Kernels
from glm4.model.layers import VisionLayerWeights, VisionWeights
from glm4.model.precision import PRECISIONS
from glm4.model.shapes import SHAPES
from glm4.model.tensors import TENSORS
from glm4.model.vision import VisionTower, encoding_nbytes, tower_operations

Rows = NDArray[np.float32]


def tower(kernels: Kernels, dtype: str = "fp32") -> VisionTower:
    found = tiny_vision.model(kernels, dtype).vision
    assert found is not None
    return found


def encode(tower: VisionTower, max_rows: int, seed: int = 0) -> Rows:
    encoding = tower.start(tiny_vision.pixels(seed))
    before = -1.0
    while encoding.result is None:
        assert before < encoding.progress < 1
        before = encoding.progress
        encoding.advance(max_rows)
    assert encoding.progress == 1
    return encoding.result


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_pieces_do_not_matter(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = get_kernels("native")
    seeing = tower(kernels, dtype)
    whole = encode(seeing, 1 << 20)
    assert whole.shape == (11, 64)
    assert np.isfinite(whole).all()
    np.testing.assert_array_equal(encode(seeing, 1), whole)
    for piece in (1, 5, 7):
        monkeypatch.setattr("glm4.model.vision.PIECE_ROWS", piece)
        np.testing.assert_array_equal(encode(seeing, 3), whole)
    threads = kernels.num_threads()
    kernels.set_num_threads(3)
    try:
        np.testing.assert_array_equal(encode(seeing, 1), whole)
    finally:
        kernels.set_num_threads(threads)
    assert not np.array_equal(encode(seeing, 1, seed=1), whole)


@pytest.mark.parametrize(("dtype", "most"), [("fp32", 1e-5), ("bf16", 1e-3), ("int8", 1e-3), ("int4", 1e-3)])
def test_native_and_reference_agree(dtype: str, most: float) -> None:
    native, twin = (tower(get_kernels(name), dtype) for name in ("native", "reference"))
    if native.kv_dtype == "int8":
        # Compiled attention over it rounds to 16 bits, enough for some activation to be rounded to another 8 bits.
        assert distance(encode(native, 1 << 20), encode(twin, 1 << 20)) < 6e-2
        native.kv_dtype = twin.kv_dtype = "fp16"
    assert distance(encode(native, 1 << 20), encode(twin, 1 << 20)) < most


def distance(found: Rows, expected: Rows) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_what_all_keys_have_in_common_does_not_matter() -> None:
    """A large bias in a few channels of the keys would otherwise take the digits of all others."""
    kernels = get_kernels("native")
    seeing = tower(kernels, "int8")
    before = encode(seeing, 1 << 20)
    for layer in seeing.weights.layers:
        layer.qkv_bias[50:60] += 100  # of the keys, which are 48 to 95
    assert distance(encode(seeing, 1 << 20), before) < 6e-2  # 0.2 with it


def test_two_pictures_at_once_do_not_mix() -> None:
    seeing = tower(get_kernels())
    alone = [encode(seeing, 1 << 20, seed) for seed in (0, 1)]
    first, second = (seeing.start(tiny_vision.pixels(seed)) for seed in (0, 1))
    while first.result is None or second.result is None:
        first.advance(1)
        second.advance(2)
    np.testing.assert_array_equal(first.result, alone[0])
    np.testing.assert_array_equal(second.result, alone[1])


def test_only_pictures_of_its_size_are_taken() -> None:
    seeing = tower(get_kernels())
    shapes: list[tuple[tuple[int, ...], type]] = [((84, 84), np.uint8), ((84, 83, 3), np.uint8), ((84, 84, 3), float)]
    for shape, dtype in shapes:
        wrong: Any = np.zeros(shape, dtype)
        with pytest.raises(ValueError, match=r"a picture must be uint8 \[84, 84, 3\]"):
            seeing.start(wrong)


def test_the_first_and_the_last_row_are_those_of_the_tokens() -> None:
    seeing = tower(get_kernels())
    rows = encode(seeing, 1)
    np.testing.assert_array_equal(rows[0], seeing.weights.begin / np.float32(2))
    np.testing.assert_array_equal(rows[-1], seeing.weights.end / np.float32(2))


def test_the_tower_reads_tensors_of_the_table() -> None:
    names = {row.name for row in TENSORS.values() if row.part == "vision"}
    layers = {"vision.layers.{i}." + field.name for field in fields(VisionLayerWeights)}
    assert names == layers | {"vision." + field.name for field in fields(VisionWeights) if field.name != "layers"}


def test_the_published_tower_takes_bounded_memory() -> None:
    """No matrix of 6,401 x 6,401 numbers (164 MB, and 16 heads of it) is ever there."""
    assert sum(encoding_nbytes(SHAPES["glm-4v-9b"], "bf16")) < 350 << 20
    matrices, attention = tower_operations(SHAPES["glm-4v-9b"])
    assert (round(matrices / 1e12, 1), round(attention / 1e12, 1)) == (27.7, 9.3)
