"""Where torch computes, in which format, and how much memory is free there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from glm4.backends.transformers.options import TransformersOptions
from glm4.errors import InvalidRequestError, OutOfMemoryError
from glm4.system.memory import available_memory, return_free_memory

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def choose_device(wanted: str) -> torch.device:
    """The device that the option `device` means.

    Raises:
        InvalidRequestError: this machine does not have it.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    there = ["cpu", *[f"cuda:{index}" for index in range(count)], *["mps"] * mps]
    if wanted == "auto":
        return torch.device("cuda:0" if count else "mps" if mps else "cpu")
    name = "cuda:0" if wanted == "cuda" else wanted
    if name not in there:
        reason = "" if count or not name.startswith("cuda") else _why_no_cuda()
        raise InvalidRequestError(
            f"there is no device {wanted!r} here{reason}; there is {', '.join(there)}", param="device"
        )
    return torch.device(name)


def check_device(options: TransformersOptions) -> None:
    """Refuse a device that is not there; see `choose_device`."""
    choose_device(options.device)


def _why_no_cuda() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return f" (torch {torch.__version__} is built without CUDA and ROCm)"
    return " (torch finds no GPU or no driver)"


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated on the device now."""
    if device.type == "cuda":
        cached = int(torch.cuda.memory_reserved(device)) - int(torch.cuda.memory_allocated(device))
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    if device.type == "mps":
        return max(0, int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory()))
    return available_memory()


def choose_dtype(wanted: str, device: torch.device, num_parameters: int) -> str:
    """ "fp32" or "bf16", such that the weights fit.

    Raises:
        OutOfMemoryError: they do not.
    """
    free = free_memory(device)
    if wanted == "auto":
        wanted = "fp32" if device.type == "cpu" and 4 * num_parameters < free else "bf16"
    need = num_parameters * TORCH_DTYPES[wanted].itemsize
    if need >= free:
        advice = "use bf16, " if wanted == "fp32" else ""
        raise OutOfMemoryError(
            f"the weights in {wanted} need {need / 1e9:.1f} GB and {device} has {free / 1e9:.1f} GB free; {advice}"
            "close other programs, or use the local backend with int4"
        )
    return wanted


def is_out_of_memory(error: BaseException) -> bool:
    """True for what torch raises if memory is short; on the CPU and on MPS that is a plain RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        text in str(error) for text in ("can't allocate memory", "not enough memory", "out of memory")
    )


@contextmanager
def memory_errors(what: str, device: torch.device) -> Iterator[None]:
    """Turn torch's errors for lack of memory into ours.

    Raises:
        OutOfMemoryError: with `what` for the subject.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"{what} does not fit into the memory of {device}") from None


def release_memory(device: torch.device) -> None:
    """Return what was freed to the system; torch keeps it for later allocations otherwise."""
    empty: Callable[[], None] | None = {"cuda": torch.cuda.empty_cache, "mps": torch.mps.empty_cache}.get(device.type)
    if empty is not None:
        empty()
    return_free_memory()
