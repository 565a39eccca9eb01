"""Where an adapter is in what a user names: its folder, a training run, or a checkpoint of one."""

from __future__ import annotations

import re
from pathlib import Path

from glm4.checkpoints.peft_adapter import CONFIG_FILE
from glm4.errors import CheckpointError

_CHECKPOINT = re.compile(r"checkpoint-([0-9]{1,12})", re.ASCII)


def find_adapter(path: Path) -> Path:
    """The folder itself if it holds an adapter, as a finished run does; else the newest checkpoint in it that does.

    Raises:
        CheckpointError: there is none.
    """
    try:
        if (path / CONFIG_FILE).is_file():
            return path
        steps = [(int(found[1]), entry) for entry in path.iterdir() if (found := _CHECKPOINT.fullmatch(entry.name))]
        for _, folder in sorted(steps, reverse=True):
            if (folder / CONFIG_FILE).is_file():
                return folder
    except FileNotFoundError:
        raise CheckpointError(f"there is no adapter at {path}: there is no such folder") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise CheckpointError(f"cannot access {path}: {error}") from error
    raise CheckpointError(
        f"there is no adapter at {path}: neither it nor a checkpoint-<step> in it has an {CONFIG_FILE}"
    )
