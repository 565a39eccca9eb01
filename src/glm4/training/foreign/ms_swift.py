"""ms-swift's arguments (3 and 4) as YAML or JSON: keys of its SftArguments and, for DPO, RLHFArguments."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from glm4.errors import shown
from glm4.training.data.formats.columns import Columns
from glm4.training.foreign.rules import (
    Draft,
    NotDoneError,
    Rule,
    chosen,
    flag,
    names,
    negated,
    noted,
    number,
    projector,
    read_keys,
    refused,
    same,
    text,
    whole,
)
from glm4.training.foreign.trainer_keys import TRAINER_DEFAULTS, TRAINER_KEYS

NAME = "ms-swift"
SIGNS = ("tuner_type", "train_type", "sft_type", "dataset", "rlhf_type", "split_dataset_ratio")
"""A key that only its files have, once it is known that the file is not LLaMA-Factory's."""

_BATCH = 16  # samples of a step, if gradient_accumulation_steps is left out


def read(draft: Draft) -> None:
    """Fill a draft in.

    Raises:
        InvalidRequestError: see `read_keys`.
    """
    read_keys(draft, _RULES, _PREFIXES, _DEFAULTS)
    raw, fields = draft.raw, draft.fields
    if raw.get("learning_rate") is None:
        fields["learning_rate"] = 1e-5 if fields["method"] == "full" else 1e-4
    if raw.get("gradient_accumulation_steps") is None:
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        together = max(1, fields["per_device_train_batch_size"] * processes)
        fields["gradient_accumulation_steps"] = max(1, math.ceil(_BATCH / together))
    if not fields.get("data.validation") and not fields.get("data.validation_split"):
        fields["eval_steps"] = 0
    elif raw.get("eval_steps") is None and raw.get("eval_strategy") != "no":
        fields["eval_steps"] = fields.get("save_steps", 500)
    draft.notes.append("adam_beta2: 0.999 here, 0.95 there")
    draft.notes.append("output_dir: is the run's folder itself, without one for each start")


def _tuner(draft: Draft, key: str, value: Any) -> None:
    if value not in ("lora", "full"):
        raise NotDoneError(f"{shown(value)} is not done here; lora and full are")
    draft.fields["method"] = value


def _rlhf(draft: Draft, key: str, value: Any) -> None:
    if value not in (None, "dpo"):
        raise NotDoneError(f"{shown(value)} is not done here; dpo is")
    draft.fields["objective"] = "sft" if value is None else "dpo"


def _datasets(field_name: str) -> Rule:
    """Files, or names of a hub, which is ModelScope's unless `use_hf` says otherwise."""

    def rule(draft: Draft, key: str, value: Any) -> None:
        wanted = names(value or ())
        on_hub = str(draft.raw.get("use_hf", False)).lower() in ("true", "1")
        for name in wanted:
            file = name.partition("#")[0]
            if not on_hub and not os.path.exists(file):  # noqa: PTH110 - which raises for no name
                raise NotDoneError(
                    f"there is no file {file}, and data sets of ModelScope are not fetched; name a file, or set use_hf:"
                    " true for a name of Hugging Face's hub"
                )
        if any("#" in name for name in wanted):
            draft.notes.append(f"{key}: NAME#N is the first N rows here, and N random ones there")
        draft.fields[field_name] = wanted

    return rule


def _length(draft: Draft, key: str, value: Any) -> None:
    if value is None:
        raise NotDoneError("is the model's whole context there if it is left out; write how many tokens a row may have")
    draft.fields["data.max_length"] = whole(value)


def _loss_scale(draft: Draft, key: str, value: Any) -> None:
    if value in (None, "default"):
        return
    if value != "last_round":
        raise NotDoneError(
            f"{shown(value)} is not done here: tokens of users and systems never carry loss, and those of the model all"
            " count the same; default and last_round are done"
        )
    draft.fields["data.loss"] = "last"
    draft.notes.append(f"{key}: the last message of the assistant; there also the calls before it, if it used tools")


def _columns(draft: Draft, key: str, value: Any) -> None:
    """Their names → what they are."""
    if not value:
        return
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, Mapping):
        raise ValueError("must be an object: name of a field → what it is")
    ours = {
        "query": "instruction",
        "response": "output",
        "rejected_response": "rejected",
        **{name: name for name in ("messages", "system", "history", "images", "tools")},
    }
    unknown = [name for name in value.values() if name not in ours]
    if unknown:
        raise NotDoneError(f"{shown(unknown[0])} is nothing that is read here; {', '.join(ours)} are")
    draft.fields["data.columns"] = replace(Columns(), **{ours[what]: str(name) for name, what in value.items()})


