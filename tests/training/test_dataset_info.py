"""LLaMA-Factory's dataset_info.json: entries become sources whose rows are read as there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glm4.errors import TrainingDataError
from glm4.training.config import DataConfig
from glm4.training.data.dataset import data_sources
from glm4.training.data.examples import ChatExample, Example, PreferenceExample, TextExample
from glm4.training.data.sources import described_sources
from glm4.training.foreign.dataset_info import read_dataset_info

CALL = {"name": "add", "arguments": {"a": 1}}
TOOLS = [{"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {}}}]
ROWS: dict[str, list[dict[str, Any]]] = {
    "alpaca.json": [
        {"instruction": "Say", "input": "hi", "output": "hi", "system": "not a column unless it is named"},
        {"instruction": "Say", "input": "", "output": "no"},
        {"instruction": "Say", "input": "", "output": "maybe"},
    ],
    "renamed.json": [{"q": "2+2", "input": "left out", "a": "4", "rules": "Be short.", "past": [["1+1", "2"]]}],
    "share.json": [
        {
            "conversations": [
                {"from": "human", "value": "add 1"},
                {"from": "function_call", "value": json.dumps(CALL)},
                {"from": "observation", "value": "1"},
                {"from": "gpt", "value": "1."},
            ],
            "tools": json.dumps(TOOLS),
        }
    ],
    "tagged.json": [{"turns": [{"who": "me", "says": "hi"}, {"who": "it", "says": "ho"}]}],
    "openai.json": [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}],
    "pairs.json": [{"prompt": "better?", "more": "really", "good": "yes", "bad": "no"}],
    "share_pairs.json": [
        {
            "conversations": [{"from": "human", "value": "better?"}],
            "chosen": {"from": "gpt", "value": "yes"},
            "rejected": {"from": "gpt", "value": "no"},
        }
    ],
    "wiki.json": [{"text": "Once.", "instruction": "not this"}],
}
INFO: dict[str, Any] = {
    "alpaca": {"file_name": "alpaca.json"},
    "two": {"file_name": "alpaca.json", "num_samples": 2},
    "renamed": {
        "file_name": "renamed.json",
        "columns": {"prompt": "q", "response": "a", "system": "rules", "history": "past"},
    },
    "share": {
        "file_name": "share.json",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "tools": "tools"},
    },
    "tagged": {
        "file_name": "tagged.json",
        "formatting": "sharegpt",
        "columns": {"messages": "turns"},
        "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "me", "assistant_tag": "it"},
    },
    "openai": {
        "file_name": "openai.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    },
    "pairs": {
        "file_name": "pairs.json",
        "ranking": True,
        "columns": {"prompt": "prompt", "query": "more", "chosen": "good", "rejected": "bad"},
    },
    "share_pairs": {
        "file_name": "share_pairs.json",
        "formatting": "sharegpt",
        "ranking": True,
        "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
    },
    "wiki": {"file_name": "wiki.json", "columns": {"prompt": "text"}},
    "hub": {"hf_hub_url": "owner/name", "ms_hub_url": "other/name", "subset": "zh", "split": "train"},
}


@pytest.fixture
def info(tmp_path: Path) -> Path:
    for name, rows in ROWS.items():
        (tmp_path / name).write_text(json.dumps(rows))
    path = tmp_path / "dataset_info.json"
    path.write_text(json.dumps(INFO))
    return path


def examples(info: Path, *names: str, format: str = "auto", preferences: bool = False) -> list[Example]:
    found = []
    for source in described_sources(names, info, format):
        for _, example in source.examples(preferences=preferences):
            if isinstance(example, TrainingDataError):
                raise example
            found.append(example)
    return found


def turns(example: Example) -> list[tuple[str, str]]:
    assert isinstance(example, ChatExample)
    return [(message.role, message.text) for message in example.request.messages]


def test_alpaca_without_and_with_columns(info: Path) -> None:
    first, *others = examples(info, "alpaca")
    assert turns(first) == [("user", "Say\nhi"), ("assistant", "hi")]
    assert len(others) == 2
    assert [turns(one) for one in examples(info, "renamed")] == [
        [("system", "Be short."), ("user", "1+1"), ("assistant", "2"), ("user", "2+2"), ("assistant", "4")]
    ]


def test_sharegpt_with_calls_and_with_other_words(info: Path) -> None:
    (example,) = examples(info, "share")
    assert turns(example) == [("user", "add 1"), ("assistant", ""), ("observation", "1"), ("assistant", "1.")]
    assert isinstance(example, ChatExample)
    (call,) = example.request.messages[1].tool_calls
    assert (call.name, json.loads(call.arguments)) == ("add", {"a": 1})
    assert [tool["function"]["name"] for tool in example.request.tools] == ["add"]
    for name in ("tagged", "openai"):
        assert [turns(one) for one in examples(info, name)] == [[("user", "hi"), ("assistant", "ho")]]


@pytest.mark.parametrize(("name", "question"), [("pairs", "better?\nreally"), ("share_pairs", "better?")])
def test_preferences(info: Path, name: str, question: str) -> None:
    (pair,) = examples(info, name, preferences=True)
    assert isinstance(pair, PreferenceExample)
    assert [message.text for message in pair.request.messages] == [question]
    assert (pair.chosen[0].text, pair.rejected[0].text) == ("yes", "no")


def test_plain_text_is_what_the_entry_calls_the_prompt(info: Path) -> None:
    (example,) = examples(info, "wiki", format="text")
    assert isinstance(example, TextExample)
    assert example.text == "Once."


def test_numbers_of_rows(info: Path) -> None:
    assert len(examples(info, "two")) == 2
    assert len(examples(info, "two#1")) == 1
    assert len(examples(info, "alpaca#2", "renamed#9")) == 3


def test_data_sets_of_the_hub_are_named(info: Path) -> None:
    (entry,) = read_dataset_info(info, ["hub#7"], plain_text=False)
    assert entry.source == "owner/name/zh:train#7"
    (source,) = described_sources(["hub#7"], info, "auto")
    assert (source.name, source.split, source.most) == ("owner/name/zh", "train", 7)


def test_a_configuration_names_entries(info: Path) -> None:
    train, validation = data_sources(
        DataConfig(train=("alpaca", "share"), validation=("openai",), dataset_info=str(info))
    )
    assert [Path(source.name).name for source in train] == ["alpaca.json", "share.json"]
    assert [Path(source.name).name for source in validation] == ["openai.json"]
    assert train[0].setting.image_folder == info.parent


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"script_url": "load.py"}, "no code"),
        ({"ms_hub_url": "a/b"}, "ModelScope"),
        ({"file_name": "a.json", "formatting": "chatml"}, "chatml"),
        ({"file_name": "a.json", "columns": {"kto_tag": "label"}}, "KTO"),
        ({"file_name": "a.json", "columns": {"promt": "x"}}, "promt"),
        ({"file_name": "a.json", "colums": {}}, "colums"),
        ({"file_name": "a.json", "num_samples": -1}, "whole number"),
        ({}, "file_name or a hf_hub_url"),
        ([], "must be an object"),
    ],
)
def test_entries_that_mean_something_else(tmp_path: Path, entry: Any, said: str) -> None:
    path = tmp_path / "dataset_info.json"
    path.write_text(json.dumps({"mine": entry}))
    with pytest.raises(TrainingDataError, match="mine") as error:
        read_dataset_info(path, ["mine"], plain_text=False)
    assert said in str(error.value)


def test_files_that_are_none(tmp_path: Path, info: Path) -> None:
    with pytest.raises(TrainingDataError, match="did you mean share_pairs"):
        read_dataset_info(info, ["share_pair"], plain_text=False)
    path = tmp_path / "other.json"
    with pytest.raises(TrainingDataError, match="cannot read"):
        read_dataset_info(path, ["a"], plain_text=False)
    for text, said in (("{", "not JSON"), ("[1]", "must be an object"), ('{"a": NaN}', "not JSON")):
        path.write_text(text)
        with pytest.raises(TrainingDataError, match=said):
            read_dataset_info(path, ["a"], plain_text=False)
