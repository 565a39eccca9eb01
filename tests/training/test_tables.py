"""Parquet files and data sets of the hub, through the libraries of the extra."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training_rows import ASSISTANT, USER, WEATHER, chat, chatml

from glm4.errors import TrainingDataError
from glm4.training.config import DataConfig
from glm4.training.data.dataset import load_datasets
from glm4.training.data.rows import read_rows
from glm4.training.data.sources import find_sources

pytestmark = pytest.mark.train
pyarrow = pytest.importorskip("pyarrow")


def test_parquet(tmp_path: Path) -> None:
    """Nested values that Arrow fills with nulls are the example that JSON would be."""
    from pyarrow import parquet

    call = {"role": "assistant", "content": json.dumps({"name": "get_weather", "arguments": {"city": "x"}})}
    system = {"role": "system", "content": "", "tools": [{"type": "function", "function": WEATHER}]}
    rows = [
        {"messages": [system, USER, call, {"role": "observation", "content": "21"}, ASSISTANT]},
        {"messages": [{**USER, "image": None}, ASSISTANT]},
    ] * 200
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    read = list(read_rows(path))
    assert [row.place for row in read[:2]] == [f"{path}:1", f"{path}:2"]
    assert len(read) == 400
    assert read[-1].position == path.stat().st_size
    assert [chat(row.value).request for row in read[:2]] == [chat(row).request for row in rows[:2]]
    loaded = load_datasets(DataConfig(train=(str(path),)), chatml())
    assert len(loaded.train) == 400  # type: ignore[arg-type]


def test_a_parquet_file_that_is_cut_off(tmp_path: Path) -> None:
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"text": "x"}]), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TrainingDataError, match="is not a whole parquet file"):
        list(read_rows(path))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_by_its_name(streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` reads a folder of that name as if it were one of the hub."""
    pytest.importorskip("datasets")
    for variable, cache in (("HF_HOME", "cache"), ("HF_DATASETS_CACHE", "cache/datasets")):
        monkeypatch.setenv(variable, str(tmp_path / cache))
    (source,) = find_sources(["some/rows"], streaming=streaming)
    assert (source.name, source.split) == ("some/rows", "train")
    (other,) = find_sources(["some/rows/config:test"], streaming=streaming)
    assert (other.name, other.split) == ("some/rows/config", "test")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "some" / "rows"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": f"t{n}"}) + "\n" for n in range(3)))
    rows = list(source.rows())
    assert [(row.value, row.place) for row in rows] == [({"text": f"t{n}"}, f"some/rows:{n + 1}") for n in range(3)]
