"""What a run leaves is loaded by the calls with which PEFT, LLaMA-Factory and ms-swift load adapters and models.

Those two were read and not run: they load a base by `AutoModelForCausalLM` and an adapter by
`PeftModel.from_pretrained` (LLaMA-Factory with `is_trainable` to train on, ms-swift with `adapter_name`, if
adapter_config.json has no key `swift_type`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import peft
import torch
import transformers
from training_rows import ASSISTANT, USER, chat

from glm4 import LLM, SamplingParams
from glm4.requests.processor import Processor
from glm4.training.config import PrefixConfig, TrainingConfig
from glm4.training.data.encoding import Encoder
from glm4.training.data.examples import TokenizedExample
from glm4.training.run import finetune
from tiny import write_folder

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`tie_word_embeddings`:UserWarning"),
]

MOST = 10


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("base"))


def trained(base: Path, output: Path, **changes: Any) -> tuple[Path, TokenizedExample]:
    """A short run, and the row that it was trained on."""
    row = Encoder(Processor.open(base)).encode(chat({"messages": [USER, ASSISTANT]}))
    assert isinstance(row, TokenizedExample)
    settings: dict[str, Any] = {"learning_rate": 5e-3, "max_steps": 3, "device": "cpu", "prefix": PrefixConfig(4)}
    config = TrainingConfig(model=str(base), output=str(output), **(settings | changes))
    return finetune(config, train=[row] * 4).output, row


def prompt_of(row: TokenizedExample) -> list[int]:
    start = int(row.mask.argmax())
    return row.ids[:start].tolist()


def our_answer(model: Path, prompt: list[int], adapter: Path | None = None) -> list[int]:
    """Ids of a greedy answer of our engine."""
    with LLM(str(model), dtype="fp32", max_model_len=256, num_threads=1, max_adapters=1) as llm:
        if adapter is not None:
            llm.load_adapter("mine", str(adapter))
        params = SamplingParams(temperature=0.0, max_tokens=MOST, ignore_eos=True)
        name = None if adapter is None else "mine"
        return llm.generate([prompt], params, adapter=name)[0].outputs[0].token_ids


def their_answer(model: Any, prompt: list[int]) -> list[int]:
    """The same of transformers, without a cache."""
    ids = list(prompt)
    model.eval()
    for _ in range(MOST):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "lora"},
        {"method": "ptuning_v2", "learning_rate": 0.1},
    ],
    ids=["lora", "ptuning_v2"],
)
def test_an_adapter_is_loaded_by_peft(changes: dict[str, Any], base: Path, tmp_path: Path) -> None:
    run, row = trained(base, tmp_path / "run", **changes)
    prompt = prompt_of(row)
    expected = our_answer(base, prompt, run)
    assert expected != our_answer(base, prompt)
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    assert their_answer(peft.PeftModel.from_pretrained(plain, str(run), adapter_name="default"), prompt) == expected
    alone = peft.AutoPeftModelForCausalLM.from_pretrained(str(run))  # finds the base by itself
    assert their_answer(alone, prompt) == expected
    assert "swift_type" not in json.loads((run / "adapter_config.json").read_text())
    if changes["method"] == "lora":  # PEFT trains no prefix that it has loaded
        again = transformers.AutoModelForCausalLM.from_pretrained(base)
        going_on = peft.PeftModel.from_pretrained(again, str(run), is_trainable=True)
        assert any(parameter.requires_grad for parameter in going_on.parameters())
    newest = max(run.glob("checkpoint-*"))
    assert (newest / "adapter_config.json").exists()


@pytest.mark.parametrize("method", ["full", "freeze"])
def test_a_model_is_loaded_by_transformers(method: str, base: Path, tmp_path: Path) -> None:
    run, row = trained(base, tmp_path / "run", method=method, freeze_layers=1 if method == "freeze" else 0)
    prompt = prompt_of(row)
    expected = our_answer(run, prompt)
    assert expected != our_answer(base, prompt)
    assert their_answer(transformers.AutoModelForCausalLM.from_pretrained(run), prompt) == expected
