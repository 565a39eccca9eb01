"""From a configuration to samples: files and folders, splits, what is cut, dropped or bad, streaming, memory."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_rows import ASSISTANT, USER, chat, chatml, glm4_tokenizer, processor, trained, write_rows

from glm4.errors import TrainingDataError
from glm4.training.config import DataConfig
from glm4.training.data.dataset import Datasets, StreamedSamples, load_datasets
from glm4.training.data.encoding import Encoder
from glm4.training.data.examples import TextExample, TokenizedExample, TokenizedPreference
from glm4.training.data.formats.columns import Columns
from glm4.training.data.samples import SampleSet
from glm4.training.data.sources import find_sources


def row(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}, ASSISTANT]}


def load(path: Path | str, **config: Any) -> Datasets:
    options = {key: config.pop(key) for key in ("preferences", "max_steps", "seed", "progress") if key in config}
    return load_datasets(DataConfig(train=(str(path),), **config), chatml(), **options)


def samples(data: Any) -> list[TokenizedExample]:
    assert isinstance(data, SampleSet)
    return list(data)


def same(one: TokenizedExample, other: TokenizedExample) -> bool:
    assert one.ids.dtype == other.ids.dtype == np.int32
    assert one.mask.dtype == other.mask.dtype == np.bool_
    return np.array_equal(one.ids, other.ids) and np.array_equal(one.mask, other.mask) and one.place == other.place


def test_samples_are_what_the_encoder_made(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [row("x" * count) for count in range(1, 40)])
    loaded = load(path)
    encoder = Encoder(chatml())
    expected = [encoder.encode(chat(row("x" * count))) for count in range(1, 40)]
    read = samples(loaded.train)
    assert len(read) == 39
    for number, (found, made) in enumerate(zip(read, expected, strict=True), 1):
        assert isinstance(made, TokenizedExample)
        assert np.array_equal(found.ids, made.ids)
        assert np.array_equal(found.mask, made.mask)
        assert found.place == f"{path}:{number}"
    lengths = loaded.train.lengths  # type: ignore[union-attr]
    assert lengths.tolist() == [len(sample) for sample in read]
    report = loaded.report
    assert (report.rows, report.samples, report.tokens) == (39, 39, int(lengths.sum()))
    assert report.targets == sum(int(sample.mask.sum()) for sample in read)
    assert len(loaded.validation) == 0
    with pytest.raises(IndexError):
        loaded.train[39]  # type: ignore[index]
    assert same(loaded.train[-1], read[-1])  # type: ignore[index]
    part = loaded.train[5:7]  # type: ignore[index]
    assert [same(a, b) for a, b in zip(part, read[5:7], strict=True)] == [True, True]


def test_splits_are_disjoint_and_repeat(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [row(str(count)) for count in range(50)])
    for split, size in ((0.1, 5), (7, 7), (0.001, 1)):
        loaded = load(path, validation_split=split)
        train, validation = ({sample.place for sample in samples(data)} for data in (loaded.train, loaded.validation))
        assert len(validation) == size
        assert len(train) + len(validation) == 50
        assert not train & validation
        assert [s.place for s in load(path, validation_split=split).validation] == [s.place for s in loaded.validation]
    other = load(path, validation_split=7, seed=1)
    assert [s.place for s in other.validation] != [s.place for s in load(path, validation_split=7).validation]
    with pytest.raises(TrainingDataError, match="validation_split 60 takes all 50 rows"):
        load(path, validation_split=60)


def test_pieces_of_a_text_are_on_one_side(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": f"{number} " * 100} for number in range(10)])
    loaded = load(path, validation_split=0.3, max_length=50)
    train, validation = (
        Counter(sample.place for sample in samples(data)) for data in (loaded.train, loaded.validation)
    )
    assert len(train) == 7
    assert len(validation) == 3
    assert min((train | validation).values()) > 2


def test_folders(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [row("a")])
    write_rows(tmp_path / "train-2.json", [row("b")])
    write_rows(tmp_path / "dev.jsonl", [row("c")])
    (tmp_path / "notes.md").write_text("x")
    loaded = load(tmp_path)
    assert [Path(sample.place).name for sample in samples(loaded.train)] == ["train-2.json:1", "train.jsonl:1"]
    assert [Path(sample.place).name for sample in samples(loaded.validation)] == ["dev.jsonl:1"]
    assert len(load(tmp_path, validation_split=1).validation) == 1
    assert len(load(tmp_path / "train.jsonl", validation=(str(tmp_path),)).validation) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingDataError, match="has no files of"):
        load(tmp_path / "empty")


def test_names_that_are_nothing(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match=r"there is no file .*none\.jsonl; check the path"):
        load(tmp_path / "none.jsonl")
    with pytest.raises(TrainingDataError, match="no training data is named"):
        load_datasets(DataConfig(), chatml())
    with pytest.raises(TrainingDataError, match="format 'csv' is not known; known are auto, messages"):
        load(tmp_path, format="csv")


def test_empty_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(TrainingDataError, match=r"a\.jsonl is empty: it has no rows"):
        load(tmp_path / "a.jsonl")


def test_columns(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"q": "hi", "a": "hello"}])
    (sample,) = samples(load(path, columns=Columns(instruction="q", output="a")).train)
    assert trained(sample, chatml().tokenizer) == [["hel", "lo", "<|im_end|>"]]


def test_a_bad_row_is_named_and_the_others_are_counted(tmp_path: Path) -> None:
    rows: list[Any] = [{"text": "a"}] * 12_000
    rows[9_999] = {"text": ""}
    path = write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(TrainingDataError, match=r"a\.jsonl:10000: text: is empty; delete the row") as one:
        load(path)
    assert one.value.place == f"{path}:10000"
    assert "bad ones" not in str(one.value)
    text = path.read_text().splitlines()
    text[10_004] = '{"messages": ['
    path.write_text("\n".join(text))
    with pytest.raises(TrainingDataError, match="the first of 2 bad ones among 12,000 rows; `glm4 data check` lists"):
        load(path)


def test_kinds_that_do_not_fit(tmp_path: Path) -> None:
    pairs = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "hi", "chosen": "hello", "rejected": "x"}])
    with pytest.raises(TrainingDataError, match='set objective to "dpo"'):
        load(pairs)
    with pytest.raises(TrainingDataError, match="dpo needs a better and a worse answer in each row"):
        load(write_rows(tmp_path / "a.jsonl", [row("a")]), preferences=True)
    loaded = load(pairs, preferences=True)
    (pair,) = loaded.train
    assert isinstance(pair, TokenizedPreference)
    assert trained(pair.chosen, chatml().tokenizer) == [["hel", "lo", "<|im_end|>"]]
    assert trained(pair.rejected, chatml().tokenizer) == [["x", "<|im_end|>"]]
    assert loaded.train.lengths.tolist() == [max(len(pair.chosen), len(pair.rejected))]  # type: ignore[union-attr]


LONG = {"messages": [USER, ASSISTANT, USER, {"role": "assistant", "content": "b" * 100}]}


def test_long_samples_are_cut_at_their_end_and_reported(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [row("a"), LONG, row("x" * 500)])
    whole = samples(load(path).train)[1]
    most = len(whole) - 50
    loaded = load(path, max_length=most)
    kept = samples(loaded.train)
    assert [sample.place for sample in kept] == [f"{path}:1", f"{path}:2"]
    assert np.array_equal(kept[1].ids, whole.ids[:most])
    assert np.array_equal(kept[1].mask, whole.mask[:most])
    assert (kept[1].num_cut, kept[1].num_cut_targets) == (50, 49)  # the last one is the template's line break
    counts = loaded.report.encoding
    assert (counts.too_long, counts.dropped_without_target, counts.dropped_long) == (2, 1, 0)
    assert counts.cut_targets == 49 + 3  # hel, lo, <|im_end|>
    assert loaded.report.rows == 3


def test_long_samples_are_dropped_or_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [row("a"), LONG])
    loaded = load(path, max_length=60, long_samples="drop")
    assert [sample.place for sample in samples(loaded.train)] == [f"{path}:1"]
    assert loaded.report.encoding.dropped_long == 1
    with pytest.raises(TrainingDataError, match=r"a\.jsonl:2: the sample has \d+ tokens, but max_length is 60; raise"):
        load(path, max_length=60, long_samples="error")
    with pytest.raises(TrainingDataError, match="no sample is left to train on: of 2 rows, 2 have nothing"):
        load(path, max_length=5)
    with pytest.raises(TrainingDataError, match="2 are longer than max_length 5"):
        load(path, max_length=5, long_samples="drop")


def test_text_becomes_several_samples() -> None:
    tokenizer = glm4_tokenizer()
    encoder = Encoder(processor("glm4", tokenizer), max_length=12)
    text = "one two three four five six seven eight nine ten eleven twelve thirteen"
    found = list(encoder.samples(TextExample(text, "a.txt:1")))
    prefix = [151331, 151333]
    assert all(isinstance(sample, TokenizedExample) for sample in found)
    ids: list[int] = []
    for sample in found:
        assert isinstance(sample, TokenizedExample)
        assert len(sample) <= 12
        assert sample.ids[:2].tolist() == prefix
        assert sample.mask.tolist() == [False, False, *[True] * (len(sample) - 2)]
        ids += sample.ids[2:].tolist()
    assert ids == [*tokenizer.encode(text), 151329]
    assert encoder.counts.too_long == 0
    (piece,) = Encoder(processor("glm4", tokenizer)).samples(TextExample("one", "a.txt:1", ends=False))
    assert isinstance(piece, TokenizedExample)
    assert piece.ids.tolist() == [*prefix, *tokenizer.encode("one")]


def test_text_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("line\n" * 250_000)
    loaded = load(tmp_path / "a.txt", max_length=4096)
    ends = chatml().tokenizer.special_id("<|endoftext|>")
    read = samples(loaded.train)
    assert [ends in sample.ids for sample in read] == [False] * (len(read) - 1) + [True]


def test_streaming(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [row(str(number)) for number in range(30)])
    loaded = load(path, streaming=True, max_steps=10, validation_split=3)
    assert [sample.place for sample in samples(loaded.validation)] == [f"{path}:{number}" for number in (1, 2, 3)]
    train = loaded.train
    assert isinstance(train, StreamedSamples)
    assert train.report.rows == 0
    for _ in range(2):  # pass after pass
        assert [sample.place for sample in train] == [f"{path}:{number}" for number in range(4, 31)]  # type: ignore[union-attr]
    assert (train.report.rows, train.report.samples) == (54, 54)
    two = zip(train, train, strict=True)  # each iteration has a place of its own
    assert all(one.place == other.place for one, other in two)  # type: ignore[union-attr]


def test_what_streaming_needs(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [row("a"), {"messages": [USER, USER]}])
    with pytest.raises(TrainingDataError, match="streaming needs max_steps"):
        load(path, streaming=True)
    with pytest.raises(TrainingDataError, match="set validation_split to a number of rows"):
        load(path, streaming=True, max_steps=1, validation_split=0.5)
    with pytest.raises(TrainingDataError, match=r"a\.jsonl:2: .*two messages"):
        list(load(path, streaming=True, max_steps=1).train)
    with pytest.raises(TrainingDataError, match=r"a\.jsonl:2: .*two messages"):
        load(path, streaming=True, max_steps=1, validation_split=2)
    with pytest.raises(TrainingDataError, match="no sample is left"):
        load(write_rows(path, [row("a")]), streaming=True, max_steps=1, max_length=3)


def test_pictures_stay_in_their_files(tmp_path: Path) -> None:
    from dataclasses import replace

    from glm4.prompt import ImageLayout
    from glm4.requests.image_inputs import ImageInputs, ImageOptions

    tokenizer = glm4_tokenizer()
    ends = (tokenizer.special_id("<|begin_of_image|>"), tokenizer.special_id("<|end_of_image|>"))
    model = replace(processor("glm4", tokenizer), images=ImageInputs.of(ImageLayout(28, 6, *ends), ImageOptions()))
    picture = tmp_path / "a.png"
    picture.write_bytes(b"one")
    path = write_rows(tmp_path / "a.jsonl", [{"messages": [{**USER, "image": "a.png"}, ASSISTANT]}, row("x")])
    loaded = load_datasets(DataConfig(train=(str(path),)), model)
    first, second = loaded.train
    assert isinstance(first, TokenizedExample)
    assert isinstance(second, TokenizedExample)
    assert (first.images, second.images) == ((b"one",), ())
    picture.write_bytes(b"two")
    assert loaded.train[0].images == (b"two",)  # type: ignore[index]
    picture.unlink()
    with pytest.raises(TrainingDataError, match=r"the picture .*a\.png can no longer be read"):
        loaded.train[0]  # type: ignore[index]
    with pytest.raises(TrainingDataError, match=r"a\.jsonl:1: .*a\.png cannot be read: No such file"):
        load_datasets(DataConfig(train=(str(path),)), model)
    picture.write_bytes(b"one")
    with pytest.raises(TrainingDataError, match=r"a\.jsonl:1: .*this model takes text only"):
        load(path)


def test_rows_are_not_kept(tmp_path: Path) -> None:
    """A sample takes little more than four bytes per token, whatever its row was."""
    path = write_rows(tmp_path / "a.jsonl", [{"text": "word " * 50, "notes": "x" * 2_000} for _ in range(2_000)])
    load(path)  # what is imported and cached once
    tracemalloc.start()
    try:
        loaded = load(path)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 6 * loaded.report.tokens
    assert peak < 14 * loaded.report.tokens
    assert peak < path.stat().st_size


def test_progress_is_in_bytes_of_the_files(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [row("a")] * 3)
    write_rows(tmp_path / "train2.jsonl", [row("a")] * 2)
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    told: list[tuple[str, float, float]] = []
    load(tmp_path, progress=lambda *args: told.append(args))
    assert len(told) == 5
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1] == ("reading data", total, total)


def test_a_source_is_found_once(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [row("a")])
    assert find_sources([str(path)]) == find_sources([str(path)])
