"""`load_datasets`: from a configuration to encoded samples for training and validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from glm4.errors import TrainingDataError
from glm4.requests.processor import Processor
from glm4.training.config import DataConfig
from glm4.training.data.encoding import Encoder, EncodingCounts, Tokenized
from glm4.training.data.examples import ChatExample, Example, TokenizedPreference
from glm4.training.data.samples import SampleSet, SampleStore
from glm4.training.data.sources import Source, described_sources, find_sources, validation_files

Progress = Callable[[str, float, float], None]
"""`report(stage, done, total)`, in bytes of the files."""

_COUNTED_AFTER_BAD = 10_000  # rows that are still read after a bad one, to say how many are bad


@dataclass
class DataReport:
    """What was read.

    Attributes:
        rows: of all files.
        samples: that are trained on or evaluated.
        tokens, targets: of these samples, and how many of them carry loss.
        encoding: what was cut or dropped.
    """

    rows: int = 0
    samples: int = 0
    tokens: int = 0
    targets: int = 0
    encoding: EncodingCounts = field(default_factory=EncodingCounts)

    def add(self, sample: Tokenized) -> None:
        """Count a sample."""
        self.samples += 1
        for one in (sample.chosen, sample.rejected) if isinstance(sample, TokenizedPreference) else (sample,):
            self.tokens += len(one)
            self.targets += int(one.mask.sum())


class StreamedSamples:
    """Samples that are encoded as they are needed, in the order of the rows.

    Each iteration begins with the first row and ends after the last.

    Attributes:
        report: of what was read so far, by all iterations.
    """

    def __init__(self, sources: list[Source], encoder: Encoder, *, preferences: bool, skipped: int = 0) -> None:
        self._sources = sources
        self._encoder = encoder
        self._preferences = preferences
        self._skipped = skipped  # rows at the beginning, which are the validation's
        self.report = DataReport(encoding=encoder.counts)

    def __iter__(self) -> Iterator[Tokenized]:
        """The samples.

        Raises:
            TrainingDataError: a row cannot be used.
        """
        number = 0
        for source in self._sources:
            for _, example in source.examples(preferences=self._preferences):
                number += 1
                if number <= self._skipped:
                    continue
                if isinstance(example, TrainingDataError):
                    raise example
                self.report.rows += 1
                for sample in self._encoder.samples(example):
                    self.report.add(sample)
                    yield sample


@dataclass
class Datasets:
    """What a run trains on and evaluates with; `validation` may be empty."""

    train: SampleSet[Any] | StreamedSamples
    validation: SampleSet[Any]
    report: DataReport


def load_datasets(
    config: DataConfig,
    processor: Processor,
    *,
    preferences: bool = False,
    max_steps: int = -1,
    seed: int = 42,
    progress: Progress | None = None,
) -> Datasets:
    """Read, check and encode all rows; streaming, only the first ones.

    Args:
        preferences: rows are preferences; else conversations or text.
        max_steps: of the run; streaming needs it, as nobody knows the number of rows.
        seed: of the choice of validation rows.

    Raises:
        TrainingDataError: a file or a row cannot be used, or nothing is left to train on.
    """
    if not config.train:
        raise TrainingDataError(
            "no training data is named; set data.train to a file, a folder or a data set of the hub"
        )
    sources, others = data_sources(config)
    if config.streaming:
        return _streamed(config, processor, sources, others, preferences=preferences, max_steps=max_steps)
    encoder = _encoder(config, processor)
    report = DataReport(encoding=encoder.counts)
    store = _Collector(encoder, report, progress, preferences=preferences)
    store.read(sources)
    boundary = len(store.rows)
    store.read(others, stage="reading validation data")
    rows = np.array(store.rows, np.int64)
    is_validation = np.arange(len(rows)) >= boundary
    if not others and config.validation_split:
        is_validation = np.isin(rows, _chosen(np.unique(rows), config.validation_split, seed))
    train, validation = (
        SampleSet[Any](store.store, np.flatnonzero(which), pairs=preferences)
        for which in (~is_validation, is_validation)
    )
    if not train:
        raise TrainingDataError(_nothing_left(report, config))
    return Datasets(train, validation, report)


def data_sources(config: DataConfig) -> tuple[list[Source], list[Source]]:
    """Where rows for training and, if they have places of their own, for validation are.

    Raises:
        TrainingDataError: a name stands for nothing.
    """
    streaming = config.streaming
    if config.dataset_info:
        about = (Path(config.dataset_info), config.format, config.image_folder)
        train, validation = (
            described_sources(names, *about, streaming=streaming) for names in (config.train, config.validation)
        )
        return train, validation
    fields = (config.format, config.columns, config.image_folder)
    named = config.validation or (() if config.validation_split else validation_files(config.train))
    return find_sources(config.train, *fields, streaming=streaming), find_sources(named, *fields, validation=True)


class _Collector:
    """Reads sources to their ends into a store.

    Attributes:
        rows: number of the row of each sample (or pair).
    """

    def __init__(self, encoder: Encoder, report: DataReport, progress: Progress | None, *, preferences: bool) -> None:
        self.store = SampleStore()
        self.rows: list[int] = []
        self._encoder = encoder
        self._report = report
        self._progress = progress
        self._preferences = preferences

    def read(self, sources: list[Source], stage: str = "reading data", most: int | None = None) -> None:
        """Read all rows, or the first ones. Errors as `load_datasets`."""
        total = sum(source.nbytes for source in sources)
        done = 0
        for source in sources:
            bad: list[TrainingDataError] = []
            first_bad = 0
            for row, example in source.examples(preferences=self._preferences):
                if self._report.rows == most:
                    return
                self._report.rows += 1
                if bad and self._report.rows - first_bad > _COUNTED_AFTER_BAD:
                    break
                try:
                    if isinstance(example, TrainingDataError):
                        raise example
                    self._add(example)
                except TrainingDataError as error:
                    first_bad = first_bad or self._report.rows
                    bad.append(error)
                if self._progress is not None:
                    self._progress(stage, done + row.position, total)
            if bad:
                raise _bad_rows(bad, self._report.rows)
            done += source.nbytes

    def _add(self, example: Example) -> None:
        for sample in self._encoder.samples(example):
            if isinstance(sample, TokenizedPreference):
                self.store.append(sample.chosen)
                self.store.append(sample.rejected)
            else:
                self.store.append(sample, example.request if isinstance(example, ChatExample) else None)
            self.rows.append(self._report.rows)
            self._report.add(sample)


def _bad_rows(bad: list[TrainingDataError], read: int) -> TrainingDataError:
    first = bad[0]
    if len(bad) == 1:
        return first
    return TrainingDataError(
        f"{first.reason} (the first of {len(bad):,} bad ones among {read:,} rows; `glm4 data check` lists them)",
        place=first.place,
    )


def _encoder(config: DataConfig, processor: Processor) -> Encoder:
    return Encoder(processor, config.loss, config.max_length, config.long_samples)


def _chosen(rows: Any, split: float, seed: int) -> Any:
    """The rows of the validation: a share of them if `split` is below 1, else that many."""
    count = round(len(rows) * split) if split < 1 else int(split)
    count = max(1, count)
    if count >= len(rows):
        raise TrainingDataError(
            f"validation_split {split:g} takes all {len(rows)} rows; give a share below 1, or fewer rows"
        )
    return np.random.default_rng(seed).permutation(rows)[:count]


def _nothing_left(report: DataReport, config: DataConfig) -> str:
    counts = report.encoding
    reasons = []
    if counts.dropped_without_target:
        reasons.append(
            f"{counts.dropped_without_target:,} have nothing that carries loss (loss {config.loss!r}, weights, or cut"
            f" at max_length {config.max_length})"
        )
    if counts.dropped_long:
        reasons.append(f"{counts.dropped_long:,} are longer than max_length {config.max_length}")
    return f"no sample is left to train on: of {report.rows:,} rows, {' and '.join(reasons) or 'none is usable'}"


def _streamed(
    config: DataConfig,
    processor: Processor,
    sources: list[Source],
    others: list[Source],
    *,
    preferences: bool,
    max_steps: int,
) -> Datasets:
    if max_steps <= 0:
        raise TrainingDataError("streaming needs max_steps: the number of rows is not known in advance")
    split = config.validation_split
    if 0 < split < 1:
        raise TrainingDataError("streaming cannot take a share of the rows; set validation_split to a number of rows")
    encoder = _encoder(config, processor)
    collector = _Collector(encoder, DataReport(encoding=encoder.counts), None, preferences=preferences)
    collector.read(others)
    skipped = 0 if others else int(split)
    if skipped:
        collector.read(sources, most=skipped)
    indices = np.arange(len(collector.rows), dtype=np.int64)
    validation = SampleSet[Any](collector.store, indices, pairs=preferences)

    def stream() -> StreamedSamples:
        return StreamedSamples(sources, _encoder(config, processor), preferences=preferences, skipped=skipped)

    first = stream()
    if next(iter(first), None) is None:  # a broken file is found before weights are loaded
        raise TrainingDataError(_nothing_left(first.report, config))
    train = stream()
    return Datasets(train, validation, train.report)
