"""The safetensors reader: values, rows, shards, and headers that lie."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from glm4.checkpoints.safetensors import SafetensorsSource
from glm4.errors import CheckpointError, TensorError, UnsupportedModelError

WEIGHTS = np.random.default_rng(3).standard_normal((6, 10)).astype(np.float32)


def raw_file(path: Path, header: Any, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: str, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_values_are_widened_exactly(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(tiny.safetensors_bytes({"odd": WEIGHTS[0, :3], "w": WEIGHTS}, dtype))
    source = SafetensorsSource(tmp_path)
    assert sorted(source.names()) == ["odd", "w"]
    assert source.info("w").shape == (6, 10)
    assert source.info("w").dtype == dtype
    assert source.info("w").nbytes == 60 * (4 if dtype == "F32" else 2)
    read = source.read("w")
    assert read.dtype == np.float32
    assert read.flags.c_contiguous
    assert read.flags.writeable
    np.testing.assert_array_equal(read, tiny.rounded(WEIGHTS, dtype))
    np.testing.assert_array_equal(source.read_rows("w", 2, 5), tiny.rounded(WEIGHTS, dtype)[2:5])
    assert source.read_rows("w", 4, 4).shape == (0, 10)


def test_an_unaligned_tensor_is_read(tmp_path: Path) -> None:
    """A header of odd length puts every number at an odd address."""
    header = {"w": entry("F32", [6, 10], 0, 240)}
    text = json.dumps(header).encode()
    path = raw_file(tmp_path / "model.safetensors", text + b" " * (1 + len(text) % 2), WEIGHTS.tobytes())
    np.testing.assert_array_equal(SafetensorsSource(path).read("w"), WEIGHTS)


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    header = {"scalar": entry("F32", [], 0, 4), "empty": entry("F32", [0, 3], 4, 4)}
    path = raw_file(tmp_path / "model.safetensors", header, struct.pack("<f", 2.5))
    source = SafetensorsSource(path)
    assert source.read("scalar") == np.float32(2.5)
    assert source.read("empty").shape == (0, 3)


def test_shards_are_one_source(tmp_path: Path) -> None:
    tensors = {f"t{i}": WEIGHTS + i for i in range(7)}
    tiny._write_weights(tmp_path, tensors, "F32", 3)
    source = SafetensorsSource(tmp_path)
    assert set(source.names()) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(source.read(name), value)


def test_a_closed_source_says_so(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(tiny.safetensors_bytes({"w": WEIGHTS}))
    source = SafetensorsSource(tmp_path)
    source.close()
    source.close()
    with pytest.raises(CheckpointError, match="was closed"):
        source.read("w")


def test_rows_and_names_are_checked(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(tiny.safetensors_bytes({"w": WEIGHTS}))
    source = SafetensorsSource(tmp_path)
    with pytest.raises(TensorError, match="no tensor 'x'"):
        source.read("x")
    for start, stop in ((-1, 2), (0, 7), (4, 3)):
        with pytest.raises(TensorError, match="has no rows"):
            source.read_rows("w", start, stop)


@pytest.mark.parametrize("dtype", ["I64", "F8_E4M3", "U8"])
def test_other_dtypes_are_listed_but_not_read(tmp_path: Path, dtype: str) -> None:
    width = 8 if dtype == "I64" else 1
    path = raw_file(tmp_path / "model.safetensors", {"w": entry(dtype, [2], 0, 2 * width)}, bytes(2 * width))
    source = SafetensorsSource(path)
    with pytest.raises(UnsupportedModelError, match=f"'w' is {dtype}"):
        source.read("w")


LIES: dict[str, tuple[Any, int, str]] = {
    "beyond the end": ({"w": entry("F32", [4], 0, 16)}, 12, "past the end"),
    "size and shape": ({"w": entry("F32", [4], 0, 12)}, 12, "12"),
    "overlap": ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, 12, "overlaps"),
    "same place": ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 0, 8)}, 8, "overlaps"),
    "gap": ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, 12, "gap"),
    "bytes without owner": ({"a": entry("F32", [1], 0, 4)}, 12, "no tensor owns"),
    "backwards": ({"w": entry("F32", [1], 4, 0)}, 4, "data_offsets"),
    "negative offset": ({"w": entry("F32", [1], -4, 0)}, 4, "data_offsets"),
    "negative shape": ({"w": entry("F32", [-1], 0, 4)}, 4, "shape"),
    "fractional shape": ({"w": entry("F32", [1.0], 0, 4)}, 4, "shape"),
    "boolean shape": ({"w": entry("F32", [True], 0, 4)}, 4, "shape"),
    "overflowing shape": ({"w": entry("F32", [1 << 40, 1 << 40, 1 << 40], 0, 4)}, 4, "owns 4"),
    "nine dimensions": ({"w": entry("F32", [1] * 9, 0, 4)}, 4, "shape"),
    "three offsets": ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}}, 4, "data_offsets"),
    "unknown dtype": ({"w": entry("F7", [1], 0, 4)}, 4, "unknown dtype 'F7'"),
    "no entry": ({"w": 3}, 4, "not an object"),
    "no object": ([1, 2], 4, "should be a JSON object"),
    "no JSON": (b"{'w': 1}", 4, "not valid JSON"),
    "no UTF-8": (b'{"\xff": 1}', 4, "not valid JSON"),
    "twice the same name": (b'{"w": 1, "w": 2}', 4, "'w' appears twice"),
    "deep": (b'{"w": ' + b"[" * 200000 + b"]" * 200000 + b"}", 4, "nested"),
    "fairly deep": (b'{"w": ' + b"[" * 100 + b"]" * 100 + b"}", 4, "nested"),
    "huge number": (b'{"w": ' + b"9" * 10000 + b"}", 4, "not valid JSON"),
    "not a number": (b'{"w": NaN}', 4, "NaN"),
}


@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie_are_refused(tmp_path: Path, lie: str) -> None:
    header, data, message = LIES[lie]
    path = raw_file(tmp_path / "model.safetensors", header, bytes(data))
    with pytest.raises(CheckpointError, match=message):
        SafetensorsSource(path)


@pytest.mark.parametrize("length", [9, 1 << 20, 100_000_001, (1 << 64) - 1])
def test_an_impossible_header_length_is_refused(tmp_path: Path, length: int) -> None:
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(TensorError, match="claims a header"):
        SafetensorsSource(tmp_path)


@pytest.mark.parametrize(("content", "message"), [(b"", "is empty"), (b"1234567", "too few")])
def test_a_stub_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        SafetensorsSource(tmp_path)


def test_a_missing_file_and_a_folder_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read"):
        SafetensorsSource(tmp_path)
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="not a regular file"):
        SafetensorsSource(tmp_path)


@pytest.mark.parametrize(
    "shard",
    [
        "../outside.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "", "a\\b.safetensors", "model.bin",
        ".hidden.safetensors", "model.safetensors\n", "mo\0del.safetensors", 5, None, ["model.safetensors"],
    ],
)  # fmt: skip
def test_an_index_cannot_leave_its_folder(tmp_path: Path, shard: Any) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.safetensors").write_bytes(tiny.safetensors_bytes({"w": WEIGHTS}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(CheckpointError, match="not a plain"):
        SafetensorsSource(folder)


def test_an_index_that_does_not_fit_its_shards(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    first.write_bytes(tiny.safetensors_bytes({"w": WEIGHTS}))
    index.write_text(json.dumps({"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"b\.safetensors is missing"):
        SafetensorsSource(tmp_path)
    second.write_bytes(tiny.safetensors_bytes({"x": WEIGHTS}))
    with pytest.raises(TensorError, match=r"'v' in b\.safetensors, which does not have it"):
        SafetensorsSource(tmp_path)
    second.write_bytes(tiny.safetensors_bytes({"v": WEIGHTS, "w": WEIGHTS}))
    with pytest.raises(TensorError, match="'w' is in both"):
        SafetensorsSource(tmp_path)
    indices: tuple[dict[str, Any], ...] = ({}, {"weight_map": {}}, {"weight_map": ["a"]})
    for broken in indices:
        index.write_text(json.dumps(broken))
        with pytest.raises(CheckpointError, match="no weight_map"):
            SafetensorsSource(tmp_path)
