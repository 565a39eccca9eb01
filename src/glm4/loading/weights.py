"""From a checkpoint on disk to a `Transformer` in memory, one tensor at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from glm4.checkpoints.packed_format import PackedSource
from glm4.checkpoints.tensor_names import CHANNEL_SCALES, FREQUENT_TOKENS
from glm4.kernels.base import Kernels
from glm4.kernels.formats import ROW_BLOCK, PackedWeight, empty_packed, random_packed
from glm4.kernels.group_codes import GroupCodes, pack_codes
from glm4.model.config import ModelConfig
from glm4.model.layers import FrequentTokens, LayerWeights, ModelWeights
from glm4.model.precision import FREQUENT_HEAD, Precision, matrix_shapes, weight_nbytes
from glm4.model.transformer import Transformer

Float = NDArray[np.float32]
Progress = Callable[[str, float, float], None]

SLAB_NBYTES = 32 << 20
MAX_READERS = 4


class CanonicalTensors(Protocol):
    """What the loader needs of a checkpoint (`model.weights.checkpoint.Checkpoint` is one)."""

    @property
    def config(self) -> ModelConfig:
        """Shape and constants."""

    @property
    def model_type(self) -> str:
        """Whose names and row order its LoRA adapters have: "chatglm", "glm", "glm4", "llama" or "qwen2"."""

    def check(self) -> None:
        """Raise TensorError when tensors are missing, left over or misshapen."""

    def tensor_names(self) -> list[str]:
        """Canonical names in model order."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a canonical tensor."""

    def load(self, name: str) -> Float:
        """A whole canonical tensor."""

    def load_rows(self, name: str, start: int, stop: int) -> Float:
        """Some rows of one."""

    def has_codes(self, name: str) -> bool:
        """Whether the file holds a matrix as 4-bit codes that int4 can keep."""

    def load_codes(self, name: str, start: int, stop: int) -> GroupCodes:
        """Some rows of such a matrix."""

    @property
    def stored_precision(self) -> Precision | None:
        """What dtype "stored" means for this checkpoint, if anything."""

    @property
    def packed(self) -> PackedSource | None:
        """The matrices as the kernels read them, where the checkpoint holds them so."""


def load_model(
    checkpoint: CanonicalTensors, precision: Precision, kernels: Kernels, progress: Progress | None = None
) -> Transformer:
    """Read, pack and assemble all weights.

    Matrices are read and packed a slab of rows at a time, the next slab being read meanwhile, so that beside the packed
    weights only some 100 MB are held, however large a matrix is. A packed checkpoint of that precision is used where
    it lies, in the mapped file: no copy, read-only.

    An int4 matrix that the file holds as 4-bit codes keeps them; nothing is rounded twice.

    Args:
        progress: called with ("loading", done, total) in packed bytes.

    Raises:
        TensorError: tensors are missing, left over or misshapen, raised before any data is read; or a packed
            checkpoint is damaged.
    """
    checkpoint.check()
    if checkpoint.packed is not None and checkpoint.packed.precision == precision:
        return _load_packed(checkpoint.config, checkpoint.packed, kernels, progress)
    total, done = weight_nbytes(checkpoint.config, precision), 0
    packed: dict[str, PackedWeight] = {}
    vectors: dict[str, Float] = {}
    names = checkpoint.tensor_names()
    for slab, values in read_stored(checkpoint, names, kept_codes(checkpoint, precision)):
        if isinstance(values, np.ndarray) and values.ndim == 1:
            vectors[slab.name] = values
            done += values.nbytes
        else:
            if slab.start == 0:
                packed[slab.name] = empty_packed(precision.format_of(slab.name), *checkpoint.shape(slab.name))
            part = pack_stored(packed[slab.name].format, values, kernels)
            packed[slab.name].place(slab.start, part)
            done += part.nbytes
        if progress is not None:
            progress("loading", min(done, total), total)
    if progress is not None:
        progress("loading", total, total)
    return Transformer(checkpoint.config, assemble(checkpoint.config, packed, vectors), kernels)


