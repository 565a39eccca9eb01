"""The vision part of a config.json: read, written for packed checkpoints, and checked."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from glm4 import LLM
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.checkpoints.config_fields import Fields
from glm4.checkpoints.vision_config import read_vision_config, vision_settings
from glm4.cli import main
from glm4.errors import CheckpointError, OutOfMemoryError, TensorError, UnsupportedModelError
from glm4.model.config import VisionConfig
from glm4.model.shapes import SHAPES
from vision_folder import write_vision_folder

TOWER = SHAPES["glm-4v-9b"].vision


def settings() -> dict[str, Any]:
    assert TOWER is not None
    return vision_settings(TOWER)


def read(data: dict[str, Any]) -> VisionConfig | None:
    return read_vision_config(Fields(data, "config.json"))


def test_what_is_written_is_read() -> None:
    assert read(settings()) == TOWER
    assert read({}) is None
    assert read({"vision_config": None}) is None


def test_the_published_sizes() -> None:
    assert TOWER is not None
    assert (TOWER.num_positions, TOWER.num_rows, TOWER.head_dim) == (6401, 1602, 112)


WRONG: list[tuple[str, Any, str]] = [
    ("num_hidden_layers", 0, "num_hidden_layers must be a whole number from 1 to 256"),
    ("num_heads", 15, "hidden_size 1792 is not a multiple of num_heads 15"),
    ("num_heads", 1, "of 1792 channels; at most 1024 are supported"),
    ("image_size", 1121, "image_size 1121 must be an even number of patches"),
    ("image_size", 1134, "image_size 1134 must be an even number of patches"),  # 81
    ("image_size", 1 << 40, "image_size must be a whole number"),
    ("patch_size", 2, "at most 128"),
    ("num_positions", 6400, "num_positions is 6400"),
    ("in_channels", 4, "in_channels must be"),
    ("layer_norm_eps", float("nan"), "layer_norm_eps must be"),
    ("scaling_factor", 0, "scaling_factor must be"),
    ("scaling_factor", None, "lacks scaling_factor"),
    ("hidden_act", 7, "hidden_act must be a string"),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG, ids=[f"{key}-{value}" for key, value, _ in WRONG])
def test_impossible_values_are_refused(key: str, value: Any, message: str) -> None:
    data = settings()
    data["vision_config"][key] = value
    with pytest.raises(CheckpointError, match=message):
        read(data)


def test_another_activation_is_refused() -> None:
    data = settings()
    data["vision_config"]["hidden_act"] = "quick_gelu"
    with pytest.raises(UnsupportedModelError, match="quick_gelu"):
        read(data)


@pytest.mark.parametrize("key", ["boi_token_id", "eoi_token_id"])
def test_the_tokens_around_a_picture_are_needed(key: str) -> None:
    with pytest.raises(CheckpointError, match=key):
        read({name: value for name, value in settings().items() if name != key})


# The largest values that are accepted: a tower of 2.2e12 parameters, and pictures of 4,098 tokens.
LARGEST = {
    "num_hidden_layers": 256,
    "hidden_size": 16384,
    "num_heads": 128,
    "intermediate_size": 1 << 17,
    "image_size": 4096,
    "patch_size": 32,
    "num_positions": 128**2 + 1,
}


def test_sizes_that_the_weights_do_not_have_take_no_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_vision_folder(tmp_path / "model")
    values = json.loads((folder / "config.json").read_text())
    values["vision_config"] |= LARGEST
    (folder / "config.json").write_text(json.dumps(values))
    with LLM(str(write_vision_folder(tmp_path / "usual")), max_model_len=64):
        pass  # imports what loading imports
    tracemalloc.start()
    try:
        with open_checkpoint(folder) as checkpoint:
            with pytest.raises(TensorError, match=r"lacks .* tensors: 'transformer\.vision"):
                checkpoint.check()
            assert checkpoint.config.vision is not None
            assert checkpoint.config.vision.num_rows == 4098
        with pytest.raises(OutOfMemoryError, match=r"need 7[0-9]{2}\.[0-9]+ GB in int4, but"):
            LLM(str(folder), dtype="int4", max_model_len=64)
        values["vision_config"] |= {"hidden_size": 16, "num_heads": 2, "intermediate_size": 16}  # these would fit
        (folder / "config.json").write_text(json.dumps(values))
        with pytest.raises(TensorError, match=r"lacks .* tensors: 'transformer\.vision"):
            LLM(str(folder), dtype="int4", max_model_len=64)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    values["vision_config"] |= LARGEST
    (folder / "config.json").write_text(json.dumps(values))
    assert main(["plan", str(folder), "--dtype", "int4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not found["fits"]
    assert found["parameters"] > 1e12
