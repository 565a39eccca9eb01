"""The torch GLM-4V that is trained, against what was recorded of the reference and what our engine computes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.train

import torch  # noqa: E402
from torch_vision import golden_inputs, load, tiny  # noqa: E402

import golden_models as gm  # noqa: E402
import vision_models as vm  # noqa: E402
from glm4.checkpoints.hf_layout import HF_CLASSES  # noqa: E402
from glm4.checkpoints.vision_config import image_layout  # noqa: E402
from glm4.errors import InvalidRequestError, TensorError  # noqa: E402
from glm4.model.shapes import SHAPES  # noqa: E402
from glm4.model.tensors import num_parameters  # noqa: E402
from glm4.multimodal.image import ImageDecoder, encode_picture  # noqa: E402
from glm4.requests.image_inputs import ImageInputs, ImageOptions  # noqa: E402
from glm4.training.data.examples import TokenizedExample  # noqa: E402
from glm4.training.forward import forward_loss  # noqa: E402
from glm4.training.vision.batches import PictureCollator, picture_positions  # noqa: E402
from glm4.training.vision.loading import empty_vision_model  # noqa: E402

TOLERANCE = 1e-4
FAR = 10 * TOLERANCE


def error(found: Any, expected: Any) -> float:
    found, expected = np.asarray(found, np.float32), np.asarray(expected, np.float32)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


class Case:
    """A model, what was recorded of it, and its inputs."""

    def __init__(self, folder: Path, name: str) -> None:
        self.tiny = vm.VISION_MODELS[name]
        self.golden = gm.load_golden(gm.GOLDEN / "vision" / f"{name}.npz")
        self.model = tiny(folder, name)
        self.inputs = golden_inputs(name, self.golden["pixels"], self.golden["decode"])

    def logits(self, **changes: Any) -> Any:
        with torch.no_grad():
            return self.model(**self.inputs | changes).logits[0].numpy()


@pytest.fixture(scope="module", params=list(vm.VISION_MODELS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("model"), request.param)


def stages(case: Case) -> dict[str, Any]:
    """What the tower's parts give."""
    tower, found = case.model.model.vision, {}
    layers = tower.transformer["layers"]
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: found.update({name: out[0]}))
        for name, module in (
            ("embedded", tower.patch_embedding),
            ("first_block", layers[0]),
            ("last_block", layers[-1]),
        )
    ]
    with torch.no_grad():
        found["rows"] = tower(case.inputs["pixel_values"])[0]
    for hook in hooks:
        hook.remove()
    return found


def test_stages_and_logits_are_the_recorded_ones(case: Case) -> None:
    found, golden = stages(case), case.golden
    assert set(found) == {"embedded", "first_block", "last_block", "rows"}
    for name, value in found.items():
        assert error(value, golden[name]) <= TOLERANCE, name
    logits, length = case.logits(), len(golden["logits"])
    assert error(logits[:length], golden["logits"]) <= TOLERANCE
    assert error(logits[length:], golden["decode_logits"]) <= TOLERANCE


def test_wrong_models_are_noticed(case: Case) -> None:
    """Positions that count on, norms before the sublayers, a picture resized without antialiasing."""
    found, golden = stages(case), case.golden
    counted = torch.arange(case.inputs["input_ids"].shape[1])[None]
    wrong = case.logits(position_ids=counted)
    assert error(wrong, golden["sequential_logits"]) <= TOLERANCE
    assert error(case.logits(), golden["sequential_logits"]) > FAR
    for name in ("first_block", "last_block", "rows"):
        assert error(found[name], golden[f"pre_norm_{name}"]) > FAR, name
    assert error(found["rows"], golden["no_antialias_rows"]) > FAR


def test_the_loss_of_recorded_rows(case: Case) -> None:
    """As training computes it, without a mask of attention: the rows' own cross-entropy."""
    mask = torch.zeros_like(case.inputs["input_ids"], dtype=torch.bool)
    mask[0, -9:] = True
    batch = {name: value for name, value in case.inputs.items() if name != "use_cache"} | {"loss_mask": mask}
    with torch.no_grad():
        loss, targets = forward_loss(copy.deepcopy(case.model), batch)
    logits = torch.from_numpy(case.logits())[-10:-1]
    expected = torch.nn.functional.cross_entropy(logits, batch["input_ids"][0, -9:], reduction="sum")
    assert int(targets) == 9
    assert abs(float(loss - expected)) <= 1e-5 * float(expected)


def test_it_has_every_tensor_of_the_published_model() -> None:
    model = empty_vision_model(HF_CLASSES["chatglm"], SHAPES["glm-4v-9b"], "bf16", torch.device("cpu"))
    assert sum(value.numel() for value in model.parameters()) == num_parameters(SHAPES["glm-4v-9b"]) == 13_906_320_896


def test_a_checkpoint_with_a_tensor_too_few_is_refused(tmp_path: Path) -> None:
    model = vm.VISION_MODELS["glm-4v"]
    tensors = vm.draw_files(model)
    del tensors["transformer.vision.linear_proj.gate_proj.weight"]
    vm.write_vision_checkpoint(tmp_path, model, tensors)
    with pytest.raises(TensorError, match=r"linear_proj\.gate_proj"):
        load(tmp_path)


