"""Answers of the Responses API and of Anthropic's, sent back as the client libraries dump them."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic.types import Message as AnthropicMessage
from anthropic.types import ParsedMessage
from openai.types import responses as openai_responses

from glm4.api.anthropic import parse_message
from glm4.api.responses.items import read_input, to_messages
from glm4.chat.messages import Message, ToolCall
from glm4.sampling_params import SamplingParams

CALL = {"type": "function_call", "call_id": "A", "name": "f", "arguments": "{}", "id": "fc_1", "status": "completed"}
TEXT = {"type": "output_text", "text": "t", "annotations": [], "parsed": {"a": 1}}
SPOKEN = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [TEXT]}
REASONING = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "r"}]}


@pytest.mark.parametrize("parsed", [False, True])
def test_items_of_a_response(parsed: bool) -> None:
    prefix = "Parsed" if parsed else ""
    message = getattr(openai_responses, f"{prefix}ResponseOutputMessage")
    call = getattr(openai_responses, f"{prefix}ResponseFunctionToolCall")
    arguments = {"parsed_arguments": {"a": 1}} if parsed else {}
    items = [
        openai_responses.ResponseReasoningItem.model_validate(REASONING).model_dump(),
        message.model_validate(SPOKEN).model_dump(),
        call.model_validate(CALL | arguments).model_dump(),
        {"type": "function_call_output", "call_id": "A", "output": [{"type": "output_text", "text": "1"}]},
    ]
    assert to_messages(read_input("input", items)) == [
        Message("assistant", "t", reasoning="r", tool_calls=(ToolCall("A", "f", "{}"),)),
        Message("tool", "1", tool_call_id="A"),
    ]


@pytest.mark.parametrize("kind", [AnthropicMessage, ParsedMessage])
def test_a_message_of_anthropics(kind: Any) -> None:
    answer = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 1, "output_tokens": 1},
        "content": [
            {"type": "thinking", "thinking": "r", "signature": "s"},
            {"type": "text", "text": "t"},
            {"type": "tool_use", "id": "A", "name": "f", "input": {}},
        ],
    }
    result = {"type": "tool_result", "tool_use_id": "A", "content": "1"}
    messages = [{"role": "user", "content": "hi"}, kind.model_validate(answer).model_dump()]
    messages.append({"role": "user", "content": [result]})
    assert parse_message({"max_tokens": 9, "messages": messages}, SamplingParams()).chat.messages[1:] == (
        Message("assistant", "t", reasoning="r", tool_calls=(ToolCall("A", "f", "{}"),)),
        Message("tool", "1", tool_call_id="A"),
    )
