"""Torch computes with one thread in these tests: models are so small that a second one is only waited for."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("train") is not None:
        import torch

        torch.set_num_threads(1)
