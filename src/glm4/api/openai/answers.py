"""Writing whole answers: the `chat.completion` and `text_completion` objects and their parts."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glm4.api.openai.request import ResponseOptions
from glm4.api.openai.text_logprobs import ChoiceLogprobs, finite, token_bytes
from glm4.logprobs import TextToken, TokenLogprobs
from glm4.outputs import CompletionOutput, RequestOutput
from glm4.version import __version__

if TYPE_CHECKING:
    from glm4.tokenizer import Tokenizer

_PLAIN = ResponseOptions()

BUILD = f"build-{__version__}"
"""`system_fingerprint`: equal seeds give equal texts as long as it is unchanged."""


def new_id(prefix: str) -> str:
    """A new id, such as `chatcmpl-…`."""
    return f"{prefix}-{uuid.uuid4().hex}"


def chat_completion(
    output: RequestOutput, model: str, tokenizer: Tokenizer, options: ResponseOptions = _PLAIN
) -> dict[str, Any]:
    """The `chat.completion` object of a finished request."""
    choices = [
        {
            "index": sample.index,
            "message": message(sample, include_reasoning=options.include_reasoning),
            "logprobs": chat_logprobs(sample.text_logprobs, tokenizer, options),
            "finish_reason": sample.finish_reason,
            "stop_reason": sample.stop_reason,
        }
        | ({"token_ids": sample.token_ids} if options.return_token_ids else {})
        for sample in output.outputs
    ]
    body = envelope("chat.completion", new_id("chatcmpl"), model, options)
    body |= {"choices": choices, "usage": usage([output])}
    return body | _prompt_details([output], tokenizer, options)


def text_completion(
    output: RequestOutput, model: str, tokenizer: Tokenizer, options: ResponseOptions = _PLAIN
) -> dict[str, Any]:
    """The `text_completion` object of a finished request."""
    return text_completions([output], model, tokenizer, options)


def text_completions(
    outputs: Sequence[RequestOutput],
    model: str,
    tokenizer: Tokenizer,
    options: ResponseOptions = _PLAIN,
    *,
    echo: bool = False,
    generate: bool = True,
    skip_special_tokens: bool = True,
) -> dict[str, Any]:
    """One `text_completion` object for several prompts, with samples numbered consecutively.

    Args:
        echo: put the prompt, and its log-probabilities if any, before each answer.
        generate: False leaves the generated token out (the prompt was only scored).
        skip_special_tokens: as the request has it.
    """
    choices: list[dict[str, Any]] = []
    for output in outputs:
        prompt = prompt_text(output.prompt, output.prompt_token_ids[output.num_added_ids :], tokenizer) if echo else ""
        for sample in output.outputs:
            text = prompt + (sample.text if generate else "")
            logprobs = ChoiceLogprobs(prompt, tokenizer, options, skip_special_tokens=skip_special_tokens)
            if echo and output.prompt_logprobs is not None:
                logprobs.add_prompt(*echoed(output.prompt_token_ids, output.prompt_logprobs, output.num_added_ids))
            logprobs.add((sample.logprobs or ()) if generate else ())
            wanted = sample.logprobs is not None or (echo and output.prompt_logprobs is not None)
            choice = {
                "index": len(choices),
                "text": text,
                "logprobs": logprobs.take(len(text), final=True) if wanted else None,
                "finish_reason": sample.finish_reason,
                "stop_reason": sample.stop_reason,
            }
            if options.return_token_ids:
                choice["token_ids"] = sample.token_ids if generate else []
                choice["prompt_token_ids"] = output.prompt_token_ids
            choices.append(choice)
    body = envelope("text_completion", new_id("cmpl"), model, options)
    body |= {"choices": choices, "usage": usage(outputs, generate=generate)}
    return body if echo else body | _prompt_details(outputs, tokenizer, options)


def envelope(kind: str, id_: str, model: str, options: ResponseOptions = _PLAIN) -> dict[str, Any]:
    """The fields that every object begins with."""
    created = int(time.time())
    body: dict[str, Any] = {"id": id_, "object": kind, "created": created, "model": model, "system_fingerprint": BUILD}
    if options.metadata is not None:
        body["metadata"] = dict(options.metadata)
    return body


def usage(outputs: Sequence[RequestOutput], *, generate: bool = True) -> dict[str, Any]:
    """Token counts of finished requests."""
    return token_counts(
        sum(len(output.prompt_token_ids) for output in outputs),
        sum(len(sample.token_ids) for output in outputs for sample in output.outputs) if generate else 0,
        sum(output.metrics.num_cached_tokens for output in outputs),
    )


def token_counts(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    """A `usage` object."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def message(sample: CompletionOutput, *, include_reasoning: bool = True) -> dict[str, Any]:
    """The assistant's message of one sample."""
    body: dict[str, Any] = {"role": "assistant", "content": sample.text, "refusal": None}
    if sample.reasoning is not None and include_reasoning:
        body["reasoning_content"] = sample.reasoning
    if sample.tool_calls:
        body["content"] = sample.text or None
        body["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in sample.tool_calls
        ]
    return body


