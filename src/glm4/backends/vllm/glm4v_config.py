"""The configuration of ChatGLM checkpoints in vLLM: one with a vision tower is GLM-4V, and has positions of its own."""

from __future__ import annotations

from typing import Any

from vllm.transformers_utils.configs.chatglm import ChatGLMConfig

from glm4.backends.vllm.plugin import ARCHITECTURE


class Glm4vConfig(ChatGLMConfig):
    """vLLM's configuration, which of GLM-4V says what its config.json does not.

    config.json names the text model as its architecture. M-RoPE makes vLLM ask the model for the positions of a prompt;
    its sections, a third of the rotated pairs each, are not used, since all three axes get the same positions.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if getattr(self, "vision_config", None):
            self.architectures = [ARCHITECTURE]
            pairs = self.hidden_size // self.num_attention_heads // 4
            sections = [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]
            self.rope_parameters = {"rope_type": "default", "mrope_section": sections}
