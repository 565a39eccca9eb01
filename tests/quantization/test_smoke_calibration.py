"""End to end on real weights: the smoke model is closer to float32 calibrated than rounded plainly, in both formats."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import quality
import quality_text
from glm4 import hub
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.errors import ModelNotFoundError
from glm4.kernels import get_kernels
from glm4.quantization.calibration_text import calibration_text
from glm4.requests.processor import Processor
from quality_model import Packed, off_grid, packed_model


@pytest.mark.smoke
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_calibration_lowers_the_divergence_on_other_text() -> None:
    try:
        path = hub.resolve("smoke", allow_download="CI" in os.environ)
    except ModelNotFoundError as error:
        pytest.skip(str(error))
    kernels = get_kernels()
    with open_checkpoint(path) as checkpoint:
        text = Processor.load(checkpoint)
        sources = [quality_text.SOURCES[kind] for kind in ("english", "code")]
        documents = [quality_text._documents(text, source, 1, quality.SEQUENCE) for source in sources]
        calibration = calibration_text(checkpoint, text, 4)
        tensors = off_grid(checkpoint)
    ids = np.concatenate(documents).reshape(-1)
    reference = quality.Contender.of("fp32", 32.0, *quality.run_model(tensors, ids, kernels))

    def pack(base: str) -> Packed:
        return packed_model(base, tensors, kernels, lambda: calibration)

    contenders = []
    for name, most in (("int8", 8.2), ("int8-cal", 8.2), ("int4", 4.6), ("int4-cal", 4.6)):
        source, total = quality.build(name, tensors, None, kernels, pack)
        assert total.bits_per_weight < most
        contenders.append(quality.Contender.of(name, total.bits_per_weight, *quality.run_model(source, ids, kernels)))
    scores = quality.score(reference, contenders, ids, kernels)
    for plain, calibrated in (scores[:2], scores[2:]):
        assert calibrated.kld < 0.9 * plain.kld, calibrated.format
