"""The wire format: a `GenerationRequest` as a body for the token route or /v1/completions, and its chunks as tokens.

Names are vLLM's. Every option is sent explicitly, because servers take defaults from their model's files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from glm4.backends.base import sample_seed
from glm4.backends.remote.client import Server
from glm4.engine.protocol import GenerationRequest
from glm4.errors import RemoteError, RemoteUnavailableError
from glm4.logprobs import TokenLogprobs
from glm4.sampling_params import StructuredOutputs

GENERATE = "/inference/v1/generate"
COMPLETIONS = "/v1/completions"

_PREFIX = "token_id:"
_LEAST_TOP_P = 1e-9  # stands for 0, which vLLM does not take: only the most likely token is left
_FORMS = ("json", "json_object", "regex", "choice", "grammar")


@dataclass(frozen=True)
class Endpoint:
    """What we learned about a server when it was opened.

    Attributes:
        model: the name it serves our model under.
        adapters: names of the LoRA adapters it serves for that model.
        vocab_size, max_model_len: its limits, if known.
        path: the route that requests go to, `GENERATE` if the server has it.
        ids_in_logprobs: token ids arrive only as names in the log-probabilities.
        bias: logit_bias by id that keeps rows without a token from being sampled; empty if the server does that.
    """

    model: str
    adapters: tuple[str, ...]
    vocab_size: int
    max_model_len: int
    path: str
    ids_in_logprobs: bool
    bias: Mapping[str, float]

    @property
    def token_route(self) -> bool:
        """Prompts, answers and log-probabilities are all by id."""
        return self.path == GENERATE


def request_body(request: GenerationRequest, endpoint: Endpoint) -> dict[str, Any]:
    """The body for `endpoint.path`."""
    options, ids = _options(request, endpoint), list(request.prompt_ids)
    body: dict[str, Any] = {
        "model": request.adapter or endpoint.model,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.cache_salt:
        body["cache_salt"] = request.cache_salt
    if endpoint.token_route:
        return {**body, "token_ids": ids, "sampling_params": options}
    if "logprobs" in options:
        options["return_tokens_as_token_ids"] = True
    return {**body, "prompt": ids, "return_token_ids": True, **options}


def _options(request: GenerationRequest, endpoint: Endpoint) -> dict[str, Any]:
    params = request.params
    options: dict[str, Any] = {
        "max_tokens": token_limit(request, endpoint),
        "temperature": 0.0 if params.greedy else params.temperature,
        "top_p": params.top_p or _LEAST_TOP_P,
        "top_k": params.top_k if params.top_k > 0 else -1,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "min_tokens": params.min_tokens,
        "ignore_eos": params.ignore_eos,
        "stop_token_ids": sorted(end_ids(request)),
    }
    bias = {**{str(token): value for token, value in (params.logit_bias or {}).items()}, **endpoint.bias}
    if bias:
        options["logit_bias"] = bias
    if params.seed is not None:
        options["seed"] = _seed(params.seed, request.sample_index)
    if params.logprobs is not None or endpoint.ids_in_logprobs:
        options["logprobs"] = params.logprobs or 0
    if request.structured_outputs is not None:
        options["structured_outputs"] = _form(request.structured_outputs)
    return options


def token_limit(request: GenerationRequest, endpoint: Endpoint) -> int:
    """The maximum number of answer tokens."""
    room = endpoint.max_model_len - len(request.prompt_ids)
    return room if request.params.max_tokens is None else min(room, request.params.max_tokens)


def end_ids(request: GenerationRequest) -> frozenset[int]:
    """Ids that end the text: the model's own unless ignored, and the caller's."""
    own = frozenset() if request.params.ignore_eos else request.stop_ids
    return own | frozenset(request.params.stop_token_ids)


def _seed(seed: int, sample_index: int) -> int:
    """A signed 64-bit seed; it differs per sample, because the server sees each sample as a separate request."""
    value = sample_seed(seed, sample_index) if sample_index else seed % (1 << 64)
    return value - (1 << 64) if value >= 1 << 63 else value


def _form(outputs: StructuredOutputs) -> dict[str, Any]:
    given = {name: getattr(outputs, name) for name in _FORMS}
    return {
        name: list(value) if name == "choice" else value
        for name, value in given.items()
        if value is not None and value is not False
    }


@dataclass
class Piece:
    """Tokens that arrived, and how the text ended if it did; `cached`: prompt tokens that came from a cache."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    stop_token_id: int | None = None
    cached: int = 0

    def add(self, later: Piece) -> None:
        """Append the piece that came next."""
        self.token_ids += later.token_ids
        self.logprobs += later.logprobs
        if later.finish_reason is not None:
            self.finish_reason, self.stop_token_id = later.finish_reason, later.stop_token_id
        self.cached = max(self.cached, later.cached)