def _load_packed(config: ModelConfig, source: PackedSource, kernels: Kernels, progress: Progress | None) -> Transformer:
    """Check and map every tensor. Reading for the checksums also brings the pages in, about in file order."""
    source.prefer_huge_pages()

    def read(name: str) -> PackedWeight | Float:
        return source.vector(name) if len(source.info(name).shape) == 1 else source.weight(name)

    packed: dict[str, PackedWeight] = {}
    vectors: dict[str, Float] = {}
    total, done = sum(source.info(name).nbytes for name in source.names()), 0
    # One core reads half of what the memory delivers; NumPy adds up without holding Python's lock.
    with ThreadPoolExecutor(min(kernels.num_threads(), MAX_READERS)) as pool:
        for name, tensor in zip(source.names(), pool.map(read, source.names()), strict=True):
            if isinstance(tensor, PackedWeight):
                packed[name] = tensor
                if name == "embed_tokens" and not config.tie_word_embeddings:
                    source.release(name)  # read whole for its checksum; a text needs a few of its rows
            else:
                vectors[name] = tensor
            done += source.info(name).nbytes
            if progress is not None:
                progress("loading", done, total)
    return Transformer(config, assemble(config, packed, vectors), kernels)


@dataclass(frozen=True)
class Slab:
    """Rows start..stop of a tensor."""

    name: str
    start: int
    stop: int


