"""LangChain's standard tests for chat models, with langchain-openai's `ChatOpenAI` pointed at our server.

The model is real and its weights are random, so what passes here, the server does and not the model: formats, streams,
usage, histories, and tool choice and structured output, which the grammar enforces. What needs a model that understands
the question is marked below, each with its reason; `Starter` runs those with the starter model, and `Seeing` those with
pictures, with a model that sees.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from picture_server import CAT, seeing_server
from sdk_server import KEY, random_server

from glm4.llm import LLM
from live import LiveServer, config, serve

RANDOM = "random weights: nobody told them what to say"
# Random weights would write numbers and strings for ever. With these bytes likelier, numbers become 3 and strings end.
LIKELY = {str(ord(character)): bias for character, bias in {"}": 20, '"': 18, "3": 15}.items()}

for _test in vars(ChatModelIntegrationTests).values():
    if inspect.iscoroutinefunction(_test):
        # The suite relies on pytest-asyncio's automatic mode, which is off here; the library keeps clients for reuse,
        # and a client belongs to one event loop.
        pytest.mark.asyncio(loop_scope="module")(_test)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with random_server(tmp_path_factory.mktemp("random") / "m") as running:
        yield running


@pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1 schema:UserWarning")
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")  # LangChain's own, when it traces
class TestRandomWeights(ChatModelIntegrationTests):
    """41 tests; the marked ones are expected to fail."""

    @pytest.fixture(autouse=True)
    def _connect(self, server: LiveServer) -> None:
        self._url = f"{server.url}/v1"

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": "tiny", "base_url": self._url, "api_key": KEY, "temperature": 1, "seed": 7, "max_tokens": 150,
            "logit_bias": LIKELY, "stream_usage": True, "model_kwargs": {"parallel_tool_calls": False},
        }  # fmt: skip

    @property
    def model_override_value(self) -> str:
        return "alias"

    @property
    def supported_usage_metadata_details(self) -> Any:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        model = self.chat_model_class(**self.chat_model_params)
        question = "The same beginning, " * 20
        model.invoke(question)
        if not stream:
            answer = model.invoke(question)
        else:
            first, *rest = model.stream(question)
            answer = sum(rest, first)
        assert answer.usage_metadata is not None
        assert answer.usage_metadata["input_token_details"]["cache_read"] > 300
        return answer

    @pytest.mark.xfail(reason=RANDOM, strict=True)
    @pytest.mark.parametrize("model", [{}, {"output_version": "v1"}], indirect=True)
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)

    @pytest.mark.xfail(reason=RANDOM, strict=True)
    def test_unicode_tool_call_integration(self, model: BaseChatModel, **options: Any) -> None:
        super().test_unicode_tool_call_integration(model, **options)


class TestUnit(ChatModelUnitTests):
    """What the library promises about its own class when it is pointed here; no request is sent."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "tiny", "base_url": "http://127.0.0.1:1/v1", "api_key": KEY}

    @pytest.mark.xfail(
        reason="compares with a recording of LangChain's own format; there is nothing of ours in it", strict=True
    )
    def test_serdes(self, model: BaseChatModel, snapshot: Any) -> None:
        super().test_serdes(model, snapshot)


class Starter(TestRandomWeights):
    """The same suite's tests that need a model which understands."""

    __test__ = False
    supports_json_mode = True

    def __init__(self, server: LiveServer) -> None:
        self._url = f"{server.url}/v1"

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "tiny", "base_url": self._url, "api_key": KEY, "temperature": 0, "max_tokens": 100}


@pytest.fixture(scope="module")
def starter() -> Iterator[LiveServer]:
    llm = LLM("starter", max_num_seqs=2, max_model_len=4096)
    with serve(config("tiny", api_keys=(KEY,)), llm) as running:
        yield running


@pytest.mark.starter
@pytest.mark.parametrize("name", ["agent_loop", "unicode_tool_call_integration", "json_mode"])
def test_with_a_model_that_understands(starter: LiveServer, name: str) -> None:
    suite = Starter(starter)
    test = getattr(ChatModelIntegrationTests, f"test_{name}")
    test(suite, ChatOpenAI(**suite.chat_model_params))


class Seeing(TestRandomWeights):
    """The same suite's tests of pictures. Their addresses are on the internet, so only files are sent."""

    __test__ = False
    supports_image_inputs = True
    supports_anthropic_inputs = True
    supports_image_tool_message = True

    def __init__(self, server: LiveServer) -> None:
        self._url = f"{server.url}/v1"


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with seeing_server(tmp_path_factory.mktemp("sees"), keys=(KEY,), max_model_len=4096) as running:
        yield running


def run_with_pictures(seeing: LiveServer, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(httpx, "get", lambda url, **options: httpx.Response(200, content=CAT))
    suite = Seeing(seeing)
    before = seeing.llm.stats()
    getattr(ChatModelIntegrationTests, f"test_{name}")(suite, ChatOpenAI(**suite.chat_model_params))
    after = seeing.llm.stats()
    assert after.pictures_encoded + after.picture_cache_hits > before.pictures_encoded + before.picture_cache_hits


@pytest.mark.parametrize("name", ["image_inputs", "anthropic_inputs"])
def test_with_a_model_that_sees(seeing: LiveServer, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    run_with_pictures(seeing, monkeypatch, name)


def test_pictures_of_tools_are_refused(seeing: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """GLM-4V has no place for them."""
    with pytest.raises(openai.BadRequestError, match="only messages of the user can have pictures"):
        run_with_pictures(seeing, monkeypatch, "image_tool_message")
