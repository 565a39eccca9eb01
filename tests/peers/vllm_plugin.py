"""pytest plugin for vLLM's entrypoint tests: `tests.utils` that starts our server, and empty `vllm` and `torch`.

The suite imports the package it was written beside. Whatever it imports from there exists here and can do nothing:
a test that needs more than HTTP fails, and is on the list of those left out. The exceptions are the tokenizer of the
model that is served, adapters for it in place of downloads, and the version.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from deselection import deselect

STUBBED = ("vllm", "torch", "transformers")
PEERS = Path(os.environ["GLM4_PEERS"])


class _Nothing(type):
    """The type of every stubbed name: usable as class, base class or decorator argument, and nothing else."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing(name, (), {})

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{cls.__name__} belongs to the package under test elsewhere; here is only HTTP")


class _StubModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value: Any = _Nothing(name, (Exception,) if name.endswith("Error") else (), {})
        setattr(self, name, value)
        return value


class _StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in STUBBED:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _StubModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == "vllm.platforms":
            module.current_platform = _Platform()  # type: ignore[attr-defined]
        elif module.__name__ == "vllm.tokenizers":
            module.get_tokenizer = lambda *args, **kwargs: ByteTokenizer()  # type: ignore[attr-defined]
        elif module.__name__ == "vllm.transformers_utils.repo_utils":
            module.hf_api = _Hub  # type: ignore[attr-defined]
        elif module.__name__ == "transformers":
            module.AutoTokenizer = SimpleNamespace(from_pretrained=lambda *_, **__: ByteTokenizer())  # type: ignore[attr-defined]
        elif module.__name__ == "torch":
            module.iinfo = lambda _: SimpleNamespace(min=-(2**63), max=2**63 - 1)  # type: ignore[attr-defined]
        elif module.__name__ == "vllm.version":
            module.__version__ = os.environ["GLM4_VERSION"]  # type: ignore[attr-defined]
            module._prev_minor_version = lambda: ""  # type: ignore[attr-defined]
        elif module.__name__ == "vllm":
            module.version = importlib.import_module("vllm.version")  # type: ignore[attr-defined]


class _Platform:
    """A processor; no accelerator of any kind."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: False


class _Hub:
    """Gives a folder with a tiny adapter where the suite would download one."""

    def snapshot_download(self, repo_id: str, **_: Any) -> str:
        from vllm_adapter import write_adapter

        return str(write_adapter(PEERS / "adapters" / repo_id.replace("/", "--")))


class ByteTokenizer:
    """The tokenizer of `tiny_glm`: bytes, and the special tokens above them."""

    bos_token_id = None
    eos_token_id = 256

    def __init__(self) -> None:
        file = next(PEERS.glob("models/tiny-*/tokenizer_config.json"))
        added = json.loads(file.read_text())["added_tokens_decoder"]
        self._special = {int(id_): token["content"] for id_, token in added.items()}

    def encode(self, text: str, add_special_tokens: bool = True, **_: Any) -> list[int]:
        return [*([258, 260] if add_special_tokens else []), *text.encode()]

    def __call__(self, text: str, **options: Any) -> Any:
        return type("Encoding", (), {"input_ids": self.encode(text, **options)})()

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        pieces = [bytes([one]) if one < 256 else self._special.get(one, "").encode() for one in ids]
        kept = [piece for piece, one in zip(pieces, ids, strict=True) if one < 256 or not skip_special_tokens]
        return b"".join(kept).decode("utf-8", "replace")

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [self.decode([one]) for one in ids]


sys.meta_path.insert(0, _StubFinder())


import vllm_utils  # noqa: E402

# The suite's own helpers start vLLM.
sys.modules["tests.utils"] = vllm_utils
sys.modules["tests.conftest"] = _StubModule("tests.conftest")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    deselect(config, items, "vllm_deselected.txt")


@pytest.fixture(scope="session", autouse=True)
def _end_servers() -> Iterator[None]:
    yield
    vllm_utils.end_all()