def _slabs(checkpoint: CanonicalTensors, names: Iterable[str]) -> Iterator[Slab]:
    for name in names:
        shape = checkpoint.shape(name)
        # A multiple of the row block, so that each slab packs to whole blocks.
        step = max(1, SLAB_NBYTES // (4 * shape[-1] * ROW_BLOCK)) * ROW_BLOCK if len(shape) == 2 else shape[0]
        for start in range(0, shape[0], step):
            yield Slab(name, start, min(start + step, shape[0]))


def read_slabs(checkpoint: CanonicalTensors, names: Iterable[str]) -> Iterator[tuple[Slab, Float]]:
    """Yield tensors in order, matrices a slab of whole row blocks at a time, while the next one is being read."""
    return _read_ahead(_slabs(checkpoint, names), lambda slab: _read(checkpoint, slab))


def kept_codes(checkpoint: CanonicalTensors, precision: Precision) -> set[str]:
    """The matrices that become int4 and that the file holds as 4-bit codes: none of them need be rounded again."""
    return {
        name
        for name in checkpoint.tensor_names()
        if len(checkpoint.shape(name)) == 2 and precision.format_of(name) == "int4" and checkpoint.has_codes(name)
    }


def read_stored(
    checkpoint: CanonicalTensors, names: Iterable[str], coded: Collection[str]
) -> Iterator[tuple[Slab, Float | GroupCodes]]:
    """`read_slabs`, with the matrices `coded` as their 4-bit codes."""

    def read(slab: Slab) -> Float | GroupCodes:
        if slab.name in coded:
            return checkpoint.load_codes(slab.name, slab.start, slab.stop)
        return _read(checkpoint, slab)

    return _read_ahead(_slabs(checkpoint, names), read)


def pack_stored(format: str, stored: Float | GroupCodes, kernels: Kernels) -> PackedWeight:
    """What `read_stored` yields of a matrix, packed: its codes as they are, or rounded to the format."""
    return pack_codes(stored) if isinstance(stored, GroupCodes) else kernels.pack(format, stored)


def floats(stored: Float | GroupCodes) -> Float:
    """What `read_stored` yields, as numbers."""
    return stored.values() if isinstance(stored, GroupCodes) else stored


def _read(checkpoint: CanonicalTensors, slab: Slab) -> Float:
    whole = slab.stop - slab.start == checkpoint.shape(slab.name)[0]
    return checkpoint.load(slab.name) if whole else checkpoint.load_rows(slab.name, slab.start, slab.stop)


_T = TypeVar("_T")


def _read_ahead(slabs: Iterable[Slab], read: Callable[[Slab], _T]) -> Iterator[tuple[Slab, _T]]:
    """Slabs and what `read` makes of them, in order, while the next one is being read."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending: deque[tuple[Slab, Future[_T]]] = deque()
        for slab in slabs:
            pending.append((slab, pool.submit(read, slab)))
            if len(pending) > 1:
                ready, future = pending.popleft()
                yield ready, future.result()
        for ready, future in pending:
            yield ready, future.result()


def assemble(config: ModelConfig, packed: dict[str, PackedWeight], vectors: dict[str, Float]) -> ModelWeights:
    """The weights of a model from its canonical tensors."""
    layers = tuple(
        LayerWeights(
            input_layernorm=vectors[f"layers.{i}.input_layernorm"],
            qkv=packed[f"layers.{i}.qkv"],
            qkv_bias=vectors.get(f"layers.{i}.qkv_bias"),
            o=packed[f"layers.{i}.o"],
            post_attention_layernorm=vectors[f"layers.{i}.post_attention_layernorm"],
            gate_up=packed[f"layers.{i}.gate_up"],
            down=packed[f"layers.{i}.down"],
            post_self_attn_layernorm=vectors.get(f"layers.{i}.post_self_attn_layernorm"),
            post_mlp_layernorm=vectors.get(f"layers.{i}.post_mlp_layernorm"),
            **{name: vectors.get(f"layers.{i}.{name}") for name in CHANNEL_SCALES},
        )
        for i in range(config.num_hidden_layers)
    )
    embedding, frequent = packed["embed_tokens"], None
    if FREQUENT_HEAD in packed:
        frequent = FrequentTokens(vectors[FREQUENT_TOKENS].astype(np.intp), packed[FREQUENT_HEAD])
    return ModelWeights(embedding, layers, vectors["norm"], packed.get("lm_head", embedding), frequent)


def canonical_tensors(weights: ModelWeights, config: ModelConfig) -> dict[str, PackedWeight | Float]:
    """All weights of a model under their canonical names: matrices packed, vectors float32. The inverse of loading."""
    tensors: dict[str, PackedWeight | Float | None] = {"embed_tokens": weights.embed_tokens}
    for i, layer in enumerate(weights.layers):
        tensors |= {f"layers.{i}.{field.name}": getattr(layer, field.name) for field in fields(layer)}
    tensors["norm"] = weights.norm
    if not config.tie_word_embeddings:
        tensors["lm_head"] = weights.lm_head
    if weights.frequent is not None:
        tensors[FREQUENT_HEAD] = weights.frequent.head
        tensors[FREQUENT_TOKENS] = weights.frequent.ids.astype(np.float32)
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def random_model(config: ModelConfig, precision: Precision, kernels: Kernels, seed: int = 0) -> Transformer:
    """A model of the given shape with random weights, built straight in the packed format (for benchmarks)."""
    rng = np.random.default_rng(seed)
    packed: dict[str, PackedWeight] = {}
    vectors: dict[str, Float] = {"norm": np.ones(config.hidden_size, np.float32)}
    norms = ["input_layernorm", "post_attention_layernorm"]
    if config.architecture == "glm4":
        norms += ["post_self_attn_layernorm", "post_mlp_layernorm"]
    for i in range(config.num_hidden_layers):
        for name, (rows, cols) in matrix_shapes(config).items():
            full = f"layers.{i}.{name}"
            packed[full] = random_packed(precision.format_of(full), rows, cols, rng, cols**-0.5)
        for name in norms:
            vectors[f"layers.{i}.{name}"] = np.ones(config.hidden_size, np.float32)
        if config.attention_bias:
            size = config.query_size + 2 * config.key_value_size
            vectors[f"layers.{i}.qkv_bias"] = (0.02 * rng.standard_normal(size)).astype(np.float32)
    shape = (config.vocab_size, config.hidden_size)
    packed["embed_tokens"] = random_packed(precision.format_of("embed_tokens"), *shape, rng, 1.0)
    if not config.tie_word_embeddings:
        packed["lm_head"] = random_packed(precision.format_of("lm_head"), *shape, rng, config.hidden_size**-0.5)
    return Transformer(config, assemble(config, packed, vectors), kernels)
