"""The memory estimate against real processes: what `glm4 plan` says and what the system counts, within a tenth."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import memory
from glm4.kernels import get_kernels
from glm4.model.shapes import SHAPES

CASES = [
    pytest.param("smoke", 1024, marks=pytest.mark.smoke),
    pytest.param("smoke", 6000, marks=pytest.mark.smoke),
    pytest.param("starter", 2048, marks=pytest.mark.starter),
]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory differently")
@pytest.mark.parametrize(("model", "context"), CASES)
def test_the_plan_is_within_a_tenth_of_the_peak(model: str, context: int) -> None:
    peaks = memory.model_peaks(model, context, get_kernels("native").num_threads())
    assert [peak.name.rsplit(", ")[-1] for peak in peaks] == ["first start", "later start"]
    for peak in peaks:
        assert peak.planned is not None
        assert 0.9 < peak.planned / peak.measured < 1.1, peak


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory differently")
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_pictures_are_in_the_plan(dtype: str) -> None:
    """GLM-4V in full width with few layers, quantized while loading and asked about more pictures than it keeps."""
    shape = SHAPES["glm-4v-9b"]
    assert shape.vision is not None
    tower = replace(shape.vision, num_hidden_layers=2, begin_id=1, end_id=2)
    config = replace(shape, vocab_size=8192, num_hidden_layers=2, vision=tower)
    peak = memory.original_peak("mid-size", config, dtype, 2048, 2, get_kernels("native").num_threads())
    assert peak.planned is not None
    assert 0.9 < peak.planned / peak.measured < 1.1, peak
