"""Everything `glm4 finetune` can be told: one frozen dataclass per group, the defaults, and what fits together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from glm4.training.data.formats.columns import Columns

Method = Literal["lora", "ptuning_v2", "freeze", "full"]
Schedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True)
class DataConfig:
    """Which rows are trained on.

    Attributes:
        train: files (jsonl, json, csv, parquet, txt), folders, or names of hub datasets.
        validation: the same; empty takes `validation_split` of the training rows.
        validation_split: a share below 1, or a number of rows; 0 has no validation.
        format: of the rows; "auto" looks at the first ones.
        dataset_info: a dataset_info.json of LLaMA-Factory; `train` may then name its entries.
        columns: names of the rows' fields, where they are not the format's.
        loss: which assistant turns carry loss.
        max_length: tokens of a sample; longer ones are cut, and reported.
        long_samples: "cut", "drop" or "error": what becomes of samples longer than that.
        streaming: read rows as they are needed; needs `max_steps`.
        image_folder: where relative paths of pictures begin; empty is the folder of the file.
    """

    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    validation_split: float = 0.0
    format: str = "auto"
    columns: Columns = field(default_factory=Columns)
    dataset_info: str = ""
    loss: Literal["all", "last", "text"] = "all"
    max_length: int = 2048
    long_samples: Literal["cut", "drop", "error"] = "cut"
    streaming: bool = False
    image_folder: str = ""


@dataclass(frozen=True)
class LoraConfig:
    """LoRA and its variants, by PEFT's names. `target_modules` "all-linear" is every matrix of the layers."""

    r: int = 8
    lora_alpha: float = 32
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] = ("all-linear",)
    use_rslora: bool = False
    use_dora: bool = False


@dataclass(frozen=True)
class PrefixConfig:
    """P-Tuning v2: keys and values in front of every layer.

    Attributes:
        num_virtual_tokens: length of the prefix.
        projection: train through a two-layer MLP of `hidden_size` (0: the model's), which is dropped afterwards.
    """

    num_virtual_tokens: int = 128
    projection: bool = False
    hidden_size: int = 0


@dataclass(frozen=True)
class TrainingConfig:
    """A whole run. Field names are those of `transformers.TrainingArguments` where they mean the same.

    Attributes:
        model: an installed model, a folder, or a GGUF file.
        output: the run's folder: checkpoints, metrics, and the adapter or model at the end.
        objective: "sft" on conversations or text, or "dpo" on preferences.
        quantize: "nf4" keeps the base in 4 bits (QLoRA).
        freeze_layers: of method "freeze": how many of the first layers (and the embedding) stay as they are.
        train_projector: of a model that sees: what leads from its tower to the language model. Methods without an
            adapter train it in full, unless this is "none".
        train_vision: of a model that sees: its tower, too.
        packing: several samples per row, isolated from each other; for GPUs with variable-length attention.
        group_by_length: batches of samples of similar length.
        resume: go on from the newest checkpoint of `output`.
        save_total_limit: checkpoints to keep.
        generate_every: with an evaluation, answer validation prompts and compare with the reference; 0 never.
        report_to: of "tensorboard", "wandb", "swanlab".
        accelerator: a file for FSDP or DeepSpeed, or a shipped name: "zero2", "zero3", "fsdp".
    """

    model: str = ""
    output: str = ""
    method: Method = "lora"
    objective: Literal["sft", "dpo"] = "sft"
    data: DataConfig = field(default_factory=DataConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    prefix: PrefixConfig = field(default_factory=PrefixConfig)
    quantize: Literal["none", "nf4"] = "none"
    freeze_layers: int = 0
    train_projector: Literal["none", "lora", "full"] = "lora"
    train_vision: bool = False
    dpo_beta: float = 0.1
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    device: str = "auto"
    num_train_epochs: float = 3.0
    max_steps: int = -1
    per_device_train_batch_size: int = 1
    per_device_eval_batch_size: int = 1
    gradient_accumulation_steps: int = 1
    learning_rate: float = 0.0
    lr_scheduler_type: Schedule = "cosine"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = True
    group_by_length: bool = True
    packing: bool = False
    seed: int = 42
    logging_steps: int = 10
    eval_steps: int = 0
    save_steps: int = 500
    save_total_limit: int = 3
    generate_every: int = 0
    generate_samples: int = 32
    generate_max_tokens: int = 256
    report_to: tuple[str, ...] = ()
    accelerator: str = ""
    resume: bool = True
