"""The tensors and constants of a model as llama.cpp's architectures have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from glm4.checkpoints.gguf_encoders import Encoding
from glm4.checkpoints.gguf_writer import PlannedTensor
from glm4.errors import InvalidRequestError
from glm4.model.config import ModelConfig
from glm4.model.tensors import ModelTensor, model_tensors


@dataclass(frozen=True)
class Architecture:
    """How one of llama.cpp's architectures has a model.

    Attributes:
        name: `general.architecture`.
        pre: name of the pre-tokenizer of its models; None where GGUF sources name it.
        fused_qkv, fused_gate_up: one matrix, or one for each part.
        half_split: rotary pairs are channels i and i + rotary_dim / 2 of a head, instead of 2i and 2i + 1.
        square_output: the output projection of attention has hidden_size columns.
    """

    name: str
    pre: str | None = None
    fused_qkv: bool = False
    fused_gate_up: bool = False
    half_split: bool = False
    square_output: bool = False


# 893 of GLM-4's tokens, such as " 而", are found as whole words only, merges do not lead to them. Newer llama.cpp looks
# whole words up under the name "glm4"; to older versions it is another name for "chatglm-bpe".
_GLM_PRE = "glm4"
_CHATGLM = Architecture("chatglm", _GLM_PRE, fused_qkv=True, fused_gate_up=True, square_output=True)
# By the model type of the checkpoint.
ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "chatglm": _CHATGLM,
        "glm": _CHATGLM,
        "glm4": Architecture("glm4", _GLM_PRE, fused_gate_up=True),
        "llama": Architecture("llama"),
        "qwen2": Architecture("qwen2", half_split=True),
    }
)


@dataclass(frozen=True)
class FilePart:
    """Rows start..stop-1 of a canonical tensor, which are one tensor of the file.

    Attributes:
        name: of the canonical tensor.
        rotary: the rows belong to queries and keys, in whole heads.
    """

    name: str
    start: int
    stop: int
    encoding: Encoding
    planned: PlannedTensor
    rotary: bool


def file_parts(
    config: ModelConfig, architecture: Architecture, encoding_of: Callable[[ModelTensor, str], Encoding]
) -> Iterator[FilePart]:
    """The tensors of the file in model order.

    Args:
        encoding_of: of a tensor, with its name in the file.
    """
    for name, tensor in model_tensors(config).items():
        start = 0
        for file_name, rows in file_names(tensor, config, architecture).items():
            encoding, shape = encoding_of(tensor, file_name), (rows, *tensor.shape[1:])
            planned = PlannedTensor(file_name, shape, encoding.number, encoding.nbytes(shape))
            yield FilePart(name, start, start + rows, encoding, planned, tensor.row.rotary)
            start += rows


def file_names(tensor: ModelTensor, config: ModelConfig, architecture: Architecture) -> dict[str, int]:
    """Tensors of the file that make up a canonical one, with the rows of each."""
    source = tensor.row.sources["gguf"]
    if isinstance(source, tuple):
        fused = architecture.fused_qkv if tensor.row.rotary else architecture.fused_gate_up
        source = next(way for way in source if isinstance(way, str) == fused)
    rows = {source: tensor.shape[0]} if isinstance(source, str) else {n: getattr(config, s) for n, s in source.items()}
    return {name.replace("{i}", str(tensor.index)): count for name, count in rows.items()}


def model_keys(config: ModelConfig, architecture: Architecture) -> dict[str, Any]:
    """Shape and constants of the model, under full key names.

    Raises:
        InvalidRequestError: the architecture cannot express this model.
    """
    widths = config.query_size, config.hidden_size
    if architecture.square_output and widths[0] != widths[1]:
        raise InvalidRequestError(
            f"the architecture {architecture.name} of GGUF has heads that together are as wide as the model; here they "
            f"are {widths[0]} wide, the model is {widths[1]}",
            param="to",
        )
    if architecture.name in ("llama", "qwen2") and config.rotary_dim != config.head_dim:
        raise InvalidRequestError(f"the architecture {architecture.name} of GGUF rotates whole heads", param="to")
    keys: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(config.rope_theta),
        "rope.dimension_count": config.rotary_dim,
        "vocab_size": config.vocab_size,
    }
    if architecture.name == "glm4" or config.query_size != config.hidden_size:
        keys["attention.key_length"] = keys["attention.value_length"] = config.head_dim
    return {f"{architecture.name}.{key}": value for key, value in keys.items()}
