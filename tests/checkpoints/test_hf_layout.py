"""Checkpoints of any layout under the names of Hugging Face's classes: the numbers are those of the original."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.checkpoints.config_reader import config_from_json
from glm4.checkpoints.hf_layout import hf_config, hf_tensors, read_hf_rows
from golden_models import file_tensors
from tiny import canonical, tiny_model, write_folder, write_gguf


@pytest.mark.parametrize("layout", ["hf", "chatglm"])
def test_a_checkpoint_in_either_layout_gives_the_tensors_and_the_configuration_of_hugging_face(
    tmp_path: Path, layout: Literal["hf", "chatglm"]
) -> None:
    model = tiny_model(layout)
    expected = file_tensors(tiny_model("hf"), canonical(model))
    with open_checkpoint(write_folder(tmp_path / "m", model)) as checkpoint:
        found = {one.name: read_hf_rows(checkpoint, one, 0, one.shape[0]) for one in hf_tensors(checkpoint)}
        settings = hf_config(checkpoint)
        config = checkpoint.config
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert config_from_json(settings, "config.json").config == config


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_half_split_heads_and_separate_gates(tmp_path: Path, architecture: Literal["qwen2", "llama"]) -> None:
    model = tiny_model(attention_bias=architecture == "qwen2", partial_rotary_factor=1.0)
    with open_checkpoint(write_gguf(tmp_path / "m.gguf", architecture, model)) as checkpoint:
        tensors = {one.name: one for one in hf_tensors(checkpoint)}
        width = checkpoint.config.head_dim
        canonical_rows = checkpoint.load("layers.0.qkv")
        query = tensors["model.layers.0.self_attn.q_proj.weight"]
        found = read_hf_rows(checkpoint, query, 0, width)
        gate, up = (tensors[f"model.layers.0.mlp.{part}_proj.weight"] for part in ("gate", "up"))
        np.testing.assert_array_equal(found[: width // 2], canonical_rows[0:width:2])
        np.testing.assert_array_equal(found[width // 2 :], canonical_rows[1:width:2])
        assert (gate.canonical, gate.stop) == (up.canonical, up.start)
        assert "partial_rotary_factor" not in hf_config(checkpoint)
