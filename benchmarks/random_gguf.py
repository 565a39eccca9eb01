"""A GGUF file in GLM-4-9B's shape with random weights, so that llama.cpp can be timed without a download.

    python benchmarks/random_gguf.py Q4_0 FOLDER/Q4_0.gguf          # also Q4_K_M, Q8_0; 5.5, 6.3 and 10.0 GB

Tensor types are those that llama.cpp's own quantizer gives this model. Q4_K_M is a mixture: super-blocks of 256 do not
divide the 13,696 columns of `ffn_down`, so those matrices fall back to Q5_0 and, in the layers that get more bits, to
Q8_0. The bytes are random under fixed scales of a plausible size: speed depends on types and shapes only. Equal
matrices of different layers hold equal bytes, which no cache can profit from.
"""

from __future__ import annotations

import argparse
from functools import lru_cache
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from glm4.model.config import ModelConfig
from glm4.model.shapes import SHAPES

# Of each type: where its fp16 scales stand in a block, and a value that keeps weights near 1 / sqrt(4096).
_SCALES: dict[Type, dict[int, float]] = {
    Type.Q4_0: {0: 0.004},
    Type.Q5_0: {0: 0.002},
    Type.Q8_0: {0: 0.00027},
    Type.Q4_K: {0: 1.4e-4, 2: 1.05e-3},
    Type.Q5_K: {0: 7.0e-5, 2: 1.05e-3},
    Type.Q6_K: {208: 9.0e-5},
}
_Q6_K_SUB_SCALES = slice(192, 208)


@lru_cache(maxsize=8)
def matrix(rows: int, cols: int, kind: Type) -> NDArray[np.uint8]:
    """Random blocks, as uint8 [rows, bytes of a row]."""
    rng = np.random.default_rng(rows + cols)
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    if cols % block:
        raise ValueError(f"{cols} columns are no multiple of {kind.name}'s {block}")
    blocks = rng.integers(0, 256, (rows * cols // block, nbytes), dtype=np.uint8)
    for offset, scale in _SCALES[kind].items():
        blocks[:, offset : offset + 2] = np.array([scale], np.float16).view(np.uint8)
    if kind == Type.Q6_K:
        shape = blocks[:, _Q6_K_SUB_SCALES].shape
        signs = rng.choice(np.array([-1, 1], np.int8), shape)
        blocks[:, _Q6_K_SUB_SCALES] = (rng.integers(1, 21, shape, dtype=np.int8) * signs).view(np.uint8)
    return blocks.reshape(rows, -1)


def layer_types(mixture: str, layer: int, layers: int) -> dict[str, Type]:
    """Type of each of a layer's matrices."""
    names = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
    if mixture != "Q4_K_M":
        return dict.fromkeys(names, Type[mixture])
    # The quantizer's rule for layers that get more bits: the first and last eighth, and every third between.
    more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    return dict(zip(names, (Type.Q5_K, Type.Q4_K, Type.Q4_K, Type.Q8_0 if more else Type.Q5_0), strict=True))


def table_types(mixture: str) -> tuple[Type, Type]:
    """Types of the embedding and of the head."""
    return {"Q4_0": (Type.Q4_0, Type.Q6_K), "Q4_K_M": (Type.Q4_K, Type.Q6_K), "Q8_0": (Type.Q8_0, Type.Q8_0)}[mixture]


def add_metadata(writer: gguf.GGUFWriter, config: ModelConfig, layers: int) -> None:
    writer.add_name("glm-4-9b, random weights")
    writer.add_block_count(layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim // 2)
    writer.add_rope_freq_base(config.rope_theta)


def add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """A byte-level vocabulary of the right size; the benchmarks send random ids."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("chatglm-bpe")
    writer.add_token_list(characters + [f"token{index}" for index in range(256, size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * size)
    writer.add_token_merges(["t o", "to k"])
    writer.add_eos_token_id(size - 1)
    writer.add_bos_token_id(size - 2)
    writer.add_add_bos_token(False)


def add_tensors(writer: gguf.GGUFWriter, config: ModelConfig, mixture: str, layers: int) -> None:
    hidden, inner = config.hidden_size, config.intermediate_size
    qkv = config.query_size + 2 * config.key_value_size
    shapes = {
        "attn_qkv": (qkv, hidden),
        "attn_output": (hidden, config.query_size),
        "ffn_up": (2 * inner, hidden),
        "ffn_down": (hidden, inner),
    }
    ones = np.ones(hidden, np.float32)
    bias = (0.05 * np.random.default_rng(0).standard_normal(qkv)).astype(np.float32)

    def add(name: str, rows: int, cols: int, kind: Type) -> None:
        writer.add_tensor(f"{name}.weight", matrix(rows, cols, kind), raw_dtype=kind)

    embedding, head = table_types(mixture)
    add("token_embd", config.vocab_size, hidden, embedding)
    for layer in range(layers):
        prefix = f"blk.{layer}."
        for name, kind in layer_types(mixture, layer, layers).items():
            add(prefix + name, *shapes[name], kind)
        writer.add_tensor(f"{prefix}attn_qkv.bias", bias)
        writer.add_tensor(f"{prefix}attn_norm.weight", ones)
        writer.add_tensor(f"{prefix}ffn_norm.weight", ones)
    writer.add_tensor("output_norm.weight", ones)
    add("output", config.vocab_size, hidden, head)


def write(path: Path, mixture: str, layers: int | None = None, config: ModelConfig = SHAPES["glm-4-9b"]) -> None:
    """Write the file; `layers` None means all of the shape's."""
    count = layers or config.num_hidden_layers
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "chatglm")
    add_metadata(writer, config, count)
    add_vocabulary(writer, config.vocab_size)
    add_tensors(writer, config, mixture, count)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mixture", choices=["Q4_0", "Q4_K_M", "Q8_0"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--layers", type=int, help="fewer, to try something quickly")
    arguments = parser.parse_args()
    write(arguments.path, arguments.mixture, arguments.layers)
    print(f"{arguments.path}: {arguments.path.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
