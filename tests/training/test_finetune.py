"""`finetune`: a whole run on a tiny model, and what it leaves, run by our engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from glm4 import LLM, SamplingParams
from glm4.training.config import TrainingConfig
from glm4.training.data.examples import TokenizedExample
from glm4.training.run import finetune
from tiny import special_id, write_folder

pytestmark = pytest.mark.train

ANSWER = b"\nblue"


def example(question: bytes = b"color?", answer: bytes = ANSWER) -> TokenizedExample:
    prompt = [special_id("[gMASK]"), special_id("<sop>"), special_id("<|user|>"), *b"\n", *question]
    ids = [*prompt, special_id("<|assistant|>"), *answer, special_id("<|user|>")]
    mask = np.arange(len(ids)) > len(prompt)
    return TokenizedExample(np.array(ids, np.int32), mask)


def answer(model: Path, adapter: Path | None = None) -> str:
    """The text of a greedy answer to the question of `example`, by our engine."""
    with LLM(str(model), dtype="fp32", max_model_len=256, num_threads=1, max_adapters=1) as llm:
        if adapter is not None:
            llm.load_adapter("mine", str(adapter))
        params = SamplingParams(temperature=0.0, max_tokens=8)
        chat = [{"role": "user", "content": "color?"}]
        return llm.chat(chat, params, adapter="mine" if adapter else None)[0].outputs[0].text


def test_lora_learns_and_our_engine_answers_with_it(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base")
    config = TrainingConfig(
        model=str(base),
        output=str(tmp_path / "run"),
        per_device_train_batch_size=2,
        max_steps=30,
        logging_steps=5,
        learning_rate=2e-2,
        device="cpu",
    )
    result = finetune(config, train=[example()] * 4)
    assert result.steps == 30
    assert result.loss < 0.1
    assert answer(base).strip() != "blue"
    assert answer(base, result.output).strip() == "blue"
