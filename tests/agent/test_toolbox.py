"""Tools by name: what is opened is closed, and what is not there is said."""

from __future__ import annotations

import pytest
from scripted_agent import PlainTool

from glm4.agent import toolbox
from glm4.agent.tool import Tool
from glm4.agent.toolbox import ToolRow, ToolServices, open_tools
from glm4.errors import Glm4Error, InvalidRequestError


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[PlainTool]:
    """Tools that were opened as `one`, `two` and so on; `broken` cannot be."""
    found: list[PlainTool] = []

    def opener(name: str) -> ToolRow:
        def open_(services: ToolServices) -> list[Tool]:
            found.append(PlainTool(name, lambda invocation, context: name))
            return [found[-1]]

        return ToolRow(open_, "")

    def broken(services: ToolServices) -> list[Tool]:
        raise Glm4Error("no sandbox here")

    table = {name: opener(name) for name in ("one", "two")} | {"broken": ToolRow(broken, "")}
    monkeypatch.setattr(toolbox, "TOOLS", table)
    return found


def test_tools_are_opened_in_order_and_once(opened: list[PlainTool]) -> None:
    tools = open_tools(["two", "one", "two"], ToolServices())
    assert [tool.name for tool in tools] == ["two", "one"]
    assert [tool.closed for tool in opened] == [0, 0]


def test_what_was_opened_is_closed_if_a_later_one_cannot_be(opened: list[PlainTool]) -> None:
    with pytest.raises(Glm4Error, match="no sandbox here"):
        open_tools(["one", "two", "broken"], ToolServices())
    assert [tool.closed for tool in opened] == [1, 1]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("pyton", "did you mean python"),
        ("telephone", "tools: python, browser, image, files, mcp:NAME"),
        ("", "there is no tool ''"),
        ("mcp:files", "needs a file that lists MCP servers"),
    ],
)
def test_what_is_not_there_is_said(name: str, problem: str) -> None:
    with pytest.raises(InvalidRequestError, match=problem) as caught:
        open_tools([name], ToolServices())
    assert caught.value.param == "tools"


def test_every_row_has_a_summary() -> None:
    for row in toolbox.TOOLS.values():
        assert row.summary.endswith(".")
        assert 10 < len(row.summary) < 80


def test_an_image_tool_needs_its_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLM4_IMAGE_URL", raising=False)
    with pytest.raises(InvalidRequestError, match="needs the address of a service"):
        open_tools(["image"], ToolServices())
    (tool,) = open_tools(["image"], ToolServices(image_url="http://127.0.0.1:9/v1"))
    assert (tool.name, tool.builtin) == ("image", "cogview")
    tool.close()


def test_files_are_opened_without_a_sandbox_being_started() -> None:
    (tool,) = open_tools(["files"], ToolServices())
    assert [function.name for function in tool.functions] == ["search_files", "read_file"]
