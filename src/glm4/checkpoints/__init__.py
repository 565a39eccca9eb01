"""Checkpoints on disk: safetensors and GGUF files, opened by memory map and read as float32."""

from __future__ import annotations

from glm4.checkpoints.checkpoint import Checkpoint, open_checkpoint
from glm4.checkpoints.tensor_source import TensorInfo, TensorSource

__all__ = ["Checkpoint", "TensorInfo", "TensorSource", "open_checkpoint"]
