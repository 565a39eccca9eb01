"""`ResponseWriter` on its own: whatever a model says, however it is cut into chunks, stream and response agree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import openai_schema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from response_stream import plain, rebuilt

from glm4.api.responses.events import ResponseWriter
from glm4.api.responses.request import parse_responses
from glm4.chat.events import (
    Event,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    merged,
)
from glm4.logprobs import TextToken, TokenLogprobs
from glm4.outputs import CompletionOutput, RequestMetrics, RequestOutput, StreamChunk
from glm4.sampling_params import SamplingParams
from glm4.tokenizer import Tokenizer, load_tokenizer
from parsed import collect
from tiny import write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load_tokenizer(folder)


texts = st.text('ab {}"\n世', min_size=1, max_size=4)


@st.composite
def said(draw: st.DrawFn) -> list[Event]:
    """Thinking, text and calls in any order; the first event of a call has its name, later ones do not."""
    events: list[Event] = []
    calls = 0
    for kind in draw(st.lists(st.sampled_from(("think", "text", "call", "more")), max_size=12)):
        last = events[-1] if events else None
        if kind == "think":
            events.append(ReasoningDelta(draw(texts)))
        elif kind == "text":
            events.append(TextDelta(draw(texts)))
        elif kind == "call":
            events.append(ToolCallDelta(calls, f"call_{calls}", "f", draw(st.just("") | texts)))
            calls += 1
        elif isinstance(last, ToolCallDelta):
            events.append(ToolCallDelta(last.index, arguments=draw(texts)))
    return events


def chunks(events: list[Event], cuts: list[int], reason: str) -> Iterator[StreamChunk]:
    """The events in chunks that end at `cuts`; the last one has the whole answer."""
    answer = collect(events)
    ids = [ord("x")] * len(events)
    sample = CompletionOutput(0, answer.text, ids, reason, reasoning=answer.reasoning, tool_calls=answer.tool_calls)
    output = RequestOutput("r", None, [1, 2], [sample], None, RequestMetrics(num_cached_tokens=1))
    edges = [0, *sorted(set(cuts) & set(range(1, len(events)))), len(events)]
    for begin, end in pairwise(edges):
        last = end == len(events)
        part = tuple(merged(map(with_token, events[begin:end])))
        yield StreamChunk("r", 0, part, tuple(ids[begin:end]), (), reason if last else None, output if last else None)


def with_token(event: Event) -> Event:
    if not isinstance(event, TextDelta):
        return event
    return replace(event, tokens=(TextToken(TokenLogprobs(ord("x"), -1.0, 1), event.text.encode()),))


def written(tokenizer: Tokenizer, parts: Iterator[StreamChunk], body: dict[str, Any]) -> list[dict[str, Any]]:
    writer = ResponseWriter(parse_responses({"input": "x", **body}, SamplingParams(), thinks=True), "m", tokenizer)
    events = writer.begin()
    for chunk in parts:
        events += writer.push(chunk)
    events += writer.last()
    return [json.loads(json.dumps(event)) for event in events]


@settings(max_examples=150, deadline=None)
@given(
    said(), st.lists(st.integers(1, 12), max_size=6), st.sampled_from(("stop", "length", "tool_calls")), st.booleans()
)
def test_stream_and_response_agree(
    tokenizer: Tokenizer, events: list[Event], cuts: list[int], reason: str, logprobs: bool
) -> None:
    body = {"include": ["message.output_text.logprobs"]} if logprobs else {}
    stream = written(tokenizer, chunks(events, cuts, reason), body)
    assert [event["sequence_number"] for event in stream] == list(range(len(stream)))
    for event in stream:
        openai_schema.check_response_event(event)
    response = stream[-1]["response"]
    assert rebuilt(stream) == response["output"]
    answer = collect(events)
    parts = [(item["type"], part["text"]) for item in response["output"] for part in item.get("content", ())]
    assert "".join(text for kind, text in parts if kind == "message") == answer.text
    assert "".join(text for kind, text in parts if kind == "reasoning") == (answer.reasoning or "")
    calls = [item for item in response["output"] if item["type"] == "function_call"]
    assert [(call["call_id"], call["arguments"]) for call in calls] == [(c.id, c.arguments) for c in answer.tool_calls]
    cut = reason == "length"
    assert (response["status"], stream[-1]["type"]) == (
        ("incomplete", "response.incomplete") if cut else ("completed", "response.completed")
    )
    assert [item["status"] for item in response["output"][:-1]] == ["completed"] * (len(response["output"]) - 1)
    assert cut or any(item["type"] != "reasoning" for item in response["output"])
    # However it is cut into chunks, the response is the same.
    assert plain(response) == plain(written(tokenizer, chunks(events, [], reason), body)[-1]["response"])
