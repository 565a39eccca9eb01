"""A picture asked about twice over HTTP: its rows in `usage`, and what `/metrics` says of the vision tower."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np

from glm4.llm import LLM
from glm4.multimodal.image import encode_picture
from live import config, serve
from vision_folder import ROWS, write_vision_folder


def test_a_second_question_about_a_picture_needs_no_tower(tmp_path: Path) -> None:
    data = encode_picture(np.full((9, 12, 3), 40, np.uint8))
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    with (
        serve(config(), LLM(str(write_vision_folder(tmp_path / "m")), dtype="fp32", max_model_len=256)) as server,
        server.client() as client,
    ):
        for words in ("hi", "and"):
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": words}]
            body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4}
            response = client.post("/v1/chat/completions", json=body)
            assert response.status_code == 200, response.text
            assert response.json()["usage"]["prompt_tokens"] > ROWS
        lines = client.get("/metrics").text.splitlines()
    for name in ("pictures_encoded", "picture_cache_hits"):
        (line,) = (line for line in lines if line.startswith(f"glm4:{name}_total{{"))
        assert float(line.split()[-1]) == 1
