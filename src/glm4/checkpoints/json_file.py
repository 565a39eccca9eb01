"""Strict JSON for files that arrive with a checkpoint: bounded, no duplicate keys, no NaN, one object at the top."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from glm4.errors import CheckpointError
from glm4.system.strict_json import refuse_constant
from glm4.system.text_encoding import TextEncodingError, decode_text

MAX_JSON_BYTES = 16_000_000
MAX_JSON_DEPTH = 64


def read_json_object(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: unreadable, larger than max_bytes, or not one JSON object.
    """
    return parse_json_object(read_text_file(path, max_bytes), str(path))


def read_text_file(path: Path, max_bytes: int) -> str:
    """The text of a file that came with a checkpoint, in an encoding that `system.text_encoding` reads.

    Raises:
        CheckpointError: unreadable, larger than max_bytes, or not text.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing or not a regular file")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if len(data) > max_bytes:
        raise CheckpointError(f"{path} has more than {max_bytes} bytes, which is too large")
    try:
        return decode_text(data)
    except TextEncodingError as error:
        raise CheckpointError(f"{path} {error}") from None


def parse_json_object(data: bytes | str, where: str) -> dict[str, Any]:
    """The object in JSON text or UTF-8 bytes; `where` names it in errors.

    Raises:
        CheckpointError: not UTF-8, not JSON, not one object, a duplicate key, a NaN, or nested too deeply.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=refuse_constant)
    except RecursionError:
        raise CheckpointError(f"{where} is nested too deeply") from None
    except ValueError as error:  # also UnicodeDecodeError, JSONDecodeError and numbers of thousands of digits
        raise CheckpointError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} should be a JSON object, not {type(value).__name__}")
    _check_depth(value, where)
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the key {twice!r} appears twice")
    return result


def _check_depth(value: Any, where: str) -> None:
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise CheckpointError(f"{where} is nested more than {MAX_JSON_DEPTH} levels deep")
