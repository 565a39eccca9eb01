"""`StructuredOutputs` through `LLM`, on tiny random models, which write nothing that fits unless they must."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from glm4 import LLM, SamplingParams, StructuredOutputs
from glm4.engine.speculation import RowCost
from glm4.errors import InvalidRequestError
from glm4.sampling_params import MAX_CHARACTERS
from tiny import CHATML_TEMPLATE, write_folder, write_gguf

CHAT = [{"role": "user", "content": "hello"}]
FREE = SamplingParams(temperature=1.0, seed=3, max_tokens=200)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "北京", 3, None]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=["glm4", "chatml"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tmp_path_factory.mktemp("model")
    if request.param == "glm4":
        path = write_folder(folder)
    else:
        path = write_gguf(folder / "m.gguf", architecture="qwen2", chat_template=CHATML_TEMPLATE)
    with LLM(str(path), dtype="fp32", max_model_len=512, max_num_seqs=4) as made:
        yield made


def with_(params: SamplingParams = FREE, **outputs: Any) -> SamplingParams:
    return params.replace(structured_outputs=StructuredOutputs(**outputs))


def texts(llm: LLM, params: SamplingParams) -> list[str]:
    """Answers of a chat and of a raw prompt; all of them complete."""
    outputs = [llm.chat(CHAT, params)[0], llm.generate("hello", params)[0]]
    assert {sample.finish_reason for output in outputs for sample in output.outputs} == {"stop"}
    return [sample.text for output in outputs for sample in output.outputs]


def test_json_validates_and_is_written_on_one_line(llm: LLM) -> None:
    for schema in (PERSON, json.dumps(PERSON)):
        for text in texts(llm, with_(FREE.replace(n=3), json=schema)):
            value = json.loads(text)
            jsonschema.validate(value, PERSON)
            assert text.startswith('{"name": "')
            assert ', "age": ' in text
            assert "\n" not in text


def test_samples_differ(llm: LLM) -> None:
    (output,) = llm.generate("hello", with_(FREE.replace(n=4), json=PERSON))
    assert len({sample.text for sample in output.outputs}) == 4


def test_regex_choice_and_grammar(llm: LLM) -> None:
    params = FREE.replace(n=3)
    assert all(
        re.fullmatch("[0-9]{3}-[a-f]{2,4}", text) for text in texts(llm, with_(params, regex="[0-9]{3}-[a-f]{2,4}"))
    )
    assert set(texts(llm, with_(params, choice=["yes", "no", '北京 "quoted"\n']))) <= {"yes", "no", '北京 "quoted"\n'}
    lark = 'start: greeting " " name\ngreeting: "hi" | "hello"\nname: /[A-Z][a-z]{1,3}/'
    assert all(re.fullmatch("(hi|hello) [A-Z][a-z]{1,3}", text) for text in texts(llm, with_(params, grammar=lark)))


def test_any_json_object(llm: LLM) -> None:
    """Cut or complete, it is an object so far; the bias keeps a random model from writing it for ever."""
    bias = {ord("}"): 12.0, ord('"'): 9.0}
    for text in texts(llm, with_(FREE.replace(logit_bias=bias), json_object=True)):
        assert isinstance(json.loads(text), dict)


def test_a_choice_that_begins_another_can_be_made(llm: LLM) -> None:
    found = {text for seed in range(12) for text in texts(llm, with_(FREE.replace(seed=seed), choice=["a", "ab"]))}
    assert found == {"a", "ab"}


def test_a_stream_adds_up_and_streams(llm: LLM) -> None:
    params = with_(json=PERSON)
    (whole,) = llm.chat(CHAT, params)
    chunks = list(llm.stream_chat(CHAT, params))
    assert "".join(chunk.text for chunk in chunks) == whole.outputs[0].text
    assert len([chunk for chunk in chunks if chunk.text]) > 3
    assert [token for chunk in chunks for token in chunk.token_ids] == whole.outputs[0].token_ids


def test_greedy_text_is_the_same_with_logprobs_and_without(llm: LLM) -> None:
    params = with_(FREE.replace(temperature=0.0), json=PERSON)
    (plain,) = llm.generate("hello", params)
    (scored,) = llm.generate("hello", params.replace(logprobs=2))
    assert scored.outputs[0].token_ids == plain.outputs[0].token_ids
    assert [entry.token_id for entry in scored.outputs[0].logprobs or ()] == plain.outputs[0].token_ids


def test_rows_without_a_token_are_never_chosen_though_a_grammar_names_them(llm: LLM) -> None:
    unnamed = int(llm.tokenizer.unnamed_ids(llm.info.vocab_size)[0])
    for rule, finish_reason, text in (
        (f'<[{unnamed}]> | "a"', "stop", "a"),
        (f'"a" (<[{unnamed}]> | <[{unnamed + 1}]>)', "length", "a"),
        (f'("ab" | "ac") <[{unnamed}]>', "length", "ab|ac"),
        (f"<[{unnamed}]> | <[{unnamed + 1}]>", "length", ""),
    ):
        (output,) = llm.generate("hello", with_(grammar=f"start: {rule}"))
        (sample,) = output.outputs
        assert (sample.finish_reason, sample.text in text.split("|")) == (finish_reason, True), rule
        assert unnamed not in sample.token_ids
    with pytest.raises(InvalidRequestError, match="no text can satisfy this"):
        llm.generate("hello", with_(grammar=f"start: <[{unnamed}]>"))


def test_limits_may_cut_the_text(llm: LLM) -> None:
    (output,) = llm.generate("hello", with_(FREE.replace(max_tokens=5), json=PERSON))
    assert output.outputs[0].finish_reason == "length"
    assert '{"name": "'.startswith(output.outputs[0].text[:5])
    (output,) = llm.generate("hello", with_(FREE.replace(stop="age"), json=PERSON))
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", "age")
    assert output.outputs[0].text.endswith(', "')


def test_overlapping_branches_of_one_of_count_as_any_of(llm: LLM) -> None:
    schema = {
        "oneOf": [{"type": "integer", "minimum": 0, "maximum": 50}, {"type": "integer", "minimum": 20, "maximum": 99}]
    }
    for text in texts(llm, with_(FREE.replace(n=4), json=schema)):
        jsonschema.validate(json.loads(text), {"anyOf": schema["oneOf"]})


def test_a_recursive_schema(llm: LLM) -> None:
    schema = {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {"left": {"$ref": "#/$defs/tree"}, "value": {"type": "boolean"}},
                "required": ["value"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/tree",
    }
    for text in texts(llm, with_(FREE.replace(n=2, logit_bias={ord("v"): 8.0}), json=schema)):
        jsonschema.validate(json.loads(text), schema)


def test_a_text_that_normalization_would_change_is_spelt_as_asked(llm: LLM) -> None:
    """The ChatML vocabulary normalizes to NFC; the choice is NFD."""
    decomposed = "e\u0301 th"
    assert set(texts(llm, with_(choice=[decomposed]))) == {decomposed}


def test_forced_text_is_tokenized_as_the_tokenizer_does(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", architecture="qwen2", chat_template=CHATML_TEMPLATE)
    with LLM(str(path), dtype="fp32", max_model_len=128) as llm:
        (output,) = llm.generate("hello", with_(choice=["this and that"]))
        ids = llm.tokenizer.encode("this and that")
        assert len(ids) == len("this and that") - 2, "the vocabulary has a token for th"
        assert output.outputs[0].token_ids == ids


def test_other_answers_are_the_same_beside_structured_ones(llm: LLM) -> None:
    params = FREE.replace(max_tokens=30, ignore_eos=True)
    (alone,) = llm.generate("abc", params)
    llm.add("json", llm.prepare_prompt("hello", with_(json=PERSON)))
    (beside,) = llm.generate("abc", params)
    llm.abort("json")
    assert beside.outputs[0].token_ids == alone.outputs[0].token_ids


def record_sequences(engine: Any) -> list[Any]:
    """A list of the sequences that its scheduler takes in from now on."""
    sequences: list[Any] = []
    add = engine.scheduler.add

    def recorded(sequence: Any) -> None:
        sequences.append(sequence)
        add(sequence)

    engine.scheduler.add = recorded
    return sequences


def test_guesses_change_nothing(tmp_path: Path) -> None:
    """The prompt holds answers of the same form, so there is much to guess, and some of it does not fit."""
    path, schema = str(write_folder(tmp_path / "m")), {"type": "array", "items": PERSON, "minItems": 3, "maxItems": 3}
    person = '{"name": "abc", "age": 12, "tags": ["a", 3]}'
    prompts = [
        f"[{person}, {person}, {person}]",
        f"{person} {person.replace(', ', ',')}",
        person.replace("age", "agent"),
    ]
    answers, accepted = [], []
    for speculation in (True, False):
        with LLM(path, dtype="fp32", max_model_len=1024, speculation=speculation) as llm:
            engine = llm.backend.engine  # type: ignore[attr-defined]
            engine.scheduler.row_cost = RowCost(0.01)
            sequences = record_sequences(engine)
            for temperature in (0.0, 1.0):
                params = with_(FREE.replace(temperature=temperature, max_tokens=400, n=2), json=schema)
                answers.append([[s.token_ids for s in output.outputs] for output in llm.generate(prompts, params)])
            accepted.append(sum(sequence.lookup.num_accepted for sequence in sequences))
    assert answers[:2] == answers[2:]
    assert accepted[0] > 20
    assert accepted[1] == 0


@pytest.mark.parametrize("option", ['stop="xyz"', "max_tokens=30", 'suffix="xyz"', "lazy"])
def test_guesses_change_nothing_where_the_library_cannot_go_back(tmp_path: Path, option: str) -> None:
    path = str(write_folder(tmp_path / "m"))
    params = with_(FREE.replace(temperature=0.0, max_tokens=40), grammar=f'start: a "b"\na[{option}]: /[a-z]+/')
    answers = []
    for speculation in (True, False):
        with LLM(path, dtype="fp32", max_model_len=256, speculation=speculation) as llm:
            llm.backend.engine.scheduler.row_cost = RowCost(0.01)  # type: ignore[attr-defined]
            (output,) = llm.generate("hello hello hello", params)
            answers.append((output.outputs[0].token_ids, output.outputs[0].finish_reason))
    assert answers[0] == answers[1]


def test_a_turn_that_has_begun_goes_on_at_once(llm: LLM) -> None:
    params = with_(choice=["yes", "no"])
    messages = [*CHAT, {"role": "assistant", "content": "I say "}]
    llm.add("x", llm.prepare_chat(messages, params, add_generation_prompt=False))
    ids: list[int] = []
    while llm.has_unfinished_requests():
        ids += [token for chunk in llm.step() for token in chunk.token_ids]
    assert llm.tokenizer.decode(ids) in ("yes", "no")


# Refusals


@pytest.mark.parametrize(
    ("outputs", "match"),
    [
        ({}, "exactly one"),
        ({"regex": "a", "choice": ["b"]}, "regex and choice"),
        ({"choice": []}, "choice"),
        ({"choice": "abc"}, "choice"),
        ({"choice": ["a", 3]}, "choice"),
        ({"regex": 3}, "regex"),
        ({"grammar": ""}, "grammar"),
        ({"json": "{"}, "not valid JSON"),
        ({"json": "[1]"}, "must be an object"),
        ({"json": {"a": {1, 2}}}, "not valid JSON"),
        ({"json": {"minimum": float("nan")}}, "not valid JSON"),
        ({"json": "[" * 100_000}, "nests too deeply"),
        ({"regex": "\ud800"}, "Unicode"),
        ({"regex": "a" * (MAX_CHARACTERS + 1)}, "characters"),
    ],
)
def test_what_is_refused_before_it_is_compiled(outputs: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidRequestError, match=match) as caught:
        StructuredOutputs(**outputs, param="response_format")
    assert caught.value.param == "response_format"


def deep(levels: int) -> str:
    return '{"items": ' * levels + "{}" + "}" * levels


@pytest.mark.parametrize(
    ("outputs", "match"),
    [
        ({"json": {"not": {"type": "string"}}}, "'not'"),
        ({"json": {"type": "array", "uniqueItems": True}, "strict": True}, "'uniqueItems'"),
        ({"json": {"if": {}, "then": {}}}, "'if', 'then'"),
        ({"json": {"not": {}, "x-guidance": {"lenient": True}}}, "'not'"),
        ({"json": {"type": "colour"}}, "colour"),
        ({"json": {"properties": 5, "type": "object"}}, "properties"),
        ({"json": {"type": "integer", "minimum": 5, "maximum": 3}}, "minimum"),
        ({"json": {"enum": []}}, "nsatisfiable"),
        ({"json": {"$ref": "#/nowhere"}}, "nowhere"),
        ({"json": {"$ref": "http://localhost/schema.json"}}, "localhost"),
        ({"json": {"$ref": "#"}}, "no text"),
        ({"json": {"type": "string", "pattern": "("}}, "unclosed"),
        ({"json": {"const": "\ud800"}}, "response_format"),
        ({"json": deep(300)}, "100 levels"),
        ({"json": {"enum": [f"v{i}" for i in range(100_000)]}}, "too big"),
        ({"json": {"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in range(9)]} for i in range(9)]}}, "large"),
        ({"regex": "("}, "unclosed"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"grammar": "start: nothing"}, "nothing"),
        ({"grammar": "start: @other"}, "other"),
        ({"grammar": 'start: "a'}, "lexer"),
        ({"grammar": "start: " + "(" * 5000}, "response_format"),
    ],
)  # fmt: skip
def test_what_cannot_be_enforced_is_refused_by_name(llm: LLM, outputs: dict[str, Any], match: str) -> None:
    params = FREE.replace(structured_outputs=StructuredOutputs(**outputs, param="response_format"))
    prepares: tuple[Callable[[], object], ...] = (
        lambda: llm.prepare_chat(CHAT, params), lambda: llm.prepare_prompt("hello", params),
    )  # fmt: skip
    for prepare in prepares:
        with pytest.raises(InvalidRequestError, match=match) as caught:
            prepare()
        assert caught.value.param == "response_format"
        assert len(str(caught.value)) < 1000
    assert not llm.has_unfinished_requests()


@pytest.mark.parametrize(
    "outputs",
    [
        {"regex": "(x+x+)+y"},
        {"regex": "((a{0,1000}){0,1000}){0,1000}"},
        {"regex": r"(.|\n)*(a|b)(.|\n){300}"},
        {"grammar": 'start: start start | "a"'},
        {"json": {"type": "array", "items": {}, "minItems": 1_000_000}},
        {"json": deep(60)},
        {"json": {"const": "x" * 20_000}},
    ],
)
def test_expressions_made_to_be_slow_are_followed_or_refused(llm: LLM, outputs: dict[str, Any]) -> None:
    """Not killed, not stuck: the pytest time-out is the limit."""
    try:
        (output,) = llm.generate("hello", with_(FREE.replace(max_tokens=40), **outputs))
    except InvalidRequestError:
        return
    assert output.outputs[0].finish_reason in ("stop", "length")


def test_a_compiled_grammar_is_kept(llm: LLM) -> None:
    first, second = (llm.prepare_prompt("x", with_(json=PERSON)).constraint for _ in range(2))
    assert first is second
    assert llm.prepare_prompt("x", with_(json_object=True)).constraint is not first


def test_grammars_are_compiled_on_many_threads_at_once(tmp_path: Path) -> None:
    """The vocabulary too, which the first of them needs."""
    with (
        LLM(str(write_folder(tmp_path / "m")), dtype="fp32", max_model_len=256) as llm,
        ThreadPoolExecutor(8) as threads,
    ):
        params = [with_(FREE.replace(seed=i), regex=f"[ab]{{{i % 4 + 1}}}") for i in range(24)]
        prepared = list(threads.map(lambda each: llm.prepare_prompt("x", each), params))
        for index, request in enumerate(prepared):
            llm.add(str(index), request)
        answers: dict[str, str] = {}
        while llm.has_unfinished_requests():
            for chunk in llm.step():
                if chunk.output is not None:
                    answers[chunk.request_id] = chunk.output.outputs[0].text
    assert all(re.fullmatch("[ab]*", answers[str(i)]) and len(answers[str(i)]) == i % 4 + 1 for i in range(24))


def test_the_library_is_loaded_with_the_first_grammar(tmp_path: Path) -> None:
    code = """
