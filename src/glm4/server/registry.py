"""`ModelRegistry`: the models of a server, loaded in the background, found by the names clients use."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from glm4.async_llm import AsyncLLM
from glm4.errors import Glm4Error
from glm4.hub.store import Progress
from glm4.llm import LLM
from glm4.server.admission import Admission
from glm4.server.config import ANY_MODEL, ModelSpec, ServerConfig
from glm4.server.errors import ApiError, busy
from glm4.system.event_loops import set_outcome

log = logging.getLogger("glm4.server")

Loader = Callable[[ModelSpec, Progress], LLM]


def _load_llm(spec: ModelSpec, progress: Progress) -> LLM:
    return LLM(spec.source, progress=progress, **spec.options)


def _stage(stage: str, done: float, total: float) -> str:
    """`pulling starter, 24% of 491 MB`; totals of a megabyte or more are bytes, and 0 is unknown."""
    if not total:
        return stage
    return f"{stage}, {done / total:.0%}" + (f" of {total / 1e6:,.0f} MB" if total >= 1e6 else "")


@dataclass
class ServedModel:
    """A model that is loading, ready or failed.

    Attributes:
        engine: set once it is ready.
        error: why loading failed.
        stage: what is being done to load it.
        progress: how much of that is done, 0 to 1; None if that is unknown.
    """

    spec: ModelSpec
    created: int = field(default_factory=lambda: int(time.time()))
    engine: AsyncLLM | None = None
    admission: Admission | None = None
    error: str | None = None
    stage: str = "waiting to be loaded"
    progress: float | None = None

    @property
    def name(self) -> str:
        """The name responses carry."""
        return next((name for name in self.spec.names if name != ANY_MODEL), self.spec.source)

    @property
    def failed(self) -> bool:
        """Whether it could not be loaded, or its engine has stopped for good."""
        return self.error is not None or (self.engine is not None and self.engine.failed)

    @property
    def state(self) -> Literal["loading", "ready", "failed"]:
        """What becomes of it, in a word."""
        if self.failed:
            return "failed"
        return "loading" if self.engine is None else "ready"

    @property
    def llm(self) -> LLM:
        """The loaded model; valid only when it is ready."""
        assert self.engine is not None  # noqa: S101 (callers come through `ModelRegistry.find`)
        return self.engine.llm


@dataclass(frozen=True)
class Target:
    """What a request's `model` names: a model, and the adapter on top of it, if any.

    Attributes:
        salt: only prompts cached under the same one are reused.
    """

    model: ServedModel
    name: str
    adapter: str | None = None
    salt: str = ""

    @property
    def engine(self) -> AsyncLLM:
        """The engine that answers."""
        assert self.model.engine is not None  # noqa: S101 (a Target has ready models only)
        return self.model.engine

    @property
    def llm(self) -> LLM:
        """The model itself."""
        return self.engine.llm

    def longest_text(self) -> int | None:
        """Bytes of the longest text that is tokenized for this model; see `Tokenizer.longest_text`."""
        return self.llm.tokenizer.longest_text(self.llm.info.max_model_len)

    @property
    def admission(self) -> Admission:
        """The model's queue."""
        assert self.model.admission is not None  # noqa: S101
        return self.model.admission


class ModelRegistry:
    """All models of one server.

    Args:
        load: creates the `LLM` of a model; tests pass their own.
    """

    def __init__(self, config: ServerConfig, load: Loader | None = None) -> None:
        self._config = config
        self._load_llm = load or _load_llm
        self.models = [ServedModel(spec) for spec in config.models]
        self._loading: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None

    @property
    def ready(self) -> bool:
        """True once every model can answer."""
        return all(model.engine is not None and not model.engine.failed for model in self.models)

    @property
    def is_loading(self) -> bool:
        """True while a model is loading; `close` does not wait for that, because it cannot be interrupted."""
        return self._thread is not None and self._thread.is_alive()

    def start_loading(self) -> None:
        """Load every model, one after another, in the background."""
        self._loading = asyncio.create_task(self._load_all())

    async def loaded(self) -> None:
        """Wait until loading has ended, successfully or not."""
        if self._loading is not None:
            await self._loading

    async def _load_all(self) -> None:
        for model in self.models:
            started = time.monotonic()
            try:
                await self._load(model)
            except Glm4Error as error:
                model.error = str(error)
                log.error("%s cannot be loaded: %s", model.name, error)
            except Exception as error:
                model.error = f"internal error ({type(error).__name__})"
                log.exception("%s cannot be loaded", model.name)
            else:
                log.info("%s is ready after %.1f s", model.name, time.monotonic() - started)

    async def _load(self, model: ServedModel) -> None:
        def progress(stage: str, done: float, total: float) -> None:
            model.stage = _stage(stage, done, total)
            model.progress = min(1.0, max(0.0, done / total)) if total else None

        spec = model.spec
        llm = await self._in_thread(partial(self._load_llm, spec, progress))
        engine = AsyncLLM(llm)
        for name, path in spec.adapters.items():
            await engine.load_adapter(name, str(path))
        config = self._config
        model.admission = Admission(llm.info.max_num_seqs, config.max_queue, config.queue_timeout)
        model.engine = engine

    async def _in_thread(self, function: Callable[[], LLM]) -> LLM:
        """Like `asyncio.to_thread`, but in a thread that the event loop does not wait for at its end."""
        done: asyncio.Future[LLM] = asyncio.get_running_loop().create_future()
        self._thread = threading.Thread(target=set_outcome, args=(done, function), name="glm4-load", daemon=True)
        self._thread.start()
        return await done

    def find(self, name: str | None) -> Target:
        """The model of that name; None is the first.

        Raises:
            ApiError: no such model (404), or it is not ready (503).
        """
        for model, adapter in self._candidates(name):
            self._check_ready(model)
            return Target(model, adapter or (model.name if name is None or name in (ANY_MODEL, "") else name), adapter)
        raise ApiError(404, f"the model {name!r} does not exist; GET /v1/models lists those that do", "model",
                       "model_not_found")  # fmt: skip

    def _candidates(self, name: str | None) -> Iterator[tuple[ServedModel, str | None]]:
        if not name:
            yield self.models[0], None
            return
        for model in self.models:
            if name in model.spec.names:
                yield model, None
            elif name in self.adapters(model):
                yield model, name
        for model in self.models:
            if ANY_MODEL in model.spec.names:
                yield model, None

    @staticmethod
    def adapters(model: ServedModel) -> tuple[str, ...]:
        """Adapters of a model that clients may name."""
        return (
            tuple(model.spec.adapters)
            if model.engine is None
            else tuple(adapter.name for adapter in model.llm.adapters())
        )

    @staticmethod
    def _check_ready(model: ServedModel) -> None:
        if model.error is not None:
            raise ApiError(503, f"{model.name} could not be loaded; the server's log says why", "model", "model_failed")
        if model.engine is None:
            raise busy(f"{model.name} is still loading ({model.stage})", 2, code="model_loading")
        if model.engine.failed:
            raise ApiError(503, f"{model.name} has stopped; the server's log says why", "model", "model_failed")

    def stop_admitting(self) -> None:
        """Refuse all waiting requests and all later ones."""
        for model in self.models:
            if model.admission is not None:
                model.admission.close()

    async def close(self) -> None:
        """Stop every engine and free its memory."""
        self.stop_admitting()
        if self._loading is not None and not self._loading.done():
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
        for model in self.models:
            if model.engine is not None:
                await model.engine.close()
