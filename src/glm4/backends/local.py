"""The `local` backend: our own engine on this machine's CPU."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glm4.backends.base import BackendInfo, Capability, ExecutionInfo
from glm4.backends.option_checks import check_numbers
from glm4.backends.table import BACKENDS
from glm4.engine.engine import Engine
from glm4.engine.protocol import AdapterInfo, EngineStats, GenerationOutput, GenerationRequest
from glm4.engine.scheduler import SchedulerConfig
from glm4.errors import InvalidRequestError, ModelClosedError, OutOfMemoryError
from glm4.kernels import get_kernels
from glm4.kernels.base import Kernels
from glm4.loading.kv_folder import PageFolder
from glm4.loading.kv_store import KVStore, check_store_dtype
from glm4.loading.memory_estimate import Wanted, cache_size, choose_precision
from glm4.loading.source_identity import source_identity
from glm4.loading.weights import CanonicalTensors, Progress, load_model, random_model
from glm4.model.config import ModelConfig
from glm4.model.kv_cache import PAGE_SIZE, KVCache, check_kv_dtype, page_nbytes
from glm4.model.precision import Precision, packed_dtype
from glm4.model.prefix import Adapter, PrefixAdapter
from glm4.model.transformer import Transformer
from glm4.system.memory import Room, available_memory, return_free_memory


@dataclass(frozen=True)
class LocalOptions:
    """How to run a model in this process.

    Attributes:
        dtype: weight precision, one of `model.precision.DTYPES`.
        max_model_len: prompt + output of one sequence; None means as much as the model and memory allow.
        max_num_seqs: sequences that run at once.
        max_num_batched_tokens: rows of one forward pass.
        kv_cache_dtype: "auto" (fp32 with fp32 weights, else fp16), "fp32", "fp16" or "int8".
        kv_cache_memory: bytes for the KV cache; None means what `max_num_seqs` full sequences need, up to 60 % of
            free memory.
        num_threads: None means one per core this process may use, within its container's CPU limit.
        kernels: "auto", "native" or "reference".
        enable_prefix_caching: keep the pages of finished requests and share them with later ones.
        speculation: draft repeated text ahead (same answers, fewer steps).
        max_adapters: adapters that may be loaded at once.
        adapter_memory: bytes they may take in total.
        picture_cache_memory: bytes of what the vision tower made of pictures, kept so that another question about one
            does not need it; 0 keeps none. A picture of GLM-4V-9B takes 26 MB.
        kv_store: folder that keeps the KV cache of long prompts, so that another question about the same text begins at
            once, also after a restart; any number of processes may share it. None keeps it in memory only.
        kv_store_bytes: what may lie there; the least recently used goes first.
        kv_store_dtype: "int8" rounds what is kept, unless `kv_cache_dtype` is int8; "native" keeps every bit.
        kv_store_min: tokens of the shortest prompt that is kept.
    """

    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 512
    kv_cache_dtype: str = "auto"
    kv_cache_memory: int | None = None
    num_threads: int | None = None
    kernels: str = "auto"
    enable_prefix_caching: bool = True
    speculation: bool = True
    max_adapters: int = 16
    adapter_memory: int = 2 << 30
    picture_cache_memory: int = 256 << 20
    kv_store: str | os.PathLike[str] | None = None
    kv_store_bytes: int = 10_000_000_000
    kv_store_dtype: str = "int8"
    kv_store_min: int = 512

    def __post_init__(self) -> None:
        check_numbers(self)
        check_kv_dtype(self.kv_cache_dtype, "kv_cache_dtype")
        check_store_dtype(self.kv_store_dtype)
        if self.kv_store is not None and not self.enable_prefix_caching:
            raise InvalidRequestError("kv_store needs enable_prefix_caching", param="kv_store")

    @property
    def wanted(self) -> Wanted:
        """What the memory estimate needs to know."""
        return Wanted(
            self.dtype,
            self.kv_cache_dtype,
            self.max_model_len,
            rows=self.max_num_batched_tokens,
            cache_nbytes=self.kv_cache_memory,
            picture_cache_nbytes=self.picture_cache_memory,
        )


class LocalBackend:
    """`Engine` behind the backend interface."""

    def __init__(
        self,
        model: Transformer,
        options: LocalOptions,
        chosen: _Chosen,
        banned_ids: NDArray[np.int64],
        model_type: str = "glm",
        place: _StorePlace | None = None,
    ) -> None:
        precision, kv_dtype, num_pages, max_model_len = chosen
        scheduler = SchedulerConfig(options.max_num_seqs, options.max_num_batched_tokens)
        if not options.speculation:
            scheduler = replace(scheduler, max_speculative_rows=0)
        cache = _kv_cache(model.config, num_pages, kv_dtype)
        self._store = None
        if place is not None:
            facts = [place.source, precision, model.kernels.isa(), repr(model.config)]
            rounds = options.kv_store_dtype == "int8"
            self._store = KVStore(cache, place.folder, facts, round_pages=rounds, min_tokens=options.kv_store_min)
        self._engine: Engine | None = Engine(
            model,
            cache,
            max_model_len,
            scheduler,
            banned_ids,
            options.enable_prefix_caching,
            options.max_adapters,
            options.adapter_memory,
            options.picture_cache_memory,
            self._store,
        )
        self._model_type = model_type
        self._adapter_format = "fp32" if precision == "fp32" else "bf16"
        self.execution = ExecutionInfo(
            dtype=precision,
            kv_cache_dtype=kv_dtype,
            kv_cache_tokens=num_pages * PAGE_SIZE,
            weight_bytes=model.weights.nbytes,
            isa=model.kernels.isa(),
            num_threads=model.kernels.num_threads(),
        )
        capabilities = BACKENDS["local"].capabilities
        self._info = BackendInfo(
            name="local",
            vocab_size=model.config.vocab_size,
            max_model_len=max_model_len,
            max_num_seqs=options.max_num_seqs,
            capabilities=capabilities if model.vision is not None else capabilities - {Capability.MEDIA},
            execution=self.execution,
        )

    @classmethod
    def load(
        cls,
        checkpoint: CanonicalTensors,
        options: LocalOptions,
        banned_ids: NDArray[np.int64],
        progress: Progress | None = None,
        source: Path | None = None,
    ) -> LocalBackend:
        """Load a checkpoint's weights and reserve the KV cache.

        Args:
            source: what the checkpoint was opened or made from, which a KV store needs to know.

        Raises:
            InvalidRequestError: the checkpoint is packed in another dtype than the requested one; or dtype is "stored"
                and the checkpoint has no 4-bit tensors.
        """
        place = _store_place(options, source)
        packed = checkpoint.packed
        if packed is not None:
            options = replace(options, dtype=packed_dtype(options.dtype, packed.precision))
        mapped = () if packed is None else (packed.precision.name,)
        precision, chosen = _choose(checkpoint.config, options, checkpoint.stored_precision, mapped)
        model = load_model(checkpoint, precision, _kernels(options), progress)
        if not mapped:
            return_free_memory()  # slabs that were read and packed: up to 100 MB
        return cls(model, options, chosen, banned_ids, checkpoint.model_type, place)

    @classmethod
    def random(cls, config: ModelConfig, options: LocalOptions, seed: int = 0) -> LocalBackend:
        """A model with this configuration and random weights, for benchmarks."""
        place = _store_place(options, f"random {seed}")
        precision, chosen = _choose(config, options)
        model = random_model(config, precision, _kernels(options), seed)
        return cls(model, options, chosen, np.empty(0, np.int64), config.architecture, place)

    @property
    def info(self) -> BackendInfo:
        """What this backend can do."""
        return self._info

    @property
    def engine(self) -> Engine:
        """The engine.

        Raises:
            ModelClosedError: after `close`.
        """
        if self._engine is None:
            raise ModelClosedError
        return self._engine

    @property
    def model(self) -> Transformer:
        """The engine's model; see there."""
        return self.engine.model

    def add_request(self, request: GenerationRequest) -> None:
        """Queue a request; see `Engine.add_request` for the errors."""
        self.engine.add_request(request)

    def abort(self, request_id: str) -> None:
        """Drop a request and free its pages."""
        if self._engine is not None:
            self._engine.abort(request_id)

    def step(self) -> list[GenerationOutput]:
        """Run one forward pass."""
        return self.engine.step()

    def wake(self) -> None:
        """Do nothing: a step never waits."""

    def has_unfinished_requests(self) -> bool:
        """True while `step` has work to do."""
        return self._engine is not None and self._engine.has_unfinished_requests()

    def load_adapter(self, name: str, path: str) -> AdapterInfo:
        """Read a PEFT adapter and make it available; see `loading.adapters` for what is supported and the errors."""
        from glm4.loading.adapters import read_any_adapter  # few runs load one

        engine = self.engine
        table, kernels = engine.adapters, engine.model.kernels
        room = min(table.room_for(name), available_memory())
        config, layers = engine.model.config, engine.model.weights.layers
        adapter = read_any_adapter(
            Path(path), config, self._model_type, kernels, format=self._adapter_format, max_nbytes=room, layers=layers,
            max_model_len=engine.max_model_len,
        )  # fmt: skip
        if self._store is not None:
            _ = adapter.digest  # computed here, where nobody waits for a step
        table.add(name, adapter)
        return _adapter_info(name, adapter)

    def unload_adapter(self, name: str) -> None:
        """Refuse new requests that name it; queued and running ones finish."""
        self.engine.adapters.remove(name)

    def adapters(self) -> list[AdapterInfo]:
        """The adapters that requests may name."""
        return [_adapter_info(name, adapter) for name, adapter in self.engine.adapters.items()]

    def stats(self) -> EngineStats:
        """The engine's counters."""
        return self.engine.stats()

    def close(self) -> None:
        """Drop running requests, weights and KV cache, and end the kernels' threads."""
        engine, self._engine = self._engine, None
        if engine is None:
            return
        engine.close()
        if self._store is not None:
            self._store.close()
        kernels = engine.model.kernels
        del engine
        # The threads belong to the process: another model that is open starts new ones with its next call.
        kernels.set_num_threads(kernels.num_threads())
        return_free_memory()


