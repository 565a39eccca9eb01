"""Line editing, driven by the bytes a terminal sends."""

from __future__ import annotations

import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from glm4.cli.conversation.interrupt import Interrupt
from glm4.cli.conversation.line_editor import LineEditor


@contextmanager
def editor(path: Path) -> Iterator[tuple[LineEditor, PipeInput]]:
    with create_pipe_input() as keys:
        yield (
            LineEditor(
                ["/help", "/save", "/stats", "/params"],
                ["temperature", "top_p"],
                history_file=path,
                input=keys,
                output=DummyOutput(),
            ),
            keys,
        )


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("hello\r", "hello"),
        ("one\x1b\rtwo\r", "one\ntwo"),  # Alt-Enter
        ("one\ntwo\r", "one\ntwo"),  # Ctrl-J
        ('"""a\rb\r\rc"""\r', '"""a\nb\n\nc"""'),
        ('""" \r""" \r', '""" \n""" '),
        ('"""one line"""\r', '"""one line"""'),
        ('say """\r', 'say """'),  # only at the beginning does it open a block
        ("\x1b[200~def f():\r\n    pass\n\x1b[201~\r", "def f():\n    pass\n"),  # bracketed paste
        ("half typed\x03next\r", "next"),  # Ctrl-C discards the line
        ("你好\r", "你好"),
    ],
)
def test_keys_make_messages(tmp_path: Path, typed: str, text: str) -> None:
    with editor(tmp_path / "history") as (line_editor, keys):
        keys.send_text(typed)
        assert line_editor.read(Interrupt()) == text


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("/he", "/help"),
        ("/params tem", "/params temperature"),
        ("/save {folder}/talk", "/save {folder}/talk about food.json"),
    ],
)
def test_tab_completes(tmp_path: Path, typed: str, text: str) -> None:
    (tmp_path / "talk about food.json").touch()
    expected = text.format(folder=tmp_path)
    with editor(tmp_path / "history") as (line_editor, keys):

        def press_enter_when_completed() -> None:  # completion runs beside the key presses
            deadline = time.monotonic() + 10
            while line_editor.text != expected and time.monotonic() < deadline:
                time.sleep(0.01)
            keys.send_text("\r")

        keys.send_text(typed.format(folder=tmp_path) + "\t")
        thread = threading.Thread(target=press_enter_when_completed)
        thread.start()
        assert line_editor.read(Interrupt()) == expected
        thread.join()


def test_ctrl_c_and_ctrl_d_at_an_empty_prompt(tmp_path: Path) -> None:
    with editor(tmp_path / "history") as (line_editor, keys):
        keys.send_text("\x03")
        with pytest.raises(KeyboardInterrupt):
            line_editor.read(Interrupt())
        keys.send_text("\x04")
        with pytest.raises(EOFError):
            line_editor.read(Interrupt())


def test_a_ctrl_c_before_the_prompt_reads_keys_is_passed_on(tmp_path: Path) -> None:
    with editor(tmp_path / "history") as (line_editor, keys), Interrupt() as interrupt:
        keys.send_text("one\r")
        assert line_editor.read(interrupt) == "one"
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            line_editor.read(interrupt)
        keys.send_text("two\r")
        assert line_editor.read(interrupt) == "two"


def test_history_survives_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "home" / "chat_history"
    with editor(path) as (line_editor, keys):
        keys.send_text("first\x1b\rmessage\r")
        line_editor.read(Interrupt())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with editor(path) as (line_editor, keys):
        keys.send_text("\x1b[A\r")
        assert line_editor.read(Interrupt()) == "first\nmessage"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_without_a_writable_home_there_is_still_a_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with editor(tmp_path / "file" / "history") as (line_editor, keys):
        keys.send_text("x\r")
        assert line_editor.read(Interrupt()) == "x"
    assert "no history is kept" in capsys.readouterr().err
