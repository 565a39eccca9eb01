"""A batch's two files: reading requests line by line, and an output file that survives a crash."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from glm4.errors import BatchFileError, InvalidRequestError
from glm4.system import json_lines

MAX_LINE_BYTES = json_lines.MAX_LINE_BYTES
MAX_ID_LENGTH = 512
_SYNC_SECONDS = 5.0
_ROW_START = b'{"id": "batch_req_'

# JSON allows these inside strings, but many programs that read lines would split there.
_LINE_BREAKS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


@dataclass(frozen=True)
class InputLine:
    """One non-empty line of the input; `data` is None when it is longer than `MAX_LINE_BYTES`."""

    number: int
    data: bytes | None

    @cached_property
    def _parsed(self) -> tuple[Any, str | None]:
        """The JSON value, and what is wrong with the line if it is not a JSON object."""
        return json_lines.parse_object(self.data, MAX_LINE_BYTES)

    def decode(self) -> dict[str, Any]:
        """The JSON object on the line.

        Raises:
            InvalidRequestError: the line is too long, not valid JSON, or not an object.
        """
        value, problem = self._parsed
        if problem:
            raise InvalidRequestError(f"line {self.number} {problem}")
        return cast("dict[str, Any]", value)

    def custom_id(self) -> str | None:
        """The line's own id; None if it has no usable one."""
        value = self._parsed[0].get("custom_id") if self._parsed[1] is None else None
        if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_LENGTH:
            return None
        try:
            value.encode()
        except UnicodeEncodeError:
            return None
        return value


def read_lines(path: Path) -> Iterator[InputLine]:
    """The non-empty lines of a file, one at a time.

    Raises:
        BatchFileError: it cannot be read.
    """
    try:
        for line in json_lines.read_lines(path, MAX_LINE_BYTES):
            yield InputLine(line.number, line.data)
    except OSError as error:
        raise BatchFileError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError:
        raise BatchFileError(f"{path} is damaged UTF-16 text; save it as UTF-8") from None


@dataclass
class InputIndex:
    """Which ids an input has. A line's row is named by its custom_id, if that is usable and the line is the first to
    have it, and `line-NUMBER` otherwise.
    """

    path: Path
    count: int = 0
    _first_line: dict[str, int] = field(default_factory=dict)
    _made_ids: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, path: Path) -> InputIndex:
        """Read the whole input once.

        Raises:
            BatchFileError: it is not a regular file, cannot be read or has no lines.
        """
        if path.exists() and not path.is_file():
            raise BatchFileError(f"{path} must be a file: a batch input is read twice; give - and pipe it in")
        index = cls(path)
        nameless: list[int] = []
        for line in read_lines(path):
            index.count += 1
            custom_id = line.custom_id()
            if custom_id is None or custom_id in index._first_line:
                nameless.append(line.number)
            else:
                index._first_line[custom_id] = line.number
        if index.count == 0:
            raise BatchFileError(f"{path} has no requests in it")
        index._made_ids = {index._make_id(number) for number in nameless}
        return index

    def __contains__(self, row_id: object) -> bool:
        return row_id in self._first_line or row_id in self._made_ids

    def row_id(self, line: InputLine) -> str:
        """The id of a line's row.

        Raises:
            BatchFileError: the line did not exist when the index was read.
        """
        custom_id = line.custom_id()
        if custom_id is not None and self._first_line.get(custom_id) == line.number:
            return custom_id
        made = self._make_id(line.number)
        if made not in self._made_ids:
            raise BatchFileError(f"{self.path} was changed while it was being read (line {line.number}); start again")
        return made

    def problem(self, line: InputLine) -> str | None:
        """Why a line's row could not be named by its custom_id; None if it could, or the line has none."""
        custom_id = line.custom_id()
        if custom_id is not None:
            first = self._first_line.get(custom_id)
            if first != line.number:
                return f"line {line.number} repeats the custom_id {custom_id!r} of line {first}"
            return None
        value = line.decode().get("custom_id")
        if value is not None:
            return f"custom_id must be a string of 1 to {MAX_ID_LENGTH} characters"
        return None

    def _make_id(self, number: int) -> str:
        made = f"line-{number}"
        while made in self._first_line:  # another line has this name as its custom_id
            made += "'"
        return made


