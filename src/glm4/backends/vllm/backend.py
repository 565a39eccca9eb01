"""`VllmBackend`: vLLM's synchronous `LLMEngine` behind the backend interface.

vLLM computes in processes of its own by default; `step` takes what has arrived from them. If an environment variable of
vLLM (`VLLM_ENABLE_V1_MULTIPROCESSING=0`) keeps its engine in this process, `step` computes.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from glm4.backends.base import STEP_WAIT, BackendInfo, Capability, ModelFiles
from glm4.backends.table import BACKENDS
from glm4.backends.vllm.adapters import Loaded, VllmAdapters
from glm4.backends.vllm.engine import Counters, start_engine
from glm4.backends.vllm.options import VllmOptions
from glm4.backends.vllm.outputs import Running
from glm4.backends.vllm.prompts import vllm_prompt
from glm4.backends.vllm.sampling import Signals, vllm_params
from glm4.engine.protocol import AdapterInfo, EngineStats, GenerationOutput, GenerationRequest, check_request
from glm4.errors import Glm4Error, InvalidRequestError, ModelClosedError
from glm4.hub.store import Progress


class VllmBackend:
    """A vLLM engine.

    Args:
        engine: an `LLMEngine`.
        counters: what it reports of itself.
        signals: see there.
    """

    def __init__(
        self, engine: Any, counters: Counters, signals: Signals | None, files: ModelFiles, options: VllmOptions
    ) -> None:
        self._engine: Any | None = engine
        self._counters = counters
        self._signals = signals
        self._unnamed = frozenset(files.banned_ids.tolist())
        self._lock = threading.Lock()  # vLLM's sockets take one thread at a time
        self._running: dict[str, Running] = {}
        self._held: deque[tuple[GenerationRequest, Loaded | None]] = deque()  # samples beyond their group's limit
        self._groups: Counter[str] = Counter()
        self._adapters = VllmAdapters(engine, files, options.max_adapters, options.max_lora_rank)
        self._arrived = getattr(engine.engine_core, "outputs_queue", None)  # None if `step` computes
        self._woken = False
        self._dead: Glm4Error | None = None
        config = engine.vllm_config
        self._info = BackendInfo(
            name="vllm",
            vocab_size=files.vocab_size,
            max_model_len=config.model_config.max_model_len,
            max_num_seqs=config.scheduler_config.max_num_seqs,
            capabilities=BACKENDS["vllm"].capabilities - _missing(files, signals),
        )

    @classmethod
    def load(cls, files: ModelFiles, options: VllmOptions, progress: Progress | None = None) -> VllmBackend:
        """Start an engine; see `start_engine` for the errors."""
        if progress is not None:
            progress("starting vLLM", 0, 0)
        return cls(*start_engine(files, options), files, options)

    @property
    def info(self) -> BackendInfo:
        """Limits and capabilities of the engine."""
        return self._info

    def add_request(self, request: GenerationRequest) -> None:
        """Hand a request to the engine.

        Raises:
            InvalidRequestError: see `check_request`; or the id is in use, or there is no such adapter, or it asks for
                an embedding.
        """
        self._check_open()
        check_request(request, self._info.vocab_size, self._info.max_model_len, len(self._unnamed))
        if request.pooling is not None:
            raise InvalidRequestError("the vllm backend has no embeddings", param="pooling")
        with self._lock:
            if request.request_id in (*self._running, *(held.request_id for held, _ in self._held)):
                raise InvalidRequestError(f"request id {request.request_id!r} is in use", param="request_id")
            adapter = None if request.adapter is None else self._adapters.find(request.adapter)
            if request.max_running is not None and self._groups[request.group] >= request.max_running:
                self._held.append((request, adapter))
            else:
                self._start(request, adapter)
            if adapter is not None:
                adapter.uses += 1

    def abort(self, request_id: str) -> None:
        """Drop a request."""
        if self._engine is None:
            return
        with self._lock:
            for held in [held for held in self._held if held[0].request_id == request_id]:
                self._held.remove(held)
                if held[1] is not None:
                    self._adapters.release(held[1])
            if request_id in self._running:
                with self._alive() as engine:
                    engine.abort_request([request_id])
                self._end(request_id)

    def step(self) -> list[GenerationOutput]:
        """Outputs that have arrived; waits for them as `Backend.step` allows."""
        self._check_open()
        found = []
        ready = self._num_ready()
        if self._arrived is not None and self._running and not ready:
            with self._alive() as engine:
                engine.engine_core.ensure_alive()  # processes that were killed send no word of it
        for _ in range(ready):
            with self._lock, self._alive() as engine:
                found += engine.step()
        outputs = []
        with self._lock:
            for one in found:
                running = self._running.get(one.request_id)
                if running is None or not (one.outputs[0].token_ids or one.finished):  # aborted meanwhile, or no news
                    continue
                outputs.append(running.read(one, self._signals, self._unnamed))
                if one.finished:
                    self._end(one.request_id)
        return outputs

    def wake(self) -> None:
        """Make the running step, or the next one, return without waiting."""
        if self._arrived is not None:
            with self._arrived.not_empty:
                self._woken = True
                self._arrived.not_empty.notify_all()

    def has_unfinished_requests(self) -> bool:
        """True while an answer is unfinished."""
        return bool(self._running or self._held)

    def load_adapter(self, name: str, path: str) -> AdapterInfo:
        """Load a PEFT adapter; requests that run meanwhile wait for it.

        Raises:
            InvalidRequestError: the name is unusable or taken, or there are as many adapters as may be.
            CheckpointError: it cannot be used with this model.
        """
        self._check_open()
        with self._lock:
            return self._adapters.load(name, path)

    def unload_adapter(self, name: str) -> None:
        """Refuse new requests that name it; those that are there finish."""
        self._check_open()
        with self._lock, self._alive():
            self._adapters.unload(name)

    def adapters(self) -> list[AdapterInfo]:
        """The adapters that requests may name."""
        self._check_open()
        return self._adapters.infos()

    def stats(self) -> EngineStats:
        """What the engine reported with its latest output."""
        self._check_open()
        engine, counters = self._engine, self._counters
        with self._lock:
            present, held = len(self._running), len(self._held)
            names = {one.request.adapter for one in self._running.values() if one.request.adapter}
            later = {one.adapter for one, _ in self._held if one.adapter}
        pages = (engine and engine.vllm_config.cache_config.num_gpu_blocks) or 0
        waiting = min(counters.waiting, present)
        return EngineStats(
            num_running=present - waiting,
            num_waiting=waiting + held,
            kv_pages_used=round(counters.usage * pages) if present else 0,
            kv_pages_total=pages,
            prefix_cache_queries=counters.queries,
            prefix_cache_hits=counters.hits,
            num_preemptions=counters.preemptions,
            running_adapters=tuple(sorted(names)),
            waiting_adapters=tuple(sorted(later - names)),
        )

    def close(self) -> None:
        """End the engine and its processes."""
        with self._lock:
            engine, self._engine = self._engine, None
            if engine is None:
                return
            self._running.clear()
            self._held.clear()
            engine.engine_core.shutdown()
            self._adapters.close()

    def _num_ready(self) -> int:
        """Wait until something has arrived, for as long as a step may; returns how much has."""
        if self._arrived is None:
            return int(bool(self._running))
        with self._arrived.not_empty:
            if not self._arrived.queue and self._running and not self._woken:
                self._arrived.not_empty.wait(STEP_WAIT)
            self._woken = False
            return len(self._arrived.queue)

    def _check_open(self) -> None:
        if self._engine is None:
            raise ModelClosedError
        if self._dead is not None:
            raise self._dead

    @contextmanager
    def _alive(self) -> Iterator[Any]:
        """The engine; whatever it raises ends it for every request."""
        try:
            yield self._engine
        except Glm4Error:
            raise
        except Exception as error:
            self._dead = Glm4Error(
                f"vLLM's engine has failed ({type(error).__name__}: {error}); its log says why. Load the model again"
            )
            raise self._dead from error

    # Called with the lock held

    def _start(self, request: GenerationRequest, adapter: Loaded | None) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        params = vllm_params(request, self._signals)
        lora = None if adapter is None else adapter.lora
        with self._alive() as engine:
            try:
                engine.add_request(request.request_id, vllm_prompt(request), params, lora_request=lora)
            except EngineDeadError:
                raise
            except Exception as error:  # it refuses the request, and lives on
                raise InvalidRequestError(f"vLLM refuses the request: {error}") from error
        self._running[request.request_id] = Running(request, adapter)
        self._groups[request.group] += 1

    def _end(self, request_id: str) -> None:
        """Forget a request that has ended, and start one that its group's limit held back."""
        running = self._running.pop(request_id)
        group = running.request.group
        self._groups -= Counter({group: 1})
        if running.adapter is not None:
            with self._alive():
                self._adapters.release(running.adapter)
        following = next((held for held in self._held if held[0].group == group), None)
        if following is not None:
            self._held.remove(following)
            self._start(*following)


def _missing(files: ModelFiles, signals: Signals | None) -> set[Capability]:
    """What the backend can do, but not with this model."""
    found = {Capability.MEDIA: files.image, Capability.COMPILED_GRAMMARS: signals}
    return {capability for capability, means in found.items() if means is None}
