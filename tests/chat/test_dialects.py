"""How each dialect prepares messages, what it refuses, and where its answers stop."""

from __future__ import annotations

from typing import Any

import pytest

from glm4.chat.chat_request import ChatRequest
from glm4.chat.dialects.glm4 import SEGMENT
from glm4.chat.dialects.table import DIALECTS, dialect_for
from glm4.chat.messages import Message, ToolCall
from glm4.chat.template.template import ChatTemplate
from glm4.errors import InvalidRequestError, TokenizerError
from glm4.tokenizer import Tokenizer, load_tokenizer
from glm4.variants import VARIANTS
from rendering import render, render_text
from vocabularies import installed_gguf, tiny_chatml, tiny_gguf

WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}
CHATML = DIALECTS["chatml"]


def glm_text(messages: list[Any], glm4: Tokenizer, name: str = "glm4", **options: Any) -> str:
    return render_text(DIALECTS[name], messages, tokenizer=glm4, **options)


def test_every_variant_has_its_dialect() -> None:
    assert {variant.dialect for variant in VARIANTS.values()} <= set(DIALECTS)
    with pytest.raises(InvalidRequestError, match="unknown chat dialect 'alpaca'"):
        dialect_for("alpaca")


def test_glm4_stop_ids(glm4: Tokenizer) -> None:
    for name in ("glm4", "glm4_0414", "glm_z1"):
        assert DIALECTS[name].stop_ids(glm4) == {151329, 151336, 151338}


def test_chatml_stop_ids() -> None:
    tokenizer = tiny_chatml()
    assert CHATML.stop_ids(tokenizer) == {tokenizer.special_id("<|im_end|>"), tokenizer.special_id("<|endoftext|>")}
    with pytest.raises(TokenizerError, match="has none of"):
        CHATML.stop_ids(load_tokenizer(None, gguf_metadata=tiny_gguf(specials=["<|user|>"], eos_token_id=None)))


@pytest.mark.starter
def test_starter_stop_ids() -> None:
    assert CHATML.stop_ids(load_tokenizer(None, gguf_metadata=installed_gguf("starter"))) == {151643, 151645}


def test_glm4_system_message_and_tools_are_two_blocks(glm4: Tokenizer) -> None:
    with_system = glm_text([Message("system", "Be brief."), Message("user", "hi")], glm4, tools=[WEATHER])
    assert with_system.count("<|system|>") == 2
    assert with_system.index("# 可用工具") < with_system.index("<|system|>\nBe brief.<|user|>\nhi")
    without = glm_text([Message("user", "hi")], glm4, tools=[WEATHER])
    assert without.count("<|system|>") == 1
    assert without.startswith("[gMASK]<sop><|system|>\n你是一个名为 ChatGLM 的")


def test_glm4_tools_on_the_message_and_beside_it(glm4: Tokenizer) -> None:
    other = {"type": "function", "function": {"name": "other"}}
    text = glm_text([{"role": "system", "content": "", "tools": [other]}], glm4, tools=[WEATHER])
    assert text.index("## other") < text.index("## get_weather")


def test_glm4_calls(glm4: Tokenizer) -> None:
    calls = (ToolCall("call_1", "get_weather", '{"city": "北京"}'), ToolCall("call_2", "ping", ""))
    results = [Message("tool", "pong", tool_call_id="call_2"), Message("tool", "21", tool_call_id="call_1")]
    messages = [Message("assistant", "I look.", tool_calls=calls), *results]
    assert glm_text(messages, glm4, add_generation_prompt=False) == (
        "[gMASK]<sop><|assistant|>\nI look.<|assistant|>get_weather\n"
        '{"city": "北京"}<|assistant|>ping\n{}<|observation|>\n21<|observation|>\npong'
    )


def test_glm4_metadata_of_observations(glm4: Tokenizer) -> None:
    text = glm_text([Message("observation", "page", metadata="browser_result")], glm4, add_generation_prompt=False)
    assert text == "[gMASK]<sop><|observation|>browser_result\npage"


def test_0414_puts_tools_and_system_messages_first(glm4: Tokenizer) -> None:
    messages = [Message("user", "a"), Message("system", "s"), Message("user", "b")]
    text = glm_text(messages, glm4, "glm4_0414", tools=[WEATHER])
    assert text.startswith("[gMASK]<sop><|system|>\n# 可用工具\n\n## get_weather\n\n{\n")
    assert text.endswith("参数。<|system|>\ns<|user|>\na<|user|>\nb<|assistant|>")


def test_z1_drops_earlier_thinking(glm4: Tokenizer) -> None:
    messages = [
        Message("user", "a"),
        Message("assistant", "<think>x</think>\n\nb", reasoning="y"),
        Message("user", "c"),
    ]
    text = glm_text(messages, glm4, "glm_z1")
    assert text == "[gMASK]<sop><|user|>\na<|assistant|>\nb<|user|>\nc<|assistant|>\n<think>"


def test_chatml_arguments_become_objects() -> None:
    good = ToolCall("call_1", "f", '{"b": 1, "a": "é"}')
    bad = ToolCall("call_2", "g", "not json")
    text = render_text(CHATML, [Message("assistant", tool_calls=(good, bad))], tokenizer=tiny_chatml())
    assert '{"name": "f", "arguments": {"b": 1, "a": "é"}}' in text
    assert '{"name": "g", "arguments": "not json"}' in text


