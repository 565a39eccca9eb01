"""Rounds the matrices of a layer while the calibration text passes through it.

Two kernel sets that do more than multiply: `InputRecorder` keeps the inputs of the exact model's matrices,
`LayerRounder` rounds each matrix for the inputs x' that reach it in the rounded model, H = sum x' x'^T (`rounding.py`).

What int4 rounds is not W but the matrix that best turns x' into W x ("correction"):

    W + W (sum (x - x') x'^T) (H + d)^-1

Where outputs are added to the residual stream (o, down), the error of that stream is added to W x, so that the errors
of all earlier layers are corrected too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm4.errors import CheckpointError
from glm4.kernels.base import Kernels
from glm4.kernels.formats import PackedWeight
from glm4.quantization.rounding import damping_for, factorize, round_compensated

Float = NDArray[np.float32]

# Formats whose matrices are corrected. int8 is as close to the original as the int8 model that stands in for it here.
CORRECTED = ("int4",)
# Below this it was not measured whether the correction fits the model or only the text. 11 tokens per column take a
# third off smoke's divergence; with 1.8 (down of starter-large) errors on other text still fall a little.
TOKENS_PER_COLUMN = 1.75
# The output error is estimated from one in this many rows of a matrix.
_ERROR_STRIDE = 16


@dataclass
class InputRecorder:
    """A kernel set that also records the inputs of each of a layer's matrices in `linear`, and the outputs of `o`.

    Everything else is passed on to `kernels`.

    Attributes:
        names: id of a packed matrix -> its name.
        inputs: by name, in the order in which the layer applies its matrices.
    """

    kernels: Kernels
    names: dict[int, str]
    inputs: dict[str, list[Float]] = field(default_factory=dict)
    attended: list[Float] = field(default_factory=list)

    def linear(self, x: Float, weight: PackedWeight, bias: Float | None = None) -> Float:
        """`Kernels.linear`, recorded."""
        name, y = self.names[id(weight)], self.kernels.linear(x, weight, bias)
        self.inputs.setdefault(name, []).append(x)
        if name == "o":
            self.attended.append(y)
        return y

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernels, name)


@dataclass
class LayerRounder:
    """A kernel set whose `linear` rounds the next matrix of a layer for all its inputs, and then applies it.

    Attributes:
        tensors: of the layer, float32, channels rescaled.
        inputs: inputs of each matrix in the exact model, in the order in which the layer applies them, in the same
            channels; dropped once the matrix is rounded.
        attended: outputs of the exact model's `o`; None if outputs are not added to the residual stream unchanged.
        hidden_error: exact minus rounded hidden states before the layer, [tokens, H]; modified.
        codes: creates a matrix that keeps the file's codes, or returns None.
        rounded: the matrices so far, and their output errors.
    """

    format: str
    kernels: Kernels
    tensors: Mapping[str, Float]
    inputs: dict[str, Float]
    attended: Float | None
    hidden_error: Float
    codes: Callable[[str], PackedWeight | None]
    rounded: dict[str, tuple[PackedWeight, tuple[float, float]]] = field(default_factory=dict)

    def linear(self, x: Float, weight: PackedWeight, bias: Float | None = None) -> Float:
        """`Kernels.linear` with the next matrix rounded; `weight` is ignored."""
        name = next(iter(self.inputs))
        exact = self.inputs.pop(name)
        target, hessian, damping = self.tensors[name], input_sum(x, name), damping_for(*x.shape)
        packed = self.codes(name)
        if packed is None:
            if corrects(self.format, *x.shape):
                target = target + self._correction(name, exact, x, hessian, damping)
            factors = factorize(hessian, self.format, damping)
            packed = round_compensated(self.format, target, factors, self.kernels)
        self.rounded[name] = packed, output_error(target, packed, hessian, self.kernels)
        y = self.kernels.linear(x, packed, bias)
        if name == "o" and self.attended is not None:
            self.hidden_error += self.attended - y
        return y

    def _correction(self, name: str, exact: Float, x: Float, hessian: Float, damping: float) -> Float:
        """What to add to the matrix; the products are in the order that is cheaper for its shape."""
        weight, lost = self.tensors[name], exact - x
        if name in ("qkv", "gate_up"):
            return ridge(weight @ (lost.T @ x), hessian, damping)
        missing = lost @ weight.T
        if self.attended is not None:
            missing += self.hidden_error
        return ridge(missing.T @ x, hessian, damping)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernels, name)


def corrects(format: str, tokens: int, cols: int) -> bool:
    """Whether a matrix with this many columns is corrected: its format gains by it, and there is enough text."""
    return format in CORRECTED and tokens >= TOKENS_PER_COLUMN * cols


def ridge(product: Float, hessian: Float, damping: float) -> Float:
    """product [N, K] times (H + d)^-1, d being `damping` times the mean of H's diagonal."""
    damped = hessian.copy()
    damped[np.diag_indices_from(damped)] += damping * (float(np.diagonal(hessian).mean()) or 1.0)
    return np.asarray(np.linalg.solve(damped, product.T).T, np.float32)


def output_error(weight: Float, packed: PackedWeight, hessian: Float, kernels: Kernels) -> tuple[float, float]:
    """sum |(q - w) x|^2 and sum |w x|^2 over the inputs x in the Hessian, for every 16th row w of the matrix."""
    rows = np.ascontiguousarray(weight[::_ERROR_STRIDE])
    wrong = kernels.unpack(packed)[::_ERROR_STRIDE] - rows
    error, norm = (float(np.einsum("ij,ij->", part @ hessian, part, dtype=np.float64)) for part in (wrong, rows))
    return max(error, 0.0), max(norm, 0.0)


def input_sum(x: Float, name: str) -> Float:
    """x^T x of the inputs [tokens, K] of a matrix.

    Raises:
        CheckpointError: it is not finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return _finite(x.T @ x, name)


def input_energy(x: Float, name: str) -> Float:
    """The diagonal of `input_sum`; errors as there."""
    with np.errstate(over="ignore", invalid="ignore"):
        return _finite(np.einsum("ij,ij->j", x, x), name)


def _finite(total: Float, name: str) -> Float:
    if not np.isfinite(total).all():
        raise CheckpointError(
            f"the inputs of {name} overflow on the calibration text: the weights are damaged, or do not form a model; "
            "--no-calibrate rounds them without it"
        )
    return total
