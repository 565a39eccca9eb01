"""One request's failure is its own: its neighbors' tokens stay the same to the last bit, and every page comes back."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapter_files import factors, write_adapter
from faults import FAULTS, POOLING, PROMPT, SEED, BoomError, Fault
from glm4 import LLM, AsyncLLM, SamplingParams
from glm4.backends.local import LocalBackend
from glm4.errors import InternalError, OutOfMemoryError
from glm4.outputs import RequestOutput, StreamChunk
from tiny import write_folder

GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
NEIGHBORS = ("a neighbor that repeats, repeats, repeats", "another one")


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tmp_path_factory.mktemp("model")
    with LLM(str(write_folder(folder / "m")), dtype="fp32", max_model_len=256, max_num_seqs=4) as made:
        config = backend_of(made).model.config
        made.load_adapter("bad", str(write_adapter(folder / "bad", factors(config, 1))))
        yield made


@pytest.fixture(autouse=True)
def _nothing_is_left(llm: LLM) -> Iterator[None]:
    yield
    cache = backend_of(llm).engine.prefix_cache
    assert cache.num_available_pages == backend_of(llm).engine.cache.num_pages
    assert not llm.has_unfinished_requests()
    assert not backend_of(llm).has_unfinished_requests()
    cache.clear()
    assert backend_of(llm).engine.cache.num_free_pages == backend_of(llm).engine.cache.num_pages


def backend_of(llm: LLM) -> LocalBackend:
    assert isinstance(llm.backend, LocalBackend)
    return llm.backend


def run(llm: LLM, fault: Fault | None = None, **changes: Any) -> dict[str, RequestOutput]:
    """The neighbors' answers, and those of two samples of the victim between them."""
    first, second = (llm.prepare_prompt(text, GREEDY) for text in NEIGHBORS)
    params = SamplingParams(**{"seed": SEED, "n": 2, "max_tokens": 12, "ignore_eos": True, **changes})
    adapter = "bad" if fault is not None and fault.adapter else None
    victim = llm.prepare_prompt(PROMPT, params, adapter=adapter)
    return {output.request_id: output for output in llm.run([("1", first), ("victim", victim), ("2", second)])}


