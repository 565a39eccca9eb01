"""Quantizes a model layer by layer, each matrix with statistics of its inputs, and corrects earlier errors.

The hidden states of the calibration text are carried from layer to layer twice: through the original model, and
through the model as rounded so far. For each layer:

1. The exact states pass through it (in int8, near-exactly); the inputs of its matrices are kept.
2. Its channels are rescaled (`channel_scales.py`).
3. The rounded model's states pass through it, and each matrix is rounded once its inputs are known, before it is
   applied (`layer_rounder.py`).

At most one layer, its inputs and one matrix's statistics are held at a time. A matrix that the text does not pass
through is rounded plainly.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from glm4.kernels.base import Kernels
from glm4.kernels.formats import PackedWeight, empty_packed
from glm4.kernels.group_codes import pack_codes
from glm4.loading.weights import CanonicalTensors, floats, kept_codes, pack_stored, read_stored
from glm4.model.config import ModelConfig
from glm4.model.forward_batch import ForwardBatch
from glm4.model.kv_cache import KVCache, pages_for
from glm4.model.layers import Float, ModelWeights, Tensor
from glm4.model.precision import PRECISIONS, Precision
from glm4.model.tensors import FREQUENT_HEAD, FREQUENT_TOKENS, head_name
from glm4.model.transformer import Transformer
from glm4.quantization.channel_scales import POWERS, rescale_layer, row_factors
from glm4.quantization.frequent_tokens import FREQUENT_FORMAT, frequent_tokens
from glm4.quantization.layer_rounder import (
    InputRecorder,
    LayerRounder,
    corrects,
    input_energy,
    input_sum,
    output_error,
    ridge,
)
from glm4.quantization.rounding import damping_for, factorize, round_compensated

Layer = Mapping[str, Tensor]  # by the names after "layers.{i}."

_BATCH_ROWS = 4096  # rows per forward pass


@dataclass(frozen=True)
class Part:
    """A finished piece: a vector, or some rows of a matrix.

    Attributes:
        name: canonical name; a large matrix comes in several parts, in order.
        source: float32, the vector or the rows, after channels were rescaled.
        packed: the rows in the weight format; None for a vector.
        first: whether these are the first rows.
        output_error: squared error and squared norm of the outputs on the calibration text, summed over a sample of
            the rows; None if the rounding was not calibrated. Of the rounding alone: what a correction adds to the
            weights does not count as an error.
    """

    name: str
    source: Float
    packed: PackedWeight | None = None
    first: bool = True
    output_error: tuple[float, float] | None = None


def plain_parts(
    checkpoint: CanonicalTensors, names: Iterable[str], precision: Precision, kernels: Kernels
) -> Iterator[Part]:
    """Tensors of a model, each weight rounded by itself, or its code kept."""
    for slab, values in read_stored(checkpoint, names, kept_codes(checkpoint, precision)):
        is_vector = isinstance(values, np.ndarray) and values.ndim == 1
        packed = None if is_vector else pack_stored(precision.format_of(slab.name), values, kernels)
        yield Part(slab.name, floats(values), packed, slab.start == 0)


def calibrated(
    checkpoint: CanonicalTensors, format: str, ids: NDArray[np.int32], kernels: Kernels, frequent: int = 0
) -> Iterator[Part]:
    """All tensors of a model, in model order; the embedding plain, the others rounded with error compensation.

    The channels of each layer are rescaled; the factors follow its other tensors.

    An int4 matrix that is 4-bit codes in the file keeps them: no rounding comes as close.

    A matrix that is both embedding and head is rounded as a head: errors of logits matter more than those of inputs.

    Args:
        checkpoint: the model, in any form that yields float32 tensors.
        format: weight format of every matrix, a key of `rounding.GRIDS`.
        ids: calibration text, [sequences, tokens]; each sequence is independent.
        frequent: how many rows of the head are repeated at the end (`frequent_tokens.py`).
    """
    config, norm = checkpoint.config, checkpoint.load("norm")
    coded = kept_codes(checkpoint, PRECISIONS[format])
    table = empty_packed(format, *checkpoint.shape("embed_tokens"))
    exact = _embedded(_near_table(checkpoint, "embed_tokens", kernels), ids, kernels)
    statistics = _tied_head(checkpoint, exact, norm, kernels) if config.tie_word_embeddings else None
    yield from _table_parts(checkpoint, "embed_tokens", format, coded, statistics, kernels, table)
    hidden = _embedded(table, ids, kernels)
    del table
    statistics = None
    for index in range(config.num_hidden_layers):
        yield from _layer_parts(checkpoint, index, format, coded, exact, hidden, kernels)
    for name in checkpoint.tensor_names()[1:]:
        if name == "lm_head":
            statistics = _untied_head(config, norm, exact, hidden, format, kernels)
            yield from _table_parts(checkpoint, name, format, coded, statistics, kernels, None)
        elif not name.startswith("layers."):
            yield from plain_parts(checkpoint, [name], PRECISIONS[format], kernels)
    if frequent:
        shift = None if statistics is None else statistics.shift
        yield from _frequent_parts(checkpoint, frequent, _head_input(config, norm, exact, kernels), shift, kernels)


def _frequent_parts(
    checkpoint: CanonicalTensors, count: int, x: Float, shift: Float | None, kernels: Kernels
) -> Iterator[Part]:
    """The repeated rows of the head, for the exact model's head inputs `x` [tokens, H]; `shift` as in `HeadInputs`."""
    name = head_name(checkpoint.config)
    ids = frequent_tokens(x, _near_table(checkpoint, name, kernels), count, kernels)
    slabs = read_stored(checkpoint, [name])
    rows = np.concatenate([floats(part)[ids[(ids >= s.start) & (ids < s.stop)] - s.start] for s, part in slabs])
    target = rows if shift is None else rows + rows @ shift
    yield Part(FREQUENT_HEAD, rows, kernels.pack(FREQUENT_FORMAT, target))
    yield Part(FREQUENT_TOKENS, ids.astype(np.float32))


