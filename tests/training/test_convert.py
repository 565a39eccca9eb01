"""Rows that converting writes are the examples that were read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_formats import CALL, NATIVE, PREFERENCES, original, sharegpt
from training_rows import ASSISTANT, USER, WEATHER, example

from glm4.training.data.convert import as_row
from glm4.training.data.examples import ChatExample
from glm4.training.data.formats.row_values import LocalImage, Setting

ROWS: list[dict[str, Any]] = [
    original({"content": f"get_weather\n{NATIVE}"}),
    original({"metadata": "get_weather", "content": NATIVE}),
    sharegpt(system="s"),
    {"messages": [USER, {**ASSISTANT, "reasoning_content": "hm", "weight": 0}, USER, ASSISTANT]},
    {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "a", "function": CALL}]},
                  {"role": "tool", "tool_call_id": "a", "content": "21"}, ASSISTANT], "tools": [WEATHER]},
    {"text": "some text"},
    *PREFERENCES,
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_written_and_read_again(row: dict[str, Any]) -> None:
    first = example(row)
    assert example(as_row(first)) == first


def test_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"data")
    row = {"messages": [{**USER, "image": "a.png"}, ASSISTANT], "images": [{"bytes": b"more"}]}
    first = example(row, setting=Setting(image_folder=tmp_path))
    again = example(as_row(first), setting=Setting(image_folder=tmp_path / "elsewhere"))
    assert again == first
    assert isinstance(again, ChatExample)
    kept = again.request.messages[0].content[1]
    assert isinstance(kept, LocalImage)
    assert kept.path == str(tmp_path / "a.png")