def test_weights_are_loaded_in_bfloat16_as_the_file_rounds(tmp_path: Path) -> None:
    exact, short = (tiny(tmp_path, dtype=dtype).state_dict() for dtype in ("fp32", "bf16"))
    assert exact.keys() == short.keys()
    for name, value in short.items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, exact[name].bfloat16()), name


def test_half_split_rotary_rows_are_put_in_order(tmp_path: Path) -> None:
    """`original_rope: false` names the same model with the rows of queries and keys in another order."""
    usual = vm.VISION_MODELS["glm-4v"]
    other = vm.TinyVision(gm.TinyModel("glm-4v-half", usual.text.seed, "chatglm", half_split=True))
    models = [load(vm.write_vision_checkpoint(tmp_path / str(i), one)) for i, one in enumerate((usual, other))]
    first, second = (model.state_dict() for model in models)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def plain_batch(examples: Any) -> dict[str, Any]:
    longest = max(map(len, examples))
    ids = torch.zeros(len(examples), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, example in enumerate(examples):
        ids[row, : len(example)] = torch.from_numpy(example.ids.astype(np.int64))
        mask[row, : len(example)] = 1
    positions = torch.arange(longest).repeat(len(examples), 1)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


@pytest.fixture
def collator(case: Case) -> Iterator[PictureCollator]:
    layout = image_layout(case.model.model.vision.config)
    assert layout is not None
    images = ImageInputs.of(layout, ImageOptions())
    yield PictureCollator(plain_batch, images)
    images.close()


def examples(case: Case) -> list[TokenizedExample]:
    """Text alone; the recorded sequence; the same with another picture behind more text."""
    ids, first = case.inputs["input_ids"][0].numpy().astype(np.int32), int(case.inputs["picture_places"][0, 1])
    noise = np.random.default_rng(3).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    texts = np.arange(2, 19, dtype=np.int32)
    rows = [(texts, (), ()), (ids, (vm.draw_picture(case.tiny),), (first,)),
            (np.concatenate([texts, ids]), (noise,), (first + len(texts),))]  # fmt: skip
    return [
        TokenizedExample(ids, np.zeros(len(ids), bool), f"row {n}", images=tuple(map(encode_picture, pictures)),
                         image_starts=starts)
        for n, (ids, pictures, starts) in enumerate(rows)
    ]  # fmt: skip


def test_a_mixed_batch_gives_each_sequence_its_own_logits(case: Case, collator: PictureCollator) -> None:
    """Files decode to the engine's pixels; text without a picture needs none; padding changes nothing."""
    rows = examples(case)
    batch = collator(rows)
    np.testing.assert_array_equal(batch["pixel_values"][0], case.golden["pixels"])
    decoder = ImageDecoder(case.tiny.image_size)
    np.testing.assert_array_equal(batch["pixel_values"][1], decoder.decode(rows[2].images[0]))
    decoder.close()
    assert batch["picture_places"].tolist() == [[1, rows[1].image_starts[0]], [2, rows[2].image_starts[0]]]
    with torch.no_grad():
        together = case.model(**batch, use_cache=False).logits
        for index, row in enumerate(rows):
            alone = case.model(**collator([row]), use_cache=False).logits[0]
            assert error(together[index, : len(row)], alone) <= 1e-5
    assert error(together[1, : len(rows[1])], case.logits()) <= 1e-5
    text = case.model(input_ids=torch.from_numpy(rows[0].ids.astype(np.int64))[None]).logits[0].detach()
    assert error(together[0, : len(rows[0])], text) <= 1e-5


def test_a_picture_that_was_cut_off_is_refused(case: Case, collator: PictureCollator) -> None:
    whole = examples(case)[1]
    end = whole.image_starts[0] + case.tiny.num_rows - 1
    cut = TokenizedExample(whole.ids[:end], whole.mask[:end], "train.jsonl:3", 9, 4, whole.images, whole.image_starts)
    with pytest.raises(InvalidRequestError, match=r"train\.jsonl:3: the picture's .* raise max_length"):
        collator([cut])


def test_positions_of_several_pictures() -> None:
    assert picture_positions(16, [2, 9], 5).tolist() == [0, 1, 2, 3, 3, 3, 4, 5, 6, 7, 8, 8, 8, 9, 10, 11]


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_with_checkpointing_are_those_without(case: Case, frozen: bool) -> None:
    """A layer is computed twice then, also the first one, whose input needs no gradient; unless it is frozen."""
    model = copy.deepcopy(case.model).train()
    for name, value in model.named_parameters():
        value.requires_grad_(".vision.linear_proj." in name or (not frozen and ".vision.transformer." in name))
    calls: list[int] = []
    model.model.vision.transformer["layers"][0].mlp.register_forward_hook(lambda *_: calls.append(1))
    found = []
    for use in (False, True):
        calls.clear()
        if use:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        logits = model(**case.inputs).logits
        logits[0, -5:].logsumexp(-1).sum().backward()
        assert len(calls) == (2 if use and not frozen else 1)
        found.append({name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None})
    names = {name.split(".vision.")[1].split(".")[0] for name in found[0]}
    assert names == ({"linear_proj"} if frozen else {"linear_proj", "transformer"})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert float(value.abs().max()) > 0, name
        assert torch.allclose(value, found[1][name], rtol=1e-4, atol=1e-5 * float(value.abs().max())), name
