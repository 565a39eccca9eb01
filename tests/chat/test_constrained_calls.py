"""`constrain_calls`: text is as free as without it, and a call that begins in it is a valid one.

Texts are put together from pieces of calls and of what resembles them. What the grammar takes is compared with what the
dialect's own parser reads, an id at a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from glm4 import LLM, SamplingParams, ToolCall
from glm4.backends.base import Capability
from glm4.backends.local import LocalBackend, LocalOptions
from glm4.backends.scripted import ScriptedBackend
from glm4.chat.call_grammar import MAX_FREE_TOOLS, CallableTool, callables
from glm4.chat.dialects.table import DIALECTS, dialect_for
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.engine.grammar import GrammarState
from glm4.engine.protocol import TokenConstraint
from glm4.errors import InvalidRequestError
from glm4.requests.declared_grammar import DeclaredGrammars
from glm4.requests.grammar_compiler import GrammarCompiler
from glm4.requests.processor import Processor
from glm4.tokenizer import Tokenizer
from parsed import ParsedAnswer, collect
from tiny import VOCAB_SIZE, write_folder, write_gguf
from vocabularies import tiny_chatml

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
SCHEMAS = {"weather": CITY, "now": NOTHING, "北京 (x)*": CITY}
TOOLS = [{"type": "function", "function": {"name": n, "parameters": s}} for n, s in SCHEMAS.items()]
CHAT = [{"role": "user", "content": "hello"}]
OBSERVATION, ASSISTANT, USER = "<|observation|>", "<|assistant|>", "<|user|>"
GOOD = '{"city": "Rome", "days": 3}'


@pytest.fixture(scope="module", params=[*DIALECTS, "chatml with tokens"])
def text(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Processor:
    """The text side of each dialect on a tiny vocabulary; that of ChatML without and with tokens for its tags."""
    folder, name = tmp_path_factory.mktemp("model"), request.param.split()[0]
    chatml = name == "chatml"
    path = write_gguf(folder / "m.gguf", architecture="qwen2") if chatml else write_folder(folder)
    with open_checkpoint(path) as checkpoint:
        made = Processor.load(checkpoint)
    tokenizer = made.tokenizer if request.param == name else tiny_chatml()
    return replace(made, dialect=dialect_for(name), template=None, tokenizer=tokenizer)


def constraint_of(text: Processor, tools: Sequence[dict[str, Any]] = TOOLS) -> TokenConstraint:
    compiler = GrammarCompiler(text.tokenizer, text.tokenizer.size, text.dialect)
    return compiler.calls(callables(tools, text.dialect.builtin_tools))


def fits(text: Processor, constraint: TokenConstraint, written: str) -> bool | None:
    """Whether an answer may be this, ended by a stop id unless it ends with one; None if it may go on like that."""
    ids = text.tokenizer.encode(written, allow_special=True)
    matcher = constraint.start()
    if matcher.accept(ids) != len(ids):
        return False
    return True if matcher.is_complete() else None


def read(text: Processor, written: str, tools: Sequence[dict[str, Any]] = TOOLS) -> ParsedAnswer:
    """The answer as the dialect's parser reads it."""
    detokenizer, parser = text.dialect.detokenizer(text.tokenizer), text.dialect.parser(tools, text.tokenizer)
    ids = text.tokenizer.encode(written, allow_special=True)
    stop = ids[-1] if ids and ids[-1] in text.stop_ids else None
    events = [event for i in ids[: len(ids) - (stop is not None)] for event in parser.push(detokenizer.push(i))]
    return collect([*events, *parser.finish(stop)])


def is_valid(answer: ParsedAnswer) -> bool:
    """Whether every call names an offered tool and has arguments of its schema."""
    try:
        for call in answer.tool_calls:
            jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
    except (ValueError, KeyError, jsonschema.ValidationError):
        return False
    return True


