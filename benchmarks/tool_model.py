"""A tiny GLM-4 with random weights, whose vocabulary is bytes, the words of `tool_conversations.py`, and roles."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import regex
from numpy.typing import NDArray

from glm4.chat.chat_request import ChatRequest
from glm4.chat.dialects.table import dialect_for
from glm4.tokenizer import load_tokenizer
from glm4.tokenizer.tiktoken_tokenizer import GLM4_PATTERN, GLM4_SPECIAL_TOKENS
from tool_conversations import HOUSE, PLAIN, cases


def write_tokenizer(folder: Path) -> None:
    """`tokenizer.model` with 256 bytes and every word of this world, then GLM-4's special tokens."""
    words = dict.fromkeys(piece.encode() for text in _texts(folder) for piece in regex.findall(GLM4_PATTERN, text))
    _write_pieces(folder, [*(bytes([byte]) for byte in range(256)), *(word for word in words if len(word) > 1)])


def _write_pieces(folder: Path, pieces: Sequence[bytes]) -> None:
    lines = [base64.b64encode(piece) + b" %d\n" % rank for rank, piece in enumerate(pieces)]
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    added = {str(len(pieces) + at): {"content": name, "special": True} for at, name in enumerate(GLM4_SPECIAL_TOKENS)}
    settings = {"added_tokens_decoder": added, "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _texts(folder: Path) -> list[str]:
    """Conversations with everything that can occur, rendered, between their special tokens."""
    _write_pieces(folder, [bytes([byte]) for byte in range(256)])
    tokenizer, dialect = load_tokenizer(folder), dialect_for("glm4")
    found: list[str] = []
    for case in [*cases(400, 1), *cases(400, 2, held_out=True)]:
        for reply in (PLAIN, HOUSE):
            request = ChatRequest.of(case.messages(reply), tools=case.tools, add_generation_prompt=False)
            found += regex.split(r"<[^<>]*>|\[gMASK\]", dialect.render_text(request, tokenizer=tokenizer))
    found += [f" {number}" for number in range(10, 40)]
    return list(dict.fromkeys(found))


def write_model(folder: Path, *, hidden: int = 64, layers: int = 2, seed: int = 0) -> Path:
    """A GLM with random weights in Hugging Face's layout, and its vocabulary."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    tokenizer = load_tokenizer(folder)
    special = {name: tokenizer.special_id(name) for name in ("<|endoftext|>", "<|user|>", "<|observation|>")}
    size = -(-(max(tokenizer.special_tokens.values()) + 1) // 64) * 64
    config = {
        "architectures": ["GlmForCausalLM"], "model_type": "glm", "vocab_size": size, "hidden_size": hidden,
        "intermediate_size": 2 * hidden, "num_hidden_layers": layers, "num_attention_heads": hidden // 32,
        "num_key_value_heads": hidden // 32, "head_dim": 32, "hidden_act": "silu", "max_position_embeddings": 1024,
        "rms_norm_eps": 1.5625e-07, "attention_bias": True, "attention_dropout": 0.0, "tie_word_embeddings": False,
        "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "pad_token_id": special["<|endoftext|>"],
        "eos_token_id": list(special.values()), "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(seed)
    tensors = {name: _draw(rng, name, shape) for name, shape in _shapes(size, hidden, layers).items()}
    # A head that begins as the embedding copies words soon.
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * np.float32(hidden**-0.5)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _shapes(vocabulary: int, hidden: int, layers: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for letter in "qkv":
            found[f"{at}self_attn.{letter}_proj.weight"] = (hidden, hidden)
            found[f"{at}self_attn.{letter}_proj.bias"] = (hidden,)
        found[f"{at}self_attn.o_proj.weight"] = (hidden, hidden)
        found[f"{at}mlp.gate_up_proj.weight"] = (4 * hidden, hidden)
        found[f"{at}mlp.down_proj.weight"] = (hidden, 2 * hidden)
        found[f"{at}input_layernorm.weight"] = found[f"{at}post_attention_layernorm.weight"] = (hidden,)
    found["model.norm.weight"] = (hidden,)
    found["model.embed_tokens.weight"] = found["lm_head.weight"] = (vocabulary, hidden)
    return found


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if name.endswith("norm.weight"):
        return np.ones(shape, np.float32)
    if name.endswith("bias"):
        return np.zeros(shape, np.float32)
    # What layers add to the stream is small beside the words in it, at first.
    scale = 1.0 if "embed" in name else shape[1] ** -0.5 * (0.2 if "o_proj" in name or "down" in name else 1.0)
    return rng.standard_normal(shape, np.float32) * np.float32(scale)
