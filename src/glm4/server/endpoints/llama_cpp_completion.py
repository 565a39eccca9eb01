"""POST /completion and /completions: llama.cpp's own completion, for programs written for its server.

Its prompts may mix texts and token ids, and its answers carry timings. Fields that only choose among llama.cpp's
further samplers are refused, as everywhere.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm4.api.fields import BOOLEAN, IDS, OPTIONS, STRING, Field, boolean, is_int, text
from glm4.api.openai.answers import finite, prompt_text, token_bytes
from glm4.api.openai.fields import read_fields
from glm4.engine.protocol import TokenLogprobs
from glm4.errors import InvalidRequestError
from glm4.outputs import RequestMetrics, RequestOutput, StreamChunk
from glm4.requests.input_processor import PreparedRequest
from glm4.sampling_params import SamplingParams
from glm4.server.generation import Generation, prepare, whole_many
from glm4.server.registry import Target
from glm4.server.state import ServerState, server_state
from glm4.server.streaming import EventStream, event, until_disconnect
from glm4.tokenizer import Tokenizer

MAX_PROMPTS = 1024


def _at_least(low: int, name: str, value: Any) -> int:
    if not is_int(value) or value < low:
        raise InvalidRequestError(f"{name} must be a whole number of at least {low}", param=name)
    return int(value)


def _strings(name: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise InvalidRequestError(f"{name} must be a list of strings", param=name)
    return value


def _bias(name: str, value: Any) -> list[tuple[int | str, float]]:
    """Pairs of a token (its id or a text) and its bias; false is "never"."""
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    read: list[tuple[int | str, float]] = []
    for pair in pairs if isinstance(pairs, list) else [None]:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not (is_int(pair[0]) or isinstance(pair[0], str)):
            raise InvalidRequestError(f"{name} must be a list of [token, bias] pairs, or an object", param=name)
        token, bias = pair
        if isinstance(value, Mapping) and token.isascii() and token.isdigit():
            token = int(token)
        if bias is not False and (isinstance(bias, bool) or not isinstance(bias, (int, float))):
            raise InvalidRequestError(f"{name} has a bias that is no number: {bias!r}", param=name)
        read.append((token, -100.0 if bias is False else bias))  # its range is checked with the other options
    return read


_INTEGER: Mapping[str, Any] = {"type": "integer"}
_SAME = ("temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty", "ignore_eos", "stop")
NATIVE_FIELDS: Mapping[str, Field] = {
    **{name: OPTIONS[name] for name in _SAME},
    "model": Field(STRING, text),
    "prompt": Field({"anyOf": [STRING, IDS, {"type": "array"}, {"type": "object"}]}, lambda name, value: value),
    "n_predict": Field({"type": "integer", "minimum": -1}, partial(_at_least, -1)),
    "max_tokens": Field({"type": "integer", "minimum": -1}, partial(_at_least, -1)),
    "repeat_penalty": Field({"type": "number"}, OPTIONS["repetition_penalty"].read),
    "seed": Field(_INTEGER, partial(_at_least, -1)),
    "logit_bias": Field({"anyOf": [{"type": "array"}, {"type": "object"}]}, _bias),
    "n_probs": Field({"type": "integer", "minimum": 0}, partial(_at_least, 0)),
    "stream": Field(BOOLEAN, boolean),
    "return_tokens": Field(BOOLEAN, boolean),
    "response_fields": Field({"type": "array", "items": STRING}, _strings),
    # How to compute, not what: a cached prefix gives the same bits here, and any place in the batch the same answer.
    "cache_prompt": Field(BOOLEAN, boolean),
    "id_slot": Field({"type": "integer", "minimum": -1}, partial(_at_least, -1)),
}
"""Fields of llama.cpp's /completion that are done here."""


@dataclass(frozen=True)
class _Call:
    """One request: its prompts, still as they came, and what the response is to hold."""

    given: Mapping[str, Any]
    prompts: list[Any]
    several: bool
    params: SamplingParams

    @property
    def return_tokens(self) -> bool:
        return bool(self.given.get("return_tokens"))


