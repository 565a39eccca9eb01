"""Grammars made to end the process: each costs its own request, and says which limit it broke."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glm4.chat.call_grammar import with_options
from glm4.engine.protocol import TokenConstraint
from glm4.errors import BusyError, InvalidRequestError
from glm4.grammars.trial import describe
from glm4.requests import grammar_guard
from glm4.requests.grammar_compiler import GrammarCompiler
from glm4.requests.grammar_guard import LIMITS, PLAIN_LEVELS, GrammarGuard, is_plain, is_plain_form
from glm4.requests.processor import Processor
from glm4.sampling_params import StructuredOutputs
from glm4.system.helper import Helper
from hostile_grammars import HOSTILE, LINKS, chain
from tiny import VOCAB_SIZE, write_folder

NORMAL = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrammarCompiler]:
    text = Processor.open(write_folder(tmp_path_factory.mktemp("model")))
    made = GrammarCompiler(text.tokenizer, VOCAB_SIZE, text.dialect)
    yield made
    made.close()


def compiles(compiler: GrammarCompiler, **form: Any) -> TokenConstraint:
    return compiler.raw(StructuredOutputs(**form))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ("properties", "copies") else pytest.mark.thorough) for name in HOSTILE],
)
def test_a_hostile_grammar_is_refused_by_its_limit_and_others_compile(compiler: GrammarCompiler, name: str) -> None:
    for _ in range(2):  # the second time from memory
        with pytest.raises(InvalidRequestError) as caught:
            compiles(compiler, **HOSTILE[name])
        assert caught.value.param == "structured_outputs"
        assert "backtrace" not in str(caught.value)
        assert "panicked" not in str(caught.value)
        assert len(str(caught.value)) < 500
    if name in LINKS and name not in ("alone", "beside"):
        assert "nests too deeply" in str(caught.value)
        assert str(PLAIN_LEVELS) in str(caught.value)
    if name in ("intersections", "patterns"):
        assert "seconds" in str(caught.value) or "MB" in str(caught.value)
    assert compiles(compiler, json=NORMAL).start().allowed().any()
    assert compiles(compiler, grammar=f'start: "{name[0]}" | "b"').start().allowed().any()


def test_ordinary_forms_start_no_process(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        raise AssertionError("a process was asked")

    monkeypatch.setattr(GrammarGuard, "why_not", refuse)
    types = json.loads(Path(__file__).with_name("field_types.json").read_text())
    ordinary = [name for name, schema in types.items() if is_plain(schema)]
    assert len(ordinary) > 40
    compiles(compiler, json=NORMAL | {"title": "first"})
    compiles(compiler, regex="[0-9]{3}-[a-z]+")
    compiles(compiler, choice=["yes", "no"])
    compiles(compiler, json_object=True)


@pytest.mark.parametrize("link", [name for name in LINKS if is_plain(chain(name, 1))])
def test_the_deepest_plain_schema_needs_a_fraction_of_the_stack(compiler: GrammarCompiler, link: str) -> None:
    """In a process, on the stack that other grammars are tried with: an eighth of what is used here."""
    count = next(n for n in range(PLAIN_LEVELS, 0, -1) if is_plain(chain(link, n)))
    assert count >= 60
    assert not is_plain(chain(link, count + 1))
    vocabulary = describe([bytes([i]) for i in range(256)], [], 0)
    helper = Helper(LIMITS, lambda: ("glm4.grammars.trial:set_up", vocabulary))
    grammar = {"grammars": [{"name": "start", "json_schema": with_options(chain(link, count))}]}
    helper.call("glm4.grammars.trial:follow", json.dumps(grammar).encode())
    helper.close()
    compiles(compiler, json=chain(link, count))


def test_who_waits_too_long_is_told_to_come_again(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_guard, "_PATIENCE", 0.1)
    begun, over = threading.Event(), threading.Event()

    class Slow(Helper):
        def call(self, function: str, argument: bytes) -> bytes:
            begun.set()
            over.wait(60)
            return b""

    guard = GrammarGuard(lambda: b"")
    monkeypatch.setattr(guard, "_helper", Slow(LIMITS))
    first = threading.Thread(target=guard.why_not, args=("a",))
    first.start()
    begun.wait(60)
    with pytest.raises(BusyError, match="try again later"):
        guard.why_not("b")
    monkeypatch.setattr(guard, "_attack_until", time.monotonic() + 1000)
    monkeypatch.setattr(grammar_guard, "_MOST_IN_ATTACK", 1)
    with pytest.raises(BusyError, match="too many"):
        guard.why_not("b")
    over.set()
    first.join()
    assert guard.why_not("b") is None
    compiles(compiler, json=NORMAL)


@pytest.mark.parametrize(
    "form",
    [
        {"json": {"allOf": [{"type": "string"}]}}, {"json": {"type": "integer", "multipleOf": 7}},
        {"json": {"$ref": "#/$defs/a", "maxLength": 3, "$defs": {"a": {"type": "string"}}}},
        {"json": {"type": "object", "anyOf": [{"required": ["a"]}]}}, {"grammar": 'start: "a"'},
        {"json": {"type": "string", "pattern": "a" * 300}}, {"regex": "a" * 300}, {"choice": ["a"] * 1001},
        {"json": {"enum": ["x" * 1000] * 100}}, {"json": {"unknown": 1}},
        {"json": {"$ref": "#/$defs/a/enum/0", "$defs": {"a": {"enum": [{"allOf": []}]}}}},
        {"json": {"$ref": "#/$defs/a%2Fenum%2F0", "$defs": {"a": {"enum": [{"allOf": []}]}}}},
    ],
)  # fmt: skip
def test_everything_else_is_tried_first(form: dict[str, Any]) -> None:
    outputs = StructuredOutputs(**form)
    assert not is_plain_form(outputs, outputs.schema)
