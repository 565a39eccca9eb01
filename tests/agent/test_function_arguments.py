"""Arguments of `@tool` functions: JSON that fits a hint's schema becomes a value of the hint's type."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, NewType, Optional, TypedDict, Union

import jsonschema
import numpy as np
import pytest
from function_calls import call, context_of, text_of
from pydantic import BaseModel, Field

from glm4 import tool
from glm4.agent.functions import FunctionTool
from glm4.agent.tool import Invocation
from glm4.chat.call_grammar import callables
from glm4.chat.dialects.table import dialect_for
from glm4.requests.grammar_compiler import GrammarCompiler
from vocabularies import tiny_chatml


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class Mode(enum.Enum):
    ONE = (1, 2)
    TWO = (3, 4)


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0
    labels: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        if self.x > 1000:
            raise ValueError("x is far away")


@dataclasses.dataclass(frozen=True)
class Tree:
    value: int
    parts: list[Tree] = dataclasses.field(default_factory=list)
    other: Tree | None = None


class Options(TypedDict, total=False):
    depth: int
    when: datetime.date


class Pair(NamedTuple):
    left: str
    right: Optional[float] = None  # noqa: UP045


class Address(BaseModel):
    street: str = Field(min_length=2)
    day: datetime.date


class Person(BaseModel):
    name: str
    home: Address
    age: int | None = None


UserId = NewType("UserId", int)

VALUES: list[tuple[Any, Any, Any]] = [
    # hint, JSON, value
    (str, "a", "a"),
    (int, 3, 3),
    (int, 3.0, 3),
    (float, 3, 3.0),
    (float, 0.5, 0.5),
    (bool, True, True),
    (None, None, None),
    (Any, {"a": [1]}, {"a": [1]}),
    (Optional[int], None, None),  # noqa: UP045
    (int | str, "3", "3"),
    (Union[float, int], 3, 3),  # noqa: UP007
    (int | list[int], [3], [3]),
    (Point | str, "here", "here"),
    (Point | str, {"x": 1}, Point(1)),
    (list[Point] | None, [{"x": 1}], [Point(1)]),
    (datetime.date | str, "2024-05-31", datetime.date(2024, 5, 31)),
    (datetime.date | str, "tomorrow", "tomorrow"),
    (Literal["a", 1, True, None], 1, 1),
    (Literal["a", 1, True, None], True, True),
    (Color, "blue", Color.BLUE),
    (Size, 2, Size.LARGE),
    (Mode, "TWO", Mode.TWO),
    (list, [1, "a"], [1, "a"]),
    (list[int], [1, 2], [1, 2]),
    (Sequence[Color], ["red"], [Color.RED]),
    (set[int], [1, 2], {1, 2}),
    (frozenset[str], ["a"], frozenset("a")),
    (tuple[int, str], [1, "a"], (1, "a")),
    (tuple[int, ...], [1, 2, 3], (1, 2, 3)),
    (tuple, [1, "a"], (1, "a")),
    (dict, {"a": 1}, {"a": 1}),
    (dict[str, Point], {"a": {"x": 1, "y": 2}}, {"a": Point(1, 2)}),
    (Mapping[int, str], {"-3": "a"}, {-3: "a"}),
    (dict[Color, int], {"red": 1}, {Color.RED: 1}),
    (Point, {"x": 1, "labels": ["a"]}, Point(1, 0, ["a"])),
    (Tree, {"value": 1, "parts": [{"value": 2}], "other": {"value": 3}}, Tree(1, [Tree(2)], Tree(3))),
    (Options, {"when": "2024-05-31"}, {"when": datetime.date(2024, 5, 31)}),
    (Options, {}, {}),
    (Pair, {"left": "a", "right": 1}, Pair("a", 1.0)),
    (Pair, {"left": "a"}, Pair("a")),
    (datetime.datetime, "2024-05-31T18:30:00Z", datetime.datetime(2024, 5, 31, 18, 30, tzinfo=datetime.timezone.utc)),
    (datetime.time, "18:30:00", datetime.time(18, 30)),
    (uuid.UUID, "123e4567-e89b-42d3-a456-426614174000", uuid.UUID("123e4567-e89b-42d3-a456-426614174000")),
    (UserId, 5, 5),
    (Annotated[int, "a number"], 5, 5),
    (
        Person,
        {"name": "A", "home": {"street": "Main", "day": "2024-05-31"}},
        Person(name="A", home=Address(street="Main", day=datetime.date(2024, 5, 31))),
    ),
    (
        list[Person] | None,
        [{"name": "A", "home": {"street": "Main", "day": "2024-05-31"}, "age": 3}],
        [Person(name="A", home=Address(street="Main", day=datetime.date(2024, 5, 31)), age=3)],
    ),
]


def noting(hint: Any) -> tuple[FunctionTool[..., Any], list[Any]]:
    """A tool with one parameter of this type, and what it has been called with."""
    noted: list[Any] = []

    def note(x):  # type: ignore[no-untyped-def]
        """Note it."""
        noted.append(x)
        return "noted"

    note.__annotations__ = {"x": hint}
    return tool(note), noted


@pytest.mark.parametrize(("hint", "written", "value"), VALUES)
def test_arguments_arrive_as_the_types_they_have(hint: Any, written: Any, value: Any) -> None:
    """The tuple among them: the sample tool of GLM-4's own demo never got one from a model."""
    made, noted = noting(hint)
    schema = made.functions[0].parameters
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate({"x": written}, schema)
    assert text_of(call(made, x=written)) == "noted"
    assert noted == [value]
    assert type(noted[0]) is type(value)


