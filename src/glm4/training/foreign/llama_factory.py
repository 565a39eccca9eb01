"""LLaMA-Factory's YAML (0.9): keys of its ModelArguments, DataArguments, FinetuningArguments and TrainingArguments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from glm4.errors import shown
from glm4.training.foreign.rules import (
    Draft,
    NotDoneError,
    Rule,
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
from glm4.training.foreign.trainer_keys import TRAINER_DEFAULTS, TRAINER_KEYS, precision

NAME = "LLaMA-Factory"
SIGNS = ("model_name_or_path", "finetuning_type")
"""A key that only its files have."""


def read(draft: Draft) -> None:
    """Fill a draft in.

    Raises:
        InvalidRequestError: see `read_keys`.
    """
    read_keys(draft, _RULES, _PREFIXES, _DEFAULTS)
    raw = draft.raw
    if raw.get("lora_alpha") is None:
        draft.fields["lora.lora_alpha"] = 2.0 * draft.fields["lora.r"]
    if draft.most:
        for name in ("data.train", "data.validation"):
            draft.fields[name] = tuple(f"{one}#{draft.most}" for one in draft.fields.get(name, ()))
    if raw.get("stage") == "pt":
        draft.fields["data.format"] = "text"
    if raw.get("eval_strategy", raw.get("evaluation_strategy")) != "steps":
        draft.fields["eval_steps"] = 0
    elif raw.get("eval_steps") is None:
        draft.fields["eval_steps"] = draft.fields["logging_steps"]


def _stage(draft: Draft, key: str, value: Any) -> None:
    objectives = {"sft": "sft", "pt": "sft", "dpo": "dpo"}
    if value not in objectives:
        raise NotDoneError(f"{shown(value)} is not done here; sft, pt and dpo are")
    draft.fields["objective"] = objectives[value]


def _method(draft: Draft, key: str, value: Any) -> None:
    if value == "freeze":
        raise NotDoneError(
            "freeze trains only the last layers there, and here also the norm and head behind them; write method:"
            " freeze and freeze_layers (how many of the first stay) in a configuration of ours"
        )
    if value not in ("lora", "full"):
        raise NotDoneError(f"{shown(value)} is not done here; lora and full are")
    draft.fields["method"] = value


def _targets(draft: Draft, key: str, value: Any) -> None:
    wanted = names(value)
    draft.fields["lora.target_modules"] = ("all-linear",) if wanted == ("all",) else wanted


def _bits(draft: Draft, key: str, value: Any) -> None:
    if value is None:
        return
    method, kind = draft.raw.get("quantization_method", "bnb"), draft.raw.get("quantization_type", "nf4")
    if whole(value) != 4 or str(method).lower() not in ("bnb", "bitsandbytes") or kind != "nf4":
        raise NotDoneError(f"{value} bits of {method} ({kind}) is not done here; 4 bits of bnb (nf4) is")
    draft.fields["quantize"] = "nf4"


def _folder(draft: Draft, key: str, value: Any) -> None:
    """Where dataset_info.json is. ONLINE means names of the hub."""
    if isinstance(value, str) and value == "ONLINE":
        return
    if not isinstance(value, str) or value.startswith("REMOTE:"):
        raise NotDoneError("must be a folder with dataset_info.json, or ONLINE")
    draft.fields["data.dataset_info"] = str(Path(value) / "dataset_info.json")


def _datasets(field_name: str) -> Rule:
    def rule(draft: Draft, key: str, value: Any) -> None:
        if value:
            draft.fields[field_name] = names(value)

    return rule


def _samples(draft: Draft, key: str, value: Any) -> None:
    if value is None:
        return
    if whole(value) < 1:
        raise ValueError(f"must be above 0, not {shown(value)}")
    draft.most = whole(value)
    draft.notes.append(f"{key}: of each data set the first rows, as there")


def _packing(draft: Draft, key: str, value: Any) -> None:
    if value is not None and flag(value):
        draft.fields["packing"] = True
        if not draft.raw.get("neat_packing"):
            draft.notes.append(f"{key}: samples in one row do not see each other, as with neat_packing")


def _history(draft: Draft, key: str, value: Any) -> None:
    if flag(value):
        draft.fields["data.loss"] = "last"


def _swanlab(draft: Draft, key: str, value: Any) -> None:
    if flag(value):
        draft.fields["report_to"] = tuple(dict.fromkeys((*draft.fields.get("report_to", ()), "swanlab")))


_NOT_NEEDED = "not needed here"
_OTHER_OPTIMIZER = "the optimizer here is AdamW"
_OTHER_LOSS = "the loss here is plain cross-entropy"
_TOKENS = "the vocabulary stays as it is here"
_ONLY_TRAINS = "is about answering, which training does not do"
_WITHOUT_EFFECT = "has no effect without the option it belongs to"
_DATA = "rows are read once, when they are needed"

_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **TRAINER_KEYS,
        # The model
        "model_name_or_path": same("model", text),
        "adapter_name_or_path": refused(
            "a new adapter is trained on the model itself; merge the old one first with `glm4 merge`"
        ),
        "model_revision": refused("the published revision is used", "main"),
        "trust_remote_code": noted("no code of a checkpoint is ever run; it is not needed"),
        "quantization_bit": _bits,
        "quantization_method": noted(_WITHOUT_EFFECT, "bnb", "bitsandbytes"),
        "quantization_type": noted(_WITHOUT_EFFECT, "nf4"),
        "double_quantization": noted("the scales of 4-bit weights are themselves quantized here", True),
        "rope_scaling": refused("the context stays as the model was trained"),
        "flash_attn": noted("torch chooses the attention", "auto", "sdpa"),
        "shift_attn": refused("attention is the model's own"),
        "mixture_of_depths": refused("layers are not skipped here"),
        "resize_vocab": refused(_TOKENS),
        "add_tokens": refused(_TOKENS),
        "add_special_tokens": refused(_TOKENS),
        "new_special_tokens_config": refused(_TOKENS),
        "train_from_scratch": refused("training begins with the model's weights"),
        "disable_gradient_checkpointing": same("gradient_checkpointing", negated),
        "pure_bf16": precision,
        "moe_aux_loss_coef": refused("GLM-4 has no experts"),
        **dict.fromkeys(
            ("use_unsloth", "use_unsloth_gc", "enable_liger_kernel", "use_v1_kernels", "use_reentrant_gc",
             "upcast_layernorm", "upcast_lmhead_output", "use_fast_tokenizer", "low_cpu_mem_usage", "cache_dir",
             "offload_folder", "quantization_device_map", "device_map", "init_special_tokens", "split_special_tokens",
             "print_param_status", "hf_hub_token", "ms_hub_token", "om_hub_token"),
            noted(_NOT_NEEDED, True, "auto", "offload", "noise_init"),
        ),
        **dict.fromkeys(
            ("infer_backend", "infer_dtype", "use_kv_cache"), noted(_ONLY_TRAINS, True, "auto", "huggingface")
        ),
        # The data
        "dataset_dir": _folder,
        "dataset": _datasets("data.train"),
        "eval_dataset": _datasets("data.validation"),
        "max_samples": _samples,
        "val_size": same("data.validation_split", number),
        "cutoff_len": same("data.max_length", whole),
        "media_dir": same("data.image_folder", text),
        "mask_history": _history,
        "train_on_prompt": refused("only what the model writes is trained here"),
        "packing": _packing,
        "neat_packing": noted("rows are isolated whenever packing is on"),
        "streaming": same("data.streaming", flag),
        "mix_strategy": refused("data sets are joined and shuffled together", "concat"),
        "interleave_probs": refused("data sets are joined and shuffled together"),
        "template": noted("prompts are written by the checkpoint's own template", "glm4", "default"),
        "tool_format": noted("calls are written as the checkpoint's own template has them", "glm4"),
        "default_system": refused("a system message belongs into the rows; nothing is added to them"),
        "enable_thinking": noted("rows are trained as they are", True),
        "preserve_thinking": noted("the checkpoint's own template decides it"),
        "tokenized_path": refused("rows are encoded at each start; it takes little time"),
        "ignore_pad_token_for_loss": refused("padding never carries loss", True),
        "eval_on_each_dataset": refused("all validation rows are evaluated together"),
        "disable_shuffling": refused("rows are shuffled by the seed"),
        **dict.fromkeys(
            ("overwrite_cache", "preprocessing_batch_size", "preprocessing_num_workers", "buffer_size",
             "data_shared_file_system"),
            noted(_DATA),
        ),
        # The method
        "stage": _stage,
        "finetuning_type": _method,
        "lora_rank": same("lora.r", whole),
        "lora_alpha": same("lora.lora_alpha", number),
        "lora_dropout": same("lora.lora_dropout", number),
        "lora_target": _targets,
        "use_rslora": same("lora.use_rslora", flag),
        "use_dora": same("lora.use_dora", flag),
        "additional_target": refused("only the factors of LoRA are trained; method full trains everything"),
        "loraplus_lr_ratio": refused("both factors have one learning rate"),
        "loraplus_lr_embedding": noted(_WITHOUT_EFFECT, 1e-6),
        "pissa_init": refused("factors begin as PEFT's do"),
        "create_new_adapter": noted("the adapter is always a new one"),
        "use_llama_pro": refused("no layers are added"),
        "freeze_vision_tower": same("train_vision", negated),
        "freeze_multi_modal_projector": same("train_projector", projector),
        "freeze_language_model": refused("the language model is always trained"),
        "pref_beta": same("dpo_beta", number),
        "pref_loss": refused("dpo's loss is the sigmoid one here", "sigmoid"),
        "pref_ftx": refused("dpo has no part of cross-entropy here"),
        "dpo_label_smoothing": refused("dpo's loss is not smoothed here"),
        "ld_alpha": refused("every token of an answer counts the same in dpo"),
        "ref_model": refused("the reference of dpo is the model before training"),
        "ref_model_adapters": refused("the reference of dpo is the model before training"),
        "early_stopping_steps": refused("a run has the length that is set"),
        "compute_accuracy": refused("evaluation gives the loss; predict_with_generate compares answers"),
        **dict.fromkeys(
            ("use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon"), refused(_OTHER_OPTIMIZER)
        ),
        **dict.fromkeys(("use_dft_loss", "use_asft_loss", "use_eaft_loss"), refused(_OTHER_LOSS)),
        **dict.fromkeys(
            ("use_mca", "use_megatron_bridge", "use_hyper_parallel", "use_kt", "fp8", "enable_torch_profiler"),
            refused("it is not among what runs the training here: torch, accelerate and DeepSpeed"),
        ),
        "plot_loss": noted("loss.png is always drawn", True),
        "include_effective_tokens_per_second": noted("metrics.jsonl always has tokens_per_second", True),
        "use_swanlab": _swanlab,
        # Answers at evaluations
        "max_new_tokens": same("generate_max_tokens", whole),
        **dict.fromkeys(
            ("do_sample", "temperature", "top_p", "top_k", "num_beams", "eval_num_beams", "repetition_penalty",
             "length_penalty", "skip_special_tokens", "max_length"),
            noted("answers at evaluations are greedy"),
        ),
    }
)  # fmt: skip

_PREFIXES: Mapping[str, Rule] = MappingProxyType(
    {
        **dict.fromkeys(("vllm_", "sglang_", "export_"), noted(_ONLY_TRAINS)),
        **dict.fromkeys(
            ("image_", "video_", "audio_", "crop_to_", "use_audio_"),
            noted("pictures are resized as the checkpoint says"),
        ),
        **dict.fromkeys(
            ("galore_", "apollo_", "badam_", "asft_", "eaft_", "kto_", "ppo_", "reward_", "ref_model_", "simpo_",
             "pref_bco", "freeze_trainable_", "freeze_extra_", "oft_", "module_dropout", "pissa_", "swanlab_", "fp8_",
             "kt_", "ray_", "profiler_", "profile_", "hyper_parallel_", "quantization_"),
            noted(_WITHOUT_EFFECT),
        ),
    }
)  # fmt: skip

_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        **TRAINER_DEFAULTS,
        "dataset_dir": "data",
        "lora_rank": 8,
        "lora_dropout": 0.0,
        "lora_target": "all",
        "freeze_multi_modal_projector": True,
    }
)
