"""Records LoRA adapters that PEFT made and saved, and the logits transformers and PEFT compute with them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import golden_models as gm
from golden import chatglm, tiny
from golden.files import write_npz

PROMPT_LENGTH = 20
HF = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]
LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CHATGLM = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]


@dataclass(frozen=True)
class Case:
    """An adapter for a tiny model; `family` is whose module names and row order it has."""

    model: str
    family: str
    targets: list[str]
    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32


CASES = {
    "hf": Case(
        "hf-chat", "hf", HF,
        {"rank_pattern": {"o_proj": 2, "layers.1.self_attn.q_proj": 6}, "alpha_pattern": {"down_proj": 3}},
    ),
    "glm4-rslora": Case("glm4-9b", "hf", ["q_proj", "v_proj", "down_proj"], {"use_rslora": True}, torch.bfloat16),
    "one-layer": Case("hf-edge", "hf", ["k_proj", "gate_up_proj"], {"layers_to_transform": [1]}, torch.float16),
    "chatglm": Case("chatglm-chat", "chatglm", CHATGLM),
    "chatglm-half-split": Case("chatglm-half-split", "chatglm", ["query_key_value"]),
    "qwen2": Case("hf-starter", "qwen2", LLAMA),
    "llama": Case("hf-edge", "llama", ["q_proj", "k_proj", "up_proj"]),
}  # fmt: skip


def base_model(case: Case) -> torch.nn.Module:
    model = gm.TINY_MODELS[case.model]
    if case.family == "chatglm":
        return chatglm.build(model)
    if case.family == "hf":
        return tiny.reference_model(gm.hf_config(model), gm.hf_tensors(model, gm.draw(model)))
    return llama_model(case.family, model)


def llama_model(family: str, model: gm.TinyModel) -> torch.nn.Module:
    """The tiny model as transformers' Llama or Qwen2: half-split rotary rows, gate and up apart."""
    config_class, model_class = (
        (Qwen2Config, Qwen2ForCausalLM) if family == "qwen2" else (LlamaConfig, LlamaForCausalLM)
    )
    keys = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings",
    )  # fmt: skip
    made = model_class(
        config_class(**{key: getattr(model, key) for key in keys}, rope_parameters={
            "rope_type": "default", "rope_theta": model.rope_theta,
        })
    )  # fmt: skip
    canonical = {
        name: gm.half_split_rows(model, value) if name.endswith(("qkv", "qkv_bias")) else value
        for name, value in gm.draw(model).items()
    }
    state = {}
    for name, value in gm.hf_tensors(model, canonical).items():
        if "gate_up_proj" in name:
            for part, rows in zip(("gate_proj", "up_proj"), np.split(value, 2), strict=True):
                state[name.replace("gate_up_proj", part)] = torch.from_numpy(rows.copy())
        else:
            state[name] = torch.from_numpy(value.copy())
    state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    made.load_state_dict(state, strict=True)
    return made.float().eval()


def logits(case: Case, model: torch.nn.Module, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    with torch.no_grad():
        if case.family == "chatglm":
            return np.asarray(model(torch.from_numpy(ids.astype(np.int64))).numpy(), np.float32)
    return tiny.logits(model, ids)


def check_base(case: Case, model: torch.nn.Module, ids: NDArray[np.int32]) -> None:
    """The base must be the tiny model: its logits those of transformers' GLM with the same canonical tensors."""
    row = gm.TINY_MODELS[case.model]
    expected = tiny.logits(tiny.reference_model(gm.hf_config(row), gm.hf_tensors(row, gm.draw(row))), ids)
    difference = float(np.abs(logits(case, model, ids) - expected).max() / np.ptp(expected))
    if difference > 1e-5:
        raise SystemExit(f"{case.model}: the {case.family} base differs from GLM by {difference:.1e} of the range")


def record(folder: Path) -> list[Path]:
    """One folder per case as PEFT saves it, beside it `logits.npz`: ids [20], logits [20, V].

    The factors are drawn anew (PEFT starts with B = 0) and rounded to the saved format before anything is computed.
    """
    written: list[Path] = []
    for name, case in CASES.items():
        model = gm.TINY_MODELS[case.model]
        rng = np.random.RandomState(model.seed + 2000)
        ids = rng.randint(0, model.vocab_size, PROMPT_LENGTH).astype(np.int32)
        base = base_model(case)
        check_base(case, base, ids)
        plain = logits(case, base, ids)
        adapted: Any = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=case.targets, **case.options))
        for key, parameter in adapted.named_parameters():
            if "lora_" in key:
                drawn = torch.from_numpy(0.1 * rng.standard_normal(tuple(parameter.shape)))
                parameter.data = drawn.to(case.dtype).float()
        adapted.eval()
        expected = logits(case, adapted, ids)
        for parameter in adapted.parameters():
            parameter.data = parameter.data.to(case.dtype)
        target = folder / name
        adapted.save_pretrained(target)
        (target / "README.md").unlink(missing_ok=True)
        settings = json.loads((target / "adapter_config.json").read_text())
        settings["target_modules"] = sorted(settings["target_modules"])  # a set: written in another order each time
        (target / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
        write_npz(target / "logits.npz", {"ids": ids, "logits": expected})
        moved = float(np.abs(expected - plain).max() / np.ptp(plain))
        print(f"  {name}: the adapter moves the logits by {moved:.2f} of their range")
        written += sorted(target.iterdir())
    return written
