"""Records prefix adapters (P-Tuning v2) that PEFT saved, and the logits transformers and PEFT compute with them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PrefixTuningConfig, get_peft_model

import golden_models as gm
from golden import tiny
from golden.adapters import PROMPT_LENGTH, llama_model
from golden.files import write_npz


@dataclass(frozen=True)
class Case:
    """A prefix for a tiny model; `family` is "hf" for transformers' GLM classes, "qwen2" or "llama".

    transformers has no class for the original ChatGLM files: their prefixes are trained on its GLM, with the same
    tensors. `projected`: through a matrix, as in training; PEFT saves what comes out.
    """

    model: str
    family: str
    num_virtual_tokens: int
    dtype: torch.dtype = torch.float32
    projected: bool = False


# A part of a page, a whole one, and more than one.
CASES = {
    "hf": Case("hf-chat", "hf", 5),
    "chatglm": Case("chatglm-chat", "hf", 40),
    "glm4": Case("glm4-9b", "hf", 32, torch.bfloat16),
    "qwen2": Case("hf-starter", "qwen2", 7, torch.float16),
    "llama": Case("hf-edge", "llama", 33, projected=True),
}


def record(folder: Path) -> list[Path]:
    """One folder per case as PEFT saves it, beside it `logits.npz`: ids [20], logits [20, V]."""
    written: list[Path] = []
    for name, case in CASES.items():
        row = gm.TINY_MODELS[case.model]
        rng = np.random.RandomState(row.seed + 3000)
        ids = rng.randint(0, row.vocab_size, PROMPT_LENGTH).astype(np.int32)
        base: Any = (
            tiny.reference_model(gm.hf_config(row), gm.hf_tensors(row, gm.draw(row)))
            if case.family == "hf"
            else llama_model(case.family, row)
        )
        plain = tiny.logits(base, ids)
        config = PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=case.num_virtual_tokens, num_layers=row.num_hidden_layers,
            token_dim=row.key_value_size, num_attention_heads=row.num_key_value_heads,
            prefix_projection=case.projected, encoder_hidden_size=24,
        )  # fmt: skip
        adapted: Any = get_peft_model(base, config)
        for parameter in adapted.prompt_encoder.parameters():
            drawn = torch.from_numpy(rng.standard_normal(tuple(parameter.shape)))
            parameter.data = drawn.to(case.dtype).float()
        adapted.eval()
        tokens = torch.from_numpy(ids.astype(np.int64))[None]
        with torch.no_grad():
            expected = adapted(tokens, attention_mask=torch.ones_like(tokens)).logits[0].numpy()
        for parameter in adapted.prompt_encoder.parameters():
            parameter.data = parameter.data.to(case.dtype)
        target = folder / name
        adapted.save_pretrained(target)
        (target / "README.md").unlink(missing_ok=True)
        settings = json.loads((target / "adapter_config.json").read_text())
        (target / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
        write_npz(target / "logits.npz", {"ids": ids, "logits": np.asarray(expected, np.float32)})
        moved = float(np.abs(expected - plain).max() / np.ptp(plain))
        print(f"  {name}: the prefix moves the logits by {moved:.2f} of their range")
        written += sorted(target.iterdir())
    return written
