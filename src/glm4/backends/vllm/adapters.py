"""`VllmAdapters`: LoRA adapters of a vLLM engine: checked, copied, and loaded before a request may name them.

A request whose adapter cannot be read ends vLLM's engine, and the engine may read a folder again at any time. So each
adapter is copied to a folder of our own, which nobody else changes.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm4.backends.base import ModelFiles
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.checkpoints.peft_adapter import CONFIG_FILE, WEIGHT_FILE, AdapterFile
from glm4.engine.adapters import MAX_NAME_LENGTH
from glm4.engine.protocol import AdapterInfo
from glm4.errors import CheckpointError, InvalidRequestError, UnsupportedModelError

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest


@dataclass
class Loaded:
    """An adapter in the engine.

    Attributes:
        uses: requests with it that have not ended.
        unloaded: it goes with the last of them.
    """

    info: AdapterInfo
    lora: LoRARequest
    folder: Path
    uses: int = 0
    unloaded: bool = False


class VllmAdapters:
    """Not thread-safe: the backend holds its lock.

    Args:
        engine: the `LLMEngine`.
        most: adapters at once; 0 if the engine was started without.
        max_rank: the largest rank that it has room for.
    """

    def __init__(self, engine: Any, files: ModelFiles, most: int, max_rank: int) -> None:
        self._engine = engine
        self._files = files
        self._most = most
        self._max_rank = max_rank
        self._numbers = count(1)
        self._present: list[Loaded] = []

    def load(self, name: str, path: str) -> AdapterInfo:
        """See `Backend.load_adapter`."""
        self._check_name(name)
        folder = Path(tempfile.mkdtemp(prefix="glm4-adapter-"))
        try:
            info = self._copied(name, Path(path), folder)
            lora = self._added(folder, path)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._present.append(Loaded(info, lora, folder))
        return info

    def unload(self, name: str) -> None:
        """See `Backend.unload_adapter`."""
        adapter = self.find(name)
        adapter.unloaded = True
        self._drop_if_unused(adapter)

    def find(self, name: str) -> Loaded:
        """The adapter that requests may name so.

        Raises:
            InvalidRequestError: there is none; `.param` is "model", the field that names it in a request.
        """
        for adapter in self._present:
            if adapter.info.name == name and not adapter.unloaded:
                return adapter
        raise InvalidRequestError(f"there is no adapter {name!r}; load it first", param="model")

    def infos(self) -> list[AdapterInfo]:
        """The adapters that requests may name, in load order."""
        return [adapter.info for adapter in self._present if not adapter.unloaded]

    def release(self, adapter: Loaded) -> None:
        """A request that used it has ended."""
        adapter.uses -= 1
        self._drop_if_unused(adapter)

    def close(self) -> None:
        """Remove the copies."""
        for adapter in self._present:
            shutil.rmtree(adapter.folder, ignore_errors=True)
        self._present.clear()

    def _drop_if_unused(self, adapter: Loaded) -> None:
        if adapter.unloaded and not adapter.uses:
            self._present.remove(adapter)
            self._engine.remove_lora(adapter.lora.lora_int_id)
            shutil.rmtree(adapter.folder, ignore_errors=True)

    def _check_name(self, name: str) -> None:
        if not self._most:
            raise InvalidRequestError(
                "this vLLM engine was started without adapters; load the model with max_adapters=N", param="name"
            )
        if not 1 <= len(name) <= MAX_NAME_LENGTH or not name.isprintable():
            raise InvalidRequestError(
                f"an adapter's name must be 1 to {MAX_NAME_LENGTH} printable characters", param="name"
            )
        if any(info.name == name for info in self.infos()):
            raise InvalidRequestError(f"an adapter {name!r} is loaded already; unload it first", param="name")
        if len(self._present) >= self._most:  # those that only wait for their last request take their place, too
            raise InvalidRequestError(
                f"{self._most} adapters are loaded, as many as may be; unload one first", param="name"
            )

    def _copied(self, name: str, source: Path, folder: Path) -> AdapterInfo:
        """Copy an adapter, then check every name and shape of the copy."""
        _copy(source, folder)
        with open_checkpoint(self._files.path, variant=self._files.variant) as checkpoint:
            try:
                adapter = AdapterFile(folder, checkpoint.config, checkpoint.model_type)
            except CheckpointError as error:
                raise type(error)(str(error).replace(str(folder), str(source))) from None
        with adapter:
            rank = adapter.rank
        if rank > self._max_rank:
            raise UnsupportedModelError(
                f"{source} has rank {rank}; this vLLM engine has room for {self._max_rank}: load the model with a"
                " larger max_lora_rank"
            )
        return AdapterInfo(name, str(source), rank, (folder / WEIGHT_FILE).stat().st_size)

    def _added(self, folder: Path, shown: str) -> LoRARequest:
        from vllm.lora.request import LoRARequest

        number = next(self._numbers)
        # vLLM's prefix cache tells adapters apart by this name, and one of ours may come again with other weights.
        lora = LoRARequest(f"glm4-{number}", number, str(folder))
        try:
            added = self._engine.add_lora(lora)
        except Exception as error:
            raise CheckpointError(f"vLLM cannot load the adapter {shown}: {error}") from error
        if not added:
            raise CheckpointError(f"vLLM did not load the adapter {shown}; its log says why")
        return lora


def _copy(source: Path, folder: Path) -> None:
    for name in (CONFIG_FILE, WEIGHT_FILE):
        try:
            if (source / name).is_file():  # what is missing is reported by the check of the copy
                shutil.copyfile(source / name, folder / name)
        except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
            raise CheckpointError(f"cannot read {source}: {error}") from error
