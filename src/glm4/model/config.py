"""`ModelConfig`: the shape of a GLM-4 text model, whatever file format it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Architecture = Literal["glm", "glm4"]


@dataclass(frozen=True)
class ModelConfig:
    """Shape and constants of a text model. Names follow Hugging Face's configuration keys.

    Attributes:
        architecture: "glm" (pre-norm) or "glm4" (two more norms per layer, after attention and after the MLP).
        rotary_half_split: the file's query/key rows pair channel i with i + rotary_dim/2 (NeoX style) instead of
            2i with 2i+1; the weight loader permutes such rows, the forward pass only knows adjacent pairs.
        attention_bias: query, key and value projections have a bias.
        eos_token_ids: ids that end a turn.
    """

    architecture: Architecture
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    partial_rotary_factor: float
    attention_bias: bool
    tie_word_embeddings: bool
    rotary_half_split: bool = False
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    @property
    def rotary_dim(self) -> int:
        """Channels of each head that are rotated; even."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def query_size(self) -> int:
        """Rows of the query projection."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Rows of the key projection; the value projection has as many."""
        return self.num_key_value_heads * self.head_dim

    @property
    def qkv_size(self) -> int:
        """Rows of the fused projection of queries, keys and values."""
        return self.query_size + 2 * self.key_value_size

    @property
    def gate_up_size(self) -> int:
        """Rows of the fused first projection of the MLP."""
        return 2 * self.intermediate_size
