"""Writing the answers of /inference/v1/generate: ids and log-probabilities by id, whole or as stream events."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from glm4.api.openai.answers import prompt_logprobs, usage
from glm4.api.openai.events import StreamUsage
from glm4.api.openai.request import StreamOptions
from glm4.api.openai.text_logprobs import finite
from glm4.api.vllm.request import GenerateRequest
from glm4.logprobs import TokenLogprobs
from glm4.outputs import RequestOutput, StreamChunk

if TYPE_CHECKING:
    from glm4.tokenizer import Tokenizer


class GenerateWriter:
    """Writes the answer to one request.

    Args:
        request_id: the client's, or the server's own if it sent none; the answer prefixes it as vLLM does.
        model: the model name the client used.
    """

    def __init__(self, request: GenerateRequest, request_id: str, model: str) -> None:
        self._request = request
        self._model = model
        self._wanted = request.params.logprobs is not None
        self._begun: dict[str, Any] = {"request_id": f"generate-tokens-{request_id}", "output_mode": "tokens"}
        self._usage = StreamUsage(request.stream or StreamOptions())
        self._usage.started(0, len(request.token_ids))
        self._prompt: dict[str, Any] = {"prompt_token_ids": request.token_ids} if request.return_token_ids else {}

    def whole(self, output: RequestOutput, tokenizer: Tokenizer) -> dict[str, Any]:
        """The whole answer."""
        choices = [
            self._choice(one.index, one.token_ids, one.logprobs or (), one.finish_reason, one.stop_reason)
            for one in output.outputs
        ]
        body = {**self._begun, "model": self._model, "created": int(time.time()), "choices": choices}
        if output.prompt_logprobs is not None:
            body["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs, tokenizer)
        return {**body, "usage": usage([output]), **self._prompt}

    def events(self, chunk: StreamChunk) -> Iterator[dict[str, Any]]:
        """The stream events for a chunk."""
        self._usage.add(chunk)
        if chunk.token_ids or chunk.finish_reason is not None:
            choice = self._choice(chunk.index, chunk.token_ids, chunk.logprobs, chunk.finish_reason, chunk.stop_reason)
            yield {**self._begun, "choices": [choice], **self._usage.field(), **self._prompt}
            self._prompt = {}
        if chunk.output is not None:
            yield from self._usage.last(self._begun)

    def _choice(
        self,
        index: int,
        token_ids: Sequence[int],
        logprobs: Sequence[TokenLogprobs],
        finish_reason: str | None,
        stop_reason: int | str | None,
    ) -> dict[str, Any]:
        return {
            "index": index,
            "token_ids": list(token_ids),
            "logprobs": {"content": [_entry(at) for at in logprobs]} if self._wanted else None,
            "finish_reason": finish_reason,
            "stop_reason": stop_reason,
        }


def _entry(at: TokenLogprobs) -> dict[str, Any]:
    top = [
        {"token_id": token, "logprob": finite(logprob), "rank": rank} for rank, (token, logprob) in enumerate(at.top, 1)
    ]
    return {"token_id": at.token_id, "logprob": finite(at.logprob), "rank": at.rank, "top_logprobs": top}
