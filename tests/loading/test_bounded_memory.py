"""A checkpoint in glm-4v-9b's own layout is quantized while loading: its files do not stay in this process's memory."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import sparse_checkpoint
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.kernels import get_kernels
from glm4.loading import weights
from glm4.model.precision import PRECISIONS
from glm4.model.shapes import SHAPES
from glm4.model.tensors import num_parameters

GLM_4V = SHAPES["glm-4v-9b"]
assert GLM_4V.vision is not None
TOWER = replace(GLM_4V.vision, num_hidden_layers=2, hidden_size=448, num_attention_heads=4, intermediate_size=3840)
CONFIG = replace(
    GLM_4V, vocab_size=20_000, hidden_size=512, intermediate_size=1712, num_hidden_layers=2, num_attention_heads=4,
    vision=replace(TOWER, begin_id=1, end_id=2),
)  # fmt: skip


def test_the_full_shape_is_written_without_taking_room(tmp_path: Path) -> None:
    assert sparse_checkpoint.write_sparse(tmp_path, GLM_4V) == 2 * 13_906_320_896
    assert sum(512 * file.stat().st_blocks for file in tmp_path.iterdir()) < 4 << 20
    assert len(list(tmp_path.glob("*.safetensors"))) == 6
    with open_checkpoint(tmp_path) as checkpoint:
        checkpoint.check()
        assert checkpoint.variant.name == "glm-4v-9b"
        assert checkpoint.config == replace(GLM_4V, eos_token_ids=())


def resident(folder: Path) -> int:
    """Bytes of a folder's files in this process's memory."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, *rest = line.split()
        if not key.endswith(":"):  # the line of another mapping
            ours = str(folder) in line
        elif ours and key == "Rss:":
            total += int(rest[0]) << 10
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads /proc")
@pytest.mark.parametrize("half_split", [False, True], ids=["by slabs", "rotary rows whole"])
@pytest.mark.parametrize("dtype", [pytest.param("int8", marks=pytest.mark.slow), "int4"])
def test_pages_that_were_read_are_released(
    tmp_path: Path, dtype: str, half_split: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "SLAB_NBYTES", 1 << 20)
    config = replace(CONFIG, rotary_half_split=half_split)
    nbytes = sparse_checkpoint.write_sparse(tmp_path, config, 16 << 20)
    assert nbytes == 2 * num_parameters(config) > 80 << 20
    most = 0

    def watch(label: str, done: float, total: float) -> None:
        nonlocal most
        most = max(most, resident(tmp_path))

    with open_checkpoint(tmp_path) as checkpoint:
        load = checkpoint.source.read_rows
        load("transformer.embedding.word_embeddings.weight", 0, 1)
        view = checkpoint.source._location("transformer.embedding.word_embeddings.weight").file.bytes_at(0, 8 << 20)  # type: ignore[attr-defined]
        assert view.max() > 0
        assert resident(tmp_path) >= 4 << 20, "nothing is seen"
        del view
        weights.load_model(checkpoint, PRECISIONS[dtype], get_kernels(), watch)
        # What a slab is read from, and pages at the edges of tensors.
        assert most < 16 << 20
        assert resident(tmp_path) < 4 << 20
