"""`model_overrides`: what vLLM must be told about a model beyond its files."""

from __future__ import annotations

from typing import Any

from glm4.backends.base import ModelFiles
from glm4.backends.vllm.plugin import register
from glm4.checkpoints.json_file import read_json_object
from glm4.checkpoints.packed_format import is_packed
from glm4.errors import UnsupportedModelError


def model_overrides(files: ModelFiles) -> dict[str, Any]:
    """Fields of vLLM's EngineArgs that follow from the model.

    Raises:
        UnsupportedModelError: vLLM cannot run it in this form.
    """
    config = files.path / "config.json"
    if not files.path.is_dir() or not config.is_file():
        raise UnsupportedModelError(
            f"{files.path} is not a safetensors checkpoint, which the vllm backend needs; {_HOW}"
        )
    if is_packed(read_json_object(config)):
        raise UnsupportedModelError(f"{files.path} has weights in our packed format, which vLLM cannot read; {_HOW}")
    if files.image is None:
        return {}
    if not register():
        raise UnsupportedModelError(
            f"{files.name} sees pictures, which this version of vLLM takes at wrong positions (the log says why they"
            " could not be corrected); use the local backend"
        )
    return {"limit_mm_per_prompt": {"image": files.image.most or _MANY}}


_MANY = 999  # vLLM's own limit of what it does not limit
_HOW = "export the original with: glm4 export MODEL --to hf -o DIR"
