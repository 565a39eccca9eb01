"""Tiny random GLM-4V checkpoints in glm-4v-9b's own layout, shared by tests and tools/golden/vision.py.

Like `golden_models`: the tensors are drawn anew wherever they are needed, so the recorded files hold outputs only. The
text half is a `TinyModel` of the ChatGLM layout; the tower's tensors have the names of the published file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import golden_models as gm

Pixels = NDArray[np.uint8]

PREFIX = "transformer.vision."
END_OF_TEXT, BEGIN_OF_IMAGE, END_OF_IMAGE = 1, 120, 121  # ids in the vocabulary of the tiny text model
SOURCE_SIZE = (230, 170)  # width and height of the picture from which the model's own pixels are made
TEXT_BEFORE, TEXT_AFTER, DECODE_STEPS = 9, 12, 6


@dataclass(frozen=True)
class TinyVision:
    """One random GLM-4V: a text model and the shape of its tower."""

    text: gm.TinyModel
    num_hidden_layers: int = 3
    hidden_size: int = 48
    num_heads: int = 4
    intermediate_size: int = 96
    image_size: int = 56
    patch_size: int = 14
    scaling_factor: float = 8.0
    end_of_text: int = END_OF_TEXT
    begin_of_image: int = BEGIN_OF_IMAGE
    end_of_image: int = END_OF_IMAGE

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size

    @property
    def num_positions(self) -> int:
        return self.grid**2 + 1

    @property
    def num_rows(self) -> int:
        return (self.grid // 2) ** 2 + 2


VISION_MODELS: dict[str, TinyVision] = {
    model.text.name: model
    for model in (
        TinyVision(gm.TinyModel("glm-4v", 41, "chatglm")),
        # no size is a multiple of 32, the number of heads is odd, the picture gives 9 + 2 rows
        TinyVision(
            gm.TinyModel("glm-4v-odd", 42, "chatglm", num_hidden_layers=3, intermediate_size=72),
            num_hidden_layers=2, hidden_size=36, num_heads=3, intermediate_size=70, image_size=84, scaling_factor=3.0,
        ),
    )
}  # fmt: skip


def vision_shapes(model: TinyVision) -> dict[str, tuple[int, ...]]:
    """The tower's tensors as the file names them, in the order they are drawn."""
    size, mlp, text, ffn = (
        model.hidden_size,
        model.intermediate_size,
        model.text.hidden_size,
        model.text.intermediate_size,
    )
    out: dict[str, tuple[int, ...]] = {
        "patch_embedding.proj.weight": (size, 3, model.patch_size, model.patch_size),
        "patch_embedding.proj.bias": (size,),
        "patch_embedding.cls_embedding": (1, size),
        "patch_embedding.position_embedding.weight": (model.num_positions, size),
    }
    for i in range(model.num_hidden_layers):
        layer = f"transformer.layers.{i}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            out |= {f"{layer}{norm}.weight": (size,), f"{layer}{norm}.bias": (size,)}
        linears = {
            "attention.query_key_value": (3 * size, size),
            "attention.dense": (size, size),
            "mlp.fc1": (mlp, size),
            "mlp.fc2": (size, mlp),
        }
        for name, shape in linears.items():
            out |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
    return out | {
        "conv.weight": (text, size, 2, 2),
        "conv.bias": (text,),
        "linear_proj.linear_proj.weight": (text, text),
        "linear_proj.norm1.weight": (text,),
        "linear_proj.norm1.bias": (text,),
        "linear_proj.gate_proj.weight": (ffn, text),
        "linear_proj.dense_h_to_4h.weight": (ffn, text),
        "linear_proj.dense_4h_to_h.weight": (text, ffn),
        "boi": (1, 1, text),
        "eoi": (1, 1, text),
    }


def draw_vision(model: TinyVision) -> gm.Tensors:
    """The tower: N(0, 0.15), 1 added to the weights of norms; rows of boi and eoi N(0, 1), as they are divided."""
    rng = np.random.RandomState(model.text.seed)
    out: gm.Tensors = {}
    for name, shape in vision_shapes(model).items():
        values = (1.0 if name in ("boi", "eoi") else 0.15) * rng.standard_normal(shape)
        is_norm = "norm" in name and name.endswith(".weight")
        out[PREFIX + name] = (values + 1.0 if is_norm else values).astype(np.float32)
    return out


def draw_files(model: TinyVision) -> gm.Tensors:
    """All tensors of the checkpoint under the names of the file."""
    return gm.file_tensors(model.text, gm.draw(model.text)) | draw_vision(model)


def vision_config_json(model: TinyVision) -> dict[str, Any]:
    """The contents of config.json: keys of the published one."""
    return gm.config_json(model.text) | {
        "architectures": ["ChatGLMForConditionalGeneration"],
        "boi_token_id": model.begin_of_image,
        "eoi_token_id": model.end_of_image,
        "eos_token_id": [model.end_of_text],
        "pad_token_id": model.end_of_text,
        "vision_config": {
            "dropout_prob": 0.0,
            "hidden_act": "gelu",
            "hidden_size": model.hidden_size,
            "image_size": model.image_size,
            "in_channels": 3,
            "intermediate_size": model.intermediate_size,
            "layer_norm_eps": 1e-6,
            "num_heads": model.num_heads,
            "num_hidden_layers": model.num_hidden_layers,
            "num_positions": model.num_positions,
            "patch_size": model.patch_size,
            "scaling_factor": model.scaling_factor,
        },
    }


def write_vision_checkpoint(folder: Path, model: TinyVision, tensors: gm.Tensors | None = None) -> Path:
    """Writes config.json and model.safetensors (float32); `tensors`, under the file's names, replace the model's."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(vision_config_json(model), indent=2))
    gm.write_safetensors(folder / "model.safetensors", draw_files(model) if tensors is None else tensors)
    return folder


def draw_picture(model: TinyVision) -> Pixels:
    """A picture larger than the model's, uint8 [height, width, 3]: noise, which resizing without antialiasing keeps."""
    width, height = SOURCE_SIZE
    return np.random.RandomState(model.text.seed + 1).randint(0, 256, (height, width, 3)).astype(np.uint8)


def draw_text(model: TinyVision) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Ids before and after the picture; none of them belongs to a picture."""
    rng = np.random.RandomState(model.text.seed + 2)
    before, after = (rng.randint(2, BEGIN_OF_IMAGE, n).astype(np.int32) for n in (TEXT_BEFORE, TEXT_AFTER))
    return before, after
