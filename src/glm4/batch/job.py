"""`BatchJob`: answer a file of OpenAI batch requests, resuming where an earlier run stopped.

The output file is the only state. A row is appended with one write when its request is finished, so a row is either
complete or its request is computed again; a last line that a crash truncated is removed. Rows are in the order in
which they were finished. A request that cannot be answered gets a row with status 400 and an error, and the others
continue.

The input is read twice, line by line: first for its ids, then to answer it. Only ids are kept in memory.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from glm4.batch.files import BatchOutput, InputIndex, InputLine, RowWriter, StreamOutput, read_lines
from glm4.batch.lines import LineAnswerer, PreparedLine, finished
from glm4.errors import InvalidRequestError, RemoteUnavailableError
from glm4.outputs import RequestOutput

if TYPE_CHECKING:
    from glm4.llm import LLM
    from glm4.requests.input_processor import PreparedRequest

_LINES_PER_LOOK = 64


@dataclass
class BatchProgress:
    """Progress of a run.

    Attributes:
        total: requests in the input.
        skipped: rows finished by an earlier run.
        skipped_failed: those of them that have an error.
        completed: answered in this run.
        failed: refused in this run, with an error row.
        prompt_tokens: of the answered requests.
        completion_tokens: generated in this run, unfinished requests included.
        seconds: since `run` started.
        interrupted: the run was asked to stop before the end.
    """

    total: int = 0
    skipped: int = 0
    skipped_failed: int = 0
    completed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def done(self) -> int:
        """Rows in the output file."""
        return self.skipped + self.completed + self.failed

    @property
    def all_failed(self) -> bool:
        """Whether every row in the output is an error, and there is at least one."""
        return 0 < self.done == self.failed + self.skipped_failed

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second of this run."""
        return self.completion_tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds left at the speed of this run so far; None while nothing is finished."""
        finished = self.completed + self.failed
        return (self.total - self.done) * self.seconds / finished if finished else None


class BatchJob:
    """One input file, one output file. Use as a context manager: the output file is locked until it is closed.

    Creating it checks both files and takes as long as reading them; no model is needed before `run`.

    Args:
        input_path: one request per line: {"custom_id", "method": "POST", "url", "body"}.
        output: a file, created if missing and continued if it holds rows of the same input; or a stream.

    Raises:
        BatchFileError: a file cannot be used, or the output belongs to another input or another running job.
    """

    def __init__(self, input_path: Path, output: Path | BinaryIO) -> None:
        self.input_path = input_path
        self._index = InputIndex.read(input_path)
        self._output: RowWriter = BatchOutput(output, input_path) if isinstance(output, Path) else StreamOutput(output)
        try:
            earlier = self._output.resume(self._index)
        except BaseException:
            self._output.close()
            raise
        self._done = set(earlier)
        errors = sum(not answered for answered in earlier.values())
        self.progress = BatchProgress(total=self._index.count, skipped=len(earlier), skipped_failed=errors)

    @property
    def remaining(self) -> int:
        """Requests that have no row yet."""
        return self.progress.total - self.progress.done

    def run(
        self,
        llm: LLM,
        *,
        model: str,
        on_progress: Callable[[BatchProgress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> BatchProgress:
        """Answer everything that has no row yet.

        Args:
            llm: answers; up to twice its `max_num_seqs` samples are queued, so that it never runs out of work.
            model: the name reported in the rows, whatever the requests say.
            on_progress: called after every step.
            should_stop: called after every step; once True, unfinished requests are dropped (a later run answers them).

        Raises:
            BatchFileError: a file changed during the run, or a row could not be written.
            OutOfMemoryError: the model ran out of memory; finished rows are kept.
            RemoteUnavailableError: the remote server was unavailable for some requests; they got no row, so a later run
                retries them.
        """
        return _Run(self, llm, model, on_progress, should_stop).run()

    def pending(self) -> Iterator[tuple[str, InputLine]]:
        """Row id and line of every request that has no row yet, in input order."""
        for line in read_lines(self.input_path):
            custom_id = self._index.row_id(line)
            if custom_id not in self._done:
                yield custom_id, line

    def finish(self, row: Mapping[str, Any], *, prompt_tokens: int = 0) -> None:
        """Write one finished row, an answer or an error, and count it. A second row for a request is dropped.

        Raises:
            BatchFileError: it could not be written.
        """
        if row["custom_id"] in self._done:
            return
        self._output.append(row)
        self._done.add(row["custom_id"])
        if row["error"] is None:
            self.progress.completed += 1
            self.progress.prompt_tokens += prompt_tokens
        else:
            self.progress.failed += 1

    def explain(self, line: InputLine) -> str | None:
        """What is wrong with a line's custom_id, if it was replaced and can be read."""
        try:
            return self._index.problem(line)
        except InvalidRequestError:  # `LineAnswerer.prepare` finds it, too
            return None

    def close(self) -> None:
        """Sync everything to disk and release the output file. Idempotent."""
        self._output.close()

    def __enter__(self) -> BatchJob:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BatchRun:
    """What every way of answering a job does besides: progress, and stopping early."""

    def __init__(
        self,
        job: BatchJob,
        on_progress: Callable[[BatchProgress], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self._job = job
        self._on_progress = on_progress or (lambda _: None)
        self._should_stop = should_stop or (lambda: False)
        self._started = time.monotonic()

    def _stopped(self) -> bool:
        """Report progress; True when the run should stop."""
        progress = self._job.progress
        progress.seconds = time.monotonic() - self._started
        self._on_progress(progress)
        progress.interrupted = progress.interrupted or (self._job.remaining > 0 and self._should_stop())
        return progress.interrupted


class _Run(BatchRun):
    """`BatchJob.run`: hands requests to the model as it has room, and writes the finished ones."""

    def __init__(
        self,
        job: BatchJob,
        llm: LLM,
        model: str,
        on_progress: Callable[[BatchProgress], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        super().__init__(job, on_progress, should_stop)
        self._llm = llm
        self._lines = LineAnswerer(llm, model)
        self._in_flight: dict[str, PreparedLine] = {}  # what the model is working on
        self._unanswered: RemoteUnavailableError | None = None
        self._failed_in_a_row = 0

    def run(self) -> BatchProgress:
        progress = self._job.progress
        with contextlib.closing(self._llm.run_steps(self._requests())) as steps:
            for chunks in steps:
                for chunk in chunks:
                    progress.completion_tokens += len(chunk.token_ids)
                    if chunk.output is not None:
                        self._finish(chunk.output)
                if self._stopped():
                    break
        self._stopped()
        if self._unanswered is not None:
            raise self._unanswered
        return progress

    def _requests(self) -> Iterator[tuple[str, PreparedRequest]]:
        """The requests the model can answer, in input order; the others get their row here."""
        for number, (custom_id, line) in enumerate(self._job.pending()):
            # Refused lines take no step of the model, so progress and Ctrl-C are checked here, too.
            if number and number % _LINES_PER_LOOK == 0 and self._stopped():
                return
            prepared = self._prepared_or_refused(custom_id, line)
            if prepared is not None:
                yield f"batch-{line.number}", prepared

    def _prepared_or_refused(self, custom_id: str, line: InputLine) -> PreparedRequest | None:
        prepared = self._lines.prepare(custom_id, line, self._job.explain(line))
        if not isinstance(prepared, PreparedLine):
            self._job.finish(prepared)
            return None
        self._in_flight[f"batch-{line.number}"] = prepared
        return prepared.request

    def _finish(self, output: RequestOutput) -> None:
        line = self._in_flight.pop(output.request_id)
        try:
            row = finished(line, output)
        except RemoteUnavailableError as error:
            self._unanswered = error
            self._failed_in_a_row += 1
            if self._failed_in_a_row > 2 * self._llm.info.max_num_seqs:
                raise  # the server is gone
            return
        if row["error"] is None:
            self._failed_in_a_row = 0
        self._job.finish(row, prompt_tokens=len(output.prompt_token_ids))
