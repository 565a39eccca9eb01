"""Servers for the tests of client libraries: one whose answers are written here, and a real model of random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionUserMessageParam

from glm4.llm import LLM
from live import LiveServer, config, serve
from scripted_llm import scripted_llm
from tiny import write_folder

KEY = "a-key-for-tests"

WEATHER_TOOL: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a place.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = 'get_weather\n{"city": "Paris", "unit": "°C"}'
ASKED = "Is it warm in Paris?"
QUESTION: ChatCompletionUserMessageParam = {"role": "user", "content": ASKED}


def script(prompt: str) -> str:
    """The raw answer: a call for the question about Paris, its result in words, or a greeting."""
    if "18 degrees" in prompt:
        return "\nIt has 18 degrees in Paris."
    if ASKED in prompt:
        return f"\nLet me look.\n{CALL}" if "get_weather" in prompt else "\nI cannot know."
    if "count" in prompt:
        return "\none, two, three, four"
    return "\nHello, 世界!"


def scripted_model(folder: Path, **options: Any) -> LLM:
    return scripted_llm(folder, script, dialect="glm4", **options)


@contextmanager
def scripted_server(folder: Path, **options: Any) -> Iterator[LiveServer]:
    with serve(config("tiny", "alias", api_keys=(KEY,), **options), scripted_model(folder)) as running:
        yield running


@contextmanager
def random_server(folder: Path, **options: Any) -> Iterator[LiveServer]:
    """A real engine whose weights are random: it says nonsense, exactly reproducibly."""
    llm = LLM(str(write_folder(folder, chat_template=None)), dtype="fp32", max_num_seqs=8, max_model_len=4096)
    with serve(config("tiny", "alias", api_keys=(KEY,), **options), llm) as running:
        yield running
