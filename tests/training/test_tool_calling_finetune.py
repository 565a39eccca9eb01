"""Fine-tuned on conversations with tools, a model ends calls and answers with the right role; with other masks not.

A tiny GLM-4 learns from random weights to call functions, and by LoRA to answer in other words. Our engine then asks it
for functions that no training had.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from finetune_tools import fine_tune, house_samples, masked, score, train_base
from glm4 import LLM
from glm4.requests.processor import Processor
from tool_conversations import HOUSE, cases
from tool_model import write_model

pytestmark = pytest.mark.train

HELD_OUT, ROWS = 40, 640
GOAL = 0.95
TRAINED = cases(2, 20, num_tools=1)


@pytest.mark.timeout(900)
def test_calls_and_answers_end_rightly_unless_the_mask_is_the_originals(tmp_path: Path) -> None:
    base = train_base(tmp_path, steps=100, count=ROWS, seed=0, num_tools=1)
    samples = house_samples(base, tmp_path, count=ROWS, seed=0, num_tools=1)
    asked = cases(HELD_OUT, 30, held_out=True, num_tools=1)
    with LLM(str(base), dtype="fp32", max_model_len=512, max_adapters=2, num_threads=1) as llm:
        before = score(llm, None, asked)
        assert min(before.call_ended, before.answer_ended) >= GOAL
        found = {}
        for side in ("glm4", "combine"):
            output = fine_tune(base, tmp_path / side, masked(side, samples, base), steps=40, seed=0)
            llm.load_adapter(side, str(output))
            found[side] = score(llm, side, asked)
    assert found["glm4"].call_ended >= GOAL
    assert found["glm4"].answer_ended >= GOAL
    assert found["combine"].answer_ended >= GOAL  # what it trains, it learns
    assert found["combine"].call_ended < 0.5


def test_no_function_that_is_asked_for_was_trained() -> None:
    trained = {case.function for case in cases(3000, 1)}
    asked = cases(300, 2, held_out=True)
    assert not trained & {case.function for case in asked}
    known = {(case.topic, case.thing) for case in cases(3000, 3)}
    assert not known & {(case.topic, case.thing) for case in asked}


def learned(side: str, folder: Path) -> list[list[str]]:
    """The tokens that carry loss in a conversation that ends with a call, and in one that ends with an answer."""
    model = write_model(folder / "m")
    samples = house_samples(model, folder, count=2, seed=0, num_tools=1)
    decode = Processor.open(model).tokenizer.decode
    return [
        [decode([token], skip_special_tokens=False) for token in sample.ids[sample.mask].tolist()]
        for sample in masked(side, samples, model)
    ]


def test_what_either_mask_trains(tmp_path: Path) -> None:
    called, answered = learned("glm4", tmp_path)
    topic, ending, *arguments, closing = called
    assert (topic + ending, closing) == (TRAINED[0].function, "<|observation|>")
    assert "".join(arguments) == f"\n{TRAINED[0].arguments}"
    text = "".join(answered)
    case = TRAINED[1]
    call = f"{case.function}\n{case.arguments}<|observation|>"
    assert text == f"{call}\n{case.answer(HOUSE)}<|user|>"

    without_first, last_answer = learned("combine", tmp_path)
    assert without_first == [ending, *arguments, "<|user|>"]
    assert "".join(last_answer) == f"{case.answer(HOUSE)}<|user|>"