def _bits(draft: Draft, key: str, value: Any) -> None:
    if value is None:
        return
    method, kind = draft.raw.get("quant_method"), draft.raw.get("bnb_4bit_quant_type", "nf4")
    if str(value) != "4" or method != "bnb" or kind != "nf4":
        raise NotDoneError(f"{value} bits of {method} ({kind}) is not done here; 4 bits of bnb (nf4) is")
    draft.fields["quantize"] = "nf4"


_CODE = "no code of others is run here"
_OTHER_TUNER = "has no effect without the method that it belongs to"
_READING = "rows are read once, when they are needed"
_NOT_NEEDED = "not needed here"
_ONLY_TEXT = "only chats and text are trained here"
_REFERENCE = "the reference of dpo is the model before training"

_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **TRAINER_KEYS,
        # The model
        "model": same("model", text),
        "model_type": noted("the checkpoint says what it is"),
        "model_revision": refused("the published revision is used", "master", "main"),
        "task_type": refused(_ONLY_TEXT, "causal_lm"),
        "torch_dtype": chosen(
            "dtype", {"bfloat16": "bf16", "float32": "fp32"}, {"float16": "GLM-4 loses its loss (0 or NaN) in fp16"}
        ),
        "attn_impl": noted("torch chooses the attention", "sdpa"),
        "new_special_tokens": refused("the vocabulary stays as it is here"),
        "rope_scaling": refused("the context stays as the model was trained"),
        "max_model_len": noted("see max_length"),
        "adapters": refused("a new adapter is trained on the model itself; merge the old one first with `glm4 merge`"),
        "quant_bits": _bits,
        "quant_method": noted("has no effect without quant_bits", "bnb"),
        "external_plugins": refused(_CODE),
        "custom_register_path": refused(_CODE),
        "tuner_backend": refused("PEFT does LoRA here", "peft"),
        "use_swift_lora": refused("PEFT does LoRA here"),
        "ENV": refused("set environment variables where you start the command", {}),
        **dict.fromkeys(
            ("use_hf", "hub_token", "load_args", "load_data_args", "ignore_args_error", "enable_npu_model_patch",
             "model_kwargs", "device_map", "max_memory", "local_repo_path", "experts_impl", "num_labels",
             "problem_type", "init_strategy", "check_model", "add_version", "create_checkpoint_symlink", "metric",
             "ds3_gather_for_generation", "use_logits_to_keep", "acc_strategy", "use_flash_ckpt", "use_ray"),
            noted(_NOT_NEEDED, True, "auto", "token", "causal_lm"),
        ),
        # The data
        "dataset": _datasets("data.train"),
        "val_dataset": _datasets("data.validation"),
        "split_dataset_ratio": same("data.validation_split", number),
        "max_length": _length,
        "truncation_strategy": chosen(
            "data.long_samples",
            {"delete": "drop", "right": "cut"},
            {"left": "long rows keep their beginning here; right and delete are done",
             "split": "right and delete are done; plain text is always split"},
        ),
        "loss_scale": _loss_scale,
        "columns": _columns,
        "system": refused("a system message belongs into the rows; nothing is added to them"),
        "template": noted("prompts are written by the checkpoint's own template"),
        "agent_template": noted("calls are written as the checkpoint's own template has them"),
        "use_chat_template": refused("for plain text write format: text in a configuration of ours", True, None),
        "streaming": same("data.streaming", flag),
        "packing": same("packing", flag),
        "packing_length": noted("rows are as long as max_length"),
        "padding_free": noted("rows of similar length share a batch; packing: true leaves no padding at all"),
        "padding_side": noted("rows are padded at the right", "right"),
        "sequence_parallel_size": refused("a row is not split among devices", 1),
        "interleave_prob": refused("data sets are joined and shuffled together"),
        "cached_dataset": refused("name the rows themselves; encoding takes little time"),
        "cached_val_dataset": refused("name the rows themselves; encoding takes little time"),
        "custom_dataset_info": refused("name the files themselves"),
        "dataset_shuffle": refused("rows are shuffled by the seed", True),
        "train_dataloader_shuffle": refused("rows are shuffled by the seed", True),
        "strict": noted("a bad row is always an error; `glm4 data check` lists them"),
        "model_name": noted("only rows of swift/self-cognition have a place for it"),
        "model_author": noted("only rows of swift/self-cognition have a place for it"),
        "enable_channel_loss": refused("the loss is that of all rows together"),
        "enable_dft_loss": refused("the loss here is plain cross-entropy"),
        "max_pixels": refused("pictures are resized as the checkpoint says"),
        **dict.fromkeys(
            ("dataset_num_proc", "load_from_cache_file", "val_dataset_shuffle", "stopping_strategy",
             "shuffle_buffer_size", "download_mode", "disable_auto_column_mapping", "packing_num_proc",
             "packing_strategy", "lazy_tokenize", "is_binary_loss_scale", "norm_bbox"),
            noted(_READING, True, 1, 1000, "first_exhausted", "reuse_dataset_if_exists", "binpack"),
        ),
        **dict.fromkeys(
            ("enable_thinking", "preserve_thinking", "add_non_thinking_prefix", "disable_ignore_empty_think",
             "response_prefix", "template_backend"),
            noted("rows are trained as they are", True, "swift"),
        ),
        # The method
        **dict.fromkeys(("tuner_type", "train_type", "sft_type"), _tuner),
        "rlhf_type": _rlhf,
        "beta": same("dpo_beta", number),
        "loss_type": refused(
            "dpo's loss is the sigmoid one here, others are plain cross-entropy", "sigmoid", ["sigmoid"]
        ),
        "rpo_alpha": refused("dpo has no part of cross-entropy here"),
        "ld_alpha": refused("every token of an answer counts the same in dpo"),
        "label_smoothing": refused("dpo's loss is not smoothed here"),
        "loss_weights": refused("dpo has one loss here"),
        "ref_model": refused(_REFERENCE),
        "ref_adapters": refused(_REFERENCE),
        "lora_rank": same("lora.r", whole),
        "lora_alpha": same("lora.lora_alpha", number),
        "lora_dropout": same("lora.lora_dropout", number),
        "target_modules": same("lora.target_modules", names),
        "use_rslora": same("lora.use_rslora", flag),
        "use_dora": same("lora.use_dora", flag),
        "target_regex": refused("name the modules in target_modules"),
        "target_parameters": refused("name the modules in target_modules"),
        "modules_to_save": refused("only the factors of LoRA are trained; tuner_type full trains everything"),
        "lora_bias": refused("biases are not trained", "none"),
        "lora_dtype": refused("factors are float32", "float32"),
        "lorap_lr_ratio": refused("both factors have one learning rate"),
        "init_weights": refused("factors begin as PEFT's do", "true", True),
        "freeze_parameters": refused("use method freeze with freeze_layers in a configuration of ours"),
        "freeze_parameters_ratio": refused("use method freeze with freeze_layers in a configuration of ours"),
        "freeze_parameters_regex": refused("use method freeze with freeze_layers in a configuration of ours"),
        "trainable_parameters": refused("use method freeze with freeze_layers in a configuration of ours"),
        "trainable_parameters_regex": refused("use method freeze with freeze_layers in a configuration of ours"),
        "freeze_llm": refused("the language model is always trained"),
        "freeze_vit": same("train_vision", negated),
        "freeze_aligner": same("train_projector", projector),
        "vit_gradient_checkpointing": noted("as gradient_checkpointing"),
        "vit_lr": refused("there is one learning rate"),
        "aligner_lr": refused("there is one learning rate"),
        "use_galore": refused("the optimizer here is AdamW"),
        "optimizer": refused("the optimizer here is AdamW"),
        "fsdp": chosen("accelerator", {"fsdp2": "fsdp", "": ""}),
        "zero_hpz_partition_size": refused("ZeRO++ is not done here"),
        "deepspeed_autotp_size": refused("a layer is not split among devices", 1),
        "max_epochs": refused("set num_train_epochs or max_steps"),
        "resume_only_model": refused("a run goes on with everything it had"),
        "early_stop_interval": refused("a run has the length that is set"),
        "callbacks": refused(_CODE),
        "router_aux_loss_coef": refused("GLM-4 has no experts"),
        # Answers at evaluations
        "max_new_tokens": same("generate_max_tokens", whole),
        **dict.fromkeys(
            ("temperature", "top_k", "top_p", "repetition_penalty", "num_beams", "stream", "stop_words", "logprobs",
             "top_logprobs", "max_completion_length"),
            noted("answers at evaluations are greedy", 1, 512),
        ),
        "eval_metric": refused("evaluation gives the loss; predict_with_generate compares answers"),
        "eval_use_evalscope": refused("evaluation gives the loss; predict_with_generate compares answers"),
    }
)  # fmt: skip

_PREFIXES: Mapping[str, Rule] = MappingProxyType(
    {
        "eval_": noted("has no effect without eval_use_evalscope"),
        "extra_eval_": noted("has no effect without eval_use_evalscope"),
        **dict.fromkeys(
            ("galore_", "lisa_", "lora_ga_", "fourier_", "boft_", "vera_", "adapter_", "adalora_", "llamapro_",
             "reft_", "swanlab_", "bnb_4bit_", "hqq_", "ref_model_", "reward_", "teacher_", "cpo_", "simpo_",
             "discopop_", "kto_", "ray_", "structured_outputs_", "mrl_", "offload_"),
            noted(_OTHER_TUNER),
        ),
    }
)  # fmt: skip

_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        **TRAINER_DEFAULTS,
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.1,
        "logging_steps": 5,
        "save_steps": 500,
        "tuner_type": "lora",
        "lora_rank": 8,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "target_modules": "all-linear",
        "truncation_strategy": "delete",
        "freeze_aligner": True,
        "max_length": None,
        "max_new_tokens": 64,
    }
)
