"""Prefix adapters through the backend, `LLM` and the command line, on tiny checkpoints."""

from __future__ import annotations

import asyncio
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
from adapter_files import factors, write_adapter
from glm4 import LLM, AsyncLLM, SamplingParams
from glm4.backends.local import LocalBackend, LocalOptions
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.engine.protocol import GenerationRequest
from glm4.errors import InvalidRequestError, PromptTooLongError
from glm4.kernels import get_kernels
from glm4.prompt import Prompt
from glm4.sampling_params import StructuredOutputs
from prefix_files import write_prefix
from tiny import tiny_model, write_folder, write_gguf

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
CHAT = [{"role": "user", "content": "hello"}]
# Folder of tests/golden/prefixes -> tiny model, or the kind of GGUF file and its tiny model.
GOLDEN: dict[str, tuple[str, Any]] = {"hf": ("hf-chat", ""), "chatglm": ("chatglm-chat", ""), "glm4": ("glm4-9b", ""),
          "qwen2": ("hf-starter", "qwen2"), "llama": ("hf-edge", "llama")}  # fmt: skip


@pytest.mark.parametrize("case", GOLDEN)
def test_the_whole_way_from_a_file_of_peft_to_its_logits(case: str, tmp_path: Path) -> None:
    """Log-probabilities of a prompt under an adapter that was loaded by name, beside a request without one."""
    name, kind = GOLDEN[case]
    row = gm.TINY_MODELS[name]
    path = write_gguf(tmp_path / "m.gguf", kind, row, tokenizer=False) if kind else gm.write_checkpoint(tmp_path, row)
    golden = gm.load_golden(gm.GOLDEN / "prefixes" / case / "logits.npz")
    ids = golden["ids"].tolist()
    with open_checkpoint(path) as checkpoint:
        options = LocalOptions(dtype="fp32", max_model_len=96, max_num_batched_tokens=9)
        backend = LocalBackend.load(checkpoint, options, np.empty(0, np.int64))
    info = backend.load_adapter("it", str(gm.GOLDEN / "prefixes" / case))
    assert (info.kind, info.rank) == ("prefix", 0)
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, ignore_eos=True)
    for adapter in ("it", None):
        backend.add_request(GenerationRequest(str(adapter), Prompt(ids), params, adapter=adapter))
    outputs: dict[str, Any] = {}
    while backend.has_unfinished_requests():
        outputs |= {output.request_id: output for output in backend.step()}
    backend.close()
    wanted = get_kernels("reference").log_softmax(golden["logits"].copy())
    expected = wanted[np.arange(len(ids) - 1), ids[1:]]
    found = {key: [one.logprob for one in output.prompt_logprobs[1:]] for key, output in outputs.items()}
    np.testing.assert_allclose(found["it"], expected, rtol=0, atol=1e-4)
    assert np.abs(found["None"] - expected).max() > 0.1
    assert outputs["it"].token_ids == (int(golden["logits"][-1].argmax()),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), dtype="fp32", max_model_len=256, max_num_seqs=4) as made:
        yield made


@pytest.fixture
def prefixes(llm: LLM, tmp_path: Path) -> dict[str, str]:
    config = llm.backend.model.config  # type: ignore[attr-defined]
    return {f"p{count}": str(write_prefix(tmp_path / f"p{count}", config, count, count)) for count in (3, 40)}


def test_load_use_list_and_unload(llm: LLM, prefixes: dict[str, str], tmp_path: Path) -> None:
    lora = write_adapter(tmp_path / "lora", factors(llm.backend.model.config, 1))  # type: ignore[attr-defined]
    llm.load_adapter("lora", str(lora))
    names = [None, "lora", *prefixes]
    infos = [llm.load_adapter(name, path) for name, path in prefixes.items()]
    assert [(one.kind, one.rank, one.num_virtual_tokens) for one in llm.adapters()] == [
        ("lora", 4, 0), ("prefix", 0, 3), ("prefix", 0, 40),
    ]  # fmt: skip
    assert infos == llm.adapters()[1:]
    assert infos[1].nbytes > infos[0].nbytes > 0
    alone = {name: llm.chat(CHAT, GREEDY, adapter=name)[0] for name in names}
    assert len({tuple(output.outputs[0].token_ids) for output in alone.values()}) == 4
    assert len({tuple(output.prompt_token_ids) for output in alone.values()}) == 1
    assert {output.metrics.num_prompt_tokens for output in alone.values()} == {len(alone[None].prompt_token_ids)}
    for name in names * 2:
        llm.add(f"{name}-{llm.stats().num_waiting}", llm.prepare_chat(CHAT, GREEDY, adapter=name))
    together: dict[str, Any] = {}
    while llm.has_unfinished_requests():
        together |= {chunk.request_id: chunk.output for chunk in llm.step() if chunk.output is not None}
    assert len(together) == 8
    for key, output in together.items():
        name = key.rpartition("-")[0]
        assert output.outputs[0].token_ids == alone[None if name == "None" else name].outputs[0].token_ids
    llm.unload_adapter("p40")
    with pytest.raises(InvalidRequestError, match="no adapter 'p40'"):
        llm.chat(CHAT, GREEDY, adapter="p40")


