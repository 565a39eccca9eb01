"""Keys of transformers' `Seq2SeqTrainingArguments`, which LLaMA-Factory and ms-swift both take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from glm4.errors import shown
from glm4.training.foreign.rules import (
    Draft,
    NotDoneError,
    Rule,
    chosen,
    flag,
    names,
    noted,
    number,
    refused,
    same,
    text,
    whole,
)

_MAX_NBYTES = 1 << 20
_REPORTS = ("tensorboard", "wandb", "swanlab")
_STEPS_ONLY = "only by steps here; set it to steps, and how many"
_OURS = "the trainer here sees to it itself"
_NO_MEANING = "nothing here depends on it"
_UPLOAD = "nothing is uploaded; upload the run's folder yourself"
_BEST = "the newest checkpoint is the result here; look at eval_loss in metrics.jsonl and choose one yourself"


def _report_to(draft: Draft, key: str, value: Any) -> None:
    wanted = names(value or ())
    if "all" in wanted:
        wanted = _REPORTS
    known = [*draft.fields.get("report_to", ()), *(name for name in wanted if name in _REPORTS)]
    draft.fields["report_to"] = tuple(dict.fromkeys(known))
    for name in wanted:
        if name not in (*_REPORTS, "none"):
            draft.notes.append(f"{key}: nothing is sent to {name}; the run's folder has metrics.jsonl and loss.png")


def _schedule(draft: Draft, key: str, value: Any) -> None:
    kinds = {"cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant"}
    if value not in kinds:
        raise NotDoneError(f"{shown(value)} is not done here; cosine, linear and constant are")
    draft.fields["lr_scheduler_type"] = kinds[value]


def _warmup(draft: Draft, key: str, value: Any) -> None:
    share = 0.0 if value is None else number(value)
    if share >= 1:
        raise NotDoneError("warm-up is a share of all steps here; set warmup_ratio")
    if draft.raw.get("lr_scheduler_type") == "constant":  # which knows no warm-up there
        share = 0.0
    if share or key == "warmup_ratio":
        draft.fields["warmup_ratio"] = share


def _resume(draft: Draft, key: str, value: Any) -> None:
    if isinstance(value, str) and value.strip().lower() not in ("true", "false"):
        raise NotDoneError("a run goes on from the newest checkpoint in its own output_dir; set it to true")
    if value is not None:
        draft.fields["resume"] = flag(value)


def _deepspeed(draft: Draft, key: str, value: Any) -> None:
    """A name of ms-swift's, or a file, whose stage is what counts."""
    if not value:
        return
    if isinstance(value, str):
        shipped = {"zero0": "", "zero2": "zero2", "zero3": "zero3"}
        if value in shipped:
            draft.fields["accelerator"] = shipped[value]
            return
        try:
            with Path(value).open("rb") as file:
                value = json.loads(file.read(_MAX_NBYTES))
        except OSError as error:
            raise NotDoneError(f"cannot read {value}: {error.strerror or error}") from None
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, Mapping) or not isinstance(value.get("zero_optimization", {}), Mapping):
        raise NotDoneError("must be the path of a JSON file of DeepSpeed settings")
    zero = value.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    if stage not in (0, 2, 3):
        raise NotDoneError(f"ZeRO stage {shown(stage)} is not done here; stages 2 and 3 are")
    for name in ("offload_optimizer", "offload_param"):
        if isinstance(zero.get(name), Mapping) and zero[name].get("device", "none") != "none":
            raise NotDoneError(f"{name} is not done here; use stage 3 without it, or quantize the base (QLoRA)")
    draft.fields["accelerator"] = {0: "", 2: "zero2", 3: "zero3"}[stage]
    if stage:
        draft.notes.append(f"{key}: our own settings of ZeRO stage {stage} are used; start with accelerate launch")


def _evaluation(draft: Draft, key: str, value: Any) -> None:
    if value == "no":
        draft.fields["eval_steps"] = 0
    elif value not in (None, "steps"):
        raise NotDoneError(_STEPS_ONLY)


def precision(draft: Draft, key: str, value: Any) -> None:
    """bf16, if it is asked for."""
    if value is not None and flag(value):
        draft.fields["dtype"] = "bf16"


def _limit(draft: Draft, key: str, value: Any) -> None:
    draft.fields["save_total_limit"] = 0 if value is None else whole(value)  # all of them


def _generation(draft: Draft, key: str, value: Any) -> None:
    if value is not None and flag(value):
        draft.fields["generate_every"] = 1


