"""QLoRA: the base in 4 bits is bitsandbytes', the gradients are those of PEFT's own way, memory is bounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")

import bitsandbytes
import peft
import torch
import transformers
from torch_models import gradients, largest_difference, plain_mean_loss, random_batch, random_examples, recompute

from glm4.backends.transformers.weights import load_model
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.training.batches import collate
from glm4.training.config import PrefixConfig, TrainingConfig
from glm4.training.forward import causal_model, forward_loss
from glm4.training.methods.prefix import insert_prefix
from glm4.training.quantized import load_quantized
from glm4.training.run import finetune
from golden_models import TINY_MODELS
from tiny import tiny_model, write_folder

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT asks for it
]

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("qlora") / "model", tiny_model(vocab_size=320, intermediate_size=128))


def quantized(folder: Path, dtype: str = "fp32") -> Any:
    with open_checkpoint(folder) as checkpoint:
        return load_quantized(checkpoint, CPU, dtype)


def with_lora(model: Any) -> Any:
    torch.manual_seed(1)
    settings = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    return peft.get_peft_model(model, settings)


@pytest.mark.parametrize("name", ["chatglm-chat", "hf-base", "glm4-9b", "hf-starter"])
def test_layers_are_in_4_bits_and_nothing_else(name: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", TINY_MODELS[name])
    with open_checkpoint(folder) as checkpoint:
        plain = load_model(checkpoint, CPU, "fp32")
    model = quantized(folder)
    count = 0
    for place, module in plain.named_modules():
        ours = model.get_submodule(place)
        if isinstance(module, torch.nn.Linear) and place != "lm_head" and module.in_features % 64 == 0:
            count += 1
            packed, state = bitsandbytes.functional.quantize_4bit(
                module.weight.data, blocksize=64, compress_statistics=True, quant_type="nf4"
            )
            assert torch.equal(ours.weight, packed)
            found = bitsandbytes.functional.dequantize_4bit(ours.weight, ours.weight.quant_state)
            assert torch.equal(found, bitsandbytes.functional.dequantize_4bit(packed, state))
            assert 0 < (found - module.weight).abs().max() < 0.18 * module.weight.abs().max()
            assert (ours.bias is None) == (module.bias is None)
            assert module.bias is None or torch.equal(ours.bias, module.bias)
        else:
            for parameter, value in module.named_parameters(recurse=False):
                assert torch.equal(getattr(ours, parameter), value)
    # down_proj has rows of 96, for which bitsandbytes is wrong on the CPU.
    assert count == 2 * (4 if name == "hf-starter" else 5)  # whose heads are 96 wide together
    assert not any(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_gradients_are_those_of_pefts_own_way(folder: Path, reentrant: bool | None) -> None:
    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    theirs = with_lora(
        transformers.GlmForCausalLM.from_pretrained(
            folder, quantization_config=settings, device_map="cpu", dtype=torch.float32
        )
    )
    theirs.train()  # else bitsandbytes computes in bfloat16 on some processors
    ours, batch = with_lora(quantized(folder)), random_batch()
    assert isinstance(causal_model(ours).model.layers[0].mlp.down_proj, peft.tuners.lora.bnb.Linear4bit)
    expected = plain_mean_loss(theirs, batch)
    expected.backward()
    wanted = gradients(theirs)
    if reentrant is not None:
        recompute(causal_model(ours), reentrant)
        causal_model(ours).enable_input_require_grads()
    loss, count = forward_loss(ours, batch)
    (loss / count).backward()
    assert (loss / count).item() == pytest.approx(expected.item(), abs=1e-5)
    assert largest_difference(gradients(ours), wanted) < 1e-5


def test_training_goes_on_after_an_evaluation(folder: Path) -> None:
    model, batch = with_lora(quantized(folder)), random_batch()
    model.train()
    forward_loss(model, batch)[0].backward()
    expected = gradients(model)
    model.eval()
    with torch.no_grad():
        evaluated, _ = forward_loss(model, batch)
    model.train()
    loss, _ = forward_loss(model, batch)
    loss.backward()
    assert evaluated.item() == pytest.approx(loss.item(), rel=1e-6)
    assert largest_difference(gradients(model), expected) < 1e-5


def test_bfloat16_and_a_prefix(folder: Path) -> None:
    model, batch = quantized(folder, "bf16"), random_batch()
    insert_prefix(model, PrefixConfig(num_virtual_tokens=4))
    loss, _ = forward_loss(model, batch)
    loss.backward()
    assert loss.isfinite()
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients(model).values())


def test_no_two_matrices_are_whole_at_a_time(tmp_path: Path) -> None:
    """By what torch allocates while 4 layers of 0.4 MB matrices are read."""
    shape = tiny_model(hidden_size=256, intermediate_size=384, num_hidden_layers=4)
    folder = write_folder(tmp_path / "model", shape)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        model = quantized(folder)
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    largest = 4 * 2 * 384 * 256  # gate_up_proj
    assert sum(p.numel() * p.element_size() for p in model.parameters()) < held < 4 * largest
    assert peak < held + 3 * largest


def test_a_run_whose_adapter_peft_loads(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", tiny_model(vocab_size=320, intermediate_size=128))
    config = TrainingConfig(
        model=str(base),
        output=str(tmp_path / "run"),
        quantize="nf4",
        max_steps=15,
        learning_rate=2e-2,
        logging_steps=5,
        device="cpu",
    )
    result = finetune(config, train=random_examples([12, 9]))
    assert result.loss < 3  # from log(320) = 5.8
    model = peft.PeftModel.from_pretrained(quantized(base), str(result.output))
    with torch.no_grad():
        loss, count = forward_loss(model, collate(random_examples([12, 9]), pad_id=0))
    assert (loss / count).item() < 3
