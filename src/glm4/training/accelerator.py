"""Several processes: the shipped files for `accelerate launch`, and the command line that starts it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from glm4.errors import InvalidRequestError
from glm4.training.config import TrainingConfig

_FOLDER = "accelerators"


def accelerators() -> list[str]:
    """Names of the shipped files."""
    folder = resources.files("glm4.training").joinpath(_FOLDER)
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def accelerator_file(name: str) -> Path:
    """The file that a name or path means.

    Raises:
        InvalidRequestError: there is neither.
    """
    if name in accelerators():
        return Path(str(resources.files("glm4.training").joinpath(_FOLDER).joinpath(f"{name}.yaml")))
    path = Path(name).expanduser()
    if not path.is_file():
        raise InvalidRequestError(
            f"accelerator {name!r} is neither a file nor one of {', '.join(accelerators())}", param="accelerator"
        )
    return path


def launch_command(config: TrainingConfig, processes: int | None, arguments: Sequence[str]) -> list[str]:
    """The command line that runs `glm4` with these arguments in several processes.

    Args:
        processes: None is one for each GPU.

    Raises:
        InvalidRequestError: there is no such file, or nothing to divide the work among.
    """
    file = accelerator_file(config.accelerator)
    if processes is None:
        import torch

        processes = torch.cuda.device_count()
        if processes < 1:
            raise InvalidRequestError(
                "there is no GPU here, so say how many processes there are to be: --processes", param="accelerator"
            )
    if config.device == "cpu":  # accelerate starts several processes without a GPU through MPI only
        launch = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    else:
        launch = ["accelerate.commands.launch", "--config_file", str(file), "--num_processes", str(processes)]
    return [sys.executable, "-m", *launch, "-m", "glm4", *arguments]
