"""`MergedCheckpoint`: a model with an adapter folded into its weights, computed as they are read."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from glm4.checkpoints.adapter_folder import adapter_type
from glm4.checkpoints.checkpoint import Checkpoint
from glm4.checkpoints.peft_adapter import CONFIG_FILE, AdapterFile, check_base
from glm4.checkpoints.tensor_source import Float32
from glm4.errors import InvalidRequestError, TensorError, UnsupportedModelError

_LAYERS = "layers."


@dataclass(frozen=True)
class MergedCheckpoint(Checkpoint):
    """A checkpoint whose matrices are W + B A or, with DoRA, the same with rows of the adapter's norms.

    Everything else is the base's. Sums are computed in float32, for the rows that are read and no others. The base and
    the adapter must stay open, and are not closed with it.

    Attributes:
        base: the model without the adapter.
        adapter: opened for it.
    """

    base: Checkpoint = field(kw_only=True, repr=False)
    adapter: AdapterFile = field(kw_only=True, repr=False)

    @classmethod
    def of(cls, base: Checkpoint, adapter: AdapterFile) -> MergedCheckpoint:
        """The two as one model."""
        return cls(**{each.name: getattr(base, each.name) for each in fields(base)}, base=base, adapter=adapter)

    def load(self, name: str) -> Float32:
        """See `Checkpoint.load`.

        Raises:
            TensorError: also if the sum is not finite.
        """
        return self._merged(name, self.base.load(name), 0)

    def load_rows(self, name: str, start: int, stop: int) -> Float32:
        """See `Checkpoint.load_rows`, and `load`."""
        return self._merged(name, self.base.load_rows(name, start, stop), start)

    def has_codes(self, name: str) -> bool:
        """False: codes of the file are the base's."""
        return False

    def block_type(self, name: str) -> str | None:
        """None: blocks of the file are the base's."""
        return None

    def _merged(self, name: str, rows: Float32, start: int) -> Float32:
        site = _site(name)
        if site is None or site not in self.adapter.shapes:
            return rows
        stop = start + len(rows)
        a, b = self.adapter.load(*site)
        used = self.adapter.ranks_of(*site, start, stop)
        with np.errstate(over="ignore", invalid="ignore"):  # checked below
            rows += b[start:stop, used] @ a[used]
            if self.adapter.dora:
                wanted = self.adapter.magnitudes(*site)[start:stop]
                changed = ~np.isnan(wanted)
                rows[changed] *= (wanted[changed] / np.linalg.norm(rows[changed], axis=1))[:, None]
        if not np.isfinite(rows).all():
            raise TensorError(
                f"{self.adapter.path}: added to {name} of {self.path} it gives numbers that are not finite; the "
                "adapter is damaged, or was trained on another model"
            )
        return rows


def open_for_merging(folder: Path, base: Checkpoint) -> AdapterFile:
    """Open an adapter that can be folded into a model.

    Raises:
        InvalidRequestError: the model is packed, so it has no weights to add to.
        UnsupportedModelError: it is a prefix, was trained on another model, or changes what is not supported.
        CheckpointError, TensorError: as `AdapterFile`.
    """
    if base.packed is not None:
        raise InvalidRequestError(
            f"{base.path} is packed as {base.packed.precision.name}, and adapters are added to original weights; merge "
            "with the original model, then quantize the result",
            param="model",
        )
    if (folder / CONFIG_FILE).is_file() and adapter_type(folder) == "PREFIX_TUNING":
        raise UnsupportedModelError(
            f"{folder} is a prefix (P-Tuning v2): keys and values in front of every layer, which are not part of any "
            f"matrix and cannot be merged; use it beside the model: glm4 chat -m MODEL --lora {folder}"
        )
    adapter = AdapterFile(folder, base.config, base.model_type, dora=True)
    try:
        check_base(folder, adapter.base, base.variant)
    except BaseException:
        adapter.close()
        raise
    return adapter


def _site(name: str) -> tuple[int, str] | None:
    """The layer and matrix that a canonical tensor is; None outside the layers of the language model."""
    if not name.startswith(_LAYERS):
        return None
    index, _, key = name.removeprefix(_LAYERS).partition(".")
    return int(index), key
