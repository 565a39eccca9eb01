"""The forward pass of GLM-4: ids and positions in, hidden states out, keys and values into the paged cache.

    h = embed[ids]
    for each layer:
        a = attention(rms_norm(h))          h = h + a        (glm4: h + rms_norm(a))
        m = down(swiglu(gate_up(rms_norm(h))))  h = h + m    (glm4: h + rms_norm(m))
    logits = head(rms_norm(h))

Everything with more than a few operations per number is a kernel; this file is the order they run in.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from glm4.kernels.base import Kernels
from glm4.model.config import ModelConfig
from glm4.model.forward_batch import ForwardBatch
from glm4.model.key_balance import key_balance
from glm4.model.kv_cache import KVCache
from glm4.model.layers import Float, Matrix, ModelWeights
from glm4.model.lora import add_adapters
from glm4.model.prefix import PrefixAdapter
from glm4.model.rotary import RotaryTable
from glm4.model.vision import VisionTower


class Transformer:
    """A GLM-4 model on one kernel set.

    Attributes:
        vision: what turns pictures into rows; None for a text model.
    """

    def __init__(self, config: ModelConfig, weights: ModelWeights, kernels: Kernels) -> None:
        self.config = config
        self.weights = weights
        self.kernels = kernels
        self.rotary = RotaryTable(config.rotary_dim, config.rope_theta)
        self._scale = config.head_dim**-0.5
        self.vision: VisionTower | None = None
        if config.vision is not None and weights.vision is not None:
            self.vision = VisionTower(config, weights.vision, kernels)

    def forward(
        self, ids: NDArray[np.int32], batch: ForwardBatch, cache: KVCache, rows: Sequence[tuple[int, Float]] = ()
    ) -> Float:
        """Run `ids` [T] through all layers and store their keys and values.

        Args:
            rows: (first row, float32 [n, hidden_size]): inputs that take the place of the ids' embeddings.

        Returns:
            float32 [T, hidden_size], before the final norm (see `logits`).
        """
        h = self.kernels.embedding(self.weights.embed_tokens, ids)
        for start, inputs in rows:
            h[start : start + len(inputs)] = inputs
        return self.run_layers(h, batch, cache)

    def run_layers(self, h: Float, batch: ForwardBatch, cache: KVCache) -> Float:
        """The layers alone: changes `h` [T, hidden_size] in place and returns it."""
        kernels, eps = self.kernels, self.config.rms_norm_eps
        cos, sin = self.rotary.lookup(batch.positions)
        balance = self._key_balance if cache.kv_dtype == "int8" else None
        for index, layer in enumerate(self.weights.layers):
            x = kernels.rms_norm(h, layer.input_layernorm, eps)
            factors = None if balance is None else balance[index]
            attended = self._attention(x, index, cos, sin, factors, batch, cache)
            if layer.post_self_attn_layernorm is not None:
                attended = kernels.rms_norm(attended, layer.post_self_attn_layernorm, eps)
            kernels.add_(h, attended)
            x = kernels.rms_norm(h, layer.post_attention_layernorm, eps)
            x = kernels.swiglu(self._linear(x, index, "gate_up", batch))
            x = self._linear(x, index, "down", batch)
            if layer.post_mlp_layernorm is not None:
                x = kernels.rms_norm(x, layer.post_mlp_layernorm, eps)
            kernels.add_(h, x)
        return h

    def _attention(
        self,
        x: Float,
        index: int,
        cos: Float,
        sin: Float,
        factors: Float | None,
        batch: ForwardBatch,
        cache: KVCache,
    ) -> Float:
        config, kernels = self.config, self.kernels
        k_cache, v_cache = cache.keys[index], cache.values[index]
        heads = self._linear(x, index, "qkv", batch).reshape(len(x), -1, config.head_dim)
        first_key, first_value = config.num_attention_heads, config.num_attention_heads + config.num_key_value_heads
        # Queries and keys are adjacent, so one call rotates both.
        kernels.rotary(heads[:, :first_value], cos, sin)
        if factors is not None:
            heads[:, :first_value] *= factors
        kernels.store_kv(heads[:, first_key:first_value], heads[:, first_value:], k_cache, v_cache, batch.slots)
        attended = kernels.paged_attention(
            heads[:, :first_key],
            k_cache,
            v_cache,
            batch.block_tables,
            batch.query_starts,
            batch.context_lens,
            self._scale,
        )
        return self._linear(attended.reshape(len(x), -1), index, "o", batch)

    def store_prefix(self, prefix: PrefixAdapter, first: int, slots: NDArray[np.int64], cache: KVCache) -> None:
        """Put virtual tokens first, first + 1, … of an adapter into the cache, as a pass puts what it has computed.

        Args:
            slots: int64 [n], as in `ForwardBatch`.
        """
        balance = self._key_balance if cache.kv_dtype == "int8" else None
        stop = first + len(slots)
        for index in range(self.config.num_hidden_layers):
            keys, values = prefix.keys[index, first:stop], prefix.values[index, first:stop]
            if balance is not None:
                keys = keys * balance[index][self.config.num_attention_heads :]
            self.kernels.store_kv(keys, values, cache.keys[index], cache.values[index], slots)

    def _linear(self, x: Float, index: int, key: Matrix, batch: ForwardBatch) -> Float:
        """One matrix of layer `index` times `x`, plus what the rows' LoRA adapters add."""
        layer = self.weights.layers[index]
        y = self.kernels.linear(x, getattr(layer, key), layer.qkv_bias if key == "qkv" else None)
        if batch.adapters:
            add_adapters(self.kernels, batch.adapters, index, key, x, y)
        return y

    @cached_property
    def _key_balance(self) -> list[Float]:
        return [key_balance(self.config, layer, self.kernels) for layer in self.weights.layers]

    def logits(self, hidden: Float) -> Float:
        """Final norm and head for `hidden` [R, hidden_size]; returns float32 [R, vocab_size]."""
        x, frequent = self.final_norm(hidden), self.weights.frequent
        logits = self.kernels.linear(x, self.weights.lm_head)
        if frequent is not None:
            logits[:, frequent.ids] = self.kernels.linear(x, frequent.head)
        return logits

    def final_norm(self, hidden: Float) -> Float:
        """The input of the head, from which embeddings are made: `hidden` [R, hidden_size] after the last norm."""
        return self.kernels.rms_norm(hidden, self.weights.norm, self.config.rms_norm_eps)