REFUSED: list[tuple[Any, Any, str]] = [
    (int, "3", "x must be of type integer, not string"),
    (int, True, "x must be of type integer"),
    (int, 3.5, "x must be of type integer"),
    (str, None, "x must be of type string, not null"),
    (float, "a", "x must be of type number"),
    (int | str, [], "x must be of type integer or string"),
    (Literal["a", "b"], "c", 'x must be one of ["a", "b"]'),
    (Literal[1], True, "x must be one of [1]"),
    (Color, "green", 'x must be one of ["red", "blue"]'),
    (tuple[int, str], [1], "x must be at least 2 items long"),
    (tuple[int, str], ["a", "b"], "x[0] must be of type integer"),
    (tuple[int, str], [1, "b", 3], "x must be at most 2 items long"),
    (tuple[int, str], "1, b", "x must be of type array, not string"),
    (list[list[int]], [[1], ["a"]], "x[1][0] must be of type integer"),
    (set[Any], [[1]], "x may hold no objects and no arrays"),
    (dict[int, str], {"a": "b"}, "x may not have the key 'a'"),
    (dict[Color, int], {"green": 1}, "x may not have the key 'green'"),
    (Point, {"y": 1}, "x.x is missing"),
    (Point, {"x": 1, "z": 1}, "there is no argument x.z (known: x, y, labels)"),
    (Point, {"x": 1001}, "x: x is far away"),
    (Tree, {"value": 1, "parts": [{"value": "a"}]}, "x.parts[0].value must be of type integer"),
    (Options, {"when": "tomorrow"}, "x.when must be a date such as 2024-05-31, not 'tomorrow'"),
    (datetime.datetime, "now", "x must be a date-time such as 2024-05-31T18:30:00Z, not 'now'"),
    (uuid.UUID, "1", "x must be a uuid such as"),
    (Person, {"name": "A", "home": {"street": "Main", "day": "2024-02-31"}}, "x.home.day: "),
    (Point | int, {"x": "a"}, "x.x must be of type integer"),
]


@pytest.mark.parametrize(("hint", "written", "said"), REFUSED)
def test_what_does_not_fit_is_said_so_that_a_model_can_mend_it(hint: Any, written: Any, said: str) -> None:
    made, noted = noting(hint)
    result = call(made, x=written)
    assert result.failed
    assert text_of(result).startswith("note was not called: ")
    assert said in text_of(result)
    assert not noted


def test_what_a_model_says_twice_is_once_in_a_set() -> None:
    made, noted = noting(set[int])
    assert not call(made, x=[1, 1, 2]).failed
    assert noted == [{1, 2}]


def test_other_mistakes_of_a_call() -> None:
    made, noted = noting(int)
    for written, said in (
        ("{}", "x is missing"),
        ('{"x": 1, "y": 2}', "there is no argument y (known: x)"),
        ("[1]", "must be a JSON object"),
        ('{"x": 1', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
    ):
        result = made.run(Invocation("c", "note", written), context_of())
        assert result.failed
        assert said in text_of(result)
    assert not noted


def test_every_argument_that_a_grammar_lets_through_arrives() -> None:
    """Random calls that fit the schema as grammars enforce it."""

    @tool
    def all_kinds(
        a: int,
        b: tuple[int, bool],
        c: Literal["x", 2],
        d: Point,
        e: Tree,
        f: dict[Color, bool],
        g: Color | None = None,
        h: set[bool] | None = None,
        i: Options | None = None,
        j: Pair | None = None,
        k: uuid.UUID | None = None,
    ) -> int:
        """Take all."""
        assert isinstance(b, tuple)
        assert isinstance(d, Point)
        assert isinstance(e, Tree)
        assert h is None or isinstance(h, set)
        return a

    tokenizer = tiny_chatml()
    (described,) = callables([all_kinds.functions[0].definition()], ())
    compiler = GrammarCompiler(tokenizer, tokenizer.size, dialect_for("chatml"))
    constraint = compiler.answer(None, [described], parallel=False)
    short = np.array([len(tokenizer.token_bytes(i)) == 1 and chr(i) in "0123456789" for i in range(256)])
    arrived = 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        matcher, ids = constraint.start(), list[int]()
        while not matcher.is_finished() and len(ids) < 3000:
            forced = list(matcher.forced())
            if not forced:
                allowed = np.flatnonzero(matcher.allowed())
                closing = [i for i in allowed if i < 256 and not short[i] and chr(i) in '"}],']
                forced = [int(rng.choice(closing if closing and rng.random() < 0.7 else allowed))]
            assert matcher.accept(forced) == len(forced)
            ids += forced
        written = tokenizer.decode(ids, skip_special_tokens=False)
        if len(ids) < 3000:
            arguments = json.loads(written.split("\n")[1])["arguments"]
            result = call(all_kinds, **arguments)
            assert result.failed is (arguments["d"]["x"] > 1000), (arguments, text_of(result))
            arrived += not result.failed
    assert arrived
