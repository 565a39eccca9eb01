"""Short texts encoded in Python, from the saved table, get the ids that the library gives them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm4.grammars.vocabulary import GrammarVocabulary
from glm4.tokenizer import Tokenizer, load_tokenizer
from glm4.tokenizer.hf_tokenizer import ByteLevelBPE
from glm4.tokenizer.saved_table import save_table
from glm4.tokenizer.saving import save_tokenizer
from glm4.tokenizer.short_texts import CHARACTERS
from vocabularies import glm4_gguf, installed_gguf, tiny_gguf


def saved(metadata: dict[str, Any], folder: Path) -> Path:
    """A folder with a tokenizer and its table."""
    tokenizer = load_tokenizer(None, gguf_metadata=metadata)
    assert isinstance(tokenizer, ByteLevelBPE)
    save_tokenizer(tokenizer, folder)
    save_table(tokenizer, folder)
    return folder


@pytest.fixture(scope="module", params=["qwen2", "smollm", "chatglm-bpe"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # "token" is a token that no merge makes: whole words are looked up where the pre-tokenizer says so.
    metadata = tiny_gguf(request.param)
    metadata["tokenizer.ggml.tokens"][-1], metadata["tokenizer.ggml.token_type"][-1] = "token", 1
    return saved(metadata, tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def library(folder: Path) -> ByteLevelBPE:
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, ByteLevelBPE)
    return tokenizer


def in_python(folder: Path) -> ByteLevelBPE:
    tokenizer = load_tokenizer(folder, packed=True)
    assert isinstance(tokenizer, ByteLevelBPE)
    assert tokenizer._short_texts is not None
    return tokenizer


TEXTS = st.text(max_size=60) | st.text("the token aab 's\n\t1你好é", max_size=60)


@settings(deadline=None)
@given(TEXTS)
def test_the_ids_are_the_library_s(folder: Path, library: ByteLevelBPE, text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    short = load_once(folder)._short_texts
    assert short is not None
    assert short.encode(text) == library.encode(text)


def test_the_library_is_asked_once_there_is_more_text(folder: Path, library: ByteLevelBPE) -> None:
    tokenizer = in_python(folder)
    short = tokenizer._short_texts
    assert short is not None
    assert short.takes("x" * (CHARACTERS - 1))
    assert short.takes("x")
    assert not short.takes("x")
    assert tokenizer.encode("the token") == library.encode("the token")


def test_a_grammar_has_the_library_built_before_its_first_token_is_asked_for(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    tokenizer = in_python(copy)
    end = max(token.id for token in tokenizer.added_tokens.values())
    text = json.dumps({"grammars": [{"lark_grammar": 'start: "a" | "b"'}]})
    GrammarVocabulary(tokenizer, tokenizer.size, end).compile(text, "grammar", "the grammar")
    shutil.rmtree(copy)
    assert tokenizer.encode("x " * CHARACTERS)


def test_whole_words_are_looked_up_where_the_model_says_so(folder: Path, library: ByteLevelBPE) -> None:
    found = len(in_python(folder).encode("token")) == 1
    assert found == (len(library.encode("token")) == 1)
    assert found == library.definition()["model"]["ignore_merges"]


@pytest.mark.thorough
@settings(deadline=None, max_examples=100)
@given(TEXTS)
def test_glm_4_s_ids_are_the_library_s(glm4_pair: tuple[Tokenizer, Path], text: str) -> None:
    library, folder = glm4_pair
    text = text.encode("utf-8", "replace").decode()
    short = load_once(folder)._short_texts
    assert short is not None
    assert short.encode(text) == library.encode(text)


@pytest.fixture(scope="module")
def glm4_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Path]:
    folder = saved(glm4_gguf(), tmp_path_factory.mktemp("glm4"))
    return load_tokenizer(folder), folder


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
    folder = saved(installed_gguf("starter"), tmp_path_factory.mktemp("starter"))
    return load_tokenizer(folder), folder


_loaded: dict[Path, ByteLevelBPE] = {}


def load_once(folder: Path) -> ByteLevelBPE:
    if folder not in _loaded:
        _loaded[folder] = in_python(folder)
    return _loaded[folder]
