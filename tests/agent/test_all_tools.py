"""All Tools, end to end: a search, pages, Python, a picture and a user's functions in one conversation of GLM-4."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from browsing import Listed, article, browser, html
from python_conversations import make_bare_home, needs_sandbox
from scripted_agent import TODAY, Script, ending, files, shown_text, states

from glm4.agent.agent import Agent
from glm4.agent.conversation import Conversation
from glm4.agent.events import CitationAdded
from glm4.agent.file_store import FolderFileStore
from glm4.agent.functions import tool
from glm4.agent.tools.image import ImageTool
from glm4.agent.tools.python import PythonTool
from glm4.chat.chat_request import ChatRequest
from glm4.llm import LLM
from live import config, serve
from picture_files import encoded, picture
from web_sites import page, site

ANSWERS = [
    '\nI search.<|assistant|>simple_browser\nsearch("GLM-4 parameters", recency_days=30)<|observation|>',
    "simple_browser\nmclick([0, 1])<|observation|>",
    'simple_browser\nopen_url("http://pictures.test:1/nothing")<|observation|>',
    "python\nbillions = 9.4\nbillions * 2<|observation|>",
    'python\nopen("/mnt/data/size.txt", "w").write(str(billions))\nprint(int(billions))<|observation|>',
    "cogview\nA fox in the snow, drawn with ink.<|observation|>",
    'random_number\n{"seed": 1, "range": [1, 6]}<|observation|>',
    'random_number\n{"seed": "one", "range": [1]}<|observation|>',
    "\nGLM-4-9B has 9.4 billion parameters【7†source】【8†source】, as of [[训练时间]].",
]


@tool
def random_number(seed: int, range: tuple[int, int]) -> int:
    """Draw a number.

    Args:
        seed: of the draw
        range: the least and the most
    """
    return range[0] + seed % (range[1] - range[0])


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderFileStore:
    monkeypatch.setenv("GLM4_HOME", str(make_bare_home(tmp_path / "home")))
    return FolderFileStore(tmp_path / "files")


@needs_sandbox
def test_one_conversation_with_every_tool(tmp_path: Path, store: FolderFileStore) -> None:
    png = base64.b64encode(encoded(picture(height=20, width=30), "PNG")).decode()
    drawn = page(json.dumps({"data": [{"b64_json": png}]}).encode(), media_type="application/json")
    pages = {name: html(article(f"<p>{name} says 9.4 billion.</p>", name)) for name in ("/one", "/two")}
    script = Script(tmp_path / "model", ANSWERS)
    conversation = Conversation(files=store)
    conversation.ask("How large is GLM-4-9B?")
    with (
        site(pages) as web,
        site({"/v1/images/generations": drawn}) as service,
        browser(web, engine=Listed(web.at("/one"), web.at("/two"))) as browsing,
    ):
        tools = [random_number, PythonTool(), ImageTool(f"http://127.0.0.1:{service.port}/v1"), browsing]
        with Agent(script.llm, tools, system="Be exact.", today=TODAY) as agent:
            events = list(agent.run(conversation))
    assert ending(events) == ("completed", "stop")
    assert shown_text(events).endswith("9.4 billion parameters【7†source】【8†source】, as of 2023年.")
    ends = [(name, state) for name, state in states(events) if state in ("done", "error")]
    assert ends == [
        ("simple_browser", "done"), ("simple_browser", "done"), ("simple_browser", "error"), ("python", "done"),
        ("python", "done"), ("cogview", "done"), ("random_number", "done"), ("random_number", "error"),
    ]  # fmt: skip
    cited = [event.citation.source for event in events if isinstance(event, CitationAdded)]
    assert [(source.n, source.title) for source in cited] == [(7, "/one"), (8, "/two")]
    assert files(events)[0] == "size.txt"
    assert len(files(events)) == 2
    observations = [(m.metadata or "", m.text) for m in conversation.messages if m.role == "observation"]
    assert [metadata for metadata, _ in observations] == [
        "browser_result", "quote_result [7†source]", "quote_result [8†source]", "system_error", "", "",
        "cogview_result", "", "system_error",
    ]  # fmt: skip
    texts = [text for _, text in observations]
    assert "/one says 9.4 billion." in texts[1]
    assert texts[4] == "18.8"
    assert texts[5].startswith("9\n"), "variables stay"
    assert texts[7] == "2"
    assert "seed" in texts[8], "it is said what to fix"
    order = [script.prompts[0].index(f"\n## {name}\n") for name in ("simple_browser", "python", "cogview")]
    assert order == sorted(order) and script.prompts[0].index("## random_number") > order[2]  # noqa: PT018
    script.llm.prepare(ChatRequest.of(conversation.messages))


def test_the_same_in_front_of_a_server(tmp_path: Path) -> None:
    def answer(prompt: str) -> str:  # the server is asked other things first
        if "<|observation|>" in prompt:
            return "\nIt is 2."
        return '\nI draw.<|assistant|>random_number\n{"seed": 1, "range": [1, 6]}<|observation|>'

    script = Script(tmp_path, [answer])
    conversation = Conversation()
    conversation.ask("Draw a number.")
    with (
        serve(config("tiny"), script.llm) as server,
        LLM(str(tmp_path), backend="remote", base_url=server.url) as remote,
    ):
        events = list(Agent(remote, [random_number], today=TODAY).run(conversation))
    assert ending(events) == ("completed", "stop")
    assert states(events)[-1] == ("random_number", "done")
    assert "<|observation|>\n2<|assistant|>" in script.prompts[-1]
    assert shown_text(events) == "I draw.It is 2."
