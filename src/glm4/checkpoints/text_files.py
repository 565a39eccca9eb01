"""`TextFiles`: the text-related contents of a model's folder or GGUF file, read without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glm4.checkpoints.config_fields import Fields
from glm4.checkpoints.gguf_header import read_header
from glm4.checkpoints.json_file import read_json_object
from glm4.checkpoints.locate import locate_weights
from glm4.checkpoints.packed_format import is_packed
from glm4.checkpoints.side_files import (
    generation_from_gguf,
    read_chat_template,
    read_generation_config,
    template_of,
    undouble_braces,
)
from glm4.checkpoints.tensor_source import MappedFile
from glm4.checkpoints.vision_config import image_layout, read_vision_config
from glm4.errors import CheckpointError
from glm4.model.config import VisionConfig
from glm4.prompt import ImageLayout
from glm4.variants import VARIANTS, Variant, find_variant

_CHATGLM_NAMES = {
    "num_hidden_layers": "num_layers",
    "num_key_value_heads": "multi_query_group_num",
    "max_position_embeddings": "seq_length",
    "vocab_size": "padded_vocab_size",
}
_GGUF_NAMES = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
}


@dataclass(frozen=True)
class TextFiles:
    """Everything needed to build a tokenizer and a chat template.

    Attributes:
        path: the folder with the tokenizer's files; None if the GGUF metadata has the vocabulary.
        variant: the row of variants.py, for its dialect and sampling defaults.
        chat_template: Jinja text, or None.
        generation_config: sampling defaults that came with the model.
        eos_token_ids: stop ids from the configuration.
        vocab_size: rows of the model's vocabulary; None if unknown.
        context: the model's context length in tokens; None if unknown.
        gguf_metadata: every key of a GGUF file; empty for a folder.
        packed: the folder of a packed checkpoint, whose vocabulary has a table for a quick start.
        image: how a picture stands in prompts; None if the model reads text only.
    """

    path: Path | None
    variant: Variant
    chat_template: str | None
    generation_config: Mapping[str, Any]
    eos_token_ids: tuple[int, ...]
    vocab_size: int | None = None
    context: int | None = None
    gguf_metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    packed: bool = False
    image: ImageLayout | None = None


def read_text_files(path: Path, *, variant: Variant | None = None) -> TextFiles:
    """Read a folder (tokenizer and configuration; no weights are needed) or a GGUF file.

    Whether our engine can run the model does not matter: another program will.

    Args:
        variant: the row of variants.py, if the caller knows it.

    Raises:
        ModelNotFoundError, CheckpointError: there is nothing to read, or it is malformed.
        UnsupportedModelError: its chat format is unknown.
    """
    if path.is_dir() and any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return _from_folder(path, variant)
    kind, weights = locate_weights(path)
    if kind == "gguf":
        return _from_gguf(weights, variant)
    return _from_folder(weights if weights.is_dir() else weights.parent, variant)


def _from_folder(folder: Path, variant: Variant | None) -> TextFiles:
    file = folder / "config.json"
    settings = read_json_object(file) if file.exists() else {}
    packed = is_packed(settings)
    if packed and variant is None:
        variant = VARIANTS.get(str(settings["quantization_config"].get("variant")))
    fields = Fields(settings, str(file))
    model_type = str(settings.get("model_type", "(none)"))
    vision = _vision(fields)
    facts = settings | {name: settings[theirs] for name, theirs in _CHATGLM_NAMES.items() if theirs in settings}
    facts["vision_layers"] = 0 if vision is None else vision.num_hidden_layers
    generation, _ = read_generation_config(folder)
    template = _mended(read_chat_template(folder))
    more = generation.get("eos_token_id", [])
    vocab_size = _count(facts, "vocab_size")
    stops = (*fields.token_ids("eos_token_id"), *(more if isinstance(more, list) else [more]))
    return TextFiles(
        path=folder,
        variant=variant or find_variant(model_type, facts, template),
        chat_template=template,
        generation_config=generation,
        eos_token_ids=tuple(i for i in dict.fromkeys(stops) if 0 <= i < (vocab_size or i + 1)),
        vocab_size=vocab_size,
        context=_count(facts, "max_position_embeddings"),
        packed=packed,
        image=image_layout(vision),
    )


def _from_gguf(file: Path, variant: Variant | None) -> TextFiles:
    with closing(MappedFile(file)) as mapped:
        metadata = read_header(mapped).metadata
    kind = str(metadata.get("general.architecture"))
    facts = {name: metadata.get(f"{kind}.{theirs}") for name, theirs in _GGUF_NAMES.items()}
    template = _mended(template_of(metadata.get("tokenizer.chat_template"), str(file)))
    vocabulary = Fields(metadata, str(file), prefix="tokenizer.ggml.")
    tokens = metadata.get("tokenizer.ggml.tokens")
    generation, _ = generation_from_gguf(metadata)
    return TextFiles(
        path=None,
        variant=variant or find_variant(kind, {**facts, "basename": metadata.get("general.basename")}, template),
        chat_template=template,
        generation_config=generation,
        eos_token_ids=(*vocabulary.token_ids("eos_token_id"), *vocabulary.token_ids("eot_token_id")),
        vocab_size=len(tokens) if isinstance(tokens, list) else None,
        context=_count(facts, "max_position_embeddings"),
        gguf_metadata=metadata,
    )


def _vision(fields: Fields) -> VisionConfig | None:
    """The tower of a model that sees; None if there is none of glm-4v-9b's kind, which our engine would refuse."""
    try:
        return read_vision_config(fields)
    except CheckpointError:
        return None


def _mended(template: str | None) -> str | None:
    return None if template is None else undouble_braces(template)


def _count(facts: Mapping[str, Any], name: str) -> int | None:
    value = facts.get(name)
    return value if type(value) is int and value > 0 else None
