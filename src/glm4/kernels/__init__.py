"""Compute kernels: `native` (C++, chosen instruction set) and `reference` (NumPy, the specification of each kernel).

Use `get_kernels()`; nothing above this layer imports the two modules directly.
"""

from __future__ import annotations

import os
import warnings

from glm4.errors import KernelError
from glm4.kernels.base import Kernels
from glm4.kernels.formats import FORMATS, PackedWeight, WeightFormat, packed_nbytes, random_packed

__all__ = ["FORMATS", "Kernels", "PackedWeight", "WeightFormat", "get_kernels", "packed_nbytes", "random_packed"]


def get_kernels(name: str = "auto") -> Kernels:
    """The kernel set "native" or "reference"; "auto" is GLM4_KERNELS if set, else native if it is built.

    Raises:
        KernelError: unknown name, "native" requested but not built, or GLM4_ISA names an unusable instruction set.
    """
    if name == "auto":
        name = os.environ.get("GLM4_KERNELS") or "auto"
    if name == "reference":
        from glm4.kernels.reference import REFERENCE

        return REFERENCE
    if name not in ("auto", "native"):
        raise KernelError(f"unknown kernel set {name!r} (GLM4_KERNELS); choose native, reference or auto")
    try:
        from glm4.kernels.native import native_kernels
    except ImportError as error:
        if name == "native":
            raise KernelError(
                f"the compiled kernels cannot be loaded ({error}); reinstall with: pip install ."
            ) from error
        warnings.warn(
            f"the compiled kernels cannot be loaded ({error}); using NumPy, which is many times slower. "
            "Reinstall with: pip install .",
            RuntimeWarning,
            stacklevel=2,
        )
        return get_kernels("reference")
    return native_kernels()
