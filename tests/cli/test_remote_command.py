"""`--backend remote`: commands whose tokens another server computes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import run

from glm4 import LLM
from live import LiveServer, config, serve
from tiny import write_folder

FAST = ("--temperature", "0", "--max-tokens", "8")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_folder(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture(scope="module")
def server(model: str) -> Iterator[LiveServer]:
    with serve(config("tiny", api_keys=("a-key-of-ours",)), LLM(model, dtype="fp32", max_model_len=512)) as running:
        yield running


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_answers_are_those_of_the_model_here(server: LiveServer, model: str, tmp_path: Path, command: str) -> None:
    there = ("--backend", "remote", "--base-url", server.url)
    far = run(command, "-m", model, *there, *FAST, "你好", home=tmp_path, GLM4_REMOTE_API_KEY="a-key-of-ours")
    near = run(command, "-m", model, "--dtype", "fp32", "--context", "512", *FAST, "你好", home=tmp_path)
    assert far.returncode == near.returncode == 0, far.stderr
    assert far.stdout == near.stdout != b""


def test_a_batch_is_answered(server: LiveServer, model: str, tmp_path: Path) -> None:
    body = {"prompt": "abc", "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    lines = [{"custom_id": str(number), "url": "/v1/completions", "body": body} for number in range(5)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = (str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    there = ("--backend", "remote", "--base-url", server.url)
    done = run("batch", *files, "-m", model, *there, home=tmp_path, GLM4_REMOTE_API_KEY="a-key-of-ours")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len({row["response"]["body"]["choices"][0]["text"] for row in rows}) == 1
    assert len(rows) == 5


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--backend", "remote"), 2, "--base-url"),
        (("--base-url", "http://127.0.0.1:1"), 2, "the local backend has no option 'base_url'"),
        (("--backend", "cloud"), 2, "there is no backend 'cloud'; there are local, remote"),
        (("--backend", "remote", "--base-url", "{url}", "--dtype", "int4"), 2, "no option 'dtype'"),
        (("--backend", "remote", "--base-url", "{url}"), 1, "GLM4_REMOTE_API_KEY"),
        (("--backend", "remote", "--base-url", "{url}", "--lora", "x"), 2, "loaded there"),
    ],
)
def test_mistakes_are_named(
    server: LiveServer, model: str, tmp_path: Path, options: tuple[str, ...], code: int, said: str
) -> None:
    key = {"GLM4_REMOTE_API_KEY": "a-key-of-ours"} if "--lora" in options else {}
    given = [option.replace("{url}", server.url) for option in options]
    done = run("chat", "hi", "-m", model, *given, home=tmp_path, cwd=None, **key)
    assert done.returncode == code
    said_so = " ".join(done.stderr.decode().split())
    assert said in said_so
    assert "Traceback" not in said_so
