"""Rescales input channels of a layer's matrices before rounding, so that large channels do not drown small ones.

Activations are quantized with one scale per 32 channels, weights likewise, so large channels take precision from small
ones on one side, and large weights of small channels on the other. A channel divided by a factor s in what produces
it, and multiplied by s in the matrix that reads it, leaves the layer's function unchanged ("SmoothQuant"):

    norm weight before qkv, gate_up / s      columns of qkv, gate_up * s
    rows of the up half of gate_up / s       columns of down * s         (swiglu(gate, up) is linear in up)

The inputs of `o` are not rescaled: heads that share values would have to share factors. Nor is the head: text
embeddings are the outputs of the final norm.

Nor is an int4 matrix that is 4-bit codes in the file: it is on that grid, and rescaling would take it off.

The checkpoint stores the factors, for LoRA adapters that were trained on the original channels (`model/lora.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

# s = (root mean square of the channel / geometric mean over all channels) to this power, by weight format. A larger
# one is better for activations; int4's weights, 32 columns on one grid of 16 values, tolerate less. On the smoke model
# the mean KL divergence of int8 as it runs is 0.0030 with the power 0.3, 0.0028 with 0.4 and 0.0031 with 0.5; that of
# int4 0.098 without factors, 0.094 with 0.25 and 0.095 with 0.4.
POWERS: Mapping[str, float] = {"int8": 0.4, "int4": 0.25}
_RESCALED = ("qkv", "gate_up", "down")
# Bounds the factors of channels that are (almost) zero on the calibration text.
_LOWEST, _HIGHEST = 1 / 8, 8.0


def channel_scales(energy: Float, power: float) -> Float:
    """The factors s of a matrix, float32 [K], from the sums of squares [K] of its inputs."""
    rms = np.sqrt(energy.astype(np.float64))
    alive = rms > 0
    if not alive.any():
        return np.ones(len(rms), np.float32)
    mean = np.exp(np.log(rms[alive]).mean())
    return np.asarray(np.clip((rms / mean) ** power, _LOWEST, _HIGHEST), np.float32)


def rescale_layer(
    tensors: MutableMapping[str, Float], energy: Mapping[str, Float], power: float, fixed: Collection[str] = ()
) -> None:
    """Rescale the tensors of a layer.

    Args:
        tensors: float32, named as the fields of `LayerWeights`; changed tensors are replaced by new arrays, and the
            factors are added as "qkv_channel_scale" [H], "gate_up_channel_scale" [H] and "down_channel_scale" [F].
        energy: sums of squares of the inputs of each matrix, [K] each.
        power: of the factors, see `channel_scales`.
        fixed: matrices whose columns stay unchanged; their factors are ones.
    """
    scales = {name: channel_scales(energy[name], 0 if name in fixed else power) for name in _RESCALED}
    for norm, name in (("input_layernorm", "qkv"), ("post_attention_layernorm", "gate_up")):
        tensors[norm] = tensors[norm] / scales[name]
    tensors.update({f"{name}_channel_scale": scale for name, scale in scales.items()})
    tensors["gate_up"] = tensors["gate_up"] * row_factors(tensors)[:, None]
    for name, scale in scales.items():
        tensors[name] = tensors[name] * scale


def row_factors(tensors: Mapping[str, Float]) -> Float:
    """The factors of the rows of a rescaled layer's original gate_up, float32 [2F]."""
    written = tensors["down_channel_scale"]
    return np.concatenate([np.ones_like(written), 1 / written])
