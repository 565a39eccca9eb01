"""An agent's turn with tools of real MCP servers."""

from __future__ import annotations

from pathlib import Path

from mcp_helpers import opened, raw, sdk
from scripted_agent import TODAY, Script

from glm4.agent.agent import Agent
from glm4.agent.conversation import Conversation
from glm4.agent.steps import Decision
from glm4.agent.tool import Invocation, Tool


def test_a_turn_asks_calls_survives_a_crash_and_answers(tmp_path: Path) -> None:
    asked: list[str] = []

    def approve(tool: Tool, invocation: Invocation) -> Decision:
        asked.append(tool.about(invocation))
        return "once"

    answers = [
        'sdk__add\n{"a": 1, "b": 2}<|observation|>',
        "raw__crash\n{}<|observation|>",
        "raw__ok\n{}<|observation|>",
        "\nThree.",
    ]
    with opened(sdk(approval="always")) as good, opened(raw("normal")) as bad:
        script = Script(tmp_path, answers)
        conversation = Conversation()
        conversation.ask("What is 1 + 2?")
        list(Agent(script.llm, [good, bad], today=TODAY, approve=approve).run(conversation))
    results = [message.text for message in conversation.messages if message.role in ("tool", "observation")]
    assert results[0] == '{"sum": 3}'
    assert "ended with exit code 3" in results[1]
    assert results[2].startswith("ok ")
    assert conversation.messages[-1].text == "Three."
    assert asked == ["raw: crash {}", "raw: ok {}"]
