"""Adapters and embeddings through `LLM`, `AsyncLLM` and the command line, on tiny checkpoints."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import golden_models as gm
from adapter_files import factors, settings, write_adapter
from glm4 import LLM, AsyncLLM, Glm4Error, SamplingParams
from glm4.errors import CheckpointError, InvalidRequestError, OutOfMemoryError, PromptTooLongError
from glm4.loading import cache_entries, packed_cache
from glm4.sampling_params import StructuredOutputs
from scripted_llm import scripted_llm
from tiny import gguf_model, write_folder, write_gguf

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
CHAT = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), dtype="fp32", max_model_len=256, max_num_seqs=4) as made:
        yield made


@pytest.fixture
def adapter(llm: LLM, tmp_path: Path) -> str:
    path = write_adapter(tmp_path / "adapter", factors(llm.backend.model.config, 1))  # type: ignore[attr-defined]
    return str(path)


def tokens(llm: LLM, adapter: str | None = None) -> list[int]:
    (output,) = llm.chat(CHAT, GREEDY, adapter=adapter)
    return output.outputs[0].token_ids


def test_load_use_list_and_unload(llm: LLM, adapter: str) -> None:
    plain = tokens(llm)
    info = llm.load_adapter("mine", adapter)
    assert (info.name, info.path, info.rank) == ("mine", adapter, 4)
    assert info.nbytes > 0
    assert llm.adapters() == [info]
    adapted = tokens(llm, "mine")
    assert adapted != plain
    assert tokens(llm) == plain
    (text,) = llm.generate("abc", GREEDY, adapter="mine")
    assert text.outputs[0].token_ids != llm.generate("abc", GREEDY)[0].outputs[0].token_ids
    streamed = [t for chunk in llm.stream_chat(CHAT, GREEDY, adapter="mine") for t in chunk.token_ids]
    assert streamed == adapted
    llm.unload_adapter("mine")
    assert llm.adapters() == []
    with pytest.raises(InvalidRequestError, match="no adapter 'mine'") as caught:
        tokens(llm, "mine")
    assert caught.value.param == "model"
    with pytest.raises(InvalidRequestError):
        llm.unload_adapter("mine")
    assert not llm.has_unfinished_requests()


def test_n_samples_under_an_adapter(llm: LLM, adapter: str) -> None:
    llm.load_adapter("mine", adapter)
    params = SamplingParams(n=3, seed=5, max_tokens=8, ignore_eos=True)
    (first,) = llm.generate("abc", params, adapter="mine")
    (again,) = llm.generate("abc", params, adapter="mine")
    assert [s.token_ids for s in first.outputs] == [s.token_ids for s in again.outputs]


def test_an_adapter_that_cannot_be_used_leaves_nothing(llm: LLM, adapter: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such folder"):
        llm.load_adapter("mine", str(tmp_path / "nowhere"))
    broken = write_adapter(tmp_path / "broken", {}, settings())
    with pytest.raises(Glm4Error):
        llm.load_adapter("mine", str(broken))
    assert llm.adapters() == []
    llm.load_adapter("mine", adapter)
    with pytest.raises(InvalidRequestError, match="loaded already"):
        llm.load_adapter("mine", adapter)
    llm.backend.engine.adapters._max_nbytes = 10  # type: ignore[attr-defined]
    with pytest.raises(OutOfMemoryError):
        llm.load_adapter("other", adapter)


@pytest.mark.parametrize("dtype", ["int8", "int4", "bf16"])
def test_beside_short_weights_factors_are_bf16(folder: Path, adapter: str, llm: LLM, dtype: str) -> None:
    exact = llm.load_adapter("mine", adapter)
    with LLM(str(folder), dtype=dtype, max_model_len=256) as short:
        assert short.load_adapter("mine", adapter).nbytes * 2 == exact.nbytes
        assert tokens(short, "mine") != tokens(short)


def test_a_packed_copy_remembers_whose_rows_its_adapters_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A qwen2 file's adapter is half-split; the packed copy of the second start has adjacent pairs and must know."""
    for name in [name for name in os.environ if name.startswith("GLM4_") and name != "GLM4_ISA"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GLM4_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(packed_cache, "_MIN_NBYTES", 0)
    monkeypatch.setattr(cache_entries, "_SPARE_DISK", 0)
    row = gguf_model("qwen2")
    model = write_gguf(tmp_path / "m.gguf", "qwen2", row)
    targets = ("q_proj", "k_proj")
    with LLM(str(model), dtype="int8", max_model_len=128) as first:
        config = first.backend.model.config  # type: ignore[attr-defined]
        path = write_adapter(tmp_path / "a", factors(config, 3, targets, scale=0.5), settings(targets))
        first.load_adapter("mine", str(path))
        assert first.checkpoint is not None
        assert first.checkpoint.kind == "gguf"
        fresh = (tokens(first), tokens(first, "mine"))
    with LLM(str(model), dtype="int8", max_model_len=128) as second:
        second.load_adapter("mine", str(path))
        assert second.checkpoint is not None
        assert second.checkpoint.kind == "packed"
        assert (tokens(second), tokens(second, "mine")) == fresh
    assert fresh[0] != fresh[1]


def test_embeddings(llm: LLM) -> None:
    texts = ["hello", "你好", "hello"]
    found = llm.embed(texts)
    assert [len(one.embedding) for one in found] == [gm.TinyModel("x", 0).hidden_size] * 3
    assert found[0].prompt_tokens == len(llm.tokenizer.encode_prompt("hello"))
    np.testing.assert_array_equal(found[0].embedding, found[2].embedding)
    np.testing.assert_array_equal(llm.embed(texts[1])[0].embedding, found[1].embedding)
    np.testing.assert_array_equal(llm.embed(llm.tokenizer.encode_prompt("hello"))[0].embedding, found[0].embedding)
    assert np.abs(found[0].embedding - found[1].embedding).max() > 0.01
    assert np.linalg.norm(found[1].embedding) == pytest.approx(1.0, abs=1e-6)


def test_embeddings_beside_answers(llm: LLM, adapter: str) -> None:
    alone = llm.embed("some text to embed")[0].embedding
    llm.load_adapter("mine", adapter)
    expected = tokens(llm, "mine")
    llm.add("chat", llm.prepare_chat(CHAT, GREEDY, adapter="mine"))
    llm.add("embedding", llm.prepare_embedding("some text to embed"))
    outputs: dict[str, Any] = {}
    while llm.has_unfinished_requests():
        outputs |= {chunk.request_id: chunk.output for chunk in llm.step() if chunk.output is not None}
    assert outputs["chat"].outputs[0].token_ids == expected
    assert outputs["chat"].embedding is None
    np.testing.assert_array_equal(outputs["embedding"].as_embedding().embedding, alone)
    assert outputs["embedding"].outputs[0].token_ids == []
    assert outputs["embedding"].metrics.num_prompt_tokens == outputs["embedding"].as_embedding().prompt_tokens
    with pytest.raises(Glm4Error, match="no embedding"):
        outputs["chat"].as_embedding()


def test_a_grammar_under_an_adapter(llm: LLM, adapter: str) -> None:
    """Beside an answer without either, and a text to embed: each as alone."""
    llm.load_adapter("mine", adapter)
    strict = GREEDY.replace(structured_outputs=StructuredOutputs(regex="[ab]{6}"), max_tokens=20, ignore_eos=False)
    alone = llm.chat(CHAT, strict, adapter="mine")[0].outputs[0]
    plain, vector = tokens(llm), llm.embed("text")[0].embedding
    llm.add("strict", llm.prepare_chat(CHAT, strict, adapter="mine"))
    llm.add("plain", llm.prepare_chat(CHAT, GREEDY))
    llm.add("vector", llm.prepare_embedding("text"))
    outputs: dict[str, Any] = {}
    while llm.has_unfinished_requests():
        outputs |= {chunk.request_id: chunk.output for chunk in llm.step() if chunk.output is not None}
    assert re.fullmatch("[ab]{6}", alone.text)
    assert outputs["strict"].outputs[0].token_ids == alone.token_ids
    assert outputs["plain"].outputs[0].token_ids == plain
    np.testing.assert_array_equal(outputs["vector"].embedding, vector)


def test_a_text_longer_than_the_context_is_not_embedded(llm: LLM) -> None:
    ids = [65] * 257
    with pytest.raises(PromptTooLongError, match="257 tokens"):
        llm.embed([ids[:5], ids])
    assert not llm.has_unfinished_requests()
    assert llm.embed(ids[:256])[0].prompt_tokens == 256


def test_an_adapter_that_overflows_ends_its_request(llm: LLM, tmp_path: Path) -> None:
    config = llm.backend.model.config  # type: ignore[attr-defined]
    llm.load_adapter("huge", str(write_adapter(tmp_path / "huge", factors(config, 1, scale=1e18))))
    (output,) = llm.chat(CHAT, GREEDY, adapter="huge")
    assert output.outputs[0].finish_reason == "abort"
    with pytest.raises(Glm4Error, match="no embedding"):
        llm.embed("hello", adapter="huge")
    assert len(tokens(llm)) == 12


def test_asyncio(llm: LLM, adapter: str) -> None:
    expected = (llm.embed("hello")[0].embedding, tokens(llm))

    async def main() -> None:
        engine = AsyncLLM(llm)
        stream: Any = engine.stream_chat(CHAT, SamplingParams(max_tokens=200, ignore_eos=True))
        await anext(stream)
        info = await engine.load_adapter("mine", adapter)  # while the stream runs
        assert llm.adapters() == [info]
        assert llm.stats().num_running == 1
        plain, adapted, chat = await asyncio.gather(
            engine.embed("hello"), engine.embed("hello", adapter="mine"), engine.chat(CHAT, GREEDY, adapter="mine")
        )
        np.testing.assert_array_equal(plain.embedding, expected[0])
        assert np.abs(adapted.embedding - plain.embedding).max() > 0.01
        assert chat.outputs[0].token_ids != expected[1]
        llm.unload_adapter("mine")
        with pytest.raises(InvalidRequestError, match="no adapter"):
            await engine.generate("abc", GREEDY, adapter="mine")
        await stream.aclose()
        await engine.generate("abc", GREEDY)  # commands run in order: the abort came first
        assert llm.stats().num_running == llm.stats().kv_pages_used == 0
        await engine.close()

    asyncio.run(main())


def test_scripted_answers_take_adapters_and_embeddings_too(tmp_path: Path) -> None:
    with scripted_llm(tmp_path / "m", lambda prompt: "ok") as llm:
        llm.load_adapter("mine", "anywhere")
        assert [info.name for info in llm.adapters()] == ["mine"]
        assert llm.chat(CHAT, GREEDY, adapter="mine")[0].outputs[0].text == "ok"
        with pytest.raises(InvalidRequestError, match="no adapter 'other'"):
            llm.embed("x", adapter="other")
        first, second = llm.embed(["abc", "abd"])
        assert np.linalg.norm(first.embedding) == pytest.approx(1.0)
        assert not np.array_equal(first.embedding, second.embedding)


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_the_command_line(folder: Path, adapter: str, tmp_path: Path, command: str) -> None:
    def run(*more: str) -> subprocess.CompletedProcess[str]:
        options = ("-m", str(folder), "--dtype", "fp32", "--context", "128", "--temperature", "0", "--max-tokens", "12")
        line = [sys.executable, "-m", "glm4", command, *options, *more, "hello"]
        environment = {**os.environ, "GLM4_HOME": str(tmp_path)}
        return subprocess.run(line, capture_output=True, text=True, encoding="utf-8", env=environment, check=False)

    plain, adapted, broken = run(), run("--lora", adapter), run("--lora", str(tmp_path))
    assert plain.returncode == adapted.returncode == 0
    assert plain.stdout != adapted.stdout
    assert (broken.returncode, broken.stdout) == (1, "")
    assert "no adapter at" in broken.stderr
    assert "Traceback" not in broken.stderr


def test_published_settings_files_have_no_option_unknown_to_the_tests() -> None:
    """The helper's adapter_config.json is PEFT's: same keys as the recorded ones."""
    recorded = [json.loads(path.read_text()) for path in (gm.GOLDEN / "adapters").glob("*/adapter_config.json")]
    assert recorded
    for one in recorded:
        assert set(settings()) <= set(one), set(settings()) - set(one)
