"""Plain command lines mean the same with and without Typer, and what is not plain is left to it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm4.cli.commands import COMMANDS
from glm4.cli.parameters import Argument, Option, Parameter, plain_arguments
from glm4.cli.typer_app import load_command

FUNCTIONS: dict[str, Callable[..., None]] = {name: row.load(name)[1] for name, row in COMMANDS.items()}
PARSERS: dict[str, Any] = {name: load_command(name) for name in COMMANDS}

VALUES = st.sampled_from(
    ["8", "0", "12", "-1", "1.5", "1e3", "1_0", " 7", "٣", "", "x", "a b", "a=b", "-", "--", "-m", "int8", "你好", "."]
)


def declarations(function: Callable[..., None]) -> list[Parameter]:
    hints = get_type_hints(function, include_extras=True).values()
    return [part for hint in hints for part in getattr(hint, "__metadata__", ()) if isinstance(part, Parameter)]


def spellings(name: str) -> list[str]:
    """Everything that begins with a dash in a command's parser, and more."""
    known = [spelling for param in PARSERS[name].params for spelling in (*param.opts, *param.secondary_opts)]
    declared = [name for param in declarations(FUNCTIONS[name]) for name in param.names]
    return [*(spelling for spelling in (*known, *declared) if spelling.startswith("-")), "--help", "--nope", "-x"]


@st.composite
def command_lines(draw: st.DrawFn) -> tuple[str, list[str]]:
    name = draw(st.sampled_from(sorted(COMMANDS)))
    option = st.sampled_from(spellings(name))
    pair = st.tuples(option, VALUES)
    part = st.one_of(pair.map(list), pair.map(lambda p: ["=".join(p)]), pair.map(lambda p: ["".join(p)]))
    alone = st.one_of(option, VALUES).map(lambda text: [text])
    return name, [word for words in draw(st.lists(st.one_of(part, alone), max_size=5)) for word in words]


def assert_same(name: str, args: list[str]) -> dict[str, Any] | None:
    """What the plain reading gave, having compared it with Typer's if there is one."""
    plain = plain_arguments(FUNCTIONS[name], args)
    if plain is not None:
        defaults = {
            key: parameter.default
            for key, parameter in inspect.signature(FUNCTIONS[name]).parameters.items()
            if parameter.default is not parameter.empty
        }
        typers = PARSERS[name].make_context(name, list(args)).params
        assert {key: value or None for key, value in typers.items()} == {
            key: value or None for key, value in (defaults | plain).items()
        }
        assert {key: type(plain[key]) for key in plain} == {key: type(typers[key]) for key in plain}
    return plain


@given(command_lines())
@settings(max_examples=400, deadline=None)
def test_what_is_read_without_typer_is_what_typer_reads(line: tuple[str, list[str]]) -> None:
    assert_same(*line)


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("chat", [], {}),
        ("chat", ["hi", "-m", "starter"], {"prompt": "hi", "model": "starter"}),
        ("chat", ["--max-tokens", "1", "--temperature=0", "--plain"], {"max_tokens": 1, "temperature": 0, "plain": 1}),
        ("chat", ["--stop", "a", "--stop=b=c"], {"stop": ["a", "b=c"]}),
        ("chat", ["--system=", ""], {"system": "", "prompt": ""}),
        ("generate", ["-n", "2", "--kv-dtype", "int8"], {"n": 2, "kv_dtype": "int8"}),
        ("quantize", ["m", "--to", "int4", "-o", "d"], {"model": "m", "to": "int4", "output": Path("d")}),
        ("serve", ["--kv-memory", "0.5", "-m", "a", "-m", "b"], {"kv_memory": 0.5, "model": ["a", "b"]}),
    ],
)
def test_plain_lines_are_read(name: str, args: list[str], expected: dict[str, Any]) -> None:
    assert assert_same(name, args) == expected


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("chat", ["--help"]),
        ("chat", ["--nope"]),
        ("chat", ["a", "b"]),
        ("chat", ["--", "a"]),
        ("chat", ["--max-tokens"]),
        ("chat", ["--max-tokens", "0"]),
        ("chat", ["--max-tokens", "x"]),
        ("chat", ["--max-tokens", "1_0"]),
        ("chat", ["--max-tokens", "1", "--max-tokens", "2"]),
        ("chat", ["-mstarter"]),
        ("chat", ["-m=starter"]),
        ("chat", ["-m", "-x"]),
        ("chat", ["--plain=1"]),
        ("generate", ["-n", "0"]),
        ("serve", ["--port", "65536"]),
        ("info", []),
        ("quantize", ["m", "--to", "int4"]),
        ("quantize", ["m", "--to", "int4", "-o", "d", "--no-calibrate"]),
        ("quantize", ["m", "--to", "int4", "-o", "d", "--calibrate/--no-calibrate"]),
    ],
)
def test_all_else_is_left_to_typer(name: str, args: list[str]) -> None:
    assert plain_arguments(FUNCTIONS[name], args) is None


def test_the_environment_gives_what_the_line_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLM4_MODEL", "a b")
    assert assert_same("chat", ["hi"]) == {"prompt": "hi", "model": "a b"}
    assert assert_same("chat", ["-m", "c"]) == {"model": "c"}
    monkeypatch.setenv("GLM4_MODEL", "")
    assert assert_same("chat", []) == {}
    monkeypatch.setenv("GLM4_API_KEY", "a-long-key another-key")
    assert plain_arguments(FUNCTIONS["serve"], []) is None  # several values in one text: Typer splits them


def test_parameters_that_are_not_declared_are_left_to_typer() -> None:
    def undeclared(text: str = "") -> None: ...

    def of_another_type(values: Annotated[dict[str, str] | None, Option("--values")] = None) -> None: ...

    def declared(text: Annotated[str, Argument(help="x")] = "") -> None: ...

    assert plain_arguments(undeclared, []) is plain_arguments(of_another_type, []) is None
    assert plain_arguments(declared, ["x"]) == {"text": "x"}
