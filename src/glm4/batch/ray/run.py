"""`run_on_ray`: the lines of a batch, answered by actors on a cluster.

Every line is a call of its own, so that each actor batches as continuously as one model on this machine does, and a
row is in the output file as soon as it is finished. Ray repeats nothing: when an actor dies, its unanswered lines go
back into the queue here, and another actor takes its place. (Ray Data would hand out blocks of lines, wait for the
slowest of a block, and repeat a whole block.) Rows are written by this process only, as without a cluster.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from glm4.batch.files import InputLine
from glm4.batch.job import BatchJob, BatchProgress, BatchRun
from glm4.batch.lines import refused
from glm4.batch.ray.actor import LineActor, LineResult
from glm4.batch.ray.cluster import Shares, everywhere
from glm4.errors import ClusterError, OutOfMemoryError, RemoteUnavailableError
from glm4.version import __version__

_LOOK_SECONDS = 0.5
_START_SECONDS = 300.0
_SPARE_DEATHS = 3


def run_on_ray(
    job: BatchJob,
    model: str,
    options: Mapping[str, Any],
    shares: Shares,
    *,
    on_progress: Callable[[BatchProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> BatchProgress:
    """Answer everything that has no row yet, on the cluster that this program is connected to.

    Args:
        model, options: what `LLM` takes; the model must exist on every node, or be one that nodes can download.
        on_progress, should_stop: as `BatchJob.run`; called at least twice per second.

    Raises:
        BatchFileError, OutOfMemoryError, RemoteUnavailableError: as `BatchJob.run`.
        ClusterError: no actor could start, load the model or stay alive; finished rows are kept.
    """
    return _Run(job, model, options, shares, on_progress, should_stop).run()


@dataclass(frozen=True)
class _Line:
    custom_id: str
    line: InputLine
    problem: str | None


@dataclass(eq=False)
class _Worker:
    """An actor.

    Attributes:
        node: once it has started.
        room: lines that it takes at once; 0 until the model is loaded.
    """

    handle: Any
    node: str = ""
    room: int = 0
    num_lines: int = 0


@dataclass(frozen=True)
class _Call:
    """A call that has not returned: what it does with the result, and the line it is for."""

    worker: _Worker
    receive: Callable[[_Call, Any], None]
    line: _Line | None = None


class _Run(BatchRun):
    def __init__(
        self,
        job: BatchJob,
        model: str,
        options: Mapping[str, Any],
        shares: Shares,
        on_progress: Callable[[BatchProgress], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        import ray

        super().__init__(job, on_progress, should_stop)
        self._ray = ray
        self._model = model
        self._shares = shares
        self._actor = ray.remote(LineActor).options(
            num_cpus=shares.cpus,
            num_gpus=shares.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=10_000,  # as many as are handed out here
            scheduling_strategy="SPREAD",
        )
        self._arguments = (everywhere(model), model, shares.llm_options(options))
        self._pending = job.pending()
        self._again: deque[_Line] = deque()
        self._workers: list[_Worker] = []
        self._calls: dict[Any, _Call] = {}
        self._deaths = 0  # since the last row
        self._started_last = time.monotonic()
        self._unanswered: RemoteUnavailableError | None = None
        self._failed_in_a_row = 0

    def run(self) -> BatchProgress:
        try:
            for _ in range(min(self._shares.count, self._job.remaining)):
                self._start()
            while self._hand_out():
                self._collect()
                if self._stopped():
                    break
        finally:
            for worker in self._workers:
                self._ray.kill(worker.handle)
        self._stopped()
        if self._unanswered is not None:
            raise self._unanswered
        return self._job.progress

    def _start(self) -> None:
        worker = _Worker(self._actor.remote(*self._arguments))
        self._workers.append(worker)
        self._started_last = time.monotonic()
        self._calls[worker.handle.hello.remote()] = _Call(worker, self._greeted)

    def _hand_out(self) -> bool:
        """Give lines to actors that have room, evenly; False if there is nothing left to do."""
        while True:
            line = self._next_line()
            if line is None:
                return any(call.line is not None for call in self._calls.values())
            worker = min(
                (one for one in self._workers if one.num_lines < one.room), key=lambda one: one.num_lines, default=None
            )
            if worker is None:
                self._again.appendleft(line)
                return True
            worker.num_lines += 1
            call = worker.handle.answer.remote(line.custom_id, line.line, line.problem)
            self._calls[call] = _Call(worker, self._answered, line)

    def _next_line(self) -> _Line | None:
        if self._again:
            return self._again.popleft()
        found = next(self._pending, None)
        if found is None:
            return None
        custom_id, line = found
        return _Line(custom_id, InputLine(line.number, line.data), self._job.explain(line))

    def _collect(self) -> None:
        """Wait a moment for calls to return, and take all that have."""
        calls = list(self._calls)
        ready, _ = self._ray.wait(calls, num_returns=1, timeout=_LOOK_SECONDS)
        if ready:
            ready, _ = self._ray.wait(calls, num_returns=len(calls), timeout=0)
        for one in ready:
            self._take(one, self._calls.pop(one))
        waits = not any(worker.node for worker in self._workers)
        if waits and time.monotonic() - self._started_last > _START_SECONDS:
            raise ClusterError(
                f"no actor could start within {_START_SECONDS:.0f} s; free on the cluster now:"
                f" {self._ray.available_resources()}; wanted for each: {self._shares.cpus} CPUs, {self._shares.gpus:g}"
                " GPUs"
            )

    def _take(self, ref: Any, call: _Call) -> None:
        errors = self._ray.exceptions
        if call.line is not None:
            call.worker.num_lines -= 1
        try:
            result = self._ray.get(ref)
        except errors.RayTaskError as error:  # it never raises itself: the result or an argument cannot be sent
            if call.line is None:
                raise ClusterError(f"an actor cannot work: {_last_line(error)}") from None
            self._job.finish(refused(call.line.custom_id, 500, "internal_error", _last_line(error)))
        except errors.RayError as error:
            if call.line is not None:
                self._again.append(call.line)
            self._replace(call.worker, _last_line(error))
        else:
            call.receive(call, result)

    def _replace(self, worker: _Worker, reason: str) -> None:
        """Put another actor in the place of one that has died."""
        if worker not in self._workers:
            return  # for an earlier one of its calls
        self._workers.remove(worker)
        worker.room = 0
        self._ray.kill(worker.handle)
        self._deaths += 1
        if self._deaths > self._shares.count + _SPARE_DEATHS:
            raise ClusterError(
                f"{self._deaths} actors have died without finishing a row, the last one"
                f"{f' on {worker.node}' if worker.node else ''}: {reason}. Finished rows are kept"
            )
        self._start()

    def _greeted(self, call: _Call, result: tuple[str, str]) -> None:
        worker = call.worker
        worker.node, version = result
        if version != __version__:
            raise ClusterError(f"{worker.node} has glm4 {version}, this machine {__version__}; install the same on all")
        self._calls[worker.handle.load.remote()] = _Call(worker, self._loaded)

    def _loaded(self, call: _Call, result: int | str) -> None:
        if isinstance(result, str):
            raise ClusterError(f"{self._model} cannot be loaded on {call.worker.node}: {result}")
        call.worker.room = 2 * result  # so that it never runs out of work

    def _answered(self, call: _Call, result: LineResult) -> None:
        self._job.progress.completion_tokens += result.completion_tokens
        if result.row is not None:
            self._job.finish(result.row, prompt_tokens=result.prompt_tokens)
            self._deaths = 0
            if result.row["error"] is None:
                self._failed_in_a_row = 0
        elif isinstance(result.error, OutOfMemoryError):
            raise result.error
        elif isinstance(result.error, RemoteUnavailableError):
            self._unanswered = result.error
            self._failed_in_a_row += 1
            if self._failed_in_a_row > sum(worker.room for worker in self._workers):
                raise result.error  # the server is gone
        else:  # the model has stopped
            if call.line is not None:
                self._again.append(call.line)
            self._replace(call.worker, str(result.error))


def _last_line(error: BaseException) -> str:
    return next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__).strip()