# What begins an answer in dialects that think; the closing of what they thought.
def thought(text: Processor) -> str:
    return f"hm weather\n{{\n{text.dialect.thinking_closing}\n" if text.dialect.thinks else ""


FREE = (
    "",
    "a < b & <b>bold</b> { x } [1]",
    "北京\n\n- one\n- two\n",
    'def f(x):\n    return {"a": x}\n',
    '```json\n{"name": "Bob", "arguments": {"x": 1}}\n```\n',
    'see {"name": "weather", "arguments": {"x": 1}}',
    "use weather\n{1}",
    "the tools:\nweather\nnow\nno more",
    "weather",
    "weather, of course",
    "other\n{}",
    '{"name": "weather", "description": "of a city", "parameters": {"x": 1}}',
    '{"name": "{{ .Values.name }}", "x": 1}',
    '{"name": "\n{"name": "we"',
    "<tool_call",
    "<b>\n<|user",
)
CALLS = {
    "glm4": (
        f"weather\n{GOOD}{OBSERVATION}",
        f"\nLet me see.{ASSISTANT}weather\n{GOOD}{OBSERVATION}",
        f"\nLet me see.\n  weather \n\n{GOOD}{ASSISTANT}now\n{{}}{OBSERVATION}",
        f"\nweather\nno\nnow\n{{}}{OBSERVATION}",
    ),
    "chatml": (
        f'Well.\n<tool_call>\n{{"name": "weather", "arguments": {GOOD}}}\n</tool_call>\nand <tool_call>\n'
        '{"name": "now", "arguments": {}}\n</tool_call> so.',
        f'```json\n{{\n  "name": "weather",\n  "arguments": {GOOD}\n}}\n```\n',
        f'a\n {{"name": "weather", "parameters": {GOOD}}}\n{{{{"name": "now"}}}}',
        '{"name": "weather", "x": 1}\n{"name": "now"}',
    ),
}
BAD = {
    "glm4": (
        'weather\n{"town"',
        'weather\n{"city": 3',
        "weather\n{}",
        "weather\n{'city'",
        f"weather{OBSERVATION}",
        f"weather\n{OBSERVATION}",
        f"wether\n{GOOD}{OBSERVATION}",
        f"\nhello{OBSERVATION}",
        f"weather\n{GOOD}\n",
        "\nok\nweather\n\n {1",
        "\u3000weather\xa0\r\n \x1f{1",
        "weather\nnow\n{1",
        f"weather\n{GOOD}{ASSISTANT}now\n{{1",
    ),
    "chatml": (
        '<tool_call>\n{"name": "wether',
        '<tool_call>\n{"name": "weather", "arguments": {"town',
        f'<tool_call>\n{{"name": "weather", "arguments": {GOOD}}}x',
        '{"name": "weather"}',
        '{"name": "weather", "arguments": "',
        '```json\n{\n "name" :"weather" , "parameters":\n{"town',
        '{{"name": "now", "arguments": {"x',
        '{"name": "weather", "x": 1}\n```\n{"name": "now", "arguments": 1',
    ),
}


def test_free_text_is_free(text: Processor) -> None:
    constraint = constraint_of(text)
    for begin, words in product({thought(text), ""}, FREE):
        assert fits(text, constraint, begin + words), words
        assert not read(text, begin + words).tool_calls


def test_valid_calls_fit_and_are_read_as_such(text: Processor) -> None:
    constraint = constraint_of(text)
    for words in CALLS.get(text.dialect.name, CALLS["glm4"]):
        assert fits(text, constraint, thought(text) + words), words
        answer = read(text, thought(text) + words)
        assert answer.tool_calls
        assert is_valid(answer)


