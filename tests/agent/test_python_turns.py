"""The python tool in a turn of an agent: GLM-4's own form, and a function, with a scripted model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from python_conversations import make_bare_home, needs_sandbox
from scripted_agent import TODAY, Script, ending, files, outputs, shown_text, states

from glm4.agent.agent import Agent
from glm4.agent.conversation import Conversation
from glm4.agent.file_store import FolderFileStore
from glm4.agent.tools.python import PythonTool
from glm4.chat.messages import Message

pytestmark = needs_sandbox


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PythonTool]:
    monkeypatch.setenv("GLM4_HOME", str(make_bare_home(tmp_path / "home")))
    tool = PythonTool()
    yield tool
    tool.close()


def _conversation(folder: Path) -> Conversation:
    return Conversation("c", [Message("user", "What is 6 times 7?")], files=FolderFileStore(folder / "files"))


def test_glm4_sends_code_and_reads_what_it_printed(tmp_path: Path, tool: PythonTool) -> None:
    script = Script(
        tmp_path / "m",
        [
            "python\nx = 6 * 7\nprint(x)\nopen('/mnt/data/x.txt', 'w').write(str(x));<|observation|>",
            "python\nx / 0<|observation|>",
            "\nIt is 42.",
        ],
    )
    conversation = _conversation(tmp_path)
    events = list(Agent(script.llm, [tool], today=TODAY).run(conversation))
    assert ending(events)[0] == "completed"
    assert states(events) == [
        (tool.name, state) for state in ("writing", "running", "done", "writing", "running", "error")
    ]
    assert shown_text(events).strip() == "It is 42."
    assert outputs(events).startswith("42\n")
    assert files(events) == ["x.txt"]
    assert "## python\n" in script.prompts[0]
    assert "<|assistant|>python\nx = 6 * 7" in script.prompts[1]
    assert "<|observation|>\n42\n[/mnt/data/x.txt (2 B) is offered to the user]<|assistant|>" in script.prompts[1]
    assert "ZeroDivisionError: division by zero<|assistant|>" in script.prompts[2]


def test_other_models_call_a_function(tmp_path: Path, tool: PythonTool) -> None:
    call = json.dumps({"name": "python", "arguments": {"code": "print(6 * 7)"}})
    script = Script(tmp_path / "m", [f"<tool_call>\n{call}\n</tool_call>", "It is 42."], dialect="chatml")
    events = list(Agent(script.llm, [tool], today=TODAY).run(_conversation(tmp_path)))
    assert ending(events)[0] == "completed"
    assert (tool.name, "done") in states(events)
    assert "<tool_response>\n42\n</tool_response>" in script.prompts[1]
