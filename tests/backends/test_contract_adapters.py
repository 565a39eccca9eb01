"""Adapters and embeddings: as our own engine computes them in float32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from contract import ADAPTERS, GREEDY, PROMPT, PROMPTS, Subject, answer, finished, write_lora

from glm4.backends.base import Backend
from glm4.engine.protocol import GenerationRequest
from glm4.errors import Glm4Error, InvalidRequestError


@pytest.fixture
def extra(subject: Subject, tmp_path: Path) -> Iterator[str]:
    """Another adapter, loaded by the test; its name."""
    subject.need(adapter="extra")
    path = str(write_lora(tmp_path / "extra", 3))
    if subject.entry.fixed_adapters:
        for refused in (
            lambda: subject.backend.load_adapter("extra", path),
            lambda: subject.backend.unload_adapter("first"),
        ):
            with pytest.raises(InvalidRequestError):
                refused()
        pytest.skip(f"{subject.name}: {subject.entry.fixed_adapters}")
    subject.backend.load_adapter("extra", path)
    yield "extra"
    if any(info.name == "extra" for info in subject.backend.adapters()):
        subject.backend.unload_adapter("extra")


def test_adapters_change_answers_as_in_our_engine(subject: Subject, reference: Backend) -> None:
    wanted = {name: answer(reference, GREEDY, adapter=name).ids for name in (None, *ADAPTERS)}
    assert len({tuple(ids) for ids in wanted.values()}) == 3
    assert {name: subject.answer(GREEDY, adapter=name).ids for name in wanted} == wanted


def test_adapters_mix_in_a_batch(subject: Subject, reference: Backend) -> None:
    subject.need(adapter=ADAPTERS[0])
    names = (None, *ADAPTERS, None, ADAPTERS[0])
    requests = [
        GenerationRequest(str(at), prompt, GREEDY, adapter=name)
        for at, (prompt, name) in enumerate(zip(PROMPTS, names, strict=True))
    ]
    answers = finished(subject.backend, *requests[:3], late=requests[3:])
    for request in requests:
        wanted = answer(reference, GREEDY, request.prompt, adapter=request.adapter).ids
        assert answers[request.request_id].ids == wanted


def test_loaded_adapters_are_listed(subject: Subject) -> None:
    subject.need(adapter=ADAPTERS[0])
    assert [info.name for info in subject.backend.adapters()] == list(ADAPTERS)


def test_an_adapter_can_be_loaded_and_unloaded_beside_requests(
    subject: Subject, reference: Backend, extra: str, tmp_path: Path
) -> None:
    backend = subject.backend
    running = GenerationRequest("running", PROMPT, GREEDY, adapter=extra)
    backend.add_request(running)
    while not (first := backend.step()):
        pass
    backend.unload_adapter(extra)
    with pytest.raises(InvalidRequestError) as caught:
        backend.add_request(GenerationRequest("late", PROMPT, GREEDY, adapter=extra))
    assert caught.value.param == "model"
    with pytest.raises(InvalidRequestError):
        backend.unload_adapter(extra)
    ids = [token for output in first for token in output.token_ids]
    ids += finished(backend)["running"].ids
    reference.load_adapter(extra, str(tmp_path / "extra"))
    assert ids == answer(reference, GREEDY, adapter=extra).ids
    reference.unload_adapter(extra)
    assert answer(backend, GREEDY).ids == answer(reference, GREEDY).ids


def test_a_name_is_given_once(subject: Subject, extra: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        subject.backend.load_adapter(extra, str(tmp_path / "extra"))
    assert caught.value.param == "name"


def test_what_is_not_an_adapter_is_refused_and_the_model_lives_on(
    subject: Subject, reference: Backend, tmp_path: Path
) -> None:
    subject.need(adapter="broken")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(Glm4Error):
            subject.backend.load_adapter("broken", str(path))
    with pytest.raises(InvalidRequestError):
        answer(subject.backend, GREEDY, adapter="broken")
    assert answer(subject.backend, GREEDY).ids == answer(reference, GREEDY).ids


def test_embeddings_are_equal(subject: Subject, reference: Backend) -> None:
    subject.need(embedding=True)
    for prompt in PROMPTS:
        theirs, ours = (answer(one, GREEDY, prompt, pooling="mean").last for one in (subject.backend, reference))
        assert theirs.finish_reason == "stop"
        assert theirs.embedding is not None
        assert ours.embedding is not None
        assert np.linalg.norm(theirs.embedding) == pytest.approx(1)
        np.testing.assert_allclose(theirs.embedding, ours.embedding, atol=1e-4)
