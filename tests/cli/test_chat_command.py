"""`glm4 chat` and `glm4 generate` as programs, with a tiny random model on the real engine."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from processes import PROGRAM, environment, run, terminal

from glm4.cli import console, main
from tiny import write_folder, write_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_folder(tmp_path_factory.mktemp("tiny") / "model"))


FAST = ("--dtype", "fp32", "--context", "512", "--temperature", "0")
LONG = ("--dtype", "fp32", "--context", "8000", "--temperature", "0")


def test_a_prompt_is_answered_as_plain_text(model: str, tmp_path: Path) -> None:
    done = run("chat", "-m", model, *FAST, "--max-tokens", "12", "你好", home=tmp_path)
    again = run("chat", "-m", model, *FAST, "--max-tokens", "12", "--plain", "你好", home=tmp_path)
    assert done.returncode == 0
    assert b"\x1b" not in done.stdout
    assert len(done.stdout) > 1
    assert done.stdout.endswith(b"\n")
    assert done.stdout == again.stdout


def test_piped_input_joins_the_prompt(model: str, tmp_path: Path) -> None:
    both = run("chat", "-m", model, *FAST, "--max-tokens", "8", "Sum up:", stdin="\ufeffa\nb", home=tmp_path)
    one = run("chat", "-m", model, *FAST, "--max-tokens", "8", "Sum up:\n\na\nb", home=tmp_path)
    only = run("chat", "-m", model, *FAST, "--max-tokens", "8", stdin="Sum up:\n\na\nb", home=tmp_path)
    assert both.returncode == one.returncode == only.returncode == 0
    assert both.stdout == one.stdout == only.stdout


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_piped_utf16_is_read_and_other_encodings_are_refused(command: str, model: str, tmp_path: Path) -> None:
    def answer(stdin: bytes, *prompt: str) -> subprocess.CompletedProcess[bytes]:
        return run(command, "-m", model, *FAST, "--max-tokens", "4", *prompt, stdin=stdin, home=tmp_path, LC_ALL="C")

    plain = answer("Sum up: 你好\na".encode())
    assert plain.returncode == 0
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le"):
        assert answer("Sum up: 你好\r\na".encode(encoding)).stdout == plain.stdout
    assert answer("Sum up: 你好\na".encode("utf-16"), "-").stdout == plain.stdout  # - is standard input
    for latin in (b"caf\xe9", b"\xed\xa0\x80"):
        done = answer(latin)
        assert (done.returncode, done.stdout) == (2, b"")
        assert b"error: standard input is not UTF-8 text" in done.stderr
        assert b"save it as UTF-8" in done.stderr


def test_an_argument_that_is_not_unicode_is_answered(model: str, tmp_path: Path) -> None:
    words = [*PROGRAM, "chat", "-m", model, *FAST, "--max-tokens", "4"]
    done = subprocess.run(
        [*map(os.fsencode, words), b"caf\xe9"], stdin=subprocess.DEVNULL, capture_output=True, env=environment(tmp_path)
    )
    assert done.returncode == 0
    done.stdout.decode("utf-8")


def test_nothing_to_ask_is_wrong_usage(model: str, tmp_path: Path) -> None:
    for args, stdin in (((), ""), (("",), ""), (("  ",), "\n")):
        done = run("chat", "-m", model, *args, stdin=stdin, home=tmp_path)
        assert (done.returncode, done.stdout) == (2, b"")
        assert done.stderr.startswith(b"error: ")


@pytest.mark.parametrize("option", ["--dtype", "--kv-dtype"])
def test_a_wrong_dtype_is_noticed_before_the_model_is_fetched(tmp_path: Path, option: str) -> None:
    done = run("chat", "-m", "glm-4-9b-chat", option, "int3", "hi", home=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(f"error: {option} must be one of auto, ".encode())


def test_an_int8_cache_answers(model: str, tmp_path: Path) -> None:
    done = run("chat", "-m", model, *FAST, "--kv-dtype", "int8", "--max-tokens", "8", "hi", home=tmp_path)
    assert done.returncode == 0
    assert done.stdout.strip()


def test_a_prompt_longer_than_the_context(model: str, tmp_path: Path) -> None:
    done = run("chat", "-m", model, "--dtype", "fp32", "--context", "32", "x" * 100, home=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: the prompt has ")
    assert b"Traceback" not in done.stderr


def test_a_reader_that_leaves_is_no_error(model: str, tmp_path: Path) -> None:
    command = [*PROGRAM, "chat", "-m", model, *LONG, "hello"]
    writer = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment(tmp_path)
    )
    with writer:
        assert writer.stdout is not None
        assert writer.stderr is not None
        assert writer.stdout.read(1)
        writer.stdout.close()
        errors = writer.stderr.read()
        assert (writer.wait(60), errors) == (0, b"")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(model: str, tmp_path: Path, closed: str) -> None:
    command = shlex.join([*PROGRAM, "chat", "-m", model, *FAST, "--max-tokens", "3", "hello"])
    done = subprocess.run(
        ["bash", "-c", f"{command} {closed}"], capture_output=True, env=environment(tmp_path), timeout=60, check=False
    )
    assert done.returncode == 0
    assert b"rror" not in done.stderr


def test_a_full_disk_is_a_message(model: str, tmp_path: Path) -> None:
    command = shlex.join([*PROGRAM, "chat", "-m", model, *FAST, "--max-tokens", "3", "hello"])
    done = subprocess.run(
        ["bash", "-c", f"{command} < /dev/null > /dev/full"],
        capture_output=True,
        env=environment(tmp_path),
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert b"error: No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr


def test_ctrl_c_ends_a_single_answer(model: str, tmp_path: Path) -> None:
    command = [*PROGRAM, "chat", "-m", model, *LONG, "hello"]
    program = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment(tmp_path)
    )
    with program:
        assert program.stdout is not None
        assert program.stdout.read(1)
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=60)
    assert program.returncode == 130
    assert errors == b"stopped\n"


def test_generate_continues_raw_text(model: str, tmp_path: Path) -> None:
    plain = run("generate", "-m", model, *FAST, "--max-tokens", "6", "--echo", "abc", home=tmp_path)
    as_json = run(
        "generate", "-m", model, *FAST, "--max-tokens", "6", "--json", "--logprobs", "2", stdin="abc", home=tmp_path
    )
    assert plain.returncode == as_json.returncode == 0
    body = json.loads(as_json.stdout)
    assert body["object"] == "text_completion"
    assert body["usage"]["prompt_tokens"] == 5  # with the prefix [gMASK]<sop>
    choice = body["choices"][0]
    assert plain.stdout.decode().removesuffix("\n") == ("abc" + choice["text"]).removesuffix("\n")
    assert len(choice["logprobs"]["token_logprobs"]) == body["usage"]["completion_tokens"]
    assert all(value <= 0 for value in choice["logprobs"]["token_logprobs"])


def test_generate_several_continuations(model: str, tmp_path: Path) -> None:
    options = ("--dtype", "fp32", "--context", "128", "--temperature", "1", "--seed", "1", "--max-tokens", "5")
    done = run("generate", "-m", model, *options, "-n", "3", "--json", "--echo", "abc", home=tmp_path)
    choices = json.loads(done.stdout)["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert all(choice["text"].startswith("abc") for choice in choices)
    assert len({choice["text"] for choice in choices}) > 1
    plain = run("generate", "-m", model, *options, "-n", "3", "abc", home=tmp_path)
    for choice in choices:
        assert f"[{choice['index'] + 1}] {choice['text'][3:]}\n" in plain.stdout.decode()


def test_a_conversation_at_a_terminal(model: str, tmp_path: Path) -> None:
    home, saved = tmp_path / "home", tmp_path / "talk.json"
    with terminal("chat", "-m", model, *FAST, "--max-tokens", "5", "--plain", home=home) as screen:
        screen.expect("fp32 · context 512 tokens")
        screen.expect(">>> ")
        screen.send("hello\r")
        screen.expect(">>> ")
        screen.send("/st\t")
        screen.expect("/stats")
        screen.send("\r")
        screen.expect("of 512 tokens used")
        screen.send("\x03")
        screen.expect("Ctrl-D or /exit leaves")
        screen.send("two\x1b\rlines\r")
        screen.expect("cut off at max_tokens")
        screen.send(f"/save {saved}\r")
        screen.expect("Saved 4 messages")
        screen.send("\x04")
        assert screen.wait() == 0
    messages = json.loads(saved.read_text())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert messages[2]["content"] == "two\nlines"
    assert "Traceback" not in screen.shown
    with terminal("chat", "-m", model, *FAST, home=home) as screen:
        screen.expect(">>> ")
        screen.send("\x1b[A")  # what was typed last time
        screen.expect("/save")
        screen.send("\x03/exit\r")
        assert screen.wait() == 0


def test_ctrl_c_at_a_terminal_stops_the_answer_and_not_the_program(model: str, tmp_path: Path) -> None:
    with terminal("chat", "-m", model, *LONG, home=tmp_path) as screen:
        screen.expect(">>> ")
        screen.send("go on\r")
        screen.expect("thinking")
        time.sleep(0.3)
        screen.send("\x03typed ahead\r")
        screen.expect("[stopped")
        screen.expect("typed ahead")
        screen.expect("thinking")
        screen.send("\x03")  # at once: this answer may be short
        screen.expect("[stopped")
        screen.send("/exit\r")
        assert screen.wait() == 0


def test_no_color_is_respected_at_a_terminal(model: str, tmp_path: Path) -> None:
    with terminal("chat", "-m", model, *FAST, "--max-tokens", "3", "hi", home=tmp_path, NO_COLOR="1") as screen:
        assert screen.wait() == 0
    assert "\x1b[3" not in screen._raw.decode("utf-8", "replace")


def test_a_dumb_terminal_gets_plain_text(model: str, tmp_path: Path) -> None:
    with terminal("chat", "-m", model, *FAST, "--max-tokens", "3", "hi", home=tmp_path, TERM="dumb") as screen:
        assert screen.wait() == 0
    assert b"\x1b" not in screen._raw


def test_a_gguf_file_answers_too(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", "qwen2")
    done = run("chat", "-m", str(file), *FAST, "--max-tokens", "4", "hi", home=tmp_path)
    assert (done.returncode, done.stderr) == (
        0,
        b"the answer was cut off at its token limit (--max-tokens, --context)\n",
    )


def test_generate_shows_how_far_it_is_where_the_text_comes_at_the_end(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.PlainProgress, "interval", 0.0)
    assert main(["generate", "-m", model, *FAST, "--max-tokens", "6", "-n", "2", "--json", "abc"]) == 0
    shown = capsys.readouterr()
    assert len(json.loads(shown.out)["choices"]) == 2
    assert re.search(r"^generating: [1-9][0-9]*/12 ", shown.err, re.MULTILINE)


def test_several_continuations_cannot_command_the_terminal(model: str, tmp_path: Path) -> None:
    prompt = "a\x1b]0;title\x07b"
    with terminal(
        "generate", "-m", model, *FAST, "--max-tokens", "2", "-n", "2", "--echo", prompt, home=tmp_path
    ) as screen:
        screen.expect("[2] a]0;titleb")
        assert screen.wait() == 0
