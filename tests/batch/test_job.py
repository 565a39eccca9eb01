"""The batch runner: one row per request whatever happens, and never a second one."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glm4.batch.job import BatchJob, BatchProgress
from glm4.chat.chat_request import ChatRequest
from glm4.errors import BatchFileError, OutOfMemoryError
from glm4.llm import LLM
from glm4.multimodal.image import encode_picture
from glm4.requests.input_processor import PreparedRequest
from glm4.sampling_params import SamplingParams
from scripted_llm import scripted_llm
from tiny import write_folder
from vision_folder import write_vision_folder


def chat_line(custom_id: str | None, text: str = "hi", **body: Any) -> dict[str, Any]:
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions"}
    return line | {"body": {"messages": [{"role": "user", "content": text}], **body}}


def write_input(path: Path, lines: Iterable[dict[str, Any] | str]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def rows(path: Path) -> dict[str, dict[str, Any]]:
    parsed = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert max(Counter(row["custom_id"] for row in parsed).values()) == 1
    return {row["custom_id"]: row for row in parsed}


@pytest.fixture
def echo(tmp_path: Path) -> LLM:
    return scripted_llm(tmp_path / "model", lambda prompt: f"<{prompt.strip()}>")


def run(llm: LLM, source: Path, output: Path, **options: Any) -> BatchProgress:
    with BatchJob(source, output) as job:
        return job.run(llm, model="tiny", **options)


def run_until(llm: LLM, source: Path, output: Path, stop_at: int) -> BatchProgress:
    with BatchJob(source, output) as job:
        return job.run(llm, model="tiny", should_stop=lambda: job.progress.done >= stop_at)


def text_of(row: dict[str, Any]) -> str:
    choice = row["response"]["body"]["choices"][0]
    return choice["message"]["content"] if "message" in choice else choice["text"]


def test_rows_have_openais_shape(tmp_path: Path, echo: LLM) -> None:
    completion = {
        "custom_id": "c",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"prompt": "ab", "max_tokens": 3},
    }
    both = chat_line("two", "你好", n=2, metadata={"k": "v"}, model="gpt-4o")
    source = write_input(tmp_path / "in.jsonl", [chat_line("one"), both, completion])
    progress = run(echo, source, tmp_path / "out.jsonl")
    found = rows(tmp_path / "out.jsonl")
    assert (progress.total, progress.completed, progress.failed, progress.done) == (3, 3, 0, 3)
    assert not progress.interrupted
    assert set(found) == {"one", "two", "c"}
    for row in found.values():
        assert list(row) == ["id", "custom_id", "response", "error"]
        assert (row["response"]["status_code"], row["error"]) == (200, None)
        assert row["response"]["body"]["model"] == "tiny"
    assert text_of(found["one"]) == "<hi>"
    assert [choice["message"]["content"] for choice in found["two"]["response"]["body"]["choices"]] == ["<你好>"] * 2
    assert found["two"]["response"]["body"]["metadata"] == {"k": "v"}
    assert found["c"]["response"]["body"]["object"] == "text_completion"
    assert (text_of(found["c"]), found["c"]["response"]["body"]["choices"][0]["finish_reason"]) == ("<ab", "length")
    assert len({row["id"] for row in found.values()}) == 3
    assert progress.completion_tokens == sum(
        row["response"]["body"]["usage"]["completion_tokens"] for row in found.values()
    )


IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
BAD_LINES: dict[str, tuple[Any, str, str | None]] = {
    # row id -> (line, part of the message, param)
    "line-1": ("{broken", "not valid JSON", None),
    "line-2": ("[1]", "must be a JSON object", None),
    "url": (chat_line("url") | {"url": "/v1/embeddings"}, "/v1/embeddings", "url"),
    "method": (chat_line("method") | {"method": "GET"}, "GET", "method"),
    "key": (chat_line("key") | {"priority": 1}, "'priority'", "priority"),
    "body": (chat_line("body") | {"body": "hi"}, "body must be an object", "body"),
    "field": (chat_line("field", functions=[]), "'functions'", "functions"),
    "stream": (chat_line("stream", stream=True), "stream", "stream"),
    "range": (chat_line("range", temperature=-1), "temperature", "temperature"),
    "role": ({**chat_line("role"), "body": {"messages": [{"role": "boss"}]}}, "role must be", "messages[0].role"),
    "empty": ({**chat_line("empty"), "body": {}}, "messages is missing", "messages"),
    "image": (
        {**chat_line("image"), "body": {"messages": [{"role": "user", "content": [IMAGE]}]}},
        "this model takes text only; cannot use a content part of type 'image_url'",
        "messages[0].content[0]",
    ),
    "surrogate": (chat_line("surrogate", "\ud800"), "surrogate", None),
    "long": (chat_line("long", "x" * 5000), "tokens", "messages"),
    "line-15": (chat_line("url"), "repeats the custom_id 'url' of line 3", "custom_id"),
    "line-16": (chat_line("") | {"custom_id": 5}, "custom_id must be", "custom_id"),
}


def test_a_bad_line_is_a_row_and_never_the_end(tmp_path: Path, echo: LLM) -> None:
    good = [chat_line("good", "a"), chat_line(None, "b")]
    source = write_input(tmp_path / "in.jsonl", [*(line for line, _, _ in BAD_LINES.values()), "", *good])
    progress = run(echo, source, tmp_path / "out.jsonl")
    found = rows(tmp_path / "out.jsonl")
    assert (progress.total, progress.completed, progress.failed) == (18, 2, 16)
    assert set(found) == {*BAD_LINES, "good", "line-19"}
    assert (text_of(found["good"]), text_of(found["line-19"])) == ("<a>", "<b>")
    for custom_id, (_, message, param) in BAD_LINES.items():
        row = found[custom_id]
        error = row["response"]["body"]["error"]
        assert row["response"]["status_code"] == 400, custom_id
        assert message in error["message"], custom_id
        assert error["param"] == param, custom_id
        assert row["error"] == {"code": error["code"], "message": error["message"]}
    assert found["long"]["error"]["code"] == "context_length_exceeded"


def test_a_stopped_run_is_continued_and_repeats_nothing(tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return prompt * 3

    llm = scripted_llm(tmp_path / "model", answer)
    source = write_input(tmp_path / "in.jsonl", [chat_line(f"id{n}", f"q{n:02}") for n in range(40)])
    output = tmp_path / "out.jsonl"
    finished_before: set[str] = set()
    for stop_at in (7, 19, 31, 100):
        asked.clear()
        progress = run_until(llm, source, output, stop_at)
        assert progress.interrupted == (stop_at < 40)
        assert not {f"id{int(prompt[-2:])}" for prompt in asked} & finished_before
        assert not llm.has_unfinished_requests()
        finished_before = set(rows(output))
        assert len(finished_before) == progress.done == progress.skipped + progress.completed
    assert finished_before == {f"id{n}" for n in range(40)}
    with BatchJob(source, output) as job:
        assert job.remaining == 0


def test_the_engine_is_kept_full_and_the_queue_is_bounded(tmp_path: Path) -> None:
    llm = scripted_llm(tmp_path / "model", lambda prompt: "x" * (1 + int(prompt[-2:]) % 7), max_num_seqs=4)
    queued: list[int] = []
    source = write_input(tmp_path / "in.jsonl", [chat_line(f"{n}", f"{n:02}") for n in range(50)])
    run(llm, source, tmp_path / "out.jsonl", on_progress=lambda _: queued.append(len(llm._requests._running)))
    assert max(queued) <= 8
    assert min(queued[:-20]) >= 3


def test_progress_counts_and_estimates(tmp_path: Path, echo: LLM) -> None:
    source = write_input(tmp_path / "in.jsonl", [chat_line(f"{n}") for n in range(10)] + ["bad"])
    seen: list[tuple[int, float | None]] = []
    progress = run(echo, source, tmp_path / "out.jsonl", on_progress=lambda p: seen.append((p.done, p.eta)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (11, 0.0)
    assert progress.tokens_per_second == pytest.approx(progress.completion_tokens / progress.seconds)
    assert progress.prompt_tokens > 0
    assert BatchProgress(total=3).eta is None


def test_a_fault_that_one_request_brings_out_costs_one_row(
    tmp_path: Path, echo: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = echo.prepare

    def faulty(request: ChatRequest) -> PreparedRequest:
        if request.messages[0].text == "trap":
            raise ZeroDivisionError("division by zero")
        if request.messages[0].text == "big":
            raise OutOfMemoryError("no room")
        return prepare(request)

    monkeypatch.setattr(echo, "prepare", faulty)
    lines = [chat_line("a"), chat_line("trap", "trap"), chat_line("b")]
    run(echo, write_input(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl")
    found = rows(tmp_path / "out.jsonl")
    assert {name: row["response"]["status_code"] for name, row in found.items()} == {"a": 200, "trap": 500, "b": 200}
    assert found["trap"]["error"] == {"code": "internal_error", "message": "ZeroDivisionError: division by zero"}
    # Out of memory is nobody's request: the run ends, and the row is not written.
    source = write_input(tmp_path / "in.jsonl", [*lines, chat_line("big", "big")])
    with pytest.raises(OutOfMemoryError):
        run(echo, source, tmp_path / "out.jsonl")
    assert "big" not in rows(tmp_path / "out.jsonl")


def test_an_input_that_changes_under_the_run_is_noticed(tmp_path: Path, echo: LLM) -> None:
    source = write_input(tmp_path / "in.jsonl", [chat_line("a"), chat_line("b")])
    with BatchJob(source, tmp_path / "out.jsonl") as job:
        write_input(source, [chat_line("c"), chat_line("d")])
        with pytest.raises(BatchFileError, match="was changed"):
            job.run(echo, model="tiny")


def test_answers_are_those_of_single_requests(tmp_path: Path) -> None:
    with LLM(str(write_folder(tmp_path / "model")), dtype="fp32", max_model_len=128, max_num_seqs=3) as llm:
        options = {"max_tokens": 6, "temperature": 0.8, "seed": 3, "logprobs": True, "top_logprobs": 2}
        lines = [chat_line(f"{n}", "word " * n, **options) for n in range(1, 8)]
        lines[4]["body"]["messages"][0]["content"] = "x" * 200
        run(llm, write_input(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl")
        found = rows(tmp_path / "out.jsonl")
        assert found.pop("5")["error"]["code"] == "context_length_exceeded"
        params = SamplingParams(max_tokens=6, temperature=0.8, seed=3, logprobs=2)
        for custom_id, row in found.items():
            single = llm.chat([{"role": "user", "content": "word " * int(custom_id)}], params)[0]
            choice = row["response"]["body"]["choices"][0]
            assert choice["message"]["content"] == single.outputs[0].text
            logprobs = [entry["logprob"] for entry in choice["logprobs"]["content"]]
            assert single.outputs[0].text_logprobs is not None
            assert logprobs == [token.logprobs.logprob for token in single.outputs[0].text_logprobs]
            assert all(len(entry["top_logprobs"]) == 2 for entry in choice["logprobs"]["content"])


HOSTILE: dict[str, dict[str, Any]] = {
    "messages[0].tool_calls": {"messages": [{"role": "assistant", "content": "hi", "tool_calls": 5}]},
    "messages[0].tools": {"messages": [{"role": "user", "content": "hi", "tools": 5}]},
    "messages[0].role": {"messages": [{"role": ["user"], "content": "hi"}]},
    "messages": {"messages": 5},
    "max_tokens": {"max_tokens": 10**400},
    "seed": {"seed": -(10**400)},
    "stop_token_ids": {"stop_token_ids": [1 << 70]},
    "stream_options": {"stream_options": 5},
    "tools": {"tools": [{"type": "function", "function": 5}]},
    "response_format": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 5}}}
    },
}


def test_odd_fields_get_a_row_that_names_them(tmp_path: Path, echo: LLM) -> None:
    source = write_input(tmp_path / "in.jsonl", [chat_line(name, **body) for name, body in HOSTILE.items()])
    progress = run(echo, source, tmp_path / "out.jsonl")
    assert (progress.completed, progress.failed) == (0, len(HOSTILE))
    for name, row in rows(tmp_path / "out.jsonl").items():
        assert row["response"]["status_code"] == 400
        error = row["response"]["body"]["error"]
        assert (error["param"], error["code"]) == (name, "invalid_request")


# Pictures


def picture_line(custom_id: str, *urls: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content = [*parts, {"type": "text", "text": "what?"}]
    return chat_line(custom_id, messages=[{"role": "user", "content": content}], temperature=0, max_tokens=4)


def data_url(shade: int) -> str:
    encoded = base64.b64encode(encode_picture(np.full((9, 12, 3), shade, np.uint8))).decode()
    return f"data:image/png;base64,{encoded}"


def test_pictures_are_answered_and_bad_ones_cost_only_their_row(tmp_path: Path) -> None:
    folder = str(write_vision_folder(tmp_path / "model"))
    lines = [
        picture_line("cat", data_url(30)),
        picture_line("text", "data:image/png;base64," + base64.b64encode(b"not a picture").decode()),
        picture_line("dog", data_url(220)),
        picture_line("path", "file:///etc/hostname"),
        picture_line("bare path", "cat.png"),
        picture_line("address", "http://example.com/cat.png"),
        picture_line("two", data_url(30), data_url(220)),
        chat_line("words", "hi", temperature=0, max_tokens=4),
    ]
    source, output = write_input(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    options: dict[str, Any] = {"dtype": "fp32", "max_model_len": 256, "max_num_seqs": 2}
    with LLM(folder, **options) as llm:
        assert run_until(llm, source, output, stop_at=2).interrupted
        progress = run(llm, source, output)  # goes on from there
        assert (progress.done, progress.skipped >= 2) == (8, True)
    found = rows(output)
    for custom_id, problem in (
        ("text", "the image cannot be decoded"),
        ("path", "begin with http:// or https://"),
        ("bare path", "begin with http:// or https://"),
        ("address", "pictures are not fetched from addresses here"),
        ("two", "one picture per conversation"),
    ):
        error = found[custom_id]["response"]["body"]["error"]
        assert problem in error["message"]
        assert error["param"] == f"messages[0].content[{1 if custom_id == 'two' else 0}]"
    assert {name for name, row in found.items() if row["error"] is None} == {"cat", "dog", "words"}
    answers = {name: row["response"]["body"] for name, row in found.items()}
    assert text_of(found["cat"]) != text_of(found["dog"])
    assert answers["cat"]["usage"]["prompt_tokens"] > answers["words"]["usage"]["prompt_tokens"]
