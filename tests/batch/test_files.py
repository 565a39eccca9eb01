"""The files of a batch: bad lines keep their place, crashes leave no half rows, foreign files stay untouched."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from glm4.batch import files as batch_files
from glm4.batch.files import BatchOutput, InputIndex, read_lines
from glm4.errors import BatchFileError, InvalidRequestError


def request(custom_id: Any = "a") -> str:
    return json.dumps({"custom_id": custom_id, "body": {}})


def row(custom_id: str) -> dict[str, Any]:
    return {"id": "batch_req_1", "custom_id": custom_id, "response": {}, "error": None}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(request(name) for name in "abc"))
    return source, tmp_path / "out.jsonl"


def resumed(files: tuple[Path, Path]) -> set[str]:
    return set(earlier_rows(files))


def earlier_rows(files: tuple[Path, Path]) -> dict[str, bool]:
    output = BatchOutput(files[1], files[0])
    try:
        return output.resume(InputIndex.read(files[0]))
    finally:
        output.close()


def test_every_line_has_one_row_id(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    lines = [
        b"\xef\xbb\xbf" + request("a").encode() + b"\r",
        b"",
        b"{broken",
        request("a").encode(),  # again
        request("line-3").encode(),  # takes the name line 3 would get
        request(7).encode(),
        request("").encode(),
        request("x" * 513).encode(),
        b'{"custom_id": "\\ud800"}',
        b'{"body": {}}',
        b"\xff\xfe",
        b"[1]",
    ]
    source.write_bytes(b"\n".join(lines))
    index = InputIndex.read(source)
    ids = [index.row_id(line) for line in read_lines(source)]
    assert ids == ["a", "line-3'", "line-4", "line-3", *(f"line-{n}" for n in range(6, 13))]
    assert index.count == len(ids)
    assert all(row_id in index for row_id in ids)
    assert "b" not in index
    problems = [index.problem(line) if n not in (1, 9, 10) else None for n, line in enumerate(read_lines(source))]
    assert problems[2] == "line 4 repeats the custom_id 'a' of line 1"
    assert [n for n, problem in enumerate(problems) if problem] == [2, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{broken", "line 1 is not valid JSON: Expecting property name enclosed in double quotes at column 2"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": "\xff"}', "line 1 is not UTF-8 text (byte 0xff at offset 7); save it as UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "must be a JSON object, not a list"),
    ],
)
def test_bad_lines_say_why(tmp_path: Path, line: bytes, reason: str) -> None:
    (tmp_path / "in").write_bytes(line)
    with pytest.raises(InvalidRequestError) as caught:
        next(read_lines(tmp_path / "in")).decode()
    assert reason in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_lines_in_other_encodings_are_the_same_lines(tmp_path: Path, encoding: str) -> None:
    texts = [f'{{"custom_id": "{name}", "x": "你好 🙂\u2028"}}' for name in "abc"] * 2000
    (tmp_path / "in").write_bytes("\r\n".join(texts).encode(encoding))
    lines = list(read_lines(tmp_path / "in"))
    assert [line.decode() for line in lines] == [json.loads(text) for text in texts]
    assert [line.number for line in lines] == list(range(1, 6001))


def test_files_with_marks_joined_by_cat(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b'\xef\xbb\xbf{"a": 1}\n\xef\xbb\xbf{"a": 2}\n\xef\xbb\xbf\n')
    assert [line.decode() for line in read_lines(tmp_path / "in")] == [{"a": 1}, {"a": 2}]


def test_damaged_utf16_is_refused_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes('{"a": 1}\n{"a": 2}\n'.encode("utf-16") + b"\x00\xdcx\x00")
    with pytest.raises(BatchFileError, match="damaged UTF-16 text; save it as UTF-8"):
        InputIndex.read(tmp_path / "in")


def test_rows_with_errors_are_told_apart(files: tuple[Path, Path]) -> None:
    output = BatchOutput(files[1], files[0])
    output.append(row("a"))
    output.append(row("b") | {"error": {"code": "invalid_request", "message": "no"}})
    output.close()
    assert earlier_rows(files) == {"a": True, "b": False}


def test_endless_lines_are_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_files, "MAX_LINE_BYTES", 100)
    (tmp_path / "in").write_bytes(b"x" * 1000 + b"\n" + b"y" * 99 + b"\n" + b"z" * 101)
    lines = list(read_lines(tmp_path / "in"))
    assert [(line.number, line.data and len(line.data)) for line in lines] == [(1, None), (2, 100), (3, None)]


def test_inputs_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n \n")
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (
        ("none", "No such file"),
        ("empty", "no requests"),
        ("pipe", "give - and pipe it in"),
        (".", "must be a file"),
    ):
        with pytest.raises(BatchFileError, match=reason):
            InputIndex.read(tmp_path / name)


def test_rows_are_found_again(files: tuple[Path, Path]) -> None:
    output = BatchOutput(files[1], files[0])
    output.append(row("b") | {"x": "\u2028\x85你好\ud800"})
    output.append(row("a"))
    output.close()
    data = files[1].read_text(encoding="utf-8")
    assert len(data.splitlines()) == 2
    assert json.loads(data.splitlines()[0])["x"] == "\u2028\x85你好\ud800"
    assert "你好" in data
    assert resumed(files) == {"a", "b"}


@pytest.mark.parametrize("keep", [0, 1, 5, 18, 40, -1])
def test_a_torn_row_is_removed(files: tuple[Path, Path], keep: int) -> None:
    whole = json.dumps(row("a")) + "\n"
    files[1].write_text(whole + json.dumps(row("b"))[:keep] if keep >= 0 else whole + json.dumps(row("b")))
    assert resumed(files) == {"a"}
    assert files[1].read_text() == whole


def test_zeros_after_a_power_failure_are_removed(files: tuple[Path, Path]) -> None:
    whole = (json.dumps(row("a")) + "\n").encode()
    files[1].write_bytes(whole + b"\0" * 100)
    assert resumed(files) == {"a"}
    assert files[1].read_bytes() == whole


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("my notes", "not a batch output"),
        ("my notes\n", "not a batch output"),
        ('{"custom_id": "a"}\n', "not a batch output"),
        ("[]\n", "not a batch output"),
        (json.dumps(row("z")) + "\n", "belongs to another input: 'z'"),
        (2 * (json.dumps(row("a")) + "\n"), "two rows for 'a'"),
        (json.dumps(row("a")) + "\n{torn}\n" + json.dumps(row("b")) + "\n", "line 2"),
    ],
)
def test_foreign_files_are_refused_and_left_alone(files: tuple[Path, Path], content: str, reason: str) -> None:
    files[1].write_text(content)
    with pytest.raises(BatchFileError, match=reason):
        resumed(files)
    assert files[1].read_text() == content


def test_outputs_that_cannot_be_used(files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "link").hardlink_to(files[0])
    for path, reason in (
        (files[0], "the input itself"),
        (tmp_path / "link", "the input itself"),
        (tmp_path, "cannot write"),
        (tmp_path / "no" / "out", "No such file"),
        (Path("/dev/null"), "must be a file"),
    ):
        with pytest.raises(BatchFileError, match=reason):
            BatchOutput(path, files[0])


def test_one_run_at_a_time(files: tuple[Path, Path]) -> None:
    first = BatchOutput(files[1], files[0])
    with pytest.raises(BatchFileError, match="another run"):
        BatchOutput(files[1], files[0])
    first.close()
    first.close()
    BatchOutput(files[1], files[0]).close()


def test_a_full_disk_leaves_whole_rows(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    output = BatchOutput(files[1], files[0])
    output.append(row("a"))
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[:10]))
        with pytest.raises(BatchFileError, match="No space left"):
            output.append(row("b"))
    output.close()
    assert resumed(files) == {"a"}
    assert files[1].read_text() == json.dumps(row("a")) + "\n"