class RowWriter(Protocol):
    """Where the rows of a batch go."""

    def resume(self, index: InputIndex) -> Mapping[str, bool]:
        """The ids of rows that are already there, and whether each has an answer; errors as `BatchOutput.resume`."""

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row; errors as `BatchOutput.append`."""

    def close(self) -> None:
        """Write what is still held back. Idempotent."""


class StreamOutput:
    """Rows on a stream that cannot be read again, such as standard output: nothing is resumed."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def resume(self, index: InputIndex) -> Mapping[str, bool]:
        """Nothing."""
        return {}

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row at once: the reader may be waiting for it."""
        self._stream.write(_encoded(row))
        self._stream.flush()

    def close(self) -> None:
        """Do nothing: whoever opened the stream closes it."""


def _encoded(row: Mapping[str, Any]) -> bytes:
    text = json.dumps(row, ensure_ascii=False).translate(_LINE_BREAKS) + "\n"
    # A lone surrogate, from a request's metadata, goes back out as the JSON escape it came in as.
    return text.encode("utf-8", "backslashreplace")


class BatchOutput:
    """The output file, locked against other runs.

    Raises:
        BatchFileError: it cannot be opened, is not a regular file, is the input itself, or another run is using it.
    """

    def __init__(self, path: Path, input_path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise BatchFileError(f"cannot write {path}: {error.strerror or error}") from error
        self._open = True
        self._synced = time.monotonic()
        try:
            self._check(input_path)
            self._lock()
        except BaseException:
            os.close(self._fd)
            self._open = False
            raise

    def _check(self, input_path: Path) -> None:
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            raise BatchFileError(f"{self.path} must be a file: a batch resumes from its contents; - is standard output")
        if os.path.samestat(status, input_path.stat()):
            raise BatchFileError(f"{self.path} is the input itself; give another file for the output")

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BatchFileError(f"another run is writing {self.path}; wait for it or give another file") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise BatchFileError(f"cannot lock {self.path}: {error.strerror}") from error
            # Some network file systems have no locks; a single run is still safe there.

    def resume(self, index: InputIndex) -> dict[str, bool]:
        """Read the existing rows and remove a truncated last one.

        Returns:
            The ids of the finished rows, and whether each has an answer rather than an error.

        Raises:
            BatchFileError: the file has something other than rows of this input. It is left unchanged.
        """
        done: dict[str, bool] = {}
        end = 0
        with os.fdopen(os.dup(self._fd), "rb") as file:
            file.seek(0)
            for number, data in enumerate(file, 1):
                if not data.endswith(b"\n"):
                    self._check_torn(data, number)
                    break
                custom_id, answered = self._read_row(data, number)
                if custom_id not in index:
                    raise BatchFileError(
                        f"{self.path} belongs to another input: {custom_id!r} (line {number}) is not in {index.path}. "
                        "Give another file for the output."
                    )
                if custom_id in done:
                    raise BatchFileError(f"{self.path} has two rows for {custom_id!r} (line {number}); remove one")
                done[custom_id] = answered
                end += len(data)
        os.ftruncate(self._fd, end)
        return done

    def _check_torn(self, data: bytes, number: int) -> None:
        """An incomplete line is dropped only if it is the beginning of one of our rows."""
        # After a power failure, blocks that never reached the disk read as zeros.
        text = data.rstrip(b"\0")
        if not (text.startswith(_ROW_START) or _ROW_START.startswith(text)):
            raise BatchFileError(f"{self.path} is not a batch output (line {number}); give another file")

    def _read_row(self, data: bytes, number: int) -> tuple[str, bool]:
        try:
            row = json.loads(data)
            custom_id = row["custom_id"] if isinstance(row, dict) and "response" in row else None
        except (ValueError, RecursionError, KeyError):
            custom_id = None
        if not isinstance(custom_id, str):
            raise BatchFileError(f"{self.path} is not a batch output (line {number}); give another file")
        return custom_id, row.get("error") is None

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row with a single write.

        Raises:
            BatchFileError: the disk is full or failed; earlier rows are intact.
        """
        data = _encoded(row)
        start = os.fstat(self._fd).st_size
        try:
            written = os.write(self._fd, data)
            if written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                self._sync()
        except OSError as error:
            os.ftruncate(self._fd, start)
            raise BatchFileError(
                f"cannot write {self.path}: {error.strerror}. Finished rows are safe; the same command continues."
            ) from error

    def _sync(self) -> None:
        os.fsync(self._fd)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Sync the rows to disk and release the lock. Idempotent."""
        if self._open:
            self._open = False
            try:
                os.fsync(self._fd)
            finally:
                os.close(self._fd)
