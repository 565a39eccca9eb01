"""Log-probabilities of an answer are about its visible text: joined, the tokens' bytes are that text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_streaming_equals_whole import TOOLS, answers

from glm4.api.openai.answers import chat_completion
from glm4.api.openai.events import ChatChunks
from glm4.api.openai.request import ResponseOptions, StreamOptions
from glm4.api.responses.events import ResponseWriter
from glm4.api.responses.request import parse_responses
from glm4.chat.dialects.table import DIALECTS, dialect_for
from glm4.engine.protocol import GenerationOutput
from glm4.logprobs import TextToken, TokenLogprobs
from glm4.outputs import CompletionOutput, StreamChunk
from glm4.requests.output_processor import SampleProcessor
from glm4.requests.request_state import RequestState
from glm4.sampling_params import SamplingParams
from glm4.tokenizer import Detokenizer, Tokenizer, load_tokenizer
from live import config, serve
from scripted_llm import scripted_llm
from tiny import write_tokenizer

SPECIALS = {"<|assistant|>": "\x1e"}


def tokens_of(pieces: Sequence[str | bytes], sizes: Sequence[int]) -> list[bytes]:
    """The bytes of each token: the pieces' bytes, cut anywhere; a special token is one by itself."""
    tokens: list[bytes] = []
    lengths = iter(sizes)
    for special, group in _runs(pieces):
        at = 0
        while not special and at < len(group):
            size = next(lengths, 3)
            tokens.append(group[at : at + size])
            at += size
        tokens += [group] if special else []
    return tokens


def _runs(pieces: Sequence[str | bytes]) -> Iterator[tuple[bool, bytes]]:
    plain = b""
    for piece in pieces:
        if isinstance(piece, str) and piece in SPECIALS:
            yield False, plain
            yield True, piece.encode()
            plain = b""
        else:
            plain += piece if isinstance(piece, bytes) else piece.encode("utf-8", "replace")
    yield False, plain


def run(
    dialect: str, tokens: Sequence[bytes], *, stop: Sequence[str] = (), limit: int | None = None, per_step: int = 1
) -> list[StreamChunk]:
    """The chunks of an answer with these tokens. The log-probability of a token is minus its number."""
    shown = {at: SPECIALS[token.decode()] for at, token in enumerate(tokens) if token.decode("latin1") in SPECIALS}
    detokenizer = Detokenizer(lambda at: tokens[at], shown_as=shown)
    parser = dialect_for(dialect).parser(TOOLS)
    params = SamplingParams(logprobs=0, stop=list(stop))
    state = RequestState("r", None, [0])
    state.samples["r#0"] = SampleProcessor(0, params, detokenizer, parser, lambda: None, limit)
    chunks = []
    for first in range(0, max(1, len(tokens)), per_step):
        ids = tuple(range(len(tokens)))[first : first + per_step]
        logprobs = tuple(TokenLogprobs(at, -float(at), 1) for at in ids)
        reason = "length" if first + per_step >= len(tokens) else None
        chunk = state.push(GenerationOutput("r#0", ids, reason, logprobs=logprobs))
        chunks += [] if chunk is None else [chunk]
    return chunks


def answer_of(chunks: Sequence[StreamChunk]) -> CompletionOutput:
    output = chunks[-1].output
    assert output is not None
    return output.outputs[0]


def check(sample: CompletionOutput, tokens: Sequence[bytes]) -> list[TextToken]:
    shares = sample.text_logprobs
    assert shares is not None
    assert b"".join(share.text for share in shares) == sample.text.encode()
    numbers = [share.logprobs.token_id for share in shares]
    assert numbers == sorted(numbers)
    if not sample.tool_calls:
        assert len(set(numbers)) == len(numbers), "each token once, unless a call lies inside it"
    for share in shares:
        whole = iter(tokens[share.logprobs.token_id])
        written = share.text.replace(b"\n", b"")  # a line break may be the parser's
        broken = b"\xef" in written or b"\xbf" in written  # a part of U+FFFD
        assert broken or all(byte in whole for byte in written), "the token's own bytes, in their order"
    return shares


@pytest.mark.parametrize("dialect", DIALECTS)
@settings(max_examples=120, deadline=None)
@given(
    data=st.data(),
    sizes=st.lists(st.integers(1, 9), max_size=30),
    stop=st.sampled_from([(), ("x",), ("好", "ext"), ("}",), ("t\n",)]),
    limit=st.sampled_from([None, 1]),
    per_step=st.integers(1, 4),
)
def test_joined_bytes_are_the_text(
    dialect: str, data: st.DataObject, sizes: list[int], stop: tuple[str, ...], limit: int | None, per_step: int
) -> None:
    tokens = tokens_of(data.draw(answers(dialect)), sizes)
    whole = answer_of(run(dialect, tokens, stop=stop, limit=limit, per_step=max(1, len(tokens))))
    expected = check(whole, tokens)
    chunks = run(dialect, tokens, stop=stop, limit=limit, per_step=per_step)
    sample = answer_of(chunks)
    shares = check(sample, tokens)
    assert sample.text == whole.text
    assert joined(shares) == joined(expected), "however it was cut into steps"
    deltas = [event for chunk in chunks for event in chunk.events if getattr(event, "tokens", None) is not None]
    for delta in deltas:
        assert b"".join(token.text for token in delta.tokens) == delta.text.encode(), "in every delta"  # type: ignore[union-attr]
    assert [token for delta in deltas for token in delta.tokens] == shares  # type: ignore[union-attr]


