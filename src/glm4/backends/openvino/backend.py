"""`OpenVINOBackend`: openvino-genai's continuous batching over ids, without its tokenizer.

What that runtime ignores or misreads is checked here: ids outside the vocabulary, stop ids beside `ignore_eos`, prompts
longer than the cache. Rows of the vocabulary without a token are excluded by the exported model itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

from glm4.backends.base import BackendInfo, ModelFiles, sample_seed
from glm4.backends.openvino.opening import Opened, open_pipeline
from glm4.backends.openvino.options import OpenVINOOptions
from glm4.backends.table import BACKENDS
from glm4.engine.protocol import AdapterInfo, EngineStats, GenerationOutput, GenerationRequest, check_request
from glm4.errors import InvalidRequestError, ModelClosedError
from glm4.hub.store import Progress

_ADAPTERS = "the openvino backend has no adapters: OpenVINO ignores them where requests are batched"
_NOT_AN_ID = (1 << 31) - 1  # beyond every vocabulary; none below 0 is allowed as a stop id


@dataclass(frozen=True)
class _Sequence:
    """A request in the pipeline, and the ids that end it."""

    request_id: str
    handle: Any
    stop_ids: frozenset[int]


class OpenVINOBackend:
    """A `ContinuousBatchingPipeline` behind the backend interface."""

    def __init__(self, opened: Opened, options: OpenVINOOptions, vocab_size: int) -> None:
        self._pipeline: Any = opened.pipeline
        self._options = options
        self._sequences: dict[str, _Sequence] = {}
        self._count = 0
        self._info = BackendInfo(
            name="openvino",
            vocab_size=vocab_size,
            max_model_len=opened.max_model_len,
            max_num_seqs=options.max_num_seqs,
            capabilities=BACKENDS["openvino"].capabilities,
        )

    @classmethod
    def load(cls, files: ModelFiles, options: OpenVINOOptions, progress: Progress | None = None) -> OpenVINOBackend:
        """Open an exported folder; see `open_pipeline` for the errors."""
        if progress is not None:
            progress("loading", 0, 0)
        return cls(open_pipeline(files, options), options, files.vocab_size)

    @property
    def info(self) -> BackendInfo:
        """The model's limits and what requests may ask for."""
        return self._info

    def add_request(self, request: GenerationRequest) -> None:
        """Queue a request.

        Raises:
            InvalidRequestError: see `check_request`; or the id is in use, or it names an adapter or a cache salt.
        """
        self._check_open()
        check_request(request, self._info.vocab_size, self._info.max_model_len)
        if request.adapter is not None:
            raise InvalidRequestError(_ADAPTERS, param="model")
        if request.request_id in self._sequences:
            raise InvalidRequestError(f"request id {request.request_id!r} is in use", param="request_id")
        if request.cache_salt and self._options.enable_prefix_caching:
            raise InvalidRequestError(
                "OpenVINO shares the cache of equal prefixes among all requests; load the model without "
                "enable_prefix_caching for requests with a cache_salt",
                param="cache_salt",
            )
        config, stop_ids = _generation_config(request, self._info.max_model_len)
        ids = ov.Tensor(np.array([request.prompt_ids], np.int64))
        handle = self._pipeline.add_request(self._count, ids, config)
        self._count += 1
        self._sequences[request.request_id] = _Sequence(request.request_id, handle, stop_ids)

    def abort(self, request_id: str) -> None:
        """Drop a request; the pipeline frees its blocks with its next step."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is not None:
            sequence.handle.cancel()

    def step(self) -> list[GenerationOutput]:
        """Run one forward pass."""
        self._check_open()
        if not self._sequences:
            return []
        self._pipeline.step()
        return [output for sequence in list(self._sequences.values()) for output in self._read(sequence)]

    def _read(self, sequence: _Sequence) -> list[GenerationOutput]:
        ids: list[int] = []
        while sequence.handle.can_read():
            for part in sequence.handle.read().values():
                ids += part.generated_ids
        ended = sequence.handle.get_status() != genai.GenerationStatus.RUNNING
        if not ids and not ended:
            return []
        stop = ids[-1] if ids and ids[-1] in sequence.stop_ids else None
        reason = "stop" if stop is not None else "length" if ended else None
        if ended:
            del self._sequences[sequence.request_id]
        return [GenerationOutput(sequence.request_id, tuple(ids), reason, stop)]

    def wake(self) -> None:
        """Do nothing: a step never waits."""

    def has_unfinished_requests(self) -> bool:
        """True while an answer is unfinished."""
        return bool(self._sequences)

    def load_adapter(self, name: str, path: str) -> AdapterInfo:
        """Refused."""
        self._check_open()
        raise InvalidRequestError(_ADAPTERS, param="name")

    def unload_adapter(self, name: str) -> None:
        """Refused."""
        self._check_open()
        raise InvalidRequestError(_ADAPTERS, param="name")

    def adapters(self) -> list[AdapterInfo]:
        """None."""
        self._check_open()
        return []

    def stats(self) -> EngineStats:
        """Requests that run and that wait."""
        self._check_open()
        count = len(self._sequences)
        running = min(count, self._options.max_num_seqs)
        return EngineStats(num_running=running, num_waiting=count - running)

    def close(self) -> None:
        """Free the model and its cache."""
        for sequence in self._sequences.values():
            sequence.handle.cancel()
        self._sequences.clear()
        self._pipeline = None

    def _check_open(self) -> None:
        if self._pipeline is None:
            raise ModelClosedError


def _generation_config(request: GenerationRequest, max_model_len: int) -> tuple[Any, frozenset[int]]:
    """The pipeline's options, and the ids that end the answer."""
    params = request.params
    stop_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else request.stop_ids)
    config = genai.GenerationConfig()
    config.apply_chat_template = False
    # Where there is none, the pipeline would take the folder's.
    config.stop_token_ids = set(stop_ids) or {_NOT_AN_ID}
    config.eos_token_id = min(config.stop_token_ids)
    room = max_model_len - len(request.prompt)
    config.max_new_tokens = room if params.max_tokens is None else min(room, params.max_tokens)
    config.min_new_tokens = params.min_tokens if stop_ids else 0  # it sets the logits of these ids
    config.repetition_penalty = params.repetition_penalty
    config.presence_penalty = params.presence_penalty
    config.frequency_penalty = params.frequency_penalty
    config.do_sample = not params.greedy
    if config.do_sample:
        config.temperature = params.temperature
        if params.top_p == 0 or params.min_p == 1:  # the pipeline has no such values
            config.top_k = 1
        else:
            config.top_p, config.min_p = params.top_p, params.min_p
            if params.top_k > 0:
                config.top_k = params.top_k
        seed = int.from_bytes(os.urandom(8), "little") if params.seed is None else params.seed
        config.rng_seed = sample_seed(seed, request.sample_index)
    return config, stop_ids
