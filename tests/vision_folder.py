"""A tiny random GLM-4V as a folder with a vocabulary: what `LLM` opens, for tests of everything above the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny import special_id, tiny_model, write_folder
from vision_models import TinyVision, draw_files, vision_config_json

MARKS = "<|begin_of_image|><|endoftext|><|end_of_image|>"
BEGIN, END_OF_TEXT, END = map(special_id, ("<|begin_of_image|>", "<|endoftext|>", "<|end_of_image|>"))
MODEL = TinyVision(tiny_model("chatglm"), end_of_text=END_OF_TEXT, begin_of_image=BEGIN, end_of_image=END)
SIZE, ROWS = MODEL.image_size, MODEL.num_rows


def write_vision_folder(
    folder: Path,
    *,
    model: TinyVision = MODEL,
    config: dict[str, Any] | None = None,
    generation_config: dict[str, Any] | None = None,
) -> Path:
    """A checkpoint in glm-4v-9b's layout, without a chat template.

    Args:
        config: keys of config.json to change.
    """
    settings = vision_config_json(model) | (config or {})
    return write_folder(
        folder,
        model.text,
        tensors=draw_files(model),
        config=settings,
        chat_template=None,
        generation_config=generation_config,
    )
