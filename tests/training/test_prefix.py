"""Prefixes local to each layer are PEFT's prefix tuning: logits, gradients and files, and with checkpointing, too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import peft
import torch
from torch_models import CLASSES, gradients, largest_difference, plain_mean_loss, random_batch, random_model, recompute

from glm4.errors import CheckpointError, InvalidRequestError
from glm4.training.config import PrefixConfig, TrainingConfig
from glm4.training.forward import forward_loss, sequence_logprobs
from glm4.training.methods import prefix as prefixes

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT asks for it
]

TOKENS = 5


def pefts(name: str, **settings: Any) -> Any:
    """PEFT's model with a random prefix."""
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS, **settings)
    return peft.get_peft_model(random_model(name), config)


def ours(name: str, **settings: Any) -> Any:
    model = random_model(name)
    prefixes.insert_prefix(model, PrefixConfig(num_virtual_tokens=TOKENS, **settings))
    return model


def flat(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gradients of our layers in PEFT's one tensor."""
    return {"all": torch.cat([found[name].flatten(1) for name in sorted(found)], 1)}


def logits(model: Any, batch: dict[str, torch.Tensor], **inputs: Any) -> torch.Tensor:
    """Of the real tokens."""
    attended = batch["attention_mask"]
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=batch["input_ids"], attention_mask=attended, **inputs).logits
    return found[attended.bool()]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CLASSES)
def test_loss_and_gradients_are_pefts(name: str, attention: str) -> None:
    """On a padded batch; PEFT's without recomputing, which it cannot, and ours both ways."""
    theirs, mine, batch = pefts(name), ours(name), random_batch()
    mine.set_attn_implementation(attention)
    with torch.no_grad():
        prefixes.set_prefix(mine, theirs.prompt_encoder["default"].embedding.weight)
    expected = plain_mean_loss(theirs, batch)
    expected.backward()
    wanted = {"all": theirs.prompt_encoder["default"].embedding.weight.grad}
    for reentrant in (None, False, True):
        if reentrant is not None:
            recompute(mine, reentrant)
        loss, count = forward_loss(mine, batch)
        (loss / count).backward()
        assert (loss / count).item() == pytest.approx(expected.item(), abs=1e-5)
        assert largest_difference(flat(gradients(mine)), wanted) < 1e-5


@pytest.mark.parametrize("name", CLASSES)
def test_adapters_load_both_ways(name: str, tmp_path: Path) -> None:
    batch = random_batch()
    mine = ours(name)
    prefixes.save_prefix(mine, tmp_path / "ours", "some/model")
    theirs = peft.PeftModel.from_pretrained(random_model(name), str(tmp_path / "ours"))
    assert theirs.peft_config["default"].base_model_name_or_path == "some/model"
    expected = logits(mine, batch, use_cache=False)
    torch.testing.assert_close(logits(theirs, batch), expected, rtol=1e-5, atol=1e-5)
    assert (logits(random_model(name), batch) - expected).abs().max() > 0.01

    theirs = pefts(name)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    back = random_model(name)
    prefixes.load_prefix(back, tmp_path / "theirs")
    torch.testing.assert_close(logits(back, batch, use_cache=False), logits(theirs, batch), rtol=1e-5, atol=1e-5)


def test_settings_are_pefts(tmp_path: Path) -> None:
    """Key by key, so that other readers find what they expect."""
    prefixes.save_prefix(ours("Glm"), tmp_path / "ours", "base")
    theirs = pefts("Glm")
    theirs.peft_config["default"].base_model_name_or_path = "base"
    theirs.save_pretrained(str(tmp_path / "theirs"), save_embedding_layers=False)  # else it asks the hub
    written = [json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("ours", "theirs")]
    assert written[0] == {**written[1], "inference_mode": True}


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_projection_is_pefts(reentrant: bool | None, tmp_path: Path) -> None:
    """The MLP that PEFT has in one piece is split over the layers; saved, it is applied and gone."""
    theirs = pefts("Glm", prefix_projection=True, encoder_hidden_size=48)
    mine = ours("Glm", projection=True, hidden_size=48)
    encoder, shared = theirs.prompt_encoder["default"], mine.base_model.prefix
    layers = [layer.self_attn.prefix.out for layer in mine.base_model.layers]
    with torch.no_grad():
        shared.embedding.weight.copy_(encoder.embedding.weight)
        shared.dense.weight.copy_(encoder.transform[0].weight)
        shared.dense.bias.copy_(encoder.transform[0].bias)
        for out, weight, bias in zip(
            layers, encoder.transform[2].weight.chunk(2), encoder.transform[2].bias.chunk(2), strict=True
        ):
            out.weight.copy_(weight)
            out.bias.copy_(bias)
    batch = random_batch()
    expected = plain_mean_loss(theirs, batch)
    expected.backward()
    if reentrant is not None:
        recompute(mine, reentrant)
    loss, count = forward_loss(mine, batch)
    (loss / count).backward()
    assert (loss / count).item() == pytest.approx(expected.item(), abs=1e-5)
    pairs = {
        "embedding": (shared.embedding.weight, encoder.embedding.weight.grad),
        "dense": (shared.dense.weight, encoder.transform[0].weight.grad),
        "dense bias": (shared.dense.bias, encoder.transform[0].bias.grad),
        "out 0": (layers[0].weight, encoder.transform[2].weight.grad.chunk(2)[0]),
        "out 1": (layers[1].weight, encoder.transform[2].weight.grad.chunk(2)[1]),
        "out bias": (layers[1].bias, encoder.transform[2].bias.grad.chunk(2)[1]),
    }
    found = {name: parameter.grad for name, (parameter, _) in pairs.items()}
    assert largest_difference(found, {name: gradient for name, (_, gradient) in pairs.items()}) < 1e-5
    assert len(list(mine.parameters())) - len(list(random_model().parameters())) == 3 + 2 * 2

    prefixes.save_prefix(mine.eval(), tmp_path, "base")
    loaded = peft.PeftModel.from_pretrained(random_model(), str(tmp_path))
    torch.testing.assert_close(logits(loaded, batch), logits(mine, batch, use_cache=False), rtol=1e-5, atol=1e-5)


