"""Where rows come from: what a configuration names → files, each with its format."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from glm4.errors import TrainingDataError
from glm4.training.data.examples import Example, PreferenceExample
from glm4.training.data.formats.columns import Columns
from glm4.training.data.formats.row_values import Setting
from glm4.training.data.formats.table import FORMATS, Reader, find_format, read_example
from glm4.training.data.rows import READERS, Row, read_hub_rows, read_rows
from glm4.training.foreign.dataset_info import read_dataset_info

_DETECTED_ROWS = 20
_COLUMNS = Columns()
_TRAIN, _VALIDATION = ("train",), ("dev", "val", "eval")


_HUB = re.compile(r"([\w.-]+/[\w.-]+(?:/[\w.-]+)?)(?::([\w.+%:\[\]-]+))?")
_COUNTED = re.compile(r"(.+)#([1-9][0-9]{0,11})", re.ASCII)


@dataclass(frozen=True)
class Source:
    """A file of rows, or a data set of the hub.

    Attributes:
        name: the file's path as the user gave it, or "owner/name".
        format: a name of `FORMATS`, or "auto".
        setting: names of fields, and where relative paths of pictures begin.
        split: of a data set of the hub; None is a file.
        streaming: a data set of the hub is not kept on disk.
        most: only so many rows are read; None reads all.
    """

    name: str
    format: str
    setting: Setting
    split: str | None = None
    streaming: bool = False
    most: int | None = None

    @property
    def nbytes(self) -> int:
        """Of the file; 0 if there is none."""
        return Path(self.name).stat().st_size if self.split is None else 0

    def rows(self) -> Iterator[Row]:
        """The rows; errors as `read_rows`."""
        if self.split is None:
            rows = read_rows(Path(self.name))
        else:
            rows = read_hub_rows(self.name, self.split, streaming=self.streaming)
        return itertools.islice(rows, self.most)

    def examples(self, *, preferences: bool) -> Iterator[tuple[Row, Example | TrainingDataError]]:
        """Each row with its example, or with why there is none. Errors as `open`.

        Args:
            preferences: rows must be preferences; else they must not be.
        """
        for row, example in self.open()[1]:
            yield row, _of_kind(example, preferences=preferences)

    def open(self) -> tuple[str, Iterator[tuple[Row, Example | TrainingDataError]]]:
        """The format of the rows, and each row with its example, or with why there is none.

        Raises:
            TrainingDataError: the file cannot be read, has no rows, or is in no known format.
            MissingExtraError: its format needs a package that is not installed.
        """
        rows = self.rows()
        first = list(itertools.islice(rows, _DETECTED_ROWS))
        if not first:
            raise TrainingDataError(f"{self.name} is empty: it has no rows")
        name = self.format
        if name == "auto":
            name = find_format([row.value for row in first if not row.problem], self.setting.columns, self.name)
        return name, self._read(itertools.chain(first, rows), FORMATS[name])

    def _read(self, rows: Iterable[Row], reader: Reader) -> Iterator[tuple[Row, Example | TrainingDataError]]:
        for row in rows:
            try:
                yield row, read_example(row, reader, self.setting)
            except TrainingDataError as error:
                yield row, error


def _of_kind(example: Example | TrainingDataError, *, preferences: bool) -> Example | TrainingDataError:
    if isinstance(example, TrainingDataError) or isinstance(example, PreferenceExample) == preferences:
        return example
    return TrainingDataError(
        'dpo needs a better and a worse answer in each row (fields "chosen" and "rejected")'
        if preferences
        else 'the row has a better and a worse answer; set objective to "dpo" to learn from these',
        place=example.place,
    )


def find_sources(
    names: Sequence[str],
    format: str = "auto",
    columns: Columns = _COLUMNS,
    image_folder: str = "",
    *,
    validation: bool = False,
    streaming: bool = False,
) -> list[Source]:
    """What these names stand for: files, folders, and data sets of the hub: `owner/name:split`. `NAME#N` is the first N
    rows of each of its files.

    Of a folder they are its files named train…, for validation those named dev…, val… or eval…; all, if there are none
    of these. The split of a data set is "train", for validation "validation".

    Raises:
        TrainingDataError: a name is none of these, or the format is not known.
    """
    if format != "auto" and format not in FORMATS:
        raise TrainingDataError(f"format {format!r} is not known; known are auto, {', '.join(FORMATS)}")
    sources: list[Source] = []
    for written in names:
        counted = None if Path(written).exists() else _COUNTED.fullmatch(written)
        name, most = (counted[1], int(counted[2])) if counted else (written, None)
        path = Path(name)
        if not path.exists() and path.suffix.lower() not in READERS and (hub := _HUB.fullmatch(name)):
            split = hub[2] or ("validation" if validation else "train")
            sources.append(Source(hub[1], format, Setting(columns, Path(image_folder)), split, streaming, most))
            continue
        for file in _folder(path, validation=validation) if path.is_dir() else [path]:
            if not file.is_file():
                raise TrainingDataError(f"there is no file {file}; check the path")
            folder = Path(image_folder) if image_folder else file.parent
            sources.append(Source(str(file), format, Setting(columns, folder), most=most))
    return sources


def described_sources(
    names: Sequence[str], info: Path, format: str, image_folder: str = "", *, streaming: bool = False
) -> list[Source]:
    """What these names stand for in a dataset_info.json of LLaMA-Factory; pictures are beside it. Errors as
    `find_sources` and `read_dataset_info`.
    """
    sources: list[Source] = []
    for entry in read_dataset_info(info, names, plain_text=format == "text"):
        pictures = image_folder or str(info.parent)
        sources += find_sources([entry.source], entry.format, entry.columns, pictures, streaming=streaming)
    return sources


def validation_files(names: Sequence[str]) -> list[str]:
    """Files for validation that lie in folders of training data."""
    return [str(file) for name in names for file in _named(Path(name), _VALIDATION)]


def _folder(folder: Path, *, validation: bool) -> list[Path]:
    files = _named(folder, _VALIDATION if validation else _TRAIN) or _named(folder, ("",))
    if not files:
        raise TrainingDataError(f"the folder {folder} has no files of {', '.join(READERS)}")
    return files


def _named(folder: Path, beginnings: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        return []
    files = (path for path in folder.iterdir() if path.suffix.lower() in READERS and path.is_file())
    return sorted(file for file in files if file.name.lower().startswith(beginnings))
