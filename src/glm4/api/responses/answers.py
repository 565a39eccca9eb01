"""Writing the non-streaming objects of the Responses API: responses, token counts, lists of items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from glm4.api.responses.items import Item
from glm4.outputs import RequestOutput

if TYPE_CHECKING:
    from glm4.tokenizer import Tokenizer


def response_object(
    begun: Mapping[str, Any],
    status: str,
    output: Sequence[Item] = (),
    *,
    usage: Mapping[str, Any] | None = None,
    error: Mapping[str, Any] | None = None,
    reason: str | None = None,
    completed_at: int | None = None,
) -> dict[str, Any]:
    """A `response` object.

    Args:
        begun: `id`, `created_at`, `model` and the fields that repeat the request.
        reason: why the response is incomplete.
    """
    return {
        **begun,
        "object": "response",
        "status": status,
        "output": list(output),
        "usage": usage,
        "error": error,
        "incomplete_details": None if reason is None else {"reason": reason},
        "completed_at": completed_at,
    }


def response_usage(output: RequestOutput, tokenizer: Tokenizer) -> dict[str, Any]:
    """The `usage` of a finished response.

    Thinking tokens are counted by encoding the text again, so that the count does not depend on how the answer arrived.
    """
    (sample,) = output.outputs
    generated = len(sample.token_ids)
    thinking = 0 if sample.reasoning is None else min(generated, len(tokenizer.encode(sample.reasoning)))
    prompt = len(output.prompt_token_ids)
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": output.metrics.num_cached_tokens, "cache_write_tokens": 0},
        "output_tokens": generated,
        "output_tokens_details": {"reasoning_tokens": thinking},
        "total_tokens": prompt + generated,
    }


def deleted(response_id: str) -> dict[str, Any]:
    """The reply to deleting a response."""
    return {"id": response_id, "object": "response", "deleted": True}


def input_tokens(count: int) -> dict[str, Any]:
    """The reply with a prompt's token count."""
    return {"object": "response.input_tokens", "input_tokens": count}


def item_list(items: Sequence[Item], *, limit: int, newest_first: bool, after: str | None) -> dict[str, Any]:
    """A page of items.

    Args:
        limit: items per page.
        after: id of the previous page's last item; an unknown id starts at the beginning.
    """
    ordered = list(reversed(items)) if newest_first else list(items)
    ids = [item["id"] for item in ordered]
    begin = ids.index(after) + 1 if after in ids else 0
    page = ordered[begin : begin + limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else "",
        "last_id": page[-1]["id"] if page else "",
        "has_more": begin + len(page) < len(ordered),
    }
