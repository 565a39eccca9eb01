"""The conversation: real line editor fed with key presses, real LLM facade, scripted answers."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from glm4.cli.conversation.conversation import PARAM_NAMES
from glm4.cli.conversation.line_editor import LineEditor
from glm4.cli.conversation.repl import COMMANDS, Repl
from glm4.llm import LLM
from scripted_llm import scripted_llm
from tiny import write_gguf

Talk = Callable[..., str]


@pytest.fixture
def keys() -> Iterator[PipeInput]:
    with create_pipe_input() as pipe:
        yield pipe


@pytest.fixture
def talk(tmp_path: Path, keys: PipeInput, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Talk:
    """Type lines into a conversation and leave; returns everything shown."""
    monkeypatch.chdir(tmp_path)

    def run(llm: LLM, *lines: str, **options: object) -> str:
        editor = LineEditor(
            [f"/{name}" for name in COMMANDS],
            PARAM_NAMES,
            history_file=tmp_path / "history",
            input=keys,
            output=DummyOutput(),
        )
        repl = Repl(llm, "starter", editor=editor, **options)  # type: ignore[arg-type]
        capsys.readouterr()
        for line in lines:
            keys.send_text(line if line.endswith(("\x03", "\x04")) else line + "\r")
        keys.send_text("\x04")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", sys.stdout)  # in the order in which a terminal shows it
            repl.run()
        return capsys.readouterr().out

    return run


def echo(tmp_path: Path, **options: Any) -> LLM:
    return scripted_llm(tmp_path / "model", lambda prompt: f"<{prompt.strip()}>", **options)


def test_answers_see_the_whole_conversation(tmp_path: Path, talk: Talk) -> None:
    shown = talk(echo(tmp_path), "one", "two", system="sys")
    assert "<sys\none>\n" in shown
    assert "<sys\none<sys\none>\ntwo>" in shown.replace("\n<sys", "<sys")


def test_banner_says_what_the_starter_is(tmp_path: Path, talk: Talk) -> None:
    file = write_gguf(tmp_path / "starter.gguf", "qwen2")
    with LLM(str(file), dtype="fp32", max_model_len=64) as llm:
        shown = talk(llm)
    assert "fp32 · context 64 tokens" in shown
    assert "it is not GLM-4" in shown
    assert "-m glm-4-9b-chat" in shown
    assert "not GLM-4" not in talk(echo(tmp_path))


def test_help_shows_every_command(tmp_path: Path, talk: Talk) -> None:
    shown = " ".join(talk(echo(tmp_path), "/help").split())
    assert all(row.usage in shown and row.summary in shown for row in COMMANDS.values())


def test_every_command_has_its_method() -> None:
    methods = {name.removeprefix("_command_") for name in dir(Repl) if name.startswith("_command_")}
    assert methods == set(COMMANDS)


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("/hepl", "did you mean /help?"),
        ("/xyzzy", "/help lists the commands"),
        ("/params temprature 1", "unknown parameter 'temprature'"),
        ("/params temperature", "give a value too"),
        ("/params temperature hot", "temperature must be a number between 0 and 100, not 'hot'"),
        ("/params top_p 2", "top_p must be"),
        ("/save", "give a file name"),
        ("/load nothing.json", "nothing.json: No such file or directory"),
        ("/save no/such/folder/x.json", "No such file or directory"),
        ("/load .", "Is a directory"),
        ("/stats", "No answer yet."),
        ("/retry", "Nothing to ask again."),
        ("/undo", "Nothing to remove."),
        ("\x03", "Ctrl-D or /exit leaves"),
    ],
)
def test_mistakes_are_answered_and_the_conversation_goes_on(
    tmp_path: Path, talk: Talk, typed: str, answer: str
) -> None:
    shown = talk(echo(tmp_path), typed, "still here")
    assert answer in shown
    assert "<still here>" in shown
    assert "Traceback" not in shown


def test_a_slash_in_front_of_a_path_is_no_command(tmp_path: Path, talk: Talk) -> None:
    assert "</usr/bin is what?>" in talk(echo(tmp_path), "/usr/bin is what?")


def test_blocks_of_several_lines(tmp_path: Path, talk: Talk) -> None:
    assert "<a\n  b\nc>" in talk(echo(tmp_path), '"""a\n  b', 'c"""')


@pytest.mark.parametrize("command", ["/exit", "/quit", "/bye"])
def test_exit_leaves_at_once(tmp_path: Path, talk: Talk, command: str) -> None:
    assert "<late>" not in talk(echo(tmp_path), command, "late")


def test_save_clear_load(tmp_path: Path, talk: Talk) -> None:
    shown = talk(
        echo(tmp_path), "one", "/params temperature 0.5", "/save talk.json", "/clear", "two", "/load talk.json", "three"
    )
    assert "<two>" in shown
    assert "one<one>" in shown.split("Loaded 2 messages")[1].replace("\n", "").replace("<one<", "one<")
    document = json.loads((tmp_path / "talk.json").read_text())
    assert document == {
        "model": "starter",
        "messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "<one>"}],
        "params": {"temperature": 0.5},
    }


def test_loading_another_models_conversation_says_so(tmp_path: Path, talk: Talk) -> None:
    (tmp_path / "other.json").write_text('{"model": "glm-4-9b-chat", "messages": [], "params": {}}')
    assert "held with glm-4-9b-chat; starter goes on" in talk(echo(tmp_path), "/load other.json")


def test_system_message(tmp_path: Path, talk: Talk) -> None:
    shown = talk(echo(tmp_path), "/system Be brief.", "hi", "/clear", "/system", '/system """"""', "again")
    assert "<Be brief.\nhi>" in shown
    assert shown.count("Be brief.") == 2
    assert "<again>" in shown


def test_params_are_shown_set_and_reset(tmp_path: Path, talk: Talk) -> None:
    llm = echo(tmp_path)
    shown = talk(llm, "/params max_tokens 3", "long question", "/params max_tokens default", "hi", params={"seed": 5})
    assert next(line.split() for line in shown.splitlines() if line.startswith("max_tokens")) == [
        "max_tokens",
        "3",
        "set",
        "here",
    ]
    assert "cut off at max_tokens" in shown
    assert "<long question" not in shown.split("cut off")[0]
    assert "hi>" in shown


def test_params_of_every_name_can_be_set(tmp_path: Path, talk: Talk) -> None:
    values = {"stop": '["a", "b"]', "seed": "3", "top_k": "5", "min_tokens": "1", "max_tokens": "none"}
    lines = [f"/params {name} {values.get(name, '0.5')}" for name in PARAM_NAMES]
    shown = talk(echo(tmp_path), *lines)
    assert "error" not in shown
    last = shown[shown.rindex("temperature") :].splitlines()
    assert [line.split()[0] for line in last if line.endswith("set here")] == list(PARAM_NAMES)


def test_stats(tmp_path: Path, talk: Talk) -> None:
    shown = talk(echo(tmp_path), "hello", "/stats")
    for label in ("prompt", "first token", "prefill", "answer", "decode", "context"):
        assert f"\n{label} " in shown
    assert "of 4,096 tokens used" in shown


def test_retry_and_undo(tmp_path: Path, talk: Talk) -> None:
    shown = talk(echo(tmp_path), "one", "two", "/retry", "/undo", "three", "/save t.json")
    assert "Removed: two" in shown
    contents = [message["content"] for message in json.loads((tmp_path / "t.json").read_text())["messages"]]
    assert contents[::2] == ["one", "three"]


def test_a_full_context_says_clear_and_loses_nothing(tmp_path: Path, talk: Talk) -> None:
    llm = echo(tmp_path, max_model_len=60)
    shown = talk(llm, "hello", "x" * 80, "/save t.json", "y", "z", "/clear", "fresh")
    assert "error: the prompt has" in shown
    assert "Your message was not added" in shown
    assert "/clear starts anew" in shown
    saved = [message["content"] for message in json.loads((tmp_path / "t.json").read_text())["messages"]]
    assert saved == ["hello", "<hello>"]
    assert "<fresh>" in shown


def test_an_answer_that_fills_the_context_is_marked(tmp_path: Path, talk: Talk) -> None:
    llm = scripted_llm(tmp_path / "model", lambda prompt: "x" * 100, max_model_len=40)
    shown = talk(llm, "hi")
    assert "the conversation fills the context (40 of 40 tokens)" in shown


def interrupt_after(llm: LLM, steps: int) -> None:
    """Ctrl-C (the signal a terminal sends) during the given step."""
    step, count = llm.backend.step, 0

    def counted() -> Any:
        nonlocal count
        count += 1
        if count == steps:
            os.kill(os.getpid(), signal.SIGINT)
        return step()

    llm.backend.step = counted  # type: ignore[method-assign]


def test_ctrl_c_stops_the_answer_and_keeps_it(tmp_path: Path, talk: Talk) -> None:
    llm = scripted_llm(tmp_path / "model", lambda prompt: "abcdefghij")
    interrupt_after(llm, 4)
    before = signal.getsignal(signal.SIGINT)
    shown = talk(llm, "go", "/stats", "/save t.json", "next")
    assert "abcd\n" in shown
    assert "[stopped; the answer so far stays" in shown
    assert "The last answer was stopped" in shown
    saved = json.loads((tmp_path / "t.json").read_text())["messages"]
    assert saved[-1] == {"role": "assistant", "content": "abcd", "interrupted": True}
    assert "abcdefghij" in shown.split("next")[-1]
    assert not llm.has_unfinished_requests()
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_before_the_first_word_takes_the_question_back(tmp_path: Path, talk: Talk) -> None:
    llm = scripted_llm(tmp_path / "model", lambda prompt: "")
    llm.backend.step = list  # type: ignore[method-assign]
    interrupt_after(llm, 1)
    shown = talk(llm, "go", "/save t.json")
    assert "your message was taken back" in shown
    assert json.loads((tmp_path / "t.json").read_text())["messages"] == []


def test_ctrl_c_before_the_answer_begins_stops_it(tmp_path: Path, talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = scripted_llm(tmp_path / "model", lambda prompt: "abc")
    params, presses = llm.default_sampling_params, iter([signal.SIGINT])

    def slow() -> object:
        for press in presses:
            os.kill(os.getpid(), press)
        return params()

    monkeypatch.setattr(llm, "default_sampling_params", slow)
    shown = talk(llm, "go", "again", "/save t.json")
    assert "your message was taken back" in shown.split("again")[0]
    saved = json.loads((tmp_path / "t.json").read_text())["messages"]
    assert [message["content"] for message in saved] == ["again", "abc"]


def test_ctrl_c_between_two_prompts_is_answered(tmp_path: Path, talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = scripted_llm(tmp_path / "model", lambda prompt: "abc")
    monkeypatch.setattr(Repl, "_command_stats", lambda repl, argument: os.kill(os.getpid(), signal.SIGINT))
    shown = talk(llm, "/stats", "go")
    assert "Ctrl-D or /exit leaves" in shown
    assert "abc\n" in shown


def test_a_third_ctrl_c_does_not_wait_for_the_step(tmp_path: Path, talk: Talk) -> None:
    llm = scripted_llm(tmp_path / "model", lambda prompt: "abc")

    def stuck() -> Any:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(30)
        raise AssertionError("not interrupted")

    steps = iter([stuck, stuck, *[llm.backend.step] * 9])
    llm.backend.step = lambda: next(steps)()  # type: ignore[method-assign]
    shown = talk(llm, "one", "two", "three")
    assert shown.count("[stopped at once; your message was taken back]") == 2
    assert "abc\n" in shown
    assert not llm.has_unfinished_requests()
