"""Nodes of weights: constants over mapped memory, and products with matrices of each format."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from glm4.export.openvino.weights import StoredTensor

_TYPES = {"bf16": ov.Type.bf16, "int8": ov.Type.i8, "int4": ov.Type.i4}


def integers(values: int | list[int]) -> Any:
    """A constant of indices, axes or sizes."""
    return ops.constant(np.array(values, np.int64))


class WeightNodes:
    """Makes nodes of a model's weights, whose memory lives as long as this object."""

    def __init__(self) -> None:
        self._kept: list[Any] = []
        self._sums: dict[tuple[int, int], tuple[Any, Any]] = {}

    def constant(self, array: NDArray[Any], kind: Any = None, shape: tuple[int, ...] = ()) -> Any:
        """A constant that shares an array's memory.

        Args:
            kind: type of the elements, if NumPy has none; then `shape` is that of the constant.
        """
        array = np.ascontiguousarray(array)
        tensor = ov.Tensor(array, shared_memory=True) if kind is None else ov.Tensor(array, list(shape), kind)
        self._kept += [array, tensor]
        return ov.op.Constant(tensor, shared_memory=True)

    def matrix(self, stored: StoredTensor) -> Any:
        """The float32 values of a matrix, without the offsets of int4, in the form that plugins compute from codes."""
        arrays, shape = stored.arrays, stored.shape
        if stored.format == "fp32":
            return self.constant(arrays["values"])
        kind = _TYPES[stored.format]
        if stored.format == "bf16":
            return ops.convert(self.constant(arrays["values"], kind, shape), "f32")
        groups = arrays["scale"].shape[1]
        codes = self.constant(arrays["codes"], kind, (shape[0], groups, shape[1] // groups))
        values = ops.convert(codes, "f32")
        if "zero" in arrays:
            values = ops.subtract(values, self.constant(arrays["zero"][..., None]))
        values = ops.multiply(values, self.constant(arrays["scale"][..., None]))
        return ops.reshape(values, integers(list(shape)), special_zero=False)

    def product(self, x: Any, matrix: Any, path: str) -> Any:
        """`x` times a matrix, under the name by which adapters find it.

        Args:
            path: of the module in Hugging Face's classes.
        """
        product = ops.matmul(x, matrix, False, True)
        product.set_friendly_name(f"__module.{path}/aten::linear/MatMul")
        return product

    def linear(self, x: Any, stored: StoredTensor, path: str) -> Any:
        """`x` times a stored matrix.

        The offsets of int4 are a product of their own, with sums of the inputs over each group: that way the codes are
        symmetric, for which plugins have their fastest kernels, and an offset takes a byte.
        """
        product = self.product(x, self.matrix(stored), path)
        if "offset" not in stored.arrays:
            return product
        offset, unit = stored.arrays["offset"], stored.arrays["unit"]
        weight = ops.multiply(ops.convert(self.constant(offset), "f32"), self.constant(unit[:, None]))
        return ops.add(product, ops.matmul(self._group_sums(x, offset.shape[1], stored.shape[1]), weight, False, True))

    def _group_sums(self, x: Any, groups: int, cols: int) -> Any:
        """Sums of `x` [batch, tokens, cols] over each group of columns; one node for all matrices with this input."""
        key = id(x), groups
        if key not in self._sums:
            grouped = ops.reshape(x, integers([0, 0, groups, cols // groups]), special_zero=True)
            self._sums[key] = x, ops.reduce_sum(grouped, integers([3]), keep_dims=False)
        return self._sums[key][1]
