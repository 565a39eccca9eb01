"""A GLM-4V that sees learns what it did not know, and our engine answers with it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT asks for it
]

import peft  # noqa: E402
import torch  # noqa: E402
from run_files import losses, run_cli  # noqa: E402
from torch_vision import load  # noqa: E402

import golden_models as gm  # noqa: E402
import vision_pictures as vp  # noqa: E402
from glm4 import LLM, SamplingParams  # noqa: E402
from glm4.chat.chat_request import ChatRequest  # noqa: E402
from glm4.chat.parts import ImagePart  # noqa: E402
from glm4.checkpoints.checkpoint import open_checkpoint  # noqa: E402
from glm4.errors import InvalidRequestError, UnsupportedModelError  # noqa: E402
from glm4.export.merge import merge  # noqa: E402
from glm4.kernels import get_kernels  # noqa: E402
from glm4.multimodal.image import ImageDecoder, encode_picture  # noqa: E402
from glm4.requests.processor import Processor  # noqa: E402
from glm4.training.config import DataConfig, LoraConfig, TrainingConfig  # noqa: E402
from glm4.training.run import finetune  # noqa: E402
from glm4.training.vision.batches import picture_positions  # noqa: E402
from model_driver import loaded  # noqa: E402
from vision_driver import encode, picture_logits  # noqa: E402

CHECKPOINT = gm.GOLDEN / "vision" / "trained"
QUESTION = "What is the code of the circle?"
CODES = {"red": "7", "green": "4", "blue": "9", "yellow": "5", "white": "8", "black": "6"}  # no number of squares
TOLERANCE = 1e-4


def scenes(count: int, seed: int) -> list[vp.Picture]:
    rng = np.random.RandomState(seed)
    return [vp.draw_scene(rng) for _ in range(count)]


def code(picture: vp.Picture) -> str:
    return CODES[picture.answers["color"][0]]


def write_rows(folder: Path, drawn: Sequence[vp.Picture]) -> Path:
    """Rows of the original's form and of OpenAI's in turn, and every fifth without a picture; pictures as files."""
    folder.mkdir()
    rows: list[Any] = []
    for index, picture in enumerate(drawn):
        (folder / f"{index}.png").write_bytes(encode_picture(picture.pixels))
        parts = [{"type": "image_url", "image_url": {"url": f"{index}.png"}}, {"type": "text", "text": QUESTION}]
        asked = {"content": QUESTION, "image": f"{index}.png"} if index % 2 else {"content": parts}
        answer = {"role": "assistant", "content": code(picture)}
        rows.append({"messages": [{"role": "user", **asked}, answer]})
        if index % 5 == 0:
            rows.append({"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "0"}]})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "train.jsonl"


def config(folder: Path, data: Path, **changes: Any) -> TrainingConfig:
    settings: dict[str, Any] = {
        "model": str(CHECKPOINT), "output": str(folder), "data": DataConfig(train=(str(data),)),
        "per_device_train_batch_size": 16, "max_steps": 3, "learning_rate": 1e-2, "device": "cpu", "dtype": "fp32",
        "lora": LoraConfig(r=8, lora_alpha=16),
    }  # fmt: skip
    return TrainingConfig(**settings | changes)


def answers(llm: LLM, questions: Sequence[Any], adapter: str | None) -> list[str]:
    chats = [[{"role": "user", "content": content}] for content in questions]
    found = llm.chat(chats, SamplingParams(temperature=0.0, max_tokens=4), adapter=adapter)
    return [one.outputs[0].text.strip() for one in found]


def test_lora_of_the_language_model_served_beside_the_base(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data", scenes(480, seed=5))
    changes = {"max_steps": 80, "train_projector": "none", "gradient_checkpointing": False}
    result = finetune(config(tmp_path / "run", data, **changes))
    held_out = scenes(200, seed=900_001)
    shown = [[{"type": "image", "image": one.pixels}, {"type": "text", "text": QUESTION}] for one in held_out]
    with LLM(str(CHECKPOINT), dtype="fp32", max_adapters=1) as llm:
        llm.load_adapter("codes", str(result.output))
        right = {
            name: np.mean([text == code(one) for text, one in zip(answers(llm, shown, name), held_out, strict=True)])
            for name in ("codes", None)
        }
        assert answers(llm, [QUESTION], "codes") == ["0"]
    assert right["codes"] >= 0.95
    assert right[None] <= 0.05


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("few") / "data", scenes(40, seed=6))


class Asked:
    """A rendered question about a picture, for both implementations."""

    def __init__(self) -> None:
        picture = scenes(1, seed=77)[0]
        decoder = ImageDecoder(56)
        self.pixels = decoder.decode(encode_picture(picture.pixels))
        decoder.close()
        with LLM(str(CHECKPOINT), dtype="fp32") as llm:
            content = [ImagePart(encode_picture(picture.pixels)), {"type": "text", "text": QUESTION}]
            prompt = llm.prepare(ChatRequest.of([{"role": "user", "content": content}])).prompt
        self.ids = np.array(prompt.ids, np.int32)
        (span,) = prompt.spans
        self.start, self.num_rows = span.start, span.length
        self.positions = picture_positions(len(self.ids), [span.start], span.length)

    def torch_logits(self, model: Any) -> Any:
        with torch.no_grad():
            return model(
                input_ids=torch.from_numpy(self.ids.astype(np.int64))[None],
                position_ids=torch.from_numpy(self.positions)[None],
                pixel_values=torch.from_numpy(self.pixels.copy())[None],
                picture_places=torch.tensor([[0, self.start]]),
                use_cache=False,
            ).logits[0].numpy()  # fmt: skip

    def torch_rows(self, model: Any) -> Any:
        """Of the picture, in the text model."""
        with torch.no_grad():
            return model.model.vision(torch.from_numpy(self.pixels.copy())[None])[0].numpy()

    def engine_logits(self, folder: Path) -> Any:
        with loaded(folder, get_kernels()) as model:
            assert model.vision is not None
            seen = encode(model.vision, self.pixels)
            return picture_logits(model, self.ids, self.positions.astype(np.int32), (self.start, seen))


@pytest.fixture(scope="module")
def asked() -> Asked:
    return Asked()


def error(found: Any, expected: Any) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


WAYS: dict[str, dict[str, Any]] = {
    "projector by LoRA": {},
    "projector in full": {"train_projector": "full"},
    "tower and projector": {"train_vision": True, "train_projector": "full"},
    "DoRA of all": {"train_vision": True, "lora": LoraConfig(r=4, use_dora=True)},
    "tower alone": {"train_vision": True, "train_projector": "none", "lora": LoraConfig(target_modules=("o_proj",))},
}


@pytest.mark.parametrize("way", WAYS)
def test_merged_models_see_what_was_learned(way: str, few: Path, asked: Asked, tmp_path: Path) -> None:
    """The engine on the merged checkpoint computes what PEFT does, which differs from the base and needs the vision."""
    result = finetune(config(tmp_path / "run", few, **WAYS[way]))
    base = load(CHECKPOINT)
    plain = asked.torch_logits(base)
    seen = asked.torch_rows(base)
    adapted = peft.PeftModel.from_pretrained(base, result.output).eval()
    expected = asked.torch_logits(adapted)
    assert error(plain, expected) > 100 * TOLERANCE
    assert error(seen, asked.torch_rows(base)) > 100 * TOLERANCE
    with open_checkpoint(CHECKPOINT) as checkpoint:
        merge(checkpoint, result.output, tmp_path / "merged", dtype="fp32")
    assert error(asked.engine_logits(tmp_path / "merged"), expected) <= TOLERANCE
    with (
        LLM(str(CHECKPOINT), dtype="fp32", max_adapters=1) as llm,
        pytest.raises(UnsupportedModelError, match="glm4 merge"),
    ):
        llm.load_adapter("it", str(result.output))


def test_preferences_about_pictures(tmp_path: Path) -> None:
    """The picture's color becomes likelier than another one, which is the right one of other pictures."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = []
    for index, picture in enumerate(scenes(48, seed=8)):
        (folder / f"{index}.png").write_bytes(encode_picture(picture.pixels))
        name = picture.answers["color"][0]
        worse = next(other for other in list(CODES)[index % len(CODES) :] + list(CODES) if other != name)
        rows.append({
            "messages": [{"role": "user", "content": "What color is the circle?", "image": f"{index}.png"}],
            "chosen": {"role": "assistant", "content": name}, "rejected": {"role": "assistant", "content": worse},
        })  # fmt: skip
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"objective": "dpo", "max_steps": 8, "dpo_beta": 0.5, "logging_steps": 1}
    result = finetune(config(tmp_path / "run", folder / "train.jsonl", **changes))
    lines = [json.loads(line) for line in (result.output / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert lines[-1]["loss"] < 0.6
    assert lines[-1]["rewards/margins"] > 0.1


@pytest.mark.parametrize("method", ["full", "freeze"])
def test_whole_models_are_written_as_the_engine_reads_them(
    method: str, few: Path, asked: Asked, tmp_path: Path
) -> None:
    changes = {"method": method, "freeze_layers": 1 if method == "freeze" else 0, "learning_rate": 1e-3}
    result = finetune(config(tmp_path / "run", few, **changes))
    trained = load(result.output)
    expected = asked.torch_logits(trained)
    before, after = load(CHECKPOINT).state_dict(), trained.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert any(name.startswith("model.vision.linear_proj.") for name in changed)
    assert not any(name.startswith("model.vision.transformer.") for name in changed)
    assert "model.layers.2.mlp.down_proj.weight" in changed
    assert ("model.layers.0.mlp.down_proj.weight" in changed) == (method == "full")
    assert error(asked.engine_logits(result.output), expected) <= TOLERANCE
    with open_checkpoint(result.output) as checkpoint:
        assert Processor.load(checkpoint).image is not None


def test_two_processes_of_which_one_may_have_no_picture(tmp_path: Path) -> None:
    """Each waits for the gradients of the projector; together they take the steps of one that accumulates."""
    data = write_rows(tmp_path / "data", scenes(10, seed=9))
    inputs = ["-m", str(CHECKPOINT), "--data", str(data), "--device", "cpu", "--lr", "1e-2", "--batch-size", "1"]
    inputs += ["--max-steps", "6", "--set", "logging_steps=1"]
    for name, *more in (("one", "--accumulation", "2"), ("two",)):
        done = run_cli(*inputs, *more, "-o", str(tmp_path / name), processes=2 if name == "two" else 1)
        assert done.returncode == 0, done.stderr
    ours, theirs = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(ours) == len(theirs) == 6
    for left, right in zip(ours, theirs, strict=True):
        assert left[1] == pytest.approx(right[1], rel=1e-5)
        assert left[3] == pytest.approx(right[3], rel=1e-4)


@pytest.mark.parametrize(("changes", "param"), [
    ({"packing": True}, "packing"), ({"method": "ptuning_v2"}, "method"), ({"quantize": "nf4"}, "quantize"),
])  # fmt: skip
def test_what_a_model_that_sees_is_not_trained_with(
    changes: dict[str, Any], param: str, few: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        finetune(config(tmp_path / "run", few, **changes))
    assert refused.value.param == param
    assert not (tmp_path / "run" / "checkpoint-3").exists()
