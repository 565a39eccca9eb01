"""`BatchJob`: answer a file of OpenAI batch requests, resuming where an earlier run stopped.

The output file is the only state. A row is appended with one write when its request is finished, so a row is either
complete or its request is computed again; a last line that a crash truncated is removed. Rows are in the order in
which they were finished. A request that cannot be answered gets a row with status 400 and an error, and the others
continue.

The input is read twice, line by line: first for its ids, then to answer it. Only ids are kept in memory.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from glm4.api.openai import chat_completion, parse_chat, parse_completion
from glm4.api.openai.answers import text_completions
from glm4.api.openai.request import StreamOptions
from glm4.batch.files import BatchOutput, InputIndex, InputLine, RowWriter, StreamOutput, read_lines
from glm4.errors import (
    Glm4Error,
    InvalidRequestError,
    OutOfMemoryError,
    PromptTooLongError,
    RemoteUnavailableError,
    shown,
)
from glm4.outputs import RequestOutput

if TYPE_CHECKING:
    from glm4.llm import LLM
    from glm4.requests.input_processor import PreparedRequest

CHAT_URL = "/v1/chat/completions"
COMPLETION_URL = "/v1/completions"

_REQUEST_KEYS = {"custom_id", "method", "url", "body"}
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
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
        return _Run(self, llm, model, on_progress or (lambda _: None), should_stop or (lambda: False)).run()

    def pending(self) -> Iterator[tuple[str, InputLine]]:
        """Row id and line of every request that has no row yet, in input order."""
        for line in read_lines(self.input_path):
            custom_id = self._index.row_id(line)
            if custom_id not in self._done:
                yield custom_id, line

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one finished row."""
        self._output.append(row)
        self._done.add(row["custom_id"])

    def explain(self, line: InputLine) -> str | None:
        """What is wrong with a line's custom_id, if it was replaced."""
        return self._index.problem(line)

    def close(self) -> None:
        """Sync everything to disk and release the output file. Idempotent."""
        self._output.close()

    def __enter__(self) -> BatchJob:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_Build = Callable[[RequestOutput], dict[str, Any]]