def _layer_parts(
    checkpoint: CanonicalTensors,
    index: int,
    format: str,
    coded: Collection[str],
    exact: Float,
    hidden: Float,
    kernels: Kernels,
) -> Iterator[Part]:
    """One layer's tensors; the states `exact` and `hidden` [sequences, tokens, H] pass through it, in place."""
    config, prefix = checkpoint.config, f"layers.{index}."
    tensors = _layer_tensors(checkpoint, index)
    hidden_error = (exact - hidden).reshape(-1, config.hidden_size)
    inputs, attended = exact_inputs(config, near_layer(tensors, kernels), exact, kernels)
    energy = {name: input_energy(x, name) for name, x in inputs.items()}
    rescale_layer(tensors, energy, POWERS[format], [name for name in tensors if prefix + name in coded])
    for name, x in inputs.items():
        np.divide(x, tensors.get(name + "_channel_scale", np.float32(1)), out=x)

    def codes(name: str) -> PackedWeight | None:
        if prefix + name not in coded:
            return None
        kept = checkpoint.load_codes(prefix + name, 0, len(tensors[name]))
        return pack_codes(kept.scaled(row_factors(tensors)) if name == "gate_up" else kept)

    adds_plainly = "post_self_attn_layernorm" not in tensors
    rounder = LayerRounder(format, kernels, tensors, inputs, attended if adds_plainly else None, hidden_error, codes)
    run_layer(config, tensors, hidden, cast(Kernels, rounder), hidden.shape[0] * hidden.shape[1])
    for name, tensor in tensors.items():
        packed, error = rounder.rounded.get(name, (None, None))
        if packed is None and tensor.ndim == 2:
            packed = codes(name) or kernels.pack(format, tensor)
        yield Part(prefix + name, tensor, packed, True, error)


def _layer_tensors(checkpoint: CanonicalTensors, index: int) -> dict[str, Float]:
    """By the names after "layers.{i}."."""
    prefix = f"layers.{index}."
    names = [name for name in checkpoint.tensor_names() if name.startswith(prefix)]
    return {name.removeprefix(prefix): checkpoint.load(name) for name in names}


def near_layer(tensors: Mapping[str, Float], kernels: Kernels) -> Layer:
    """A layer in int8 instead of float32: faster, and inputs that differ by a thousandth give the same statistics."""
    return {name: kernels.pack("int8", t) if t.ndim == 2 else t for name, t in tensors.items()}


def _near_table(checkpoint: CanonicalTensors, name: str, kernels: Kernels) -> PackedWeight:
    """Embedding or head in int8."""
    table = empty_packed("int8", *checkpoint.shape(name))
    for slab, values in read_stored(checkpoint, [name]):
        table.place(slab.start, pack_stored("int8", values, kernels))
    return table


