"""Adapters as PEFT writes them today, as GGUF: what llama.cpp would add to a matrix is what PEFT adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import SOURCES, export
from test_gguf_lora import deltas_of, joined

from glm4.checkpoints.checkpoint import open_checkpoint, split_rotary_rows

pytestmark = pytest.mark.train

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True, "lora_alpha": 5}], ids=["lora", "rslora"])
@pytest.mark.parametrize("name", ["glm", "chatglm", "glm4", "qwen2"])
def test_every_linear_of_the_class(name: str, options: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    from glm4.backends.transformers.weights import load_model

    source = SOURCES[name](tmp_path / "source")
    with open_checkpoint(source) as checkpoint:
        base = load_model(checkpoint, torch.device("cpu"), "fp32")
        config = checkpoint.config
    settings = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **{"lora_alpha": 8, **options})
    model = peft.get_peft_model(base, settings)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in (each for key, each in model.named_parameters() if "lora_" in key):
            parameter.data = torch.randn_like(parameter).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "adapter")
    export(source, tmp_path / "a.gguf", "f32", lora=tmp_path / "adapter")
    deltas, half_split = deltas_of(tmp_path / "a.gguf"), name == "qwen2"
    for layer in range(config.num_hidden_layers):
        part = model.base_model.model.model.layers[layer]

        def of(*modules: Any) -> np.ndarray:
            return np.concatenate([module.get_delta_weight("default").detach().float().numpy() for module in modules])

        attention, mlp = part.self_attn, part.mlp
        qkv = of(attention.q_proj, attention.k_proj, attention.v_proj)
        found = joined(deltas, layer, "qkv", config, half_split=half_split)
        if half_split:  # `joined` gives pairs that lie together
            split_rotary_rows(found, config)
        halves = (mlp.gate_proj, mlp.up_proj) if half_split else (mlp.gate_up_proj,)
        tolerance = 1e-5 if dtype == "float32" else 0.1  # PEFT multiplies in the type of the factors
        np.testing.assert_allclose(found, qkv, rtol=0, atol=tolerance * np.abs(qkv).max())
        for key, modules in (("o", (attention.o_proj,)), ("gate_up", halves), ("down", (mlp.down_proj,))):
            wanted = of(*modules)
            found = joined(deltas, layer, key, config, half_split=half_split)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())
