"""Where an adapter is in what a user names (a folder, a training run, a checkpoint of one), and what kind it is."""

from __future__ import annotations

import re
from pathlib import Path

from glm4.checkpoints.json_file import read_json_object
from glm4.checkpoints.peft_adapter import CONFIG_FILE, MAX_CONFIG_BYTES
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


def adapter_type(folder: Path) -> str:
    """What PEFT calls the kind of adapter in a folder: "LORA", "PREFIX_TUNING" …; empty if the file does not say.

    Raises:
        CheckpointError: there is no readable configuration.
    """
    kind = read_json_object(folder / CONFIG_FILE, MAX_CONFIG_BYTES).get("peft_type")
    return kind if isinstance(kind, str) else ""
