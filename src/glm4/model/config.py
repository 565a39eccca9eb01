"""`ModelConfig`: the shape of a GLM-4 model, whatever file format it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Architecture = Literal["glm", "glm4"]


@dataclass(frozen=True)
class VisionConfig:
    """Shape and constants of the tower that turns a picture into rows of the text model.

    Attributes:
        image_size: pixels of each side of the picture.
        patch_size: pixels of each side of a patch; the image is `grid` x `grid` patches, and `grid` is even.
        scaling_factor: the rows are divided by it.
        begin_id, end_id: the tokens whose place the first and the last row take.
    """

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    image_size: int
    patch_size: int
    layer_norm_eps: float
    scaling_factor: float
    begin_id: int
    end_id: int
    in_channels: int = 3

    @property
    def grid(self) -> int:
        """Patches of each side."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of a picture."""
        return self.grid**2

    @property
    def num_positions(self) -> int:
        """Rows inside the tower: one per patch, and the class embedding before them."""
        return self.num_patches + 1

    @property
    def num_rows(self) -> int:
        """Rows of a picture in the text model: one per 2 x 2 patches, and those of the begin and end tokens."""
        return (self.grid // 2) ** 2 + 2

    @property
    def head_dim(self) -> int:
        """Channels of each attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def qkv_size(self) -> int:
        """Rows of the fused projection of queries, keys and values."""
        return 3 * self.hidden_size

    @property
    def patch_columns(self) -> int:
        """Numbers of a patch."""
        return self.in_channels * self.patch_size**2

    @property
    def merged_columns(self) -> int:
        """Numbers of 2 x 2 patches behind the layers."""
        return 4 * self.hidden_size


@dataclass(frozen=True)
class ModelConfig:
    """Shape and constants of a model. Names follow Hugging Face's configuration keys.

    Attributes:
        architecture: "glm" (pre-norm) or "glm4" (two more norms per layer, after attention and after the MLP).
        rotary_half_split: the file's query/key rows pair channel i with i + rotary_dim/2 (NeoX style) instead of
            2i with 2i+1; the weight loader permutes such rows, the forward pass only knows adjacent pairs.
        attention_bias: query, key and value projections have a bias.
        eos_token_ids: ids that end a turn.
        vision: the tower of a model that sees; None for a text model.
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
    vision: VisionConfig | None = None

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
