"""`glm4 data`: what checking shows and says, and converting."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from glm4.cli import main
from tiny import write_folder

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "hello"}
GOOD = {"messages": [USER, ASSISTANT]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
CALLS = {
    "tools": [WEATHER],
    "messages": [
        USER,
        {"role": "assistant", "content": '{"name": "get_weather", "arguments": {"city": "x"}}'},
        {"role": "observation", "content": "21"},
        ASSISTANT,
    ],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A vocabulary of bytes with GLM-4's special tokens; no template of its own, so the dialect's."""
    return str(write_folder(tmp_path_factory.mktemp("model") / "m", chat_template=None))


def rows(path: Path, *lines: Any) -> str:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines), "utf-8")
    return str(path)


def check(capsys: pytest.CaptureFixture[str], code: int, *args: str) -> str:
    assert main(["data", "check", *args]) == code
    return capsys.readouterr().out


def test_a_good_file(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = rows(tmp_path / "a.jsonl", GOOD, CALLS, GOOD)
    shown = check(capsys, 0, path, "-m", model)
    assert "3 rows, format messages" in shown
    assert "3, all good" in shown
    assert "1, each the same as an earlier sample" in shown
    assert "a.jsonl:1: what is learned is ⟦between brackets⟧" in shown
    assert "[gMASK]<sop><|user|>\nhi<|assistant|>⟦↵\nhello<|user|>⟧\n" in shown
    assert "█" in shown


def test_another_row_in_color(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    from glm4.cli import console

    console.stdout.cache_clear()
    try:
        shown = check(capsys, 0, rows(tmp_path / "a.jsonl", GOOD, CALLS), "-m", model, "--row", "2")
    finally:
        monkeypatch.undo()
        console.stdout.cache_clear()
    assert "a.jsonl:2: what is learned is green" in shown
    learned = "".join(re.findall(r"\x1b\[1(?:;7)?;32m(.*?)\x1b\[0m", shown))
    assert learned == 'get_weather↵{"city": "x"}<|observation|>↵hello<|user|>'
    assert re.search(r"\x1b\[35m<\|assistant\|>", shown)


def test_bad_rows(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = rows(tmp_path / "a.jsonl", GOOD, {"messages": [USER, USER]}, '{"messages": [', GOOD)
    shown = check(capsys, 1, path, "-m", model)
    assert "4, 2 of them bad" in shown
    assert f"{path}:2: messages[1]: two messages of the user in a row; join them into one" in shown
    assert f"{path}:3: the line is not valid JSON" in shown
    found = json.loads(check(capsys, 1, path, "-m", model, "--json"))
    assert (found["rows"], found["bad"], found["samples"], found["repeated"]) == (4, 2, 2, 1)
    assert [problem["place"] for problem in found["problems"]] == [f"{path}:2", f"{path}:3"]
    many = rows(tmp_path / "b.jsonl", *[{"messages": []}] * 1500)
    shown = check(capsys, 1, many, "-m", model)
    assert "… and 1,480 more bad rows" in shown
    assert len(json.loads(check(capsys, 1, many, "-m", model, "--json"))["problems"]) == 1000


def test_json(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = {"messages": [USER, {"role": "assistant", "content": "x" * 95}]}
    path = rows(tmp_path / "a.jsonl", GOOD, long, {"messages": [{**USER, "content": "y" * 200}, ASSISTANT]})
    found = json.loads(check(capsys, 0, path, "-m", model, "--max-length", "51", "--json"))
    assert found["files"] == [{"name": path, "format": "messages", "rows": 3}]
    # prefix 2, role and line break 2, text, role, then the answer with its line break and closing token
    lengths = [2 + 2 + 2 + 1 + 7, 2 + 2 + 2 + 1 + 97, 2 + 2 + 200 + 1 + 7]
    assert found["lengths"] == {"shortest": 14, "median": 104, "p90": 104, "p99": 104, "longest": 212}
    assert found["lengths"]["longest"] == lengths[2]
    assert found["lengths"]["median"] == lengths[1]
    assert (found["too_long"], found["dropped"], found["samples"]) == (2, 1, 2)
    assert found["cut_tokens"] == 104 - 51 + 212 - 51
    assert found["cut_targets"] == 104 - 51 + 7
    assert (found["tokens"], found["targets"]) == (14 + 51, 7 + 51 - 7)
    assert sum(one["samples"] for one in found["histogram"]) == 3
    (example,) = found["examples"]
    assert "".join(example["tokens"]) == "[gMASK]<sop><|user|>\nhi<|assistant|>\nhello<|user|>"
    assert (
        "".join(t for t, carries in zip(example["tokens"], example["learned"], strict=True) if carries)
        == "\nhello<|user|>"
    )
    dropped = json.loads(check(capsys, 0, path, "-m", model, "--max-length", "51", "--long-samples", "drop", "--json"))
    assert (dropped["samples"], dropped["dropped"], dropped["cut_tokens"]) == (1, 2, 0)
    refused = json.loads(check(capsys, 1, path, "-m", model, "--max-length", "51", "--long-samples", "error", "--json"))
    assert refused["problems"][0]["reason"] == "the sample has 104 tokens, but max_length is 51"


def test_notes(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "other", "arguments": "x"}}]}
    path = rows(
        tmp_path / "a.jsonl",
        {"messages": [USER, {**ASSISTANT, "reasoning_content": "hm"}]},
        {"messages": [USER, call], "tools": [WEATHER]},
        {"messages": [USER, {**ASSISTANT, "content": '{"name": "f", "arguments": {}}'}]},
    )
    notes = json.loads(check(capsys, 0, path, "-m", model, "--json"))["notes"]
    assert [(note["note"], note["first"]) for note in notes] == [
        ("reasoning_content is left out: this model's prompts have no place for thinking", f"{path}:1"),
        ("a call names a tool that the row does not offer", f"{path}:2"),
        ("the arguments of a call are no JSON object", f"{path}:2"),
        ("an answer looks like a call, but is learned as text: no result follows it", f"{path}:3"),
    ]


def test_preferences_show_both_answers(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = rows(tmp_path / "a.jsonl", {"prompt": "hi", "chosen": "hello", "rejected": "no"})
    shown = check(capsys, 0, path, "-m", model)
    assert "⟦↵\nhello<|user|>⟧" in shown
    assert "⟦↵\nno<|user|>⟧" in shown


def test_columns(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = rows(tmp_path / "a.csv", "question,answer", "hi,hello")
    shown = check(capsys, 0, path, "-m", model, "--column", "instruction=question", "--column", "output=answer")
    assert "1 rows, format alpaca" in shown
    assert main(["data", "check", path, "-m", model]) == 1
    assert "its rows have 'question', 'answer'; set format" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["show", "a.jsonl"], "the action is check or convert, not 'show'"),
        (["check", "a.jsonl", "--loss", "x"], "--loss is all, last, text, not 'x'"),
        (["check", "a.jsonl", "--long-samples", "x"], "--long-samples is cut, drop, error, not 'x'"),
        (["check", "a.jsonl", "-o", "b.jsonl"], "-o is for convert"),
        (["convert", "a.jsonl"], "convert needs -o OUT"),
        (["check", "a.jsonl", "--column", "x"], "--column is NAME=FIELD, not 'x'"),
        (["check", "a.jsonl", "--column", "outputs=x"], "--column 'outputs' is not known; perhaps output? known are"),
    ],
)
def test_mistakes(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", *args]) == 2
    assert message in capsys.readouterr().err


def test_files_that_are_nothing(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(tmp_path / "a.jsonl"), "-m", model]) == 1
    assert "there is no file" in capsys.readouterr().err
    assert main(["data", "check", rows(tmp_path / "a.jsonl"), "-m", model]) == 1
    assert "is empty: it has no rows" in capsys.readouterr().err
    assert main(["data", "check", rows(tmp_path / "a.jsonl", GOOD), "-m", str(tmp_path / "none")]) == 2