def chat_logprobs(
    tokens: Sequence[TextToken] | None, tokenizer: Tokenizer, options: ResponseOptions = _PLAIN
) -> dict[str, Any] | None:
    """The `logprobs` object of a chat choice, about its content; None if none were requested."""
    if tokens is None:
        return None
    return {"content": content_logprobs(tokens, tokenizer, tokens_as_ids=options.tokens_as_ids), "refusal": None}


def content_logprobs(
    tokens: Sequence[TextToken], tokenizer: Tokenizer, *, tokens_as_ids: bool = False
) -> list[dict[str, Any]]:
    """The log-probabilities of visible text. A token that is only partly visible has the bytes that are."""

    def entry(token_id: int, logprob: float, raw: bytes | None = None) -> dict[str, Any]:
        raw = token_bytes(token_id, tokenizer) if raw is None else raw
        shown = f"token_id:{token_id}" if tokens_as_ids else raw.decode("utf-8", "replace")
        return {"token": shown, "logprob": finite(logprob), "bytes": list(raw)}

    return [
        {
            **entry(token.logprobs.token_id, token.logprobs.logprob, token.text),
            "top_logprobs": [entry(*candidate) for candidate in token.logprobs.top],
        }
        for token in tokens
    ]


def prompt_logprobs(
    logprobs: Sequence[TokenLogprobs | None], tokenizer: Tokenizer
) -> list[dict[str, dict[str, Any]] | None]:
    """vLLM's `prompt_logprobs`: for each prompt token, the most likely tokens and the token itself, by id."""

    def entry(token_id: int, logprob: float, rank: int | None) -> dict[str, Any]:
        shown = token_bytes(token_id, tokenizer).decode("utf-8", "replace")
        return {"logprob": finite(logprob), "rank": rank, "decoded_token": shown}

    rows: list[dict[str, dict[str, Any]] | None] = []
    for at in logprobs:
        if at is None:
            rows.append(None)
            continue
        row = {str(token): entry(token, logprob, rank) for rank, (token, logprob) in enumerate(at.top, 1)}
        row.setdefault(str(at.token_id), entry(at.token_id, at.logprob, at.rank))
        rows.append(row)
    return rows


def echoed(
    ids: Sequence[int], logprobs: Sequence[TokenLogprobs | None], num_added: int
) -> tuple[Sequence[int], Sequence[TokenLogprobs | None]]:
    """Tokens of an echoed prompt and their log-probabilities, without the prefix, which is not in the echoed text.

    The first token never has one: clients rely on that.
    """
    return ids[num_added:], [None, *logprobs[num_added + 1 :]]


def prompt_text(prompt: str | None, ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The prompt to echo: the text that was sent, or the decoded ids."""
    if prompt is not None:
        return prompt
    # Not `Tokenizer.decode`: ids may be vocabulary rows without a token, which have no text.
    return b"".join(token_bytes(token, tokenizer) for token in ids).decode("utf-8", "replace")


def _prompt_details(outputs: Sequence[RequestOutput], tokenizer: Tokenizer, options: ResponseOptions) -> dict[str, Any]:
    """vLLM's extra prompt fields, for a response to a single prompt."""
    details: dict[str, Any] = {}
    if len(outputs) == 1:
        (output,) = outputs
        if output.prompt_logprobs is not None:
            details["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs, tokenizer)
        if options.return_token_ids:
            details["prompt_token_ids"] = output.prompt_token_ids
    return details
