"""Reading files of rows: their places, their encodings, and what is broken in them."""

from __future__ import annotations

import json
import sys
import tracemalloc
from pathlib import Path

import pytest

from glm4.errors import MissingExtraError, TrainingDataError
from glm4.training.data import json_rows
from glm4.training.data.rows import Row, read_rows

ROWS = [{"text": "你好"}, {"text": "b\u2028c"}, {"n": 1.5}]


def read(path: Path) -> list[tuple[object, str]]:
    rows = list(read_rows(path))
    assert not [row.problem for row in rows if row.problem]
    positions = [row.position for row in rows]
    assert positions == sorted(positions)
    assert not rows or positions[-1] <= path.stat().st_size
    return [(row.value, row.place.removeprefix(f"{path}:")) for row in rows]


def broken(path: Path) -> list[Row]:
    return [row for row in read_rows(path) if row.problem]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_lines(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(["", *(json.dumps(row, ensure_ascii=False) for row in ROWS), ""]), encoding)
    assert read(path) == [(row, str(number)) for number, row in enumerate(ROWS, 2)]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_array(indent: int | None, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS, ensure_ascii=False, indent=indent), encoding)
    lines = ["1", "1", "1"] if indent is None else ["2", "5", "8"]
    assert read(path) == list(zip(ROWS, lines, strict=True))


def test_json_without_an_array(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    assert read(path) == [(row, str(number)) for number, row in enumerate(ROWS, 1)]
    path.write_text("[]")
    assert read(path) == []
    path.write_text("")
    assert read(path) == []


def test_json_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "_CHUNK", 3)
    path = tmp_path / "a.json"
    rows = [{"a": -12.5e3, "b": [1, {"c": "x" * count}]} for count in range(40)]
    path.write_text(json.dumps(rows, indent=1))
    assert [value for value, _ in read(path)] == rows


def test_a_large_array_is_not_read_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "x" * 100_000}] * 300))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_rows(path)) == 300
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size / 3


def test_broken_json_in_line_10_000(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join('{"a": 1}\n' if line != 10_000 else '{"a": 1,}\n' for line in range(1, 10_003)))
    (row,) = broken(path)
    assert row.place == f"{path}:10000"
    assert row.problem.startswith("the line is not valid JSON: ")
    assert row.problem.endswith("; write one JSON object per line, or delete it")
    assert sum(1 for _ in read_rows(path)) == 10_002


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"[1]", "must be a JSON object, not a list"),
        (b'{"a": NaN}', "NaN is not JSON"),
        ("{'a': '你'}".encode("gbk"), "is not UTF-8 text .* convert it first"),
        (b'{"a": ' + b"[" * 100_000, "is not valid JSON"),
    ],
)
def test_broken_lines(line: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    (row,) = broken(path)
    assert row.place.endswith(":2")
    with pytest.raises(AssertionError, match=problem):
        raise AssertionError(row.problem)
    assert sum(1 for _ in read_rows(path)) == 3


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ('[\n{"a": 1},\n{"a": }]', 3, "Expecting value in line 3"),
        ('[\n{"a": 1}\n{"a": 2}]', 3, "there is no comma before '{'"),
        ('[\n{"a": 1},\n{"a": "x', 3, "Unterminated string"),
        ('[\n{"a": 1}\n', 3, "the array has no end; the file was cut off"),
        ("[\n1, {}]", 2, "must be a JSON object, not a int"),
    ],
)
def test_broken_arrays(text: str, line: int, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    (row,) = broken(path)
    assert row.place == f"{path}:{line}"
    assert problem in row.problem


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('instruction,output,input\n你好,"a\nb",\n"q ""x""",c,d\n', "utf-8-sig")
    first, second = {"instruction": "你好", "output": "a\nb"}, {"instruction": 'q "x"', "output": "c", "input": "d"}
    assert read(path) == [(first, "2"), (second, "4")]
    path.rename(tmp_path / "a.tsv")
    (tmp_path / "a.tsv").write_text("a\tb\n1,2\t3\n")
    assert read(tmp_path / "a.tsv") == [({"a": "1,2", "b": "3"}, "2")]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a,b\n1,2\n1,2,3\n", "the row has 3 cells, but the header has 2"),
        ('a,b\n1,"2\n', "is not valid CSV: unexpected end"),
    ],
)
def test_broken_csv(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    (row,) = broken(path)
    assert problem in row.problem


def test_csv_with_a_column_twice(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,a\n1,2\n")
    with pytest.raises(TrainingDataError, match="two columns have the same name"):
        list(read_rows(tmp_path / "a.csv"))


def test_text_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    text = "".join(f"line {number} 你好\n" for number in range(150_000))
    path.write_text(text, "utf-8")
    rows = list(read_rows(path))
    assert "".join(row.value["text"] for row in rows) == text
    assert len(rows) > 1
    assert [row.goes_on for row in rows] == [True] * (len(rows) - 1) + [False]
    assert all(row.value["text"].endswith("\n") for row in rows)
    number = int(rows[1].place.rpartition(":")[2])
    assert rows[1].value["text"].startswith(f"line {number - 1} ")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match=r"has no known suffix; known are \.jsonl, \.json, \.csv"):
        list(read_rows(tmp_path / "a.xml"))
    with pytest.raises(TrainingDataError, match=r"cannot read .*: No such file"):
        list(read_rows(tmp_path / "a.jsonl"))
    (tmp_path / "a.txt").write_bytes("你好，世界。".encode("gbk"))
    with pytest.raises(TrainingDataError, match=r"is not UTF-8 text .* convert it first"):
        list(read_rows(tmp_path / "a.txt"))


def test_parquet_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr("glm4.system.extras.Package.installed", None)
    with pytest.raises(MissingExtraError, match=r"reading parquet files needs the package pyarrow.*glm4\[train\]"):
        list(read_rows(tmp_path / "a.parquet"))
    assert "datasets" not in sys.modules
