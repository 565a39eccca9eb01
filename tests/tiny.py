"""Tiny random checkpoints on disk, for every test that needs a model: safetensors folders and GGUF files.

The tensors come from `golden_models`: a `TinyModel` row and its seed give the canonical tensors, in NumPy. This module
adds what a test of loading and of the text side needs: number formats, shards, a byte vocabulary with the special
tokens of the family, chat templates, and GGUF files written by the `gguf` package.

    folder = write_folder(tmp_path / "m", tiny_model("chatglm"), dtype="BF16", shards=3)
    file = write_gguf(tmp_path / "m.gguf", tiny_model(), "qwen2")
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from numpy.typing import NDArray

from golden_models import Tensors, TinyModel, config_json, draw, file_tensors, half_split_rows

# Ids 0..255 are single bytes; these follow in order; rows above stay unnamed. Those of GLM-4, in its order.
GLM_SPECIALS = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
)  # fmt: skip
CHATML_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCAB_SIZE = 288

GLM_TEMPLATE = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
Z1_TEMPLATE = GLM_TEMPLATE.replace("<|assistant|>{% endif", "<|assistant|>\n<think>{% endif")
CHATML_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

GGUFArchitecture = Literal["chatglm", "glm4", "llama", "qwen2"]


def tiny_model(layout: Literal["chatglm", "hf"] = "hf", **changes: Any) -> TinyModel:
    """Two layers, hidden 64, a vocabulary of 256 bytes, the special tokens and some unnamed rows."""
    return TinyModel(**{"name": "tiny", "seed": 7, "layout": layout, "vocab_size": VOCAB_SIZE, **changes})


def special_id(name: str, specials: tuple[str, ...] = GLM_SPECIALS) -> int:
    return 256 + specials.index(name)


def canonical(model: TinyModel) -> Tensors:
    """What a checkpoint of this model must load as, in float32."""
    return draw(model)


def rounded(values: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """The float32 values a number format keeps (bfloat16: the upper half, truncated, as `encode` writes it)."""
    if dtype == "BF16":
        return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return values.astype(np.float16).astype(np.float32) if dtype == "F16" else values


def encode(values: NDArray[np.float32], dtype: str) -> bytes:
    values = np.ascontiguousarray(values, np.float32)
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype("<f2" if dtype == "F16" else "<f4").tobytes()


def safetensors_bytes(tensors: Tensors, dtype: str = "F32") -> bytes:
    """A whole safetensors file: header length (u64), JSON header, data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, value in tensors.items():
        encoded = encode(value, dtype)
        header[name] = {
            "dtype": dtype,
            "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + len(encoded)],
        }
        data += encoded
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def write_folder(
    folder: Path,
    model: TinyModel | None = None,
    *,
    dtype: str = "F32",
    shards: int = 1,
    tensors: Tensors | None = None,
    config: Mapping[str, Any] | None = None,
    chat_template: str | None = GLM_TEMPLATE,
    tokenizer: bool = True,
    generation_config: Mapping[str, Any] | None = None,
) -> Path:
    """A checkpoint folder as published: config.json, one or several safetensors files, tokenizer, template.

    Args:
        tensors: file tensors (names of the layout) instead of the model's own.
        config: keys of config.json to change; a value of None removes the key.
    """
    model = model or tiny_model()
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**config_json(model), "eos_token_id": [special_id("<|endoftext|>"), special_id("<|user|>")]}
    settings |= config or {}
    settings = {key: value for key, value in settings.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    _write_weights(folder, file_tensors(model, draw(model)) if tensors is None else tensors, dtype, shards)
    if tokenizer:
        write_tokenizer(folder, chat_template=chat_template)
    elif chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template)
    if generation_config is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation_config))
    return folder


