"""Exports to OpenVINO for tests: what an exported graph computes, and what it must compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.export.targets import ExportReport, ExportRequest, export_target
from glm4.kernels import get_kernels
from glm4.kernels.formats import PackedWeight
from glm4.loading.weights import load_model
from glm4.model.layers import ModelWeights
from glm4.model.precision import named_precision
from glm4.model.transformer import Transformer
from model_driver import Session

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
Ids = NDArray[np.int32]
Logits = NDArray[np.float32]


def export(source: Path, folder: Path, dtype: str = "fp32", **options: Any) -> ExportReport:
    with open_checkpoint(source) as checkpoint:
        return export_target("openvino").export(ExportRequest(checkpoint, folder, dtype, **options))


def exported_logits(folder: Path, ids: Ids, split: int) -> Logits:
    """Logits [ids, vocabulary] of two passes, the first of `split` ids; without rounding beside that of the weights."""
    request = ov.Core().compile_model(folder / "openvino_model.xml", "CPU", EXACT).create_infer_request()
    found = []
    for start, stop in ((0, split), (split, len(ids))):
        inputs = {
            "input_ids": ids[None, start:stop].astype(np.int64),
            "attention_mask": np.ones((1, stop), np.int64),
            "position_ids": np.arange(start, stop)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        found.append(request.infer(inputs)["logits"][0].copy())
    return np.concatenate(found)


def dequantized_logits(source: Path, ids: Ids, dtype: str) -> Logits:
    """Logits of our forward pass in float32, with the weights that our engine has in that precision."""
    kernels = get_kernels("reference")
    with open_checkpoint(source) as checkpoint:
        model = load_model(checkpoint, named_precision(dtype, checkpoint.stored_precision), kernels)
        tensors = {
            name: kernels.pack("fp32", kernels.unpack(tensor)) if isinstance(tensor, PackedWeight) else tensor
            for name, tensor in model.weights.tensors.items()
        }
        plain = Transformer(checkpoint.config, ModelWeights(tensors), kernels)
        return Session(plain, [len(ids)]).logits({0: ids})[0]


def divergence(exact: Logits, other: Logits) -> float:
    """Mean KL divergence of the distributions of all rows, in nats."""
    p, q = (_log_softmax(x.astype(np.float64)) for x in (exact, other))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def _log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))
