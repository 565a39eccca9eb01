"""Makes packed checkpoints of tiny models in every precision, for tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm4.checkpoints.checkpoint import Checkpoint, open_checkpoint
from glm4.checkpoints.packed_format import packed_shapes
from glm4.kernels.base import Kernels
from glm4.kernels.formats import PackedWeight
from glm4.loading.packed_folder import Part, write_packed_checkpoint
from glm4.loading.weights import load_model
from glm4.model.precision import PRECISIONS, named_precision
from glm4.model.tensors import EXTRAS, FREQUENT_HEAD, FREQUENT_TOKENS, Extras, head_name
from glm4.requests.processor import Processor

ODD: dict[str, Any] = {
    "hidden_size": 72,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 24,
    "intermediate_size": 100,
}
"""Hidden 96 and 40 rows of biases: sizes that leave partial blocks and vectors of odd lengths."""

CHANNEL_SCALES = tuple(row.name.removeprefix("layers.{i}.") for row in EXTRAS["channel_scales"].tensors)


def describe(folder: Path, **changes: Any) -> None:
    """Change keys of a packed checkpoint's quantization_config; None removes one."""
    values = json.loads((folder / "config.json").read_text())
    section = values["quantization_config"] | changes
    values["quantization_config"] = {key: value for key, value in section.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(values))


def pack_folder(
    source: Path,
    folder: Path,
    dtype: str,
    kernels: Kernels,
    channel_scales: dict[str, NDArray[np.float32]] | None = None,
    frequent: NDArray[np.float32] | None = None,
) -> Path:
    """A packed checkpoint of `source`, with the tensors packed whole, one by one.

    Args:
        channel_scales: canonical name -> values to write; all others are ones. The matrices are not rescaled.
        frequent: token ids to write; the rows beside them are always the head's first ones.
    """
    count = 0 if frequent is None else len(frequent)
    extras: Extras = {"channel_scales": channel_scales is not None, "frequent_tokens": count}
    precision = replace(PRECISIONS[dtype], extras=extras)

    def parts(checkpoint: Checkpoint) -> Iterator[Part]:
        for name, shape in packed_shapes(checkpoint.config, extras).items():
            if name.endswith(CHANNEL_SCALES):
                yield name, (channel_scales or {}).get(name, np.ones(shape, np.float32))
                continue
            if name == FREQUENT_TOKENS:
                assert frequent is not None
                yield name, frequent
                continue
            if name == FREQUENT_HEAD:
                values = checkpoint.load(head_name(checkpoint.config))[: shape[0]]
            else:
                values = checkpoint.load(name)
            yield name, values if len(shape) == 1 else kernels.pack(precision.format_of(name), values).data

    folder.mkdir(parents=True)
    with open_checkpoint(source) as checkpoint:
        text = Processor.load(checkpoint)
        write_packed_checkpoint(folder, checkpoint, text.tokenizer, precision, parts(checkpoint), "a test")
    return folder


def pack_loaded(source: Path, folder: Path, dtype: str, kernels: Kernels) -> Path:
    """A packed checkpoint of `source` as the packed cache writes it: from the weights in memory."""
    folder.mkdir(parents=True)
    with open_checkpoint(source) as checkpoint:
        precision = named_precision(dtype, checkpoint.stored_precision)
        tensors = load_model(checkpoint, precision, kernels).weights.tensors
        found = ((name, tensors[name]) for name in packed_shapes(checkpoint.config))
        parts = ((name, t.data if isinstance(t, PackedWeight) else t) for name, t in found)
        tokenizer = Processor.load(checkpoint).tokenizer
        write_packed_checkpoint(folder, checkpoint, tokenizer, precision, parts, "a test")
    return folder
