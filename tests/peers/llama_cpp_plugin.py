"""pytest plugin for llama.cpp's server tests: which to leave out, and where a model's own words are not compared."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from deselection import deselect
from requests.structures import CaseInsensitiveDict

# Tests that compare what a 260-thousand-parameter story model writes. Ours is another model: any text will do there,
# and everything else such a test asserts still counts. Grammars, JSON and templates are compared exactly everywhere.
STORIES = {
    "test_chat_completion", "test_chat_completion_stream", "test_chat_completion_with_openai_library",
    "test_completion", "test_completion_stream", "test_completion_with_openai_library",
    "test_completion_stream_with_openai_library", "test_load_split_model", "test_responses_with_openai_library",
    "test_responses_stream_with_openai_library", "test_vision_chat_completion", "test_vision_completion",
}  # fmt: skip


def _any_text(pattern: str, text: str) -> bool:
    return isinstance(text, str) and len(text) > 0


def picture(name: str) -> str:
    """What the suite downloads from the internet, as it is named there: here, pictures out of its own sources."""
    number = int(name[-1])
    data = base64.b64encode((Path("../../mtmd/test-1.jpeg").read_bytes(), RED_PIXEL)[number]).decode()
    return f"data:image/png;base64,{data}" if "URI" in name else data


RED_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
)


def pytest_configure(config: pytest.Config) -> None:
    import utils

    # There is nothing to download.
    utils.ServerPreset.load_all = staticmethod(lambda: None)
    # Names of headers have no case; the suite looks them up in a dict.
    plain = utils.ServerProcess.make_request

    def make_request(*args: Any, **kwargs: Any) -> Any:
        result = plain(*args, **kwargs)
        result.headers = CaseInsensitiveDict(result.headers)
        return result

    utils.ServerProcess.make_request = make_request


# Marked slow because they download large models. Here a grammar forces the call, or there is none to make, whatever the
# model; so those are run whose arguments cannot run on for ever (a boolean) and whose template is among the sources.
# Not their streams: an empty first `content`, as OpenAI's streams have it, is an error to the suite.
ANY_MODEL_WILL_DO = {
    "test_completion_with_required_tool_real_model": "-success-",
    "test_completion_without_tool_call_slow": "Llama-3.2",
}


def _needs_large_model(item: Any) -> bool:
    if item.get_closest_marker("slow") is None:
        return False
    part = ANY_MODEL_WILL_DO.get(item.originalname)
    return part is None or part not in item.name or "NORMAL" not in item.name


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = [item for item in items if _needs_large_model(item)]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]
    deselect(config, items, "llama_cpp_deselected.txt")


def pytest_runtest_setup(item: pytest.Item) -> None:
    import utils

    module: Any = item.module  # type: ignore[attr-defined]
    if hasattr(module, "get_img_url"):
        plain = module.get_img_url
        module.get_img_url = lambda name: picture(name) if name.startswith("IMG_BASE64") else plain(name)
    if hasattr(module, "get_test_image_base64"):
        module.get_test_image_base64 = lambda: picture("IMG_BASE64_0")
    if hasattr(module, "match_regex"):
        told_stories = item.originalname in STORIES  # type: ignore[attr-defined]
        module.match_regex = _any_text if told_stories else utils.match_regex