_FIELDS: dict[str, Rule] = {
    "output_dir": same("output", text),
    "num_train_epochs": same("num_train_epochs", number),
    "max_steps": same("max_steps", whole),
    "per_device_train_batch_size": same("per_device_train_batch_size", whole),
    "per_device_eval_batch_size": same("per_device_eval_batch_size", whole),
    "gradient_accumulation_steps": same("gradient_accumulation_steps", whole),
    "learning_rate": same("learning_rate", number),
    "lr_scheduler_type": _schedule,
    "warmup_ratio": _warmup,
    "warmup_steps": _warmup,
    "weight_decay": same("weight_decay", number),
    "max_grad_norm": same("max_grad_norm", number),
    "seed": same("seed", whole),
    "logging_steps": same("logging_steps", whole),
    "save_steps": same("save_steps", whole),
    "save_total_limit": _limit,
    "eval_steps": same("eval_steps", whole),
    "eval_strategy": _evaluation,
    "evaluation_strategy": _evaluation,
    "gradient_checkpointing": same("gradient_checkpointing", flag),
    "activation_checkpointing": same("gradient_checkpointing", flag),
    "group_by_length": same("group_by_length", flag),
    "bf16": precision,
    "resume_from_checkpoint": _resume,
    "report_to": _report_to,
    "deepspeed": _deepspeed,
    "predict_with_generate": _generation,
    "use_cpu": chosen("device", {True: "cpu", False: "auto"}),
}

_NOTED: dict[str, Rule] = {
    **dict.fromkeys(
        ("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
         "dataloader_prefetch_factor", "dataloader_drop_last", "remove_unused_columns", "disable_tqdm",
         "ddp_find_unused_parameters", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs",
         "ddp_backend", "ddp_timeout", "average_tokens_across_devices", "optim_args", "eval_accumulation_steps",
         "use_cache", "skip_memory_metrics", "bf16_full_eval", "tf32"),
        noted(_OURS, True, [], {}),
    ),
    **dict.fromkeys(
        ("logging_first_step", "logging_dir", "log_level", "run_name", "include_num_input_tokens_seen", "project",
         "local_rank", "do_eval", "prediction_loss_only", "save_safetensors", "safe_serialization", "max_shard_size",
         "save_on_each_node", "log_on_each_node", "logging_nan_inf_filter", "data_seed", "full_determinism"),
        noted(_NO_MEANING, True, "passive", "info", 42, -1),
    ),
    "overwrite_output_dir": noted("a run in output_dir goes on from its newest checkpoint; resume: false begins anew"),
    "save_only_model": noted("checkpoints always hold all that a run needs to go on"),
    "use_liger_kernel": noted("the loss here does what it would do, and Liger does nothing for GLM-4"),
    "generation_num_beams": refused("answers at evaluations are greedy", 1),
}  # fmt: skip

_REFUSED: dict[str, Rule] = {
    "fp16": refused("GLM-4 loses its loss (0 or NaN) in fp16; set bf16, or neither for fp32 on CPUs"),
    "save_strategy": refused(_STEPS_ONLY, "steps"),
    "logging_strategy": refused(_STEPS_ONLY, "steps"),
    "optim": refused("only AdamW here", "adamw_torch", "adamw_torch_fused", "adamw_hf"),
    "lr_scheduler_kwargs": refused("schedules have no options here", {}),
    "adam_beta1": refused("is 0.9 here", 0.9),
    "adam_beta2": refused("is 0.999 here", 0.999),
    "adam_epsilon": refused("is 1e-8 here", 1e-8, "1e-8", "1e-08"),
    "label_smoothing_factor": refused("the loss here is not smoothed"),
    "neftune_noise_alpha": refused("no noise is added to embeddings here"),
    "do_predict": refused("this only trains; `glm4 run` answers the prompts of a file"),
    "do_train": refused("this only trains", True),
    "load_best_model_at_end": refused(_BEST),
    "metric_for_best_model": refused(_BEST, "loss"),
    "greater_is_better": refused(_BEST),
    "push_to_hub": refused(_UPLOAD),
    "hub_model_id": refused(_UPLOAD),
    "torch_compile": refused("models are not compiled here"),
    "auto_find_batch_size": refused("the batch size stays as it is set; `glm4 plan MODEL --train` says what fits"),
    "fsdp_config": refused("our own settings are used: set accelerator: fsdp in a configuration of ours"),
    "eval_on_start": refused("the first evaluation is after eval_steps steps"),
    "eval_delay": refused("evaluations begin after eval_steps steps"),
    "ignore_data_skip": refused("a run that goes on takes the rows that it has not seen"),
    "train_sampling_strategy": refused("set group_by_length", "random"),
}

TRAINER_KEYS: Mapping[str, Rule] = MappingProxyType({**_FIELDS, **_NOTED, **_REFUSED})

# What transformers takes where a file says nothing, as far as it differs from here.
TRAINER_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "learning_rate": 5e-5,
        "lr_scheduler_type": "linear",
        "warmup_ratio": 0.0,
        "logging_steps": 500,
        "group_by_length": False,
        "save_total_limit": 0,
    }
)
