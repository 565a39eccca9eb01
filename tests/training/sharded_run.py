"""What `test_processes` runs in two processes: FSDP 2 of torch around our module, without accelerate, which has it for
GPUs only. Trains some steps, writes and reads the parts of a checkpoint, and compares with plain training."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from glm4.backends.transformers.weights import load_model
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.training import checkpoints
from glm4.training.config import TrainingConfig
from glm4.training.methods.lora import add_lora, save_lora
from glm4.training.objective import LossModel, SupervisedObjective
from glm4.training.quiet import quiet_libraries
from glm4.training.sharding import gathered, optimizer_state, restore_optimizer

STEPS = 4


def make(base: Path) -> LossModel:
    with open_checkpoint(base) as checkpoint:
        model: Any = load_model(checkpoint, torch.device("cpu"), "fp32")
    torch.manual_seed(0)
    return LossModel(add_lora(model, TrainingConfig()), SupervisedObjective(lambda rows: {}))


def shard(module: LossModel) -> LossModel:
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for layer in module.model.get_base_model().model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


def train(module: LossModel, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """The same batch in every process, so that their mean is that of one."""
    ids = torch.arange(24).reshape(2, 12) * 5 % 200
    found = []
    for _ in range(steps):
        batch = {"input_ids": ids, "position_ids": torch.arange(12).expand(2, 12), "loss_mask": ids > 30}
        loss = module(**batch) / 20
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss))
    return found


def adamw(module: LossModel) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2)


def main(base: Path, folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    first = torch.distributed.get_rank() == 0
    plain = make(base)
    expected = train(plain, adamw(plain), 2 * STEPS)
    module = shard(make(base))
    optimizer = adamw(module)
    losses = train(module, optimizer, STEPS)
    trainer: Any = SimpleNamespace(model=module, args=SimpleNamespace(should_save=first))
    weights = checkpoints.trainable_tensors(trainer)
    state = optimizer_state(module, optimizer)
    with gathered(module):
        if first:
            save_lora(module.model, folder / "adapter", "base")
    if first:
        folder.mkdir(exist_ok=True)
        save_file(weights, folder / checkpoints.WEIGHTS)
        torch.save(state, folder / "optimizer.pt")
    torch.distributed.barrier()
    again = shard(make(base))
    checkpoints.load_weights(SimpleNamespace(model=again), folder)  # type: ignore[arg-type]
    optimizer = adamw(again)
    restore_optimizer(again, optimizer, torch.load(folder / "optimizer.pt", weights_only=True) if first else {})
    losses += train(again, optimizer, STEPS)
    if first:
        print(json.dumps({"expected": expected, "losses": losses}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    with quiet_libraries():
        main(Path(sys.argv[1]), Path(sys.argv[2]))
