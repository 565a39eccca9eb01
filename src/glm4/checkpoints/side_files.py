"""Files beside the weights: generation defaults and the chat template, from a folder or from GGUF metadata."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glm4.checkpoints.json_file import read_json_object, read_text_file
from glm4.errors import CheckpointError

MAX_TEMPLATE_BYTES = 1_000_000

# The generation defaults we honor, with their types; everything else in the file is for other programs.
_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty")
_COUNTS = ("top_k", "max_new_tokens", "max_length", "pad_token_id", "bos_token_id")
_GGUF_SAMPLING = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}

# A published bug (Qwen2.5-Coder-1.5B): doubled braces in the example of a tool call's format.
_DOUBLED_BRACES = re.compile(
    r'\{(\{\\?"name\\?": <function-name>, \\?"arguments\\?": <args-json-object>\})\}', re.ASCII
)


def read_generation_config(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(defaults from generation_config.json, notes). Unknown keys are left out; a wrong type drops its key.

    Raises:
        CheckpointError: the file exists and is not a JSON object.
    """
    path = folder / "generation_config.json"
    if not path.exists():
        return {}, ()
    return _typed_generation(read_json_object(path), path.name)


def generation_from_gguf(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The same from a GGUF file's `general.sampling.*` keys."""
    found = {name: metadata[key] for key, name in _GGUF_SAMPLING.items() if key in metadata}
    return _typed_generation(found, "general.sampling")


def _typed_generation(data: Mapping[str, Any], where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    kept: dict[str, Any] = {}
    notes: list[str] = []
    for key, value in data.items():
        if value is None or key not in (*_NUMBERS, *_COUNTS, "eos_token_id", "do_sample"):
            continue
        if _has_type(key, value):
            kept[key] = value
        else:
            notes.append(f"{where}: {key} has the wrong type or range and was dropped")
    return kept, tuple(notes)


def _has_type(key: str, value: Any) -> bool:
    if key in _NUMBERS:
        return type(value) in (int, float) and abs(value) < 1e6 and math.isfinite(value) and value >= 0
    if key == "do_sample":
        return type(value) is bool
    items = value if key == "eos_token_id" and isinstance(value, list) else [value]
    return len(items) <= 64 and all(type(item) is int and -1 <= item < 1 << 31 for item in items)


def read_chat_template(folder: Path) -> str | None:
    """The chat template of a folder: `chat_template.jinja`, else `chat_template.json`, else `tokenizer_config.json`.

    If a file has several named templates, the one named "default" is used.

    Raises:
        CheckpointError: a file is malformed, or the template is larger than any real one.
    """
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return read_text_file(jinja, MAX_TEMPLATE_BYTES)
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file():
            template = template_of(read_json_object(path).get("chat_template"), str(path))
            if template is not None:
                return template
    return None


def template_of(value: Any, where: str) -> str | None:
    """The template in a `chat_template` value: a string, or a list of `{"name": …, "template": …}`.

    Raises:
        CheckpointError: neither of these, or too large.
    """
    if value is None:
        return None
    if isinstance(value, list):
        named = {
            item["name"]: item["template"]
            for item in value
            if isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("template"), str)
        }
        if "default" not in named:
            raise CheckpointError(f"{where}: chat_template is a list without a template named 'default'")
        value = named["default"]
    if not isinstance(value, str):
        raise CheckpointError(f"{where}: chat_template is {type(value).__name__}, not a text")
    return _checked(value, where)


def _checked(text: str, where: str) -> str:
    if len(text) > MAX_TEMPLATE_BYTES:
        raise CheckpointError(f"{where}: the chat template is longer than {MAX_TEMPLATE_BYTES} characters")
    return text


def undouble_braces(template: str) -> str:
    """Fixes the doubled braces around the tool-call example of a Qwen2.5-Coder template; other templates are unchanged.

    Otherwise the model would be told to answer with `{{"name": …}}`, which is not JSON. Recognized by the text of the
    example itself, whatever the file is called.
    """
    return _DOUBLED_BRACES.sub(r"\1", template)