async def completion(request: Request) -> Response:
    """Continue one prompt, or a list of them."""
    state = server_state(request)
    body = await state.read(request)
    target = state.target(body)
    given = read_fields(body, NATIVE_FIELDS)
    prompts, several = _prompts(given.get("prompt"))
    call = _Call(given, prompts, several, _params(given, target))
    if several and given.get("stream"):
        raise InvalidRequestError("one prompt at a time can be streamed", param="stream")
    return await until_disconnect(request, _answer(state, target, call))


async def _answer(state: ServerState, target: Target, call: _Call) -> Response:
    def prepare_all() -> list[PreparedRequest]:
        tokenizer = target.llm.tokenizer
        one = partial(target.llm.prepare_prompt, params=call.params, adapter=target.adapter)
        return [one(_ids(prompt, tokenizer)) for prompt in call.prompts]

    batch = await prepare(prepare_all)
    if not call.given.get("stream"):
        outputs = await whole_many(state, target, batch)
        bodies = [_whole(target, call, index, output) for index, output in enumerate(outputs)]
        return JSONResponse(bodies if call.several else bodies[0])
    generation = Generation(state, target, batch[0])
    await generation.start()
    return EventStream(
        _events(generation, call),
        config=state.config,
        on_close=generation.close,
    )


async def _events(generation: Generation, call: _Call) -> AsyncGenerator[bytes, None]:
    target, evaluated = generation.target, len(generation.prepared.prompt_ids)
    count = 0
    async for chunk in generation.chunks():
        for piece in _pieces(target.llm.tokenizer, call, chunk):
            count += len(piece["tokens"])
            begun = {"index": 0, "stop": False, "id_slot": -1}
            yield event({**begun, **piece, "tokens_predicted": count, "tokens_evaluated": evaluated})
        if chunk.output is not None:
            yield event(_whole(target, call, 0, chunk.output, streamed=True))


def _pieces(tokenizer: Tokenizer, call: _Call, chunk: StreamChunk) -> list[dict[str, Any]]:
    """A chunk as llama.cpp would send it: with probabilities, one event a token."""
    if not chunk.token_ids:
        return [{"content": chunk.text, "tokens": []}] if chunk.text else []
    if not chunk.logprobs:
        return [{"content": chunk.text, "tokens": list(chunk.token_ids)}]
    pieces: list[dict[str, Any]] = [
        {"content": "", "tokens": [at.token_id], "completion_probabilities": [_probabilities(at, tokenizer)]}
        for at in chunk.logprobs
    ]
    pieces[-1]["content"] = chunk.text
    return pieces


def _whole(target: Target, call: _Call, index: int, output: RequestOutput, *, streamed: bool = False) -> dict[str, Any]:
    """The response to one prompt; of a stream, its last event, which repeats no text."""
    (sample,) = output.outputs
    length = len(output.prompt_token_ids) + len(sample.token_ids)
    stop_word = sample.stop_reason if isinstance(sample.stop_reason, str) else ""
    kind = "word" if stop_word else {"length": "limit", "stop": "eos"}.get(sample.finish_reason, "none")
    body: dict[str, Any] = {
        "index": index,
        "content": "" if streamed else sample.text,
        "tokens": sample.token_ids if call.return_tokens and not streamed else [],
        "id_slot": -1,
        "stop": True,
        "model": target.name,
        "tokens_predicted": len(sample.token_ids),
        "tokens_evaluated": len(output.prompt_token_ids),
        "generation_settings": _settings(call, target),
        "prompt": prompt_text(None, output.prompt_token_ids, target.llm.tokenizer),
        "has_new_line": "\n" in sample.text,
        # Cut short for want of context, not because the caller wanted no more.
        "truncated": kind == "limit" and len(sample.token_ids) != call.params.max_tokens,
        "stop_type": kind,
        "stopping_word": stop_word,
        "tokens_cached": length,
        "timings": timings(output.metrics),
    }
    if sample.logprobs and not streamed:
        tokenizer = target.llm.tokenizer
        body["completion_probabilities"] = [_probabilities(at, tokenizer) for at in sample.logprobs]
    wanted = call.given.get("response_fields")
    return {path: _at(body, path) for path in wanted if _at(body, path) is not None} if wanted else body


