"""Parameters and optimizer states that FSDP 2 or DeepSpeed's ZeRO-3 has divided among processes, as whole tensors.

Every process takes part in each of these functions. Plain parameters pass through.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch


@contextlib.contextmanager
def gathered(model: torch.nn.Module) -> Iterator[None]:
    """The trained parameters are whole while the block runs: of FSDP with all else in the same layers."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "unshard")]
    with _gathered(trained):
        for layer in layers:
            layer.unshard()
        try:
            yield
        finally:
            for layer in layers:
                layer.reshard()


@contextlib.contextmanager
def _gathered(parameters: Sequence[Any]) -> Iterator[None]:
    """The same of parameters that ZeRO-3 has divided."""
    divided = [parameter for parameter in parameters if hasattr(parameter, "ds_status")]
    if not divided:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(divided):
        yield


def whole_tensor(parameter: Any) -> torch.Tensor:
    """A copy of a parameter's numbers."""
    with _gathered([parameter]):
        data: Any = parameter.detach()
        whole: torch.Tensor = data.full_tensor() if hasattr(data, "full_tensor") else data.clone()
        return whole


def fill(parameter: Any, numbers: torch.Tensor) -> None:
    """Give a parameter (plain, or FSDP's) the numbers of a whole tensor that every process has."""
    data: Any = parameter.detach()
    if hasattr(data, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        numbers = distribute_tensor(numbers.to(data.device), data.device_mesh, data.placements)
    data.copy_(numbers)


def optimizer_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """FSDP 2: the whole state, by names of parameters, in the memory of the first process; {} in the others."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_optimizer_state_dict(model, optimizer, options=options))


def restore_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """FSDP 2: the reverse; the first process has the state, and sends it to the others."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(model, optimizer, state, options=options)
