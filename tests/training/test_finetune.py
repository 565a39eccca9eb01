"""`finetune`: whole runs on a tiny model, and what they leave, run by our engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from run_files import config_of_flags, losses, write_inputs

from glm4 import LLM, SamplingParams
from glm4.errors import InvalidRequestError, TrainingError
from glm4.training.config import LoraConfig, TrainingConfig
from glm4.training.data.examples import TokenizedExample, TokenizedPreference
from glm4.training.listener import Listener, Summary
from glm4.training.run import finetune
from glm4.training.run_folder import read_status
from golden_models import draw, file_tensors
from tiny import special_id, tiny_model, write_folder, write_gguf

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
        return llm.chat(chat, params, adapter="mine" if adapter else None)[0].outputs[0].text.strip()


def config_for(folder: Path, **changes: object) -> TrainingConfig:
    """Of a short run that learns, on a model in `folder`."""
    config = TrainingConfig(
        model=str(write_folder(folder / "base")),
        output=str(folder / "run"),
        per_device_train_batch_size=2,
        max_steps=30,
        learning_rate=2e-2,
        device="cpu",
    )
    return replace(config, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["lora", "ptuning_v2"])
def test_an_adapter_learns_and_our_engine_answers_with_it(tmp_path: Path, method: str) -> None:
    config = config_for(tmp_path, method=method, learning_rate=2e-2 if method == "lora" else 0.3, max_steps=40)
    result = finetune(config, train=[example()] * 4)
    assert result.steps == 40
    assert result.loss < 0.3
    assert answer(tmp_path / "base") != "blue"
    assert answer(tmp_path / "base", result.output) == "blue"


@pytest.mark.parametrize("base", ["hf", "chatglm", "gguf"])
def test_weights_learn_and_the_folder_is_a_model(tmp_path: Path, base: str) -> None:
    changes: dict[str, object] = {"method": "full"} if base != "chatglm" else {"method": "freeze", "freeze_layers": 1}
    config = config_for(tmp_path, learning_rate=1e-2, max_steps=20, **changes)
    if base == "chatglm":
        write_folder(tmp_path / "base", tiny_model("chatglm"))
    elif base == "gguf":
        config = replace(config, model=str(write_gguf(tmp_path / "model.gguf")))
    result = finetune(config, train=[example()] * 4)
    assert result.loss < 0.1
    assert answer(result.output) == "blue"


def test_bf16_on_the_processor_and_weights_that_stay_float32(tmp_path: Path) -> None:
    result = finetune(config_for(tmp_path, method="full", learning_rate=1e-2, dtype="bf16"), train=[example()] * 4)
    assert result.loss < 0.2
    assert answer(result.output) == "blue"


def test_preferences_by_adapter_and_by_weights(tmp_path: Path) -> None:
    pairs = [TokenizedPreference(example(), example(answer=b"\nred."))] * 4
    for method, rate in (("lora", 5e-3), ("full", 1e-3)):
        config = config_for(tmp_path, method=method, objective="dpo", learning_rate=rate, output=str(tmp_path / method))
        result = finetune(config, train=pairs, validation=pairs[:1])
        assert result.loss < 0.5  # log 2 where nothing was learned
        assert (result.eval_loss or 1) < 0.5


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    rows = [example(b"c" * n, b"\n" + b"blue" * (1 + n % 4)) for n in range(1, 12)]
    found = []
    for batch, steps in ((6, 1), (2, 3), (1, 6)):
        config = config_for(
            tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=steps, max_steps=4,
            logging_steps=1, output=str(tmp_path / f"run{batch}"), learning_rate=1e-2,
        )  # fmt: skip
        finetune(config, train=rows)
        found.append([row[1:] for row in losses(Path(config.output))])
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
            assert ours[2] == pytest.approx(theirs[2], rel=1e-4)


def test_packing_and_streaming(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    packed = ["--set", "packing=true", "--max-length", "128", "-o", str(tmp_path / "packed"), "--epochs", "3"]
    result = finetune(config_of_flags(inputs, packed))
    assert result.loss < 4  # random guesses: 5.7
    assert result.steps < 3 * 12 / 2
    streamed = ["--set", "data.streaming=true", "--max-steps", "30", "-o", str(tmp_path / "streamed")]
    assert finetune(config_of_flags(inputs, streamed)).loss < 1  # 60 samples of 24 rows: more than two passes


def test_a_stream_goes_on_where_it_was(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    more = ["--set", "data.streaming=true", "--max-steps", "16", "--set", "logging_steps=1", "--save-steps", "9"]
    whole = finetune(config_of_flags(inputs, more, ["-o", str(tmp_path / "whole")]))
    config = config_of_flags(inputs, more, ["-o", str(tmp_path / "parts")])
    finetune(config)
    for name in ("run_state.json", "trainer_state.json"):
        (tmp_path / "parts" / "checkpoint-16" / name).unlink()
    finetune(config)
    assert losses(tmp_path / "parts") == losses(whole.output)


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    model = tiny_model()
    tensors = file_tensors(model, draw(model))
    tensors["model.norm.weight"][0] = np.inf
    config = config_for(tmp_path)
    write_folder(tmp_path / "base", model, tensors=tensors)
    with pytest.raises(TrainingError, match=r"no longer a number at step 1: a lower learning_rate"):
        finetune(config, train=[example()] * 4)
    assert read_status(tmp_path / "run")["state"] == "failed"


def test_what_the_model_lacks_is_named(tmp_path: Path) -> None:
    lora = LoraConfig(target_modules=("query_key_value",))
    with pytest.raises(InvalidRequestError, match=r"query_key_value: the model has no such modules; it has .*q_proj"):
        finetune(config_for(tmp_path, lora=lora), train=[example()])
    with pytest.raises(InvalidRequestError, match="below the model's 2 layers"):
        finetune(config_for(tmp_path, method="freeze", freeze_layers=2), train=[example()])


def test_the_listener_is_told(tmp_path: Path) -> None:
    told: list[Summary] = []

    class Told(Listener):
        def started(self, summary: Summary) -> None:
            told.append(summary)

    finetune(config_for(tmp_path, max_steps=1), train=[example()] * 4, validation=[example()], listener=Told())
    (summary,) = told
    assert (summary.rows, summary.validation_rows, summary.steps) == (4, 1, 1)
    assert 0 < summary.trainable < summary.parameters
