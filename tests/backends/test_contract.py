"""What every backend promises, for each of them over the same tiny checkpoint."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import pytest
from remote_routes import COMPLETIONS, GENERATE, over

from glm4.backends.base import Backend, Capability
from glm4.backends.local import LocalBackend
from glm4.backends.scripted import ScriptedBackend
from glm4.backends.table import BACKENDS, backend_row
from glm4.engine.protocol import GenerationOutput, GenerationRequest
from glm4.errors import InvalidRequestError, PromptTooLongError
from glm4.llm import LLM
from glm4.open_model import ModelOptions
from glm4.prompt import Prompt
from glm4.requests.image_inputs import ImageOptions
from glm4.sampling_params import SamplingParams
from live import config, serve
from tiny import VOCAB_SIZE, write_folder

SHORT = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
PROMPT = Prompt([97, 98, 99])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=["local", "remote", "remote, completions", "scripted"])
def backend(request: pytest.FixtureRequest, folder: Path) -> Iterator[Backend]:
    if request.param == "scripted":
        yield ScriptedBackend(lambda prompt: [97] * 9, vocab_size=VOCAB_SIZE, max_model_len=256)
        return
    with LLM(str(folder), dtype="fp32", max_model_len=256) as local:
        if request.param == "local":
            yield local.backend
            return
        with (
            serve(config("tiny"), local) as server,
            over(GENERATE if request.param == "remote" else COMPLETIONS),
            LLM(str(folder), backend="remote", base_url=server.url) as remote,
        ):
            yield remote.backend


def finished(backend: Backend, *requests: GenerationRequest) -> dict[str, list[GenerationOutput]]:
    """All outputs, by request."""
    for request in requests:
        backend.add_request(request)
    outputs: dict[str, list[GenerationOutput]] = {}
    while backend.has_unfinished_requests():
        for output in backend.step():
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


def test_every_request_ends_once_with_a_reason(backend: Backend) -> None:
    outputs = finished(backend, *(GenerationRequest(f"r{n}", PROMPT, SHORT) for n in range(3)))
    for parts in outputs.values():
        assert [part.finish_reason is not None for part in parts] == [False] * (len(parts) - 1) + [True]
        assert parts[-1].finish_reason == "length"
        assert parts[-1].error is None
        assert len([token for part in parts for token in part.token_ids]) == 4
    assert backend.stats().num_running == backend.stats().num_waiting == 0


def test_nothing_follows_an_abort(backend: Backend) -> None:
    long = SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)
    backend.add_request(GenerationRequest("dropped", PROMPT, long))
    backend.step()
    backend.abort("dropped")
    backend.abort("unknown")
    outputs = finished(backend, GenerationRequest("kept", PROMPT, SHORT))
    assert list(outputs) == ["kept"]
    assert outputs["kept"][-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("request_", "error", "param"),
    [
        (GenerationRequest("bad", Prompt([97] * 256), SHORT), PromptTooLongError, "prompt"),
        (GenerationRequest("bad", PROMPT, SHORT, adapter="nobody"), InvalidRequestError, "model"),
        (GenerationRequest("good", PROMPT, SHORT), InvalidRequestError, "request_id"),
    ],
)
def test_a_request_that_cannot_run_is_refused_at_once(
    backend: Backend, request_: GenerationRequest, error: type[InvalidRequestError], param: str
) -> None:
    backend.add_request(GenerationRequest("good", PROMPT, SHORT))
    with pytest.raises(error) as caught:
        backend.add_request(request_)
    assert caught.value.param == param
    assert list(finished(backend)) == ["good"]


def test_waking_is_harmless_from_any_thread(backend: Backend) -> None:
    def wake() -> None:
        for _ in range(100):
            backend.wake()

    thread = threading.Thread(target=wake)
    thread.start()
    outputs = finished(backend, GenerationRequest("awake", PROMPT, SHORT))
    thread.join()
    assert outputs["awake"][-1].finish_reason == "length"
    backend.wake()
    assert backend.step() == []


def test_unloading_what_is_not_there_is_an_error(backend: Backend) -> None:
    assert backend.adapters() == []
    with pytest.raises(InvalidRequestError):
        backend.unload_adapter("nobody")


def test_what_a_backend_says_of_itself_is_what_the_table_says(backend: Backend) -> None:
    info = backend.info
    assert (info.vocab_size, info.max_model_len) == (VOCAB_SIZE, 256)
    if info.name in BACKENDS:
        assert info.capabilities == BACKENDS[info.name].capabilities - {
            Capability.MEDIA
        }  # a model that reads text only
        assert (info.execution is None) == (info.name == "remote")


# The table


def test_every_row_names_what_there_is() -> None:
    for row in BACKENDS.values():
        assert find_spec(row.backend.partition(":")[0]) is not None
        if all(package.installed for package in row.packages):
            assert callable(row.backend_class().load)
    assert backend_row("local").backend_class() is LocalBackend
    assert Capability.EMBEDDINGS not in backend_row("remote").capabilities


def test_the_options_for_type_checkers_are_the_backends_own() -> None:
    owners = [ImageOptions, *(row.options_class() for row in BACKENDS.values())]
    names = {field.name for one in owners for field in fields(one)}
    assert set(ModelOptions.__annotations__) == names


@pytest.mark.parametrize(
    ("options", "param", "match"),
    [
        ({"backend": "cloud"}, "backend", "local, remote"),
        ({"dtpye": "int4"}, "dtpye", "it has .*dtype"),
        ({"base_url": "http://127.0.0.1:1"}, "base_url", "local backend has no option"),
        ({"backend": "remote"}, "base_url", "--base-url"),
        ({"backend": "remote", "base_url": "http://127.0.0.1:1", "dtype": "int4"}, "dtype", "remote backend has no"),
    ],
)
def test_a_wrong_option_is_named(folder: Path, options: dict[str, str], param: str, match: str) -> None:
    with pytest.raises(InvalidRequestError, match=match) as caught:
        LLM(str(folder), **options)  # type: ignore[arg-type]
    assert caught.value.param == param
