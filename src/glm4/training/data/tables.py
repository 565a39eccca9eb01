"""Rows of tables: csv, parquet, and data sets of Hugging Face's hub."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glm4.errors import TrainingDataError
from glm4.system.extras import Package, require_packages
from glm4.system.text_encoding import HEAD_NBYTES, find_encoding

MAX_CELL_CHARS = 64 << 20
TableRow = tuple[dict[str, Any], int, float, str]
"""Values by column, number of the row (in csv, of the line), share of the file that is read, and what is wrong."""


def read_csv(path: Path) -> Iterator[TableRow]:
    """The rows of a file with a header, separated by commas; of a .tsv file, by tabs.

    Raises:
        OSError, UnicodeDecodeError: it cannot be read.
        TrainingDataError: it has no header.
    """
    size = path.stat().st_size or 1
    csv.field_size_limit(MAX_CELL_CHARS)
    with path.open("rb") as file:
        encoding, skipped = find_encoding(file.read(HEAD_NBYTES))
        file.seek(skipped)
        text = io.TextIOWrapper(file, encoding=encoding, newline="")
        reader = csv.reader(text, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        header = next(reader, None)
        if header is None:
            return
        if len(set(header)) != len(header):
            raise TrainingDataError(f"{path}: two columns have the same name; the first line must name the columns")
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield {}, line, 1.0, f"is not valid CSV: {error}"
                return
            if cells is None:
                return
            if not cells:
                continue
            problem = "" if len(cells) == len(header) else f"has {len(cells)} cells, but the header has {len(header)}"
            values: dict[str, Any] = {
                name: cell for name, cell in zip(header, cells, strict=False) if cell != ""
            }  # an empty cell is none
            yield values, line, min(1.0, file.tell() / size), problem


def read_parquet(path: Path) -> Iterator[TableRow]:
    """The rows of a parquet file, read in batches.

    Raises:
        MissingExtraError: pyarrow is not installed.
        TrainingDataError: it is damaged.
    """
    require_packages("reading parquet files", "train", [Package("pyarrow")])
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            total = file.metadata.num_rows or 1
            number = 0
            for batch in file.iter_batches(batch_size=256):
                for values in batch.to_pylist():
                    number += 1
                    yield values, number, number / total, ""
    except pyarrow.ArrowException as error:
        raise TrainingDataError(f"{path} is not a whole parquet file: {error}") from None


def read_hub(name: str, split: str, *, streaming: bool) -> Iterator[TableRow]:
    """The rows of a data set of the hub, downloaded once unless streaming.

    Args:
        name: "owner/name", or "owner/name/configuration".

    Raises:
        MissingExtraError: `datasets` is not installed.
        TrainingDataError: there is no such data set or split, or it cannot be fetched.
    """
    require_packages("data sets of the hub", "train", [Package("datasets")])
    import datasets

    owner, title, *configuration = name.split("/")
    try:
        datasets.disable_progress_bars()
        rows = datasets.load_dataset(f"{owner}/{title}", *configuration, split=split, streaming=streaming)
        for column, feature in (rows.features or {}).items():  # pictures as the bytes of their files
            if isinstance(feature, datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))
            elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
                rows = rows.cast_column(column, datasets.List(datasets.Image(decode=False)))
        for number, values in enumerate(rows, 1):
            yield dict(values), number, 0.0, ""
    except Exception as error:  # the library raises what its dependencies do
        raise TrainingDataError(
            f"the data set {name!r} (split {split!r}) cannot be read from the hub: {error}; if it is a file, check the"
            " path"
        ) from None
