"""A checkpoint in GLM-4's original layout whose weights are holes in its files: all zeros, and no room on the disk.

A hole is read through the file cache like any data, so loading takes the time and the memory of a real checkpoint.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from glm4.checkpoints.safetensors import INDEX_FILE
from glm4.checkpoints.tensor_names import Piece, map_tensors
from glm4.checkpoints.vision_config import vision_settings
from glm4.model.config import ModelConfig

SHARD_NBYTES = 5_000_000_000  # about what the published shards have
_ROPE_BASE = 1e4


def write_sparse(folder: Path, config: ModelConfig, shard_nbytes: int = SHARD_NBYTES) -> int:
    """Write config.json, shards in bfloat16 and their index; returns the bytes the files seem to have."""
    (folder / "config.json").write_text(json.dumps(_settings(config), indent=2))
    shards: list[list[Piece]] = [[]]
    size = 0
    for recipe in map_tensors(config, "chatglm", ()).recipes.values():
        for piece in recipe.pieces:
            if shards[-1] and size + _nbytes(piece) > shard_nbytes:
                shards.append([])
                size = 0
            shards[-1].append(piece)
            size += _nbytes(piece)
    weight_map: dict[str, str] = {}
    total = 0
    for number, pieces in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        total += _write_shard(folder / name, pieces)
        weight_map |= {piece.name: name for piece in pieces}
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    return total


def _write_shard(path: Path, pieces: list[Piece]) -> int:
    header, at = {}, 0
    for piece in pieces:
        end = at + _nbytes(piece)
        header[piece.name] = {"dtype": "BF16", "shape": list(piece.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    return at


def _nbytes(piece: Piece) -> int:
    return 2 * math.prod(piece.shape)


def _settings(config: ModelConfig) -> dict[str, Any]:
    """The keys of the published config.json that describe a model."""
    return {
        "architectures": ["ChatGLMForConditionalGeneration"],
        "model_type": "chatglm",
        "add_qkv_bias": config.attention_bias,
        "ffn_hidden_size": config.intermediate_size,
        "hidden_size": config.hidden_size,
        "kv_channels": config.head_dim,
        "layernorm_epsilon": config.rms_norm_eps,
        "multi_query_attention": True,
        "multi_query_group_num": config.num_key_value_heads,
        "num_attention_heads": config.num_attention_heads,
        "num_layers": config.num_hidden_layers,
        "original_rope": not config.rotary_half_split,
        "padded_vocab_size": config.vocab_size,
        "rope_ratio": config.rope_theta / _ROPE_BASE,
        "seq_length": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": "bfloat16",
        **({} if config.vision is None else vision_settings(config.vision)),
    }
