"""How far quantized weights are from their source, by kind of tensor, and how large they are.

The measure is the relative root mean square error sqrt(sum (q - w)^2 / sum w^2) of the dequantized weights q, the same
for every layer of a kind. It distinguishes good rounding from bad; it says nothing about the model's answers. The same
error of the outputs q x on the calibration text, known if the rounding was calibrated, is closer to them: calibration
reduces it, at the cost of a larger error of the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Rows are compared this many values at a time, to keep the float64 intermediates small.
_BLOCK = 1 << 20


@dataclass
class KindError:
    """Sums over all tensors of one kind ("qkv", "down", "vision.qkv", "embed_tokens" …).

    Attributes:
        format: weight format.
        tensors: how many.
        weights: numbers in them.
        nbytes: packed bytes, scales and padding included.
    """

    format: str
    tensors: int = 0
    weights: int = 0
    nbytes: int = 0
    _error: float = 0.0
    _norm: float = 0.0
    _output_error: float = 0.0
    _output_norm: float = 0.0

    def add(self, source: NDArray[np.float32], restored: NDArray[np.float32], nbytes: int) -> None:
        """Add some rows of a tensor: the original, the restored values, and their packed size."""
        flat, other = source.reshape(-1), restored.reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            part = flat[start : start + _BLOCK].astype(np.float64)
            self._norm += float(part @ part)
            part -= other[start : start + _BLOCK]
            self._error += float(part @ part)
        self.weights += flat.size
        self.nbytes += nbytes

    def add_output(self, error: float, norm: float) -> None:
        """Add squared error and squared norm of outputs."""
        self._output_error += error
        self._output_norm += norm

    @property
    def relative_output_rmse(self) -> float | None:
        """Of the outputs on the calibration text; None if the rounding was not calibrated."""
        return math.sqrt(self._output_error / self._output_norm) if self._output_norm else None

    @property
    def relative_rmse(self) -> float:
        """0 for an exact copy, including a tensor of zeros that stayed zero."""
        return math.sqrt(self._error / self._norm) if self._norm else math.sqrt(self._error)

    @property
    def bits_per_weight(self) -> float:
        """Packed bits per weight, scales and padding included."""
        return 8 * self.nbytes / self.weights if self.weights else 0.0


@dataclass
class QuantizationReport:
    """The result of `glm4 quantize`.

    Attributes:
        precision: "int8" or "int4".
        parameters: of the model.
        nbytes: of the finished weight file, header and vectors included.
        kinds: error by kind of tensor, in model order.
        calibration_tokens: length of the calibration text; 0 if every weight was rounded by itself.
    """

    precision: str
    parameters: int
    nbytes: int = 0
    kinds: dict[str, KindError] = field(default_factory=dict)
    calibration_tokens: int = 0

    def kind(self, name: str, format: str) -> KindError:
        """The entry a canonical tensor belongs to: "layers.3.qkv" is a "qkv", "vision.layers.3.qkv" a "vision.qkv"."""
        part, last = name.partition(".")[0], name.rpartition(".")[2]
        return self.kinds.setdefault(last if part in ("layers", last) else f"{part}.{last}", KindError(format))

    @property
    def bits_per_weight(self) -> float:
        """The file's bits over the model's parameters, everything included."""
        return 8 * self.nbytes / self.parameters

    @property
    def relative_rmse(self) -> float:
        """Over all matrices together."""
        error, norm = (sum(getattr(k, key) for k in self.kinds.values()) for key in ("_error", "_norm"))
        return math.sqrt(error / norm) if norm else math.sqrt(error)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "precision": self.precision,
            "parameters": self.parameters,
            "bytes": self.nbytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "relative_rmse": self.relative_rmse,
            "calibration_tokens": self.calibration_tokens,
            "kinds": {
                name: {
                    "format": kind.format,
                    "tensors": kind.tensors,
                    "weights": kind.weights,
                    "bytes": kind.nbytes,
                    "bits_per_weight": round(kind.bits_per_weight, 4),
                    "relative_rmse": kind.relative_rmse,
                    "relative_output_rmse": kind.relative_output_rmse,
                }
                for name, kind in self.kinds.items()
            },
        }
