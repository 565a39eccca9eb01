"""Forced tool calls: whatever fits the grammar is read by the dialect's own parser as calls with valid arguments.

Texts come from random walks through the grammars, and from tiny random models behind `LLM`.
from rendering import render_text
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from glm4 import LLM, SamplingParams, StructuredOutputs
from glm4.backends.local import LocalBackend, LocalOptions
from glm4.chat.call_grammar import MAX_CALLS, CallableTool, callables
from glm4.chat.dialects.table import DIALECTS, dialect_for
from glm4.chat.tool_choice import ToolChoice
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.engine.protocol import TokenConstraint
from glm4.errors import InvalidRequestError
from glm4.requests.grammar_compiler import GrammarCompiler
from glm4.requests.processor import Processor
from glm4.tokenizer import Tokenizer
from parsed import ParsedAnswer, collect
from rendering import render_text
from scripted_llm import scripted_llm
from tiny import VOCAB_SIZE, write_folder, write_gguf

THOUGHT = "first a < b, then\n</think>"
CHAT = [{"role": "user", "content": "hello"}]
SIMPLE: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 4}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


def function(name: str, parameters: object = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name} | ({} if parameters is None else {"parameters": parameters})}


TOOLS = [function("get_weather", SIMPLE), function("北京 time", {"type": "object", "additionalProperties": False})]


def random_schema(rng: np.random.Generator, depth: int = 0) -> dict[str, Any]:
    """A schema of an object whose texts are short."""
    names = [f"p{i}" for i in range(int(rng.integers(1, 4)))]
    return {
        "type": "object",
        "properties": {name: random_value(rng, depth) for name in names},
        "required": [name for name in names if rng.random() < 0.7],
        "additionalProperties": False,
    }


def random_value(rng: np.random.Generator, depth: int) -> dict[str, Any]:
    low = int(rng.integers(-50, 50))
    options: list[dict[str, Any]] = [
        {"type": "boolean"},
        {"type": "integer", "minimum": low, "maximum": low + int(rng.integers(0, 200))},
        {"enum": ["a", "北京", 'quoted "text"\n', 3, None, {"k": [1]}]},
        {"const": "x, y: z"},
        {"type": "string", "maxLength": int(rng.integers(0, 5))},
        {"type": "string", "pattern": "^[a-c]{2}-[0-9]$"},
        {"type": ["null", "boolean"]},
        {"type": "string", "format": "date"},
    ]
    if depth < 2:
        items = random_value(rng, depth + 1)
        options += [
            {"type": "array", "items": items, "minItems": 1, "maxItems": 3},
            {"anyOf": [items, {"type": "null"}]},
            random_schema(rng, depth + 1),
            {"type": "array", "prefixItems": [items, {"type": "boolean"}], "items": False, "minItems": 2},
        ]
    return options[int(rng.integers(len(options)))]


@pytest.fixture(scope="module", params=list(DIALECTS))
def text(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Processor:
    """The text side of each dialect on a tiny vocabulary, with the dialect's own template."""
    folder = tmp_path_factory.mktemp("model")
    chatml = request.param == "chatml"
    path = write_gguf(folder / "m.gguf", architecture="qwen2") if chatml else write_folder(folder)
    with open_checkpoint(path) as checkpoint:
        made = Processor.load(checkpoint)
    return replace(made, dialect=dialect_for(request.param), template=None)


def compiler(text: Processor) -> GrammarCompiler:
    return GrammarCompiler(text.tokenizer, VOCAB_SIZE, text.dialect)


def walk(constraint: TokenConstraint, rng: np.random.Generator, start: Sequence[int] = ()) -> list[int]:
    """Ids of a random text that fits."""
    matcher = constraint.start()
    assert matcher.accept(start) == len(start)
    ids = list(start)
    while len(ids) < 5000:
        forced = matcher.forced()
        assert matcher.accept(forced) == len(forced)
        ids += forced
        if matcher.is_finished() or (matcher.is_complete() and rng.random() < 0.5):
            return ids
        ids.append(int(rng.choice(np.flatnonzero(matcher.allowed()))))
        assert matcher.accept(ids[-1:]) == 1
    pytest.fail("no end in sight")


def read(text: Processor, ids: Sequence[int], tools: Sequence[dict[str, Any]]) -> ParsedAnswer:
    """The answer as the dialect's parser reads it, an id at a time."""
    detokenizer, parser = text.dialect.detokenizer(text.tokenizer), text.dialect.parser(tools, text.tokenizer)
    stop = ids[-1] if ids[-1] in text.stop_ids else None
    events = [event for i in ids[: len(ids) - (stop is not None)] for event in parser.push(detokenizer.push(i))]
    return collect([*events, *parser.finish(stop)])


def beginning(text: Processor) -> list[int]:
    """What the model must have said before the grammar takes over."""
    return text.tokenizer.encode(THOUGHT) if text.dialect.thinking_closing else []