class _Run:
    """`BatchJob.run`: hands requests to the model as it has room, and writes the finished ones."""

    def __init__(
        self,
        job: BatchJob,
        llm: LLM,
        model: str,
        on_progress: Callable[[BatchProgress], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self._job = job
        self._llm = llm
        self._model = model
        self._on_progress = on_progress
        self._should_stop = should_stop
        self._defaults = llm.default_sampling_params()
        self._started = time.monotonic()
        # For the requests the model is working on: the row's id, and how to build its body.
        self._in_flight: dict[str, tuple[str, _Build]] = {}
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

    def _stopped(self) -> bool:
        """Report progress; True when the run should stop."""
        progress = self._job.progress
        progress.seconds = time.monotonic() - self._started
        self._on_progress(progress)
        progress.interrupted = progress.interrupted or (self._job.remaining > 0 and self._should_stop())
        return progress.interrupted

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
        try:
            prepared, build = self._prepared(line)
        except (OutOfMemoryError, MemoryError):
            raise
        except PromptTooLongError as error:
            self._refuse(custom_id, 400, "context_length_exceeded", str(error), error.param)
        except UnicodeEncodeError:
            self._refuse(
                custom_id, 400, "invalid_request", "the text has a lone surrogate, which is not valid Unicode", None
            )
        except Glm4Error as error:
            self._refuse(custom_id, 400, "invalid_request", str(error), getattr(error, "param", None))
        except Exception as error:
            # A bug that one request triggers must not cost the others their answers.
            self._refuse(custom_id, 500, "internal_error", f"{type(error).__name__}: {error}", None)
        else:
            self._in_flight[f"batch-{line.number}"] = custom_id, build
            return prepared
        return None

    def _prepared(self, line: InputLine) -> tuple[PreparedRequest, _Build]:
        """Parse one line and prepare its request.

        Raises:
            Glm4Error: the request cannot be answered.
        """
        problem = self._job.explain(line)
        if problem:
            raise InvalidRequestError(problem, param="custom_id")
        request = _request(line)
        llm, model, tokenizer = self._llm, self._model, self._llm.tokenizer
        if request["url"] == CHAT_URL:
            chat = parse_chat(request["body"], self._defaults)
            _refuse_stream(chat.stream)
            return llm.prepare(chat.request), partial(
                chat_completion, model=model, tokenizer=tokenizer, options=chat.response
            )
        completion = parse_completion(request["body"], self._defaults)
        _refuse_stream(completion.stream)
        if len(completion.prompts) > 1:
            raise InvalidRequestError("a line of a batch has one prompt", param="prompt")
        prepared = llm.prepare_prompt(completion.prompts[0], completion.params, **completion.options)

        def build(output: RequestOutput) -> dict[str, Any]:
            return text_completions(
                [output],
                model,
                tokenizer,
                completion.response,
                echo=completion.echo,
                generate=completion.generate,
                skip_special_tokens=completion.params.skip_special_tokens,
            )

        return prepared, build

    def _finish(self, output: RequestOutput) -> None:
        custom_id, build = self._in_flight.pop(output.request_id)
        if output.error is not None:
            self._fail(custom_id, output.error)
            return
        self._failed_in_a_row = 0
        self._job.append(_row(custom_id, 200, build(output), None))
        self._job.progress.completed += 1
        self._job.progress.prompt_tokens += len(output.prompt_token_ids)

    def _fail(self, custom_id: str, error: Glm4Error) -> None:
        """Write a row for a request that failed while running, unless a retry may help."""
        if isinstance(error, OutOfMemoryError):
            raise error
        if isinstance(error, RemoteUnavailableError):
            self._unanswered = error
            self._failed_in_a_row += 1
            if self._failed_in_a_row > 2 * self._llm.info.max_num_seqs:
                raise error  # the server is gone
        elif isinstance(error, InvalidRequestError):
            self._refuse(custom_id, 400, "invalid_request", str(error), error.param)
        else:
            self._refuse(custom_id, 500, "internal_error", str(error), None)

    def _refuse(self, custom_id: str, status: int, code: str, message: str, param: str | None) -> None:
        kind = "invalid_request_error" if status == 400 else "internal_error"
        body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        self._job.append(_row(custom_id, status, body, {"code": code, "message": message}))
        self._job.progress.failed += 1


def _request(line: InputLine) -> Mapping[str, Any]:
    """The request on a line, its outer shape checked.

    Raises:
        InvalidRequestError: `.param` names the key.
    """
    request = line.decode()
    _check_unicode(line, request)
    for key in request:
        if key not in _REQUEST_KEYS:
            raise InvalidRequestError(
                f"unknown key {shown(key)}; a request has {', '.join(sorted(_REQUEST_KEYS))}", param=key
            )
    if request.get("method", "POST") != "POST":
        raise InvalidRequestError(f"method must be POST, not {shown(request['method'])}", param="method")
    if request.get("url") not in (CHAT_URL, COMPLETION_URL):
        raise InvalidRequestError(
            f"url must be {CHAT_URL} or {COMPLETION_URL}, not {shown(request.get('url'))}", param="url"
        )
    if not isinstance(request.get("body"), dict):
        raise InvalidRequestError("body must be an object", param="body")
    return request


def _check_unicode(line: InputLine, request: Mapping[str, Any]) -> None:
    """Refuse lone surrogates, which JSON escapes can express and no tokenizer can encode."""
    if line.data is not None and _SURROGATE_ESCAPE.search(line.data):
        try:
            json.dumps(request, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(f"line {line.number} has a lone surrogate, which is not valid Unicode") from error


def _refuse_stream(stream: StreamOptions | None) -> None:
    if stream is not None:
        raise InvalidRequestError("stream must be false: a batch row is a whole answer", param="stream")


def _row(custom_id: str, status: int, body: Mapping[str, Any], error: Mapping[str, Any] | None) -> dict[str, Any]:
    """One line of the output, in OpenAI's shape."""
    return {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": uuid.uuid4().hex, "body": body},
        "error": error,
    }