def test_projection_is_in_the_state_that_checkpoints_keep() -> None:
    training = TrainingConfig(prefix=PrefixConfig(TOKENS, projection=True, hidden_size=48))
    mine = prefixes.add_prefix(random_model(), training)
    other = prefixes.add_prefix(random_model(), replace(training, seed=1))
    batch = random_batch()
    assert (logits(mine, batch, use_cache=False) - logits(other, batch, use_cache=False)).abs().max() > 1e-3
    trained = {name: p.detach().clone() for name, p in mine.named_parameters() if p.requires_grad}
    assert len(trained) == 7
    other.load_state_dict(trained, strict=False)
    assert torch.equal(logits(mine, batch, use_cache=False), logits(other, batch, use_cache=False))


@pytest.mark.parametrize("name", CLASSES)
def test_a_new_prefix_is_what_the_model_computes_for_tokens(name: str) -> None:
    """The text after a prefix of tokens' keys and values is computed as it is after these tokens."""
    model, ids = random_model(name), torch.randint(2, 300, (1, 14))
    with torch.no_grad():
        expected = model(input_ids=ids).logits[:, TOKENS:]
        prefixes.insert_prefix(model, PrefixConfig(num_virtual_tokens=TOKENS))
        prefixes.set_prefix(model, prefixes.token_states(model, ids[0, :TOKENS]))
        found = model(input_ids=ids[:, TOKENS:], use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_add_prefix_is_seeded_and_trains_the_prefix_alone() -> None:
    states: list[torch.Tensor] = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(states))
        model = prefixes.add_prefix(random_model(), TrainingConfig(seed=seed, prefix=PrefixConfig(TOKENS)))
        states.append(prefixes.prefix_states(model))
        assert {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad} == {"states"}
    assert states[0].shape == (TOKENS, 2 * 2 * 2 * 16)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_without_prefix_is_the_model_itself() -> None:
    """As the reference of DPO is."""
    model, batch = ours("Glm"), random_batch()
    base = sequence_logprobs(random_model(), batch)
    with prefixes.without_prefix(model), torch.no_grad():
        assert torch.equal(sequence_logprobs(model, batch), base)
    assert (sequence_logprobs(model, batch) - base).abs().max() > 0.01


def test_bfloat16_model_with_a_float32_prefix() -> None:
    model, batch = random_model(dtype="bfloat16"), random_batch()
    prefixes.insert_prefix(model, PrefixConfig(num_virtual_tokens=TOKENS))
    precise = ours("Glm")
    prefixes.set_prefix(precise, prefixes.prefix_states(model))
    loss, count = forward_loss(model, batch)
    (loss / count).backward()
    expected, _ = forward_loss(precise, batch)
    (expected / count).backward()
    found, wanted = flat(gradients(model))["all"], flat(gradients(precise))["all"]
    assert found.dtype == torch.float32
    assert (loss / count).item() == pytest.approx((expected / count).item(), rel=1e-2)
    assert (found - wanted).norm() < 0.05 * wanted.norm()


def test_a_cache_is_refused() -> None:
    with pytest.raises(ValueError, match="use_cache=False"):
        ours("Glm")(input_ids=torch.ones(1, 3, dtype=torch.int64), use_cache=True)


def test_attention_without_a_mask_is_refused() -> None:
    model = random_model()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InvalidRequestError, match="SDPA"):
        prefixes.insert_prefix(model, PrefixConfig())
    model = random_model("Qwen2")
    model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(InvalidRequestError, match="whole text"):
        prefixes.insert_prefix(model, PrefixConfig())


def test_adapters_for_others_are_refused(tmp_path: Path) -> None:
    prefixes.save_prefix(ours("Glm"), tmp_path / "prefix", "base")
    other = random_model()
    other.config.num_hidden_layers = 3
    with pytest.raises(CheckpointError, match="another model"):
        prefixes.load_prefix(other, tmp_path / "prefix")
    lora = peft.get_peft_model(random_model(), peft.LoraConfig(target_modules=["q_proj"]))
    lora.save_pretrained(str(tmp_path / "lora"))
    with pytest.raises(CheckpointError, match="LORA"):
        prefixes.load_prefix(random_model(), tmp_path / "lora")
