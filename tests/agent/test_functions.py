"""`@tool`: what a model is offered of a function, what comes back of a call, and files of tools."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import enum
import functools
import io
import threading
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from function_calls import Heard, Kept, call, context_of, text_of
from PIL import Image
from pydantic import BaseModel
from scripted_agent import Script

import glm4
from glm4 import tool
from glm4.agent.agent import Agent
from glm4.agent.conversation import Conversation
from glm4.agent.events import CallChanged
from glm4.agent.files import StoredFile
from glm4.agent.functions import FunctionTool, load_tools
from glm4.agent.tool import Sources, Tool, ToolContext, ToolResult
from glm4.agent.toolbox import ToolServices, open_tools
from glm4.chat.messages import Message
from glm4.errors import InvalidRequestError, ToolError


class Color(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Address(BaseModel):
    street: str
    day: datetime.date


# What a model is offered


def test_the_definition_comes_from_hints_and_docstring() -> None:
    @tool
    def weather(
        city: Annotated[str, "its English name"],
        days: int = 3,
        units: Literal["c", "f"] = "c",
        day: str = None,  # type: ignore[assignment]  # noqa: RUF013  (as people write)
    ) -> str:
        """The weather of a city.

        Forecasts are from the coast guard.

        Args:
            city: not this
            days (int): how many days,
                today included
            units: of temperatures

        Returns:
            Text.
        """
        return f"{city} {days} {units} {day}"

    assert weather.functions[0].definition() == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.\n\nForecasts are from the coast guard.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "its English name"},
                    "days": {"type": "integer", "description": "how many days, today included", "default": 3},
                    "units": {"enum": ["c", "f"], "description": "of temperatures", "default": "c"},
                    "day": {"type": ["string", "null"]},
                },
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    assert (weather.name, weather.approval, weather.timeout, weather.parallel) == ("weather", "always", 60.0, False)
    assert weather("Rome") == "Rome 3 c None", "still a function"
    assert weather.__doc__ is not None
    assert text_of(call(weather, city="Rome", day=None)) == "Rome 3 c None"


def test_options() -> None:
    @tool(name="look-up", approval="ask", timeout=5, parallel=True)
    def find(x: int) -> int:
        """Find."""
        return x

    assert (find.name, find.approval, find.timeout, find.parallel) == ("look-up", "ask", 5.0, True)
    assert find.functions[0].name == "look-up"
    assert isinstance(find, Tool)


def test_bound_methods_partials_and_objects() -> None:
    class Counter:
        def __init__(self) -> None:
            self.count = 0

        def add(self, by: int) -> int:
            """Count."""
            self.count += by
            return self.count

        def __call__(self, by: int) -> int:
            """Count down."""
            return self.add(-by)

    counter = Counter()
    assert text_of(call(tool(counter.add), by=2)) == "2"
    assert text_of(call(FunctionTool(counter, name="down"), by=1)) == "1"
    assert text_of(call(FunctionTool(functools.partial(counter.add), name="up"), by=1)) == "2"


def test_what_a_function_is_not_offered_for() -> None:
    def check_refused(function: Any, *words: str, **options: Any) -> None:
        with pytest.raises(ToolError) as caught:
            tool(**options)(function)
        for word in words:
            assert word in str(caught.value)

    def stars(*names: str) -> None:
        """A."""

    def double_stars(**names: str) -> None:
        """A."""

    def bare(x) -> None:  # type: ignore[no-untyped-def]
        """A."""

    def method(self, x: int) -> None:  # type: ignore[no-untyped-def]
        """A."""

    def silent(x: int) -> None:
        pass

    def path(x: list[Path]) -> None:
        """A."""

    def raw(x: bytes | None) -> None:
        """A."""

    def keys(x: dict[float, int]) -> None:
        """A."""

    def unknown(x: "Nobody") -> None:  # type: ignore[name-defined]  # noqa: F821, UP037
        """A."""

    def yields(x: int) -> Any:
        """A."""
        yield x

    def größe(x: int) -> None:
        """A."""

    check_refused(stars, "tool stars: a model cannot write *names; take a list: names: list[…]")
    check_refused(double_stars, "take a dictionary: names: dict[str, …]")
    check_refused(bare, "tool bare: parameter x has no type hint; write one")
    check_refused(method, "parameter self has no type hint", "tool(object.method)")
    check_refused(silent, "it has no docstring; write one")
    check_refused(path, "tool path: parameter x: a model cannot write Path; take a str")
    check_refused(raw, "a model cannot write bytes; take a str")
    check_refused(keys, "keys of a dictionary must be str or int")
    check_refused(unknown, "its type hints cannot be read", "Nobody")
    check_refused(yields, "return a value instead")
    check_refused(größe, "letters, digits, _ and -", "@tool(name=…)")
    check_refused(silent, "approval must be always, ask or never", approval="perhaps")
    check_refused(silent, "timeout", timeout=0)
    check_refused(Point, "in front of a function")
    with pytest.raises(ToolError, match="in front of a function"):
        tool("name")  # type: ignore[call-overload]


def test_positional_and_keyword_only_parameters() -> None:
    @tool
    def order(a: int, b: int = 5, /, c: int = 7, *, d: int = 9) -> list[int]:
        """Order."""
        return [a, b, c, d]

    assert text_of(call(order, d=1, a=2)) == "[2, 5, 7, 1]"
    assert text_of(call(order, a=2, b=3, c=4)) == "[2, 3, 4, 9]"


def test_the_context_is_not_the_models() -> None:
    @tool
    def say(text: str, context: ToolContext) -> str:
        """Say it."""
        context.output(text)
        return f"{context.sources.add('Title', url='https://a').n}"

    assert say.functions[0].parameters["properties"] == {"text": {"type": "string"}}
    heard = Heard()
    assert text_of(call(say, context_of(heard=heard), text="hello")) == "7"
    assert heard.said == ["hello"]
    assert call(say, text="a", context={}).failed


# What comes back


def returning(value: Any) -> FunctionTool[..., Any]:
    @tool
    def give() -> Any:
        """Give."""
        return value() if callable(value) else value

    return give


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain 北京\n", "plain 北京\n"),
        ({"a": "北京", "b": None}, '{"a": "北京", "b": null}'),
        (None, "null"),
        (3.5, "3.5"),
        ((1, 2), "[1, 2]"),
        (Point(1), '{"x": 1, "y": 0}'),
        ([Color.RED, 2], '["red", 2]'),
        (datetime.date(2024, 5, 31), '"2024-05-31"'),
        ({1}, "[1]"),
        (Address(street="Main", day=datetime.date(2024, 5, 31)), '{"street": "Main", "day": "2024-05-31"}'),
        (np.arange(3), "[0, 1, 2]"),
        ({"n": np.float32(0.5)}, '{"n": 0.5}'),
    ],
)
def test_values_are_read_as_text_or_json(value: Any, text: str) -> None:
    assert text_of(call(returning(value))) == text


def test_results_pass_as_they_are() -> None:
    result = ToolResult.of("a", "browser_result")
    assert call(returning(result)) is result


def test_values_without_a_form_are_the_functions_mistake() -> None:
    loop: list[Any] = []
    loop.append(loop)
    for value in (threading.Lock(), [threading.Lock()], {(1, 2): 3}, loop, {"data": b"x"}):
        with pytest.raises(ToolError, match=r"give returned a .* that JSON cannot hold"):
            call(returning(value))


def test_bytes_and_pictures_become_files() -> None:
    picture = Image.new("RGB", (4, 3), "red")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    for value in (buffer.getvalue(), bytearray(buffer.getvalue()), picture):
        heard, files = Heard(), Kept()
        said = text_of(call(returning([value]) if value is picture else returning(value), context_of(60, files, heard)))
        assert said == f"The user sees the file give.png (image/png, {len(files.data['give.png'])} bytes)."
        assert Image.open(io.BytesIO(files.data["give.png"])).size == (4, 3)
        assert [file.name for file in heard.files] == ["give.png"]
    heard = Heard()
    both = text_of(
        call(returning(("Here:", b"\x00", StoredFile("s", "a.csv", "text/csv", 3))), context_of(60, Kept(), heard))
    )
    assert both.splitlines()[0] == "Here:"
    assert [file.name for file in heard.files] == ["give.bin", "a.csv"]
    with pytest.raises(ToolError, match="keeps none"):
        call(returning(b"x"))


def test_what_a_function_raises_is_one_line_without_folders() -> None:
    def fail(error: BaseException) -> str:
        def raised() -> None:
            raise error

        result = call(returning(raised))
        assert result.failed
        return text_of(result)

    assert fail(ValueError("no\n  such  city")) == "ValueError: no such city"
    assert fail(KeyError()) == "KeyError"
    assert fail(SystemExit(1)) == "SystemExit: 1"
    missing = FileNotFoundError(2, "No such file or directory", "/home/anna/secret plans/../x/data.csv")
    assert "anna" not in fail(missing)
    assert "data.csv" in fail(missing)
    assert fail(ValueError("C:\\Users\\anna\\data.csv and ~/notes/b.txt")) == "ValueError: data.csv and b.txt"
    url = "https://example.org/a/b/c?d=/e and 1/2 or src/glm4/x.py"
    assert fail(ValueError(url)) == f"ValueError: {url}"
    assert len(fail(ValueError("x" * 10_000))) < 600
    with pytest.raises(InvalidRequestError, match="ours"):
        fail(InvalidRequestError("ours"))


def test_async_functions() -> None:
    ended: list[str] = []

    @tool
    async def wait(seconds: float) -> str:
        """Wait."""
        try:
            await asyncio.sleep(seconds)
        finally:
            ended.append("ended")
        return "waited"

    assert text_of(call(wait, seconds=0)) == "waited"
    assert text_of(call(wait, context_of(0.2), seconds=600)) == "TimeoutError: it took too long"
    context = context_of()
    threading.Timer(0.2, context.cancelled.set).start()
    before = time.monotonic()
    assert text_of(call(wait, context, seconds=600)) == "TimeoutError: it was stopped"
    assert time.monotonic() - before < 60
    assert ended == ["ended"] * 3
    waiting = wait(0)
    assert asyncio.iscoroutine(waiting)
    waiting.close()


def test_a_model_calls_a_function(tmp_path: Path) -> None:
    """With a tuple, which the sample tools of GLM-4's own demo asked for and could never get."""

    @tool
    def distance(start: tuple[float, float], end: Annotated[tuple[float, float], "a point, too"]) -> float:
        """How far it is."""
        assert isinstance(start, tuple)
        return abs(start[0] - end[0]) + abs(start[1] - end[1])

    script = Script(
        tmp_path,
        [
            'distance\n{"start": [0, 0], "end": "3, 4"}<|observation|>',
            'distance\n{"start": [0, 0], "end": [3, 4]}<|observation|>',
            "\nSeven.",
        ],
    )
    agent, conversation = Agent(script.llm, [distance]), Conversation("c", [Message("user", "How far?")], Sources())
    states = [event.state for event in agent.run(conversation) if isinstance(event, CallChanged)]
    assert states.count("error") == states.count("done") == 1
    assert "must be of type array" in script.prompts[1]
    assert "7.0" in script.prompts[2]
    assert '"description": "a point, too"' in script.prompts[0]


