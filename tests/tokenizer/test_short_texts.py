"""Short texts encoded in Python get the ids that the library gives them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm4.errors import TokenizerError
from glm4.tokenizer import Tokenizer, load_tokenizer
from glm4.tokenizer.hf_tokenizer import ByteLevelBPE
from glm4.tokenizer.saving import save_tokenizer
from glm4.tokenizer.short_texts import CHARACTERS
from vocabularies import installed_gguf, tiny_gguf


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_tokenizer(load_tokenizer(None, gguf_metadata=tiny_gguf()), folder)
    return folder


@pytest.fixture(scope="module")
def library(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


def in_python(folder: Path) -> ByteLevelBPE:
    tokenizer = load_tokenizer(folder, trusted=True)
    assert isinstance(tokenizer, ByteLevelBPE)
    assert tokenizer._short_texts is not None
    return tokenizer


TEXTS = st.text(max_size=60) | st.text("the token aab 's\n\t1你好é", max_size=60)


@settings(deadline=None)
@given(TEXTS)
def test_the_ids_are_the_library_s(folder: Path, library: Tokenizer, text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    short = load_once(folder)._short_texts
    assert short is not None
    assert short.encode(text) == library.encode(text)


def test_the_library_is_asked_once_there_is_more_text(folder: Path, library: Tokenizer) -> None:
    tokenizer = in_python(folder)
    short = tokenizer._short_texts
    assert short is not None
    assert short.takes("x" * (CHARACTERS - 1))
    assert short.takes("x")
    assert not short.takes("x")
    assert tokenizer.encode("the token") == library.encode("the token")


def test_a_damaged_file_of_somebody_else_is_refused_at_once(folder: Path, tmp_path: Path) -> None:
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    damaged = text.replace('"merges":[', '"merges":["never seen",', 1).replace(
        '"merges": [', '"merges": ["never seen",', 1
    )
    assert damaged != text
    (tmp_path / "tokenizer.json").write_text(damaged, encoding="utf-8")
    with pytest.raises(TokenizerError):
        load_tokenizer(tmp_path)


@pytest.mark.starter
@settings(deadline=None, max_examples=300)
@given(
    st.lists(TEXTS | st.sampled_from(["Hello, world! ", "def f(x):\n    return x", "今天天气很好。", " ééé", "  \n"]))
)
def test_the_starter_s_ids_are_the_library_s(starters: tuple[Tokenizer, Path], parts: list[str]) -> None:
    library, folder = starters
    text = "".join(parts).encode("utf-8", "replace").decode()
    tokenizer = load_once(folder)
    short = tokenizer._short_texts
    assert short is not None
    assert short.encode(text) == library.encode(text)


@pytest.fixture(scope="module")
def starters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Path]:
    tokenizer = load_tokenizer(None, gguf_metadata=installed_gguf("starter"))
    folder = tmp_path_factory.mktemp("starter")
    save_tokenizer(tokenizer, folder)
    return tokenizer, folder


_loaded: dict[Path, ByteLevelBPE] = {}


def load_once(folder: Path) -> ByteLevelBPE:
    if folder not in _loaded:
        _loaded[folder] = in_python(folder)
    return _loaded[folder]
