"""The `remote` backend in front of a real vLLM server on the CPU, over both of its routes."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_vllm import vllm_server, write_hf_tokenizer
from remote_routes import ROUTES, over
from vllm_models import PROMPTS, folder_of, outputs_of, request, tokens_of

from glm4 import LLM, SamplingParams, StructuredOutputs
from glm4.backends.remote.backend import RemoteBackend
from glm4.errors import InvalidRequestError, RemoteError
from golden_models import TinyModel
from tiny import VOCAB_SIZE, write_folder

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]

CONTEXT = 2048  # tools take hundreds of bytes, each a token
GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, _ = folder_of(tmp_path_factory.mktemp("served"), "chatglm")
    write_hf_tokenizer(path)  # and no template: GLM-4's own knows tools
    return path


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with vllm_server(
        folder, tmp_path_factory.mktemp("log") / "vllm.log", "--tokenizer", str(folder), "--max-model-len", str(CONTEXT)
    ) as found:
        yield found


@pytest.fixture(scope="module", params=ROUTES)
def remote(request: pytest.FixtureRequest, url: str, folder: Path) -> Iterator[LLM]:
    with over(request.param):
        llm = LLM(str(folder), backend="remote", base_url=url)
    with llm:
        assert isinstance(llm.backend, RemoteBackend)
        assert llm.backend._endpoint.path == request.param
        yield llm


@pytest.fixture(scope="module")
def local(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), dtype="fp32", max_model_len=CONTEXT) as llm:
        yield llm


def test_greedy_tokens_are_those_of_the_local_engine(remote: LLM, local: LLM) -> None:
    requests = [request(f"r{n}", ids, GREEDY.replace(logprobs=2)) for n, ids in enumerate(PROMPTS)]
    found, wanted = outputs_of(remote, requests), outputs_of(local, requests)
    for name, parts in found.items():
        assert tokens_of(parts) == tokens_of(wanted[name])
        theirs = [one for part in parts for one in part.logprobs]
        ours = [one for part in wanted[name] for one in part.logprobs]
        for a, b in zip(theirs, ours, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)


def test_where_it_ends(remote: LLM) -> None:
    plain = tokens_of(outputs_of(remote, [request("r", PROMPTS[0], GREEDY)])["r"])
    third = plain[3]
    params = SamplingParams(temperature=0.0, max_tokens=16)
    parts = outputs_of(remote, [request("r", PROMPTS[0], params, stop_ids=frozenset({third}))])["r"]
    assert tokens_of(parts) == plain[: plain.index(third) + 1]
    assert (parts[-1].finish_reason, parts[-1].stop_token_id) == ("stop", third)
    whole = outputs_of(remote, [request("r", [97] * (CONTEXT - 9), GREEDY.replace(max_tokens=None))])["r"]
    assert (len(tokens_of(whole)), whole[-1].finish_reason) == (9, "length")


def test_grammars(remote: LLM) -> None:
    for form, fits in (
        (StructuredOutputs(regex="[ab]{3,9}c"), r"[ab]{3,9}c"),
        (StructuredOutputs(choice=["red", "blau"]), r"red|blau"),
        (StructuredOutputs(json={"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"],
                                 "additionalProperties": False}), r'\s*\{\s*"a"\s*:\s*[12]\s*\}\s*'),
    ):  # fmt: skip
        params = SamplingParams(temperature=1.0, seed=1, max_tokens=300, structured_outputs=form)
        output = remote.generate({"prompt_token_ids": PROMPTS[0]}, params)[0].outputs[0]
        assert re.fullmatch(fits, output.text), output.text
        assert output.finish_reason == "stop"


def test_a_forced_call_of_a_tool(remote: LLM) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {
                "type": "object",
                "properties": {"a": {"enum": [1, 2]}},
                "required": ["a"],
                "additionalProperties": False,
            },
        },
    }
    prepared = remote.prepare_chat(
        [{"role": "user", "content": "hello"}],
        SamplingParams(temperature=1.0, seed=1, max_tokens=300),
        tools=[tool],
        tool_choice="required",
    )
    (output,) = remote.run([("r", prepared)])
    (call,) = output.outputs[0].tool_calls
    assert call.name == "add"
    assert json.loads(call.arguments)["a"] in (1, 2)


def test_an_abort_frees_the_server(remote: LLM, url: str) -> None:
    remote.backend.add_request(request("dropped", PROMPTS[0], GREEDY.replace(max_tokens=500)))
    while not remote.backend.step():
        pass
    remote.backend.abort("dropped")
    assert list(outputs_of(remote, [request("kept", PROMPTS[0], GREEDY)])) == ["kept"]
    for _ in range(200):
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
            if re.search(rb"^vllm:num_requests_running\{.*\} 0\.0$", answer.read(), re.MULTILINE):
                return
    raise AssertionError("the request still runs")


def test_ids_without_a_token_are_never_sampled(remote: LLM) -> None:
    unnamed = set(remote.tokenizer.unnamed_ids(VOCAB_SIZE).tolist())
    hot = SamplingParams(temperature=2.0, max_tokens=20, ignore_eos=True)
    requests = [request(f"r{n}", [97 + n], hot.replace(seed=n)) for n in range(4)]
    assert not unnamed & {token for parts in outputs_of(remote, requests).values() for token in tokens_of(parts)}


def test_an_id_outside_the_vocabulary_never_leaves(remote: LLM) -> None:
    with pytest.raises(InvalidRequestError):
        remote.backend.add_request(request("bad", [VOCAB_SIZE], GREEDY))


def test_another_tokenizer_is_noticed_when_it_is_opened(url: str, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "other", TinyModel("other", 1, vocab_size=VOCAB_SIZE))
    ranks = (other / "tokenizer.model").read_bytes().splitlines()
    ids = [line.split()[0] for line in ranks]
    ids[97], ids[98] = ids[98], ids[97]
    (other / "tokenizer.model").write_bytes(b"".join(b"%s %d\n" % (piece, n) for n, piece in enumerate(ids)))
    with pytest.raises(RemoteError, match="tokenizer"):
        LLM(str(other), backend="remote", base_url=url)
