"""`logprobs` of text choices: names that do not collide, offsets into the text, whole and streamed alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm4.api.openai.answers import text_completions
from glm4.api.openai.events import TextChunks
from glm4.api.openai.request import parse_completion
from glm4.chat.parsers.base import PlainParser
from glm4.engine.protocol import GenerationOutput
from glm4.logprobs import TokenLogprobs
from glm4.outputs import RequestOutput, StreamChunk
from glm4.requests.output_processor import SampleProcessor
from glm4.requests.request_state import RequestState
from glm4.sampling_params import SamplingParams
from glm4.tokenizer import Tokenizer, load_tokenizer
from tiny import special_id, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load_tokenizer(folder)


def scores(ids: Sequence[int]) -> tuple[TokenLogprobs, ...]:
    return tuple(TokenLogprobs(token, -float(at), 1, ((0xE4, -0.5), (0xB9, -0.75))) for at, token in enumerate(ids))


def run(
    tokenizer: Tokenizer, body: dict[str, Any], ids: Sequence[int], per_step: int, prompt: str | None, num_added: int
) -> tuple[RequestOutput, dict[str, Any], list[dict[str, Any]]]:
    """The output, the whole body's choice and the streamed choices of an answer with these ids."""
    request = parse_completion({"logprobs": 2, **body}, SamplingParams())
    sent = body["prompt"] if prompt is None else tokenizer.encode_prompt(prompt)
    state = RequestState("r", prompt, sent, num_added_ids=num_added)
    detokenizer = tokenizer.detokenizer(skip_special_tokens=request.params.skip_special_tokens)
    state.samples["r#0"] = SampleProcessor(0, request.params, detokenizer, PlainParser(), lambda: None)
    writer = TextChunks("m", tokenizer, request)
    writer.started(0, prompt, sent, num_added)
    chunks: list[StreamChunk] = []
    own = scores(ids)
    for first in range(0, max(1, len(ids)), per_step):
        end = first + per_step
        scored = (None, *scores(sent[1:])) if first == 0 and request.echo else None
        reason = "length" if end >= len(ids) else None
        new = GenerationOutput("r#0", tuple(ids[first:end]), reason, None, own[first:end], scored)
        chunks += [chunk for chunk in [state.push(new)] if chunk is not None]
    output = chunks[-1].output
    assert output is not None
    skip = request.params.skip_special_tokens
    whole = text_completions(
        [output],
        "m",
        tokenizer,
        request.response,
        echo=request.echo,
        generate=request.generate,
        skip_special_tokens=skip,
    )
    return output, whole["choices"][0], [one["choices"][0] for chunk in chunks for one in writer.push(0, chunk)]


def joined(parts: Sequence[dict[str, Any]], key: str) -> list[Any]:
    return [one for part in parts if part["logprobs"] is not None for one in part["logprobs"][key]]


pieces = st.one_of(
    st.sampled_from(["a", "x", "stop", "st", "龘", "é", "👩", " ", "\n"]).map(str.encode),
    st.binary(min_size=1, max_size=3),
)


@settings(max_examples=250, deadline=None)
@given(
    parts=st.lists(pieces, max_size=10),
    specials=st.sets(st.integers(0, 12), max_size=3),
    stop=st.sampled_from([[], ["stop"], ["x", "é"]]),
    echo=st.sampled_from(["text", "ids", None]),
    skip=st.booleans(),
    per_step=st.integers(1, 5),
    return_ids=st.booleans(),
    include=st.booleans(),
)
def test_whole_and_streamed(
    tokenizer: Tokenizer,
    parts: list[bytes],
    specials: set[int],
    stop: list[str],
    echo: str | None,
    skip: bool,
    per_step: int,
    return_ids: bool,
    include: bool,
) -> None:
    ids = [*b"".join(parts)]  # ids below 256 are bytes
    for at in sorted(specials):
        ids.insert(at, special_id("<|user|>"))
    text = "hé 龘"
    prompt: Any = text if echo == "text" else [*text.encode(), 0xE4]
    body = {
        "prompt": prompt, "echo": echo is not None, "stop": stop, "skip_special_tokens": skip,
        "return_token_ids": return_ids, "include_stop_str_in_output": include, "max_tokens": 99,
    }  # fmt: skip
    given_text = text if echo == "text" else None
    num_added = len(tokenizer.prefix_ids) if echo == "text" else 0
    output, whole, streamed = run(tokenizer, body, ids, per_step, given_text, num_added)
    (sample,) = output.outputs
    shown = {None: "", "text": text, "ids": text + "�"}[echo]
    assert whole["text"] == shown + sample.text == "".join(part["text"] for part in streamed)
    if not whole["logprobs"]["tokens"]:
        assert (sample.token_ids, echo) == ([], None)
        return
    for key in whole["logprobs"]:
        assert joined(streamed, key) == whole["logprobs"][key], key
    offsets, names = whole["logprobs"]["text_offset"], whole["logprobs"]["tokens"]
    listed = [*(output.prompt_token_ids[num_added:] if echo else ()), *sample.token_ids]
    assert len(names) == len(listed)
    assert offsets == sorted(offsets)
    assert all(0 <= offset <= len(whole["text"]) for offset in offsets)
    for token, name, offset in zip(listed, names, offsets, strict=True):
        raw = tokenizer.token_bytes(token)
        if name.startswith("bytes:"):
            assert bytes(int(byte, 16) for byte in name.removeprefix("bytes:").split("\\x")[1:]) == raw
        else:
            assert name == raw.decode()
            if token < 256 and offset < len(whole["text"]):
                assert whole["text"][offset] == name, "a whole character stands at its offset"
    if return_ids:
        assert [token for part in streamed for token in part["token_ids"]] == sample.token_ids
        for part in streamed:  # together, as clients that read both expect
            count = 0 if part["logprobs"] is None else len(part["logprobs"]["tokens"])
            prompt_count = len(listed) - len(sample.token_ids) if part is streamed[0] and echo else 0
            assert count - prompt_count == len(part["token_ids"])


def test_parts_of_characters_keep_their_names(tokenizer: Tokenizer) -> None:
    """Each is listed; both parts of a character stand where it does."""
    ids = [*"a龘b".encode()]
    _, whole, _ = run(tokenizer, {"prompt": [97]}, ids, 1, None, 0)
    logprobs = whole["logprobs"]
    assert logprobs["tokens"] == ["a", "bytes:\\xe9", "bytes:\\xbe", "bytes:\\x98", "b"]
    assert logprobs["text_offset"] == [0, 1, 1, 1, 2]
    assert [set(top) for top in logprobs["top_logprobs"]] == [
        {name, "bytes:\\xe4", "bytes:\\xb9"} for name in logprobs["tokens"]
    ]
    assert [top[name] for name, top in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True)] == [
        -float(at) for at in range(5)
    ]


def test_a_stop_string_stands_at_the_end_of_the_text(tokenizer: Tokenizer) -> None:
    _, whole, streamed = run(tokenizer, {"prompt": [97], "stop": ["stop"]}, [*b"ab stop"], 1, None, 0)
    assert whole["text"] == "ab "
    assert whole["logprobs"]["text_offset"] == joined(streamed, "text_offset") == [0, 1, 2, 3, 3, 3, 3]
