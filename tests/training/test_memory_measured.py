"""The estimate of training's memory against processes that train, and its counts against PEFT's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import train_memory
from tiny import tiny_model, write_folder

pytestmark = pytest.mark.train

pytest.importorskip("torch")

# Wide enough that what is planned is not all libraries, whose size differs between machines.
SHAPE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "head_dim": 64}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_folder(tmp_path_factory.mktemp("m"), tiny_model(**SHAPE)))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory differently")
@pytest.mark.parametrize("case", ["lora", "lora, kept", "ptuning_v2", "full"])
def test_the_plan_is_near_the_peak(case: str, model: str) -> None:
    found = train_memory.peak(case, model, 1024, 4)
    assert 0.8 < found.ratio < 1.3, found


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory differently")
def test_the_difference_of_two_plans_is_that_of_the_peaks(model: str) -> None:
    """What checkpointing saves; libraries cancel out."""
    kept, recomputed = (train_memory.peak(case, model, 1024, 4) for case in ("lora, kept", "lora"))
    measured = kept.measured - recomputed.measured
    planned = kept.planned.total - recomputed.planned.total
    assert 0.7 < planned / measured < 1.4, (kept, recomputed)
