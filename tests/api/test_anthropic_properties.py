"""Whatever comes in as a Messages body is read or refused; whatever the model says, stream and message agree."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from glm4.api.anthropic import MessageEvents, MessageRequest, parse_count, parse_message
from glm4.chat.chat_request import ChatRequest
from glm4.chat.events import (
    Event,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
)
from glm4.chat.messages import Message
from glm4.errors import InvalidRequestError
from glm4.outputs import CompletionOutput, RequestMetrics, RequestOutput, StreamChunk
from glm4.sampling_params import SamplingParams

CACHE = {"type": "ephemeral", "ttl": "5m"}
TEXT = {"type": "text", "text": "t", "cache_control": CACHE}
BODY: dict[str, Any] = {
    "model": "m",
    "max_tokens": 5,
    "system": [TEXT],
    "messages": [
        {
            "role": "user",
            "content": [
                TEXT,
                {"type": "document", "source": {"type": "content", "content": [TEXT]}, "citations": {"enabled": False}},
                {"type": "search_result", "source": "s", "title": "t", "content": [TEXT]},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": "s"},
                {"type": "redacted_thinking", "data": "d"},
                {"type": "tool_use", "id": "i", "name": "f", "input": {"a": 1}, "caller": {"type": "direct"}},
            ],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "i", "content": [TEXT], "is_error": False}],
        },
        {"role": "system", "content": "s"},
    ],
    "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}, "input_examples": [{"a": 1}]}],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": {"type": "all"}}]},
    "metadata": {"user_id": "u"},
    "stop_sequences": ["s"],
    "temperature": 1,
    "top_p": 0.5,
    "top_k": 5,
    "diagnostics": {"previous_message_id": "m"},
    "service_tier": "auto",
    "cache_control": CACHE,
    "stream": False,
}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inside for place in places(one, (*path, key)))]


def put(body: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    body = copy.deepcopy(body)
    target: Any = body
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return body


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
KINDS = st.sampled_from(["text", "image", "tool_use", "tool_result", "document", "none", "any", "tool", "disabled"])


def test_the_body_is_accepted_as_it_is() -> None:
    assert parse_message(BODY, SamplingParams()).thinking == "omitted"


@settings(max_examples=400, deadline=None)
@given(path=st.sampled_from(places(BODY)[1:]), value=JSON | KINDS)
def test_a_body_is_read_or_refused(path: tuple[Any, ...], value: Any) -> None:
    body = put(BODY, path, value)
    counting = {name: body[name] for name in ("messages", "system", "tools", "tool_choice", "thinking")}
    for parse, one in ((parse_message, body), (parse_count, counting)):
        refusal = None
        try:
            parse(one, SamplingParams())
        except InvalidRequestError as error:
            refusal = error
        assert refusal is None or (refusal.param and len(str(refusal)) < 2000)


def added_up(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message a client makes of stream events."""
    message: dict[str, Any] = {}
    for event in copy.deepcopy(events):
        if event["type"] == "message_start":
            message = event["message"]
        elif event["type"] == "content_block_start":
            message["content"].append(event["content_block"] | {"json": ""})
        elif event["type"] == "content_block_delta":
            block, delta = message["content"][event["index"]], event["delta"]
            key = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}
            if delta["type"] == "signature_delta":
                block["signature"] = delta["signature"]
            elif delta["type"] == "input_json_delta":
                block["json"] += delta["partial_json"]
            else:
                block[key[delta["type"]]] += delta[key[delta["type"]]]
        elif event["type"] == "message_delta":
            message |= event["delta"] | {"usage": event["usage"]}
    for block in message["content"]:
        written = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(written or "{}")
    return message


@st.composite
def answers(draw: st.DrawFn) -> list[Event]:
    """Events as the parsers make them: calls are numbered, and their arguments come in pieces."""
    events: list[Event] = []
    for index, kind in enumerate(draw(st.lists(st.sampled_from("trc"), max_size=6))):
        pieces = draw(st.lists(st.text(min_size=1, max_size=3) | st.just("\n"), min_size=1, max_size=3))
        if kind == "c":
            written = json.dumps({"pieces": pieces})
            cut = draw(st.integers(0, len(written)))
            events += [
                ToolCallDelta(index, f"call_{index}", "f", written[:cut]),
                ToolCallDelta(index, arguments=written[cut:]),
            ]
        else:
            events += [TextDelta(piece) if kind == "t" else ReasoningDelta(piece) for piece in pieces]
    return events


@settings(max_examples=200, deadline=None)
@given(events=answers(), thinking=st.sampled_from(["shown", "omitted", "hidden"]))
def test_what_is_streamed_adds_up_to_the_message(events: list[Event], thinking: Any) -> None:
    request = MessageRequest(ChatRequest.of([Message("user", "hi")]), max_tokens=9, thinking=thinking)
    answer = MessageEvents("m", request, 3)
    streamed = copy.deepcopy(answer.first())
    for event in events:
        streamed += copy.deepcopy(answer.push(StreamChunk("r", 0, (event,))))
    sample = CompletionOutput(0, "", [1, 2], "stop")
    output = RequestOutput("r", None, [1, 2, 3], [sample], None, RequestMetrics(num_cached_tokens=2))
    streamed += answer.push(StreamChunk("r", 0, (), finish_reason="stop", output=output))
    message = answer.message()
    assert added_up(streamed) == message
    assert message["usage"] == {
        "input_tokens": 1,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 2,
        "output_tokens": 2,
    }
    kinds = [block["type"] for block in message["content"]]
    assert kinds.count("tool_use") == sum(isinstance(event, ToolCallDelta) and event.id is not None for event in events)
    assert all(block["text"].strip() for block in message["content"] if block["type"] == "text")
    assert (thinking != "hidden") or "thinking" not in kinds
