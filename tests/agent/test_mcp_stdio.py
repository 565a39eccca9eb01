"""MCP servers as processes: what a good one offers arrives, and whatever a bad one does costs only itself."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from pathlib import Path

import mcp_sdk_server
import pytest
from mcp_helpers import (
    HANG,
    MemoryFiles,
    alive,
    call,
    check,
    context,
    invocation,
    opened,
    processes_with,
    raw,
    said,
    sdk,
)  # fmt: skip

from glm4.agent.mcp.config import McpServer
from glm4.agent.mcp.tools import McpTool, open_mcp
from glm4.errors import ToolServerError


def names(tool: McpTool) -> list[str]:
    return [function.name for function in tool.functions]


def wait_for(what: str, seconds: float, true: object) -> None:
    assert callable(true)
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.02)


# A server of the official package.


def test_what_a_server_of_the_official_package_offers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "not for servers")
    (tmp_path / "here").mkdir()
    files = MemoryFiles()
    with opened(sdk(env={"GIVEN": "yes"}, cwd=tmp_path / "here")) as tool:
        echo = next(function for function in tool.functions if function.name == "sdk__echo")
        assert echo.description == "Says it again."
        assert echo.parameters["properties"]["text"]["type"] == "string"
        assert echo.parameters["required"] == ["text"]
        assert tool._connection.protocol == "2026-07-28"
        assert said(call(tool, "echo", text="你好\n")) == "你好\n"
        assert json.loads(said(call(tool, "add", a=1, b=2))) == {"sum": 3}
        given = set(said(call(tool, "environment")).split())
        assert {"PATH", "HOME", "GIVEN"} <= given
        assert not given - {"PATH", "HOME", "LANG", "GIVEN", "GLM4_MCP_PROCESS", "LC_CTYPE"}
        assert said(call(tool, "where")).split()[0] == str(tmp_path / "here")
        failed = call(tool, "fail")
        assert failed.failed
        assert "fail" in said(failed)
        refused = call(tool, "add", a="x")
        assert refused.failed
        assert "sampling=None elicitation=None" in said(call(tool, "capabilities"))
        assert call(tool, "ask_user").failed

        shown, heard = context(files=files)
        result = tool.run(invocation(tool, "picture"), shown)
        assert said(result) == "[image image.png, shown to the user]\na red dot"
        assert files.read(heard.files[0].sha256) == mcp_sdk_server.PICTURE
        assert "bytes, which is not kept" in said(call(tool, "picture"))

        shown, heard = context(files=files)
        result = tool.run(invocation(tool, "parts"), shown)
        assert said(result).splitlines() == [
            "[audio audio.wav, shown to the user]",
            "[resource a, text/plain: file:///notes/a.txt] notes of a",
            "[resource file:///notes/a.txt]",
            "hello",
            "[resource b.bin, shown to the user]",
            "[image: not readable, as it is not valid base64]",
        ]
        assert [file.name for file in heard.files] == ["audio.wav", "b.bin"]
        assert heard.texts == [("output", "for people\n")]

        shown, heard = context()
        assert said(tool.run(invocation(tool, "steps", count=3), shown)) == "done"
        assert heard.texts == [("log", f"{i} of 3: step[31m {i}\n") for i in (1, 2, 3)]


def test_a_changed_list_of_tools_is_seen_and_names_stay() -> None:
    with opened(sdk()) as tool:
        before = names(tool)
        assert said(call(tool, "grow", name="more")) == "added"
        wait_for("the new tool", HANG, lambda: "sdk__more" in names(tool))
        assert names(tool)[: len(before)] == before
        assert said(call(tool, "more", text="a")) == "a"


def test_cancelling_ends_a_call_at_once_and_tells_the_server(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with opened(sdk()) as tool:
        shown, _ = context()
        results = []
        begun = invocation(tool, "wait", path=str(path))
        thread = threading.Thread(target=lambda: results.append(tool.run(begun, shown)))
        thread.start()
        wait_for("the call", HANG, lambda: path.exists() and path.read_text() == "begun")
        shown.cancelled.set()
        thread.join(HANG)
        assert "was cancelled" in said(results[0])
        wait_for("the server", HANG, lambda: path.read_text() == "cancelled")
        assert said(call(tool, "echo", text="still there")) == "still there"


def test_a_call_that_takes_too_long_is_ended_and_the_server_told(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with opened(sdk()) as tool:
        call(tool, "echo", text="")
        result = call(tool, "wait", seconds=2, path=str(path))
        assert result.failed
        assert "took too long" in said(result)
        wait_for("the server", HANG, lambda: path.exists() and path.read_text() == "cancelled")


# Servers that do what one may not.


@pytest.mark.parametrize(
    ("server", "problem"),
    [
        (raw("crash_at_start"), "ended with exit code 1; its stderr ends with: no license file"),
        (raw("hang_at_start", startup=1.0), "did not answer within 1 seconds"),
        (raw("wrong_version"), "1999-01-01"),
        (raw("bad_list"), "does not allow: tools.0.inputSchema: Field required"),
        (McpServer("x", "no-such-program-anywhere"), "not installed, or not in PATH"),
        (McpServer("x", "/etc/passwd"), "not installed, or not in PATH"),
        (McpServer("x", "cat", cwd=Path("/no/such/folder")), "working folder /no/such/folder does not exist"),
        (McpServer("x", "true"), "ended with exit code 0"),
        (McpServer("x", "sh", ("-c", "kill -SEGV $$")), "was ended by SIGSEGV"),
    ],
    ids=lambda value: (value.args[1] if len(value.args) > 1 else value.command) if isinstance(value, McpServer) else "",
)
def test_a_server_that_cannot_be_used_says_why(server: McpServer, problem: str) -> None:
    with opened(server) as tool:
        with pytest.raises(ToolServerError) as caught:
            check(tool)
        assert problem in str(caught.value)
        assert str(caught.value).startswith(f"MCP server '{server.name}' (")


def test_a_greeting_on_stdout_is_passed_over() -> None:
    with opened(raw("not_mcp")) as tool:
        assert "raw__ok" in names(tool)


def test_after_failures_attempts_become_rare() -> None:
    with opened(raw("crash_at_start")) as tool:
        messages = []
        for _ in range(4):
            with pytest.raises(ToolServerError) as caught:
                check(tool)
            messages.append(str(caught.value))
        assert call(tool, "ok").failed
        assert "next attempt" not in messages[0]
        assert "the next attempt is possible in" in messages[-1]
        assert "no license file" in messages[-1]


def test_a_crash_in_a_call_is_told_and_the_next_call_finds_a_new_process() -> None:
    with opened(raw("normal")) as tool:
        first = said(call(tool, "ok"))
        assert said(call(tool, "ok")) == first
        crashed = call(tool, "crash")
        assert crashed.failed
        assert "ended with exit code 3; its stderr ends with: Traceback: the disk is on fire" in said(crashed)
        again = said(call(tool, "ok"))
        assert again.startswith("ok ")
        assert again != first


def test_an_answer_before_the_end_arrives_although_a_child_keeps_the_output_open() -> None:
    with opened(raw("normal")) as tool:
        assert said(call(tool, "late")) == "just in time"
        wait_for("a new process", HANG, lambda: said(call(tool, "ok")).startswith("ok "))


@pytest.mark.parametrize("name", ["slow", "garbage", "stderr", "notifications"])
def test_noise_does_no_harm(name: str) -> None:
    with opened(raw("normal")) as tool:
        shown, heard = context()
        assert said(tool.run(invocation(tool, name), shown)) in ("done", "at last")
        assert len(heard.texts) <= 200
        assert said(call(tool, "ok")).startswith("ok ")


def test_a_huge_result_is_cut() -> None:
    with opened(raw("normal")) as tool:
        text = said(call(tool, "huge"))
        assert len(text) < 201_000
        assert text.endswith("[cut: the result has 1000000 characters]")


def test_a_line_without_end_ends_the_connection() -> None:
    with opened(raw("normal")) as tool:
        result = call(tool, "endless_line")
        assert "sent a message of more than 16 MB" in said(result)
        assert said(call(tool, "ok")).startswith("ok ")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("not_a_result", "content: Input should be a valid list"),
        ("deaf", "closed its output"),
        ("mute", "took too long"),
        ("hang", "took too"),
    ],
)
def test_answers_that_never_come_or_are_none(name: str, problem: str) -> None:
    with opened(raw("normal")) as tool:
        check(tool)
        result = call(tool, name, seconds=HANG if name in ("not_a_result", "deaf") else 1)
        assert result.failed
        assert problem in said(result)


def test_calls_at_the_same_time() -> None:
    with opened(sdk()) as tool:
        check(tool)
        results: dict[int, str] = {}

        def one(i: int) -> None:
            results[i] = said(call(tool, "echo", text=str(i)))

        threads = [threading.Thread(target=one, args=(i,)) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANG)
        assert results == {i: str(i) for i in range(20)}


# The end.


@pytest.fixture
def seconds() -> str:
    """An argument of `sleep` that no other test has."""
    return str(10**6 + uuid.uuid4().int % 10**9)


def sleeping(seconds: str) -> int:
    return len(processes_with(f"sleep\0{seconds}"))


def test_what_a_server_has_started_ends_with_it(seconds: str) -> None:
    with opened(raw("children", seconds)) as tool:
        pid = int(said(call(tool, "ok")).split()[1])
        wait_for("its children", HANG, lambda: sleeping(seconds) == 2)
    assert not alive(pid)
    wait_for("no children", HANG, lambda: not sleeping(seconds))


def test_what_a_crashed_server_has_started_ends_too(seconds: str) -> None:
    with opened(raw("children", seconds)) as tool:
        assert call(tool, "crash").failed
        wait_for("no children", HANG, lambda: not sleeping(seconds))


@pytest.mark.parametrize(("form", "name"), [("stubborn", "ok"), ("normal", "hang")])
def test_closing_ends_a_server_that_does_not_want_to(form: str, name: str) -> None:
    with opened(raw(form)) as tool:
        pid = int(said(call(tool, "ok")).split()[1])
        if name == "hang":
            threading.Thread(target=call, args=(tool, "hang")).start()
            time.sleep(0.1)
        began = time.monotonic()
    assert time.monotonic() - began < HANG
    assert not alive(pid)


def test_closing_while_it_starts(seconds: str) -> None:
    [tool] = open_mcp([raw("hang_at_start", seconds)])
    assert isinstance(tool, McpTool)
    caught: list[ToolServerError] = []

    def start() -> None:
        try:
            check(tool)
        except ToolServerError as error:
            caught.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    wait_for("the process", HANG, lambda: processes_with(seconds))
    tool.close()
    thread.join(HANG)
    assert len(caught) == 1
    assert not processes_with(seconds)


def test_closing_twice_or_without_use_and_calling_afterwards() -> None:
    [tool] = open_mcp([raw("normal")])
    tool.close()
    tool.close()
    assert isinstance(tool, McpTool)
    with pytest.raises(ToolServerError, match="was closed"):
        check(tool)


def test_no_thread_and_no_descriptor_is_left() -> None:
    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("mcp")]

    with opened(sdk()) as one, opened(raw("normal")) as other:
        check(one)
        check(other)
        assert threads().count("mcp") == 1
    assert threads() == []
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with opened(raw("normal")) as tool:
        call(tool, "crash")
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208
