"""From a checkpoint on disk to a `Transformer` in memory, one tensor at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from glm4.checkpoints.packed_format import PackedSource
from glm4.kernels.base import Kernels
from glm4.kernels.formats import ROW_BLOCK, PackedWeight, empty_packed, random_packed
from glm4.kernels.group_codes import GroupCodes, pack_codes
from glm4.model.config import ModelConfig
from glm4.model.layers import Float, ModelWeights, Tensor
from glm4.model.precision import Precision, weight_nbytes
from glm4.model.tensors import model_tensors
from glm4.model.transformer import Transformer

Progress = Callable[[str, float, float], None]

SLAB_NBYTES = 32 << 20
MAX_READERS = 4


class CanonicalTensors(Protocol):
    """What the loader needs from a checkpoint (`checkpoints.checkpoint.Checkpoint` is one)."""

    @property
    def config(self) -> ModelConfig:
        """Shape and constants."""

    @property
    def model_type(self) -> str:
        """Whose names and row order its LoRA adapters use: "chatglm", "glm", "glm4", "llama" or "qwen2"."""

    def check(self) -> None:
        """Raise TensorError when tensors are missing, left over or misshapen."""

    def tensor_names(self) -> list[str]:
        """Canonical names in model order."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a canonical tensor."""

    def load(self, name: str) -> Float:
        """A whole canonical tensor."""

    def load_rows(self, name: str, start: int, stop: int) -> Float:
        """Some rows of a canonical tensor."""

    def has_codes(self, name: str) -> bool:
        """Whether the file holds a matrix as 4-bit codes that int4 can keep."""

    def load_codes(self, name: str, start: int, stop: int) -> GroupCodes:
        """Some rows of such a matrix."""

    @property
    def stored_precision(self) -> Precision | None:
        """The file's own precision: that of a packed checkpoint, or dtype "stored" for 4-bit codes."""

    @property
    def packed(self) -> PackedSource | None:
        """The matrices as the kernels read them, if the checkpoint is packed."""


def load_model(
    checkpoint: CanonicalTensors, precision: Precision, kernels: Kernels, progress: Progress | None = None
) -> Transformer:
    """Read, pack and assemble all weights.

    Matrices are read and packed a slab of rows at a time, while the next slab is being read, so that only some 100 MB
    are held in addition to the packed weights, however large a matrix is. A packed checkpoint of that precision is
    used in place, in the mapped file: no copy, read-only.

    An int4 matrix that is 4-bit codes in the file keeps them; nothing is rounded twice.

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
    tensors: dict[str, Tensor] = {}
    for slab, values in read_stored(checkpoint, checkpoint.tensor_names(), kept_codes(checkpoint, precision)):
        if isinstance(values, np.ndarray) and values.ndim == 1:
            tensors[slab.name] = values
            done += values.nbytes
        else:
            part = pack_stored(precision.format_of(slab.name), values, kernels)
            if slab.start == 0:
                tensors[slab.name] = whole = empty_packed(part.format, *checkpoint.shape(slab.name))
            whole.place(slab.start, part)
            done += part.nbytes
        if progress is not None:
            progress("loading", done, total)
    return Transformer(checkpoint.config, ModelWeights(tensors), kernels)


def _load_packed(config: ModelConfig, source: PackedSource, kernels: Kernels, progress: Progress | None) -> Transformer:
    """Check and map every tensor. Reading for the checksums also brings the pages in, roughly in file order."""
    source.prefer_huge_pages()

    def read(name: str) -> Tensor:
        return source.vector(name) if len(source.info(name).shape) == 1 else source.weight(name)

    tensors: dict[str, Tensor] = {}
    total, done = sum(source.info(name).nbytes for name in source.names()), 0
    # One core reads half of what memory delivers; NumPy sums without holding Python's lock.
    with ThreadPoolExecutor(min(kernels.num_threads(), MAX_READERS)) as pool:
        for name, tensor in zip(source.names(), pool.map(read, source.names()), strict=True):
            tensors[name] = tensor
            if name == "embed_tokens" and not config.tie_word_embeddings:
                source.release(name)  # read whole for its checksum; a text needs only a few of its rows
            done += source.info(name).nbytes
            if progress is not None:
                progress("loading", done, total)
    return Transformer(config, ModelWeights(tensors), kernels)


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


def kept_codes(checkpoint: CanonicalTensors, precision: Precision) -> set[str]:
    """The int4 matrices that are 4-bit codes in the file, so that none of them need be rounded again."""
    return {
        name
        for name in checkpoint.tensor_names()
        if len(checkpoint.shape(name)) == 2 and precision.format_of(name) == "int4" and checkpoint.has_codes(name)
    }


def read_stored(
    checkpoint: CanonicalTensors, names: Iterable[str], coded: Collection[str] = ()
) -> Iterator[tuple[Slab, Float | GroupCodes]]:
    """Yield tensors in order, matrices a slab of whole row blocks at a time, while the next one is being read.

    Args:
        coded: matrices to yield as their 4-bit codes.
    """

    def read(slab: Slab) -> Float | GroupCodes:
        if slab.name in coded:
            return checkpoint.load_codes(slab.name, slab.start, slab.stop)
        whole = slab.stop - slab.start == checkpoint.shape(slab.name)[0]
        return checkpoint.load(slab.name) if whole else checkpoint.load_rows(slab.name, slab.start, slab.stop)

    with ThreadPoolExecutor(max_workers=1) as pool:
        pending: deque[tuple[Slab, Future[Float | GroupCodes]]] = deque()
        for slab in _slabs(checkpoint, names):
            pending.append((slab, pool.submit(read, slab)))
            if len(pending) > 1:
                ready, future = pending.popleft()
                yield ready, future.result()
        for ready, future in pending:
            yield ready, future.result()


def pack_stored(format: str, stored: Float | GroupCodes, kernels: Kernels) -> PackedWeight:
    """A slab of `read_stored`, packed: its codes as they are, or rounded to the format."""
    return pack_codes(stored) if isinstance(stored, GroupCodes) else kernels.pack(format, stored)


def floats(stored: Float | GroupCodes) -> Float:
    """A slab of `read_stored` as numbers."""
    return stored.values() if isinstance(stored, GroupCodes) else stored


def random_model(config: ModelConfig, precision: Precision, kernels: Kernels, seed: int = 0) -> Transformer:
    """A model of the given shape with random weights, built directly in the packed format (for benchmarks)."""
    return Transformer(config, ModelWeights(random_tensors(config, precision, seed)), kernels)


def random_tensors(config: ModelConfig, precision: Precision, seed: int = 0, prefix: str = "") -> dict[str, Tensor]:
    """Random weights by canonical name: those of a whole model, or the part of it whose names begin with `prefix`."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Tensor] = {}
    for name, tensor in model_tensors(config).items():
        if not name.startswith(prefix):
            continue
        if len(tensor.shape) == 2:
            scale = 1.0 if name == "embed_tokens" else tensor.shape[1] ** -0.5
            tensors[name] = random_packed(precision.format_of(name), *tensor.shape, rng, scale)
        elif tensor.row.part == "norms" or name.endswith("norm"):
            tensors[name] = np.ones(tensor.shape, np.float32)
        else:
            tensors[name] = (0.02 * rng.standard_normal(tensor.shape)).astype(np.float32)
    return tensors
