"""The configuration of ChatGLM checkpoints in vLLM: one with a vision tower is GLM-4V, and has positions of its own."""

from __future__ import annotations

from typing import Any, ClassVar

from vllm.model_executor.models.registry import ModelRegistry
from vllm.transformers_utils.configs.chatglm import ChatGLMConfig

from glm4.backends.vllm.plugin import ARCHITECTURE


class Glm4vConfig(ChatGLMConfig):  # type: ignore[misc]
    """vLLM's configuration, which says of GLM-4V what its config.json does not.

    config.json names the text model as its architecture. With M-RoPE, vLLM asks the model for the positions of a
    prompt; how the rotated pairs are shared among three axes does not matter, as all axes get the same positions.
    """

    ignore_keys_at_rope_validation: ClassVar[set[str]] = {"mrope_section"}

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if getattr(self, "vision_config", None):
            self.architectures = [ARCHITECTURE]
            pairs = self.hidden_size // self.num_attention_heads // 4
            sections = [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]
            self.rope_parameters = {"rope_type": "default", "mrope_section": sections}


# Here, because the configuration travels to vLLM's workers: one that unpickles it has the model, even if it has not
# loaded the plugin (an editable install that is older than the entry point).
ModelRegistry.register_model(ARCHITECTURE, "glm4.backends.vllm.glm4v:Glm4vForCausalLM")
