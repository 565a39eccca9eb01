"""One training run by TRL or by transformers' own Trainer, both with PEFT: a process of its own for `finetune.py`.

Both get what our side makes of the data: token ids, and labels on the same tokens. They start from the same weights,
group samples by length (their own setting for it), recompute activations, and train in float32. TRL's loss is its
default, which computes no logits for tokens without loss and the others in chunks.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.append(sys.path.pop(0))  # this folder has a `kernels`, too, which PEFT would take for the package

import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model

from finetune_data import Rows, load_tokens, peak_nbytes

IGNORED = -100
TARGETS = {
    "glm": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"],
    "qwen2": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


class Watch(transformers.TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Seconds of the training itself, and the loss of every step."""

    def __init__(self) -> None:
        self.start, self.seconds = 0.0, 0.0
        self.losses: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self.start

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def labeled(rows: Rows) -> list[dict[str, Any]]:
    """Samples as both peers take them."""
    return [
        {"input_ids": ids.tolist(), "labels": [int(i) if t else IGNORED for i, t in zip(ids, mask, strict=True)]}
        for ids, mask in rows
    ]


def padded(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch padded at its right; what Trainer's users write, or take from transformers."""
    longest = max(len(sample["input_ids"]) for sample in samples)

    def fill(name: str, value: int) -> torch.Tensor:
        return torch.tensor([sample[name] + [value] * (longest - len(sample[name])) for sample in samples])

    lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
    attention = (torch.arange(longest)[None] < lengths[:, None]).long()
    return {"input_ids": fill("input_ids", 0), "labels": fill("labels", IGNORED), "attention_mask": attention}


def settings(spec: dict[str, Any], order: str) -> dict[str, Any]:
    """Arguments that both trainers share."""
    return {
        "output_dir": spec["output"],
        "per_device_train_batch_size": spec["batch"],
        "num_train_epochs": 1,
        "learning_rate": spec["learning_rate"],
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "train_sampling_strategy": order,
        "gradient_checkpointing": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": spec["seed"],
    }


def adapter(model: Any, spec: dict[str, Any]) -> LoraConfig:
    return LoraConfig(
        r=spec["rank"], lora_alpha=spec["alpha"], lora_dropout=0.0, task_type="CAUSAL_LM",
        target_modules=TARGETS[model.config.model_type],
    )  # fmt: skip


def trainer(side: str, model: Any, spec: dict[str, Any], rows: Rows, watch: Watch) -> Any:
    data, order = Dataset.from_list(labeled(rows)), "random" if side.endswith("random order") else "group_by_length"
    tokenizer = transformers.AutoTokenizer.from_pretrained(spec["model"])
    if side.startswith("TRL"):
        from trl import SFTConfig, SFTTrainer

        prepared = {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None}
        return SFTTrainer(
            model=model, args=SFTConfig(**settings(spec, order), **prepared), train_dataset=data,
            processing_class=tokenizer, peft_config=adapter(model, spec), callbacks=[watch],
        )  # fmt: skip
    wrapped = get_peft_model(model, adapter(model, spec))
    wrapped.enable_input_require_grads()
    return transformers.Trainer(
        model=wrapped, args=transformers.TrainingArguments(**settings(spec, order)), train_dataset=data,
        processing_class=tokenizer, data_collator=padded, callbacks=[watch],
    )  # fmt: skip


def train(side: str, spec: dict[str, Any]) -> dict[str, Any]:
    """One epoch; the adapter is saved."""
    transformers.set_seed(spec["seed"])
    transformers.utils.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32)
    watch = Watch()
    running = trainer(side, model, spec, load_tokens(Path(spec["tokens"])), watch)
    running.train()
    peak = peak_nbytes()
    running.model.save_pretrained(spec["output"])
    return {"seconds": watch.seconds, "peak": peak, "losses": watch.losses}


def held_out_loss(spec: dict[str, Any]) -> dict[str, Any]:
    """Loss per target token of rows that nobody trained on: the base alone, and with each adapter."""
    transformers.utils.logging.set_verbosity_error()
    base = transformers.AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32)
    rows = labeled(load_tokens(Path(spec["held_out"])))
    found = {"base": _loss(base, rows)}
    for side, folder in spec["adapters"].items():
        model = PeftModel.from_pretrained(base, folder)
        found[side] = _loss(model, rows)
        base = model.unload()
    return found


def _loss(model: Any, rows: list[dict[str, Any]]) -> float:
    total, count = 0.0, 0
    for row in rows:
        targets = torch.tensor(row["labels"])[1:]
        wanted = targets != IGNORED
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1][wanted]
        total += float(torch.nn.functional.cross_entropy(logits, targets[wanted], reduction="sum"))
        count += int(wanted.sum())
    return total / count


if __name__ == "__main__":
    SIDE, SPEC = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    print(json.dumps(held_out_loss(SPEC) if SIDE == "held out" else train(SIDE, SPEC)))
