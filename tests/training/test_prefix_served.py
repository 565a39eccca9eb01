"""Prefixes that PEFT and we have trained, served by our engine: PEFT's logits and texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

pytest.importorskip("torch")

import peft
import torch

from glm4 import LLM, SamplingParams
from glm4.backends.transformers.weights import load_model
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.requests.processor import Processor
from glm4.training.config import PrefixConfig
from glm4.training.methods.prefix import insert_prefix, save_prefix, set_prefix, token_states
from tiny import tiny_model, write_folder, write_gguf

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT asks for it
    pytest.mark.filterwarnings("ignore:.*generation flags are not valid:UserWarning"),
]

KINDS = ("glm", "chatglm", "glm4", "qwen2", "llama")
IDS = np.random.RandomState(3).randint(0, 256, 45).tolist()
STEPS = 12


@dataclass(frozen=True)
class Both:
    """A checkpoint for our engine, and how to make the same model in torch."""

    path: Path

    def torch_model(self) -> Any:
        with open_checkpoint(self.path) as checkpoint:
            return load_model(checkpoint, torch.device("cpu"), "fp32").eval()

    def unnamed(self) -> list[int]:
        with open_checkpoint(self.path) as checkpoint:
            found: list[int] = Processor.load(checkpoint).tokenizer.unnamed_ids(checkpoint.config.vocab_size).tolist()
        return found

    def served(self, adapter: Path | None, ids: list[int] = IDS) -> tuple[list[float], list[int]]:
        """Log-probabilities of the ids, and what follows them."""
        params = SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True, prompt_logprobs=0)
        with LLM(str(self.path), dtype="fp32", max_model_len=256, max_num_batched_tokens=19) as llm:
            if adapter is not None:
                llm.load_adapter("it", str(adapter))
            (output,) = llm.generate([ids], params, adapter=None if adapter is None else "it")
        assert output.prompt_logprobs is not None
        return [one.logprob for one in output.prompt_logprobs if one is not None], output.outputs[0].token_ids


@pytest.fixture(scope="module", params=KINDS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder, kind = tmp_path_factory.mktemp(request.param), request.param
    if kind in ("qwen2", "llama"):
        yield Both(write_gguf(folder / "model.gguf", kind))
    else:
        layout: Literal["chatglm", "hf"] = "chatglm" if kind == "chatglm" else "hf"
        model = tiny_model(layout=layout, architecture="glm4" if kind == "glm4" else "glm")
        yield Both(write_folder(folder / "model", model))


def of_peft(model: Any, unnamed: list[int]) -> tuple[list[float], list[int]]:
    """What PEFT's model says of the ids, and what it answers without ids that have no token."""
    tokens = torch.tensor([IDS])
    with torch.no_grad():
        scores = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0].log_softmax(-1)
        answer = model.generate(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=STEPS, min_new_tokens=STEPS,
            do_sample=False, pad_token_id=0, eos_token_id=None, suppress_tokens=unnamed,
        )[0, len(IDS) :].tolist()  # fmt: skip
    return scores[range(len(IDS) - 1), IDS[1:]].tolist(), answer


@pytest.mark.parametrize(("num_virtual", "projection"), [(5, False), (40, True)])
def test_a_prefix_that_peft_saved(both: Both, num_virtual: int, projection: bool, tmp_path: Path) -> None:
    torch.manual_seed(num_virtual)
    base = both.torch_model()
    heads, size = base.config.num_key_value_heads, base.model.layers[0].self_attn.k_proj.out_features
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=num_virtual, num_attention_heads=heads, token_dim=size,
        num_layers=base.config.num_hidden_layers, prefix_projection=projection, encoder_hidden_size=32,
    )  # fmt: skip
    model = peft.get_peft_model(base, config)
    with torch.no_grad():
        for parameter in model.prompt_encoder.parameters():
            parameter.normal_()
    model.eval().save_pretrained(str(tmp_path))
    expected, answer = of_peft(model, both.unnamed())
    found, tokens = both.served(tmp_path)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert tokens == answer
    plain, _ = both.served(None)
    assert np.abs(np.subtract(plain, expected)).max() > 0.05


def test_a_prefix_that_we_saved(both: Both, tmp_path: Path) -> None:
    """One made of the model's own keys and values, with which a text gives what it gives behind their tokens."""
    model = both.torch_model()
    ids = np.random.RandomState(4).randint(0, 256, 37).tolist()
    states = token_states_of(model, ids)
    save_prefix(model, tmp_path, "tiny")
    found, tokens = both.served(tmp_path)
    whole, answer = both.served(None, ids + IDS)
    np.testing.assert_allclose(found, whole[len(ids) :], rtol=0, atol=1e-4)
    assert tokens == answer
    loaded = peft.PeftModel.from_pretrained(both.torch_model(), str(tmp_path)).eval()
    np.testing.assert_allclose(of_peft(loaded, both.unnamed())[0], found, rtol=0, atol=1e-4)
    assert len(states) == 37


def token_states_of(model: Any, ids: list[int]) -> torch.Tensor:
    """Gives a model the keys and values of tokens as its prefix."""
    insert_prefix(model, PrefixConfig(num_virtual_tokens=len(ids)))
    states = token_states(model, torch.tensor(ids))
    set_prefix(model, states)
    return states