def test_invalid_calls_do_not_fit(text: Processor) -> None:
    constraint = constraint_of(text)
    for words in BAD.get(text.dialect.name, BAD["glm4"]):
        assert fits(text, constraint, thought(text) + words) is False, words
        assert fits(text, constraint, thought(text) + words[: max(1, len(words) // 4)]) is not False, words


# JSON of a call without arguments where they should be: the parser shows it as text, the grammar asks for them.
_UNDECIDED = re.compile(r'"(arguments|parameters)" ?:(?!\s*\{)')

PIECES = {
    "glm4": [
        "weather", "now", "\n", "\n", " ", "{", "}", "{}", GOOD, "word", "", ASSISTANT, "\r", "\u3000", ": 1",
        f"\nweather\n{GOOD}", "now\n{}", "now\n", "北京 (x)*", f"\n北京 (x)*\n{GOOD}",
    ],
    "chatml": [
        "<tool_call>", "</tool_call>", "\n", "\n", " ", "{", "}", '{"name": "now"', ', "arguments": ', ', "x": ', "1",
        '{"name": "weather"', GOOD, "{}", "```", "```json", "word", f'\n{{"name": "weather", "arguments": {GOOD}}}\n',
        '{"name": "北京 (x)*"', '\n{"name": "\\u5317\\u4eac (x)*"', '"', '{"name": "other"',
        ', "parameters" :', "now", '"name": "',
    ],
}  # fmt: skip


@pytest.mark.parametrize("text", ["chatml", "chatml with tokens"], indirect=True)
def test_a_tag_of_chatml(text: Processor) -> None:
    """Its token is a call for certain; its spelling may be what the text is about."""
    constraint, is_token = constraint_of(text), "<tool_call>" in text.tokenizer.added_tokens
    spelled = text.tokenizer.encode("a `<tool_call>` opens a call, <tool_call> ")
    for more, fitting in (("", True), ("x", True), ('{"name": "now"', True), ('{"name": "x', False), ('{"city', False)):
        ids = [*spelled, *text.tokenizer.encode(more)]
        assert (constraint.start().accept(ids) == len(ids)) == fitting, more
    assert fits(text, constraint, "<tool_call>weather") is (not is_token)
    assert fits(text, constraint, "<tool_call>\nweather") is (not is_token)


def test_the_grammar_and_the_parser_agree(text: Processor) -> None:
    """Random texts: a complete one has valid calls only, and one without calls is complete."""
    constraint = constraint_of(text)
    pieces = PIECES.get(text.dialect.name, PIECES["glm4"])
    free, called = 0, 0
    for seed in range(1500):
        rng = np.random.default_rng(seed)
        written = thought(text) + "".join(rng.choice(pieces, int(rng.integers(1, 12))))
        written += OBSERVATION if text.dialect.name != "chatml" and rng.random() < 0.5 else ""
        answer, verdict = read(text, written), fits(text, constraint, written)
        if verdict:
            assert is_valid(answer), written
            called += bool(answer.tool_calls)
        elif not answer.tool_calls and not written.endswith(OBSERVATION) and "tool_call>" not in written:
            assert verdict or _UNDECIDED.search(written), written
        free += bool(verdict) and not answer.tool_calls
    assert free > 100
    assert called > 10


@pytest.mark.parametrize("text", ["glm4"], indirect=True)
def test_what_a_built_in_tool_is_asked_stays_free(text: Processor) -> None:
    constraint = constraint_of(text, [{"type": "python"}, *TOOLS])
    for words in ("python\nweather\n{x}\n", "python\nprint('{')", f"weather\n{GOOD}{ASSISTANT}python\n1"):
        assert fits(text, constraint, words)
        assert fits(text, constraint, words + OBSERVATION)
    assert fits(text, constraint, f"\npython\nweather\n{GOOD}{OBSERVATION}"), "not the first line: text"
    assert fits(text, constraint, f"\npython\nx{OBSERVATION}") is False
    only = constraint_of(text, [{"type": "python"}])
    assert fits(text, only, f"python\nweather{OBSERVATION}")
    assert fits(text, only, "\nhello")


def test_real_tokens_across_the_edges_of_calls(glm4: Tokenizer) -> None:
    """GLM-4's vocabulary has tokens that reach over a line's end, or hold a bracket and a quotation mark."""
    compiler = GrammarCompiler(glm4, 151552, dialect_for("glm4"))
    constraint = compiler.calls(callables(TOOLS, ()))

    def reach(written: str) -> str:
        ids = glm4.encode(written, allow_special=True)
        return glm4.decode(ids[: constraint.start().accept(ids)])

    for written in (
        f"\nSee.\nweather\n{GOOD}",
        "\nA {1: 2}.\n\n```\n{}\n```\n",
        f"now\n{{}}{ASSISTANT}weather\n{GOOD}",
    ):
        assert reach(written + OBSERVATION).startswith(written.replace(ASSISTANT, ""))
    assert not reach('\nSee.\nweather\n{"town": 1').endswith("town")
    state = GrammarState(constraint, np.array([glm4.special_id(USER)]))
    for token in glm4.encode("\nHello"):
        assert state.allowed()[token]
        state.accept(token)
    mask = state.allowed()
    ordinary = [i for i in range(10_000) if glm4.token_bytes(i).isascii() and glm4.token_bytes(i) != b"\x1e"]
    assert mask[ordinary].all(), "in a line of text, anything may follow"
    assert mask[glm4.special_id(USER)]
    assert not mask[glm4.special_id(OBSERVATION)]


def test_as_many_tools_as_interfaces_allow(glm4: Tokenizer) -> None:
    tools = [CallableTool(f"a_server_with_a_long_name__{i}_of_so_many_tools", CITY) for i in range(MAX_FREE_TOOLS)]
    for dialect in (dialect_for("glm4"), dialect_for("glm_z1")):
        compiler = GrammarCompiler(glm4, 151552, dialect)
        state = GrammarState(compiler.calls(tools), np.array([glm4.special_id(USER)]))
        for token in glm4.encode("</think>\nhello\nworld\n"):
            assert state.allowed()[token]
            state.accept(token)
        with pytest.raises(InvalidRequestError, match="at most 128 tools, not 129; offer fewer") as caught:
            compiler.calls([*tools, tools[0]])
        assert caught.value.param == "tools"


# Through LLM


@pytest.fixture(scope="module", params=["glm4", "chatml"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    folder = tmp_path_factory.mktemp("model")
    path = write_gguf(folder / "m.gguf", architecture="qwen2") if request.param == "chatml" else write_folder(folder)
    with open_checkpoint(path) as checkpoint:
        side = replace(Processor.load(checkpoint), dialect=dialect_for(request.param), template=None)
        banned = side.tokenizer.unnamed_ids(checkpoint.config.vocab_size)
        options = LocalOptions(dtype="fp32", max_model_len=2048, max_num_seqs=2)
        return LLM.from_backend(LocalBackend.load(checkpoint, options, banned), side)


def test_random_weights_write_the_same_text(llm: LLM) -> None:
    """Only letters are likely, so no call begins; drafts and cached prompts have no part in it."""
    letters = {llm.tokenizer.encode(c)[0]: 60.0 for c in "abcdefgh \n{"}
    for seed in (None, 1, 2):
        params = SamplingParams(temperature=0.0 if seed is None else 1.0, seed=seed, max_tokens=120, logit_bias=letters)
        plain = llm.chat(CHAT, params, tools=TOOLS)[0].outputs[0]
        constrained = llm.chat(CHAT, params, tools=TOOLS, constrain_calls=True)[0]
        assert constrained.outputs[0].token_ids == plain.token_ids
        assert constrained.num_cached_tokens
        assert len(plain.token_ids) == 120


def test_who_asks_for_nothing_gets_no_grammar(llm: LLM) -> None:
    assert llm.prepare_chat(CHAT, tools=TOOLS).constraint is None
    assert llm.prepare_chat(CHAT, constrain_calls=True).constraint is None
    assert llm.prepare_chat(CHAT, tools=TOOLS, tool_choice="none", constrain_calls=True).constraint is None
    assert llm.prepare_chat(CHAT, tools=TOOLS, constrain_calls=True).constraint is not None
    forced = llm.prepare_chat(CHAT, tools=TOOLS, tool_choice="required")
    assert llm.prepare_chat(CHAT, tools=TOOLS, tool_choice="required", constrain_calls=True).constraint is (
        forced.constraint
    )


def test_refusals(llm: LLM) -> None:
    bad = {"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}
    with pytest.raises(InvalidRequestError, match="function 'f'") as caught:
        llm.prepare_chat(CHAT, tools=[*TOOLS, bad], constrain_calls=True)
    assert caught.value.param == f"tools[{len(TOOLS)}].function.parameters"
    begun = [*CHAT, {"role": "assistant", "content": "Well"}]
    with pytest.raises(InvalidRequestError, match="constrain_calls") as caught:
        llm.prepare_chat(begun, tools=TOOLS, continue_final_message=True, constrain_calls=True)
    assert caught.value.param == "continue_final_message"


def test_a_backend_without_grammars_says_so(tmp_path: Path) -> None:
    side = Processor.open(write_folder(tmp_path, chat_template=None))
    grammars = {Capability.COMPILED_GRAMMARS, Capability.DECLARED_GRAMMARS}
    backend = ScriptedBackend(lambda prompt: [97], vocab_size=VOCAB_SIZE, capabilities=frozenset(Capability) - grammars)
    llm = LLM.from_backend(backend, side)
    with pytest.raises(InvalidRequestError, match="the scripted backend has no grammars") as caught:
        llm.chat(CHAT, tools=TOOLS, constrain_calls=True)
    assert caught.value.param == "constrain_calls"
    assert llm.chat(CHAT, constrain_calls=True)[0].outputs[0].text == "a"


def test_the_form_for_other_engines_takes_the_same_texts(text: Processor) -> None:
    declared = DeclaredGrammars(text.tokenizer, text.dialect).calls(callables(TOOLS, ()))
    constraint = GrammarCompiler(text.tokenizer, text.tokenizer.size, text.dialect).raw(declared)
    own = constraint_of(text)
    for words in (*FREE, *CALLS.get(text.dialect.name, CALLS["glm4"]), *BAD.get(text.dialect.name, BAD["glm4"])):
        written = thought(text) + words
        if OBSERVATION not in written:
            assert fits(text, constraint, written) == fits(text, own, written), words
        elif fits(text, own, written):
            assert fits(text, constraint, written.removesuffix(OBSERVATION)), words


@pytest.mark.starter
def test_the_starter_model_answers_as_before_and_calls_validly() -> None:
    schema = {**CITY, "properties": {"city": {"type": "string"}, "days": {"enum": [1, 7]}}}
    function = {"name": "get_weather", "description": "The weather of a city", "parameters": schema}
    tools = [{"type": "function", "function": function}]
    params = SamplingParams(temperature=0.0, max_tokens=64)
    with LLM("starter", max_model_len=2048) as llm:
        asked = [{"role": "user", "content": "Write three short lines about the sea, as a Markdown list."}]
        plain = llm.chat(asked, params, tools=tools)[0].outputs[0]
        assert not plain.tool_calls
        assert llm.chat(asked, params, tools=tools, constrain_calls=True)[0].outputs[0].token_ids == plain.token_ids
        asked = [{"role": "user", "content": "What is the weather in Rome for 3 days? Use the tool."}]
        found: list[ToolCall] = []
        for seed in range(8):
            params = SamplingParams(temperature=1.0, seed=seed, max_tokens=120)
            answer = llm.chat(asked, params, tools=tools, constrain_calls=True)[0].outputs[0]
            found += answer.tool_calls if answer.finish_reason == "tool_calls" else ()
        assert found, "it is asked to"
        for call in found:  # three days, which it likes to write, are not to be had
            assert call.name == "get_weather"
            jsonschema.validate(json.loads(call.arguments), schema)
