"""A checkpoint of any size with random weights in bfloat16, written as fast as the disk takes it.

Weights are cut from one pool of random numbers, each tensor from another place, because drawing ten billion of them
takes minutes. Every id below the special tokens is a token of one to three bytes, so that the text side opens it, too.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from golden_models import Tensors, TinyModel, config_json, file_tensors, shapes
from tiny import GLM_SPECIALS, GLM_TEMPLATE

GLM_4_9B_CHAT = TinyModel(
    "glm-4-9b-chat", 1, "chatglm", num_attention_heads=32, num_key_value_heads=2, head_dim=128, rope_theta=5e6,
    max_position_embeddings=131072, vocab_size=151552, hidden_size=4096, intermediate_size=13696, num_hidden_layers=40,
)  # fmt: skip
TINY = TinyModel(
    "tiny", 1, "chatglm", head_dim=64, vocab_size=2048, hidden_size=256, intermediate_size=512, num_hidden_layers=3,
    max_position_embeddings=2048,
)  # fmt: skip
SHAPES = {model.name: model for model in (GLM_4_9B_CHAT, TINY)}

_POOL = (1 << 26) + 1  # numbers; odd, so that no two rows of a matrix are alike
_UNNAMED = 209  # rows above the special tokens, as published
_SHARD = 4 << 30  # bytes


def write_random_checkpoint(folder: Path, model: TinyModel) -> int:
    """Write config, tokenizer and weights; returns the bytes of the weights."""
    folder.mkdir(parents=True)
    first_special = model.vocab_size - _UNNAMED - len(GLM_SPECIALS)
    ends = [first_special + GLM_SPECIALS.index(name) for name in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    config = config_json(model) | {"eos_token_id": ends, "pad_token_id": ends[0], "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    _write_tokenizer(folder, first_special)
    return _write_weights(folder, model)


def _write_tokenizer(folder: Path, size: int) -> None:
    tokens = (bytes(token) for length in (1, 2, 3) for token in itertools.product(range(256), repeat=length))
    lines = (base64.b64encode(token) + b" %d\n" % at for at, token in enumerate(itertools.islice(tokens, size)))
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    added = {
        str(size + at): {"content": name, "special": True, "lstrip": False, "rstrip": False}
        for at, name in enumerate(GLM_SPECIALS)
    }
    settings = {"added_tokens_decoder": added, "eos_token": "<|endoftext|>", "chat_template": GLM_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _write_weights(folder: Path, model: TinyModel) -> int:
    rng = np.random.default_rng(model.seed)
    pool = rng.standard_normal(min(_POOL, 1 << 22 | 1) if model is TINY else _POOL, dtype=np.float32)
    sizes: Tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes(model).items()}
    names = {name: value.shape for name, value in file_tensors(model, sizes).items() if not name.endswith("inv_freq")}
    weight_map: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(_shards(names), 1):
        file = f"model-{number:05}.safetensors"
        weight_map |= dict.fromkeys(shard, file)
        total += _write_shard(folder / file, {name: names[name] for name in shard}, pool, rng)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def _shards(names: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    shard: list[str] = []
    size = 0
    for name, shape in names.items():
        size += 2 * int(np.prod(shape))
        shard.append(name)
        if size >= _SHARD:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _write_shard(
    file: Path, names: dict[str, tuple[int, ...]], pool: NDArray[np.float32], rng: np.random.Generator
) -> int:
    header, start = {}, 0
    for name, shape in names.items():
        end = start + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    scaled: dict[float, NDArray[np.uint16]] = {}
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name, shape in names.items():
            count = int(np.prod(shape))
            if name.endswith("norm.weight"):
                _bfloat16(np.ones(count, np.float32)).tofile(out)
                continue
            scale = _scale(name, shape)
            if scale not in scaled:
                scaled[scale] = _bfloat16(pool * np.float32(scale))
            _write_from_pool(out, scaled[scale], count, int(rng.integers(pool.size)))
    return start


def _scale(name: str, shape: tuple[int, ...]) -> float:
    """Standard deviation: outputs of about unit size; logits of size 4, so that few choices are close."""
    if "embedding" in name or len(shape) < 2:
        return 0.5
    return (4.0 if "output_layer" in name else 1.0) / float(np.sqrt(shape[1]))


def _write_from_pool(out: BinaryIO, pool: NDArray[np.uint16], count: int, start: int) -> None:
    while count:
        piece = pool[start : start + count]
        piece.tofile(out)
        count, start = count - piece.size, 0


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)
