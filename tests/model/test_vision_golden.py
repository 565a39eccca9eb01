"""GLM-4V against its torch reference, on tiny random checkpoints: the recorded files of tests/golden/vision.

Both sides compute in float32. The largest difference may be 1e-4 of the largest reference value; measured are 4e-7 to
5e-6. Wrong models were recorded too (positions that count on, norms before the sublayers, a picture resized without
antialiasing), and the model must be far from each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import golden_models as gm
import vision_models as vm
from glm4.kernels import get_kernels
from glm4.model.layers import Float
from glm4.model.shapes import SHAPES
from glm4.model.tensors import model_tensors, num_parameters
from glm4.model.transformer import Transformer
from glm4.multimodal.image import ImageDecoder, encode_picture
from model_driver import loaded
from vision_driver import Positions, encode, picture_logits

TOLERANCE = 1e-4
FAR = 10 * TOLERANCE


class Case:
    """A tiny GLM-4V, loaded from its files, what was recorded for it, and its prompt: text, a picture, text."""

    def __init__(self, name: str, model: Transformer) -> None:
        assert model.vision is not None
        self.tiny, self.model, self.tower = vm.VISION_MODELS[name], model, model.vision
        self.golden = gm.load_golden(gm.GOLDEN / "vision" / f"{name}.npz")
        before, after = vm.draw_text(self.tiny)
        picture = [self.tiny.begin_of_image] + [self.tiny.end_of_text] * (self.tiny.num_rows - 2)
        self.first = len(before)
        self.ids = np.concatenate([before, picture, [self.tiny.end_of_image], after]).astype(np.int32)
        self.positions = self.shared(len(self.ids) + vm.DECODE_STEPS)
        self.rows = encode(self.tower, self.golden["pixels"])

    def shared(self, length: int) -> Positions:
        """Positions with the picture's patches at one."""
        last = self.first + self.tiny.num_rows - 1
        steps = np.ones(length, np.int32)
        steps[0], steps[self.first + 2 : last] = 0, 0
        return np.cumsum(steps).astype(np.int32)


def logits(case: Case, ids: NDArray[np.int32], positions: Positions, chunks: Sequence[int], beside: int = 0) -> Float:
    """See `picture_logits`."""
    return picture_logits(case.model, ids, positions, (case.first, case.rows), chunks, beside)


def error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module", params=["reference", "native"])
def kernels(request: pytest.FixtureRequest) -> Any:
    return get_kernels(request.param)


@pytest.fixture(scope="module", params=list(vm.VISION_MODELS))
def case(request: pytest.FixtureRequest, kernels: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = vm.write_vision_checkpoint(tmp_path_factory.mktemp("vision"), vm.VISION_MODELS[request.param])
    with loaded(folder, kernels) as model:
        yield Case(request.param, model)


def stages(case: Case) -> dict[str, Float]:
    """What the tower holds after the patch embedding, the first and the last layer, and its result."""
    encoding, found = case.tower.start(case.golden["pixels"]), {}
    seen: list[Float] = []
    while encoding.result is None:
        encoding.advance(1)
        seen.append(encoding.hidden.copy())
        # Patches are complete once a pass (that of the first layer's keys) leaves them as they are.
        if "embedded" not in found and len(seen) > 1 and np.array_equal(seen[-1], seen[-2]):
            found["embedded"] = seen[-1]
        if encoding.num_layers_done == 1:
            found.setdefault("first_block", seen[-1])
    return {**found, "last_block": seen[-1], "rows": encoding.result}


def test_every_golden_file_belongs_to_its_weights() -> None:
    for name, model in vm.VISION_MODELS.items():
        recorded = float(gm.load_golden(gm.GOLDEN / "vision" / f"{name}.npz")["fingerprint"][0])
        assert gm.fingerprint(vm.draw_files(model)) == pytest.approx(recorded, rel=1e-9), name


def test_stages_of_the_tower(case: Case) -> None:
    found = stages(case)
    assert set(found) == {"embedded", "first_block", "last_block", "rows"}
    for name, value in found.items():
        assert error(value, case.golden[name]) <= TOLERANCE, name


def test_a_tower_in_small_pieces_gives_the_same_bits(case: Case) -> None:
    np.testing.assert_array_equal(encode(case.tower, case.golden["pixels"], 1), case.rows)


def test_logits_of_the_whole_sequence(case: Case) -> None:
    assert error(logits(case, case.ids, case.positions, [len(case.ids)]), case.golden["logits"]) <= TOLERANCE


def test_decoding_after_a_picture(case: Case) -> None:
    """Greedy tokens, one row per pass: the position follows the rows' own, not the length of the cache."""
    ids = np.concatenate([case.ids, case.golden["decode"]])
    passes = list(range(len(case.ids), len(ids) + 1))
    found = logits(case, ids, case.positions, passes)[len(case.ids) - 1 :]
    assert error(found[1:], case.golden["decode_logits"]) <= TOLERANCE
    np.testing.assert_array_equal(found[:-1].argmax(axis=1), case.golden["decode"])


@pytest.mark.parametrize("chunk", [1, 5])
def test_chunks_that_cut_a_picture_give_the_same_bits(case: Case, chunk: int) -> None:
    length = len(case.ids)
    whole = logits(case, case.ids, case.positions, [length])
    chunks = [*range(chunk, length, chunk), length]
    np.testing.assert_array_equal(logits(case, case.ids, case.positions, chunks), whole)
    np.testing.assert_array_equal(logits(case, case.ids, case.positions, chunks, beside=3), whole)


def test_positions_that_count_on_are_noticed(case: Case) -> None:
    ids, right = np.concatenate([case.ids, case.golden["decode"]]), case.positions
    counted = np.arange(len(ids), dtype=np.int32)
    expected, wrong = (logits(case, ids, positions, [len(ids)]) for positions in (right, counted))
    assert error(expected, case.golden["sequential_logits"]) > FAR
    assert error(wrong, case.golden["sequential_logits"]) <= TOLERANCE


def test_norms_before_the_sublayers_are_noticed(case: Case) -> None:
    found = stages(case)
    for name in ("first_block", "last_block", "rows"):
        assert error(found[name], case.golden[f"pre_norm_{name}"]) > FAR, name


def test_a_picture_file_gives_the_recorded_pixels(case: Case) -> None:
    """Resized as the original does: bicubic, antialiased, whatever the aspect ratio."""
    decoder = ImageDecoder(case.tiny.image_size)
    try:
        pixels = decoder.decode(encode_picture(vm.draw_picture(case.tiny)))
    finally:
        decoder.close()
    np.testing.assert_array_equal(pixels, case.golden["pixels"])
    assert error(case.rows, case.golden["no_antialias_rows"]) > FAR


def test_parameters_of_the_published_model() -> None:
    config = SHAPES["glm-4v-9b"]
    assert num_parameters(config) == 13_906_320_896
    layers = (tensor for name, tensor in model_tensors(config).items() if name.startswith("vision.layers."))
    assert sum(int(np.prod(tensor.shape)) for tensor in layers) == 4_279_387_392