def test_convert(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    share = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello", "weight": 0},
                               {"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}  # fmt: skip
    source, out = rows(tmp_path / "a.jsonl", share), tmp_path / "out.jsonl"
    assert main(["data", "convert", source, "-o", str(out)]) == 0
    assert "1 rows written" in capsys.readouterr().err
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        {"messages": [USER, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "weight": 1}]}
    ]
    assert main(["data", "convert", source, "-o", str(out)]) == 2
    assert "exists; give another -o" in capsys.readouterr().err
    bad = rows(tmp_path / "b.jsonl", GOOD, {"messages": []})
    assert main(["data", "convert", bad, "-o", str(tmp_path / "c.jsonl"), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert (result["rows"], result["bad"]) == (1, 1)
    assert result["problems"][0]["place"] == f"{bad}:2"
    assert main(["data", "convert", str(tmp_path / "none.jsonl"), "-o", str(tmp_path / "d.jsonl")]) == 1
    assert not (tmp_path / "d.jsonl").exists()


def test_convert_joins_the_pieces_of_a_text(tmp_path: Path) -> None:
    text = "line\n" * 500_000
    (tmp_path / "a.txt").write_text(text)
    assert main(["data", "convert", str(tmp_path / "a.txt"), "-o", str(tmp_path / "out.jsonl")]) == 0
    (line,) = (tmp_path / "out.jsonl").read_text().splitlines()
    assert json.loads(line) == {"text": text}
