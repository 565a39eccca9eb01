"""`MergedCheckpoint`: a model with an adapter folded into its weights, computed as they are read."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from glm4.checkpoints.adapter_folder import adapter_type
from glm4.checkpoints.checkpoint import Checkpoint
from glm4.checkpoints.peft_adapter import AdapterFile, check_base
from glm4.checkpoints.peft_prefix import PREFIX_TYPE
from glm4.checkpoints.tensor_source import Float32
from glm4.errors import InvalidRequestError, TensorError, UnsupportedModelError

_LAYERS = "layers."


@dataclass(frozen=True)
class MergedCheckpoint(Checkpoint):
    """A checkpoint whose matrices are W + B A or, with DoRA, the same with rows of the adapter's norms.

    What the adapter has in full is the adapter's, everything else is the base's. Sums are computed in float32, for the
    rows that are read and no others. The base and the adapter must stay open, and are not closed with it.

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
        stop, vision = start + len(rows), self.adapter.vision
        if vision is not None and name in vision.replaced:
            rows = vision.read(name)[start:stop]
        elif (factors := factors_of(self.adapter, name, start, stop)) is not None:
            with np.errstate(over="ignore", invalid="ignore"):  # checked below
                rows += factors.b @ factors.a
                if (wanted := factors.norms) is not None:
                    changed = ~np.isnan(wanted)
                    rows[changed] *= (wanted[changed] / np.linalg.norm(rows[changed], axis=1))[:, None]
        else:
            return rows
        if not np.isfinite(rows).all():
            raise TensorError(
                f"{self.adapter.path}: added to {name} of {self.path} it gives numbers that are not finite; the "
                "adapter is damaged, or was trained on another model"
            )
        return rows


@dataclass(frozen=True, eq=False)
class Factors:
    """What is added to some rows of a matrix: `b @ a`, of the ranks that change them.

    Attributes:
        a: [rank, columns].
        b: [rows, rank], scale included.
        norms: of DoRA, what the norms of the rows become: [rows], NaN for rows left as they are.
    """

    a: Float32
    b: Float32
    norms: Float32 | None


def factors_of(adapter: AdapterFile, name: str, start: int, stop: int) -> Factors | None:
    """The factors for rows start..stop-1 of a canonical matrix; None if it has none."""
    vision, site = adapter.vision, _site(name)
    if vision is not None and name in vision.matrices:
        a, b, norms = vision.factors(name)
        return Factors(a, b[start:stop], None if norms is None else norms[start:stop])
    if site is None or site not in adapter.shapes:
        return None
    a, b = adapter.load(*site)
    used = adapter.ranks_of(*site, start, stop)
    return Factors(a[used], b[start:stop, used], adapter.magnitudes(*site)[start:stop] if adapter.dora else None)


def adapted_matrices(adapter: AdapterFile) -> list[str]:
    """Canonical names of the matrices that have factors."""
    layers = [f"{_LAYERS}{layer}.{key}" for layer, key in sorted(adapter.shapes)]
    return layers + (sorted(adapter.vision.matrices) if adapter.vision is not None else [])


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
    if adapter_type(folder) == PREFIX_TYPE:
        raise UnsupportedModelError(
            f"{folder} is a prefix (P-Tuning v2): keys and values in front of every layer, which are not part of any "
            f"matrix and cannot be merged; use it beside the model: glm4 chat -m MODEL --lora {folder}"
        )
    adapter = AdapterFile(folder, base.config, base.model_type, merging=True)
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
