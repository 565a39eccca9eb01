"""Pictures sent by the official client libraries, whole and as streams, in both kinds of clients."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from messages_client import only_known
from picture_server import CAT, ask, data_url, in_base64, seeing_server
from sdk_server import KEY

from live import LiveServer
from vision_folder import ROWS

MESSAGES: Any = ask(data_url(CAT))
BLIND: Any = ask()
DAMAGED: Any = ask(data_url(b"hello"))
WORDS = "what is it?"
OPTIONS: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 8}
FOR_CLAUDE: dict[str, Any] = {"model": "tiny", "max_tokens": 8, "extra_body": {"temperature": 0}}
INPUT: Any = [
    {
        "role": "user",
        "content": [
            {"type": "input_text", "text": WORDS},
            {"type": "input_image", "image_url": data_url(CAT), "detail": "high"},
        ],
    }
]
BLOCKS: Any = [
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": in_base64(CAT)}},
    {"type": "text", "text": WORDS},
]
TURN: Any = [{"role": "user", "content": BLOCKS}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with seeing_server(tmp_path_factory.mktemp("sees"), keys=(KEY,)) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture
def claude(server: LiveServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture
def expected(client: openai.OpenAI) -> str:
    answer = client.chat.completions.create(messages=MESSAGES, **OPTIONS)
    blind = client.chat.completions.create(messages=BLIND, **OPTIONS)
    assert answer.usage is not None
    assert blind.usage is not None
    assert answer.usage.prompt_tokens == blind.usage.prompt_tokens + ROWS
    content = answer.choices[0].message.content
    assert content != blind.choices[0].message.content
    assert isinstance(content, str)
    return content


def test_openai_streams(client: openai.OpenAI, expected: str) -> None:
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(messages=MESSAGES, **OPTIONS, **options))
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == expected
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.prompt_tokens == client.chat.completions.create(messages=MESSAGES, **OPTIONS).usage.prompt_tokens


def test_openai_asynchronously(server: LiveServer, expected: str) -> None:
    async def run() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
            one = client.chat.completions.create(messages=MESSAGES, **OPTIONS)
            answers = await asyncio.gather(one, client.chat.completions.create(messages=MESSAGES, **OPTIONS))
            stream = await client.chat.completions.create(messages=MESSAGES, stream=True, **OPTIONS)
            text = "".join([c.delta.content or "" async for chunk in stream for c in chunk.choices])
            return [*(answer.choices[0].message.content for answer in answers), text]

    assert asyncio.run(run()) == [expected] * 3


def test_openai_responses(client: openai.OpenAI, expected: str) -> None:
    answer = client.responses.create(model="tiny", input=INPUT, temperature=0, max_output_tokens=8)
    assert answer.output_text == expected
    with client.responses.stream(model="tiny", input=INPUT, temperature=0, max_output_tokens=8) as stream:
        assert "".join(event.delta for event in stream if event.type == "response.output_text.delta") == expected
    later = client.responses.create(
        model="tiny", input="And?", previous_response_id=answer.id, temperature=0, max_output_tokens=4
    )
    assert later.usage is not None
    assert answer.usage is not None
    assert later.usage.input_tokens > answer.usage.input_tokens
    counted = client.responses.input_tokens.count(model="tiny", input=INPUT)
    assert counted.input_tokens == answer.usage.input_tokens


def test_openai_errors_name_the_part(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="cannot be decoded: it looks like text") as caught:
        client.chat.completions.create(messages=DAMAGED, **OPTIONS)
    assert caught.value.param == "messages[0].content[1]"


def test_anthropic(claude: anthropic.Anthropic, expected: str) -> None:
    message = claude.messages.create(messages=TURN, **FOR_CLAUDE)
    only_known(message)
    assert "".join(block.text for block in message.content) == expected
    with claude.messages.stream(messages=TURN, **FOR_CLAUDE) as stream:
        assert "".join(stream.text_stream) == expected
        used = stream.get_final_message().usage
    count = claude.messages.count_tokens(model="tiny", messages=TURN)
    assert count.input_tokens == used.input_tokens + (used.cache_read_input_tokens or 0)
    part: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "@"}}
    bad: Any = [{"role": "user", "content": [part]}]
    with pytest.raises(anthropic.BadRequestError, match=r"messages\.0\.content\.0: the image is not valid base64"):
        claude.messages.create(messages=bad, **FOR_CLAUDE)


def test_anthropic_asynchronously(server: LiveServer, expected: str) -> None:
    async def run() -> list[str]:
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key=KEY, max_retries=0, timeout=60) as client:
            message = await client.messages.create(messages=TURN, **FOR_CLAUDE)
            async with client.messages.stream(messages=TURN, **FOR_CLAUDE) as stream:
                text = "".join([piece async for piece in stream.text_stream])
            return ["".join(block.text for block in message.content), text]

    assert asyncio.run(run()) == [expected] * 2
