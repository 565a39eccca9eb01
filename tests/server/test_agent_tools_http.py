"""Real tools over HTTP: a figure of the python tool, and a PDF whose pages are cited."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from builtin_tools import KEY, scripted, tool_server
from python_conversations import make_environment_once, needs_sandbox, png_size

from pdf_files import PdfFile, Words

HEADERS = {"Authorization": f"Bearer {KEY}"}
pytestmark = needs_sandbox


def told(http: httpx.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = http.post("/v1/agent/chat", json=body)
    assert answer.status_code == 200, answer.text
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]


@pytest.mark.tools
def test_a_figure_can_be_fetched(tmp_path: Path) -> None:
    make_environment_once()
    rules = [
        ("figure 1 is shown", "\nThere."),
        ("Plot", "python\nimport matplotlib.pyplot as plt\nplt.plot([1, 3]); plt.title('Up')\nplt.show()"),
    ]
    with tool_server(tmp_path, scripted(rules), "python") as live, live.client(headers=HEADERS) as http:
        events = told(http, {"content": "Plot it", "tools": ["python"]})
        (file,) = [one for one in events if one["type"] == "file"]
        assert (file["media_type"], file["alt"]) == ("image/png", "Up")
        picture = http.get(f"/v1/agent/files/{file['file']}")
        assert picture.headers["content-type"] == "image/png"
        assert png_size(picture.content) == (file["width"], file["height"])
        assert httpx.get(f"{live.url}/v1/agent/files/{file['file']}").status_code == 401
        assert events[-1]["status"] == "completed"


def test_pages_of_a_pdf_are_cited(tmp_path: Path) -> None:
    pdf = bytes(PdfFile([[Words(72, 700, "Herons nest in March.")], [Words(72, 700, "Pike wait in the reeds.")]]))
    rules = [("wait in the reeds", "\nIn the reeds【7†source】."), ("Where", 'search_files\n{"query": "pike"}')]
    with tool_server(tmp_path, scripted(rules), "files") as live, live.client(headers=HEADERS) as http:
        sent = http.post("/v1/agent/files?name=fish.pdf", content=pdf).json()
        tool = {"type": "file_search", "vector_store_ids": [sent["file"]]}
        answer = http.post("/v1/responses", json={"input": "Where?", "tools": [tool]}).json()
        (cited,) = answer["output"][-1]["content"][0]["annotations"]
        assert (cited["file_id"], cited["filename"]) == (sent["file"], "fish.pdf")
        line = "Line {} of page {} is about birds, their nests and their songs."
        birds = [[Words(72, 750 - 12 * at, line.format(at, n)) for at in range(40)] for n in range(1, 12)]
        birds[6][20] = Words(72, 510, "Pike wait in the reeds.")
        long = bytes(PdfFile(birds))
        sent = http.post("/v1/agent/files?name=long.pdf", content=long).json()
        events = told(http, {"content": "Where?", "tools": ["files"], "files": [sent["file"]]})
        (citation,) = [one for one in events if one["type"] == "citation"]
        assert (citation["file"], citation["page"], citation["title"]) == (sent["file"], 7, "long.pdf")