# Files of tools


def test_a_file_of_tools(tmp_path: Path) -> None:
    (tmp_path / "numbers_of_mine.py").write_text("SECRET = 41\n")
    path = tmp_path / "my-tools.py"
    path.write_text(
        '''
from __future__ import annotations
from dataclasses import dataclass
import numbers_of_mine
from glm4 import tool

@dataclass
class City:
    name: str

@tool
def zone(city: City) -> str:
    """The time zone."""
    return city.name + " time"

@tool(approval="ask")
def answer() -> int:
    """The answer."""
    return numbers_of_mine.SECRET + 1

again = answer
'''
    )
    tools = load_tools(path)
    assert [one.name for one in tools] == ["zone", "answer"]
    zone, answer = tools
    assert isinstance(zone, FunctionTool)
    assert isinstance(answer, FunctionTool)
    assert text_of(call(zone, city={"name": "Rome"})) == "Rome time"
    assert text_of(call(answer)) == "42"
    opened = open_tools([str(path)], ToolServices())
    assert [one.name for one in opened] == ["zone", "answer"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x = 1\n", "has no tools: put @tool in front of a function"),
        ("def f(:\n", ", line 1: SyntaxError"),
        ("x = 1\nimport nothing_of_that_name\n", ", line 2: ModuleNotFoundError"),
        ("raise SystemExit(3)\n", ", line 1: SystemExit: 3"),
        ("from glm4 import tool\n@tool\ndef f(x) -> None:\n    'A.'\n", "ToolError: tool f: parameter x has no type"),
        (
            "from glm4 import tool\n@tool\ndef f() -> None:\n    'A.'\n@tool(name='f')\ndef g() -> None:\n    'B.'\n",
            "has two tools of the name 'f'",
        ),
    ],
)
def test_files_that_are_none(tmp_path: Path, source: str, words: str) -> None:
    path = tmp_path / "tools_none.py"
    path.write_text(source)
    with pytest.raises(ToolError) as caught:
        load_tools(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_there_has_to_be_a_python_file(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="there is no such file"):
        load_tools(tmp_path / "nothing.py")
    (tmp_path / "tools.txt").write_text("")
    with pytest.raises(ToolError, match=r"ends in \.py"):
        load_tools(tmp_path / "tools.txt")


def test_tool_is_a_public_name() -> None:
    assert glm4.tool is tool
    assert "tool" in glm4.__all__
