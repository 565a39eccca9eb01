"""`glm4 merge` gives the numbers of PEFT's `merge_and_unload`, and a model that computes what PEFT does unmerged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.checkpoints.hf_layout import hf_tensors, read_hf_rows
from glm4.export.merge import merge
from glm4.kernels import get_kernels
from model_driver import Session, loaded
from tiny import gguf_model, tiny_model, write_folder, write_gguf

pytestmark = pytest.mark.train

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

IDS = np.arange(3, 35, dtype=np.int32) * 7 % 250
MODELS: dict[str, Callable[[Path], Path]] = {
    "glm": lambda at: write_folder(at, tiny_model()),
    "chatglm": lambda at: write_folder(at, tiny_model("chatglm")),
    "chatglm-half-split": lambda at: write_folder(at, tiny_model("chatglm", half_split=True)),
    "glm4": lambda at: write_folder(at, tiny_model(architecture="glm4")),
    "qwen2": lambda at: write_gguf(at / "m.gguf", "qwen2", gguf_model("qwen2", num_attention_heads=6)),
}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 8},
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "patterns": {"r": 4, "lora_alpha": 8, "rank_pattern": {"o_proj": 2}, "alpha_pattern": {"down_proj": 3}},
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True},
    "dora of some": {"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": ["q_proj", "down_proj"]},
}


def trained(source: Path, folder: Path, **options: Any) -> Any:
    """A PEFT model with random factors and norms, saved in a folder."""
    from glm4.backends.transformers.weights import load_model

    with open_checkpoint(source) as checkpoint:
        base = load_model(checkpoint, torch.device("cpu"), "fp32")
    settings = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", **options}
    model = peft.get_peft_model(base, peft.LoraConfig(**settings)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
            elif "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return model


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_the_same_as_merge_and_unload(name: str, kind: str, tmp_path: Path) -> None:
    source = MODELS[name](tmp_path / "source")
    model = trained(source, tmp_path / "adapter", **KINDS[kind])
    with torch.no_grad():
        unmerged = model(input_ids=torch.tensor(IDS[None].astype(np.int64))).logits[0].numpy()
    with open_checkpoint(source) as checkpoint:
        report = merge(checkpoint, tmp_path / "adapter", tmp_path / "out", dtype="fp32")
    assert report.dora == ("dora" in kind)
    with loaded(tmp_path / "out", get_kernels()) as ours:
        found = Session(ours, [len(IDS)]).logits({0: IDS})[0]
    assert np.abs(found - unmerged).max() < 1e-5 * np.ptp(unmerged)
    wanted = model.merge_and_unload().state_dict()
    with open_checkpoint(tmp_path / "out") as written:
        for tensor in hf_tensors(written):
            values = read_hf_rows(written, tensor, 0, tensor.shape[0])
            np.testing.assert_allclose(values, wanted[tensor.name].numpy(), rtol=0, atol=1e-6, err_msg=tensor.name)
