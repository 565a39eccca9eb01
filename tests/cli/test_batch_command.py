"""`glm4 batch` as a program: killed, stopped, started twice, and what it says."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import PROGRAM, environment, run, terminal

from glm4.multimodal.image import encode_picture
from tiny import write_folder
from vision_folder import write_vision_folder

ENGINE = ("--dtype", "fp32", "--context", "2048", "--max-num-seqs", "3")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_folder(tmp_path_factory.mktemp("tiny") / "model"))


def write_requests(path: Path, count: int, tokens: int) -> Path:
    """Greedy requests of unequal lengths that never end by themselves, and one bad line in the middle."""
    lines: list[Any] = []
    for number in range(count):
        body = {"messages": [{"role": "user", "content": f"request {number}"}], "temperature": 0, "ignore_eos": True}
        body |= {"max_tokens": tokens + 7 * (number % 5)}
        lines.append({"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body})
    texts = [json.dumps(line) for line in lines]
    path.write_text("\n".join([*texts[: count // 2], "{bad", *texts[count // 2 :]]) + "\n")
    return path


def contents(path: Path) -> dict[str, Any]:
    """What each row says, without ids and times; every id may be there once."""
    found: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert row["custom_id"] not in found
        body = row["response"]["body"]
        found[row["custom_id"]] = body["choices"][0]["message"]["content"] if "choices" in body else body["error"]
    return found


def start(model: str, source: Path, output: Path, home: Path, *args: str) -> subprocess.Popen[bytes]:
    command = [*PROGRAM, "batch", str(source), str(output), "-m", model, *ENGINE, *args]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(home)
    )


def wait_for_rows(path: Path, count: int, program: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert program.poll() is None, program.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_dashes_are_standard_input_and_output(encoding: str, model: str, tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", 4, 8)
    assert run("batch", str(source), str(tmp_path / "out.jsonl"), "-m", model, *ENGINE, home=tmp_path).returncode == 0
    text = source.read_text().encode(encoding)
    (tmp_path / "empty").mkdir()
    piped = run("batch", "-", "-", "-m", model, *ENGINE, stdin=text, home=tmp_path, cwd=tmp_path / "empty")
    assert piped.returncode == 0
    (tmp_path / "piped.jsonl").write_bytes(piped.stdout)
    assert contents(tmp_path / "piped.jsonl") == contents(tmp_path / "out.jsonl")
    assert b"5 of 5 answers in standard output; 1 refused" in piped.stderr
    assert not list((tmp_path / "empty").iterdir())


def test_it_fails_if_every_request_is_refused(model: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"custom_id": "a", "body": {}}\n{"custom_id": "b"}\n')
    words = ("batch", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), "-m", model, *ENGINE)
    for _ in range(2):  # the second run has nothing to do, and still no answer
        done = run(*words, "--json", home=tmp_path)
        assert done.returncode == 1
        assert b"error: all 2 requests were refused" in done.stderr
        assert json.loads(done.stdout)["completed"] == 0
    assert len(contents(tmp_path / "out.jsonl")) == 2


def test_a_summary_and_answers_cannot_share_standard_output(tmp_path: Path) -> None:
    done = run("batch", "-", "-", "--json", home=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"name a file for the answers" in done.stderr


def test_kill_9_loses_nothing_and_repeats_nothing(model: str, tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", 40, 60)
    assert run("batch", str(source), str(tmp_path / "whole.jsonl"), "-m", model, *ENGINE, home=tmp_path).returncode == 0
    output, kept = tmp_path / "out.jsonl", b""
    for more in (1, 12, 12):
        with start(model, source, output, tmp_path) as program:
            wait_for_rows(output, kept.count(b"\n") + more, program)
            os.kill(program.pid, signal.SIGKILL)
        killed = output.read_bytes()
        assert killed.startswith(kept)
        kept = killed[: killed.rfind(b"\n") + 1]
        # What a kill in the middle of a write leaves: a row without its end.
        output.write_bytes(kept + kept[: more * 9])
    done = run("batch", str(source), str(output), "-m", model, *ENGINE, "--json", home=tmp_path)
    assert done.returncode == 0
    assert output.read_bytes().startswith(kept)
    assert contents(output) == contents(tmp_path / "whole.jsonl")
    assert len(contents(output)) == 41
    summary = json.loads(done.stdout)
    assert summary["skipped"] == kept.count(b"\n")
    assert summary["skipped"] + summary["completed"] + summary["failed"] == summary["total"] == 41
    assert not summary["interrupted"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_cleanly_and_say_how_to_go_on(model: str, tmp_path: Path, number: signal.Signals) -> None:
    source = write_requests(tmp_path / "in.jsonl", 40, 400)
    output = tmp_path / "out.jsonl"
    program = start(model, source, output, tmp_path, "--json")
    with program:
        wait_for_rows(output, 2, program)
        program.send_signal(number)
        shown, errors = program.communicate(timeout=60)
    assert program.returncode == 130
    summary = json.loads(shown)
    rows = len(contents(output))
    assert summary["interrupted"]
    assert 2 <= rows < 41
    assert errors.decode() == f"stopped at {rows} of 41; run the same command again to go on\n"


def test_two_runs_cannot_share_an_output(model: str, tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", 40, 400)
    output = tmp_path / "out.jsonl"
    with start(model, source, output, tmp_path) as program:
        wait_for_rows(output, 1, program)
        os.kill(program.pid, signal.SIGSTOP)  # alive, and not done before the second one starts
        second = run("batch", str(source), str(output), "-m", model, *ENGINE, home=tmp_path)
        os.kill(program.pid, signal.SIGKILL)
    assert second.returncode == 1
    assert second.stderr.decode().startswith("error: another run is writing")


def test_bad_files_fail_before_a_model_is_looked_for(tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", 2, 5)
    (tmp_path / "notes.txt").write_text("mine\n")
    for files, message in (
        ((tmp_path / "none.jsonl", tmp_path / "out.jsonl"), "No such file"),
        ((source, tmp_path / "notes.txt"), "not a batch output"),
        ((source, source), "the input itself"),
    ):
        done = run("batch", *map(str, files), "-m", "no-such-model", home=tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith(b"error: ")
        assert message in done.stderr.decode()
    assert (tmp_path / "notes.txt").read_text() == "mine\n"


def test_a_finished_batch_needs_no_model(model: str, tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", 3, 5)
    output = tmp_path / "out.jsonl"
    first = run("batch", str(source), str(output), "-m", model, *ENGINE, home=tmp_path)
    assert first.stderr.decode().startswith(f"4 of 4 answers in {output}; 1 refused in this run")
    before = output.read_bytes()
    again = run("batch", str(source), str(output), "-m", "no-such-model", home=tmp_path)
    assert (again.returncode, output.read_bytes()) == (0, before)


def test_a_terminal_shows_a_bar(model: str, tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", 10, 20)
    args = ("batch", str(source), str(tmp_path / "out.jsonl"), "-m", model, *ENGINE)
    with terminal(*args, home=tmp_path) as screen:
        screen.expect("11/11")
        screen.expect("tokens/s")
        screen.expect("11 of 11 answers in")
        assert screen.wait() == 0


def test_options_for_pictures(tmp_path: Path) -> None:
    picture = base64.b64encode(encode_picture(np.zeros((9, 12, 3), np.uint8))).decode()
    lines = []
    for name, urls in (("two", [f"data:image/png;base64,{picture}"] * 2), ("private", ["http://127.0.0.1/cat.png"])):
        content: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        body = {"messages": [{"role": "user", "content": [*content, {"type": "text", "text": "?"}]}], "max_tokens": 3}
        lines.append({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = str(write_vision_folder(tmp_path / "vision"))
    files = ("batch", str(tmp_path / "in.jsonl"))
    refused = run(*files, str(tmp_path / "a.jsonl"), "-m", model, *ENGINE, home=tmp_path)
    assert refused.returncode == 1
    found = contents(tmp_path / "a.jsonl")
    assert "(`--allow-many-images`)" in found["two"]["message"]
    assert "(`--media-domains`)" in found["private"]["message"]
    options = ("--allow-many-images", "--media-domains", "example.com", "--media-domains", "127.0.0.1")
    done = run(*files, str(tmp_path / "b.jsonl"), "-m", model, *ENGINE, *options, home=tmp_path)
    assert done.returncode == 0
    found = contents(tmp_path / "b.jsonl")
    assert isinstance(found["two"], str)
    assert "127.0.0.1 is unknown, or has an address that is not public" in found["private"]["message"]
    wrong = run(*files, str(tmp_path / "c.jsonl"), "-m", model, *ENGINE, "--media-domains", "http://x/", home=tmp_path)
    assert wrong.returncode == 2
    assert b"is not a host; write a name such as example.com" in wrong.stderr
