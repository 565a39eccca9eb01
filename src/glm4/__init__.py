"""glm4: run, serve, teach and measure the GLM-4 family of open language models on any machine.

>>> from glm4 import LLM, SamplingParams
>>> llm = LLM("starter")                                                    # doctest: +SKIP
>>> llm.chat([{"role": "user", "content": "你好"}])[0].outputs[0].text      # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from glm4.version import __version__ as __version__

if TYPE_CHECKING:
    from glm4.agent.agent import Agent
    from glm4.agent.async_agent import AsyncAgent
    from glm4.agent.conversation import Conversation
    from glm4.agent.functions import tool
    from glm4.agent.limits import AgentLimits
    from glm4.async_llm import AsyncLLM
    from glm4.chat.events import ReasoningDelta, TextDelta, ToolCallDelta
    from glm4.chat.messages import Message, ToolCall
    from glm4.chat.parts import AudioPart, ImagePart, TextPart
    from glm4.errors import Glm4Error
    from glm4.llm import LLM
    from glm4.outputs import CompletionOutput, RequestOutput, StreamChunk
    from glm4.sampling_params import SamplingParams, StructuredOutputs

# Loaded on first use: `import glm4` alone does not import NumPy and takes a few milliseconds.
_PUBLIC = {
    "LLM": "glm4.llm",
    "AsyncLLM": "glm4.async_llm",
    "SamplingParams": "glm4.sampling_params",
    "StructuredOutputs": "glm4.sampling_params",
    "Message": "glm4.chat.messages",
    "ToolCall": "glm4.chat.messages",
    "TextPart": "glm4.chat.parts",
    "ImagePart": "glm4.chat.parts",
    "AudioPart": "glm4.chat.parts",
    "TextDelta": "glm4.chat.events",
    "ReasoningDelta": "glm4.chat.events",
    "ToolCallDelta": "glm4.chat.events",
    "RequestOutput": "glm4.outputs",
    "CompletionOutput": "glm4.outputs",
    "StreamChunk": "glm4.outputs",
    "Glm4Error": "glm4.errors",
    "tool": "glm4.agent.functions",
    "Agent": "glm4.agent.agent",
    "AgentLimits": "glm4.agent.limits",
    "AsyncAgent": "glm4.agent.async_agent",
    "Conversation": "glm4.agent.conversation",
}

__all__ = [
    "LLM",
    "Agent",
    "AgentLimits",
    "AsyncAgent",
    "AsyncLLM",
    "AudioPart",
    "CompletionOutput",
    "Conversation",
    "Glm4Error",
    "ImagePart",
    "Message",
    "ReasoningDelta",
    "RequestOutput",
    "SamplingParams",
    "StreamChunk",
    "StructuredOutputs",
    "TextDelta",
    "TextPart",
    "ToolCall",
    "ToolCallDelta",
    "tool",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'glm4' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
