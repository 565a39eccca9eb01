"""What `--dtype` means for each tensor of a GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from glm4.checkpoints.checkpoint import Checkpoint
from glm4.checkpoints.gguf_encoders import ENCODINGS, Encoding
from glm4.errors import InvalidRequestError
from glm4.export.gguf_rows import fits_float16, stored_type
from glm4.model.config import ModelConfig
from glm4.model.tensors import ModelTensor, head_name


@dataclass(frozen=True)
class FileType:
    """Types of the matrices of a file; those of llama-quantize, by which programs name files.

    Attributes:
        number: `general.file_type`.
        usual: of most matrices; a key of `ENCODINGS`, as are the others.
        head: of the matrix that decides the tokens, also where it is the embedding, too.
        fused_qkv: of queries, keys and values in one matrix.
        finer: of the values and of the matrix that ends the MLP in every third layer, and in the first and last eighth.
    """

    number: int
    usual: str
    head: str = ""
    fused_qkv: str = ""
    finer: str = ""

    def of(self, tensor: ModelTensor, file_name: str, config: ModelConfig) -> str:
        """The type of a tensor under its name in the file."""
        if tensor.name == head_name(config):
            return self.head or self.usual
        if self.fused_qkv and file_name.endswith(".attn_qkv.weight"):
            return self.fused_qkv
        ends = file_name.endswith((".attn_v.weight", ".ffn_down.weight"))
        if self.finer and ends and _is_sensitive(tensor.index, config.num_hidden_layers):
            return self.finer
        return self.usual


def _is_sensitive(layer: int, layers: int) -> bool:
    first = layers // 8
    return layer < first or layer >= 7 * layers // 8 or (layer - first) % 3 == 2


# The first is what `glm4 export` makes unless told otherwise.
FILE_TYPES: Mapping[str, FileType] = MappingProxyType(
    {
        "bf16": FileType(32, "bf16"),
        "f32": FileType(0, "f32"),
        "f16": FileType(1, "f16"),
        "q8_0": FileType(7, "q8_0"),
        "q6_k": FileType(18, "q6_k"),
        "q5_k_m": FileType(17, "q5_k", "q6_k", "q6_k", "q6_k"),
        "q5_k": FileType(16, "q5_k", "q6_k"),
        "q5_1": FileType(9, "q5_1", "q6_k"),
        "q5_0": FileType(8, "q5_0", "q6_k"),
        "q4_k_m": FileType(15, "q4_k", "q6_k", "q5_k", "q6_k"),
        "q4_k": FileType(14, "q4_k", "q6_k"),
        "q4_1": FileType(3, "q4_1", "q6_k"),
        "q4_0": FileType(2, "q4_0", "q6_k"),
    }
)
# For rows that are not whole blocks, one after another; the last one takes every row.
_NEXT = {"q6_k": "q8_0", "q5_k": "q5_1", "q4_k": "q5_0"}
_ANY_ROW = "f16"
# Types that hold numbers of 8 bits and less nearly as they are.
_WIDE = ("f32", "bf16", "f16", "q8_0")


def encoding_for_rows(name: str, columns: int) -> Encoding:
    """The encoding with that name, or the next finer one whose blocks make up a row."""
    while columns % ENCODINGS[name].block_format.weights:
        name = _NEXT.get(name, _ANY_ROW)
    return ENCODINGS[name]


def encoding_of(checkpoint: Checkpoint, dtype: str) -> Callable[[ModelTensor, str], Encoding]:
    """A function of a tensor and its name in the file, which gives its encoding.

    The codes of packed checkpoints stay what they are.

    Raises:
        InvalidRequestError: the codes of a packed checkpoint would all be rounded again.
    """
    file_type, config = FILE_TYPES[dtype], checkpoint.config
    exact, packed = _exact_types(checkpoint, dtype), checkpoint.packed
    fits = lru_cache(maxsize=1)(fits_float16)  # asked for each part of a matrix

    def chosen(tensor: ModelTensor, file_name: str) -> Encoding:
        if len(tensor.shape) == 1:  # programs expect that
            return ENCODINGS["f32"]
        name = file_type.of(tensor, file_name, config)
        if packed is not None and dtype == "q4_1" and exact:
            name = "q8_0"
            if stored_type(checkpoint, tensor.name) == "Q4_1":
                name = "q4_1" if fits(packed, tensor.name) else _ANY_ROW
        return encoding_for_rows(name, tensor.shape[-1])

    return chosen


def _exact_types(checkpoint: Checkpoint, dtype: str) -> tuple[str, ...]:
    """The types that hold a packed checkpoint's codes; none for checkpoints that are not packed in integers."""
    packed = checkpoint.packed
    formats = [] if packed is None else packed.precision.formats(checkpoint.config)
    if packed is None or not {"int4", "int8"} & set(formats):
        return ()
    exact = ("q4_1", "q8_0") if "int4" in formats else ("q8_0",)
    if dtype not in (*_WIDE, *exact):
        raise InvalidRequestError(
            f"{checkpoint.path} is packed as {packed.precision.name}, and {dtype} would round its codes a second time. "
            f"{exact[0]} holds them as they are; {', '.join(_WIDE)} hold them, too. For {dtype} start from the "
            "original model",
            param="dtype",
        )
    return exact
