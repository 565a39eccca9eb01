"""How much memory training needs, before anything is loaded: `estimate`. Needs no torch.

Bytes of one process, which has one device, for N = batch x length tokens at a time (as many as there can be), in the
sizes of a `ModelConfig`: hidden h, queries q, keys and values kv each, MLP f. s is 2 for bf16, 4 for fp32.

- weights: s per parameter; in NF4 0.53 for matrices of layers. Weights that are trained are float32: 4, and 2 for the
  copy that autocast makes in bf16. ZeRO-3 and FSDP divide them by the devices, but for two layers.
- what is trained: LoRA r (in + out) per matrix, a prefix 2 P kv per layer. Each number has 4 bytes, 4 of gradient,
  8 of AdamW's moments. ZeRO-2 and 3 divide gradients and moments.
- activations of a layer, per token: 4 h per norm; of each matrix with trained parts its input (in fp32 those of q, k
  and v are one; in bf16 casting makes one each); s (2 q + 2 kv) of attention, which never holds scores; 3 s f of the
  MLP; with DoRA two outputs per matrix; with trained norms 4 h each. Checkpointing keeps s h per layer, and one layer
  at a time is computed anew; otherwise all are kept. A layer's backward has s (4 f + 3 h) more at once.
- loss: a chunk of logits (`loss.causal_loss`), the rows of hidden states and their gradient; of a head that is
  trained, its gradient. That is over when layers are computed anew, so the larger of the two counts.
- program: interpreter and libraries; on a GPU its context and the workspaces of matrix products.

Tests and benchmarks/train_memory.py compare the sums with measured peaks on the CPU, where every large block has its
own mapping: runs that are short of memory have it so (`system.memory.map_large_blocks`), in others glibc holds up to as
much again, which is faster. Not counted: what other allocators hold and do not use, pictures, rows of data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from glm4.model.config import ModelConfig
from glm4.model.tensors import head_name, model_tensors, num_parameters
from glm4.training.config import TrainingConfig

Device = Literal["cpu", "gpu"]

_PROGRAM = {"cpu": 600_000_000, "gpu": 900_000_000}
_LOGITS = {"cpu": 160 << 20, "gpu": 320 << 20}  # `_CHUNK_NBYTES` of loss.py
_NF4 = 0.5 + 1 / 32  # codes, and scales in two levels
_BUCKET = 500_000_000  # numbers that ZeRO sends at once
_DIVIDING = {"zero2": 2, "zero3": 3, "fsdp": 3}
# Matrices of a layer by the names of their modules -> (input, output), in the words of `_sizes`.
_MODULES = {
    "q_proj": ("hidden", "query"),
    "k_proj": ("hidden", "key"),
    "v_proj": ("hidden", "key"),
    "o_proj": ("query", "hidden"),
    "gate_up_proj": ("hidden", "gate_up"),
    "gate_proj": ("hidden", "ffn"),
    "up_proj": ("hidden", "ffn"),
    "down_proj": ("ffn", "hidden"),
}
_FUSED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one process at its peak, by part; the sizes that were asked for.

    Attributes:
        device: "cpu" or "gpu".
        dtype: of frozen weights and of products: "bf16" or "fp32".
        devices: processes, with one device each.
        tokens: of one forward pass in one process.
        parameters: of the model; `trained` of them (or beside them) are trained.
        weights: of the model, and of what is trained beside it.
        gradients, optimizer: of what is trained.
        activations: kept for backward, and of a layer in it, as far as it exceeds `loss`.
        loss: logits and what belongs to them.
        communication: buffers between devices.
        program: interpreter, libraries, context of the device.
        loading: needed before what is trained is divided among devices, program included.
    """

    device: Device
    dtype: str
    devices: int
    tokens: int
    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    communication: int
    program: int
    loading: int

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part."""
        names = ("weights", "gradients", "optimizer", "activations", "loss", "communication", "program")
        return {name: getattr(self, name) for name in names}

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return max(self.loading, sum(self.parts.values()))


def estimate(
    config: TrainingConfig, model: ModelConfig, *, device: Device = "gpu", devices: int = 1, fused: bool = True
) -> TrainingMemory:
    """The memory of one process of a run.

    Args:
        config: method, sizes of batches and samples, checkpointing, `accelerator` (a shipped name; a file counts as
            none), `dtype` ("auto" is bf16 on a GPU, else fp32).
        model: the shape of the model.
        devices: processes that train together.
        fused: gate and up are one matrix of the model's class, as in GLM's.
    """
    return _Estimate(config, model, device, devices, fused).result()


class _Estimate:
    """The parts of one estimate, see the module."""

    def __init__(self, config: TrainingConfig, model: ModelConfig, device: Device, devices: int, fused: bool) -> None:
        self.config, self.model, self.device, self.devices = config, model, device, max(1, devices)
        self.fused = fused
        self.dtype = config.dtype if config.dtype != "auto" else ("bf16" if device == "gpu" else "fp32")
        self.size = 2 if self.dtype == "bf16" else 4
        self.stage = _DIVIDING.get(config.accelerator, 0) if self.devices > 1 else 0
        pairs = 2 if config.objective == "dpo" else 1
        self.tokens = pairs * config.per_device_train_batch_size * config.data.max_length
        self.whole = config.method in ("full", "freeze")  # weights of the model itself are trained
        self.frozen_layers = min(config.freeze_layers, model.num_hidden_layers) if config.method == "freeze" else 0
        self.trained = self._trained()

    def result(self) -> TrainingMemory:
        """All parts."""
        loss, backward = self._loss(), self._backward()
        states = 12 if self.whole and self.stage and self.size == 2 else 8  # ZeRO has a float32 copy of bf16 weights
        gradient = self.size if self.whole and self.stage else 4
        divided = self.devices if self.stage else 1
        return TrainingMemory(
            device=self.device,
            dtype=self.dtype,
            devices=self.devices,
            tokens=self.tokens,
            parameters=num_parameters(self.model),
            trained=self.trained,
            weights=self._weights(),
            gradients=gradient * self.trained // divided,
            optimizer=states * self.trained // divided,
            activations=self._kept() + max(0, backward - loss),
            loss=loss,
            communication=self._communication(),
            program=_PROGRAM[self.device],
            loading=_PROGRAM[self.device] + (4 * self.trained if self.whole else 0) + self._frozen(),
        )

    def _sizes(self) -> dict[str, int]:
        model, ffn = self.model, self.model.intermediate_size
        return {
            "hidden": model.hidden_size,
            "query": model.query_size,
            "key": model.key_value_size,
            "ffn": ffn,
            "gate_up": 2 * ffn,
        }

    def _targets(self) -> list[tuple[int, int]]:
        """(input, output) of each matrix of a layer with trained parts; PEFT's names."""
        sizes, wanted = self._sizes(), self.config.lora.target_modules
        if self.config.method == "ptuning_v2":
            return []
        if self.whole or "all-linear" in wanted:
            apart = (*_FUSED[:4], "gate_proj", "up_proj", "down_proj")
            wanted = _FUSED if self.fused else apart
        return [(sizes[a], sizes[b]) for name, (a, b) in _MODULES.items() if name in wanted]

    def _trained(self) -> int:
        config, model, layers = self.config, self.model, self.model.num_hidden_layers
        if config.method == "lora":
            one = sum(config.lora.r * (a + b) + (b if config.lora.use_dora else 0) for a, b in self._targets())
            return layers * one
        if config.method == "ptuning_v2":
            prefix, width = config.prefix, model.key_value_size
            if not prefix.projection:
                return prefix.num_virtual_tokens * layers * 2 * width
            inner = prefix.hidden_size or model.hidden_size
            return prefix.num_virtual_tokens * width + inner * (width + 1) + layers * 2 * width * (inner + 1)
        return sum(self._trained_tensors())

    def _trained_tensors(self) -> Iterator[int]:
        """Sizes of the model's own tensors that are trained."""
        for name, tensor in model_tensors(self.model).items():
            in_layer = name.startswith("layers.") and tensor.index >= self.frozen_layers
            if self.config.method == "full" or in_layer or name in ("norm", "lm_head"):
                yield math.prod(tensor.shape)

    def _frozen(self) -> int:
        """Of the weights that stay as they are."""
        own = num_parameters(self.model) - (self.trained if self.whole else 0)
        if self.config.quantize == "none" or self.whole:
            return self.size * own
        in_layers = self._layer_parameters() * self.model.num_hidden_layers
        widened = max(a * b for a, b in _all_matrices(self._sizes()))  # one matrix at a time
        return int(_NF4 * in_layers) + self.size * (own - in_layers + widened)

    def _weights(self) -> int:
        """Of the model and of what is beside it."""
        cast = 2 if self.whole and self.size == 2 else 0
        trained = self.size if self.whole and self.stage else 4 + cast
        if self.stage < 3:
            return self._frozen() + trained * self.trained
        divided = self._frozen() + (trained * self.trained if self.whole else 0)
        gathered = 2 * self.size * self._layer_parameters()
        return divided // self.devices + gathered + (0 if self.whole else trained * self.trained)

    def _layer_parameters(self) -> int:
        return sum(a * b for a, b in _all_matrices(self._sizes()))

    def _layer(self) -> int:
        """Bytes that a layer keeps for its backward."""
        sizes, size, model = self._sizes(), self.size, self.model
        norms = 4 if model.architecture == "glm4" else 2
        targets = self._targets()
        shared = 0
        if size == 4:  # the inputs of q, k and v are one, and of gate and up
            inputs = [a for a, _ in targets if a == sizes["hidden"]]
            shared = sizes["hidden"] * max(0, len(inputs) - 2) if inputs else 0
        kept = 4 * norms * sizes["hidden"] + size * (sum(a for a, _ in targets) - shared)
        kept += size * (2 * sizes["query"] + 2 * sizes["key"] + 3 * sizes["ffn"])
        if self.whole:
            kept += 4 * norms * sizes["hidden"]
        if self.config.method == "lora" and self.config.lora.use_dora:
            kept += 2 * size * sum(b for _, b in targets)
        return kept * self.tokens + self._prefix_layer()

    def _prefix_layer(self) -> int:
        """Keys and values with the prefix in front, one per query head, and the mask that leaves room for it."""
        config = self.config
        if config.method != "ptuning_v2":
            return 0
        length, batch = config.data.max_length, self.tokens // config.data.max_length
        positions = config.prefix.num_virtual_tokens + length
        return batch * positions * 2 * self.size * self.model.query_size

    def _kept(self) -> int:
        """Bytes kept from forward to backward."""
        layers = self.model.num_hidden_layers - self.frozen_layers
        mask = 0
        if self.config.method == "ptuning_v2":
            length = self.config.data.max_length
            mask = (1 + self.size) * length * (length + self.config.prefix.num_virtual_tokens)
        if not self.config.gradient_checkpointing:
            return layers * self._layer() + mask
        return layers * self.tokens * (4 if self.whole else self.size) * self.model.hidden_size + mask

    def _backward(self) -> int:
        """Bytes of a layer in backward: computed anew with checkpointing, and its gradients."""
        sizes = self._sizes()
        gradients = self.tokens * self.size * (4 * sizes["ffn"] + 3 * sizes["hidden"])
        if self.config.method == "lora" and self.config.lora.use_dora:
            gradients += 3 * 4 * max(a * b for a, b in self._targets())  # W + B A, whose norms are computed
        return gradients + (self._layer() if self.config.gradient_checkpointing else 0)

    def _loss(self) -> int:
        model, size = self.model, self.size
        chunk = min(self.tokens, max(16, _LOGITS[self.device] // (4 * model.vocab_size)))
        logits = chunk * model.vocab_size * (4 if size == 4 else 6)
        head = head_name(model)
        trains_head = self.config.method == "full" or (self.whole and head == "lm_head")
        gradient = model.vocab_size * model.hidden_size * (4 + (2 if size == 2 else 0)) if trains_head else 0
        return logits + 2 * self.tokens * size * model.hidden_size + gradient

    def _communication(self) -> int:
        if self.devices == 1:
            return 0
        if not self.stage:
            return 4 * self.trained  # the buckets of DDP
        return 2 * self.size * min(_BUCKET, self.trained)


def _all_matrices(sizes: dict[str, int]) -> list[tuple[int, int]]:
    return [(sizes[a], sizes[b]) for a, b in (_MODULES[name] for name in _FUSED)]
