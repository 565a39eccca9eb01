"""GLM-4-9B's layers in OpenVINO with random weights, as a peer: a worker that answers loads with seconds.

    PYTHON_WITH_OPENVINO benchmarks/openvino_stack.py int4 --layers 8        # then a JSON object a line, say
    {"context": 128, "batch": 1, "new": 23}                                  # on standard input

Needs `openvino` and NumPy, not glm4. It is set for speed: activations in fp32 (bf16, its default, is slower without
AMX), activations quantized in groups as large as the weights', latency hint, one stream. Weights: int4 in groups of 128
with fp16 scales, or int8 with one scale a row; the head is int8, as OpenVINO's own weight compression leaves it.
Embedding, final norm and sampling are left out, in its favour.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

HIDDEN, INNER, VOCABULARY, LAYERS = 4096, 13696, 151552, 40
HEADS, KV_HEADS, HEAD_DIM, ROTARY = 32, 2, 128, 64
GROUP = 128
CHUNK = 512  # prompt tokens of one pass


def integers(*values: int) -> Any:
    return op.constant(np.array(values, np.int64))


def number(value: float) -> Any:
    return op.constant(np.float32(value))


class Stack:
    """Builds the graph. `kept` holds arrays that constants only point to."""

    def __init__(self, weights: str) -> None:
        self.weights, self.rng, self.kept = weights, np.random.default_rng(0), list[Any]()
        self.sinks: list[Any] = []

    def matmul(self, x: Any, rows: int, cols: int, weights: str = "") -> Any:
        """x times a compressed matrix, written as the plugin recognises it: constant, convert, scale, convert."""
        if (weights or self.weights) == "int4":
            data = self.rng.integers(0, 256, rows * cols // 2, dtype=np.uint8)
            self.kept.append(data)
            tensor = ov.Tensor(data, ov.Shape([rows, cols // GROUP, GROUP]), ov.Type.i4)
            scale = self.rng.uniform(0.002, 0.006, (rows, cols // GROUP, 1)).astype(np.float16)
            w = op.multiply(op.convert(op.constant(tensor), np.float16), op.constant(scale))
            w = op.reshape(w, integers(rows, cols), False)
        else:
            data = self.rng.integers(-127, 128, (rows, cols), dtype=np.int8)
            scale = self.rng.uniform(0.0002, 0.0004, (rows, 1)).astype(np.float16)
            w = op.multiply(op.convert(op.constant(data), np.float16), op.constant(scale))
        return op.matmul(x, op.convert(w, np.float32), False, True)

    def norm(self, x: Any) -> Any:
        mean = op.reduce_mean(op.power(x, number(2.0)), integers(-1), True)
        scaled = op.multiply(x, op.divide(number(1.0), op.sqrt(op.add(mean, number(1e-5)))))
        return op.multiply(scaled, op.constant(np.ones((1, 1, HIDDEN), np.float32)))

    def split_heads(self, x: Any, heads: int) -> Any:
        return op.transpose(op.reshape(x, integers(0, 0, heads, HEAD_DIM), True), integers(0, 2, 1, 3))

    def remembered(self, name: str, new: Any, beam: Any, batch: Any) -> Any:
        """The cache of earlier tokens with `new` behind it, repeated for the query heads that share a key head."""
        empty = op.broadcast(number(0.0), op.concat([batch, integers(KV_HEADS), integers(0), integers(HEAD_DIM)], 0))
        shape = ov.PartialShape([-1, KV_HEADS, -1, HEAD_DIM])
        past = op.gather(op.read_value(empty, name, np.float32, shape), beam, op.constant(np.int32(0)))
        whole = op.concat([past, new], -2)
        self.sinks.append(op.assign(whole, name))
        repeated = op.broadcast(
            op.unsqueeze(whole, op.constant(np.int32(2))),
            integers(1, 1, HEADS // KV_HEADS, 1, 1),
            broadcast_spec="BIDIRECTIONAL",
        )
        return op.reshape(repeated, integers(0, HEADS, -1, HEAD_DIM), True)

    def layer(self, x: Any, index: int, inputs: dict[str, Any], angles: tuple[Any, Any], batch: Any) -> Any:
        query_size, kv_size = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
        total = query_size + 2 * kv_size
        bias = op.constant((self.rng.standard_normal((1, 1, total)) * 0.05).astype(np.float32))
        heads = op.add(self.matmul(self.norm(x), total, HIDDEN), bias)
        q, k, v = op.variadic_split(heads, op.constant(np.int64(2)), integers(query_size, kv_size, kv_size)).outputs()
        q = rotated(self.split_heads(q, HEADS), *angles)
        k, v = rotated(self.split_heads(k, KV_HEADS), *angles), self.split_heads(v, KV_HEADS)
        k = self.remembered(f"past.{index}.k", k, inputs["beam_idx"], batch)
        v = self.remembered(f"past.{index}.v", v, inputs["beam_idx"], batch)
        attended = op.scaled_dot_product_attention(q, k, v, inputs["mask"], causal=False)
        attended = op.reshape(op.transpose(attended, integers(0, 2, 1, 3)), integers(0, 0, HIDDEN), True)
        x = op.add(x, self.matmul(attended, HIDDEN, HIDDEN))
        gate_up = self.matmul(self.norm(x), 2 * INNER, HIDDEN)
        gate, up = op.variadic_split(gate_up, op.constant(np.int64(2)), integers(INNER, INNER)).outputs()
        return op.add(x, self.matmul(op.multiply(op.swish(gate), up), HIDDEN, INNER))

    def model(self, layers: int) -> ov.Model:
        inputs = {
            "hidden": op.parameter(ov.PartialShape([-1, -1, HIDDEN]), np.float32, "hidden"),
            "positions": op.parameter(ov.PartialShape([-1, -1]), np.int64, "positions"),
            "mask": op.parameter(ov.PartialShape([-1, 1, -1, -1]), np.float32, "mask"),
            "beam_idx": op.parameter(ov.PartialShape([-1]), np.int32, "beam_idx"),
        }
        for name, node in inputs.items():
            node.output(0).set_names({name})
        x = inputs["hidden"]
        batch = op.gather(op.shape_of(x), integers(0), op.constant(np.int64(0)))
        angles = rotary_angles(inputs["positions"])
        for index in range(layers):
            x = self.layer(x, index, inputs, angles, batch)
        return ov.Model([op.result(x)], self.sinks, list(inputs.values()), "glm")

    def head(self) -> ov.Model:
        x = op.parameter(ov.PartialShape([-1, -1, HIDDEN]), np.float32, "hidden")
        return ov.Model([op.result(self.matmul(x, VOCABULARY, HIDDEN, "int8"))], [x], "head")


def rotary_angles(positions: Any) -> tuple[Any, Any]:
    inverse = (1.0 / 10000 ** (np.arange(0, ROTARY, 2, dtype=np.float32) / ROTARY)).reshape(1, 1, -1)
    angles = op.multiply(op.unsqueeze(op.convert(positions, np.float32), integers(-1)), op.constant(inverse))
    angles = op.concat([angles, angles], -1)
    return op.unsqueeze(op.cos(angles), integers(1)), op.unsqueeze(op.sin(angles), integers(1))


def rotated(x: Any, cos: Any, sin: Any) -> Any:
    """The first half of each head turned, the rest kept."""
    last = op.constant(np.int64(3))
    turned, kept = op.variadic_split(x, last, integers(ROTARY, HEAD_DIM - ROTARY)).outputs()
    first, second = op.variadic_split(turned, last, integers(ROTARY // 2, ROTARY // 2)).outputs()
    other = op.concat([op.multiply(second, number(-1.0)), first], -1)
    return op.concat([op.add(op.multiply(turned, cos), op.multiply(other, sin)), kept], -1)


class Runner:
    """The compiled stack and head."""

    def __init__(self, weights: str, layers: int, threads: int) -> None:
        core, stack = ov.Core(), Stack(weights)
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(GROUP),
        }
        start = time.perf_counter()
        self._stack, self._layers = stack, core.compile_model(stack.model(layers), "CPU", settings)
        self._head = core.compile_model(stack.head(), "CPU", settings).create_infer_request()
        self.facts = (
            f"{ov.__version__}, {weights}, fp32 hint, dynamic quantization group {GROUP}, "
            f"KV cache {self._layers.get_property('KV_CACHE_PRECISION').get_type_name()}, "
            f"compiled in {time.perf_counter() - start:.0f} s"
        )
        self._request = self._layers.create_infer_request()
        self._rng = np.random.default_rng(1)

    def _pass(self, batch: int, new: int, past: int) -> float:
        mask = np.zeros((batch, 1, new, past + new), np.float32)
        mask[:, 0] = np.where(np.arange(past + new) > np.arange(new)[:, None] + past, np.finfo(np.float32).min, 0)
        inputs = {
            "hidden": self._rng.standard_normal((batch, new, HIDDEN), dtype=np.float32),
            "positions": np.tile(np.arange(past, past + new), (batch, 1)),
            "mask": mask,
            "beam_idx": np.arange(batch, dtype=np.int32),
        }
        start = time.perf_counter()
        self._request.infer(inputs)
        return time.perf_counter() - start

    def answer(self, context: int, batch: int, new: int) -> dict[str, float]:
        """Seconds of the prompt, of one step after it, and of the head for one row per sequence."""
        self._request.reset_state()
        sizes = [min(CHUNK, context - start) for start in range(0, context, CHUNK)]
        prefill = sum(self._pass(batch, size, index * CHUNK) for index, size in enumerate(sizes))
        steps = [self._pass(batch, 1, context + index) for index in range(new)]
        rows = self._rng.standard_normal((batch, 1, HIDDEN), dtype=np.float32)
        heads = []
        for _ in range(3):
            start = time.perf_counter()
            self._head.infer([rows])
            heads.append(time.perf_counter() - start)
        return {
            "prefill_seconds": prefill,
            "step_seconds": sum(steps) / max(1, len(steps)),
            "head_seconds": sorted(heads)[1],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", choices=["int4", "int8"])
    parser.add_argument("--layers", type=int, default=8, help=f"of {LAYERS} equal ones; the caller scales")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    runner = Runner(arguments.weights, arguments.layers, arguments.threads)
    runner.answer(32, 1, 4)  # first use repacks the weights
    print(json.dumps({"facts": runner.facts}), flush=True)
    for line in sys.stdin:
        print(json.dumps(runner.answer(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
