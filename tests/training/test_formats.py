"""What rows of each format become, and what is wrong with those that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training_rows import ASSISTANT, USER, WEATHER, chat, chatml, example, turns

from glm4.chat.pictures import images_of
from glm4.errors import TrainingDataError
from glm4.training.data.convert import as_row
from glm4.training.data.encoding import Encoder
from glm4.training.data.examples import PreferenceExample, TextExample
from glm4.training.data.formats.columns import Columns
from glm4.training.data.formats.row_values import Setting

CALL = {"name": "get_weather", "arguments": {"city": "北京"}}
CALLED = 'get_weather({"city": "北京"})'
WRITTEN = json.dumps(CALL, ensure_ascii=False)
TALK = [("user", "北京天气?"), ("assistant", "", CALLED), ("observation", "21"), ("assistant", "21度")]
NATIVE = '{"city": "北京"}'


def original(call: dict[str, Any], **system: Any) -> dict[str, Any]:
    tools = [{"type": "function", "function": WEATHER}]
    return {
        "messages": [
            {"role": "system", "content": "", "tools": tools, **system},
            {"role": "user", "content": "北京天气?"},
            {"role": "assistant", **call},
            {"role": "observation", "content": "21"},
            {"role": "assistant", "content": "21度"},
        ]
    }


@pytest.mark.parametrize(
    "call",
    [
        {"content": WRITTEN},
        {"content": json.dumps(CALL, indent=2, ensure_ascii=False).replace('{\n    "city": "北京"\n  }', NATIVE)},
        {"content": f"get_weather\n{NATIVE}"},
        {"content": f"[{WRITTEN}]"},
        {"content": None, "tool_calls": [{"id": "1", "type": "function", "function": CALL}]},
    ],
)
def test_original_calls(call: dict[str, Any]) -> None:
    found = chat(original(call))
    assert turns(found)[1:] == TALK
    assert found.weights is None
    assert found.place == "rows.jsonl:1"
    assert not found.request.add_generation_prompt


def test_original_metadata() -> None:
    message = chat(original({"metadata": "get_weather", "content": NATIVE})).request.messages[2]
    assert (message.metadata, message.text) == ("get_weather", NATIVE)


def test_tools_without_their_wrapper_and_nulls() -> None:
    """Arrow fills every field that another row has with null."""
    parameters = {"type": "object", "properties": {"city": {"type": "string", "enum": None}, "to": None}}
    found = chat(original({"content": WRITTEN}, tools=[{**WEATHER, "parameters": parameters, "strict": None}]))
    expected = {**WEATHER, "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    assert found.request.offered_tools == [{"type": "function", "function": expected}]


def test_json_in_an_answer_is_text_unless_a_result_follows() -> None:
    row = {"messages": [USER, {"role": "assistant", "content": WRITTEN}]}
    assert turns(chat(row))[1] == ("assistant", WRITTEN)
    assert turns(chat({**row, "tools": [WEATHER]}))[1] == ("assistant", "", CALLED)
    other = {"messages": [USER, {"role": "assistant", "content": '{"name": "x"}'}, USER, ASSISTANT], "tools": [WEATHER]}
    assert turns(chat(other))[1] == ("assistant", '{"name": "x"}')


def test_openai() -> None:
    calls = [
        {"id": id_, "type": "function", "function": {"name": "get_weather", "arguments": NATIVE}} for id_ in ("a", "b")
    ]
    row = {
        "messages": [
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "北京天气?"}]},
            {"role": "assistant", "content": "I look.", "tool_calls": calls, "weight": 0},
            {"role": "tool", "tool_call_id": "b", "content": "second"},
            {"role": "tool", "tool_call_id": "a", "content": "first"},
            {"role": "assistant", "content": "21度", "weight": 1},
        ],
        "tools": [{"type": "function", "function": WEATHER}],
        "parallel_tool_calls": True,
        "id": "passed over",
    }
    found = chat(row)
    assert turns(found) == [
        ("system", "Be kind."),
        ("user", "北京天气?"),
        ("assistant", "I look.", CALLED, CALLED),
        ("tool", "first"),
        ("tool", "second"),
        ("assistant", "21度"),
    ]
    assert found.weights == (1, 1, 0, 1, 1, 1)


def sharegpt(**more: Any) -> dict[str, Any]:
    conversations = [
        {"from": "human", "value": "北京天气?"},
        {"from": "function_call", "value": WRITTEN},
        {"from": "observation", "value": "21"},
        {"from": "gpt", "value": "21度"},
    ]
    return {"conversations": conversations, "tools": json.dumps([WEATHER]), "system": "", **more}


def test_sharegpt() -> None:
    found = chat(sharegpt())
    assert turns(found) == TALK
    assert found.request.tools == ({"type": "function", "function": WEATHER},)
    assert turns(chat(sharegpt(system="s")))[0] == ("system", "s")


def test_sharegpt_parallel_calls() -> None:
    row = sharegpt()
    row["conversations"][1]["value"] = f"[{WRITTEN}, {WRITTEN}]"
    row["conversations"][2] = {"from": "tool", "value": '["21", {"t": 22}]'}
    assert turns(chat(row))[1:4] == [
        ("assistant", "", CALLED, CALLED),
        ("observation", "21"),
        ("observation", '{"t": 22}'),
    ]
    row["conversations"][2]["value"] = "21"
    with pytest.raises(TrainingDataError, match="has no result, but another call of the same turn has"):
        chat(row)


def test_sharegpt_with_other_names() -> None:
    columns = Columns(messages="dialog", role="who", content="text", user="q", assistant="a", system="intro")
    row = {"dialog": [{"who": "q", "text": "hi"}, {"who": "a", "text": "hello"}], "intro": "s"}
    found = chat(row, "sharegpt", Setting(columns))
    assert turns(found) == [("system", "s"), ("user", "hi"), ("assistant", "hello")]


def test_messages_in_the_words_of_sharegpt() -> None:
    assert turns(chat({"messages": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]})) == [
        ("user", "hi"),
        ("assistant", "hello"),
    ]


def test_conversations_in_the_words_of_openai() -> None:
    assert turns(chat({"conversations": [USER, ASSISTANT]})) == [("user", "hi"), ("assistant", "hello")]
    assert turns(chat({"messages": json.dumps([USER, ASSISTANT])})) == [("user", "hi"), ("assistant", "hello")]


def test_alpaca() -> None:
    row = {"instruction": "Translate.", "input": "你好", "output": "hello", "history": [["a", "b"]], "system": "s"}
    assert turns(chat(row)) == [
        ("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "Translate.\n你好"), ("assistant", "hello"),
    ]  # fmt: skip
    setting = Setting(Columns(instruction="question", output="answer"))
    assert turns(chat({"question": "q", "answer": "a"}, setting=setting)) == [("user", "q"), ("assistant", "a")]


def test_text() -> None:
    assert example({"text": "some text"}) == TextExample("some text", "rows.jsonl:1")


PREFERENCES: list[dict[str, Any]] = [
    {"input": {"messages": [USER]}, "preferred_output": [ASSISTANT],
     "non_preferred_output": [{**ASSISTANT, "content": "x"}]},
    {"prompt": "hi", "chosen": "hello", "rejected": "x"},
    {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [{**ASSISTANT, "content": "x"}]},
    {"prompt": "hi", "chosen": [USER, ASSISTANT], "rejected": [USER, {**ASSISTANT, "content": "x"}]},
    {"chosen": [USER, ASSISTANT], "rejected": [USER, {**ASSISTANT, "content": "x"}]},
    {"conversations": [{"from": "human", "value": "hi"}], "chosen": {"from": "gpt", "value": "hello"},
     "rejected": {"from": "gpt", "value": "x"}},
    {"instruction": "hi", "input": "", "chosen": "hello", "rejected": "x"},
    {"messages": [USER], "chosen": ASSISTANT, "rejected": {**ASSISTANT, "content": "x"}},
]  # fmt: skip


@pytest.mark.parametrize("row", PREFERENCES)
def test_preferences(row: dict[str, Any]) -> None:
    found = example(row)
    assert isinstance(found, PreferenceExample)
    assert [(m.role, m.text) for m in found.request.messages] == [("user", "hi")]
    assert [(m.role, m.text) for m in found.chosen] == [("assistant", "hello")]
    assert [(m.role, m.text) for m in found.rejected] == [("assistant", "x")]


def test_preferences_with_tools() -> None:
    call = {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": CALL}]}
    found = example({"prompt": [USER], "chosen": [call], "rejected": [ASSISTANT], "tools": [WEATHER]})
    assert isinstance(found, PreferenceExample)
    assert found.request.tools == ({"type": "function", "function": WEATHER},)
    assert found.chosen[0].tool_calls[0].name == "get_weather"


def picture(folder: Path, name: str = "a.png") -> bytes:
    data = f"picture {name}".encode()
    (folder / name).write_bytes(data)
    return data


def test_pictures(tmp_path: Path) -> None:
    one, two = picture(tmp_path), picture(tmp_path, "b.png")
    setting = Setting(image_folder=tmp_path)
    ask = {"role": "user", "content": "What?", "image": "a.png"}
    first = {"messages": [ask, ASSISTANT]}
    part = {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "?"}],
    }
    share = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "x"}]
    for row, data in (
        (first, [one]),
        ({"messages": [{**ask, "image": str(tmp_path / "a.png")}, ASSISTANT]}, [one]),
        ({"messages": [part, ASSISTANT]}, [one]),
        ({"conversations": share, "images": ["a.png"]}, [one]),
        ({"conversations": share, "images": [{"bytes": one, "path": "x"}, "b.png"]}, [one, two]),
    ):
        found = chat(row, setting=setting)
        assert [part.data for part in images_of(found.request.messages)] == data
        assert "<image>" not in found.request.messages[0].text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("none.png", r"messages\[0\].image: the picture .*none.png cannot be read: No such file or directory; correct"),
        ("https://a.b/c.png", "pictures are not downloaded; save it beside the data and give its path"),
        (3, "a picture must be the path of a file, not 3"),
        (".", "cannot be read: Is a directory"),
    ],
)
def test_bad_pictures(value: object, message: str, tmp_path: Path) -> None:
    row = {"messages": [{**USER, "image": value}, ASSISTANT]}
    with pytest.raises(TrainingDataError, match=message):
        chat(row, setting=Setting(image_folder=tmp_path))


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


RESULT = {"role": "observation", "content": "21"}
BAD: list[tuple[Any, str]] = [
    ({"messages": []}, "the row has no messages"),
    ({"messages": "x"}, "messages: must be JSON"),
    ({"messages": {"role": "user"}}, "messages: must be a list, not {'role': 'user'}"),
    ({"messages": ["x"]}, r"messages\[0\]: a message must be an object, not 'x'"),
    ({"messages": [{"role": "bot", "content": "x"}]}, r"messages\[0\].role: message role must be one of .*, not 'bot'"),
    ({"messages": [{"role": "user"}]}, r"messages\[0\].content: is missing"),
    ({"messages": [{"role": "user", "content": ""}, ASSISTANT]}, r"messages\[0\].content: is empty"),
    ({"messages": [USER, {"role": "assistant", "content": ""}]}, r"messages\[1\]: the assistant says nothing"),
    ({"messages": [{**USER, "mood": 1}, ASSISTANT]}, "unknown message field 'mood'; leave it out"),
    ({"messages": [USER, {**ASSISTANT, "weight": 0.5}]}, r"messages\[1\].weight: must be 0 or 1, not 0.5"),
    ({"messages": [ASSISTANT, USER, ASSISTANT]}, r"messages\[0\]: the assistant speaks first"),
    ({"messages": [USER, ASSISTANT, system("s"), USER, ASSISTANT]}, r"messages\[2\]: a system message must come first"),
    ({"messages": [USER, USER, ASSISTANT]}, r"messages\[1\]: two messages of the user in a row; join them"),
    ({"messages": [USER, ASSISTANT, ASSISTANT]}, r"messages\[2\]: two messages of the assistant in a row"),
    ({"messages": [USER, ASSISTANT, RESULT, ASSISTANT]}, r"messages\[2\]: a result of a tool must follow a call"),
    ({"messages": [USER, {"role": "assistant", "content": NATIVE, "metadata": "f"}, USER, ASSISTANT]},
     r"messages\[2\]: the call before it has no result; add a message of role 'observation'"),
    ({"messages": [USER, ASSISTANT, USER]}, r"messages\[2\]: the last message is of role 'user'; it must be the assis"),
    ({"messages": [{**USER, "image": None}, {**ASSISTANT, "image": "a"}]}, "only messages of the user have pictures"),
    ({"messages": [USER, ASSISTANT], "tools": "x"}, "tools: must be JSON"),
    ({"messages": [USER, ASSISTANT], "tools": [3]}, r"tools\[0\]: a tool must be an object, not 3"),
    ({"messages": [USER, ASSISTANT], "images": ["a", "b"], "text": None}, "the picture a cannot be read"),
    ({"conversations": [{"from": "human", "value": "a"}, {"from": "bot", "value": "b"}]},
     r"conversations\[1\].from: must be one of human, .*function_call, not 'bot'"),
    ({"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "b"}]},
     r"conversations\[1\].value: a call must be JSON"),
    ({"conversations": [{"from": "human", "value": 3}]}, r"conversations\[0\].value: must be a text, not 3"),
    ({"instruction": "", "output": "a"}, "the row has neither an instruction nor an input"),
    ({"instruction": "a", "output": ""}, "the assistant says nothing"),
    ({"instruction": "a", "output": "b", "history": [["a"]]}, r"history\[0\]: must be a pair"),
    ({"text": " "}, "text: is empty; delete the row"),
    ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen: the two answers are the same; delete the row"),
    ({"prompt": [USER, ASSISTANT], "chosen": "b", "rejected": "c"}, "the prompt ends with role 'assistant'"),
    ({"prompt": "a", "chosen": [USER], "rejected": "c"}, r"chosen: messages\[1\]: two messages of the user in a row"),
    ({"chosen": [USER, ASSISTANT], "rejected": [{**USER, "content": "x"}, ASSISTANT]}, "the row has no messages"),
    ({"a": 1, "b": 2}, "cannot tell the format of rows.jsonl: its rows have 'a', 'b'; set format to one of messages"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), BAD)
def test_bad_rows(row: Any, message: str) -> None:
    with pytest.raises(TrainingDataError, match=message):
        example(row)


def test_what_a_format_needs() -> None:
    with pytest.raises(TrainingDataError, match=r"^rows.jsonl:1: messages: the row has no 'messages'; it has 'text'$"):
        example({"text": "x"}, "openai")


JUNK: list[Any] = [
    None, True, 0, -1.5, "", "x", "{", "[[", '[{"role": 1}]', "\ud800", [], [None], [[]], [{}], {}, {"a": None},
    {"role": []}, [{"role": "user", "content": {"a": 1}}], [{"from": None, "value": []}], {"function": "x"},
    [{"function": {"name": 3}}],
]  # fmt: skip


def damaged(row: Any) -> list[Any]:
    """The row with junk in the place of every value in it."""
    found: list[Any] = list(JUNK)
    members = row.items() if isinstance(row, dict) else enumerate(row) if isinstance(row, list) else ()
    for key, value in members:
        for junk in damaged(value):
            changed = dict(row) if isinstance(row, dict) else list(row)
            changed[key] = junk
            found.append(changed)
    return found


@pytest.mark.parametrize("row", [original({"content": WRITTEN}), sharegpt(), *PREFERENCES])
def test_junk_is_refused_or_harmless(row: dict[str, Any]) -> None:
    """Whatever a row holds, it is an example that can be encoded, or an error that names it."""
    encoder = Encoder(chatml())
    used = 0
    for changed in damaged(row):
        if not isinstance(changed, dict):
            continue
        for format_ in ("auto", "messages", "sharegpt", "alpaca", "preference"):
            try:
                found = example(changed, format_)
                used += encoder.encode(found) is not None
                assert example(as_row(found)) == found
            except TrainingDataError:
                continue
    assert used


def test_deep_rows() -> None:
    deep: Any = "x"
    for _ in range(900):
        deep = [deep]
    tool = {"name": "f", "parameters": {"enum": deep}}
    with pytest.raises(TrainingDataError, match="nested"):
        Encoder(chatml()).encode(chat({"messages": [USER, ASSISTANT], "tools": [tool]}))
