"""What the transformers backend refuses, and what ends a request of it without harm to others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapter_files import factors, write_adapter
from glm4 import LLM, SamplingParams
from glm4.backends.base import Capability
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.errors import (
    CheckpointError,
    Glm4Error,
    InternalError,
    InvalidRequestError,
    ModelClosedError,
    OutOfMemoryError,
    PromptTooLongError,
    TensorError,
)
from glm4.kernels import get_kernels
from glm4.outputs import RequestOutput
from golden_models import draw, file_tensors
from packing import pack_loaded
from tiny import tiny_model, write_folder
from vision_folder import write_vision_folder

pytestmark = pytest.mark.backends

GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
PROMPTS = [[97, 98, 99], [100] * 40, [101, 102]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model"))


def load(folder: Path, **options: Any) -> LLM:
    given = {"device": "cpu", "num_threads": 1, "max_model_len": 256, "max_num_seqs": 4, **options}
    return LLM(str(folder), backend="transformers", **given)


@pytest.fixture
def llm(folder: Path) -> Iterator[LLM]:
    with load(folder) as made:
        yield made


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    assert all(output.error is None for output in outputs)
    return [output.outputs[0].token_ids for output in outputs]


def run(llm: LLM, adapters: dict[int, str] | None = None) -> list[RequestOutput]:
    """All prompts in one batch."""
    for number, prompt in enumerate(PROMPTS):
        llm.add(str(number), llm.prepare_prompt(prompt, GREEDY, adapter=(adapters or {}).get(number)))
    found: dict[str, RequestOutput] = {}
    while llm.has_unfinished_requests():
        found |= {chunk.request_id: chunk.output for chunk in llm.step() if chunk.output is not None}
    return [found[str(number)] for number in range(len(PROMPTS))]


# Loading


@pytest.mark.parametrize(
    ("options", "error", "param", "match"),
    [
        ({"dtype": "fp16"}, InvalidRequestError, "dtype", "half precision"),
        ({"dtype": "int4"}, InvalidRequestError, "dtype", "auto, bf16, fp32"),
        ({"device": "gpu"}, InvalidRequestError, "device", "cuda:N or mps"),
        ({"device": "cuda:9"}, InvalidRequestError, "device", "there is no device 'cuda:9' here.*cpu"),
        ({"device": "mps"}, InvalidRequestError, "device", "there is no device 'mps' here"),
        ({"max_num_seqs": 0}, InvalidRequestError, "max_num_seqs", "at least 1"),
        ({"max_model_len": 9000}, InvalidRequestError, "max_model_len", "9000.*8192"),
        ({"kv_cache_memory": 1000}, OutOfMemoryError, None, "max_model_len"),
        ({"kernels": "native"}, InvalidRequestError, "kernels", "transformers backend has no option"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(
    folder: Path, options: dict[str, Any], error: type[Glm4Error], param: str | None, match: str
) -> None:
    with pytest.raises(error, match=match) as caught:
        load(folder, **options)
    assert getattr(caught.value, "param", None) == param


def test_a_device_that_is_not_there_costs_no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    from glm4 import open_model

    monkeypatch.setattr(open_model, "resolve", lambda *_, **__: pytest.fail("looks for the model"))
    with pytest.raises(InvalidRequestError, match="no device 'cuda:9'"):
        LLM("glm-4-9b-chat", backend="transformers", device="cuda:9")


def test_a_model_that_sees_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="sees pictures"):
        load(write_vision_folder(tmp_path))


def test_a_packed_model_is_refused(folder: Path, tmp_path: Path) -> None:
    packed = pack_loaded(folder, tmp_path / "packed", "int8", get_kernels())
    with pytest.raises(InvalidRequestError, match="packed as int8"):
        load(packed)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    model = tiny_model()
    tensors = file_tensors(model, draw(model))
    del tensors["model.layers.1.mlp.down_proj.weight"]
    with pytest.raises(TensorError, match=r"layers\.1"):
        load(write_folder(tmp_path, model, tensors=tensors))


def test_code_of_a_folder_is_never_run(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    path = write_folder(tmp_path / "model", config={"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}})
    (path / "modeling_evil.py").write_text(f"open({str(mark)!r}, 'w')")
    with load(path) as made, load(folder) as plain:
        assert tokens(made.generate(PROMPTS, GREEDY)) == tokens(plain.generate(PROMPTS, GREEDY))
    assert not mark.exists()


@pytest.mark.parametrize(("free", "dtype"), [(1 << 30, "fp32"), (300_000, "bf16")])
def test_auto_is_what_fits(folder: Path, monkeypatch: pytest.MonkeyPatch, free: int, dtype: str) -> None:
    from glm4.backends.transformers import device

    monkeypatch.setattr(device, "available_memory", lambda: free)
    with load(folder) as made:
        assert made.info.execution is not None
        assert made.info.execution.dtype == dtype
        (output,) = made.generate([PROMPTS[1]], GREEDY)
        assert len(output.outputs[0].token_ids) == 24


def test_weights_that_do_not_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from glm4.backends.transformers import device

    monkeypatch.setattr(device, "available_memory", lambda: 100_000)
    with pytest.raises(OutOfMemoryError, match=r"weights in bf16 need .* cpu has 0\.0 GB free"):
        load(folder)


def test_progress_reaches_its_end(folder: Path) -> None:
    calls: list[tuple[str, float, float]] = []
    with load(folder, progress=lambda *call: calls.append(call)) as made:
        assert made.info.execution is not None
        done = [call[1] for call in calls if call[0] == "loading"]
        assert done == sorted(done)
        assert done[-1] == calls[-1][2] == made.info.execution.weight_bytes


def test_close_and_open_again(folder: Path) -> None:
    first = load(folder)
    expected = tokens(first.generate(PROMPTS, GREEDY))
    backend = first.backend
    first.close()
    backend.close()
    for call in (backend.step, backend.stats, backend.adapters, lambda: backend.load_adapter("a", "b")):
        with pytest.raises(ModelClosedError):
            call()
    backend.abort("x")
    backend.wake()
    assert not backend.has_unfinished_requests()
    with load(folder) as second:
        assert tokens(second.generate(PROMPTS, GREEDY)) == expected


# Requests


def test_requests_that_can_never_run(llm: LLM) -> None:
    for prompt, error in (([97] * 256, PromptTooLongError), ([], InvalidRequestError), ([288], InvalidRequestError)):
        with pytest.raises(error):
            llm.generate([prompt], GREEDY)
    with pytest.raises(InvalidRequestError, match="no adapter 'nobody'"):
        llm.generate([PROMPTS[0]], GREEDY, adapter="nobody")
    assert Capability.MEDIA not in llm.info.capabilities
    assert not llm.has_unfinished_requests()


def break_model(monkeypatch: pytest.MonkeyPatch, llm: LLM, raises: Callable[[Any], BaseException | None]) -> None:
    """Let passes fail in the last layer, after the others have added to the cache; `raises` gets the batch."""
    loop = llm.backend._loop  # type: ignore[attr-defined]
    forward = loop._forward
    layer = loop._model.model.layers[-1].mlp

    def hooked(batch: Any, count: int) -> Any:
        error = raises(batch)

        def fail(*_: Any) -> None:
            if error is not None:
                raise error

        handle = layer.register_forward_pre_hook(fail)
        try:
            return forward(batch, count)
        finally:
            handle.remove()

    monkeypatch.setattr(loop, "_forward", hooked)


def test_a_pass_that_fails_ends_only_who_is_at_fault(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tokens(llm.generate(PROMPTS, GREEDY))
    steps = []

    def raises(batch: Any) -> BaseException | None:
        steps.append(len(batch.members))
        victim = any(member.sequence.ids[0] == 100 and member.sequence.num_new_tokens > 5 for member in batch.members)
        return ValueError("boom") if victim else None

    break_model(monkeypatch, llm, raises)
    first, second, third = run(llm)
    assert max(steps) == 3
    assert isinstance(second.error, InternalError)
    assert tokens([first, third]) == [expected[0], expected[2]]


@pytest.mark.parametrize(
    "error", [RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), MemoryError()], ids=type
)
def test_a_batch_too_large_for_the_memory_goes_on_in_parts(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    expected = tokens(llm.generate(PROMPTS, GREEDY))
    break_model(monkeypatch, llm, lambda batch: error if len(batch.members) > 2 else None)
    assert tokens(run(llm)) == expected
    assert llm.stats().num_preemptions > 0


def test_a_sequence_too_large_for_the_memory_ends(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(batch: Any) -> BaseException | None:
        return MemoryError() if any(len(member.sequence.ids) > 50 for member in batch.members) else None

    expected = tokens(llm.generate(PROMPTS, GREEDY))
    break_model(monkeypatch, llm, raises)
    first, second, third = run(llm)
    assert isinstance(second.error, OutOfMemoryError)
    assert "shorten the request" in str(second.error)
    assert tokens([first, third]) == [expected[0], expected[2]]
    monkeypatch.undo()
    assert tokens(run(llm)) == expected


def test_a_batch_that_cannot_be_formed_starts_over(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    from glm4.backends.transformers import cached_batch, loop

    expected = tokens(llm.generate(PROMPTS, GREEDY))
    joined, calls = cached_batch.joined, []

    def fails_once(batches: Any) -> Any:
        calls.append(len(batches))
        if len(batches) == 3:
            raise MemoryError
        return joined(batches)

    monkeypatch.setattr(loop, "joined", fails_once)
    assert tokens(run(llm)) == expected
    assert 3 in calls


def test_weights_that_are_no_numbers_end_requests(tmp_path: Path) -> None:
    model = tiny_model()
    tensors = file_tensors(model, draw(model))
    tensors["model.norm.weight"] = np.full_like(tensors["model.norm.weight"], np.nan)
    with (
        load(write_folder(tmp_path, model, tensors=tensors)) as made,
        pytest.raises(Glm4Error, match="no finite logit"),
    ):
        made.generate(PROMPTS, GREEDY)


# Adapters


def test_an_adapter_that_overflows_ends_its_request(llm: LLM, folder: Path, tmp_path: Path) -> None:
    expected = tokens(llm.generate(PROMPTS, GREEDY))
    with open_checkpoint(folder) as checkpoint:
        huge = write_adapter(tmp_path / "huge", factors(checkpoint.config, 1, scale=1e18))
    llm.load_adapter("huge", str(huge))
    first, second, third = run(llm, {1: "huge"})
    assert second.outputs[0].finish_reason == "abort"
    assert tokens([first, third]) == [expected[0], expected[2]]


def test_adapters_that_cannot_be_used(llm: LLM, folder: Path, tmp_path: Path) -> None:
    with open_checkpoint(folder) as checkpoint:
        tensors = factors(checkpoint.config, 1)
    good = write_adapter(tmp_path / "good", tensors)
    pickled = write_adapter(tmp_path / "pickled", tensors)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        llm.load_adapter("a", str(pickled))
    name = next(iter(tensors))
    broken = write_adapter(tmp_path / "broken", tensors | {name: np.full_like(tensors[name], np.inf)})
    with pytest.raises(TensorError, match="not finite"):
        llm.load_adapter("a", str(broken))
    with pytest.raises(CheckpointError, match="there is no such folder"):
        llm.load_adapter("a", str(tmp_path / "nowhere"))
    changed = json.loads((good / "adapter_config.json").read_text()) | {"use_dora": True}
    with pytest.raises(CheckpointError, match="use_dora"):
        llm.load_adapter("a", str(write_adapter(tmp_path / "dora", tensors, changed)))
    assert llm.adapters() == []
    llm.load_adapter("a", str(good))
    with pytest.raises(InvalidRequestError, match="loaded already"):
        llm.load_adapter("a", str(good))
    with load(folder, adapter_memory=1000) as small, pytest.raises(OutOfMemoryError, match="left for adapters"):
        small.load_adapter("a", str(good))
