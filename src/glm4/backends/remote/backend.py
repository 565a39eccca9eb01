"""`RemoteBackend`: requests become streamed completions on a server, one connection and one thread each.

The threads read; `step` collects what they read, enforces deadlines, and starts waiting requests. Aborting a request,
or timing it out, closes its connection, which ends its thread and the server's computation.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from http.client import HTTPException

from glm4.backends.base import STEP_WAIT, BackendInfo, ModelFiles
from glm4.backends.remote.client import Exchange, Server
from glm4.backends.remote.completion import CompletionReader, Endpoint, Piece, request_body
from glm4.backends.remote.opening import open_endpoint
from glm4.backends.remote.options import RemoteOptions
from glm4.backends.table import BACKENDS
from glm4.engine.protocol import AdapterInfo, EngineStats, GenerationOutput, GenerationRequest, check_request
from glm4.errors import Glm4Error, InvalidRequestError, ModelClosedError, RemoteError, RemoteUnavailableError
from glm4.hub.store import Progress

log = logging.getLogger("glm4.remote")

_MAX_DELAY = 30.0
_GRACE = 2.0  # seconds to wait for the usage data after the text has finished


@dataclass
class _Call:
    """A request in flight. Modified only under the backend's lock.

    Attributes:
        deadline: when the next token must have arrived (`time.monotonic`).
        begun: a token has arrived; the request is not retried after that.
        over: its results are no longer wanted.
        stopped: set with `over`, to wake a thread that is waiting to retry.
    """

    request: GenerationRequest
    deadline: float = 0.0
    exchange: Exchange | None = None
    begun: bool = False
    over: bool = False
    stopped: threading.Event = field(default_factory=threading.Event)
    news: Piece = field(default_factory=Piece)
    error: Glm4Error | None = None


class RemoteBackend:
    """A server behind the backend interface."""

    def __init__(self, server: Server, endpoint: Endpoint, options: RemoteOptions) -> None:
        self._server = server
        self._endpoint = endpoint
        self._options = options
        self._lock = threading.Condition()
        self._running: dict[str, _Call] = {}
        self._waiting: dict[str, _Call] = {}
        self._changed: dict[str, _Call] = {}  # running calls with unread results
        self._woken = False
        self._closed = False
        self._info = BackendInfo(
            name="remote",
            vocab_size=endpoint.vocab_size,
            max_model_len=endpoint.max_model_len,
            max_num_seqs=options.max_num_seqs,
            capabilities=BACKENDS["remote"].capabilities,
        )

    @classmethod
    def load(cls, files: ModelFiles, options: RemoteOptions, progress: Progress | None = None) -> RemoteBackend:
        """Connect to a server and check that it serves this model; see `open_endpoint` for the errors."""
        server = Server(options)
        if progress is not None:
            progress(f"connecting to {server.name}", 0, 0)
        attempt = 0
        while True:
            try:
                return cls(server, open_endpoint(server, options, files), options)
            except RemoteUnavailableError as error:
                if attempt == options.max_retries:
                    raise
                time.sleep(_delay(options, attempt, error))
            attempt += 1

    @property
    def info(self) -> BackendInfo:
        """The server's limits and capabilities."""
        return self._info

    def add_request(self, request: GenerationRequest) -> None:
        """Send a request, or queue it until others are done.

        Raises:
            InvalidRequestError: see `check_request`; or the id is in use, or there is no such adapter.
        """
        self._check_open()
        check_request(request, self._endpoint.vocab_size, self._endpoint.max_model_len)
        if request.adapter is not None and request.adapter not in self._endpoint.adapters:
            raise InvalidRequestError(
                f"the remote server had no adapter {request.adapter!r} when it was opened", param="model"
            )
        with self._lock:
            if request.request_id in self._running or request.request_id in self._waiting:
                raise InvalidRequestError(f"request id {request.request_id!r} is in use", param="request_id")
            self._waiting[request.request_id] = _Call(request)
            self._start_waiting()

    def abort(self, request_id: str) -> None:
        """Close the request's connection."""
        with self._lock:
            call = self._running.get(request_id)
            if call is not None:
                self._drop(call)
                self._start_waiting()
            self._waiting.pop(request_id, None)

    def step(self) -> list[GenerationOutput]:
        """Outputs that have arrived; waits for them as `Backend.step` allows."""
        self._check_open()
        with self._lock:
            if not self._changed and not self._woken and self._running:
                next_deadline = min(call.deadline for call in self._running.values())
                self._lock.wait(max(0.0, min(STEP_WAIT, next_deadline - time.monotonic())))
            self._woken = False
            self._end_late()
            changed, self._changed = self._changed, {}
            outputs = [output for call in changed.values() for output in self._take(call)]
            self._start_waiting()
        return outputs

    def wake(self) -> None:
        """Make the running step, or the next one, return without waiting."""
        with self._lock:
            self._woken = True
            self._lock.notify()

    def has_unfinished_requests(self) -> bool:
        """True while an answer is unfinished."""
        return bool(self._running or self._waiting)

    def load_adapter(self, name: str, path: str) -> AdapterInfo:
        """Refused: the server loads its own."""
        self._check_open()
        raise InvalidRequestError("adapters of a remote server are loaded there, not from here", param="name")

    def unload_adapter(self, name: str) -> None:
        """Refused: the server unloads its own."""
        self._check_open()
        raise InvalidRequestError("adapters of a remote server are unloaded there, not from here", param="name")

    def adapters(self) -> list[AdapterInfo]:
        """The adapters the server had when it was opened; their details are unknown here."""
        self._check_open()
        return [AdapterInfo(name, "", 0, 0) for name in self._endpoint.adapters]

    def stats(self) -> EngineStats:
        """Requests in flight and requests queued here; the server's own metrics cover the rest."""
        self._check_open()
        with self._lock:
            running = {call.request.adapter for call in self._running.values() if call.request.adapter}
            waiting = {call.request.adapter for call in self._waiting.values() if call.request.adapter}
            return EngineStats(
                num_running=len(self._running),
                num_waiting=len(self._waiting),
                running_adapters=tuple(sorted(running)),
                waiting_adapters=tuple(sorted(waiting - running)),
            )

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            for call in list(self._running.values()):
                self._drop(call)

    def _check_open(self) -> None:
        if self._closed:
            raise ModelClosedError

    # Called with the lock held

    def _start_waiting(self) -> None:
        while self._waiting and len(self._running) < self._options.max_num_seqs:
            call = self._waiting.pop(next(iter(self._waiting)))
            call.deadline = time.monotonic() + self._options.first_token_timeout
            self._running[call.request.request_id] = call
            threading.Thread(target=self._run, args=(call,), name="glm4-remote", daemon=True).start()

    def _drop(self, call: _Call) -> None:
        """Forget a call; its thread notices."""
        call.over = True
        call.stopped.set()
        if call.exchange is not None:
            call.exchange.interrupt()
        del self._running[call.request.request_id]
        self._changed.pop(call.request.request_id, None)

    def _end_late(self) -> None:
        """Give up on calls whose next token is overdue."""
        now = time.monotonic()
        for call in list(self._running.values()):
            if now < call.deadline or call.error is not None or call.news.finish_reason is not None:
                continue
            options = self._options
            seconds = options.token_timeout if call.begun else options.first_token_timeout
            which = "further token" if call.begun else "first token"
            call.error = RemoteUnavailableError(f"{self._server.name} sent no {which} for {seconds:g} seconds")
            self._changed[call.request.request_id] = call

    def _take(self, call: _Call) -> list[GenerationOutput]:
        """A call's unread results as outputs; the last ones end it."""
        name, news, call.news = call.request.request_id, call.news, Piece()
        outputs = []
        if news.token_ids or news.finish_reason or news.cached:
            outputs.append(
                GenerationOutput(
                    name,
                    tuple(news.token_ids),
                    news.finish_reason,
                    news.stop_token_id,
                    tuple(news.logprobs),
                    num_cached_tokens=news.cached,
                )
            )
        if call.error is not None and news.finish_reason is None:
            outputs.append(GenerationOutput(name, finish_reason="error", error=call.error))
        if outputs and outputs[-1].finish_reason is not None:
            self._drop(call)
        return outputs

    def _tell(self, call: _Call) -> None:
        self._changed[call.request.request_id] = call
        self._lock.notify()

    # On a call's own thread

    def _run(self, call: _Call) -> None:
        for attempt in range(self._options.max_retries + 1):
            error = self._failure(call)
            if error is None:
                return
            tried = attempt == self._options.max_retries or call.begun
            if tried or not isinstance(error, RemoteUnavailableError):
                break
            if call.stopped.wait(_delay(self._options, attempt, error)):
                return
        with self._lock:
            if not call.over:
                call.error = error
                self._tell(call)

    def _failure(self, call: _Call) -> Glm4Error | None:
        """Make one attempt; returns the error, or None."""
        try:
            self._stream(call)
        except Glm4Error as error:
            return error
        except (OSError, HTTPException) as error:
            return self._server.broken(error)
        except Exception as error:  # a bug of ours that one request triggers must not leave it hanging
            log.exception("a remote request failed")
            return RemoteError(f"internal error ({type(error).__name__})")
        return None

    def _stream(self, call: _Call) -> None:
        exchange = Exchange(self._server)
        with self._lock:
            if call.over:
                return
            call.exchange = exchange
        reader = CompletionReader(call.request, self._endpoint, self._server)
        try:
            exchange.send("POST", self._endpoint.path, request_body(call.request, self._endpoint))
            self._read(call, exchange, reader)
        finally:
            exchange.close()

    def _read(self, call: _Call, exchange: Exchange, reader: CompletionReader) -> None:
        end = Piece()
        try:
            for data in exchange.events():
                piece = reader.read(data)
                if piece is not None and not reader.finished:
                    self._deliver(call, piece)
                elif piece is not None:
                    end.add(piece)
                    exchange.hurry(_GRACE)
                    call.deadline = time.monotonic() + 2 * _GRACE
                if reader.complete:
                    break
        except (OSError, HTTPException):
            if not reader.finished:
                raise
        reader.check_finished()
        self._deliver(call, end)

    def _deliver(self, call: _Call, piece: Piece) -> None:
        with self._lock:
            if call.over:
                return
            call.news.add(piece)
            if piece.token_ids:
                call.begun = True
                call.deadline = time.monotonic() + self._options.token_timeout
            self._tell(call)


def _delay(options: RemoteOptions, attempt: int, error: RemoteUnavailableError) -> float:
    """Seconds to wait before the next attempt."""
    return min(_MAX_DELAY, max(options.retry_delay * (1 << attempt), error.retry_after))
