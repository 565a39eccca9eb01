"""`Processor.open`: the text side of a model, from its files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glm4.chat.chat_request import ChatRequest
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.checkpoints.text_files import read_text_files
from glm4.cli import main
from glm4.errors import CheckpointError, ModelNotFoundError, TokenizerError, UnsupportedModelError
from glm4.requests.processor import Processor
from glm4.variants import get_variant
from tiny import VOCAB_SIZE, special_id, tiny_model, write_folder, write_gguf
from vision_folder import write_vision_folder

CHAT = ChatRequest.of([{"role": "user", "content": "hello, 世界"}])


def make(root: Path, kind: str) -> Path:
    if kind.startswith("gguf"):
        return write_gguf(root / "m.gguf", "qwen2" if kind == "gguf-qwen2" else "chatglm")
    if kind == "vision":
        return write_vision_folder(root / "m")
    model = tiny_model("chatglm" if kind == "chatglm" else "hf")
    return write_folder(root / "m", model, generation_config={"temperature": 0.4, "eos_token_id": [258, 9999, -1]})


@pytest.mark.parametrize("kind", ["hf", "chatglm", "gguf-chatglm", "gguf-qwen2", "packed", "vision", "vision-packed"])
def test_it_is_the_open_checkpoints(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path, "gguf-qwen2" if kind == "packed" else kind.removesuffix("-packed"))
    if kind.endswith("packed"):
        assert main(["quantize", str(path), "--to", "int8", "-o", str(tmp_path / "out")]) == 0
        path = tmp_path / "out"
    with open_checkpoint(path) as checkpoint:
        theirs, known = Processor.load(checkpoint), checkpoint.text_files
    ours, files = Processor.open(path), read_text_files(path)
    assert ours.dialect is theirs.dialect
    assert ours.defaults == theirs.defaults
    assert ours.image == theirs.image
    assert (ours.image is not None) == kind.startswith("vision")
    assert ours.stop_ids == theirs.stop_ids
    assert ours.render(CHAT) == theirs.render(CHAT)
    assert (files.vocab_size, files.context, files.packed) == (known.vocab_size, known.context, known.packed)
    assert files.variant.dialect == known.variant.dialect


def test_no_weights_are_needed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    expected = Processor.open(folder).render(CHAT)
    (folder / "model.safetensors").unlink()
    assert Processor.open(folder).render(CHAT) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        {"num_hidden_layers": "many"},
        {"vision_config": {"hidden_size": 8}},
        {"num_key_value_heads": None},
    ],
)
def test_a_model_that_our_engine_cannot_run_still_has_a_text_side(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = write_folder(tmp_path, config=changes)
    assert Processor.open(folder).render(CHAT)
    assert read_text_files(folder).vocab_size == VOCAB_SIZE


def test_a_name_says_what_the_files_do_not(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(UnsupportedModelError, match="unknown model type"):
        Processor.open(folder)
    processor = Processor.open(folder, variant=get_variant("glm-4-9b-chat"))
    assert special_id("<|user|>") in processor.stop_ids
    assert read_text_files(folder, variant=get_variant("glm-4-9b-chat")).vocab_size is None


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("config.json", "[]", CheckpointError),
        ("config.json", json.dumps({"model_type": "mamba"}), UnsupportedModelError),
        ("config.json", json.dumps({"model_type": "glm", "eos_token_id": "x"}), CheckpointError),
        ("generation_config.json", "{", CheckpointError),
        ("tokenizer_config.json", "{", CheckpointError),
        ("tokenizer.model", "?", TokenizerError),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: str, error: type[Exception]) -> None:
    folder = write_folder(tmp_path, chat_template="{{ messages }}")
    (folder / name).write_text(content)
    with pytest.raises(error):
        Processor.open(folder)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        Processor.open(tmp_path / "nowhere")
    with pytest.raises(CheckpointError):
        Processor.open(tmp_path)
