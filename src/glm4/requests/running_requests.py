"""`RunningRequests`: what a backend is working on, and whose chunks are whose. Threads share it in turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from functools import partial

from glm4.backends.base import Backend
from glm4.errors import InvalidRequestError, ModelClosedError, request_error
from glm4.outputs import StreamChunk
from glm4.requests.input_processor import PreparedRequest
from glm4.requests.output_processor import SampleProcessor
from glm4.requests.request_state import RequestState
from glm4.system.turns import Turns


class RunningRequests:
    """Steps a backend for any number of threads; every method may be called from any of them.

    A caller that claims its chunks passes the deque that they go to. A step delivers to all claims, so a thread that
    comes to its turn late finds what others have computed for it and does not step itself.

    Args:
        stop_ids: the model's own.
    """

    def __init__(self, backend: Backend, stop_ids: frozenset[int]) -> None:
        self._backend = backend
        self._stop_ids = stop_ids
        self._turns = Turns()  # held by the thread that uses the backend or anything below
        self._running: dict[str, RequestState] = {}
        self._owners: dict[str, str] = {}  # a sample's id at the backend → its request's
        self._claimed: dict[str, deque[StreamChunk]] = {}
        self._unclaimed: list[StreamChunk] = []
        self._closed = False

    @property
    def unfinished(self) -> bool:
        """True while there is something to step for, or to return from `step`."""
        return bool(self._running) or bool(self._unclaimed)

    def add(self, request_id: str, prepared: PreparedRequest, claim: deque[StreamChunk] | None = None) -> None:
        """Queue a request; waits for the running step, if another thread is in one.

        Args:
            claim: where its chunks go; None lets `step` return them.

        Raises:
            InvalidRequestError: see `LLM.add`.
        """
        self._hurry()
        with self._turns:
            self._check_open()
            if request_id in self._running:
                raise InvalidRequestError(f"request id {request_id!r} is in use", param="request_id")
            running = RequestState(
                request_id,
                prepared.text,
                list(prepared.prompt_ids),
                num_added_ids=prepared.num_added_ids,
                adapter=prepared.adapter,
            )
            running.metrics.num_prompt_tokens = len(prepared.prompt)
            try:
                for index in range(prepared.params.n):
                    self._add_sample(running, prepared, f"{request_id}#{index}", index)
            except BaseException:
                self._abort_samples(running)
                raise
            self._running[request_id] = running
            if claim is not None:
                self._claimed[request_id] = claim

    def abort(self, request_id: str) -> None:
        """Stop a request: at once, or at the end of the running step. Does not wait; unknown ids are ignored."""
        self._turns.post(partial(self._abort, request_id))

    def step(self) -> list[StreamChunk]:
        """One step of the backend, if anything runs; returns the chunks that nobody claimed."""
        with self._turns:
            self._check_open()
            if self._running:
                self._advance(shared=bool(self._claimed))
            chunks, self._unclaimed = self._unclaimed, []
            return chunks

    def step_for(
        self, claim: deque[StreamChunk], request_ids: Collection[str]
    ) -> tuple[list[StreamChunk], Collection[str]]:
        """The chunks of a claim, after a step if there were none, and which of its requests still run."""
        with self._turns:
            self._check_open()
            if not claim:
                self._advance(shared=len(self._running) > len(request_ids))
            chunks = list(claim)
            claim.clear()
            return chunks, [name for name in request_ids if name in self._running]

    def close(self) -> None:
        """Drop everything; all other methods but `abort` raise ModelClosedError from now on. Idempotent."""
        self._hurry()
        with self._turns:
            self._closed = True
            for request_id in list(self._running):
                self._abort(request_id)
            self._unclaimed.clear()

    def _hurry(self) -> None:
        """Let a step that waits for a server come back."""
        if self._turns.taken:
            self._backend.wake()

    # In a turn

    def _check_open(self) -> None:
        if self._closed:
            raise ModelClosedError

    def _add_sample(self, running: RequestState, prepared: PreparedRequest, backend_id: str, index: int) -> None:
        detokenizer, parser = prepared.decoder()
        sample = SampleProcessor(
            index,
            prepared.params,
            detokenizer,
            parser,
            partial(self._backend.abort, backend_id),
            prepared.max_tool_calls,
        )
        self._backend.add_request(prepared.sample(backend_id, self._stop_ids, index))
        running.samples[backend_id] = sample
        self._owners[backend_id] = running.request_id

    def _abort_samples(self, running: RequestState) -> None:
        for backend_id in running.samples:
            self._backend.abort(backend_id)
            self._owners.pop(backend_id, None)

    def _abort(self, request_id: str) -> None:
        running = self._running.pop(request_id, None)
        if running is not None:
            self._abort_samples(running)
        self._claimed.pop(request_id, None)
        self._unclaimed = [chunk for chunk in self._unclaimed if chunk.request_id != request_id]

    def _advance(self, *, shared: bool) -> None:
        """One step of the backend. If the step itself fails, or is interrupted, every request ends with its error.

        Args:
            shared: requests of others run, too, so a Ctrl-C has to wait for the end of the step.
        """
        if shared:
            self._turns.hold_back_interrupts()
        try:
            for new in self._backend.step():
                request_id = self._owners.get(new.request_id)
                if request_id is not None:
                    running = self._running[request_id]
                    self._deliver(running, running.push(new))
        except BaseException as error:
            failure = request_error(error)
            for running in list(self._running.values()):
                self._deliver(running, running.fail(failure))
            raise

    def _deliver(self, running: RequestState, chunk: StreamChunk | None) -> None:
        request_id = running.request_id
        if chunk is not None:
            self._claimed.get(request_id, self._unclaimed).append(chunk)
        if running.error is not None:  # the request ends with all of its samples
            self._abort_samples(running)
        if running.finished:
            del self._running[request_id]
            for backend_id in running.samples:
                self._owners.pop(backend_id, None)
            self._claimed.pop(request_id, None)