def timings(metrics: RequestMetrics) -> dict[str, float]:
    """llama.cpp's timings of a finished request, in milliseconds; rates leave the first token out, as its own do."""
    end = metrics.finished_time or metrics.arrival_time
    first = metrics.first_token_time or end
    prompt_ms, predicted_ms = 1e3 * (first - metrics.arrival_time), 1e3 * (end - first)
    evaluated, predicted = metrics.num_prompt_tokens - metrics.num_cached_tokens, metrics.num_generated_tokens
    steps = max(predicted - 1, 0)
    return {
        "cache_n": metrics.num_cached_tokens,
        "prompt_n": evaluated,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_ms / evaluated if evaluated else 0.0,
        "prompt_per_second": 1e3 * evaluated / prompt_ms if prompt_ms else 0.0,
        "predicted_n": predicted,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": predicted_ms / steps if steps else 0.0,
        "predicted_per_second": 1e3 / predicted_ms * steps if steps and predicted_ms else 0.0,
    }


def _settings(call: _Call, target: Target) -> dict[str, Any]:
    params = call.params
    return {
        "n_predict": -1 if params.max_tokens is None else params.max_tokens,
        "seed": -1 if params.seed is None else params.seed,
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "repeat_penalty": params.repetition_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "ignore_eos": params.ignore_eos,
        "stop": list(params.stop_strings),
        "logit_bias": [{"token": token, "bias": bias} for token, bias in (params.logit_bias or {}).items()],
        "n_probs": params.logprobs or 0,
        "stream": bool(call.given.get("stream")),
        "n_ctx": target.llm.info.max_model_len,
    }


def _at(body: Mapping[str, Any], path: str) -> Any:
    value: Any = body
    for key in path.split("/"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _probabilities(at: TokenLogprobs, tokenizer: Tokenizer) -> dict[str, Any]:
    def entry(token: int, logprob: float) -> dict[str, Any]:
        raw = token_bytes(token, tokenizer)
        shown = raw.decode("utf-8", "replace")
        return {"id": token, "token": shown, "bytes": list(raw), "logprob": finite(logprob)}

    return {**entry(at.token_id, at.logprob), "top_logprobs": [entry(*one) for one in at.top]}


def _params(given: Mapping[str, Any], target: Target) -> SamplingParams:
    changes: dict[str, Any] = {name: given[name] for name in _SAME if name in given}
    names = {"repeat_penalty": "repetition_penalty", "seed": "seed"}
    changes |= {ours: given[theirs] for theirs, ours in names.items() if theirs in given}
    if changes.get("seed") == -1:
        changes["seed"] = None
    tokens = given.get("n_predict", given.get("max_tokens", -1))
    changes["max_tokens"] = None if tokens == -1 else tokens
    if given.get("n_probs"):
        changes["logprobs"] = given["n_probs"]
    if "logit_bias" in given:
        tokenizer = target.llm.tokenizer
        changes["logit_bias"] = {
            one: bias
            for token, bias in given["logit_bias"]
            for one in (tokenizer.encode(token) if isinstance(token, str) else [token])
        }
    return target.llm.default_sampling_params().replace(**changes)


def _prompts(value: Any) -> tuple[list[Any], bool]:
    """The prompts of a request, and whether they came as a list: a list with token ids in it is one prompt."""
    if not isinstance(value, list):
        return [value], False
    if any(is_int(one) for one in value):
        return [value], False
    if not 1 <= len(value) <= MAX_PROMPTS:
        raise InvalidRequestError(f"prompt must have 1 to {MAX_PROMPTS} entries", param="prompt")
    return value, len(value) > 1 or not isinstance(value[0], str)


def _ids(prompt: Any, tokenizer: Tokenizer) -> list[int]:
    """One prompt as ids: a text, ids, a list of both, or an object with `prompt_string`."""
    if isinstance(prompt, Mapping):
        if set(prompt) != {"prompt_string"}:
            raise InvalidRequestError("a prompt object has a prompt_string and nothing else here", param="prompt")
        prompt = prompt["prompt_string"]
    if isinstance(prompt, str) and prompt:
        return tokenizer.encode_prompt(prompt)
    if not isinstance(prompt, list) or not prompt or not all(is_int(one) or isinstance(one, str) for one in prompt):
        raise InvalidRequestError("prompt must be a text, token ids, or a list of such", param="prompt")
    head = [] if is_int(prompt[0]) else list(tokenizer.prefix_ids)
    return head + [id_ for one in prompt for id_ in ([one] if is_int(one) else tokenizer.encode(one))]
