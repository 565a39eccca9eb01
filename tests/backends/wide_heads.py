"""The trained tiny GLM-4V with heads that vLLM's attention on CPUs takes (64 instead of 16); it computes the same.

Hidden rows are repeated four times, so all norms stay what they are; what reads them has a quarter of the weight four
times. A rotated pair goes where the wider head has its frequency, and queries are doubled, since the wider head halves
scores. All factors are powers of two, hence exact.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import golden_models as gm

TIMES = 4
_QUARTER = np.float32(1 / TIMES)
_WRITERS = (  # of hidden rows: their own rows are repeated; all others read hidden rows in their columns
    "self_attention.dense.weight", "mlp.dense_4h_to_h.weight", "vision.conv.weight",
    "vision.linear_proj.dense_4h_to_h.weight",
)  # fmt: skip
_READERS = (
    "output_layer.weight", "self_attention.query_key_value.weight", "mlp.dense_h_to_4h.weight",
    "linear_proj.gate_proj.weight", "linear_proj.dense_h_to_4h.weight",
)  # fmt: skip
_TOWER = ("patch_embedding.", "transformer.layers.")


def write_with_wide_heads(source: Path, folder: Path) -> Path:
    """A copy of a ChatGLM checkpoint of adjacent rotary pairs, in float32."""
    folder.mkdir(parents=True)
    for file in source.glob("tokenizer*"):
        shutil.copy(file, folder)
    config = json.loads((source / "config.json").read_text())
    heads, groups, size = config["num_attention_heads"], config["multi_query_group_num"], config["kv_channels"]
    config |= {"hidden_size": TIMES * config["hidden_size"], "kv_channels": TIMES * size, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {
        name: _wide(name, value, heads, groups, size) for name, value in _read(source / "model.safetensors").items()
    }
    gm.write_safetensors(folder / "model.safetensors", tensors)
    return folder


def _wide(name: str, value: NDArray[np.float32], heads: int, groups: int, size: int) -> NDArray[np.float32]:
    vision = name.partition("transformer.vision.")[2]
    if vision.startswith(_TOWER):
        return value
    if "query_key_value" in name:
        value = _wide_rows(value, heads, groups, size)
    if name.endswith("self_attention.dense.weight"):
        value = np.ascontiguousarray(_spread(value.T, range(size), size).T)
    if name.endswith(_READERS):
        return np.tile(value, (1, TIMES)) * _QUARTER
    if name.endswith(_WRITERS) or vision == "conv.bias":
        return np.tile(value, (TIMES, *[1] * (value.ndim - 1)))
    if vision == "linear_proj.linear_proj.weight":
        return np.tile(value, (TIMES, TIMES)) * _QUARTER
    if "query_key_value" in name:
        return value
    return np.tile(value, TIMES)  # embeddings, norms, begin and end


def _wide_rows(value: NDArray[np.float32], heads: int, groups: int, size: int) -> NDArray[np.float32]:
    queries, keys, values = np.split(value, [heads * size, (heads + groups) * size])
    rotated = [2 * TIMES * pair + side for pair in range(size // 4) for side in (0, 1)]
    places = [*rotated, *(TIMES * size // 2 + index for index in range(size // 2))]
    spread = [_spread(2 * queries, places, size), _spread(keys, places, size), _spread(values, range(size), size)]
    return np.concatenate(spread)


def _spread(rows: NDArray[np.float32], places: range | list[int], size: int) -> NDArray[np.float32]:
    """Each head's rows at these places of a head that is `TIMES` as wide; the others are 0."""
    found = np.zeros((len(rows) // size, TIMES * size, *rows.shape[1:]), np.float32)
    found[:, list(places)] = rows.reshape(-1, size, *rows.shape[1:])
    return found.reshape(-1, *rows.shape[1:])


def _read(path: Path) -> gm.Tensors:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    found: gm.Tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        raw = data[start + first : start + last]
        if entry["dtype"] == "BF16":
            value = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            assert entry["dtype"] == "F32"
            value = np.frombuffer(raw, "<f4")
        found[name] = value.reshape(entry["shape"])
    return found
