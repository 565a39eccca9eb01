"""Rows of training data in files, read as examples, for tests."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from glm4.chat.dialects.table import DIALECTS
from glm4.requests.processor import Processor
from glm4.tokenizer import Tokenizer, load_tokenizer
from glm4.training.data.examples import ChatExample, Example, TokenizedExample
from glm4.training.data.formats.row_values import Setting
from glm4.training.data.formats.table import FORMATS, find_format, read_example
from glm4.training.data.rows import Row
from vocabularies import glm4_rank_file, tiny_chatml

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "hello"}
WEATHER = {
    "name": "get_weather",
    "description": "The weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def processor(dialect: str, tokenizer: Tokenizer) -> Processor:
    """With the dialect's own template."""
    return Processor(tokenizer=tokenizer, dialect=DIALECTS[dialect])


def chatml() -> Processor:
    """Of a tiny vocabulary."""
    return processor("chatml", tiny_chatml())


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def example(row: Any, format: str = "auto", setting: Setting | None = None) -> Example:
    """The example of a row, whose format is found if it is not named."""
    setting = setting or Setting()
    name = find_format([row], setting.columns, "rows.jsonl") if format == "auto" else format
    return read_example(Row(row, "rows.jsonl:1"), FORMATS[name], setting)


def chat(row: Any, format: str = "auto", setting: Setting | None = None) -> ChatExample:
    """The same, a conversation."""
    found = example(row, format, setting)
    assert isinstance(found, ChatExample)
    return found


def turns(found: ChatExample) -> list[tuple[str, ...]]:
    """Roles, texts and calls of an example's messages."""
    return [
        (message.role, message.text, *(f"{call.name}({call.arguments})" for call in message.tool_calls))
        for message in found.request.messages
    ]


@lru_cache(maxsize=1)
def glm4_tokenizer() -> Tokenizer:
    """GLM-4's real vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.model").write_bytes(glm4_rank_file())
        return load_tokenizer(Path(folder))


def pieces(ids: Iterable[int], tokenizer: Tokenizer) -> list[str]:
    """Each token as text; bytes that are no whole characters as <0x…>."""
    shown = []
    for token in ids:
        data = tokenizer.token_bytes(int(token))
        try:
            shown.append(data.decode())
        except UnicodeDecodeError:
            shown.append("".join(f"<0x{byte:02x}>" for byte in data))
    return shown


def trained(sample: TokenizedExample, tokenizer: Tokenizer) -> list[list[str]]:
    """The stretches that carry loss, token by token."""
    stretches: list[list[str]] = []
    before = False
    for piece, carries in zip(pieces(sample.ids, tokenizer), sample.mask.tolist(), strict=True):
        if carries and not before:
            stretches.append([])
        if carries:
            stretches[-1].append(piece)
        before = carries
    return stretches
