"""Options of `glm4 serve` for the assistant: how clients name its tools."""

from pathlib import Path

import pytest

from glm4.agent.toolbox import open_tools
from glm4.cli.agent_options import AgentOptions
from glm4.errors import InvalidRequestError

TOOLS = '''
from glm4 import tool

@tool
def weather(city: str) -> str:
    """The weather."""
    return f"rain in {city}"
'''


def test_clients_do_not_see_where_a_file_of_functions_is(tmp_path: Path) -> None:
    folder = tmp_path / "secret folder"
    folder.mkdir()
    (folder / "weather.py").write_text(TOOLS)
    config = AgentOptions(tools=[str(folder / "weather.py")]).config()
    assert config.tools == ("weather.py",)
    (tool,) = open_tools(("weather.py",), config.services)
    assert [function.name for function in tool.functions] == ["weather"]


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "weather.py").write_text(TOOLS)
    with pytest.raises(InvalidRequestError, match="same name"):
        AgentOptions(tools=[f"{tmp_path}/a/weather.py", f"{tmp_path}/b/weather.py"]).config()
