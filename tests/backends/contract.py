"""What the contract suite needs: one checkpoint that every engine can read, the table of backends, and a driver.

A backend joins the suite when it has a row in `BACKENDS` and an opener here. What it lacks is skipped by name, as
`requests.requirements` decides it for every user.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from remote_routes import COMPLETIONS, GENERATE, over

from adapter_files import TARGETS, factors, settings, write_adapter
from glm4.backends.base import Backend, BackendInfo
from glm4.backends.scripted import ScriptedBackend
from glm4.backends.table import BACKENDS
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.engine.protocol import GenerationOutput, GenerationRequest
from glm4.errors import InvalidRequestError
from glm4.export.targets import ExportRequest, export_target
from glm4.llm import LLM
from glm4.logprobs import TokenLogprobs
from glm4.prompt import Prompt
from glm4.requests.processor import Processor
from glm4.requests.requirements import check_supported
from glm4.sampling_params import SamplingParams
from glm4.tokenizer import load_tokenizer
from golden_models import TinyModel
from live import config, serve
from tiny import VOCAB_SIZE as NAMED_ROWS
from tiny import write_folder

CONTEXT = 512
MODEL = TinyModel(
    "contract", seed=33, vocab_size=320, hidden_size=256, head_dim=64, intermediate_size=512, num_hidden_layers=3
)
"""Sizes that vLLM, OpenVINO and transformers all take; rows of the vocabulary without a token among them."""

GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
LENGTHS = (10, 33, 64, 150, 300)
ADAPTERS = ("first", "second")


def random_prompt(length: int, seed: int = 0) -> Prompt:
    """Ids of single bytes, so that they are text as well."""
    return Prompt(np.random.RandomState(1000 * seed + length).randint(0, 128, length).tolist())


PROMPTS = tuple(map(random_prompt, LENGTHS))
PROMPT = PROMPTS[0]


@dataclass(frozen=True)
class Files:
    """The checkpoint, and adapters for it by name."""

    folder: Path
    adapters: Mapping[str, Path]

    @classmethod
    def write(cls, parent: Path) -> Files:
        """Write everything below a folder."""
        adapters = {name: write_lora(parent / name, seed) for seed, name in enumerate(ADAPTERS, 1)}
        return cls(write_folder(parent / "model", MODEL, config={"max_position_embeddings": CONTEXT}), adapters)


def write_lora(folder: Path, seed: int) -> Path:
    """An adapter of rank 8 for every matrix, strong enough to change answers."""
    tensors = factors(MODEL, seed, rank=8, scale=0.1)  # type: ignore[arg-type]  # the sizes are all it reads
    return write_adapter(folder, tensors, settings(TARGETS, r=8, lora_alpha=16))


# The table


@dataclass(frozen=True)
class Entry:
    """A backend of the suite.

    Attributes:
        backend: its row in `BACKENDS`.
        open: opens the model with it; adapters are loaded, if it has any.
        fixed_adapters: why it cannot load or unload adapters, if it cannot.
        marks: pytest's.
    """

    name: str
    backend: str
    open: Callable[[Files], AbstractContextManager[LLM]]
    fixed_adapters: str = ""
    marks: tuple[pytest.MarkDecorator, ...] = ()


@contextmanager
def open_local(files: Files) -> Iterator[LLM]:
    """Our engine in float32: also the reference of all others."""
    with LLM(str(files.folder), dtype="fp32", max_model_len=CONTEXT, max_num_seqs=8) as llm:
        yield with_adapters(llm, files)


def with_adapters(llm: LLM, files: Files) -> LLM:
    for name, path in files.adapters.items():
        llm.load_adapter(name, str(path))
    return llm


def remote(route: str) -> Callable[[Files], AbstractContextManager[LLM]]:
    """A server of ours, over one of the two routes."""

    @contextmanager
    def opened(files: Files) -> Iterator[LLM]:
        with open_local(files) as local, serve(config("tiny"), local) as server:
            with over(route):  # only to open it: this one stays open while tests of other modules run
                llm = LLM(str(files.folder), backend="remote", base_url=server.url)
            with llm:
                yield llm

    return opened


def scripted(files: Files) -> AbstractContextManager[LLM]:
    """The fake, which has no weights."""
    backend = ScriptedBackend(lambda prompt: [97] * 300, vocab_size=MODEL.vocab_size, max_model_len=CONTEXT)
    return with_adapters(LLM.from_backend(backend, Processor.open(files.folder)), files)


def by_name(
    name: str, environment: Mapping[str, str] | None = None, **options: Any
) -> Callable[[Files], AbstractContextManager[LLM]]:
    """A backend that reads the weights itself."""

    @contextmanager
    def opened(files: Files) -> Iterator[LLM]:
        with pytest.MonkeyPatch.context() as patch:
            for key, value in (environment or {}).items():
                patch.setenv(key, value)
            with LLM(str(files.folder), backend=name, max_model_len=CONTEXT, **options) as llm:
                yield with_adapters(llm, files) if _takes(llm.backend.info, adapter=ADAPTERS[0]) else llm

    return opened


@contextmanager
def open_openvino(files: Files) -> Iterator[LLM]:
    """OpenVINO reads its own format, in which the folder is exported first."""
    exported = files.folder.with_name("openvino")
    if not exported.exists():
        with open_checkpoint(files.folder) as checkpoint:
            export_target("openvino").export(ExportRequest(checkpoint, exported, dtype="fp32"))
    with by_name("openvino", compute_precision="f32")(replace(files, folder=exported)) as llm:
        yield llm


_LOADED_THERE = "a remote server loads its own adapters"
_HEAVY = (pytest.mark.backends,)
_ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
# Warnings are about what libraries below vLLM deprecate, and its start takes a minute or two.
_VLLM = (pytest.mark.vllm, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600))

ENTRIES = tuple(
    entry
    for entry in (
        Entry("local", "local", open_local),
        Entry("remote", "remote", remote(GENERATE), _LOADED_THERE),
        Entry("remote, completions", "remote", remote(COMPLETIONS), _LOADED_THERE),
        Entry("transformers", "transformers", by_name("transformers", dtype="fp32", device="cpu"), marks=_HEAVY),
        Entry("openvino", "openvino", open_openvino, marks=_HEAVY),
        Entry(
            "vllm",
            "vllm",
            by_name("vllm", _ON_CPU, dtype="fp32", max_adapters=4, enforce_eager=True),
            marks=_VLLM,
        ),
    )
    if entry.backend in BACKENDS
)
SCRIPTED = Entry("scripted", "scripted", scripted)


# Driving a backend


@dataclass
class Subject:
    """A backend of the table, opened when it is first used (again, if a test closed it)."""

    entry: Entry
    files: Files
    _stack: ExitStack = field(default_factory=ExitStack)
    _llm: LLM | None = None

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def llm(self) -> LLM:
        if self._llm is None:
            self._llm = self._stack.enter_context(self.entry.open(self.files))
        return self._llm

    @property
    def backend(self) -> Backend:
        return self.llm.backend

    def close(self) -> None:
        self._llm = None
        self._stack.close()

    def need(self, params: SamplingParams = GREEDY, **request: Any) -> None:
        """Skip the test if the backend refuses such a request by name."""
        refusal = _refusal(self.backend.info, params, **request)
        if refusal is not None:
            assert self.name != "local", "our own engine lacks nothing"
            pytest.skip(f"{self.name} has no {refusal}")

    def answer(self, params: SamplingParams, prompt: Prompt = PROMPT, **request: Any) -> Answer:
        """Answer one request, or skip the test."""
        self.need(params, **{name: value for name, value in request.items() if name == "adapter"})
        return answer(self.backend, params, prompt, **request)


def _refusal(info: BackendInfo, params: SamplingParams, **request: Any) -> str | None:
    try:
        check_supported(info, params, **request)
    except InvalidRequestError as error:
        return str(error).partition(" has no ")[2].partition(";")[0] or str(error)
    return None


def _takes(info: BackendInfo, **request: Any) -> bool:
    return _refusal(info, GREEDY, **request) is None


@dataclass
class Answer:
    """All outputs of one request."""

    outputs: list[GenerationOutput] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        return [token for output in self.outputs for token in output.token_ids]

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        return [entry for output in self.outputs for entry in output.logprobs]

    @property
    def last(self) -> GenerationOutput:
        return self.outputs[-1]

    @property
    def end(self) -> tuple[str | None, int | None]:
        """Why it ended, and the id that ended it."""
        return self.last.finish_reason, self.last.stop_token_id

    @property
    def prompt_logprobs(self) -> Sequence[TokenLogprobs | None]:
        given = [output.prompt_logprobs for output in self.outputs if output.prompt_logprobs is not None]
        assert len(given) == 1, "set once"
        return given[0]


def finished(
    backend: Backend, *requests: GenerationRequest, late: Sequence[GenerationRequest] = (), after: int = 3
) -> dict[str, Answer]:
    """The answers, by request id; `late` ones join after some steps."""
    for request in requests:
        backend.add_request(request)
    answers: dict[str, Answer] = {}
    steps = 0
    while backend.has_unfinished_requests():
        for output in backend.step():
            assert output.error is None
            answers.setdefault(output.request_id, Answer()).outputs.append(output)
        steps += bool(answers)  # of those that showed something: others only wait
        if steps == after and late:
            assert not all(request.request_id in answers and answers[request.request_id].last.finish_reason
                           for request in requests), "the late ones join nobody"  # fmt: skip
            for request in late:
                backend.add_request(request)
            late = ()
    assert not late
    return answers


def answer(backend: Backend, params: SamplingParams, prompt: Prompt = PROMPT, **request: Any) -> Answer:
    """The answer to a single request."""
    return finished(backend, GenerationRequest("one", prompt, params, **request))["one"]


def unnamed_ids(files: Files) -> set[int]:
    """Rows of the vocabulary without a token."""
    ids = set(load_tokenizer(files.folder).unnamed_ids(MODEL.vocab_size).tolist())
    assert len(ids) >= MODEL.vocab_size - NAMED_ROWS
    assert json.loads((files.folder / "config.json").read_text())["vocab_size"] == MODEL.vocab_size
    return ids
