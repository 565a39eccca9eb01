"""The forward pass of `model/transformer.py` as an OpenVINO graph.

Inputs, outputs and variables have the names and shapes of optimum-intel's exports, which is what openvino-genai's
pipelines take. Attention is written in the form that its conversion to paged attention recognizes. A matrix product is
named by the path of its module in Hugging Face's classes: by that, openvino-genai finds what LoRA adapters change.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from glm4.checkpoints.checkpoint import split_rotary_rows
from glm4.checkpoints.hf_layout import HfClass
from glm4.export.openvino.nodes import WeightNodes, integers
from glm4.export.openvino.weights import Scratch
from glm4.model.config import ModelConfig
from glm4.model.rotary import RotaryTable

_F32 = ov.Type.f32


class GraphBuilder:
    """Builds the model of one checkpoint.

    Args:
        banned_ids: rows of the vocabulary without a token, which are never sampled.
    """

    def __init__(self, config: ModelConfig, cls: HfClass, scratch: Scratch, banned_ids: NDArray[np.int64]) -> None:
        self._config = config
        self._cls = cls
        self._scratch = scratch
        self._banned = banned_ids
        self._nodes = WeightNodes()
        self._sinks: list[Any] = []

    def build(self) -> ov.Model:
        """The model, whose constants live as long as this object."""
        ids = _parameter([-1, -1], ov.Type.i64, "input_ids")
        mask = _parameter([-1, -1], ov.Type.i64, "attention_mask")
        positions = _parameter([-1, -1], ov.Type.i64, "position_ids")
        beams = _parameter([-1], ov.Type.i32, "beam_idx")
        table = self._nodes.matrix(self._scratch.tensor("embed_tokens"))
        h = ops.gather(table, ids, integers(0))
        rotary, causal = self._rotary(positions), _causal_mask(ids, mask)
        for index in range(self._config.num_hidden_layers):
            h = self._layer(index, h, rotary, causal, ids, beams)
        has_head = "lm_head" in self._scratch.names()
        head = self._nodes.matrix(self._scratch.tensor("lm_head")) if has_head else table
        # One product, and a sum at most: for that form the pipelines compute only the logits that they need.
        logits = self._nodes.product(self._norm(h, "norm"), head, "lm_head")
        if len(self._banned):
            bias = np.zeros((1, 1, self._config.vocab_size), np.float32)
            bias[..., self._banned] = -np.inf
            logits = ops.add(logits, self._nodes.constant(bias))
        result = ops.result(logits)
        logits.output(0).get_tensor().set_names({"logits"})
        return ov.Model([result], self._sinks, [ids, mask, positions, beams], "glm4")

    def _layer(self, index: int, h: Any, rotary: tuple[Any, Any], causal: Any, ids: Any, beams: Any) -> Any:
        prefix, sandwich = f"layers.{index}.", self._config.architecture == "glm4"
        attended = self._attention(index, self._norm(h, prefix + "input_layernorm"), rotary, causal, ids, beams)
        if sandwich:
            attended = self._norm(attended, prefix + "post_self_attn_layernorm")
        h = ops.add(h, attended)
        x = self._mlp(index, self._norm(h, prefix + "post_attention_layernorm"))
        if sandwich:
            x = self._norm(x, prefix + "post_mlp_layernorm")
        return ops.add(h, x)

    def _mlp(self, index: int, x: Any) -> Any:
        matrix, where = self._scratch.tensor(f"layers.{index}.gate_up"), f"model.layers.{index}.mlp."
        if self._cls.fused_gate_up:
            halves = ops.split(self._nodes.linear(x, matrix, where + "gate_up_proj"), integers(2), 2)
            gate, up = halves.output(0), halves.output(1)
        else:
            middle = matrix.shape[0] // 2
            gate = self._nodes.linear(x, matrix.rows(slice(middle)), where + "gate_proj")
            up = self._nodes.linear(x, matrix.rows(slice(middle, None)), where + "up_proj")
        x = ops.multiply(ops.swish(gate), up)
        return self._nodes.linear(x, self._scratch.tensor(f"layers.{index}.down"), where + "down_proj")

    def _attention(self, index: int, x: Any, rotary: tuple[Any, Any], causal: Any, ids: Any, beams: Any) -> Any:
        config, prefix = self._config, f"layers.{index}."
        q, k, v = self._queries_keys_values(index, x)
        q, k = self._rotated(q, rotary), self._rotated(k, rotary)
        keys = self._remembered(f"{index}.key", k, ids, beams)
        values = self._remembered(f"{index}.value", v, ids, beams)
        repeats = config.num_attention_heads // config.num_key_value_heads
        keys, values = (self._repeated(one, repeats) for one in (keys, values))
        attended = ops.scaled_dot_product_attention(q, keys, values, causal, causal=False)
        attended = ops.transpose(attended, integers([0, 2, 1, 3]))
        attended = ops.reshape(attended, integers([0, 0, config.query_size]), special_zero=True)
        return self._nodes.linear(attended, self._scratch.tensor(prefix + "o"), f"model.{prefix}self_attn.o_proj")

    def _queries_keys_values(self, index: int, x: Any) -> list[Any]:
        """Each [batch, heads, tokens, head_dim]."""
        config, prefix = self._config, f"layers.{index}."
        matrix = self._scratch.tensor(prefix + "qkv")
        bias = self._scratch.vector(prefix + "qkv_bias") if config.attention_bias else None
        if self._cls.half_split:
            order = np.arange(matrix.shape[0])
            split_rotary_rows(order, config)
            matrix, bias = matrix.rows(order), None if bias is None else bias[order]
        parts, start = [], 0
        for letter, rows in zip("qkv", (config.query_size, *[config.key_value_size] * 2), strict=True):
            part = slice(start, start + rows)
            made = self._nodes.linear(x, matrix.rows(part), f"model.{prefix}self_attn.{letter}_proj")
            if bias is not None:
                made = ops.add(made, self._nodes.constant(bias[part]))
            made = ops.reshape(made, integers([0, 0, rows // config.head_dim, config.head_dim]), special_zero=True)
            parts.append(ops.transpose(made, integers([0, 2, 1, 3])))
            start += rows
        return parts

    def _rotary(self, positions: Any) -> tuple[Any, Any]:
        """cos and sin, each [batch, 1, tokens, rotary_dim / 2], computed in float32."""
        frequencies = RotaryTable(self._config.rotary_dim, self._config.rope_theta).inverse_frequencies
        where = ops.unsqueeze(ops.convert(positions, _F32), integers([1, 3]))
        angles = ops.multiply(where, self._nodes.constant(frequencies.reshape(1, 1, 1, -1)))
        return ops.cos(angles), ops.sin(angles)

    def _rotated(self, x: Any, rotary: tuple[Any, Any]) -> Any:
        """`x` [batch, heads, tokens, head_dim] with its first rotary_dim channels rotated."""
        config, (cos, sin) = self._config, rotary
        size, rest = config.rotary_dim, config.head_dim - config.rotary_dim
        turned, left = x, None
        if rest:
            split = ops.variadic_split(x, integers(3), integers([size, rest]))
            turned, left = split.output(0), split.output(1)
        pairs = [2, size // 2] if self._cls.half_split else [size // 2, 2]
        axis = 3 if self._cls.half_split else 4
        turned = ops.reshape(turned, integers([0, 0, 0, *pairs]), special_zero=True)
        both = ops.split(turned, integers(axis), 2)
        first, second = (ops.squeeze(both.output(i), integers(axis)) for i in range(2))
        new = (
            ops.subtract(ops.multiply(first, cos), ops.multiply(second, sin)),
            ops.add(ops.multiply(second, cos), ops.multiply(first, sin)),
        )
        stacked = ops.concat([ops.unsqueeze(one, integers(axis)) for one in new], axis)
        turned = ops.reshape(stacked, integers([0, 0, 0, size]), special_zero=True)
        return turned if left is None else ops.concat([turned, left], 3)

    def _remembered(self, name: str, new: Any, ids: Any, beams: Any) -> Any:
        """A variable with the keys or values so far, followed by the new ones."""
        heads, width = self._config.num_key_value_heads, self._config.head_dim
        layer, _, kind = name.partition(".")
        variable = f"past_key_values.{layer}.{kind}present.{layer}.{kind}"
        batch = ops.gather(ops.shape_of(ids, "i64"), integers([0]), integers(0))
        shape = ops.concat([batch, integers([heads, 0, width])], 0)
        empty = ops.broadcast(self._nodes.constant(np.zeros((), np.float32)), shape)
        past = ops.read_value(empty, variable, _F32, ov.PartialShape([-1, heads, -1, width]))
        whole = ops.concat([ops.gather(past, beams, integers(0)), new], 2)
        self._sinks.append(ops.assign(whole, variable))
        return whole

    def _repeated(self, x: Any, repeats: int) -> Any:
        """Keys or values for every query head."""
        if repeats == 1:
            return x
        config = self._config
        length = ops.gather(ops.shape_of(x, "i64"), integers([2]), integers(0))
        batch = ops.gather(ops.shape_of(x, "i64"), integers([0]), integers(0))
        heads, width = integers([config.num_key_value_heads]), integers([config.head_dim])
        shape = ops.concat([batch, heads, integers([repeats]), length, width], 0)
        wide = ops.broadcast(ops.unsqueeze(x, integers(2)), shape)
        flat = integers([0, config.num_attention_heads, -1, config.head_dim])
        return ops.reshape(wide, flat, special_zero=True)

    def _norm(self, x: Any, name: str) -> Any:
        power = ops.power(x, self._nodes.constant(np.full((1, 1, 1), 2, np.float32)))
        mean = ops.reduce_mean(power, integers([-1]), keep_dims=True)
        root = ops.sqrt(ops.add(mean, self._nodes.constant(np.full((1, 1, 1), self._config.rms_norm_eps, np.float32))))
        inverse = ops.divide(self._nodes.constant(np.ones((1, 1, 1), np.float32)), root)
        weight = self._nodes.constant(self._scratch.vector(name).reshape(1, 1, -1))
        return ops.multiply(ops.multiply(x, inverse), weight)


def _parameter(shape: list[int], kind: Any, name: str) -> Any:
    made = ops.parameter(shape, kind, name=name)
    made.output(0).get_tensor().set_names({name})
    return made


def _causal_mask(ids: Any, mask: Any) -> Any:
    """0 where a token may attend and the least float32 elsewhere: [1, 1, tokens, context]."""
    new = ops.gather(ops.shape_of(ids, "i64"), integers(1), integers(0))
    context = ops.gather(ops.shape_of(mask, "i64"), integers(1), integers(0))
    one, zero = integers(1), integers(0)
    queries = ops.unsqueeze(ops.range(ops.subtract(context, new), context, one, "i64"), integers(1))
    keys = ops.unsqueeze(ops.range(zero, context, one, "i64"), integers(0))
    least = ops.constant(np.float32(np.finfo(np.float32).min))
    allowed = ops.select(ops.less_equal(keys, queries), ops.constant(np.float32(0)), least)
    return ops.unsqueeze(allowed, integers([0, 1]))