def tokens(output: RequestOutput) -> list[int]:
    assert output.error is None
    return output.outputs[0].token_ids


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_failure_ends_its_request_and_no_other(llm: LLM, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [tokens(output) for output in llm.generate(list(NEIGHBORS), GREEDY)]
    backend_of(llm).engine.prefix_cache.clear()
    with monkeypatch.context() as patch:
        fault.install(patch)
        outputs = run(llm, fault, **fault.params)
        error = outputs["victim"].error
        assert isinstance(error, OutOfMemoryError if fault.name == "out of memory" else InternalError)
        assert type(error.__cause__) is not type(None)
        assert "memory" in str(error) or "boom" in str(error)
        assert [tokens(outputs[name]) for name in ("1", "2")] == alone
        with pytest.raises(type(error)):
            llm.generate(PROMPT, SamplingParams(seed=SEED, max_tokens=12, **fault.params),
                         adapter="bad" if fault.adapter else None)  # fmt: skip
    assert len(tokens(run(llm, fault, **fault.params)["victim"])) > 0, "the engine goes on"


@pytest.mark.parametrize("fault", POOLING, ids=lambda fault: fault.name)
def test_a_failing_embedding_ends_alone(llm: LLM, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = tokens(llm.generate(NEIGHBORS[0], GREEDY)[0])
    before = llm.embed(PROMPT)[0].embedding
    with monkeypatch.context() as patch:
        fault.install(patch)
        requests = [("1", llm.prepare_prompt(NEIGHBORS[0], GREEDY)), ("victim", llm.prepare_embedding(PROMPT))]
        outputs = {output.request_id: output for output in llm.run(requests)}
    assert isinstance(outputs["victim"].error, InternalError)
    assert tokens(outputs["1"]) == alone
    np.testing.assert_array_equal(llm.embed(PROMPT)[0].embedding, before)


@pytest.mark.parametrize("name", ["forward", "logits"])
def test_a_pass_that_fails_for_some_rows_ends_only_their_requests(
    llm: LLM, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is at fault shows when each is computed alone."""
    alone = [tokens(output) for output in llm.generate(list(NEIGHBORS), GREEDY)]
    expected = [sample.token_ids for sample in run(llm)["victim"].outputs]
    model, poison = backend_of(llm).model, np.float32(12345.0)
    forward, logits, prompt = model.forward, model.logits, llm.prepare_prompt(PROMPT).prompt.ids[:9]

    def poisoned_forward(ids: Any, batch: Any, *rest: Any) -> Any:
        spans = itertools.pairwise(batch.query_starts)
        ends = [end for start, end in spans if ids[start : start + 9].tolist() == prompt]
        if ends and name == "forward":
            raise BoomError("boom")
        hidden = forward(ids, batch, *rest)
        for end in ends:
            hidden[end - 1, 0] = poison
        return hidden

    def poisoned_logits(hidden: Any) -> Any:
        if (hidden[:, 0] == poison).any():
            raise BoomError("boom")
        return logits(hidden)

    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", poisoned_forward)
        patch.setattr(model, "logits", poisoned_logits)
        backend_of(llm).engine.prefix_cache.clear()
        outputs = run(llm)
    assert isinstance(outputs["victim"].error, InternalError)
    assert [tokens(outputs[name]) for name in ("1", "2")] == alone
    assert [sample.token_ids for sample in run(llm)["victim"].outputs] == expected


def test_a_pass_too_large_for_the_memory_is_split(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(llm)
    model = backend_of(llm).model
    forward, logits = model.forward, model.logits

    def small(limit: int, function: Any) -> Any:
        def limited(first: Any, *rest: Any) -> Any:
            if len(first) > limit:
                raise MemoryError
            return function(first, *rest)

        return limited

    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", small(50, forward))
        patch.setattr(model, "logits", small(9, logits))
        outputs = run(llm)
    for name, output in outputs.items():
        assert [one.token_ids for one in output.outputs] == [one.token_ids for one in expected[name].outputs]


def test_a_step_that_fails_as_a_whole_ends_what_was_running(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    llm.add("other", llm.prepare_prompt("other", GREEDY))
    scheduler = backend_of(llm).engine.scheduler

    def fail(*_: object) -> None:
        raise BoomError("boom")

    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "schedule", fail)
        with pytest.raises(BoomError):
            run(llm)
    (chunk,) = llm.step()
    assert chunk.request_id == "other"
    assert chunk.output is not None
    assert isinstance(chunk.output.error, InternalError)
    assert len(tokens(llm.generate("and then", GREEDY)[0])) == 40


def test_chunks_that_cannot_be_merged_end_their_stream_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        llm = await AsyncLLM.create(str(write_folder(tmp_path / "m")), dtype="fp32", max_model_len=256)
        expected = tokens(await llm.generate(NEIGHBORS[0], GREEDY))
        slow: Any = llm.stream_generate(PROMPT, GREEDY.replace(max_tokens=200))
        victim, merge = (await anext(slow)).request_id, StreamChunk.followed_by

        def failing(self: StreamChunk, later: StreamChunk) -> StreamChunk:
            if self.request_id == victim:
                raise BoomError("boom")
            return merge(self, later)

        monkeypatch.setattr(StreamChunk, "followed_by", failing)
        assert [tokens(await llm.generate(NEIGHBORS[0], GREEDY)) for _ in range(6)] == [expected] * 6
        with pytest.raises(InternalError, match="boom"):
            async for _ in slow:
                pass
        await llm.close()

    asyncio.run(scenario())


def test_an_error_that_is_kept_does_not_keep_the_weights(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        FAULTS[0].install(patch)
        error = run(llm)["victim"].error
    assert error is not None
    trace, held = error.__cause__.__traceback__ if error.__cause__ else None, list[str]()
    assert trace is not None, "the log shows where it happened"
    while trace is not None:
        held += trace.tb_frame.f_locals
        trace = trace.tb_next
    assert not held
