"""Configurations of LLaMA-Factory and ms-swift: what they become here, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glm4.errors import InvalidRequestError
from glm4.training import foreign
from glm4.training.config import DataConfig, LoraConfig, TrainingConfig
from glm4.training.config_file import read_config
from glm4.training.foreign import llama_factory, ms_swift

LLAMA_FACTORY = {
    "model_name_or_path": "THUDM/glm-4-9b-chat-hf",
    "trust_remote_code": True,
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 16,
    "lora_target": "q_proj, v_proj",
    "dataset": "identity,alpaca_en_demo",
    "template": "glm4",
    "cutoff_len": 4096,
    "max_samples": 1000,
    "mask_history": True,
    "preprocessing_num_workers": 16,
    "output_dir": "saves/glm4/lora/sft",
    "logging_steps": 10,
    "save_steps": 500,
    "plot_loss": True,
    "overwrite_output_dir": True,
    "report_to": "none",
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "learning_rate": "1e-4",  # as YAML reads it
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "bf16": True,
    "resume_from_checkpoint": None,
    "val_size": 0.1,
    "per_device_eval_batch_size": 1,
    "eval_strategy": "steps",
    "eval_steps": 500,
}


def understood(raw: dict[str, Any]) -> foreign.ForeignConfig:
    found = foreign.read(raw)
    assert found is not None
    return found


def problem(raw: dict[str, Any]) -> str:
    with pytest.raises(InvalidRequestError) as error:
        foreign.read(raw)
    return str(error.value)


def test_a_usual_file_of_llama_factory() -> None:
    found = understood(LLAMA_FACTORY)
    assert found.tool == "LLaMA-Factory"
    assert found.config == TrainingConfig(
        model="THUDM/glm-4-9b-chat-hf",
        output="saves/glm4/lora/sft",
        data=DataConfig(
            train=("identity#1000", "alpaca_en_demo#1000"),
            dataset_info="data/dataset_info.json",
            validation_split=0.1,
            loss="last",
            max_length=4096,
        ),
        lora=LoraConfig(r=16, lora_alpha=32, target_modules=("q_proj", "v_proj")),
        dtype="bf16",
        learning_rate=1e-4,
        warmup_ratio=0.1,
        gradient_accumulation_steps=8,
        eval_steps=500,
        group_by_length=False,
        train_projector="none",
        save_total_limit=0,
    )
    keys = {note.partition(":")[0] for note in found.notes}
    assert keys == {"trust_remote_code", "max_samples", "preprocessing_num_workers", "overwrite_output_dir"}


def test_what_llama_factory_leaves_out_has_its_defaults() -> None:
    config = understood({"model_name_or_path": "m", "dataset": "d", "finetuning_type": "full"}).config
    assert (config.method, config.learning_rate, config.lr_scheduler_type) == ("full", 5e-5, "linear")
    assert (config.per_device_train_batch_size, config.warmup_ratio, config.logging_steps) == (8, 0.0, 500)
    assert (config.eval_steps, config.weight_decay, config.lora.lora_alpha) == (0, 0.0, 16)


def test_preferences_and_plain_text_of_llama_factory() -> None:
    dpo = understood(
        {"model_name_or_path": "m", "stage": "dpo", "dataset": "d", "pref_beta": 0.3, "pref_loss": "sigmoid"}
    )
    assert (dpo.config.objective, dpo.config.dpo_beta) == ("dpo", 0.3)
    assert "pref_loss: " in problem({"model_name_or_path": "m", "stage": "dpo", "pref_loss": "orpo"})
    text = understood({"model_name_or_path": "m", "stage": "pt", "dataset": "d", "packing": True})
    assert (text.config.objective, text.config.data.format, text.config.packing) == ("sft", "text", True)
    assert any(note.startswith("packing: ") for note in text.notes)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("stage", "ppo", "sft, pt and dpo"),
        ("finetuning_type", "oft", "lora and full"),
        ("finetuning_type", "freeze", "freeze_layers"),
        ("use_galore", True, "AdamW"),
        ("train_on_prompt", True, "only what the model writes"),
        ("pissa_init", True, "PEFT's"),
        ("fp16", True, "bf16"),
        ("quantization_bit", 8, "4 bits of bnb"),
        ("adapter_name_or_path", "saves/old", "glm4 merge"),
        ("lr_scheduler_type", "cosine_with_min_lr", "cosine, linear and constant"),
        ("learning_rate", "fast", "must be a number"),
        ("eval_strategy", "epoch", "steps"),
        ("resume_from_checkpoint", "saves/checkpoint-5", "newest checkpoint"),
        ("lora_rnk", 8, "did you mean lora_rank?"),
        ("default_system", "Be kind.", "into the rows"),
        ("dataset_dir", "REMOTE:someone/data", "dataset_info.json"),
    ],
)
def test_what_is_not_done_is_refused_by_name(key: str, value: Any, said: str) -> None:
    message = problem({**LLAMA_FACTORY, key: value})
    assert f"\n  {key}: " in message
    assert said in message


def test_all_that_is_wrong_is_said_at_once() -> None:
    message = problem({**LLAMA_FACTORY, "use_badam": True, "stage": "kto", "tempalte": "glm4"})
    assert [line.split(":")[0].strip() for line in message.splitlines()[1:-1]] == ["stage", "use_badam", "tempalte"]


def test_neutral_values_of_what_is_not_done_are_fine() -> None:
    neutral = {"use_galore": False, "pissa_init": False, "pref_ftx": 0.0, "fp16": False, "adapter_name_or_path": None}
    assert understood({**LLAMA_FACTORY, **neutral}).config == understood(LLAMA_FACTORY).config


@pytest.mark.parametrize(("stage", "accelerator"), [(0, ""), (2, "zero2"), (3, "zero3")])
def test_the_stage_in_a_deepspeed_file_decides(tmp_path: Path, stage: int, accelerator: str) -> None:
    file = tmp_path / "ds_z3_config.json"  # whatever it is called
    file.write_text(json.dumps({"bf16": {"enabled": "auto"}, "zero_optimization": {"stage": stage}}))
    assert understood({**LLAMA_FACTORY, "deepspeed": str(file)}).config.accelerator == accelerator


def test_deepspeed_files_that_mean_something_else(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    assert "cannot read" in problem({**LLAMA_FACTORY, "deepspeed": str(file)})
    offload = {"stage": 3, "offload_param": {"device": "cpu"}}
    for zero, said in ((offload, "offload_param"), ({"stage": 1}, "stages 2 and 3"), ([], "DeepSpeed settings")):
        file.write_text(json.dumps({"zero_optimization": zero}))
        assert said in problem({**LLAMA_FACTORY, "deepspeed": str(file)})
    file.write_text("{")
    assert "DeepSpeed settings" in problem({**LLAMA_FACTORY, "deepspeed": str(file)})


@pytest.fixture
def swift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    return {
        "model": "ZhipuAI/glm-4-9b-chat",
        "torch_dtype": "bfloat16",
        "tuner_type": "lora",
        "lora_rank": 8,
        "target_modules": "all-linear",
        "dataset": [f"{rows}#500"],
        "split_dataset_ratio": 0.01,
        "max_length": 2048,
        "loss_scale": "default",
        "num_train_epochs": 1,
        "output_dir": "output",
        "warmup_ratio": 0.05,
        "save_steps": 50,
        "dataset_num_proc": 4,
        "deepspeed": "zero2",
    }


def test_a_usual_file_of_ms_swift(swift: dict[str, Any]) -> None:
    found = understood(swift)
    assert found.tool == "ms-swift"
    assert found.config == TrainingConfig(
        model="ZhipuAI/glm-4-9b-chat",
        output="output",
        data=DataConfig(train=(swift["dataset"][0],), validation_split=0.01, long_samples="drop"),
        lora=LoraConfig(r=8, lora_alpha=32, lora_dropout=0.05),
        dtype="bf16",
        num_train_epochs=1,
        gradient_accumulation_steps=16,
        learning_rate=1e-4,
        warmup_ratio=0.05,
        weight_decay=0.1,
        logging_steps=5,
        eval_steps=50,
        save_steps=50,
        save_total_limit=0,
        group_by_length=False,
        train_projector="none",
        generate_max_tokens=64,
        accelerator="zero2",
    )
    keys = {note.partition(":")[0] for note in found.notes}
    assert keys == {"dataset", "dataset_num_proc", "adam_beta2", "output_dir"}


def test_ms_swift_fills_a_step_up_over_all_processes(swift: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    config = understood({**swift, "per_device_train_batch_size": 2, "tuner_type": "full"}).config
    assert (config.gradient_accumulation_steps, config.learning_rate) == (2, 1e-5)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("loss_scale", "all", "never carry loss"),
        ("loss_scale", "hermes", "never carry loss"),
        ("truncation_strategy", "left", "keep their beginning"),
        ("torch_dtype", "float16", "fp16"),
        ("tuner_type", "adalora", "lora and full"),
        ("dataset", ["AI-ModelScope/alpaca-gpt4-data-zh#500"], "ModelScope"),
        ("rlhf_type", "grpo", "dpo is"),
        ("quant_bits", 8, "4 bits of bnb"),
        ("init_weights", "pissa", "PEFT's"),
        ("external_plugins", ["plugin.py"], "no code"),
        ("max_lenght", 8, "did you mean max_length?"),
        ("columns", {"a": "videos"}, "query, response"),
    ],
)
def test_what_ms_swift_does_and_we_do_not(swift: dict[str, Any], key: str, value: Any, said: str) -> None:
    message = problem({**swift, key: value})
    assert f"\n  {key}: " in message
    assert said in message


def test_other_values_of_ms_swift(swift: dict[str, Any]) -> None:
    del swift["tuner_type"]
    found = understood(
        {
            **swift,
            "train_type": "lora",
            "rlhf_type": "dpo",
            "beta": 0.2,
            "loss_scale": "last_round",
            "quant_bits": 4,
            "quant_method": "bnb",
            "use_hf": True,
            "val_dataset": "owner/name",
            "columns": '{"question": "query", "answer": "response"}',
            "deepspeed": None,
            "fsdp": "fsdp2",
        }
    )
    config = found.config
    assert (config.objective, config.dpo_beta, config.quantize, config.accelerator) == ("dpo", 0.2, "nf4", "fsdp")
    assert config.data.loss == "last"
    assert config.data.validation == ("owner/name",)
    assert (config.data.columns.instruction, config.data.columns.output) == ("question", "answer")
    assert any(note.startswith("loss_scale: ") for note in found.notes)


def test_a_context_without_limit_is_refused(swift: dict[str, Any]) -> None:
    del swift["max_length"]
    assert "max_length" in problem(swift)


def test_a_file_of_ours_is_of_no_other_tool() -> None:
    assert foreign.read({"model": "m", "method": "lora", "data": {"train": "rows.jsonl"}}) is None
    assert foreign.read({}) is None


def test_files_of_other_tools_are_recognized(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    path = tmp_path / "their.yaml"
    path.write_text(
        "model_name_or_path: m\nstage: sft\ndataset: rows\nlearning_rate: 1e-3\nplot_loss: true\ntemplate: qwen\n"
    )
    config, notes = read_config(path)
    assert (config.model, config.learning_rate, config.lr_scheduler_type) == ("m", 1e-3, "linear")
    assert notes == ("template: prompts are written by the checkpoint's own template",)
    with pytest.raises(InvalidRequestError, match="leave the preset out"):
        read_config(path, TrainingConfig(seed=1))
    path.write_text("model: m\nmethod: full\n")
    assert read_config(path, TrainingConfig(seed=1)) == (TrainingConfig(model="m", method="full", seed=1), ())


STRANGE: tuple[Any, ...] = (
    [],
    [1],
    {},
    {"a": [1]},
    float("inf"),
    float("nan"),
    "x" * 500,
    "\0",
    True,
    -1,
    10**400,
    None,
    "",
    b"bytes",
)


@pytest.mark.parametrize("tool", [llama_factory, ms_swift], ids=["llama_factory", "ms_swift"])
def test_strange_values_are_errors_of_ours_at_worst(tool: Any, swift: dict[str, Any]) -> None:
    base = LLAMA_FACTORY if tool is llama_factory else swift
    said: dict[tuple[str, str], str] = {}
    for key in tool._RULES:
        for value in STRANGE:
            try:
                assert foreign.read({**base, key: value}) is not None
            except InvalidRequestError as error:
                said[key, str(value)[:9]] = str(error)
    assert len(said) > len(tool._RULES)
    assert [place for place, message in said.items() if f"\n  {place[0]}: " not in message] == []
    assert max(map(len, said.values())) < 2000