import sys
from glm4 import LLM, SamplingParams, StructuredOutputs
import glm4.cli.chat
with LLM(sys.argv[1], max_model_len=64) as llm:
    llm.chat([{"role": "user", "content": "x"}], SamplingParams(max_tokens=2))
    assert "llguidance" not in sys.modules
    llm.generate("x", SamplingParams(max_tokens=2, structured_outputs=StructuredOutputs(regex="a")))
    assert "llguidance" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(write_folder(tmp_path / "m"))], check=True)


@pytest.mark.smoke
def test_a_real_model_fills_a_form() -> None:
    invoice = {
        "type": "object",
        "properties": {
            "customer": {"type": "string", "maxLength": 30},
            "date": {"type": "string", "format": "date"},
            "lines": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"article": {"enum": ["bread", "milk"]}, "count": {"type": "integer", "maximum": 99}},
                    "required": ["article", "count"],
                    "additionalProperties": False,
                },
                "minItems": 2,
                "maxItems": 3,
            },
        },
        "required": ["customer", "date", "lines"],
        "additionalProperties": False,
    }
    question = "Ms Miller bought two breads and one milk on 3 May 2024. Write the invoice as JSON."
    params = with_(SamplingParams(temperature=0.0, max_tokens=200), json=invoice)
    with LLM("smoke", max_model_len=512) as llm:
        (output,) = llm.chat([{"role": "user", "content": question}], params)
    value = json.loads(output.outputs[0].text)
    jsonschema.validate(value, invoice, format_checker=jsonschema.FormatChecker())
    assert output.outputs[0].finish_reason == "stop"
