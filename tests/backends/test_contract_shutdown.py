"""The end of a backend. In a file of its own, as the last of the suite: an engine is not started again for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from contract import GREEDY, PROMPT, Subject, answer

from glm4.backends.base import Backend
from glm4.engine.protocol import GenerationRequest
from glm4.errors import ModelClosedError

WITH_SCRIPTED = True

LATE: dict[str, Callable[[Backend], object]] = {
    "add_request": lambda backend: backend.add_request(GenerationRequest("late", PROMPT, GREEDY)),
    "step": lambda backend: backend.step(),
    "load_adapter": lambda backend: backend.load_adapter("late", "/nowhere"),
    "unload_adapter": lambda backend: backend.unload_adapter("late"),
    "adapters": lambda backend: backend.adapters(),
    "stats": lambda backend: backend.stats(),
}


def test_closing_twice_ends_it_once_and_later_calls_say_so(subject: Subject) -> None:
    backend = subject.backend
    assert len(answer(backend, GREEDY).ids) == GREEDY.max_tokens
    backend.add_request(GenerationRequest("dropped", PROMPT, GREEDY))
    info = backend.info
    backend.close()
    backend.close()
    for call in LATE.values():
        with pytest.raises(ModelClosedError):
            call(backend)
    assert backend.info == info
    backend.abort("dropped")
    backend.wake()
    assert not backend.has_unfinished_requests()
    subject.close()