def _write_weights(folder: Path, tensors: Tensors, dtype: str, shards: int) -> None:
    if shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors, dtype))
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        part = {name: tensors[name] for name in names[shard::shards]}
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        (folder / file).write_bytes(safetensors_bytes(part, dtype))
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_tokenizer(folder: Path, *, chat_template: str | None = None) -> None:
    """`tokenizer.model` in tiktoken format (256 single bytes, no merges) and its `tokenizer_config.json`."""
    ranks = b"".join(base64.b64encode(bytes([i])) + b" %d\n" % i for i in range(256))
    (folder / "tokenizer.model").write_bytes(ranks)
    added = {
        str(256 + i): {"content": name, "special": True, "lstrip": False, "rstrip": False}
        for i, name in enumerate(GLM_SPECIALS)
    }
    settings: dict[str, Any] = {"added_tokens_decoder": added, "eos_token": "<|endoftext|>"}
    if chat_template is not None:
        settings["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def byte_symbols() -> list[str]:
    """The printable character that byte-level BPE writes for each byte (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [table[byte] for byte in range(256)]


def gguf_tensors(model: TinyModel, architecture: GGUFArchitecture, *, fused: bool = True) -> Tensors:
    """Canonical tensors under GGUF names, as each architecture's converter writes them.

    Args:
        fused: chatglm and glm4 only: one attn_qkv, or attn_q, attn_k, attn_v.
    """
    out: Tensors = {}
    top = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
    for name, value in draw(model).items():
        if not name.startswith("layers."):
            out[top[name] + ".weight"] = value
            continue
        _, index, part = name.split(".")
        prefix = f"blk.{index}."
        if part in ("qkv", "qkv_bias"):
            suffix = ".weight" if part == "qkv" else ".bias"
            # qwen2 files pair channel i with i + d/2; llama files hold rows their converter has interleaved
            rows = half_split_rows(model, value) if architecture == "qwen2" else value
            if fused and architecture in ("chatglm", "glm4"):
                out[f"{prefix}attn_qkv{suffix}"] = rows
                continue
            ends = [model.query_size, model.query_size + model.key_value_size]
            for letter, piece in zip("qkv", np.split(rows, ends), strict=True):
                out[f"{prefix}attn_{letter}{suffix}"] = piece
        elif part == "gate_up" and architecture in ("llama", "qwen2"):
            out[prefix + "ffn_gate.weight"], out[prefix + "ffn_up.weight"] = np.split(value, 2)
        else:
            out[prefix + _GGUF_PARTS[part] + ".weight"] = value
    return out


_GGUF_PARTS = {
    "input_layernorm": "attn_norm",
    "o": "attn_output",
    "post_self_attn_layernorm": "post_attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "gate_up": "ffn_up",
    "down": "ffn_down",
    "post_mlp_layernorm": "post_ffw_norm",
}


def gguf_model(architecture: GGUFArchitecture, **changes: Any) -> TinyModel:
    """The tiny model an architecture's files can express: full rotary and tied for the two foreign ones."""
    foreign = architecture in ("llama", "qwen2")
    defaults: dict[str, Any] = {
        "architecture": "glm4" if architecture == "glm4" else "glm",
        "partial_rotary_factor": 1.0 if foreign else 0.5,
        "attention_bias": architecture != "llama",
        "tie_word_embeddings": foreign,
    }
    return tiny_model(**{**defaults, **changes})


def write_gguf(
    path: Path,
    architecture: GGUFArchitecture = "chatglm",
    model: TinyModel | None = None,
    *,
    quantization: str = "F32",
    exceptions: Mapping[str, str] | None = None,
    fused: bool = True,
    tensors: Tensors | None = None,
    metadata: Mapping[str, Any] | None = None,
    chat_template: str | None = None,
    tokenizer: bool = True,
    split_max_tensors: int = 0,
) -> Path:
    """A GGUF file: matrices in `quantization` (a ggml type the gguf package can write), vectors in F32.

    Args:
        exceptions: end of a tensor's name -> its type, instead of `quantization`.
        metadata: further keys (text, int, float, bool), full names; they win over the model's own. None drops a key.
        chat_template: default: the GLM or the ChatML template above, by architecture.
        split_max_tensors: more than 0 splits the model into files of that many tensors, `…-00001-of-0000N.gguf`.
    """
    model = model or gguf_model(architecture)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=split_max_tensors)
    chatml = architecture in ("llama", "qwen2")
    keys: dict[str, Any] = gguf_keys(model, architecture)
    keys["tokenizer.chat_template"] = chat_template or (CHATML_TEMPLATE if chatml else GLM_TEMPLATE)
    for key, value in {**keys, **(metadata or {})}.items():
        if value is not None:
            _add(writer, key, value)
    if tokenizer:
        _add_vocabulary(writer, CHATML_SPECIALS if chatml else GLM_SPECIALS, model.vocab_size, chatml=chatml)
    for name, value in (gguf_tensors(model, architecture, fused=fused) if tensors is None else tensors).items():
        chosen = next((kind for end, kind in (exceptions or {}).items() if name.endswith(end)), quantization)
        kind = gguf.GGMLQuantizationType[chosen]
        if value.ndim < 2 or kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, np.ascontiguousarray(value))
        elif chosen == "Q4_K":
            writer.add_tensor(name, q4_k(value), raw_dtype=kind)
        else:
            writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(value), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def q4_k(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A matrix [N, K], K a multiple of 256, as Q4_K blocks, uint8 [N, bytes]. The gguf package can only read them.

    Plain rounding: each group of 32 from its least to its greatest value, in 15 steps.
    """
    groups = values.reshape(-1, 8, 32)
    low = np.minimum(groups.min(axis=2), 0)
    step, minimum = (groups.max(axis=2) - low) / 15, -low
    d, dmin = ((x.max(axis=1, keepdims=True) / 63).astype(np.float16) for x in (step, minimum))
    scales, mins = (np.rint(x / y).clip(0, 63).astype(np.uint8) for x, y in ((step, d), (minimum, dmin)))
    grid = np.maximum(d.astype(np.float32) * scales, 1e-9)[..., None]
    codes = np.rint((groups + (dmin.astype(np.float32) * mins)[..., None]) / grid).clip(0, 15).astype(np.uint8)
    first = np.concatenate([scales[:, :4] | (scales[:, 4:] >> 4) << 6, mins[:, :4] | (mins[:, 4:] >> 4) << 6], axis=1)
    pairs = np.concatenate([first, (scales[:, 4:] & 15) | (mins[:, 4:] & 15) << 4], axis=1)
    nibbles = (codes[:, 0::2] | codes[:, 1::2] << 4).reshape(len(codes), 128)
    return np.concatenate([d.view(np.uint8), dmin.view(np.uint8), pairs, nibbles], axis=1).reshape(len(values), -1)


def gguf_keys(model: TinyModel, architecture: GGUFArchitecture) -> dict[str, Any]:
    """The metadata keys of the model, full names."""
    keys: dict[str, Any] = {
        "block_count": model.num_hidden_layers,
        "context_length": model.max_position_embeddings,
        "embedding_length": model.hidden_size,
        "feed_forward_length": model.intermediate_size,
        "attention.head_count": model.num_attention_heads,
        "attention.head_count_kv": model.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": model.rms_norm_eps,
        "rope.freq_base": model.rope_theta,
    }
    if architecture != "qwen2":  # files of qwen2 have no key for it: the whole head is rotated
        keys["rope.dimension_count"] = model.rotary_dim
    if model.head_dim * model.num_attention_heads != model.hidden_size:
        keys["attention.key_length"] = keys["attention.value_length"] = model.head_dim
    return {f"{architecture}.{key}": value for key, value in keys.items()}


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        writer.add_string(key, value)


def _add_vocabulary(writer: gguf.GGUFWriter, specials: tuple[str, ...], size: int, *, chatml: bool) -> None:
    spare = size - 256 - len(specials) - 1
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2" if chatml else "chatglm-bpe")
    writer.add_token_list([*byte_symbols(), *specials, "th", *(f"[PAD{i}]" for i in range(spare))])
    writer.add_token_types([1] * 256 + [3] * len(specials) + [1] + [5] * spare)  # normal, special, normal, unused
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(256 + specials.index("<|im_end|>" if chatml else "<|endoftext|>"))
    writer.add_add_bos_token(False)
