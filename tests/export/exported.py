"""Tiny models to export, and what the exported file must hold."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf

from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.export.targets import ExportReport, ExportRequest, export_target
from tiny import GLM_SPECIALS, GLM_TEMPLATE, gguf_model, tiny_model, write_folder, write_gguf

WORDS = (b"th", "北".encode()[:2], "北".encode())
FIRST = 256 + len(WORDS)  # id of the first special token


def special(name: str) -> int:
    return FIRST + GLM_SPECIALS.index(name)


def glm_folder(
    folder: Path, layout: Any = "hf", *, template: str | None = GLM_TEMPLATE, dtype: str = "F32", **changes: Any
) -> Path:
    """A tiny GLM checkpoint whose vocabulary has merges, without which there is no GGUF file."""
    stops = [special("<|endoftext|>"), special("<|user|>")]
    model = tiny_model(layout, **changes)
    ends = {"eos_token_id": stops, "pad_token_id": stops[0]}
    write_folder(folder, model, dtype=dtype, tokenizer=False, chat_template=None, config=ends)
    pieces = [*(bytes([i]) for i in range(256)), *WORDS]
    ranks = b"".join(base64.b64encode(piece) + b" %d\n" % rank for rank, piece in enumerate(pieces))
    (folder / "tokenizer.model").write_bytes(ranks)
    added = {str(FIRST + i): {"content": name, "special": True} for i, name in enumerate(GLM_SPECIALS)}
    settings = {"added_tokens_decoder": added, "eos_token": "<|endoftext|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


Writer = Callable[[Path], Path]
SOURCES: dict[str, Writer] = {
    "chatglm": lambda at: glm_folder(at, "chatglm", rope_theta=5e6, max_position_embeddings=131072),
    "chatglm-half-split": lambda at: glm_folder(at, "chatglm", half_split=True),
    "glm": lambda at: glm_folder(at, rope_theta=5e6),
    "glm-edge": lambda at: glm_folder(at, partial_rotary_factor=1.0, attention_bias=False),
    "glm-tied": lambda at: glm_folder(at, tie_word_embeddings=True),
    "glm4": lambda at: glm_folder(at, architecture="glm4"),
    "glm4-32b": lambda at: glm_folder(
        at, architecture="glm4", num_attention_heads=6, attention_bias=False, rms_norm_eps=1e-5
    ),
    "chatglm-gguf": lambda at: write_gguf(at / "m.gguf", "chatglm", fused=False),
    "glm4-gguf": lambda at: write_gguf(at / "m.gguf", "glm4", fused=True),
    "qwen2": lambda at: write_gguf(at / "m.gguf", "qwen2"),
    "qwen2-wide": lambda at: write_gguf(at / "m.gguf", "qwen2", gguf_model("qwen2", num_attention_heads=6)),
    "llama": lambda at: write_gguf(at / "m.gguf", "llama"),
}


def export(source: Path, file: Path, dtype: str = "f32", *, to: str = "gguf", **options: Any) -> ExportReport:
    with open_checkpoint(source) as checkpoint:
        return export_target(to).export(ExportRequest(checkpoint, file, dtype, **options))


def keys_of(file: Path) -> dict[str, Any]:
    """The metadata as the `gguf` package reads it."""
    fields = gguf.GGUFReader(file).fields
    return {name: field.contents() for name, field in fields.items() if not name.startswith("GGUF.")}
