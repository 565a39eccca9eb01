"""Fixtures: the compiled kernels on every instruction set of this machine, and the NumPy twin."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from glm4.kernels import _native, get_kernels
from glm4.kernels.base import Kernels


@pytest.fixture(params=_native.isas())
def native(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    """The compiled kernels, once per instruction set usable here, on three threads."""
    kernels = get_kernels("native")
    isa, threads = kernels.isa(), kernels.num_threads()
    _native.set_isa(request.param)
    kernels.set_num_threads(3)
    yield kernels
    _native.set_isa(isa)
    kernels.set_num_threads(threads)


@pytest.fixture(params=["reference", *_native.isas()])
def any_kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    """The NumPy twin, and the compiled kernels once per instruction set."""
    if request.param == "reference":
        yield get_kernels("reference")
        return
    kernels = get_kernels("native")
    isa = kernels.isa()
    _native.set_isa(request.param)
    yield kernels
    _native.set_isa(isa)


@pytest.fixture(scope="session")
def reference() -> Kernels:
    return get_kernels("reference")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)
