"""`TransformersBackend`: the seam in front of `GenerationLoop`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from glm4.backends.base import BackendInfo, ExecutionInfo, ModelFiles
from glm4.backends.table import BACKENDS
from glm4.backends.transformers.device import (
    TORCH_DTYPES,
    choose_device,
    choose_dtype,
    free_memory,
    memory_errors,
    release_memory,
)
from glm4.backends.transformers.loop import GenerationLoop
from glm4.backends.transformers.lora import AdapterHooks, AdapterLayout, DeviceAdapter, DevicePrefix
from glm4.backends.transformers.options import TransformersOptions
from glm4.backends.transformers.weights import Progress, load_model
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.engine.adapters import AdapterTable
from glm4.engine.protocol import AdapterInfo, EngineStats, GenerationOutput, GenerationRequest, check_request
from glm4.errors import InvalidRequestError, ModelClosedError, OutOfMemoryError
from glm4.model.config import ModelConfig
from glm4.model.tensors import num_parameters

# Of the memory that is free once the weights are there.
_CACHE_SHARE = 0.6


class TransformersBackend:
    """A model class of transformers, on one device.

    Args:
        model: a `…ForCausalLM` on `device`, in evaluation mode.
        layout: for adapters.
        banned_ids: vocabulary rows that have no token.
    """

    def __init__(
        self,
        model: Any,
        layout: AdapterLayout,
        device: torch.device,
        dtype: str,
        options: TransformersOptions,
        banned_ids: NDArray[np.int64],
    ) -> None:
        self._device = device
        self._dtype = TORCH_DTYPES[dtype]
        self._layout = layout
        self._num_banned = len(banned_ids)
        self._adapters = AdapterTable[DeviceAdapter | DevicePrefix](options.max_adapters, options.adapter_memory)
        cache_tokens, max_model_len = _cache_size(layout.config, self._dtype, device, options)
        self._loop: GenerationLoop | None = GenerationLoop(
            model,
            AdapterHooks(model, layout),
            device,
            max_model_len=max_model_len,
            max_num_seqs=options.max_num_seqs,
            max_step_tokens=options.max_num_batched_tokens,
            cache_tokens=cache_tokens,
            banned_ids=banned_ids,
        )
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self._info = BackendInfo(
            name="transformers",
            vocab_size=layout.config.vocab_size,
            max_model_len=max_model_len,
            max_num_seqs=options.max_num_seqs,
            capabilities=BACKENDS["transformers"].capabilities,
            execution=ExecutionInfo(
                dtype=dtype,
                kv_cache_dtype=dtype,
                kv_cache_tokens=cache_tokens,
                weight_bytes=sum(one.nbytes for one in model.parameters()),
                isa=f"torch {torch.__version__} on {device} {name}".rstrip(),
                num_threads=torch.get_num_threads(),
            ),
        )

    @classmethod
    def load(
        cls, files: ModelFiles, options: TransformersOptions, progress: Progress | None = None
    ) -> TransformersBackend:
        """Load a checkpoint's weights onto the device.

        Raises:
            InvalidRequestError: the device is not there; or the model sees pictures, or is packed.
            OutOfMemoryError: the weights or one sequence do not fit.
            CheckpointError: the files cannot be used.
        """
        device = choose_device(options.device)
        with open_checkpoint(files.path, variant=files.variant) as checkpoint:
            dtype = choose_dtype(options.dtype, device, num_parameters(checkpoint.config))
            layout = AdapterLayout.of(checkpoint)
            if options.num_threads is not None:
                torch.set_num_threads(options.num_threads)
            with memory_errors("the model", device), torch.inference_mode():
                model = load_model(checkpoint, device, dtype, progress)
            return cls(model, layout, device, dtype, options, files.banned_ids)

    @property
    def info(self) -> BackendInfo:
        """What this backend can do."""
        return self._info

    @property
    def _open(self) -> GenerationLoop:
        if self._loop is None:
            raise ModelClosedError
        return self._loop

    def add_request(self, request: GenerationRequest) -> None:
        """Queue a request.

        Raises:
            PromptTooLongError: no room for the prompt plus one new token.
            InvalidRequestError: empty prompt, an id outside the vocabulary, a request id in use, an unknown adapter, or
                media.
        """
        loop = self._open
        if request.request_id in loop:
            raise InvalidRequestError(f"request id {request.request_id!r} is in use", param="request_id")
        adapter = None if request.adapter is None else self._adapters.get(request.adapter)
        num_virtual = 0 if adapter is None else adapter.num_virtual_tokens
        check_request(request, self._info.vocab_size, self._info.max_model_len, self._num_banned, num_virtual)
        if request.prompt.spans:
            raise InvalidRequestError("the transformers backend has no pictures or sounds", param="messages")
        loop.add(request, adapter)

    def abort(self, request_id: str) -> None:
        """Drop a request."""
        if self._loop is not None:
            self._loop.abort(request_id)

    def step(self) -> list[GenerationOutput]:
        """A pass over the decoding sequences and over parts of prompts."""
        return self._open.step()

    def wake(self) -> None:
        """Do nothing: a step never waits."""

    def has_unfinished_requests(self) -> bool:
        """True while `step` has work to do."""
        return self._loop is not None and self._loop.has_unfinished_requests()

    def load_adapter(self, name: str, path: str) -> AdapterInfo:
        """Read a PEFT adapter and make it available; see `AdapterLayout.read` for what is accepted."""
        if self._loop is None:
            raise ModelClosedError
        room = min(self._adapters.room_for(name), free_memory(self._device))
        with memory_errors(f"the adapter {name!r}", self._device):
            adapter = self._layout.read(
                Path(path), self._device, self._dtype, max_nbytes=room, max_model_len=self._info.max_model_len
            )
        self._adapters.add(name, adapter)
        return _adapter_info(name, adapter)

    def unload_adapter(self, name: str) -> None:
        """Refuse new requests that name it; queued and running ones finish."""
        if self._loop is None:
            raise ModelClosedError
        self._adapters.remove(name)

    def adapters(self) -> list[AdapterInfo]:
        """The adapters that requests may name."""
        if self._loop is None:
            raise ModelClosedError
        return [_adapter_info(name, adapter) for name, adapter in self._adapters.items()]

    def stats(self) -> EngineStats:
        """The loop's counters."""
        return self._open.stats()

    def close(self) -> None:
        """Drop running requests, weights, adapters and the cache."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        del loop
        self._adapters = AdapterTable(0, 0)
        release_memory(self._device)


def _adapter_info(name: str, adapter: DeviceAdapter | DevicePrefix) -> AdapterInfo:
    kind: Literal["lora", "prefix"] = "prefix" if isinstance(adapter, DevicePrefix) else "lora"
    return AdapterInfo(name, adapter.path, adapter.rank, adapter.nbytes, kind, adapter.num_virtual_tokens)


def _cache_size(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, options: TransformersOptions
) -> tuple[int, int]:
    """Tokens that the cache may hold, and the longest sequence.

    Raises:
        InvalidRequestError: the model's context is shorter than the one asked for.
        OutOfMemoryError: that many tokens do not fit.
    """
    nbytes = 2 * config.num_hidden_layers * config.key_value_size * dtype.itemsize
    room = options.kv_cache_memory or int(_CACHE_SHARE * free_memory(device))
    wanted = options.max_model_len
    longest = config.max_position_embeddings
    if wanted is not None and wanted > longest:
        raise InvalidRequestError(
            f"max_model_len {wanted} is more than the model's context of {longest} tokens", param="max_model_len"
        )
    fitting = room // nbytes
    if fitting < (wanted or 1):
        raise OutOfMemoryError(
            f"a cache of {wanted or 1} tokens needs {(wanted or 1) * nbytes / 1e9:.2f} GB and {room / 1e9:.2f} GB are "
            "left for it; ask for a smaller context (max_model_len, `--context`)"
        )
    longest = min(wanted or longest, fitting)
    return min(fitting, options.max_num_seqs * (longest + 1)), longest
