"""Whether a merged model computes what its base and the adapter do: by every adapted matrix, and by whole models.

The matrices are compared as they were written: M x with W x + B (A x) for random x, in float64, without forming B A.
What rounding to the written type explains is allowed, and no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm4.checkpoints.checkpoint import Checkpoint
from glm4.checkpoints.peft_adapter import AdapterFile
from glm4.errors import OutOfMemoryError
from glm4.export.merged import adapted_matrices, factors_of
from glm4.export.targets import Progress
from glm4.kernels import get_kernels
from glm4.loading.lora import read_adapter
from glm4.loading.memory_estimate import Wanted, choose_precision
from glm4.loading.weights import load_model
from glm4.model.forward_batch import ForwardBatch
from glm4.model.kv_cache import KVCache, pages_for
from glm4.model.lora import LoraAdapter
from glm4.model.precision import PRECISIONS
from glm4.model.transformer import Transformer
from glm4.requests.processor import Processor
from glm4.system.memory import Room

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]

_SLAB_NBYTES = 32 << 20
_PROBES = 8
# Mean errors of a product, relative to what its terms add up to at random. A stored number is off by a uniform error of
# at most 2**-8 (bf16) or 2**-24 of its size; float32 also has the errors of the sums that were stored.
_LIMITS = {"bf16": 0.9 * 2**-8, "fp32": 64 * 2**-24}
_LOGIT_LIMIT = 1e-4  # of the range of the logits, for fp32: what sums in another order give, many layers deep
_TEXTS = (
    "The capital of France is Paris, and the capital of",
    "北京是中国的首都，上海是",
    "def add(a, b):\n    return",
)
_MAX_TOKENS = 32


@dataclass(frozen=True)
class MatrixCheck:
    """The adapted matrices as written.

    Attributes:
        count: how many.
        error: the largest mean error of one, relative to the size of its products.
        limit: what rounding explains.
        worst: which one.
    """

    count: int
    error: float
    limit: float
    worst: str

    @property
    def passed(self) -> bool:
        """Whether every matrix is what it should be."""
        return self.error <= self.limit

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.worst} is off by {self.error:.1e} of its size, more than the {self.limit:.1e} of rounding"


@dataclass(frozen=True)
class LogitCheck:
    """Logits of the merged model and of the base with the adapter, in our engine with fp32 weights.

    Attributes:
        difference: the largest, as a share of the range of the logits.
        effect: the same between the base with and without the adapter.
        tokens: that were compared.
    """

    difference: float
    effect: float
    tokens: int

    def passes(self, dtype: str) -> bool:
        """Whether the difference is that of sums in another order; what rounding to bf16 does is for the user."""
        return dtype != "fp32" or self.difference <= _LOGIT_LIMIT

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"logits differ by {self.difference:.1e} of their range, more than {_LOGIT_LIMIT:.0e}"


def check_matrices(
    base: Checkpoint, adapter: AdapterFile, written: Checkpoint, dtype: str, progress: Progress | None = None
) -> MatrixCheck:
    """Compare every adapted matrix of a merged checkpoint, some 100 MB at a time."""
    rng = np.random.default_rng(0)
    names = adapted_matrices(adapter)
    replaced = sorted(adapter.vision.replaced) if adapter.vision is not None else []
    worst, largest = "", -1.0
    for done, name in enumerate([*names, *replaced], start=1):
        if name in replaced:
            error = _replaced_error(adapter, written, name)
        else:
            error = _matrix_error(base, adapter, written, name, rng.standard_normal((base.shape(name)[1], _PROBES)))
        if not error <= largest:  # a NaN is the worst
            worst, largest = name, error
        if progress is not None:
            progress("checking", done, len(names) + len(replaced))
    return MatrixCheck(len(names) + len(replaced), largest, _LIMITS[dtype], worst)


def _replaced_error(adapter: AdapterFile, written: Checkpoint, name: str) -> float:
    """The mean error of a tensor that the adapter has in full, relative to the size of its numbers."""
    assert adapter.vision is not None  # noqa: S101 (it has this tensor)
    wanted, found = (each.astype(np.float64) for each in (adapter.vision.read(name), written.load(name)))
    size = float(np.square(wanted).sum())
    error = float(np.square(found.reshape(wanted.shape) - wanted).sum())
    return float(np.sqrt(error / size)) if size else float(error > 0)


def _matrix_error(base: Checkpoint, adapter: AdapterFile, written: Checkpoint, name: str, x: Float64) -> float:
    """The mean error of a matrix's products, relative to the mean size of products with random signs."""
    errors = sizes = 0.0
    for start, stop in _slabs(*base.shape(name)):
        w, m = (each.load_rows(name, start, stop).astype(np.float64) for each in (base, written))
        wanted = w @ x
        if (factors := factors_of(adapter, name, start, stop)) is not None:
            a, b = factors.a.astype(np.float64), factors.b.astype(np.float64)
            wanted += b @ (a @ x)
            if factors.norms is not None:
                wanted *= _dora_factors(w, a, b, factors.norms.astype(np.float64))[:, None]
        errors += float(np.square(m @ x - wanted).sum())
        sizes += float((np.square(m) @ np.square(x)).sum())
    return float(np.sqrt(errors / sizes)) if sizes else float(errors > 0)