class CompletionReader:
    """Reads the chunks of one streamed completion.

    Attributes:
        finished: the end of the text was read; only its usage may still arrive.
        complete: the usage arrived too, or will not.
    """

    def __init__(self, request: GenerationRequest, endpoint: Endpoint, server: Server) -> None:
        self._endpoint = endpoint
        self._server = server
        self._wants_logprobs = request.params.logprobs is not None
        self._top = request.params.logprobs or 0
        self._ends = end_ids(request)
        self._left = token_limit(request, endpoint)
        self._held = Piece()  # a stop id, held until we know whether the text ends with it
        self.finished = self.complete = False

    def read(self, data: bytes) -> Piece | None:
        """The tokens one event brings; None if it brings none.

        Raises:
            RemoteError, InvalidRequestError: the event is an error, or does not belong in a completion.
        """
        if data == b"[DONE]":
            self.complete = True
            return None
        chunk = self._parsed(data)
        piece = Piece(cached=_cached(chunk))
        self.complete = self.finished and bool(chunk.get("usage"))
        for choice in chunk.get("choices") or ():
            piece.add(self._choice(choice))
        if piece.token_ids and not piece.finish_reason and piece.token_ids[-1] in self._ends:
            self._held = Piece([piece.token_ids.pop()], piece.logprobs[-1:])
            del piece.logprobs[len(piece.token_ids) :]
        return piece if piece.token_ids or piece.finish_reason or piece.cached else None

    def _parsed(self, data: bytes) -> Mapping[str, Any]:
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            raise self._nonsense("an event that is not JSON") from None
        if not isinstance(chunk, Mapping):
            raise self._nonsense("an event that is no object")
        if chunk.get("error"):
            raise self._server.refusal_event(chunk)
        return chunk

    def _choice(self, choice: Any) -> Piece:
        if not isinstance(choice, Mapping) or self.finished:
            raise self._nonsense("a choice that should not be there")
        logprobs = choice.get("logprobs")
        ids = _named_ids(logprobs) if self._endpoint.ids_in_logprobs else choice.get("token_ids")
        if ids is None and not choice.get("text"):
            ids = []
        if not isinstance(ids, list) or not all(
            type(token) is int and 0 <= token < self._endpoint.vocab_size for token in ids
        ):
            raise self._nonsense("text without its token ids, or ids outside the vocabulary")
        self._left -= len(ids)
        if self._left < 0:
            raise self._nonsense("more tokens than were asked for")
        held, self._held = self._held, Piece()
        held.add(Piece(list(ids), self._scores(ids, logprobs) if self._wants_logprobs else []))
        reason = choice.get("finish_reason")
        if reason is not None:
            self._end(held, reason, choice.get("stop_reason"))
        return held

    def _end(self, piece: Piece, reason: Any, stop_reason: Any) -> None:
        if reason not in ("stop", "length", "abort"):
            raise self._nonsense(f"an unknown finish_reason {self._server.printable(str(reason))!r}")
        self.finished = True
        last = piece.token_ids[-1] if piece.token_ids else None
        ended = reason == "stop" and last is not None and (last in self._ends or last == stop_reason)
        piece.finish_reason, piece.stop_token_id = reason, last if ended else None

    def _scores(self, ids: Sequence[int], logprobs: Any) -> list[TokenLogprobs]:
        try:
            if self._endpoint.token_route:
                entries = logprobs["content"] if ids else []
                if [entry["token_id"] for entry in entries] != list(ids):
                    raise ValueError
                return [self._scored_by_id(entry) for entry in entries]
            own: list[float] = [float(value) for value in logprobs["token_logprobs"]] if ids else []
            tops = (logprobs.get("top_logprobs") or [None] * len(ids)) if ids else []
            if len(own) != len(ids) or len(tops) != len(ids):
                raise ValueError
            return [self._score(*one) for one in zip(ids, own, tops, strict=True)]
        except (TypeError, KeyError, ValueError, AttributeError):
            form = "vLLM's" if self._endpoint.token_route else "OpenAI's"
            raise self._nonsense(f"log-probabilities in a form that is not {form}") from None

    def _scored_by_id(self, entry: Mapping[str, Any]) -> TokenLogprobs:
        top = [(int(one["token_id"]), float(one["logprob"])) for one in entry["top_logprobs"]]
        return self._ranked(int(entry["token_id"]), float(entry["logprob"]), top, entry.get("rank"))

    def _score(self, token: int, logprob: float, top: Mapping[str, float] | None) -> TokenLogprobs:
        return self._ranked(token, logprob, [(_id_of(name), float(value)) for name, value in (top or {}).items()])

    def _ranked(
        self, token: int, logprob: float, candidates: Sequence[tuple[int, float]], known: Any = None
    ) -> TokenLogprobs:
        """One position; `known`: the server's own rank, if it gives one."""
        named = [one for one in candidates if str(one[0]) not in self._endpoint.bias]  # the server cannot filter these
        likeliest = sorted(named, key=lambda one: -one[1])[: self._top]
        rank = next((place for place, one in enumerate(likeliest, 1) if one[0] == token), None)
        if type(known) is int and not self._endpoint.bias:  # otherwise it counts what we leave out
            rank = known
        return TokenLogprobs(token, logprob, rank, tuple(likeliest))

    def check_finished(self) -> None:
        """Raise RemoteUnavailableError if the stream ended before the text did."""
        if not self.finished:
            raise RemoteUnavailableError(f"{self._server.name} hung up in the middle of an answer")

    def _nonsense(self, what: str) -> RemoteError:
        return RemoteError(f"{self._server.name} sent {what}")


def _id_of(name: str) -> int:
    """The id in a `token_id:N` name. Raises ValueError for anything else."""
    if not name.startswith(_PREFIX):
        raise ValueError(name)
    return int(name.removeprefix(_PREFIX))


def _named_ids(logprobs: Any) -> list[int] | None:
    """The ids that appear as names in the log-probabilities; None if there are none."""
    try:
        return [_id_of(name) for name in logprobs["tokens"]]
    except (TypeError, KeyError, ValueError, AttributeError):
        return None


def _cached(chunk: Mapping[str, Any]) -> int:
    try:
        count = chunk["usage"]["prompt_tokens_details"]["cached_tokens"]
    except (KeyError, TypeError):
        return 0
    return count if type(count) is int and count > 0 else 0