def _adapter_info(name: str, adapter: Adapter) -> AdapterInfo:
    kind: Literal["lora", "prefix"] = "prefix" if isinstance(adapter, PrefixAdapter) else "lora"
    return AdapterInfo(name, adapter.path, adapter.rank, adapter.nbytes, kind, adapter.num_virtual_tokens)


def _kernels(options: LocalOptions) -> Kernels:
    kernels = get_kernels(options.kernels)
    if options.num_threads is not None:
        kernels.set_num_threads(options.num_threads)
    return kernels


class _Chosen(NamedTuple):
    """What fits, decided before any weight is read: names of precision and KV cache format, pages, longest sequence."""

    precision: str
    kv_dtype: str
    num_pages: int
    max_model_len: int


class _StorePlace(NamedTuple):
    """Where a model's pages are kept, and what identifies the model there."""

    folder: PageFolder
    source: object


def _store_place(options: LocalOptions, source: Path | str | None) -> _StorePlace | None:
    if options.kv_store is None:
        return None
    identity = source_identity(source) if isinstance(source, Path) else source
    if identity is None:
        raise ValueError("a KV store needs the source of the model, to tell it from others")
    return _StorePlace(PageFolder(Path(options.kv_store).expanduser(), options.kv_store_bytes), identity)


def _kv_cache(config: ModelConfig, num_pages: int, kv_dtype: str) -> KVCache:
    """The cache, for which the system may refuse address space that seemed to be free (`ulimit -v`)."""
    try:
        return KVCache(config, num_pages, kv_dtype)
    except MemoryError:
        need = num_pages * page_nbytes(config, kv_dtype)
        raise OutOfMemoryError(
            f"the system refuses {need / 1e9:.2f} GB for the KV cache of {num_pages * PAGE_SIZE} tokens; ask for a"
            " smaller context (max_model_len, `--context`)"
        ) from None


def _choose(
    config: ModelConfig, options: LocalOptions, stored: Precision | None = None, mapped: Collection[str] = ()
) -> tuple[Precision, _Chosen]:
    """Resolve dtype and context, and refuse what will not fit."""
    room, wanted = Room.here(), options.wanted
    estimate = choose_precision(config, wanted, room, stored, mapped)
    sizes = cache_size(estimate, wanted, options.max_num_seqs, room)
    return estimate.precision, _Chosen(estimate.precision.name, estimate.kv_dtype, *sizes)
