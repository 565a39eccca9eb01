"""What a configuration leaves to us, and what fits together. Needs no torch."""

from __future__ import annotations

from glm4.errors import InvalidRequestError
from glm4.training.config import TrainingConfig

_REPORTERS = ("tensorboard", "wandb", "swanlab")


def learning_rate(config: TrainingConfig) -> float:
    """The configured one, or the method's default.

    LoRA's own 2e-4 is for factors that begin at zero effect; a prefix is trained as it is, and needs far more; weights
    that know something already need far less. DPO moves away from its reference, slowly.
    """
    if config.learning_rate:
        return config.learning_rate
    preferences = config.objective == "dpo"
    if config.method == "lora":
        return 2e-5 if preferences else 2e-4
    if config.method == "ptuning_v2":
        if config.prefix.projection:
            return 1e-4 if preferences else 1e-3
        return 1e-3 if preferences else 1e-2
    return 5e-7 if preferences else 2e-5


def method_name(config: TrainingConfig) -> str:
    """The method as people call it, with its variants."""
    if config.method != "lora":
        return config.method if config.quantize == "none" else f"{config.method}, base in 4 bits"
    name = "DoRA" if config.lora.use_dora else "rsLoRA" if config.lora.use_rslora else "LoRA"
    return name if config.quantize == "none" else f"Q{name}"


def check_config(config: TrainingConfig, *, has_rows: bool = False) -> None:
    """Refuse what can never work, before anything is loaded.

    Args:
        has_rows: rows are given otherwise than by `config.data`.

    Raises:
        InvalidRequestError: `.param` is the dotted key.
    """
    if not config.model:
        _refuse("model", "names no model; give an installed one, a folder or a GGUF file")
    if not config.output:
        _refuse("output", "names no folder; give one for checkpoints, metrics and the result")
    if not config.data.train and not has_rows:
        _refuse(
            "data.train", "names no data; give a file (.jsonl, .json, .csv, .parquet, .txt), a folder or a data set"
        )
    for key, least, most in _BOUNDS:
        owner = getattr(config, key.partition(".")[0]) if "." in key else config
        value = getattr(owner, key.rpartition(".")[2])
        if not least <= value <= most:
            _refuse(key, f"is between {least:g} and {most:g}, not {value:g}")
    if config.num_train_epochs <= 0 and config.max_steps <= 0:
        _refuse("num_train_epochs", "is above 0, unless max_steps says when to stop")
    if config.data.streaming and config.max_steps <= 0:
        _refuse("max_steps", "is needed with data.streaming: the number of rows is not known in advance")
    if config.device not in ("auto", "cpu", "cuda", "mps"):
        _refuse("device", f"is auto, cpu, cuda or mps, not {config.device!r}; CUDA_VISIBLE_DEVICES chooses a GPU")
    _check_method(config)
    for name in config.report_to:
        if name not in _REPORTERS:
            _refuse("report_to", f"has {', '.join(_REPORTERS)}, not {name!r}")


def _check_method(config: TrainingConfig) -> None:
    if config.method == "freeze" and not config.freeze_layers:
        _refuse("freeze_layers", "is needed with method freeze: how many of the first layers stay as they are")
    if config.method != "freeze" and config.freeze_layers:
        _refuse("freeze_layers", f"is for method freeze, not {config.method}")
    if config.quantize != "none" and config.method not in ("lora", "ptuning_v2"):
        _refuse("quantize", f"keeps the base in 4 bits, which method {config.method} would have to train")
    if config.packing and config.objective == "dpo":
        _refuse("packing", "is not for preferences: both answers of a pair are rows of one batch")
    if config.objective == "dpo" and config.data.streaming and config.method in ("freeze", "full"):
        _refuse("data.streaming", f"is not for preferences with method {config.method}: the reference sees them first")
    if config.generate_every and not config.eval_steps:
        _refuse("generate_every", "answers prompts at evaluations; set eval_steps, too")


def check_vision(config: TrainingConfig, *, sees: bool) -> None:
    """Refuse what a model that sees (or one that reads text only) cannot be trained with.

    Raises:
        InvalidRequestError: `.param` is the dotted key.
    """
    if not sees:
        if config.train_vision:
            _refuse("train_vision", "is for models that see pictures, and this one reads text only")
        return
    if config.packing:
        _refuse("packing", "is not for models that see: the rows of a picture share a position")
    if config.method == "ptuning_v2":
        _refuse("method", "lora, freeze or full trains a model that sees; ptuning_v2 does not")
    if config.quantize != "none":
        _refuse("quantize", "is not for models that see; train with the base in bf16")


# Key, least and greatest value.
_BOUNDS: tuple[tuple[str, float, float], ...] = (
    ("data.max_length", 8, 1 << 21),
    ("data.validation_split", 0, 1e9),
    ("lora.r", 1, 512),
    ("lora.lora_alpha", 0, 1e5),
    ("lora.lora_dropout", 0, 0.99),
    ("prefix.num_virtual_tokens", 1, 8192),
    ("prefix.hidden_size", 0, 1 << 16),
    ("freeze_layers", 0, 1 << 10),
    ("dpo_beta", 1e-6, 100),
    ("num_train_epochs", 0, 1e6),
    ("per_device_train_batch_size", 1, 1 << 16),
    ("per_device_eval_batch_size", 1, 1 << 16),
    ("gradient_accumulation_steps", 1, 1 << 20),
    ("learning_rate", 0, 10),
    ("warmup_ratio", 0, 0.999),
    ("weight_decay", 0, 10),
    ("max_grad_norm", 0, 1e6),
    ("seed", 0, 2**32 - 1),
    ("logging_steps", 1, 1 << 40),
    ("eval_steps", 0, 1 << 40),
    ("save_steps", 0, 1 << 40),
    ("save_total_limit", 0, 1 << 20),
    ("generate_every", 0, 1 << 40),
    ("generate_samples", 1, 1 << 20),
    ("generate_max_tokens", 1, 1 << 20),
)


def _refuse(key: str, text: str) -> None:
    raise InvalidRequestError(f"{key} {text}", param=key)
