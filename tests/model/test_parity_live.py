"""Live comparison with transformers: needs the golden extra (torch, transformers); skipped without it.

Guards what recorded files cannot: that they can still be reproduced, that other seeds and longer inputs agree too, and
that the Qwen2 and Llama files mean what transformers' own classes for those architectures say.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import golden_models as gm
import tiny
from glm4.kernels import get_kernels
from model_driver import Session, forced_logits, loaded

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """tools/golden/tiny.py, which imports torch and transformers."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    tools = str(Path(__file__).parents[2] / "tools")
    sys.path.insert(0, tools)
    try:
        from golden import tiny as module
    finally:
        sys.path.remove(tools)
    torch.set_num_threads(1)
    return module


def assert_close(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCE * np.ptp(expected)


@pytest.mark.parametrize("name", list(gm.TINY_MODELS))
def test_recordings_can_be_reproduced(name: str, reference: ModuleType) -> None:
    recorded = gm.load_golden(gm.GOLDEN / "tiny" / f"{name}.npz")
    computed = reference.compute(gm.TINY_MODELS[name])
    assert computed.keys() == recorded.keys()
    for key, expected in recorded.items():
        if key.endswith("logits"):
            assert_close(computed[key], expected)
        elif expected.dtype.kind == "i":
            np.testing.assert_array_equal(computed[key], expected, err_msg=key)


@pytest.mark.parametrize("seed", [101, 102, 103])
@pytest.mark.parametrize("name", list(gm.TINY_MODELS))
def test_other_seeds_and_longer_inputs(name: str, seed: int, reference: ModuleType, tmp_path: Path) -> None:
    model = replace(gm.TINY_MODELS[name], seed=seed, num_hidden_layers=3)
    ids = np.random.RandomState(seed).randint(0, model.vocab_size, 300).astype(np.int32)
    original = reference.reference_model(gm.hf_config(model), gm.hf_tensors(model, gm.draw(model)))
    expected = reference.logits(original, ids)
    with loaded(gm.write_checkpoint(tmp_path, model), get_kernels()) as transformer:
        assert_close(forced_logits(transformer, ids, chunk=77), expected)


@pytest.mark.parametrize("name", ["hf-chat", "glm4-32b"])
def test_padded_batch(name: str, reference: ModuleType, tmp_path: Path) -> None:
    """transformers pads unequal prompts on the left and masks them; ours needs no padding. The results are the same."""
    import torch

    model = gm.TINY_MODELS[name]
    prompts = np.split(gm.draw_tokens(model)["prompts"], np.cumsum(gm.SEQUENCE_LENGTHS)[:-1])
    longest = max(gm.SEQUENCE_LENGTHS)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[row, longest - len(prompt) :] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = reference.reference_model(gm.hf_config(model), gm.hf_tensors(model, gm.draw(model)))
    with torch.no_grad():
        expected = padded(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits.numpy()
    with loaded(gm.write_checkpoint(tmp_path, model), get_kernels()) as transformer:
        found = Session(transformer, gm.SEQUENCE_LENGTHS).logits(dict(enumerate(prompts)))
    for row, prompt in enumerate(prompts):
        assert_close(found[row], expected[row, longest - len(prompt) :])


@pytest.mark.parametrize(("name", "architecture"), [("hf-starter", "qwen2"), ("hf-smoke", "llama")])
def test_foreign_architectures(
    name: str, architecture: tiny.GGUFArchitecture, reference: ModuleType, tmp_path: Path
) -> None:
    """A Qwen2 or Llama GGUF file in our engine against Qwen2ForCausalLM or LlamaForCausalLM, not a GLM class."""
    model = replace(gm.TINY_MODELS[name], head_dim=16, num_attention_heads=4, num_key_value_heads=2)
    original = foreign_model(model, architecture)
    ids = gm.draw_tokens(model)["prompts"]
    path = tiny.write_gguf(tmp_path / "model.gguf", architecture, model, tokenizer=False)
    with loaded(path, get_kernels()) as transformer:
        assert_close(forced_logits(transformer, ids), reference.logits(original, ids))


def foreign_model(model: gm.TinyModel, architecture: str) -> Any:
    """transformers' own class of that architecture, with the tiny model's weights in half-split row order."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    kinds = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}
    config_class, model_class = kinds[architecture]
    keys = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    keys += ["num_key_value_heads", "max_position_embeddings", "rms_norm_eps"]
    config = {key: getattr(model, key) for key in keys}
    rope = {"rope_type": "default", "rope_theta": model.rope_theta}
    original = model_class(config_class(**config, rope_parameters=rope, tie_word_embeddings=True, pad_token_id=None))
    tensors = gm.draw(model)
    for key in [key for key in tensors if key.endswith((".qkv", ".qkv_bias"))]:
        tensors[key] = gm.half_split_rows(model, tensors[key])
    state = gm.hf_tensors(model, tensors)
    for key in [key for key in state if "gate_up" in key]:
        gate, up = np.split(state.pop(key), 2)
        state |= {key.replace("gate_up", "gate"): gate, key.replace("gate_up", "up"): up}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    original.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in state.items()}, strict=True)
    return original.float().eval()
