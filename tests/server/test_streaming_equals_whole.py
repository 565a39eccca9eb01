"""Streamed = whole: however an answer is cut into steps, and however slowly it is read, the events add up to it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from answers import joined_message, read_events, whole_message, without_ids
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glm4.api.openai.answers import message
from glm4.api.openai.events import ChatChunks
from glm4.api.openai.request import ResponseOptions, StreamOptions
from glm4.async_llm import AsyncLLM, RequestStream
from glm4.backends.base import BackendInfo, Capability
from glm4.chat.chat_request import ChatRequest
from glm4.chat.dialects.table import DIALECTS, dialect_for
from glm4.engine.protocol import GenerationOutput
from glm4.outputs import StreamChunk
from glm4.requests.input_processor import InputProcessor, PreparedRequest
from glm4.requests.output_processor import SampleProcessor
from glm4.requests.processor import Processor
from glm4.requests.request_state import RequestState
from glm4.sampling_params import SamplingParams
from live import config, serve
from scripted_llm import scripted_llm
from tiny import VOCAB_SIZE, special_id, write_folder

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("get_weather", "get", "数")
]
NAMES = ["get_weather", "get", "g", "数", "other"]
JSON = ['{"city": "北京"}', "{}", "{", "}", '"', '{\n "a": [1, {"b": "}"}]\n}', ": ", ","]
TEXT = ["\n", "\n\n", " ", "text", "你好", "𝒳", "é", "\x00", "<", ">", "`"]
GLM = [*NAMES, *JSON, *TEXT, "get_weather\n", 'get\n{"a": 1}', "<|assistant|>"]
Z1 = [*GLM, "<think>", "</think>", "</thi", "<th"]
CHATML = [
    *NAMES, *JSON, *TEXT, "<tool_call>", "</tool_call>", "<tool", "```", "```json\n", '{"name": "', '"arguments": ',
    '<tool_call>\n{"name": "get", "arguments": {"a": 1}}\n</tool_call>', '{"name": "get_weather", "arguments": {}}',
]  # fmt: skip
INFO = BackendInfo("test", VOCAB_SIZE, 4096, capabilities=frozenset(Capability))
PIECES = {"glm4": GLM, "glm4_0414": GLM, "glm_z1": Z1, "chatml": CHATML}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    return Processor.open(write_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def preparers(text: Processor) -> dict[str, InputProcessor]:
    sides = {name: replace(text, dialect=dialect_for(name), template=None) for name in DIALECTS}
    return {name: InputProcessor(side, INFO) for name, side in sides.items()}


def prepared_by(preparer: InputProcessor, stop: Sequence[str] = (), parallel: bool = True) -> PreparedRequest:
    params = SamplingParams(stop=list(stop))
    messages = [{"role": "user", "content": "?"}]
    return preparer.chat(ChatRequest.of(messages, params, tools=TOOLS, parallel_tool_calls=parallel))


def ids_of(text: Processor, pieces: Sequence[str | bytes]) -> list[int]:
    """Token ids: pieces of bytes are bytes that need not be UTF-8, role tags are special tokens, all else is text."""
    ids: list[int] = []
    for piece in pieces:
        if isinstance(piece, bytes):
            ids += piece
        elif piece == "<|assistant|>":
            ids.append(special_id(piece))
        else:
            ids += text.tokenizer.encode(piece)
    return ids


def started(prepared: PreparedRequest, samples: int = 1) -> RequestState:
    running = RequestState("r", None, list(prepared.prompt_ids))
    for index in range(samples):
        running.samples[f"r#{index}"] = SampleProcessor(
            index, prepared.params, *prepared.decoder(), lambda: None, prepared.max_tool_calls
        )
    return running


def outputs(index: int, ids: Sequence[int], cuts: Sequence[int], ending: str) -> list[GenerationOutput]:
    """What the backend brings for one sample, cut after these tokens. `ending`: a stop token, or length."""
    last: tuple[int, ...] = ()
    stop: int | None = None
    reason = "length"
    if ending != "length":
        stop, reason = special_id(ending), "stop"
        last = (stop,)
    borders = [0, *cuts, len(ids)]
    parts = [tuple(ids[start:end]) for start, end in itertools.pairwise(borders)]
    steps = [GenerationOutput(f"r#{index}", part) for part in parts[:-1]]
    return [*steps, GenerationOutput(f"r#{index}", parts[-1] + last, reason, stop)]


def run(running: RequestState, steps: Sequence[GenerationOutput]) -> list[StreamChunk]:
    return [chunk for step in steps if (chunk := running.push(step)) is not None]


def written(text: Processor, prepared: PreparedRequest, chunks: Sequence[StreamChunk], samples: int = 1) -> list[Any]:
    """The stream of a chat answer as its JSON objects."""
    writer = ChatChunks("m", text.tokenizer, prepared.prompt_ids, StreamOptions(), ResponseOptions())
    return [*writer.first(samples), *(one for chunk in chunks for one in writer.push(chunk)), *writer.last()]


def answers(dialect: str) -> st.SearchStrategy[list[str | bytes]]:
    broken = st.binary(min_size=1, max_size=3)
    return st.lists(st.one_of(st.sampled_from(PIECES[dialect]), st.text(max_size=4), broken), max_size=12)


ENDINGS = st.sampled_from(["<|user|>", "<|observation|>", "length"])


@pytest.mark.parametrize("dialect", DIALECTS)
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(),
    ending=ENDINGS,
    stop=st.sampled_from([(), ("x",), ("好", "ext"), ("}",)]),
    parallel=st.booleans(),
)
def test_any_cut(
    text: Processor,
    preparers: dict[str, InputProcessor],
    dialect: str,
    data: st.DataObject,
    ending: str,
    stop: tuple[str, ...],
    parallel: bool,
) -> None:
    ids = ids_of(text, data.draw(answers(dialect)))
    prepared = prepared_by(preparers[dialect], stop, parallel)
    (whole,) = run(started(prepared), outputs(0, ids, [], ending))
    assert whole.output is not None
    expected = whole.output.outputs[0]
    some = sorted(data.draw(st.sets(st.integers(0, len(ids)))))
    for cuts in (some, range(len(ids)), []):
        chunks = run(started(prepared), outputs(0, ids, list(cuts), ending))
        final = chunks[-1].output
        assert final is not None
        (sample,) = final.outputs
        streamed, reason = joined_message(written(text, prepared, chunks))
        assert streamed == whole_message(message(sample)), "the events are the answer"
        assert without_ids(streamed) == without_ids(whole_message(message(expected))), "however it was cut"
        assert reason == sample.finish_reason == expected.finish_reason
        assert len({call["id"] for call in streamed["tool_calls"]}) == len(streamed["tool_calls"])
        assert [token for chunk in chunks for token in chunk.token_ids] == sample.token_ids


@pytest.mark.parametrize("dialect", DIALECTS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_slow_reader_loses_nothing(
    text: Processor, preparers: dict[str, InputProcessor], dialect: str, data: st.DataObject
) -> None:
    """Two samples at once, chunks joined while nobody reads: what is read is what two prompt readers would get."""
    prepared = prepared_by(preparers[dialect])
    queues: list[list[GenerationOutput]] = []
    for index in range(2):
        ids = ids_of(text, data.draw(answers(dialect)))
        queues.append(outputs(index, ids, range(len(ids)), data.draw(ENDINGS)))
    steps: list[GenerationOutput] = []
    turns = data.draw(st.lists(st.integers(0, 1), max_size=80))
    for turn in turns:
        if queues[turn]:
            steps.append(queues[turn].pop(0))
    steps += queues[0] + queues[1]
    chunks = run(started(prepared, 2), steps)
    reads = data.draw(st.sets(st.integers(0, len(chunks))))
    received = asyncio.run(_read(chunks, reads))
    assert len(received) <= len(chunks)
    for index in range(2):
        straight = joined_message(written(text, prepared, chunks, 2), index)
        assert joined_message(written(text, prepared, received, 2), index) == straight
        assert straight[1] is not None
    assert [received[-1].output] == [chunks[-1].output]
    assert sum(len(chunk.token_ids) for chunk in received) == sum(len(chunk.token_ids) for chunk in chunks)


async def _read(chunks: Sequence[StreamChunk], reads: set[int]) -> list[StreamChunk]:
    """Put all chunks into a stream and read one after those in `reads`, the rest at the end."""
    stream = RequestStream(cast(AsyncLLM, None), "r")  # the owner is needed by `close` only
    received = []
    for at, chunk in enumerate(chunks):
        stream.put(chunk)
        if at in reads:
            received.append(await anext(stream))
    received += [chunk async for chunk in stream]
    return received


@pytest.fixture(scope="module", params=list(DIALECTS))
def scripted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """(dialect, ask): ask(raw answer) gives the whole answer and the streamed one of a live server."""
    raw = [""]
    llm = scripted_llm(tmp_path_factory.mktemp("model"), lambda prompt: raw[0], dialect=request.param)
    with serve(config(), llm) as running, running.client() as client:

        def ask(answer: str) -> tuple[dict[str, Any], list[Any]]:
            raw[0] = answer
            body = {"messages": [{"role": "user", "content": "?"}], "tools": TOOLS}
            whole = client.post("/v1/chat/completions", json=body)
            streamed = client.post("/v1/chat/completions", json=body | {"stream": True})
            assert (whole.status_code, streamed.status_code) == (200, 200)
            return whole.json(), read_events(streamed.text)

        yield request.param, ask


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_over_http(scripted: Any, data: st.DataObject) -> None:
    dialect, ask = scripted
    pieces = data.draw(st.lists(st.one_of(st.sampled_from(PIECES[dialect]), st.text(max_size=4)), max_size=12))
    whole, streamed = ask("".join(pieces))
    assert streamed.pop() == "[DONE]"
    (choice,) = whole["choices"]
    joined, reason = joined_message(streamed)
    assert without_ids(joined) == without_ids(whole_message(choice["message"]))
    assert reason == choice["finish_reason"] == ("tool_calls" if joined["tool_calls"] else "stop")
