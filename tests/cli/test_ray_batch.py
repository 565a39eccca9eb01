"""Batches on a real Ray cluster: actors killed and stopped, drivers killed, and every row once all the same."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import PROGRAM, run
from ray_head import HANG_SECONDS, Head, free_port, ray_head, settings

from glm4.batch.ray import cluster
from glm4.errors import ClusterError
from tiny import write_folder

pytestmark = [pytest.mark.ray, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

ENGINE = ("--dtype", "fp32", "--context", "2048", "--max-num-seqs", "3")
ACTOR = "ray::LineActor"
COUNT = 72


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_folder(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with ray_head(tmp_path_factory.mktemp("home")) as started:
        yield started


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Greedy requests of unequal lengths that never end by themselves, and two lines that cannot be answered."""
    lines = []
    for number in range(COUNT):
        body = {"messages": [{"role": "user", "content": f"request {number}"}], "temperature": 0, "ignore_eos": True}
        body |= {"max_tokens": 120 + 37 * (number % 5)}
        lines.append({"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body})
    lines[7]["body"] = {"messages": "no list"}
    texts = [json.dumps(line) for line in lines]
    path = tmp_path_factory.mktemp("requests") / "in.jsonl"
    path.write_text("\n".join([*texts[:30], "{bad", *texts[30:]]) + "\n")
    return path


@pytest.fixture(scope="module")
def expected(source: Path, model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command answers without a cluster."""
    output = tmp_path_factory.mktemp("local") / "out.jsonl"
    assert run("batch", str(source), str(output), "-m", model, *ENGINE, home=output.parent).returncode == 0
    return contents(output)


def contents(path: Path) -> dict[str, Any]:
    """What each row says, without ids and times; every id may be there once."""
    found: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert row["custom_id"] not in found
        body = row["response"]["body"]
        found[row["custom_id"]] = (
            (body["choices"][0]["message"]["content"], body["usage"]["completion_tokens"], body["model"])
            if "choices" in body
            else (row["response"]["status_code"], body["error"], row["error"])
        )
    return found


@contextlib.contextmanager
def started(head: Head, source: Path, output: Path, model: str, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [*PROGRAM, "batch", str(source), str(output), "-m", model, *ENGINE, f"--ray={head.address}", *more]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=settings(head.home)
    ) as program:
        try:
            yield program
        finally:
            program.kill()


def num_rows(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_rows(path: Path, count: int, program: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while num_rows(path) < count:
        assert program.poll() is None, program.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ended(program: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    shown = program.communicate(timeout=HANG_SECONDS)
    assert program.returncode == 0, shown
    return shown


def test_a_killed_actor_loses_nothing_and_repeats_nothing(
    head: Head, source: Path, model: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    with started(head, source, output, model, "--ray-actors", "2", "--json") as program:
        actors = head.wait_for(ACTOR, 2)
        wait_for_rows(output, 10, program)
        os.kill(actors[0], signal.SIGKILL)
        assert num_rows(output) < COUNT
        head.wait_for(ACTOR, 2, besides=actors[0])  # another one takes its place
        shown, _ = ended(program)
    assert contents(output) == expected
    assert len(expected) == COUNT + 1
    summary = json.loads(shown)
    assert (summary["total"], summary["completed"], summary["failed"]) == (COUNT + 1, COUNT - 1, 2)
    assert summary["completion_tokens"] == sum(entry[1] for entry in expected.values() if isinstance(entry[0], str))
    assert not head.pids(ACTOR)


def test_an_actor_that_stops_for_20_s_is_waited_for(
    head: Head, source: Path, model: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    with started(head, source, output, model, "--ray-actors", "2") as program:
        actors = head.wait_for(ACTOR, 2)
        wait_for_rows(output, 10, program)
        os.kill(actors[0], signal.SIGSTOP)
        resume_at = time.monotonic() + 20
        wait_for_rows(output, num_rows(output) + 10, program)  # the other one goes on
        time.sleep(max(0.0, resume_at - time.monotonic()))
        assert num_rows(output) < COUNT + 1  # its own lines are still open
        assert set(actors) <= set(head.pids(ACTOR))
        os.kill(actors[0], signal.SIGCONT)
        ended(program)
    assert contents(output) == expected


def test_a_killed_driver_is_continued(
    head: Head, source: Path, model: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    with started(head, source, output, model, "--ray-actors", "2") as program:
        wait_for_rows(output, 12, program)
        os.kill(program.pid, signal.SIGKILL)
    kept = output.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    assert 12 <= kept.count(b"\n") < COUNT
    # The actors of the first run have ended: the cluster has room for no more than two.
    with started(head, source, output, model, "--ray-actors", "2", "--json") as program:
        shown, _ = ended(program)
    assert output.read_bytes().startswith(kept)
    assert contents(output) == expected
    assert json.loads(shown)["skipped"] == kept.count(b"\n")


def test_ctrl_c_keeps_what_is_written(head: Head, source: Path, model: str, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with started(head, source, output, model) as program:
        wait_for_rows(output, 5, program)
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=HANG_SECONDS)
    rows = len(contents(output))
    assert program.returncode == 130
    assert 5 <= rows < COUNT + 1
    assert f"stopped at {rows} of {COUNT + 1}; run the same command again to go on" in errors.decode()


def test_actors_that_keep_dying_end_the_run(head: Head, source: Path, model: str, tmp_path: Path) -> None:
    output, killed = tmp_path / "out.jsonl", set[int]()
    with started(head, source, output, model, "--ray-actors", "1") as program:
        deadline = time.monotonic() + HANG_SECONDS
        while program.poll() is None:
            assert time.monotonic() < deadline
            for pid in set(head.pids(ACTOR)) - killed:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            time.sleep(0.01)
        _, errors = program.communicate()
    assert program.returncode == 1
    assert "5 actors have died without finishing a row" in errors.decode()
    assert output.read_bytes() == b""


def test_a_model_that_cannot_be_loaded_is_named_once(head: Head, source: Path, tmp_path: Path) -> None:
    missing = str(tmp_path / "no-model")
    with started(head, source, tmp_path / "out.jsonl", missing) as program:
        _, errors = program.communicate(timeout=HANG_SECONDS)
    assert program.returncode == 1
    assert f"error: {missing} cannot be loaded on {socket.gethostname()}: " in errors.decode()
    assert "no such file or folder" in errors.decode()
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_more_than_the_cluster_has_is_refused(head: Head, source: Path, model: str, tmp_path: Path) -> None:
    with started(head, source, tmp_path / "out.jsonl", model, "--ray-actors", "2", "--ray-cpus", "2") as program:
        _, errors = program.communicate(timeout=HANG_SECONDS)
    assert program.returncode == 2
    assert "the cluster has 2 CPUs and 0 GPUs on 1 nodes, which is not enough for 2 processes" in errors.decode()


def test_an_address_where_nothing_answers_is_an_error(source: Path, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    done = run("batch", str(source), str(tmp_path / "out"), "-m", "no-such-model", f"--ray={address}", home=tmp_path)
    assert done.returncode == 1
    assert f"error: no Ray cluster answers at {address}: " in done.stderr.decode()


def test_a_cluster_that_asks_for_a_token_says_so(head: Head, source: Path, tmp_path: Path) -> None:
    words = ("batch", str(source), str(tmp_path / "out"), "-m", "no-such-model", f"--ray={head.address}")
    done = run(*words, home=tmp_path, HOME=str(tmp_path))
    assert done.returncode == 1
    assert f"error: the Ray cluster at {head.address} asks for a token: " in done.stderr.decode()


def test_an_address_where_something_else_answers_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 15.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ClusterError, match=r"did not answer as a Ray cluster|Ray cannot be used"):
            cluster._check_answers(f"127.0.0.1:{silent.getsockname()[1]}")


def test_a_cluster_can_be_started_here(source: Path, model: str, expected: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    done = run("batch", str(source), str(output), "-m", model, *ENGINE, "--ray", home=tmp_path, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert contents(output) == expected
