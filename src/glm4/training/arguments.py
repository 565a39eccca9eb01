"""Our configuration as Hugging Face's `TrainingArguments`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import transformers

from glm4.errors import MissingExtraError
from glm4.system.extras import Package
from glm4.training.config import TrainingConfig
from glm4.training.defaults import learning_rate

_SCHEDULES = {"constant": "constant_with_warmup"}
_NEVER = 1 << 40


def training_arguments(
    config: TrainingConfig, device: torch.device, *, bf16: bool, evaluates: bool
) -> transformers.TrainingArguments:
    """The arguments of the trainer; what we do ourselves is off: progress bars, names of columns, printing.

    Raises:
        MissingExtraError: a package of `report_to` is not installed.
    """
    for name in config.report_to:
        if Package(name).installed is None:
            raise MissingExtraError(f"report_to {name} needs the package {name}; install it with: pip install {name}")
    # TensorBoard's files would else go to a folder of their own beside the run.
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(Path(config.output) / "tensorboard"))
    settings: dict[str, Any] = {
        "output_dir": config.output,
        "run_name": Path(config.output).name,
        "num_train_epochs": config.num_train_epochs,
        "max_steps": config.max_steps,
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "per_device_eval_batch_size": config.per_device_eval_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "learning_rate": learning_rate(config),
        "lr_scheduler_type": _SCHEDULES.get(config.lr_scheduler_type, config.lr_scheduler_type),
        "warmup_steps": config.warmup_ratio,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "optim": "adamw_torch_fused",  # in place: the plain one holds a copy of the largest weight beside its states
        "seed": config.seed,
        "bf16": bf16,
        "use_cpu": device.type == "cpu",
        "logging_steps": config.logging_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "log_level": "error",
        "log_level_replica": "error",
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": config.eval_steps or config.save_steps or _NEVER,
        "metric_for_best_model": "eval_loss" if evaluates else None,
        "greater_is_better": False,
        "save_strategy": "steps",
        "save_steps": config.save_steps or _NEVER,
        "save_total_limit": config.save_total_limit or None,
        "report_to": list(config.report_to),
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": device.type == "cuda",
    }
    args = transformers.TrainingArguments(**settings)
    args._n_gpu = min(args.n_gpu, 1)  # several GPUs are used by as many processes; the trainer would split batches
    return args
