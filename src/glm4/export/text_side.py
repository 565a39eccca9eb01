"""Tokenizer, chat template, sampling defaults and license beside exported weights, as other programs read them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from glm4.checkpoints.checkpoint import Checkpoint
from glm4.export.chat_template import exported_template
from glm4.loading.packed_folder import legal_files
from glm4.requests.processor import Processor
from glm4.tokenizer.saving import save_ranks, save_tokenizer

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_KEPT = ("do_sample", *_SAMPLING, "max_new_tokens", "max_length", "bos_token_id")


def stop_ids(checkpoint: Checkpoint, text: Processor) -> list[int]:
    """Every id that ends an answer: the dialect's in its order (the end of the text first), then the checkpoint's."""
    added = text.tokenizer.added_tokens
    known = [added[name].id for name in text.dialect.stop_names if name in added]
    return list(dict.fromkeys([*known, *checkpoint.config.eos_token_ids, *sorted(text.stop_ids)]))


def template_text(text: Processor) -> str:
    """The chat template, with a place for tools as other programs pass them."""
    on_message = not text.dialect.prepare((), [{"type": "function"}])[1]
    return exported_template(text.chat_template, on_message=on_message)


def write_hf_text(folder: Path, checkpoint: Checkpoint, text: Processor) -> None:
    """Fill a folder with what `AutoTokenizer` and `GenerationConfig` read, without code from the checkpoint.

    Raises:
        TokenizerError: a vocabulary that cannot be written as `tokenizer.json`.
    """
    save_tokenizer(text.tokenizer, folder, _tokenizer_settings(checkpoint, text))
    (folder / "chat_template.jinja").write_text(template_text(text), encoding="utf-8")
    _write_rest(folder, checkpoint, text)


def write_chatglm_text(folder: Path, checkpoint: Checkpoint, text: Processor) -> None:
    """Fill a folder with the files of the original layout; a source that has them keeps them as they are.

    Raises:
        TokenizerError: a vocabulary that was not made from the ranks of a `tokenizer.model`.
    """
    originals = [checkpoint.path / name for name in ("tokenizer.model", "tokenizer_config.json")]
    if checkpoint.kind == "safetensors" and all(file.is_file() for file in originals):
        for file in originals:
            shutil.copyfile(file, folder / file.name)
        if (file := checkpoint.path / "chat_template.jinja").is_file():
            shutil.copyfile(file, folder / file.name)
    else:
        settings = _tokenizer_settings(checkpoint, text) | {"tokenizer_class": "ChatGLM4Tokenizer"}
        save_ranks(text.tokenizer, folder, settings | {"chat_template": template_text(text)})
    _write_rest(folder, checkpoint, text)


def _tokenizer_settings(checkpoint: Checkpoint, text: Processor) -> dict[str, Any]:
    """Keys of `tokenizer_config.json`. Batches are padded in front, or answers would continue the padding."""
    tokenizer, config = text.tokenizer, checkpoint.config
    end = stop_ids(checkpoint, text)[0]
    padding = end if config.pad_token_id is None else config.pad_token_id
    named = {"eos_token": end, "pad_token": padding}
    return {
        "model_max_length": config.max_position_embeddings,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "additional_special_tokens": list(tokenizer.special_tokens),
        **{
            role: tokenizer.token_bytes(token_id).decode("utf-8", "replace")
            for role, token_id in named.items()
            if role not in tokenizer.roles
        },
    }


def _write_rest(folder: Path, checkpoint: Checkpoint, text: Processor) -> None:
    given = checkpoint.generation_config
    settings = {key: given[key] for key in _KEPT if given.get(key) is not None}
    if any(key in settings for key in _SAMPLING):
        settings.setdefault("do_sample", True)
    stops = stop_ids(checkpoint, text)
    padding = checkpoint.config.pad_token_id
    settings |= {"eos_token_id": stops, "pad_token_id": stops[0] if padding is None else padding}
    (folder / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    for file in legal_files(checkpoint):
        shutil.copyfile(file, folder / file.name)