def test_chatml_understands_glm_messages() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "s", "tools": [WEATHER]},
        {"role": "assistant", "metadata": "get_weather", "content": '{"city": "P"}'},
        {"role": "observation", "content": "21"},
    ]
    text = render_text(CHATML, messages, tokenizer=tiny_chatml(), add_generation_prompt=False)
    assert '<tools>\n{"type": "function"' in text
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "P"}}\n</tool_call>' in text
    assert "<tool_response>\n21\n</tool_response>" in text


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("get_weather", "tools must be a list"),
        ({"type": "function"}, "tools must be a list"),
        (["get_weather"], r"tools\[0\] must be an object"),
        ([WEATHER, {"type": "function"}], r"tools\[1\] needs a function"),
        ([{"type": "function", "function": {"name": ""}}], "needs a function with a name"),
        ([{"type": "function", "function": {"name": "a\nb"}}], "name of one line"),
        ([{"type": "retrieval"}], "type 'retrieval'"),
        ([{"type": "python"}], "type 'python'"),
    ],
)
def test_malformed_tools(tools: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        render(CHATML, [Message("user", "a")], tools=tools, tokenizer=tiny_chatml())
    assert caught.value.param == "tools"


@pytest.mark.parametrize(
    ("member", "value"),
    [("description", 7), ("description", []), ("parameters", "x"), ("parameters", [1]), ("strict", 1)],
)
def test_malformed_members_of_a_function(member: str, value: object) -> None:
    tool = {"type": "function", "function": {"name": "f", member: value}}
    with pytest.raises(InvalidRequestError, match=rf"tools\[0\]\.function\.{member} must be") as caught:
        render(CHATML, [Message("user", "a")], tools=[tool], tokenizer=tiny_chatml())
    assert caught.value.param == f"tools[0].function.{member}"


@pytest.mark.parametrize("name", DIALECTS)
def test_null_in_a_tool_is_not_given(name: str, glm4: Tokenizer) -> None:
    tokenizer = tiny_chatml() if name == "chatml" else glm4
    nulls = {"description": None, "parameters": None, "strict": None}
    texts = {
        render_text(DIALECTS[name], [Message("user", "a")], tools=[tool], tokenizer=tokenizer)
        for tool in (
            {"type": "function", "function": {"name": "f"}},
            {"type": "function", "function": {"name": "f", **nulls}},
            {"type": None, "function": {"name": "f"}, "metadata": None},
        )
    }
    assert len(texts) == 1
    assert "null" not in texts.pop()


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("tools", [["get_weather"], [{"type": "retrieval"}], [{"type": "function"}]])
def test_malformed_tools_on_a_message(name: str, tools: list[Any], glm4: Tokenizer) -> None:
    tokenizer = tiny_chatml() if name == "chatml" else glm4
    with pytest.raises(InvalidRequestError) as caught:
        render(DIALECTS[name], [{"role": "system", "content": "s", "tools": tools}], tokenizer=tokenizer)
    assert caught.value.param == "tools"


def test_offered_tools() -> None:
    other = {"type": "function", "function": {"name": "other"}}
    assert ChatRequest.of([{"role": "system", "content": "", "tools": [other]}], tools=[WEATHER]).offered_tools == [
        other,
        WEATHER,
    ]


def test_builtin_tools_are_glm4s_only(glm4: Tokenizer) -> None:
    assert "## cogview\n\n" in glm_text([Message("user", "a")], glm4, tools=[{"type": "cogview"}])
    with pytest.raises(InvalidRequestError, match="type 'cogview'"):
        glm_text([Message("user", "a")], glm4, "glm4_0414", tools=[{"type": "cogview"}])


def test_a_template_without_tools_refuses_them() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(InvalidRequestError, match="no place for tools"):
        render(CHATML, [Message("user", "a")], tools=[WEATHER], tokenizer=tiny_chatml(), template=template)


def test_template_variables() -> None:
    template = ChatTemplate("{{ messages[0].content }}{{ enable_thinking }}{{ add_generation_prompt }}")
    options: dict[str, Any] = {"tokenizer": tiny_chatml(), "template": template}
    text = render_text(CHATML, [Message("user", "a")], template_kwargs={"enable_thinking": False}, **options)
    assert text == "aFalseTrue"
    with pytest.raises(InvalidRequestError, match="may not set 'messages'") as caught:
        render_text(CHATML, [Message("user", "a")], template_kwargs={"messages": []}, **options)
    assert caught.value.param == "template_kwargs"


def test_glm4_detokenizer_shows_where_a_segment_begins(glm4: Tokenizer) -> None:
    ids = glm4.encode("\nhi<|assistant|>get<|observation|>", allow_special=True)
    detokenizer = DIALECTS["glm4"].detokenizer(glm4)
    assert "".join(detokenizer.push(i) for i in ids) == f"\nhi{SEGMENT}get"
    spelled = glm4.encode("<|assistant|>")
    assert "".join(detokenizer.push(i) for i in spelled) == "<|assistant|>"
