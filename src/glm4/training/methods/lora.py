"""LoRA, rank-stabilized LoRA and DoRA, by PEFT."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from glm4.errors import InvalidRequestError
from glm4.training.config import TrainingConfig
from glm4.training.vision.model import VisionGlmForCausalLM
from glm4.training.vision.targets import lora_targets

_ALL = "all-linear"


def add_lora(model: Any, config: TrainingConfig) -> Any:
    """PEFT's model with a new adapter, whose factors are float32; only they are trained.

    Raises:
        InvalidRequestError: the model has no such modules.
    """
    import peft

    lora = config.lora
    targets: Any = _ALL if lora.target_modules == (_ALL,) else list(lora.target_modules)
    saved = None
    if isinstance(model, VisionGlmForCausalLM):
        targets, saved = lora_targets(config)
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.lora_alpha,  # PEFT computes with fractions, too
        lora_dropout=lora.lora_dropout,
        target_modules=targets,
        modules_to_save=saved,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
    )
    try:
        adapted = peft.get_peft_model(model, settings)
    except ValueError as error:
        if "target modules" not in str(error).lower():
            raise
        known = sorted({name.rpartition(".")[2] for name, part in model.named_modules() if _is_linear(part)})
        raise InvalidRequestError(
            f"lora.target_modules {', '.join(lora.target_modules)}: the model has no such modules; it has"
            f" {', '.join(known)}, and {_ALL} means all of them but the output layer",
            param="lora.target_modules",
        ) from None
    for parameter in adapted.parameters():  # PEFT sees to its factors, but not to modules that it saves
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def save_lora(model: Any, folder: Path, base: str) -> None:
    """Writes the adapter as PEFT does.

    Args:
        base: name of the model it was trained for.
    """
    for settings in model.peft_config.values():
        settings.base_model_name_or_path = base
        settings.target_modules = sorted(settings.target_modules)  # PEFT has a set, in another order in each process
    # Asked for its state, a model under FSDP would divide it again.
    state = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    # Told that embeddings are not part of it, PEFT asks no server about the base model.
    model.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def without_lora(model: Any) -> AbstractContextManager[Any]:
    """The base model, while the context lasts."""
    context: AbstractContextManager[Any] = model.disable_adapter()
    return context


def _is_linear(module: Any) -> bool:
    import torch

    return isinstance(module, torch.nn.Linear)
