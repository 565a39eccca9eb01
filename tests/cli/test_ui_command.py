"""`glm4 ui` as a process: port, browser, conversations, and its end. What the page looks like is not asked here."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from processes import PROGRAM, Terminal, environment, terminal

from glm4.agent.sessions import SessionMessage, SessionStore
from glm4.cli import main
from glm4.cli.agent_options import OwnAssistant
from glm4.cli.parameters import UsageError
from glm4.cli.ui import page_address
from live import config, serve
from scripted_llm import scripted_llm
from stepped import until
from tiny import write_folder


@pytest.fixture(autouse=True)
def hanging_up_ends() -> Iterator[None]:
    """Programs inherit whether SIGHUP is ignored; tests may themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


KEY = "a-key-of-the-model"
NO_SCREEN = {"BROWSER": "", "DISPLAY": "", "WAYLAND_DISPLAY": "", "SSH_CONNECTION": "", "SSH_TTY": ""}


class Program:
    """A command with pipes, in a process group of its own."""

    def __init__(self, home: Path, *words: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            [*PROGRAM, *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, start_new_session=True, env=environment(home, **NO_SCREEN | variables),
        )  # fmt: skip
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            self.lines += iter(stream.readline, "")

    @property
    def said(self) -> str:
        return "".join(self.lines)

    @property
    def address(self) -> str:
        found = re.search(r"http://127\.0\.0\.1:\d+/ui", self.said)
        return found.group() if found else ""

    def ready(self) -> str:
        """Wait for the model; the server's address."""
        until(lambda: " is ready" in self.said or self.process.poll() is not None, "the model is ready")
        assert self.address, self.said
        return self.address.removesuffix("/ui")

    def end(self) -> int:
        """Wait for the exit code."""
        code = self.process.wait(60)
        self._reader.join()
        return code

    def kill(self) -> None:
        """End it, whatever it does."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.end()


@contextmanager
def ui(home: Path, *options: str, **variables: str) -> Iterator[Program]:
    program = Program(home, "ui", *options, **variables)
    try:
        yield program
    finally:
        program.kill()


def browser(folder: Path) -> tuple[str, Path]:
    """A browser that notes what it is asked to open, and what it finds there; and its notes."""
    notes, program = folder / "opened", folder / "browser"
    program.write_text(
        f'#!/bin/sh\nprintf "%s " "$1" >> {notes}\n'
        f'{PROGRAM[0]} -c "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).status)" "$1" >> {notes}\n'
    )
    program.chmod(0o755)
    return str(program), notes


def model_options(folder: Path) -> list[str]:
    return ["-m", f"tiny={write_folder(folder / 'm')}", "--dtype", "fp32", "--context", "512"]


def test_it_opens_the_page_at_a_free_port_with_the_conversations_of_the_terminal(tmp_path: Path) -> None:
    store = SessionStore(tmp_path / "sessions" / "conversations.sqlite")
    session = store.create(model="glm-4", title="Said at the terminal")
    store.add(session.id, SessionMessage("", None, "user", "completed", "", [{"role": "user", "content": "Hi"}], []))
    store.close()
    program, notes = browser(tmp_path)
    with socket.socket() as taken:
        with suppress(OSError):  # or somebody else has it
            taken.bind(("127.0.0.1", 8000))
            taken.listen()
        with ui(tmp_path, *model_options(tmp_path), BROWSER=program) as first:
            url = first.ready()
            assert url != "http://127.0.0.1:8000"
            until(lambda: notes.exists() and notes.read_text().endswith("\n"), "the browser is opened")
            listed = httpx.get(f"{url}/v1/agent/conversations").json()["conversations"]
            assert [one["title"] for one in listed] == ["Said at the terminal"]
            assert f"conversations are kept in {tmp_path}/sessions" in first.said
            assert httpx.get(f"{url}/ui/session").json()["saved"] is True
            with ui(tmp_path, *model_options(tmp_path), BROWSER=program) as second:
                assert second.end() == 0
                assert f"glm4 ui is running already: {url}/ui" in second.said
            first.process.send_signal(signal.SIGINT)
            assert first.end() == 0
    # Once by each.
    assert notes.read_text() == f"{url}/ui 200\n" * 2
    assert "Traceback" not in first.said


def test_without_a_screen_it_says_where_the_page_is(tmp_path: Path) -> None:
    ssh = "192.0.2.7 50000 192.0.2.9 22"
    options = ["--no-save", "--tools", "none", "--port", "0"]
    with ui(tmp_path, *model_options(tmp_path), *options, SSH_CONNECTION=ssh, USER="ada", DISPLAY=":10") as program:
        url = program.ready()
        port = url.rpartition(":")[2]
        assert "no browser can be opened from here" in program.said
        assert f"ssh -L {port}:127.0.0.1:{port} ada@192.0.2.9" in program.said
        assert "tools: none" in program.said
        assert "conversations are not kept" in program.said
        assert httpx.get(f"{url}/v1/agent/tools").json()["tools"] == []
        program.process.send_signal(signal.SIGTERM)
        assert program.end() == 0
    assert not (tmp_path / "sessions").exists()


@contextmanager
def slow_model(folder: Path) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Options and variables for a model that answers for minutes: another server's."""
    llm = scripted_llm(folder / "slow", lambda prompt: "\n" + "word " * 600, delay=0.05)
    with serve(config("tiny", api_keys=(KEY,)), llm) as model:
        options = ["-m", f"tiny={folder / 'slow'}", "--backend", "remote", "--base-url", model.url]
        yield options, {"GLM4_REMOTE_API_KEY": KEY}


def start_turn(url: str) -> dict[str, Any]:
    """Begin a turn, and wait until something of its answer is there."""
    turn = httpx.post(f"{url}/v1/agent/turns", json={"content": "Write.", "tools": []}, timeout=60).json()
    with httpx.stream("GET", f"{url}/v1/agent/turns/{turn['turn']}/events", timeout=60) as events:
        lines = events.iter_lines()
        assert any('"type": "text"' in line or '"type":"text"' in line for line in lines)
    return dict(turn)


def stored(home: Path, turn: dict[str, Any]) -> tuple[str, str]:
    """Status and text of a turn's message."""
    store = SessionStore(home / "sessions" / "conversations.sqlite")
    try:
        message = store.messages(turn["conversation"])[-1]
    finally:
        store.close()
    return message.status, "".join(part.get("text", "") for part in message.parts)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["int", "term", "hup"])
