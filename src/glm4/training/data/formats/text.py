"""Plain text for continued pre-training: `{"text": …}`, and .txt files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glm4.chat.parts import refusal
from glm4.training.data.examples import TextExample
from glm4.training.data.formats.row_values import Setting, as_text, required


def read_plain_text(row: Mapping[str, Any], setting: Setting, place: str) -> TextExample:
    """A text, as it is.

    Raises:
        InvalidRequestError: it is missing, empty, or no text.
    """
    name = setting.columns.text
    text = as_text(required(row, name), name)
    if not text.strip():
        raise refusal(name, "is empty; delete the row")
    return TextExample(text, place)
