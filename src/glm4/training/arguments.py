"""Our configuration as Hugging Face's `TrainingArguments`."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from glm4.training.config import TrainingConfig


def training_arguments(config: TrainingConfig, device: torch.device) -> transformers.TrainingArguments:
    """The arguments of the trainer; what we do ourselves is off: progress bars, names of columns, printing."""
    bf16 = config.dtype == "bf16" or (config.dtype == "auto" and device.type == "cuda")
    schedule: dict[str, str] = {"constant": "constant_with_warmup"}
    settings: dict[str, Any] = {
        "output_dir": config.output,
        "num_train_epochs": config.num_train_epochs,
        "max_steps": config.max_steps,
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "per_device_eval_batch_size": config.per_device_eval_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "learning_rate": config.learning_rate or 2e-4,
        "lr_scheduler_type": schedule.get(config.lr_scheduler_type, config.lr_scheduler_type),
        "warmup_steps": config.warmup_ratio,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "seed": config.seed,
        "bf16": bf16,
        "use_cpu": device.type == "cpu",
        "logging_steps": config.logging_steps,
        "logging_nan_inf_filter": False,
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "log_level": "error",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": device.type == "cuda",
    }
    return transformers.TrainingArguments(**settings)
