"""`glm4 data check` looks into pictures: what is no picture is told before training comes to it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from glm4.multimodal.image import encode_picture
from glm4.requests.processor import Processor
from glm4.training.config import DataConfig
from glm4.training.data.check import check_data
from golden_models import GOLDEN


def test_a_file_that_is_no_picture_is_a_bad_row(tmp_path: Path) -> None:
    whole = encode_picture(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    for name, content in (("good.png", whole), ("half.png", whole[: len(whole) // 2]), ("text.png", b"not a picture")):
        (tmp_path / name).write_bytes(content)
    answer = {"role": "assistant", "content": "red"}
    rows = [
        {"messages": [{"role": "user", "content": "What color is the circle?", "image": name}, answer]}
        for name in ("good.png", "half.png", "text.png", "none.png")
    ]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = check_data(DataConfig(train=(str(data),)), Processor.open(GOLDEN / "vision" / "trained"))
    assert (found.rows, found.bad, found.samples) == (4, 3, 1)
    half, text, none = found.problems
    assert [problem.place.rpartition(":")[2] for problem in found.problems] == ["2", "3", "4"]
    assert "damaged" in half.reason
    assert "it looks like text" in text.reason
    assert "none.png cannot be read" in none.reason