def joined(shares: Sequence[TextToken]) -> list[tuple[int, bytes]]:
    """Shares of one token together: where a call lies inside a token, steps decide how many it has."""
    result: list[tuple[int, bytes]] = []
    for share in shares:
        number = share.logprobs.token_id
        if result and result[-1][0] == number:
            result[-1] = number, result[-1][1] + share.text
        else:
            result.append((number, share.text))
    return result


CASES: list[tuple[str, list[bytes], dict[str, Any], list[tuple[int, bytes]]]] = [
    ("glm4", [b"\n", b"Yes", b"!"], {}, [(1, b"Yes"), (2, b"!")]),
    ("glm4", [b"\nY", b"es"], {}, [(0, b"Y"), (1, b"es")]),
    ("glm4", [b"\na", b"<|assistant|>", b"\n", b"b"], {}, [(0, b"a"), (2, b"\n"), (3, b"b")]),
    ("glm4", [b"\na", b"<|assistant|>", b"b"], {}, [(0, b"a"), (1, b"\n"), (2, b"b")]),
    ("glm4", [b"get_weather", b"\n", b"{}"], {}, []),
    ("glm_z1", [b"a", b"</think", b">\n\n", b"a", b"\n", b"b"], {}, [(3, b"a"), (4, b"\n"), (5, b"b")]),
    ("glm_z1", [b"a</think>\n", b"\na</think>"], {}, [(1, b"a</think>")]),
    ("chatml", [b"Hi ", b"there", b" END", b"."], {"stop": ["END"]}, [(0, b"Hi "), (1, b"there"), (2, b" ")]),
    ("chatml", [b"Hi t", b"he", b"re"], {"stop": ["ther"]}, [(0, b"Hi ")]),
    ("chatml", [b"a ", b"\n<tool_call>", b'{"name": "get", "arguments": {}}', b"</tool_call>"], {}, [(0, b"a")]),
    ("chatml", [b"\xe9\xbe", b"\x98", b"x"], {}, [(0, b"\xe9\xbe"), (1, b"\x98"), (2, b"x")]),
    ("chatml", [b"a\xe9", b"\xbe"], {}, [(0, b"a\xef"), (1, b"\xbf\xbd")]),
    ("chatml", [b"a", b"\xe9\xbe"], {}, [(0, b"a"), (1, b"\xef\xbf\xbd")]),
    ("chatml", [b"\xe9b"], {}, [(0, b"\xef\xbf\xbdb")]),
]


@pytest.mark.parametrize(("dialect", "tokens", "options", "expected"), CASES)
@pytest.mark.parametrize("per_step", [1, 99])
def test_what_belongs_to_which_token(
    dialect: str, tokens: list[bytes], options: dict[str, Any], expected: list[tuple[int, bytes]], per_step: int
) -> None:
    sample = answer_of(run(dialect, tokens, per_step=per_step, **options))
    assert joined(check(sample, tokens)) == expected


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.mark.parametrize("dialect", DIALECTS)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), sizes=st.lists(st.integers(1, 9), max_size=30), per_step=st.integers(1, 4))
def test_every_api_writes_them(
    tokenizer: Tokenizer, dialect: str, data: st.DataObject, sizes: list[int], per_step: int
) -> None:
    tokens = tokens_of(data.draw(answers(dialect)), sizes)
    chunks = run(dialect, tokens, stop=("ext",), per_step=per_step)
    output = chunks[-1].output
    assert output is not None
    (choice,) = chat_completion(output, "m", tokenizer)["choices"]
    content = choice["logprobs"]["content"]
    assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == (choice["message"]["content"] or "")

    writer = ChatChunks("m", tokenizer, [0], StreamOptions(), ResponseOptions())
    streamed: list[Any] = []
    for one in (one for chunk in chunks for one in writer.push(chunk)):
        (part,) = one["choices"]
        own = (part["logprobs"] or {"content": []})["content"]
        assert bytes(byte for entry in own for byte in entry["bytes"]).decode() == part["delta"].get("content", "")
        streamed += own
    assert streamed == content

    body = {"input": "x", "include": ["message.output_text.logprobs"]}
    response = ResponseWriter(parse_responses(body, SamplingParams(), thinks=True), "m", tokenizer)
    events = [event for chunk in chunks for event in response.push(chunk)]
    found: list[Any] = []
    for event in events:
        if event["type"] in ("response.output_text.delta", "response.output_text.done"):
            own = event["logprobs"]
            assert bytes(byte for entry in own for byte in entry["bytes"]).decode() == event.get(
                "delta", event.get("text")
            )
            found += own if "delta" in event else []
    assert found == content


def test_a_live_server_writes_them(tmp_path: Any) -> None:
    """Whole and streamed, with a stop string in the middle, for both OpenAI APIs."""
    llm = scripted_llm(tmp_path, lambda prompt: "\nYes, 龘 STOP no")
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "?"}], "logprobs": True, "stop": ["STOP"]}
    with serve(config(), llm) as running, running.client() as client:
        (choice,) = client.post("/v1/chat/completions", json=chat).json()["choices"]
        body = {"input": "?", "include": ["message.output_text.logprobs"], "stop": ["STOP"]}
        (item,) = client.post("/v1/responses", json=body).json()["output"]
    for text, entries in (
        (choice["message"]["content"], choice["logprobs"]["content"]),
        (item["content"][0]["text"], item["content"][0]["logprobs"]),
    ):
        assert text == "Yes, 龘 "
        assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == text
