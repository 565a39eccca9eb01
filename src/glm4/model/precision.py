"""Which weight format each part of the model gets at a given `dtype`, and what `dtype="auto"` means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from glm4.errors import InvalidRequestError
from glm4.kernels.formats import packed_nbytes
from glm4.model.config import ModelConfig
from glm4.model.tensors import NO_EXTRAS, Extras, ModelTensor, all_matrices, model_tensors, row_of, rows_of


@dataclass(frozen=True)
class Precision:
    """How a model's weights are kept: formats (names from `kernels.formats.FORMATS`), and any additional tensors.

    Attributes:
        name: its dtype name.
        linear, embedding: formats of the layers' matrices, and of embedding and head.
        exceptions: canonical name -> format, for matrices with a different one.
        extras: of a packed checkpoint (`tensors.EXTRAS`). They change no format, so comparisons ignore them.
    """

    name: str
    linear: str
    embedding: str
    exceptions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    extras: Extras = field(default_factory=lambda: NO_EXTRAS, compare=False)

    def format_of(self, name: str) -> str:
        """Weight format of a matrix, by its canonical name."""
        usual, format = self._usual, row_of(name).format
        return self.exceptions.get(name, usual[format]) if format in usual else format

    def formats(self, config: ModelConfig) -> list[str]:
        """Every format that a model's matrices are in, sorted."""
        usual = self._usual
        rows = [row for row in rows_of(config, self.extras) if len(row.shape) == 2]
        used = {usual.get(row.format, row.format) for row in rows}
        return sorted({self.linear, self.embedding, *self.exceptions.values()} | used)

    @property
    def _usual(self) -> dict[str, str]:
        """The formats of the table that a precision decides."""
        fine = "fp32" if self.linear == "fp32" else "bf16"
        return {"linear": self.linear, "embedding": self.embedding, "fine": fine}


# int4 is int4 throughout: embedding and head in int8 would cost 0.5 bits per weight of a 9B model, and compensated
# rounding (`glm4 quantize`) gains more than that.
PRECISIONS: dict[str, Precision] = {
    "fp32": Precision("fp32", linear="fp32", embedding="fp32"),
    "bf16": Precision("bf16", linear="bf16", embedding="bf16"),
    "int8": Precision("int8", linear="int8", embedding="int8"),
    "int4": Precision("int4", linear="int4", embedding="int4"),
}
# Each matrix in the format nearest to the file's own; only the file determines which (`stored_precision`).
STORED = "stored"
DTYPES = ("auto", *PRECISIONS, STORED)
# PyTorch's names, which transformers and vLLM also use, for formats of weights and of the KV cache.
_LONG_NAMES = {"float32": "fp32", "float": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16"}
# "auto" keeps a file's codes if they are this fraction of its weights: below, hardly any memory traffic is saved.
AUTO_STORED_SHARE = 0.5


def short_dtype(dtype: str) -> str:
    """Our name for a format given by our name or PyTorch's; any other text unchanged."""
    return _LONG_NAMES.get(dtype, dtype)


def check_dtype(dtype: str, title: str = "dtype") -> str:
    """Our name for a weight format.

    Args:
        title: what error messages call it.

    Raises:
        InvalidRequestError: there is no such format.
    """
    short = short_dtype(dtype)
    if short == "fp16":  # bf16 instead would give other numbers than requested
        raise InvalidRequestError(
            f"{title} {dtype} is not a weight format of this engine: bf16 takes the same memory, int8 half of it",
            param="dtype",
        )
    if short not in DTYPES:
        raise InvalidRequestError(f"{title} must be one of {', '.join(DTYPES)}, not {dtype!r}", param="dtype")
    return short


def stored_precision(four_bit: Iterable[str]) -> Precision:
    """Dtype "stored": int4 for the matrices `four_bit` (canonical names), which keep their codes; int8 for the rest."""
    return Precision(STORED, "int8", "int8", MappingProxyType(dict.fromkeys(four_bit, "int4")))


def tensor_nbytes(tensor: ModelTensor, precision: Precision) -> int:
    """Bytes of a tensor as the kernels read it: packed, or a float32 vector."""
    shape = tensor.shape
    return 4 * shape[0] if len(shape) == 1 else packed_nbytes(precision.format_of(tensor.name), shape[0], shape[1])


def weight_nbytes(config: ModelConfig, precision: Precision) -> int:
    """Bytes of all weights in memory."""
    return sum(tensor_nbytes(tensor, precision) for tensor in model_tensors(config, precision.extras).values())


def four_bit_share(config: ModelConfig, precision: Precision) -> float:
    """Fraction of all matrices' weights that are int4."""
    sizes = {name: rows * cols for name, (rows, cols) in all_matrices(config).items()}
    return sum(size for name, size in sizes.items() if precision.format_of(name) == "int4") / sum(sizes.values())


def packed_dtype(dtype: str, packed: Precision) -> str:
    """The dtype a packed checkpoint runs in.

    Raises:
        InvalidRequestError: a different one is requested.
    """
    if short_dtype(dtype) not in ("auto", packed.name):
        raise InvalidRequestError(
            f"this checkpoint is packed as {packed.name} and cannot be run as {dtype}: leave dtype at auto, or load "
            "the original model",
            param="dtype",
        )
    return packed.name


def precision_candidates(dtype: str, config: ModelConfig, stored: Precision | None = None) -> list[Precision]:
    """What a dtype may mean, best first; `loading.memory_estimate` takes the first that fits.

    Args:
        stored: the file's own precision (`Checkpoint.stored_precision`).

    Raises:
        InvalidRequestError: no such dtype, or it is "stored" and the checkpoint has no 4-bit tensors.
    """
    dtype = check_dtype(dtype)
    if dtype != "auto":
        return [named_precision(dtype, stored)]
    if stored is not None and stored.name == STORED and four_bit_share(config, stored) > AUTO_STORED_SHARE:
        return [stored, PRECISIONS["int4"]]
    return [PRECISIONS["int8"], PRECISIONS["int4"]]


def named_precision(dtype: str, stored: Precision | None) -> Precision:
    """The precision of a dtype other than "auto": the file's own if it has that name.

    Raises:
        InvalidRequestError: it is "stored", and the file has no such codes.
    """
    if stored is not None and stored.name == dtype:
        return stored
    if dtype != STORED:
        return PRECISIONS[short_dtype(dtype)]
    raise InvalidRequestError(
        "dtype stored keeps the 4-bit codes of GGUF files (types Q4_0, Q4_1, Q4_K), and this model has none: "
        "leave dtype at auto, or choose int8 or int4",
        param="dtype",
    )
