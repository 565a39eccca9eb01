"""Files of a user, as the model is shown them: whole where they fit, else by name; and where code finds them."""

from __future__ import annotations

from pathlib import Path

import pytest

from glm4.agent.attachments import attached
from glm4.agent.file_store import FolderFileStore
from glm4.chat.messages import Message
from glm4.documents.document import Document
from glm4.documents.loading import load_document
from glm4.errors import InvalidRequestError
from scripted_llm import scripted_llm

TABLE = b"city,degrees\nOslo,-4\n"


def _load(data: bytes, name: str) -> Document:
    return load_document(data, name, sandboxed=False)


def _shown(folder: Path, tools: tuple[str, ...], **files: bytes) -> str:
    store = FolderFileStore(folder / "files")
    stored = [store.put(f"{name}.csv", data) for name, data in files.items()]
    with scripted_llm(folder / "model", lambda prompt: "", max_model_len=1024) as llm:
        return attached(Message("user", "How cold is it?"), stored, store, llm, tools, _load).text


def test_a_file_that_fits_is_shown_whole(tmp_path: Path) -> None:
    text = _shown(tmp_path, ("files",), a=TABLE)
    assert "[File Name]\na.csv\n[File Content]\n" in text
    assert "Oslo" in text
    assert text.endswith("1 file uploaded.\n\nHow cold is it?")


def test_code_is_told_where_files_are_that_are_shown_whole(tmp_path: Path) -> None:
    text = _shown(tmp_path, ("python",), a=TABLE, b=TABLE + b"Rome,20\n")
    assert text.endswith(
        "2 files uploaded.\nFor Python, they are at /mnt/data/a.csv, /mnt/data/b.csv.\n\nHow cold is it?"
    )


def test_a_file_that_is_too_long_is_named(tmp_path: Path) -> None:
    text = _shown(tmp_path, ("files", "python"), a=TABLE * 200)
    assert "Oslo" not in text
    assert "a.csv (search_files and read_file read them; they are in /mnt/data)" in text


def test_a_file_that_is_too_long_for_a_model_without_tools_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="too long"):
        _shown(tmp_path, (), a=TABLE * 200)
