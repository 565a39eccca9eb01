"""Which weight format each part of the model gets at a given `dtype`, and what `dtype="auto"` means."""

from __future__ import annotations

from dataclasses import dataclass

from glm4.errors import InvalidRequestError, OutOfMemoryError
from glm4.kernels.formats import packed_nbytes
from glm4.model.config import ModelConfig

# Room for activations, the tokenizer and the interpreter, and for a first few pages of KV cache.
_WORKING_ROOM = 1 << 30


@dataclass(frozen=True)
class Precision:
    """Weight formats (names of `kernels.formats.FORMATS`) of the layers' matrices and of embedding and head."""

    name: str
    linear: str
    embedding: str

    def format_of(self, name: str) -> str:
        """Weight format of a matrix by its canonical name."""
        return self.embedding if name in ("embed_tokens", "lm_head") else self.linear


# int4 is int4 throughout: embedding and head in int8 would cost 0.5 bits per weight of a 9B model, and compensated
# rounding (`glm4 quantize`) gains more than they do.
PRECISIONS: dict[str, Precision] = {
    "fp32": Precision("fp32", linear="fp32", embedding="fp32"),
    "bf16": Precision("bf16", linear="bf16", embedding="bf16"),
    "int8": Precision("int8", linear="int8", embedding="int8"),
    "int4": Precision("int4", linear="int4", embedding="int4"),
}
DTYPES = ("auto", *PRECISIONS)


def matrix_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(rows, cols) of each of one layer's weight matrices by canonical name."""
    return {
        "qkv": (config.query_size + 2 * config.key_value_size, config.hidden_size),
        "o": (config.hidden_size, config.query_size),
        "gate_up": (2 * config.intermediate_size, config.hidden_size),
        "down": (config.hidden_size, config.intermediate_size),
    }


def weight_nbytes(config: ModelConfig, precision: Precision) -> int:
    """Bytes of all packed matrices; norms and biases (under 0.1 %) included as fp32."""
    shapes = matrix_shapes(config)
    per_layer = sum(packed_nbytes(precision.linear, rows, cols) for rows, cols in shapes.values())
    per_layer += 4 * (4 * config.hidden_size + shapes["qkv"][0])
    tables = 1 if config.tie_word_embeddings else 2
    embedding = packed_nbytes(precision.embedding, config.vocab_size, config.hidden_size)
    return config.num_hidden_layers * per_layer + tables * embedding + 4 * config.hidden_size


def packed_dtype(dtype: str, packed: Precision) -> str:
    """The dtype a packed checkpoint runs in.

    Raises:
        InvalidRequestError: another one is asked for.
    """
    if dtype not in ("auto", packed.name):
        raise InvalidRequestError(
            f"this checkpoint is packed as {packed.name} and cannot be run as {dtype}: leave dtype at auto, or load "
            "the original model",
            param="dtype",
        )
    return packed.name


def resolve_precision(dtype: str, config: ModelConfig, available: int) -> Precision:
    """The precision `dtype` names; "auto" is int8 (near-lossless), or int4 where int8 does not fit.

    Args:
        available: bytes of memory this process may use.

    Raises:
        InvalidRequestError: no such dtype.
        OutOfMemoryError: the weights do not fit into `available`.
    """
    if dtype not in DTYPES:
        raise InvalidRequestError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}", param="dtype")
    candidates = [PRECISIONS["int8"], PRECISIONS["int4"]] if dtype == "auto" else [PRECISIONS[dtype]]
    for precision in candidates:
        if weight_nbytes(config, precision) + _WORKING_ROOM <= available:
            return precision
    need = weight_nbytes(config, candidates[-1]) + _WORKING_ROOM
    smaller = "" if candidates[-1].name == "int4" else " Try dtype int8 or int4."
    raise OutOfMemoryError(
        f"the weights need {need / 1e9:.1f} GB in {candidates[-1].name}, but {available / 1e9:.1f} GB are free."
        + smaller
    )
