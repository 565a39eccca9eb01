"""What functions return and raise, as a model reads it.

A text is taken as it is. Bytes, pictures of Pillow and stored files are shown to the user as files, and the model reads
their names; a tuple or list with files among its items is read item by item. Everything else becomes JSON.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import io
import json
import mimetypes
import re
import uuid
from decimal import Decimal
from typing import Any

from glm4.agent.file_store import media_type
from glm4.agent.files import StoredFile
from glm4.agent.tool import ToolContext, ToolResult
from glm4.errors import ToolError

_MAX_ERROR = 500  # characters
# An absolute path up to its last part; addresses of the web are none.
_FOLDERS = re.compile(r"(?<![\w:/.~])(?:[A-Za-z]:[\\/]|~?/|\\\\)(?:[^\s\\/'\"<>|:*?]+[\\/])+")


def as_result(value: Any, function: str, context: ToolContext) -> ToolResult:
    """A function's return value.

    Raises:
        ToolError: it has no JSON form, or it is a file and the conversation keeps none.
    """
    if isinstance(value, ToolResult):
        return value
    if isinstance(value, (list, tuple)) and any(map(_is_file, value)):
        return ToolResult.of("\n".join(_text(one, function, context) for one in value))
    return ToolResult.of(_text(value, function, context))


def error_text(error: BaseException) -> str:
    """An exception in one line, without the folders of this machine."""
    said = " ".join(_FOLDERS.sub("", str(error)).split())
    name = type(error).__name__
    text = f"{name}: {said}" if said else name
    return text if len(text) <= _MAX_ERROR else f"{text[:_MAX_ERROR]}…"


def as_json(value: Any, *, indent: int | None = None) -> str:
    """JSON of what functions return.

    Raises:
        TypeError, ValueError: it has none.
    """
    return json.dumps(value, ensure_ascii=False, default=_plain, indent=indent)


def _text(value: Any, function: str, context: ToolContext) -> str:
    if isinstance(value, str):
        return value
    if _is_file(value):
        file = _stored(value, function, context)
        context.file(file)
        return f"The user sees the file {file.name} ({file.media_type}, {file.nbytes} bytes)."
    try:
        return as_json(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ToolError(f"{function} returned a {type(value).__name__} that JSON cannot hold: {error}") from None


def _is_file(value: Any) -> bool:
    return isinstance(value, (bytes, bytearray, StoredFile)) or _is_picture(value)


def _is_picture(value: Any) -> bool:
    return any(kind.__module__.startswith("PIL.") for kind in type(value).__mro__) and hasattr(value, "save")


def _stored(value: Any, function: str, context: ToolContext) -> StoredFile:
    if isinstance(value, StoredFile):
        return value
    if context.files is None:
        raise ToolError(f"{function} returned a file, but this conversation keeps none")
    if _is_picture(value):
        buffer = io.BytesIO()
        value.save(buffer, "PNG")
        value = buffer.getvalue()
    data = bytes(value)
    ending = mimetypes.guess_extension(media_type(data, "")) or ".bin"
    return context.files.put(function + ending, data)


def _plain(value: Any) -> Any:
    """For values that JSON does not know."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (set, frozenset)):
        return list(value)
    if isinstance(value, (uuid.UUID, Decimal)):
        return str(value)
    if callable(getattr(value, "model_dump", None)):  # pydantic
        return value.model_dump(mode="json")
    if callable(getattr(value, "tolist", None)):  # NumPy
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is neither text, number, list nor object")
