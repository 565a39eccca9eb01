"""What every backend promises about requests, aborts, errors and limits, the fake one included."""

from __future__ import annotations

import threading
from dataclasses import fields

import pytest
from contract import CONTEXT, GREEDY, LENGTHS, MODEL, PROMPT, PROMPTS, Files, Subject, finished, random_prompt

from glm4.backends.base import Backend, Capability
from glm4.backends.local import LocalBackend
from glm4.backends.table import BACKENDS, backend_row
from glm4.engine.protocol import GenerationRequest
from glm4.errors import InvalidRequestError, PromptTooLongError
from glm4.llm import LLM
from glm4.open_model import ModelOptions
from glm4.prompt import Prompt
from glm4.requests.image_inputs import ImageOptions
from glm4.sampling_params import SamplingParams

WITH_SCRIPTED = True
SHORT = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
LONG = SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)


@pytest.fixture
def backend(subject: Subject) -> Backend:
    return subject.backend


def test_every_request_ends_once_with_a_reason(backend: Backend) -> None:
    answers = finished(backend, *(GenerationRequest(f"r{n}", PROMPT, SHORT) for n in range(3)))
    assert len(answers) == 3
    for one in answers.values():
        ends = [output.finish_reason is not None for output in one.outputs]
        assert ends == [False] * (len(ends) - 1) + [True]
        assert one.end == ("length", None)
        assert len(one.ids) == 4
    assert backend.stats().num_running == backend.stats().num_waiting == 0


def test_more_requests_than_run_at_once_all_end(backend: Backend) -> None:
    count = 2 * min(backend.info.max_num_seqs, 16) + 1
    answers = finished(backend, *(GenerationRequest(f"r{n}", PROMPT, SHORT) for n in range(count)))
    assert [len(one.ids) for one in answers.values()] == [4] * count


def test_nothing_follows_an_abort(backend: Backend) -> None:
    backend.add_request(GenerationRequest("dropped", PROMPT, LONG))
    while not backend.step():
        pass
    backend.add_request(GenerationRequest("dropped too", PROMPTS[-1], LONG))
    for name in ("dropped", "dropped too", "unknown"):
        backend.abort(name)
    assert not backend.has_unfinished_requests()
    assert backend.stats().num_running == backend.stats().num_waiting == 0
    answers = finished(backend, GenerationRequest("kept", PROMPT, SHORT))
    assert list(answers) == ["kept"]
    assert answers["kept"].end == ("length", None)


def test_an_abort_does_not_disturb_the_others(backend: Backend) -> None:
    alone = finished(backend, GenerationRequest("kept", PROMPTS[1], GREEDY))["kept"].ids
    backend.add_request(GenerationRequest("dropped", PROMPT, LONG))
    backend.add_request(GenerationRequest("kept", PROMPTS[1], GREEDY))
    ids: list[int] = []
    while backend.has_unfinished_requests():
        for output in backend.step():
            if output.request_id == "dropped":
                backend.abort("dropped")
            else:
                ids += output.token_ids
    assert ids == alone


def test_an_id_can_be_used_again_after_its_end_and_after_an_abort(backend: Backend) -> None:
    for _ in range(2):
        assert len(finished(backend, GenerationRequest("same", PROMPT, SHORT))["same"].ids) == 4
        backend.add_request(GenerationRequest("same", PROMPT, LONG))
        backend.step()
        backend.abort("same")


def test_the_context_ends_an_answer_without_a_limit(backend: Backend) -> None:
    unlimited = SamplingParams(temperature=0.0, ignore_eos=True)
    one = finished(backend, GenerationRequest("long", random_prompt(CONTEXT - 9), unlimited))["long"]
    assert (len(one.ids), one.end) == (9, ("length", None))


def refused() -> dict[str, tuple[GenerationRequest, type[InvalidRequestError], str]]:
    vocabulary, length = MODEL.vocab_size, max(LENGTHS)
    prompts = {
        "empty": ([], InvalidRequestError),
        "too long": ([97] * CONTEXT, PromptTooLongError),
        "negative id": ([97, -1, 97], InvalidRequestError),
        "foreign id": ([97] * length + [vocabulary], InvalidRequestError),
        "far id": ([1 << 40], InvalidRequestError),
    }
    cases = {name: (GenerationRequest("bad", Prompt(ids), SHORT), error, "prompt")
             for name, (ids, error) in prompts.items()}  # fmt: skip
    for option, value in (("stop_token_ids", [vocabulary]), ("logit_bias", {vocabulary: 1.0})):
        params = SHORT.replace(**{option: value})
        cases[f"foreign {option}"] = (GenerationRequest("bad", PROMPT, params), InvalidRequestError, option)
    unknown = GenerationRequest("bad", PROMPT, SHORT, adapter="nobody")
    cases["unknown adapter"] = (unknown, InvalidRequestError, "model")
    cases["id in use"] = (GenerationRequest("good", PROMPT, SHORT), InvalidRequestError, "request_id")
    return cases


@pytest.mark.parametrize(("request_", "error", "param"), refused().values(), ids=refused())
def test_a_request_that_cannot_run_is_refused_at_once(
    backend: Backend, request_: GenerationRequest, error: type[InvalidRequestError], param: str
) -> None:
    backend.add_request(GenerationRequest("good", PROMPT, SHORT))
    with pytest.raises(error) as caught:
        backend.add_request(request_)
    assert caught.value.param == param
    answers = finished(backend)
    assert list(answers) == ["good"]
    assert len(answers["good"].ids) == 4


def test_waking_is_harmless_from_any_thread(backend: Backend) -> None:
    def wake() -> None:
        for _ in range(100):
            backend.wake()

    thread = threading.Thread(target=wake)
    thread.start()
    answers = finished(backend, GenerationRequest("awake", PROMPT, SHORT))
    thread.join()
    assert answers["awake"].end == ("length", None)
    backend.wake()
    assert backend.step() == []


def test_unloading_what_is_not_there_is_an_error(backend: Backend) -> None:
    with pytest.raises(InvalidRequestError):
        backend.unload_adapter("nobody")


def test_what_a_backend_says_of_itself_is_what_the_table_says(backend: Backend) -> None:
    info = backend.info
    assert (info.vocab_size, info.max_model_len) == (MODEL.vocab_size, CONTEXT)
    if info.name in BACKENDS:
        assert info.capabilities == BACKENDS[info.name].capabilities - {
            Capability.MEDIA
        }  # a model that reads text only
    if info.name in ("local", "remote"):
        assert (info.execution is None) == (info.name == "remote")


# The table


def test_every_row_names_what_there_is() -> None:
    for row in BACKENDS.values():
        assert fields(row.options_class())  # read without the backend's packages
    assert backend_row("local").backend_class() is LocalBackend
    assert Capability.EMBEDDINGS not in backend_row("remote").capabilities


def test_the_options_for_type_checkers_are_the_backends_own() -> None:
    classes = [row.options_class() for row in BACKENDS.values()]
    assert set(ModelOptions.__annotations__) == {
        field.name for one in (*classes, ImageOptions) for field in fields(one)
    }


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
def test_a_wrong_option_is_named(files: Files, options: dict[str, str], param: str, match: str) -> None:
    with pytest.raises(InvalidRequestError, match=match) as caught:
        LLM(str(files.folder), **options)  # type: ignore[arg-type]
    assert caught.value.param == param
