"""A request that needs more than the backend has is refused by name, before anything is queued."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import replace
from pathlib import Path

import pytest

from glm4 import LLM, SamplingParams, StructuredOutputs
from glm4.backends.base import BackendInfo, Capability
from glm4.backends.scripted import ScriptedBackend
from glm4.chat.chat_request import ChatRequest
from glm4.chat.dialects.table import dialect_for
from glm4.errors import InvalidRequestError
from glm4.prompt import MediaSpan, Prompt
from glm4.requests.declared_grammar import DeclaredGrammars
from glm4.requests.grammar_compiler import GrammarCompiler
from glm4.requests.input_processor import InputProcessor
from glm4.requests.processor import Processor
from tiny import VOCAB_SIZE, write_folder, write_gguf

CHAT = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
FORM = StructuredOutputs(choice=["a", "b"], param="response_format")
ALL = frozenset(Capability)
NEEDS: dict[str, tuple[Set[Capability], str | None, Callable[[LLM], object]]] = {
    "seed": ({Capability.SEED}, "seed", lambda llm: llm.generate("a", SamplingParams(seed=0))),
    "logprobs": ({Capability.LOGPROBS}, "logprobs", lambda llm: llm.chat(CHAT, SamplingParams(logprobs=0))),
    "prompt_logprobs": (
        {Capability.PROMPT_LOGPROBS}, "prompt_logprobs",
        lambda llm: llm.generate("a", SamplingParams(prompt_logprobs=1)),
    ),
    "logit_bias": (
        {Capability.LOGIT_BIAS}, "logit_bias", lambda llm: llm.generate("a", SamplingParams(logit_bias={97: 1.0})),
    ),
    "min_tokens": ({Capability.MIN_TOKENS}, "min_tokens", lambda llm: llm.chat(CHAT, SamplingParams(min_tokens=1))),
    "adapters": ({Capability.ADAPTERS}, "model", lambda llm: llm.chat(CHAT, adapter="poems")),
    "pictures or sounds": (
        {Capability.MEDIA}, "prompt", lambda llm: llm.generate(Prompt([97, 98], (MediaSpan(0, 1, "image", "x"),))),
    ),
    "embeddings": ({Capability.EMBEDDINGS}, None, lambda llm: llm.embed("a")),
    "grammars (response_format)": (
        {Capability.COMPILED_GRAMMARS, Capability.DECLARED_GRAMMARS}, "response_format",
        lambda llm: llm.chat(CHAT, SamplingParams(structured_outputs=FORM)),
    ),
    "grammars (tool_choice)": (
        {Capability.COMPILED_GRAMMARS, Capability.DECLARED_GRAMMARS}, "tool_choice",
        lambda llm: llm.chat(CHAT, tools=[TOOL], tool_choice="required"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    return Processor.open(write_folder(tmp_path_factory.mktemp("model"), chat_template=None))


def llm_with(text: Processor, capabilities: frozenset[Capability]) -> LLM:
    backend = ScriptedBackend(lambda prompt: [97], vocab_size=VOCAB_SIZE, capabilities=capabilities)
    return LLM.from_backend(backend, text)


@pytest.mark.parametrize("option", NEEDS)
def test_what_is_missing_is_named(text: Processor, option: str) -> None:
    missing, param, ask = NEEDS[option]
    llm = llm_with(text, ALL - missing)
    with pytest.raises(InvalidRequestError) as caught:
        ask(llm)
    assert str(caught.value).startswith(f"the scripted backend has no {option}; do without")
    assert "(local" in str(caught.value), "says which backend has it"
    assert caught.value.param == param
    assert not llm.has_unfinished_requests()
    assert not llm.backend.has_unfinished_requests()


def test_a_model_that_reads_text_only_is_named_where_its_backend_could(tmp_path: Path) -> None:
    folder, ask = write_folder(tmp_path), NEEDS["pictures or sounds"][2]
    with LLM(str(folder), dtype="fp32", max_model_len=64) as llm, pytest.raises(InvalidRequestError) as caught:
        ask(llm)
    assert str(caught.value) == "this model takes no pictures or sounds; do without, or load one that does"
    assert caught.value.param == "prompt"


def test_a_plain_request_needs_nothing(text: Processor) -> None:
    llm = llm_with(text, frozenset())
    params = SamplingParams(temperature=0.3, top_k=4, top_p=0.5, repetition_penalty=1.2, stop="x", stop_token_ids=[3])
    assert llm.chat(CHAT, params, tools=[TOOL])[0].outputs[0].text == "a"
    assert llm.generate("a", params)[0].outputs[0].token_ids == [97]


def test_grammars_are_compiled_only_where_the_backend_wants_them_so(text: Processor) -> None:
    params = SamplingParams(structured_outputs=FORM)
    made = {
        capability: InputProcessor(text, BackendInfo("test", VOCAB_SIZE, 4096, capabilities=frozenset({capability})))
        for capability in (Capability.COMPILED_GRAMMARS, Capability.DECLARED_GRAMMARS)
    }
    compiled = made[Capability.COMPILED_GRAMMARS].chat(ChatRequest.of(CHAT, params)).sample("r", frozenset(), 0)
    assert compiled.constraint is not None
    assert compiled.structured_outputs is None
    declared = made[Capability.DECLARED_GRAMMARS].chat(ChatRequest.of(CHAT, params)).sample("r", frozenset(), 0)
    assert declared.constraint is None
    assert declared.structured_outputs is not None
    assert '"a" | "b"' in str(declared.structured_outputs.grammar)
    raw = made[Capability.DECLARED_GRAMMARS].prompt("a", params).sample("r", frozenset(), 0)
    assert raw.structured_outputs is FORM
    free = made[Capability.DECLARED_GRAMMARS].chat(ChatRequest.of(CHAT)).sample("r", frozenset(), 0)
    assert (free.constraint, free.structured_outputs) == (None, None)


@pytest.mark.parametrize("name", ["glm4", "glm4_0414", "glm_z1", "chatml"])
def test_words_and_compiled_form_of_a_grammar_are_the_same(text: Processor, name: str, tmp_path: Path) -> None:
    """What is declared for a backend compiles, and accepts what the local grammar accepts."""
    side = replace(text, dialect=dialect_for(name), template=None)
    if name == "chatml":
        side = Processor.open(write_gguf(tmp_path / "m.gguf", "qwen2"))
    size = side.tokenizer.size
    compiler, words = (
        GrammarCompiler(side.tokenizer, size, side.dialect),
        DeclaredGrammars(side.tokenizer, side.dialect),
    )
    outputs = StructuredOutputs(json={"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]})
    answer = f'{side.dialect.thinking_closing or ""}{side.dialect.answer_opening}{{"x": 12}}'
    declared = words.answer(outputs, [], parallel=True)
    for constraint in (compiler.answer(outputs, [], parallel=True), compiler.raw(declared)):
        matcher = constraint.start()
        ids = side.tokenizer.encode(answer)
        assert matcher.accept(ids) == len(ids)
        assert matcher.is_complete()
        assert not matcher.allowed()[side.tokenizer.encode("z")[0]]
