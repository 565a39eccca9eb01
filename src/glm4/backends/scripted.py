"""The `scripted` backend: answers from a script. A fake backend for testing everything above the interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glm4.backends.base import BackendInfo, Capability
from glm4.engine.protocol import AdapterInfo, EngineStats, GenerationOutput, GenerationRequest, check_request
from glm4.errors import InvalidRequestError, ModelClosedError
from glm4.logprobs import TokenLogprobs

Script = Callable[[Sequence[int]], Sequence[int]]


@dataclass
class _Running:
    request: GenerationRequest
    answer: Sequence[int]
    sent: int = 0


class ScriptedBackend:
    """Answers each request with `script(prompt_ids)`, one token per step, all requests concurrently.

    Stop ids, `max_tokens`, `ignore_eos` and abort behave as in the real engine; an exhausted script ends with "stop".
    Any adapter can be loaded from any path and has no effect. An embedding counts the prompt's ids modulo 8.
    Log-probabilities are made up, from the token's id alone.

    Args:
        capabilities: what requests may ask for; none of them changes the script's answer.
    """

    def __init__(
        self,
        script: Script,
        *,
        vocab_size: int = 151552,
        max_model_len: int = 4096,
        max_num_seqs: int = 8,
        capabilities: frozenset[Capability] = frozenset(Capability),
    ) -> None:
        self._script = script
        self._running: dict[str, _Running] = {}
        self._closed = False
        self._adapters: dict[str, AdapterInfo] = {}
        self._info = BackendInfo("scripted", vocab_size, max_model_len, max_num_seqs, capabilities)

    @property
    def info(self) -> BackendInfo:
        """The limits given to the constructor."""
        return self._info

    def add_request(self, request: GenerationRequest) -> None:
        """Get this request's answer from the script."""
        self._check_open()
        if request.request_id in self._running:
            raise InvalidRequestError(f"request id {request.request_id!r} is in use", param="request_id")
        if request.adapter is not None and request.adapter not in self._adapters:
            raise InvalidRequestError(f"there is no adapter {request.adapter!r}; load it first", param="model")
        check_request(request, self._info.vocab_size, self._info.max_model_len)
        self._running[request.request_id] = _Running(request, self._script(request.prompt_ids))

    def abort(self, request_id: str) -> None:
        """Drop a request."""
        self._running.pop(request_id, None)

    def step(self) -> list[GenerationOutput]:
        """Emit one more token of every running answer."""
        self._check_open()
        outputs = []
        for running in list(self._running.values())[: self._info.max_num_seqs]:
            output = self._advance(running)
            if output.finish_reason is not None:
                del self._running[output.request_id]
            outputs.append(output)
        return outputs

    def _advance(self, running: _Running) -> GenerationOutput:
        request, params = running.request, running.request.params
        if request.pooling is not None:
            return GenerationOutput(request.request_id, finish_reason="stop", embedding=_counts(request.prompt_ids))
        prompt_logprobs = None
        if params.prompt_logprobs is not None and not running.sent:
            scored = [self._logprobs(token, params.prompt_logprobs) for token in request.prompt_ids[1:]]
            prompt_logprobs = (None, *scored)
        if running.sent >= len(running.answer):
            return GenerationOutput(request.request_id, finish_reason="stop", prompt_logprobs=prompt_logprobs)
        token = running.answer[running.sent]
        running.sent += 1
        logprobs = () if params.logprobs is None else (self._logprobs(token, params.logprobs),)
        room = self._info.max_model_len - len(request.prompt_ids)
        limit = room if params.max_tokens is None else min(room, params.max_tokens)
        if token in params.stop_token_ids or (token in request.stop_ids and not params.ignore_eos):
            return GenerationOutput(request.request_id, (token,), "stop", token, logprobs, prompt_logprobs)
        reason = "length" if running.sent >= limit else None
        return GenerationOutput(request.request_id, (token,), reason, None, logprobs, prompt_logprobs)

    def _logprobs(self, token: int, count: int) -> TokenLogprobs:
        """The token is second to the one before it; they and those after it are equally far apart."""
        ids = [(token + at) % self._info.vocab_size for at in range(-1, count - 1)]
        return TokenLogprobs(token, -1.0, 2, tuple((one, -0.5 - 0.5 * at) for at, one in enumerate(ids)))

    def wake(self) -> None:
        """Do nothing: a step never waits."""

    def has_unfinished_requests(self) -> bool:
        """True while an answer is unfinished."""
        return bool(self._running)

    def load_adapter(self, name: str, path: str) -> AdapterInfo:
        """Remember the name."""
        self._check_open()
        if name in self._adapters:
            raise InvalidRequestError(f"an adapter {name!r} is loaded already; unload it first", param="name")
        return self._adapters.setdefault(name, AdapterInfo(name, path, 0, 0))

    def unload_adapter(self, name: str) -> None:
        """Forget the name."""
        self._check_open()
        if self._adapters.pop(name, None) is None:
            raise InvalidRequestError(f"there is no adapter {name!r}; load it first", param="model")

    def adapters(self) -> list[AdapterInfo]:
        """The names that were loaded."""
        self._check_open()
        return list(self._adapters.values())

    def stats(self) -> EngineStats:
        """How many answers are running and how many wait; the other counters do not apply."""
        self._check_open()
        requests = [running.request for running in list(self._running.values())]
        limit = self._info.max_num_seqs
        running, waiting = ({r.adapter for r in part if r.adapter} for part in (requests[:limit], requests[limit:]))
        return EngineStats(
            num_running=len(requests[:limit]),
            num_waiting=len(requests[limit:]),
            running_adapters=tuple(sorted(running)),
            waiting_adapters=tuple(sorted(waiting - running)),
        )

    def close(self) -> None:
        """Forget everything."""
        self._closed = True
        self._running.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise ModelClosedError


def _counts(ids: Sequence[int]) -> NDArray[np.float32]:
    counts = np.bincount(np.asarray(ids) % 8, minlength=8).astype(np.float32)
    return np.asarray(counts / np.linalg.norm(counts), np.float32)