def test_its_end_keeps_what_was_said_and_leaves_nothing(tmp_path: Path, end: signal.Signals) -> None:
    with slow_model(tmp_path) as (options, variables), ui(tmp_path, *options, "--port", "0", **variables) as program:
        url = program.ready()
        turn = start_turn(url)
        with httpx.stream("GET", f"{url}/v1/agent/turns/{turn['turn']}/events", timeout=60) as events:
            lines = events.iter_lines()
            next(lines)  # a page that follows the turn does not hold up the end
            program.process.send_signal(end)
            with suppress(httpx.HTTPError):
                for _ in lines:
                    pass
        assert program.end() == 0
        with pytest.raises(ProcessLookupError):
            os.killpg(program.process.pid, 0)
    assert "Traceback" not in program.said
    status, text = stored(tmp_path, turn)
    assert status == "stopped"
    assert "word ".startswith(text[:5])
    assert text


def test_serve_has_the_page_when_asked_and_stays_under_nohup(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    keys.chmod(0o600)
    options = [*model_options(tmp_path), "--port", "0", "--api-key-file", str(keys), "--ui"]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what a child inherits, as from nohup
    try:
        program = Program(tmp_path, "serve", *options)
    finally:
        signal.signal(signal.SIGHUP, before)
    try:
        url = program.ready()
        assert f"page: {url}/ui\n" in program.said
        assert httpx.get(url, follow_redirects=True).url == f"{url}/ui"
        session = httpx.get(f"{url}/ui/session").json()
        assert (session["login"], session["user"], session["saved"]) == (True, False, False)
        program.process.send_signal(signal.SIGHUP)
        assert httpx.get(f"{url}/health").status_code == 200
        program.process.send_signal(signal.SIGTERM)
        assert program.end() == 0
    finally:
        program.kill()


def hung_up(program: Terminal) -> int:
    """Close the terminal under a program; its exit code."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, program._fd)
    os.close(nothing)
    ended: list[int] = []

    def has_ended() -> bool:
        found, status = os.waitpid(program.pid, os.WNOHANG)
        if found:
            ended.append(os.waitstatus_to_exitcode(status))
        return bool(ended)

    until(has_ended, "the program ends")
    return ended[0]


def test_it_ends_with_its_terminal(tmp_path: Path) -> None:
    with slow_model(tmp_path) as (options, variables):
        variables |= NO_SCREEN
        with terminal("ui", *options, "--port", "0", home=tmp_path, **variables) as program:
            program.expect("http://127.0.0.1:")
            url = "http://127.0.0.1:" + program.expect("/ui")
            program.expect("is ready")
            turn = start_turn(url)
            assert hung_up(program) == 0
    assert stored(tmp_path, turn)[0] == "stopped"


def test_ctrl_c_while_a_model_is_fetched_gives_the_terminal_back(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hub:  # takes connections and never answers
        variables = {**NO_SCREEN, "GLM4_STARTER_SOURCE": "hub", "NO_PROXY": "127.0.0.1",
                     "HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}"}  # fmt: skip
        with terminal("ui", "starter", "--port", "0", home=tmp_path, **variables) as program:
            program.expect("stop with Ctrl-C")
            with hub.accept()[0]:
                program.send("\x03")
                assert program.wait() == 0
            raw = program._raw
        assert raw.rfind(b"\x1b[?25h") >= raw.rfind(b"\x1b[?25l"), "the cursor is shown"
        assert "Traceback" not in program.shown


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--no-save", "--sessions", "s"], "--no-save keeps nothing"),
        (["--tools", "pyton"], "did you mean python"),
        (["--host", "0.0.0.0"], "no API key is set"),
        (["--port", "70000"], "invalid value for '--port'"),
        (["--dtype", "int5"], "--dtype must be one of"),
        (["--mcp", "nothing.json"], "nothing.json"),
    ],
)
def test_mistakes_are_told_before_anything_is_served(
    args: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("glm4.server.run.bind", lambda config: pytest.fail("it serves"))
    monkeypatch.setenv("GLM4_HOME", str(tmp_path))
    assert main(["ui", "nothing", *args]) == 2
    assert says in capsys.readouterr().err


def test_a_port_that_was_asked_for_is_not_exchanged_for_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLM4_HOME", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["ui", "nothing", "--tools", "none", "--port", str(taken.getsockname()[1])]) == 2
    assert "another --port" in capsys.readouterr().err


def test_the_page_of_every_address_is_found_on_this_machine() -> None:
    for host, family, shown in (
        ("127.0.0.1", socket.AF_INET, "127.0.0.1"),
        ("0.0.0.0", socket.AF_INET, "127.0.0.1"),
        ("::", socket.AF_INET6, "[::1]"),
    ):
        if family == socket.AF_INET6 and not socket.has_ipv6:
            continue
        with socket.socket(family) as listener:
            listener.bind((host, 0))
            assert page_address(listener) == f"http://{shown}:{listener.getsockname()[1]}/ui"


def test_tools_that_are_ready_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The python tool is not: this home has no environment for it."""
    monkeypatch.setenv("GLM4_HOME", str(tmp_path))
    for name in ("GLM4_SEARCH", "GLM4_IMAGE_URL"):
        monkeypatch.delenv(name, raising=False)
    assert OwnAssistant().config().tools == ("files",)
    assert OwnAssistant().config().sessions == tmp_path / "sessions"
    assert OwnAssistant(tools=["none"], save=False).config() == OwnAssistant(tools=["none"], save=False).config()
    assert OwnAssistant(tools=["none"]).config().tools == ()
    assert OwnAssistant(search="searxng:http://127.0.0.1:9").config().tools == ("files", "browser")
    monkeypatch.setenv("GLM4_SEARCH", "http://127.0.0.1:9")
    monkeypatch.setenv("GLM4_IMAGE_URL", "http://127.0.0.1:9/v1")
    assert OwnAssistant().config().tools == ("files", "browser", "image")
    (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": {"a": {"command": "x"}, "b": {"command": "y"}}}))
    offered = OwnAssistant(mcp=tmp_path / "mcp.json").config().tools
    assert offered == ("files", "browser", "image", "mcp:a", "mcp:b")
    with pytest.raises(UsageError):
        OwnAssistant(sessions=tmp_path, save=False).config()


def test_an_engine_that_cannot_be_used_is_not_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GLM4_HOME", str(tmp_path))
    monkeypatch.setenv("GLM4_SEARCH", "brave")
    monkeypatch.delenv("BRAVE_API_KEY", raising=False)
    assert OwnAssistant().config().tools == ("files",)
    assert "the tool browser is not offered: brave needs a key" in capsys.readouterr().err
