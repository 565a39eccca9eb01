"""Command lines as commands get them."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm4.cli.commands import COMMANDS
from glm4.cli.parameters import Argument, Option, UsageError, declared
from glm4.cli.parser import read

FUNCTIONS: dict[str, Callable[..., None]] = {name: row.load(name)[1] for name, row in COMMANDS.items()}

VALUES = st.sampled_from(
    ["8", "0", "12", "-1", "1.5", "1e3", "nan", " 7", "٣", "", "x", "a b", "a=b", "-", "--", "-m", "int8", "你好", "%s"]
)


def reading(name: str, *args: str) -> dict[str, Any]:
    """What was given; fields of dataclasses that have their defaults are left out."""
    flat: dict[str, Any] = {}
    for key, value in read(FUNCTIONS[name], list(args)).items():
        if is_dataclass(value) and not isinstance(value, type):
            defaults = asdict(type(value)())
            flat |= {field: entry for field, entry in asdict(value).items() if entry != defaults[field]}
        else:
            flat[key] = value
    return flat


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("chat", [], {}),
        ("chat", ["hi", "-m", "starter"], {"prompt": "hi", "model": "starter"}),
        ("chat", ["-mstarter", "hi"], {"prompt": "hi", "model": "starter"}),
        ("chat", ["--max-tokens", "1", "--temperature=0", "--plain"], {"max_tokens": 1, "temperature": 0, "plain": 1}),
        ("chat", ["--temperature", "-1", "-5"], {"temperature": -1, "prompt": "-5"}),
        ("chat", ["--max-tokens", "1", "--max-tokens", "2"], {"max_tokens": 2}),
        ("chat", ["--stop", "a", "--stop=b=c", "--stop=-x"], {"stop": ["a", "b=c", "-x"]}),
        ("chat", ["--system", "- a list", "--stop", "-"], {"system": "- a list", "stop": ["-"]}),
        ("chat", ["--system=", ""], {"system": "", "prompt": ""}),
        ("chat", ["--plain", "--", "--plain"], {"plain": True, "prompt": "--plain"}),
        ("chat", ["--max-model-len", "9", "--kv-cache-dtype=fp32"], {"max_model_len": 9, "kv_cache_dtype": "fp32"}),
        ("chat", ["-tp", "1", "-pp=2", "-dp", "1"], {"tensor_parallel_size": 1, "pipeline_parallel_size": 2}),
        ("serve", ["--gpu-memory-utilization", "0.8"], {"gpu_memory_utilization": 0.8}),
        ("serve", ["--lora", "a=b", "--adapter", "c=d"], {"lora": ["a=b", "c=d"]}),
        ("ui", ["--adapter", "c=d"], {"lora": ["c=d"]}),
        ("chat", ["--adapter", "a"], {"lora": "a"}),
        ("generate", ["--adapter=a", "x"], {"lora": "a", "prompt": "x"}),
        ("read", ["--adapter", "a", "f"], {"lora": "a", "words": ["f"]}),
        ("generate", ["-n", "2", "--kv-dtype", "int8"], {"n": 2, "kv_cache_dtype": "int8"}),
        ("quantize", ["m", "--to", "int4", "-o", "d"], {"model": "m", "to": "int4", "output": Path("d")}),
        ("batch", ["a", "--json", "b"], {"input_file": Path("a"), "output_file": Path("b"), "json_summary": True}),
        ("serve", ["--kv-memory", "0.5", "-m", "a", "-m", "b"], {"kv_memory": 0.5, "model": ["a", "b"]}),
        ("serve", ["--port", "0", "a", "--store=s"], {"port": 0, "first": "a", "store_path": Path("s")}),
        ("bench", ["--batch", "4", "--batch", "8"], {"batch": [4, 8]}),
        # An option whose value may be left out takes no word after it.
        ("batch", ["--ray", "a", "b"], {"ray": "local", "input_file": Path("a"), "output_file": Path("b")}),
        ("serve", ["--ray=h:6379", "a", "--replicas", "2"], {"ray": "h:6379", "first": "a", "replicas": 2}),
    ],
)
def test_lines_are_read(name: str, args: list[str], expected: dict[str, Any]) -> None:
    assert reading(name, *args) == expected


@pytest.mark.parametrize(("option", "value"), [("--calibrate", True), ("--no-calibrate", False)])
def test_a_choice_can_be_made_either_way(option: str, value: bool) -> None:
    assert reading("quantize", "m", "--to", "int4", "-o", "d", option)["calibrate"] is value


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("chat", ["--max-tok", "1"], "no such option: --max-tok; did you mean --max-tokens?"),  # not an abbreviation
        ("chat", ["-m", "-x"], "option '--model' needs a value"),
        ("chat", ["--max-tokens", "1_000.5"], "invalid value for '--max-tokens': '1_000.5' is not a whole number"),
        ("chat", ["--threads", "0"], "invalid value for '--threads': it must be between 1 and 1024, not 0"),
        ("generate", ["-n", "0"], "invalid value for '--n': it must be at least 1, not 0"),
        ("serve", ["--queue-timeout", "nan"], "invalid value for '--queue-timeout': it must be at least 0.1, not nan"),
        ("serve", ["--nope", "--port", "1"], "no such option: --nope"),
        ("info", ["--nope"], "no such option: --nope"),
        ("pull", ["m", "--tensor-parallel-size", "1"], "no such option: --tensor-parallel-size"),
        ("quantize", ["m", "--to", "int4", "-o", "d", "--no-force"], "no such option: --no-force"),
    ],
)
def test_mistakes_are_named(name: str, args: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(FUNCTIONS[name], args)
    assert str(caught.value).startswith(says)


def spellings(name: str) -> list[str]:
    known = [spelling for parameter in declared(FUNCTIONS[name]) for spelling in parameter.spellings]
    return [*known, "--nope", "-x", "-tp", "-ngl"]


@st.composite
def command_lines(draw: st.DrawFn) -> tuple[str, list[str]]:
    name = draw(st.sampled_from(sorted(COMMANDS)))
    option = st.sampled_from(spellings(name))
    pair = st.tuples(option, VALUES)
    part = st.one_of(pair.map(list), pair.map(lambda p: ["=".join(p)]), pair.map(lambda p: ["".join(p)]))
    alone = st.one_of(option, VALUES).map(lambda text: [text])
    return name, [word for words in draw(st.lists(st.one_of(part, alone), max_size=5)) for word in words]


@given(command_lines())
@settings(max_examples=400, deadline=None)
def test_any_line_is_read_or_a_usage_error(line: tuple[str, list[str]]) -> None:
    name, args = line
    with contextlib.suppress(UsageError):
        inspect.signature(FUNCTIONS[name]).bind(**read(FUNCTIONS[name], args))


def test_the_environment_gives_what_the_line_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLM4_MODEL", "a b")
    assert reading("chat", "hi") == {"prompt": "hi", "model": "a b"}
    assert reading("chat", "-m", "c") == {"model": "c"}
    monkeypatch.setenv("GLM4_MODEL", "")
    assert reading("chat") == {}
    monkeypatch.setenv("GLM4_API_KEY", "a-long-key another-key")
    assert reading("serve") == {"api_key": ["a-long-key", "another-key"]}


def test_every_type_is_read() -> None:
    def command(
        where: Annotated[Path, Argument(help="x")],
        count: Annotated[int, Option(help="x")] = 1,
        shares: Annotated[list[float] | None, Option("--share", help="x")] = None,
        on: Annotated[bool, Option("--on", help="x")] = False,
    ) -> None: ...

    assert read(command, ["a", "--count", "2", "--share", "1", "--share=.5", "--on"]) == {
        "where": Path("a"),
        "count": 2,
        "shares": [1.0, 0.5],
        "on": True,
    }
    assert read(command, ["a"]) == {"where": Path("a")}
