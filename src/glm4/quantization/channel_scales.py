"""Rescales input channels of a layer's matrices before they are rounded, so that no channel is lost beside another.

Activations are quantized 32 channels under one scale, weights likewise, so loud channels take precision from quiet ones
on one side and quiet channels' large weights on the other. A channel divided by a factor s in what produces it, and
multiplied by s in the matrix that reads it, leaves the layer's function as it is ("SmoothQuant"):

    norm weight before qkv, gate_up / s      columns of qkv, gate_up * s
    rows of the up half of gate_up / s       columns of down * s         (swiglu(gate, up) is linear in up)

The inputs of `o` are left alone: heads that share values would have to share factors. So is the head: embeddings of
texts are the outputs of the final norm.

Nor is a matrix that the file holds as 4-bit codes, when it becomes int4: it lies on that grid, and would leave it.

The factors belong to the checkpoint, for LoRA adapters that were trained on the original channels (`model/lora.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

# s = (root mean square of the channel / geometric mean over all channels) to this power, by weight format. A larger
# one is better for activations; int4's weights, 32 columns on one grid of 16 values, bear less. On the smoke model the
# mean KL divergence of int8 as it runs is 0.0030 with the power 0.3, 0.0028 with 0.4 and 0.0031 with 0.5; that of int4
# 0.098 without factors, 0.094 with 0.25 and 0.095 with 0.4.
POWERS: Mapping[str, float] = {"int8": 0.4, "int4": 0.25}
_RESCALED = ("qkv", "gate_up", "down")
# A channel that is (almost) silent on the calibration text is not blown up without bounds.
_LOWEST, _HIGHEST = 1 / 8, 8.0


def channel_scales(energy: Float, power: float) -> Float:
    """The factors s of a matrix, float32 [K], from the sums of squares [K] of its inputs."""
    loudness = np.sqrt(energy.astype(np.float64))
    alive = loudness > 0
    if not alive.any():
        return np.ones(len(loudness), np.float32)
    mean = np.exp(np.log(loudness[alive]).mean())
    return np.asarray(np.clip((loudness / mean) ** power, _LOWEST, _HIGHEST), np.float32)


def rescale_layer(
    tensors: MutableMapping[str, Float], energy: Mapping[str, Float], power: float, fixed: Collection[str] = ()
) -> None:
    """Rescale the tensors of a layer.

    Args:
        tensors: float32, named as the fields of `LayerWeights`; the changed ones are replaced by new arrays, and the
            factors are added as "qkv_channel_scale" [H], "gate_up_channel_scale" [H] and "down_channel_scale" [F].
        energy: sums of squares of the inputs of each matrix, [K] each.
        power: of the factors, see `channel_scales`.
        fixed: matrices whose columns stay as they are; their factors are ones.
    """
    scales = {name: channel_scales(energy[name], 0 if name in fixed else power) for name in _RESCALED}
    for norm, name in (("input_layernorm", "qkv"), ("post_attention_layernorm", "gate_up")):
        tensors[norm] = tensors[norm] / scales[name]
    tensors.update({f"{name}_channel_scale": scale for name, scale in scales.items()})
    tensors["gate_up"] = tensors["gate_up"] * row_factors(tensors)[:, None]
    for name, scale in scales.items():
        tensors[name] = tensors[name] * scale


def row_factors(tensors: Mapping[str, Float]) -> Float:
    """What the rows of the original gate_up of a rescaled layer are multiplied by, float32 [2F]."""
    written = tensors["down_channel_scale"]
    return np.concatenate([np.ones_like(written), 1 / written])
