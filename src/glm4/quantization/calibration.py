"""Quantises a model layer by layer, each matrix with the statistics of its own inputs.

The hidden states of the calibration text are carried from layer to layer. For each layer: run it near-exactly on the
states that the layers before it, already quantised, produced, and sum up H = sum x x^T of the inputs of its four
matrices; rescale its channels (`channel_scales.py`); round the matrices (`rounding.py`); run the rounded layer to carry
the states on. So each layer sees what came before it, and no more than one layer and its four H are held at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from glm4.errors import CheckpointError
from glm4.kernels import Kernels
from glm4.kernels.formats import PackedWeight, empty_packed
from glm4.kernels.group_codes import pack_codes
from glm4.model.config import ModelConfig
from glm4.model.kv_cache import ForwardBatch, KVCache, pages_for
from glm4.model.loader import CanonicalTensors, floats, kept_codes, pack_stored, read_slabs, read_stored
from glm4.model.precision import PRECISIONS
from glm4.model.transformer import LayerWeights, ModelWeights, Transformer
from glm4.quantization.channel_scales import POWERS, rescale_layer, row_factors
from glm4.quantization.rounding import factorise, round_compensated

Float = NDArray[np.float32]
Layer = Mapping[str, PackedWeight | Float]

MATRICES = ("qkv", "o", "gate_up", "down")
_BATCH_ROWS = 4096  # rows of one forward pass
# The output error is estimated from every so many rows of a matrix.
_ERROR_STRIDE = 16


@dataclass(frozen=True)
class Part:
    """A finished piece: a vector, or some rows of a matrix.

    Attributes:
        name: canonical name; a large matrix comes in several parts, in order.
        source: float32, the vector or the rows, after channels were rescaled.
        packed: the rows in the weight format; None for a vector.
        first: whether these are the first rows.
        output_error: squared error and squared norm of the outputs on the calibration text, summed over a sample of
            the rows; None where the rounding was not calibrated.
    """

    name: str
    source: Float
    packed: PackedWeight | None = None
    first: bool = True
    output_error: tuple[float, float] | None = None


@dataclass
class InputSums:
    """A kernel set that also sums up x^T x of what goes through `linear`, by weight.

    Everything else is passed on to `kernels`.
    """

    kernels: Kernels
    sums: dict[int, Float] = field(default_factory=dict)

    def linear(self, x: Float, weight: PackedWeight, bias: Float | None = None) -> Float:
        """`Kernels.linear`, recorded."""
        if id(weight) not in self.sums:
            self.sums[id(weight)] = np.zeros((weight.cols, weight.cols), np.float32)
        _add_products(self.sums[id(weight)], x)
        return self.kernels.linear(x, weight, bias)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernels, name)


def calibrated(checkpoint: CanonicalTensors, format: str, ids: NDArray[np.int32], kernels: Kernels) -> Iterator[Part]:
    """All tensors of a model, in model order; the embedding plain, the rest rounded with error compensation.

    The channels of each layer are rescaled; the factors follow its other tensors.

    A matrix that becomes int4 and that the file holds as 4-bit codes keeps them: no rounding comes as close.

    A matrix that is embedding and head at once is rounded as a head: errors of logits weigh more than those of inputs.

    Args:
        checkpoint: the model, in any form that yields float32 tensors.
        format: weight format of every matrix, a key of `rounding.GRIDS`.
        ids: calibration text, [sequences, tokens]; each sequence is a text of its own.
    """
    config, names = checkpoint.config, checkpoint.tensor_names()
    coded = kept_codes(checkpoint, PRECISIONS[format])
    table = empty_packed(format, *checkpoint.shape("embed_tokens"))
    hessian = exact_head_input_sum(checkpoint, ids, kernels) if config.tie_word_embeddings else None
    yield from _table_parts(checkpoint, "embed_tokens", format, coded, hessian, kernels, table)
    hidden = _embedded(table, ids, kernels)
    del table, hessian
    for index in range(config.num_hidden_layers):
        prefix = f"layers.{index}."
        tensors = {name.removeprefix(prefix): checkpoint.load(name) for name in names if name.startswith(prefix)}
        # int8 instead of float32: faster, and inputs that differ by a thousandth make the same statistics.
        close = {name: kernels.pack("int8", t) if t.ndim == 2 else t for name, t in tensors.items()}
        sums = layer_input_sums(config, close, hidden, kernels)
        del close
        rescale_layer(tensors, sums, POWERS[format], [name for name in MATRICES if prefix + name in coded])
        rounded: dict[str, PackedWeight | Float] = dict(tensors)
        for name, tensor in tensors.items():
            if tensor.ndim == 1:
                yield Part(prefix + name, tensor)
                continue
            hessian = sums.pop(name)
            if prefix + name in coded:
                codes = checkpoint.load_codes(prefix + name, 0, len(tensor))
                packed = pack_codes(codes.scaled(row_factors(tensors)) if name == "gate_up" else codes)
            else:
                packed = round_compensated(format, tensor, factorise(hessian, format), kernels)
            rounded[name] = packed
            yield Part(prefix + name, tensor, packed, True, output_error(tensor, packed, hessian, kernels))
        del tensors
        run_layer(config, rounded, hidden, kernels)
    norm = checkpoint.load("norm")
    yield Part("norm", norm)
    if not config.tie_word_embeddings:
        hessian = head_input_sum(config, norm, hidden, kernels)
        yield from _table_parts(checkpoint, "lm_head", format, coded, hessian, kernels, None)


def _table_parts(
    checkpoint: CanonicalTensors,
    name: str,
    format: str,
    coded: Collection[str],
    hessian: Float | None,
    kernels: Kernels,
    whole: PackedWeight | None,
) -> Iterator[Part]:
    """Embedding or head, some rows at a time; calibrated where `hessian` is given, gathered in `whole` if given."""
    factors = None if hessian is None or name in coded else factorise(hessian, format)
    for slab, stored in read_stored(checkpoint, [name], coded):
        values = floats(stored)
        if factors is None:
            packed = pack_stored(format, stored, kernels)
        else:
            packed = round_compensated(format, values, factors, kernels)
        if whole is not None:
            whole.place(slab.start, packed)
        error = None if hessian is None else output_error(values, packed, hessian, kernels)
        yield Part(name, values, packed, slab.start == 0, error)


def _embedded(table: PackedWeight, ids: NDArray[np.int32], kernels: Kernels) -> Float:
    """Embeddings [sequences, tokens, H]."""
    return kernels.embedding(table, np.ascontiguousarray(ids.reshape(-1))).reshape(*ids.shape, -1)


def output_error(weight: Float, packed: PackedWeight, hessian: Float, kernels: Kernels) -> tuple[float, float]:
    """sum |(q - w) x|^2 and sum |w x|^2 over the inputs x behind the Hessian, for every 16th row w of the matrix."""
    rows = np.ascontiguousarray(weight[::_ERROR_STRIDE])
    wrong = kernels.unpack(packed)[::_ERROR_STRIDE] - rows
    error, norm = (float(np.einsum("ij,ij->", part @ hessian, part, dtype=np.float64)) for part in (wrong, rows))
    return max(error, 0.0), max(norm, 0.0)


def layer_input_sums(config: ModelConfig, layer: Layer, hidden: Float, kernels: Kernels) -> dict[str, Float]:
    """x^T x of the inputs of each matrix of a layer, [K, K] each. `hidden` [sequences, tokens, H] stays as it is.

    Raises:
        CheckpointError: they are not finite.
    """
    recorder = InputSums(kernels)
    run_layer(config, layer, hidden.copy(), cast(Kernels, recorder))
    return {name: _finite(recorder.sums[id(layer[name])], name) for name in MATRICES}


def exact_head_input_sum(checkpoint: CanonicalTensors, ids: NDArray[np.int32], kernels: Kernels) -> Float:
    """`head_input_sum` of the model in int8, for a head that is needed before the layers are rounded."""
    config, names = checkpoint.config, checkpoint.tensor_names()
    table = empty_packed("int8", *checkpoint.shape("embed_tokens"))
    for slab, values in read_slabs(checkpoint, ["embed_tokens"]):
        table.place(slab.start, kernels.pack("int8", values))
    hidden = _embedded(table, ids, kernels)
    del table
    for index in range(config.num_hidden_layers):
        prefix = f"layers.{index}."
        loaded = {name.removeprefix(prefix): checkpoint.load(name) for name in names if name.startswith(prefix)}
        layer = {name: kernels.pack("int8", t) if t.ndim == 2 else t for name, t in loaded.items()}
        run_layer(config, layer, hidden, kernels)
    return head_input_sum(config, checkpoint.load("norm"), hidden, kernels)


def head_input_sum(config: ModelConfig, norm: Float, hidden: Float, kernels: Kernels) -> Float:
    """x^T x of the head's inputs, the final norm's outputs; errors as `layer_input_sums`."""
    total = np.zeros((config.hidden_size, config.hidden_size), np.float32)
    for part in _batches(hidden):
        x = kernels.rms_norm(part.reshape(-1, config.hidden_size), norm, config.rms_norm_eps)
        _add_products(total, x)
    return _finite(total, "lm_head")


def _add_products(total: Float, x: Float) -> None:
    """total += x^T x"""
    with np.errstate(over="ignore", invalid="ignore"):  # see `_finite`
        total += x.T @ x


def _finite(total: Float, name: str) -> Float:
    if not np.isfinite(total).all():
        raise CheckpointError(
            f"the inputs of {name} overflow on the calibration text: the weights are damaged, or not a model's; "
            "--no-calibrate takes them as they are"
        )
    return total


def run_layer(config: ModelConfig, layer: Layer, hidden: Float, kernels: Kernels) -> None:
    """One layer in place on `hidden` [sequences, tokens, H]; each sequence starts with an empty context.

    Args:
        layer: its tensors, named as the fields of `LayerWeights`.
    """
    one = replace(config, num_hidden_layers=1)
    weights = LayerWeights(**cast("dict[str, Any]", {"qkv_bias": None, **layer}))
    unused = cast(PackedWeight, None)  # embedding and head: only the layers run
    model = Transformer(one, ModelWeights(unused, (weights,), np.empty(0, np.float32), unused), kernels)
    for part in _batches(hidden):
        count, length = part.shape[:2]
        cache = KVCache(one, count * pages_for(length), "fp32")
        pages = [cache.allocate(pages_for(length)) for _ in range(count)]
        batch = ForwardBatch.build(pages, [0] * count, [length] * count)
        part[:] = model.run_layers(part.reshape(count * length, -1), batch, cache).reshape(part.shape)


def _batches(hidden: Float) -> Iterable[Float]:
    """Views of some sequences of `hidden` each."""
    step = max(1, _BATCH_ROWS // hidden.shape[1])
    return (hidden[start : start + step] for start in range(0, len(hidden), step))
