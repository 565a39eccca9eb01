"""Writing llama.cpp completion responses, whole or as stream events, with timings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from glm4.api.llama_cpp.request import SAME_NAMES, LlamaCppRequest
from glm4.api.openai.answers import prompt_text
from glm4.api.openai.text_logprobs import finite, token_bytes
from glm4.logprobs import TokenLogprobs
from glm4.outputs import RequestMetrics, RequestOutput, StreamChunk
from glm4.tokenizer import Tokenizer


@dataclass
class LlamaCppWriter:
    """Writes the answers to one request.

    Attributes:
        model: the model name the client used.
        n_ctx: the model's context length in tokens.
    """

    request: LlamaCppRequest
    model: str
    tokenizer: Tokenizer
    n_ctx: int
    _streamed_tokens: int = 0

    def events(self, chunk: StreamChunk, num_prompt_tokens: int) -> Iterator[dict[str, Any]]:
        """The stream events for a chunk; the last event repeats everything except the text."""
        for piece in self._pieces(chunk):
            self._streamed_tokens += len(piece["tokens"])
            begun = {"index": 0, "stop": False, "id_slot": -1}
            counts = {"tokens_predicted": self._streamed_tokens, "tokens_evaluated": num_prompt_tokens}
            yield {**begun, **piece, **counts}
        if chunk.output is not None:
            yield self.whole(0, chunk.output, streamed=True)

    def _pieces(self, chunk: StreamChunk) -> list[dict[str, Any]]:
        """A chunk as llama.cpp would send it: one event per token if probabilities were requested."""
        if not chunk.token_ids:
            return [{"content": chunk.text, "tokens": []}] if chunk.text else []
        if not chunk.logprobs:
            return [{"content": chunk.text, "tokens": list(chunk.token_ids)}]
        pieces: list[dict[str, Any]] = [
            {"content": "", "tokens": [at.token_id], "completion_probabilities": [self._probabilities(at)]}
            for at in chunk.logprobs
        ]
        pieces[-1]["content"] = chunk.text
        return pieces

    def whole(self, index: int, output: RequestOutput, *, streamed: bool = False) -> dict[str, Any]:
        """The answer to one prompt; in a stream, its last event, which does not repeat the text."""
        (sample,) = output.outputs
        stop_word = sample.stop_reason if isinstance(sample.stop_reason, str) else ""
        kind = "word" if stop_word else {"length": "limit", "stop": "eos"}.get(sample.finish_reason, "none")
        body: dict[str, Any] = {
            "index": index,
            "content": "" if streamed else sample.text,
            "tokens": sample.token_ids if self.request.return_tokens and not streamed else [],
            "id_slot": -1,
            "stop": True,
            "model": self.model,
            "tokens_predicted": len(sample.token_ids),
            "tokens_evaluated": len(output.prompt_token_ids),
            "generation_settings": self._settings(),
            "prompt": prompt_text(None, output.prompt_token_ids, self.tokenizer),
            "has_new_line": "\n" in sample.text,
            # Cut short by the context length, not by the caller's limit.
            "truncated": kind == "limit" and len(sample.token_ids) != self.request.params.max_tokens,
            "stop_type": kind,
            "stopping_word": stop_word,
            "tokens_cached": len(output.prompt_token_ids) + len(sample.token_ids),
            "timings": _timings(output.metrics),
        }
        if sample.logprobs and not streamed:
            body["completion_probabilities"] = [self._probabilities(at) for at in sample.logprobs]
        wanted = {path: _at(body, path) for path in self.request.response_fields}
        return {path: value for path, value in wanted.items() if value is not None} if wanted else body

    def _settings(self) -> dict[str, Any]:
        params = self.request.params
        return {
            "n_predict": -1 if params.max_tokens is None else params.max_tokens,
            "seed": -1 if params.seed is None else params.seed,
            **{name: getattr(params, name) for name in SAME_NAMES},
            "repeat_penalty": params.repetition_penalty,
            "stop": list(params.stop_strings),
            "logit_bias": [{"token": token, "bias": bias} for token, bias in (params.logit_bias or {}).items()],
            "n_probs": params.logprobs or 0,
            "stream": self.request.stream,
            "n_ctx": self.n_ctx,
        }

    def _probabilities(self, at: TokenLogprobs) -> dict[str, Any]:
        def entry(token: int, logprob: float) -> dict[str, Any]:
            raw = token_bytes(token, self.tokenizer)
            shown = raw.decode("utf-8", "replace")
            return {"id": token, "token": shown, "bytes": list(raw), "logprob": finite(logprob)}

        return {**entry(at.token_id, at.logprob), "top_logprobs": [entry(*one) for one in at.top]}


def _timings(metrics: RequestMetrics) -> dict[str, float]:
    """llama.cpp's timings of a finished request, in milliseconds; rates exclude the first token, as llama.cpp's do."""
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


def _at(body: Mapping[str, Any], path: str) -> Any:
    value: Any = body
    for key in path.split("/"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