def test_the_context_is_what_virtual_tokens_leave(llm: LLM, prefixes: dict[str, str]) -> None:
    llm.load_adapter("p40", prefixes["p40"])
    assert (llm.context(), llm.context("p40"), llm.context("unknown")) == (256, 216, 256)
    with pytest.raises(PromptTooLongError, match="216 tokens, but the context holds 216 beside the 40 virtual tokens"):
        llm.generate([[65] * 216], GREEDY, adapter="p40")
    (output,) = llm.generate([[65] * 206], GREEDY.replace(max_tokens=None), adapter="p40")
    assert (output.outputs[0].finish_reason, len(output.outputs[0].token_ids)) == ("length", 10)
    assert llm.embed([[65] * 216], adapter="p40")[0].prompt_tokens == 216
    config = llm.backend.model.config  # type: ignore[attr-defined]
    large = write_prefix(Path(prefixes["p40"]).parent / "large", config, 255)
    with pytest.raises(InvalidRequestError, match="no room in the context of 256; load the model with a larger"):
        llm.load_adapter("large", str(large))


def test_a_grammar_and_samples_behind_a_prefix(llm: LLM, prefixes: dict[str, str]) -> None:
    llm.load_adapter("it", prefixes["p40"])
    strict = GREEDY.replace(structured_outputs=StructuredOutputs(regex="[ab]{6}cc[ab]{3}"), ignore_eos=False)
    text = llm.chat(CHAT, strict.replace(max_tokens=20), adapter="it")[0].outputs[0].text
    assert re.fullmatch("[ab]{6}cc[ab]{3}", text)
    params = SamplingParams(n=3, seed=5, max_tokens=8, ignore_eos=True)
    (first,) = llm.generate("abc", params, adapter="it")
    (again,) = llm.generate("abc", params, adapter="it")
    assert [s.token_ids for s in first.outputs] == [s.token_ids for s in again.outputs]
    assert len({tuple(s.token_ids) for s in first.outputs}) == 3


@pytest.mark.parametrize(("dtype", "kv"), [("int8", "fp16"), ("int4", "int8"), ("bf16", "auto")])
def test_every_precision_serves_a_prefix(folder: Path, prefixes: dict[str, str], dtype: str, kv: str) -> None:
    with LLM(str(folder), dtype=dtype, kv_cache_dtype=kv, max_model_len=128) as llm:
        llm.load_adapter("it", prefixes["p40"])
        plain, adapted = (llm.chat(CHAT, GREEDY, adapter=name)[0].outputs[0].token_ids for name in (None, "it"))
        assert plain != adapted
        assert llm.chat(CHAT, GREEDY, adapter="it")[0].outputs[0].token_ids == adapted


def test_a_prefix_kept_on_disk_with_its_prompts(folder: Path, prefixes: dict[str, str], tmp_path: Path) -> None:
    ids, found = np.random.default_rng(1).integers(0, 256, 150).tolist(), []
    for _ in range(2):
        with LLM(
            str(folder), dtype="fp32", max_model_len=256, kv_store=tmp_path / "kv", kv_store_dtype="native",
            kv_store_min=64,
        ) as llm:  # fmt: skip
            llm.load_adapter("it", prefixes["p40"])
            (output,) = llm.generate([ids], GREEDY, adapter="it")
            found.append((output.outputs[0].token_ids, output.num_cached_tokens))
    assert found[1] == (found[0][0], (40 + 149) // 32 * 32 - 40)
    assert found[0][1] == 0


def test_asyncio(llm: LLM, prefixes: dict[str, str]) -> None:
    async def main() -> None:
        engine = AsyncLLM(llm)
        for name, path in prefixes.items():
            await engine.load_adapter(name, path)
        names = [None, *prefixes]
        answers = await asyncio.gather(*(engine.chat(CHAT, GREEDY, adapter=name) for name in names))
        assert len({tuple(one.outputs[0].token_ids) for one in answers}) == 3
        with pytest.raises(PromptTooLongError):
            await engine.generate([65] * 220, GREEDY, adapter="p40")
        await engine.close()

    asyncio.run(main())


@pytest.mark.parametrize(("command", "option"), [("chat", "--adapter"), ("generate", "--lora")])
def test_the_command_line(folder: Path, prefixes: dict[str, str], tmp_path: Path, command: str, option: str) -> None:
    def run(*more: str) -> subprocess.CompletedProcess[str]:
        options = ("-m", str(folder), "--dtype", "fp32", "--context", "128", "--temperature", "0", "--max-tokens", "12")
        line = [sys.executable, "-m", "glm4", command, *options, *more, "hello"]
        environment = {**os.environ, "GLM4_HOME": str(tmp_path)}
        return subprocess.run(line, capture_output=True, text=True, encoding="utf-8", env=environment, check=False)

    plain, adapted = run(), run(option, prefixes["p40"])
    assert plain.returncode == adapted.returncode == 0, adapted.stderr
    assert plain.stdout != adapted.stdout
    model = tiny_model(num_hidden_layers=3)
    other = write_prefix(tmp_path / "other", model, 4)  # type: ignore[arg-type]  # the sizes are all it reads
    broken = run(option, str(other))
    assert (broken.returncode, broken.stdout) == (1, "")
    assert "another model" in broken.stderr
    assert "Traceback" not in broken.stderr