def _table_parts(
    checkpoint: CanonicalTensors,
    name: str,
    format: str,
    coded: Collection[str],
    statistics: HeadInputs | None,
    kernels: Kernels,
    whole: PackedWeight | None,
) -> Iterator[Part]:
    """Embedding or head, some rows at a time; calibrated if there are statistics, collected in `whole` if given."""
    factors = None if statistics is None or name in coded else factorize(statistics.hessian, format, statistics.damping)
    for slab, stored in read_stored(checkpoint, [name], coded):
        values = floats(stored)
        target = values
        if factors is None:
            packed = pack_stored(format, stored, kernels)
        else:
            if statistics is not None and statistics.shift is not None:
                target = values + values @ statistics.shift
            packed = round_compensated(format, target, factors, kernels)
        if whole is not None:
            whole.place(slab.start, packed)
        error = None if statistics is None else output_error(target, packed, statistics.hessian, kernels)
        yield Part(name, values, packed, slab.start == 0, error)


def _embedded(table: PackedWeight, ids: NDArray[np.int32], kernels: Kernels) -> Float:
    """Embeddings [sequences, tokens, H]."""
    return kernels.embedding(table, np.ascontiguousarray(ids.reshape(-1))).reshape(*ids.shape, -1)


def exact_inputs(config: ModelConfig, layer: Layer, hidden: Float, kernels: Kernels) -> tuple[dict[str, Float], Float]:
    """Inputs of each matrix that a layer applies, in that order, [tokens, K] each, and outputs of `o`.

    `hidden` passes through the layer, in place.
    """
    recorder = InputRecorder(kernels, {id(tensor): name for name, tensor in layer.items()})
    run_layer(config, layer, hidden, cast(Kernels, recorder))
    # One after another, so that only one is in memory twice.
    inputs = {name: np.concatenate(recorder.inputs.pop(name)) for name in list(recorder.inputs)}
    return inputs, np.concatenate(recorder.attended)


@dataclass(frozen=True)
class HeadInputs:
    """Statistics of a head's inputs.

    Attributes:
        hessian: sum x x^T, [H, H].
        damping: as returned by `rounding.damping_for`.
        shift: the correction is W times this, [H, H]; None means no correction.
    """

    hessian: Float
    damping: float
    shift: Float | None = None


def _tied_head(checkpoint: CanonicalTensors, embedded: Float, norm: Float, kernels: Kernels) -> HeadInputs:
    """For a head that is needed before the layers are rounded: from the exact model, in int8."""
    config, hidden = checkpoint.config, embedded.copy()
    for index in range(config.num_hidden_layers):
        run_layer(config, near_layer(_layer_tensors(checkpoint, index), kernels), hidden, kernels)
    x = _head_input(config, norm, hidden, kernels)
    return HeadInputs(input_sum(x, "lm_head"), damping_for(*x.shape))


def _untied_head(
    config: ModelConfig, norm: Float, exact: Float, hidden: Float, format: str, kernels: Kernels
) -> HeadInputs:
    x = _head_input(config, norm, hidden, kernels)
    hessian, damping = input_sum(x, "lm_head"), damping_for(*x.shape)
    if not corrects(format, *x.shape):
        return HeadInputs(hessian, damping)
    lost = _head_input(config, norm, exact, kernels) - x
    return HeadInputs(hessian, damping, ridge(lost.T @ x, hessian, damping))


def _head_input(config: ModelConfig, norm: Float, hidden: Float, kernels: Kernels) -> Float:
    """The final norm's outputs, [tokens, H]."""
    return kernels.rms_norm(hidden.reshape(-1, config.hidden_size), norm, config.rms_norm_eps)


def run_layer(
    config: ModelConfig, layer: Layer, hidden: Float, kernels: Kernels, batch_rows: int = _BATCH_ROWS
) -> None:
    """One layer in place on `hidden` [sequences, tokens, H]; each sequence starts with an empty context.

    Args:
        batch_rows: approximate number of tokens that pass through the layer at a time.
    """
    one = replace(config, num_hidden_layers=1)
    model = Transformer(one, ModelWeights({f"layers.0.{name}": tensor for name, tensor in layer.items()}), kernels)
    step = max(1, batch_rows // hidden.shape[1])
    for start in range(0, len(hidden), step):
        part = hidden[start : start + step]
        count, length = part.shape[:2]
        cache = KVCache(one, count * pages_for(length), "fp32")
        pages = [cache.allocate(pages_for(length)) for _ in range(count)]
        batch = ForwardBatch.build(pages, [0] * count, [length] * count)
        part[:] = model.run_layers(part.reshape(count * length, -1), batch, cache).reshape(part.shape)