@pytest.mark.parametrize("parallel", [False, True])
def test_every_text_that_fits_is_read_as_valid_calls(text: Processor, parallel: bool) -> None:
    made = compiler(text)
    several = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        schemas = {"alpha": random_schema(rng), "beta_2": random_schema(rng)}
        tools = [function(name, schema) for name, schema in schemas.items()]
        constraint = made.answer(None, callables(tools, ()), parallel=parallel)
        answer = read(text, walk(constraint, rng, beginning(text)), tools)
        assert not answer.text
        assert 1 <= len(answer.tool_calls) <= (MAX_CALLS if parallel else 1)
        several += len(answer.tool_calls) > 1
        for call in answer.tool_calls:
            arguments = json.loads(call.arguments)
            jsonschema.validate(arguments, schemas[call.name], format_checker=jsonschema.FormatChecker())
        assert bool(answer.reasoning) == (text.dialect.thinking_closing is not None)
    assert bool(several) == parallel


def test_an_answer_of_the_models_own_style_fits(text: Processor) -> None:
    """The grammar writes calls as the dialect's template shows them to the model."""
    constraint = compiler(text).answer(None, callables(TOOLS, ()), parallel=True)
    written = {
        "glm4": 'get_weather\n{"city": "Rome", "days": 3}<|observation|>',
        "glm4_0414": 'get_weather \n{"city": "Rome", "days": 3}<|observation|>',
        "glm_z1": 'well\n</think>\n\nget_weather \n{"city": "Rome", "days": 3}<|observation|>',
        "chatml": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "days": 3}}\n</tool_call>',
    }[text.dialect.name]
    ids = text.tokenizer.encode(written, allow_special=True)
    matcher = constraint.start()
    assert matcher.accept(ids) == len(ids)
    assert matcher.is_complete()
    history: list[dict[str, Any]] = [
        *CHAT,
        {
            "role": "assistant",
            "tool_calls": [{"id": "c", **TOOLS[0], "function": read(text, ids, TOOLS).tool_calls[0].__dict__}],
        },
    ]
    shown = render_text(text.dialect, history, tokenizer=text.tokenizer, tools=TOOLS, add_generation_prompt=False)
    assert written.split("</think>\n\n")[-1].removesuffix("<|observation|>") in shown


def test_functions_without_parameters_take_any_object(text: Processor) -> None:
    for parameters in (None, {}, {"type": ["object", "null"]}):
        tools = [function("f", parameters)]
        constraint = compiler(text).answer(None, callables(tools, ()), parallel=False)
        ids = walk(constraint, np.random.default_rng(1), beginning(text)) if parameters is None else None
        assert ids is None or isinstance(json.loads(read(text, ids, tools).tool_calls[0].arguments), dict)


def test_an_answer_with_a_form_or_a_call(text: Processor) -> None:
    """Both kinds come, and text is text even if its form resembles a call's."""
    outputs = StructuredOutputs(choice=["get_weather", "plain"])
    constraint = compiler(text).answer(outputs, callables(TOOLS, ()), parallel=False)
    answers = [read(text, walk(constraint, np.random.default_rng(seed), beginning(text)), TOOLS) for seed in range(40)]
    assert {answer.text for answer in answers if not answer.tool_calls} == {"get_weather", "plain"}
    assert {call.name for answer in answers for call in answer.tool_calls} == {"get_weather", "北京 time"}
    assert all(bool(answer.text) != bool(answer.tool_calls) for answer in answers)


@pytest.mark.parametrize("text", ["glm4"], indirect=True)
def test_built_in_tools_of_glm4_take_free_text(text: Processor) -> None:
    tools = [{"type": "python"}, function("f", SIMPLE)]
    (python, _) = callables(tools, text.dialect.builtin_tools)
    assert python == CallableTool("python", None)
    constraint = compiler(text).answer(None, [python], parallel=False)
    ids = text.tokenizer.encode('python\nprint("{")\n\nx<|observation|>', allow_special=True)
    assert constraint.start().accept(ids) == len(ids)
    (call,) = read(text, ids, tools).tool_calls
    assert (call.name, call.arguments) == ("python", 'print("{")\n\nx')


def test_canonical_spellings_fit_with_the_real_vocabulary(glm4: Tokenizer) -> None:
    """What our tokenizer makes of a valid call must not be refused by a grammar that forces canonical tokens."""
    made = GrammarCompiler(glm4, 151552, dialect_for("glm4"))
    for seed in range(30):
        rng = np.random.default_rng(seed)
        schema = random_schema(rng)
        constraint = made.answer(None, [CallableTool("get_weather", schema)], parallel=False)
        ids = walk(constraint, rng)
        assert ids[-1] == glm4.special_id("<|observation|>")
        written = glm4.decode(ids[:-1])
        jsonschema.validate(json.loads(written.partition("\n")[2]), schema)
        again = [*glm4.encode(written), ids[-1]]
        matcher = constraint.start()
        assert matcher.accept(again) == len(again)
        assert matcher.is_finished()