def _dora_factors(w: Float64, a: Float64, b: Float64, norms: Float64) -> Float64:
    """What rows of W + B A are multiplied by to have these norms; 1 where the norm is NaN. B A is not formed."""
    squares = np.square(w).sum(axis=1) + 2 * ((w @ a.T) * b).sum(axis=1) + ((b @ (a @ a.T)) * b).sum(axis=1)
    factors: Float64 = np.where(np.isnan(norms), 1.0, norms / np.sqrt(squares))
    return factors


def _slabs(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    step = max(1, _SLAB_NBYTES // (8 * columns))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def check_logits(
    base: Checkpoint, adapter: AdapterFile, written: Checkpoint, progress: Progress | None = None
) -> tuple[LogitCheck | None, str]:
    """Run a few texts through the base with the adapter and through the merged model, one after the other.

    Returns:
        The comparison, or None with the reason why there is none.
    """
    if adapter.dora:
        return None, "the engine does not apply DoRA beside a model"
    if adapter.vision is not None:
        return None, "the engine does not apply changes to the vision tower or its projector beside a model"
    try:
        choose_precision(base.config, Wanted("fp32", context=len(_TEXTS) * _MAX_TOKENS), Room.here())
    except OutOfMemoryError:
        return None, "the model in fp32 does not fit in memory"
    tokenizer = Processor.load(base).tokenizer
    ids = [np.array(tokenizer.encode(text)[:_MAX_TOKENS], np.int32) for text in _TEXTS]
    kernels = get_kernels()
    model = load_model(base, PRECISIONS["fp32"], kernels, progress)
    lora = read_adapter(
        adapter.path, base.config, base.model_type, kernels, format="fp32", max_nbytes=1 << 62, layers=()
    )
    plain, wanted = _logits(model, ids, None), _logits(model, ids, lora)
    del model, lora
    found = _logits(load_model(written, PRECISIONS["fp32"], kernels, progress), ids, None)
    size = float(np.ptp(wanted)) or 1.0
    difference, effect = (float(np.abs(other - wanted).max()) / size for other in (found, plain))
    return LogitCheck(difference, effect, len(wanted)), ""


def _logits(model: Transformer, ids: list[NDArray[np.int32]], adapter: LoraAdapter | None) -> Float32:
    """Logits float32 [tokens, vocabulary] of all texts in one pass."""
    pages: list[list[int]] = []
    for one in ids:
        first = sum(len(each) for each in pages)
        pages.append(list(range(first, first + pages_for(len(one)))))
    lengths = [len(one) for one in ids]
    batch = ForwardBatch.build(pages, [0] * len(ids), lengths, [adapter] * len(ids))
    cache = KVCache(model.config, sum(len(each) for each in pages), "fp32")
    return model.logits(model.forward(np.concatenate(ids), batch, cache))