# Through LLM


@pytest.fixture(scope="module", params=["glm4", "glm4_0414", "chatml"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tmp_path_factory.mktemp("model")
    chatml = request.param == "chatml"
    path = write_gguf(folder / "m.gguf", architecture="qwen2") if chatml else write_folder(folder)
    with open_checkpoint(path) as checkpoint:
        side = replace(Processor.load(checkpoint), dialect=dialect_for(request.param), template=None)
        banned = side.tokenizer.unnamed_ids(checkpoint.config.vocab_size)
        options = LocalOptions(dtype="fp32", max_model_len=4096, max_num_seqs=4)
        yield LLM.from_backend(LocalBackend.load(checkpoint, options, banned), side)


def test_random_weights_call_tools_with_valid_arguments(llm: LLM) -> None:
    for seed in range(12):
        rng = np.random.default_rng(seed)
        schemas = {"alpha": random_schema(rng), "beta": random_schema(rng)}
        tools = [function(name, schema) for name, schema in schemas.items()]
        params = SamplingParams(seed=seed, max_tokens=1500, n=2)
        named = {"type": "function", "function": {"name": "beta"}}
        for choice, allowed in (("required", {"alpha", "beta"}), (named, {"beta"})):
            (output,) = llm.chat(
                CHAT, params, tools=tools, tool_choice=choice, parallel_tool_calls=choice != "required"
            )
            for sample in output.outputs:
                assert sample.finish_reason == "tool_calls"
                assert not sample.text
                (call,) = sample.tool_calls
                assert call.name in allowed
                jsonschema.validate(json.loads(call.arguments), schemas[call.name])


def test_none_keeps_tools_out_of_the_prompt(llm: LLM) -> None:
    attached: list[dict[str, Any]] = [{"role": "system", "content": "s", "tools": TOOLS}, *CHAT]
    plain = [{"role": "system", "content": "s"}, *CHAT]
    expected = llm.prepare_chat(plain).prompt_ids
    assert llm.prepare_chat(plain, tools=TOOLS, tool_choice="none").prompt_ids == expected
    assert llm.prepare_chat(attached, tool_choice="none").prompt_ids == expected
    assert llm.prepare_chat(plain, tools=TOOLS, tool_choice="auto").prompt_ids != expected
    assert llm.prepare_chat(plain, tools=TOOLS).constraint is None


@pytest.mark.parametrize(
    ("tools", "choice", "param", "match"),
    [
        ((), "required", "tool_choice", "no tools"),
        (TOOLS, {"type": "function", "function": {"name": "other"}}, "tool_choice", "other"),
        (TOOLS, "maybe", "tool_choice", "tool_choice must be"),
        (TOOLS, {"type": "function"}, "tool_choice", "tool_choice must be"),
        (TOOLS, ["required"], "tool_choice", "tool_choice must be"),
        ([function("f", {"type": "string"})], "required", "tools[0].function.parameters", "must be an object"),
        ([function("f", 3)], "required", "tools[0].function.parameters", "JSON schema"),
        (
            [*TOOLS, function("f", {"not": {}})],
            "required",
            f"tools[{len(TOOLS)}].function.parameters",
            "function 'f': .*'not'",
        ),
        ([function("f", {"properties": {"a": {"type": "nix"}}})], "required", "tools[0].function.parameters", "nix"),
    ],
)
def test_refusals(llm: LLM, tools: Any, choice: Any, param: str, match: str) -> None:
    with pytest.raises(InvalidRequestError, match=match) as caught:
        llm.prepare_chat(CHAT, tools=tools, tool_choice=choice)
    assert caught.value.param == param


def test_reading_tool_choice() -> None:
    assert ToolChoice.read(None) == ToolChoice.read("auto") == ToolChoice("auto")
    assert ToolChoice.read({"type": "function", "function": {"name": "f"}}) == ToolChoice("required", "f")


def test_without_parallel_calls_the_answer_ends_where_the_second_begins(tmp_path: Path) -> None:
    said = 'Let me see.\x1eget_weather\n{"city": "a"}\x1eget_weather\n{"city": "b"}'
    llm = scripted_llm(tmp_path, lambda prompt: said, template=None)
    both = llm.chat(CHAT, tools=TOOLS)[0].outputs[0]
    assert [call.arguments for call in both.tool_calls] == ['{"city": "a"}', '{"city": "b"}']
    chunks = list(llm.stream_chat(CHAT, tools=TOOLS, parallel_tool_calls=False))
    assert chunks[-1].output is not None
    one = chunks[-1].output.outputs[0]
    assert (one.text, one.finish_reason) == ("Let me see.", "tool_calls")
    assert [call.arguments for call in one.tool_calls] == ['{"city": "a"}']
    assert collect([event for chunk in chunks for event in chunk.events]).tool_calls == one.tool_calls
    assert not llm.backend.has_unfinished_requests()
    assert len(one.token_ids) < len(both.token_ids)
