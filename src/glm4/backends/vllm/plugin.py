"""What vLLM loads from this package, in each of its processes (entry point of group `vllm.general_plugins`).

GLM-4V, which vLLM runs with wrong positions and only when told its architecture, becomes the class of `glm4v`, also for
a plain `vllm serve`. Nothing else of vLLM changes.
"""

from __future__ import annotations

import logging

ARCHITECTURE = "GLM4VForCausalLM"
"""vLLM's name of GLM-4V; checkpoints have that of the text model."""

log = logging.getLogger(__name__)


def register() -> bool:
    """Replace vLLM's GLM-4V. May be called again.

    Never raises: with a vLLM that it does not know it logs a warning and leaves everything as it is.

    Returns:
        Whether vLLM now runs GLM-4V as it was trained.
    """
    try:
        _replace()
    except Exception as error:  # whatever another version of vLLM may raise
        log.warning("glm4 leaves this vLLM's GLM-4V as it is, whose positions may be wrong: %s", error)
        return False
    return True


def _replace() -> None:
    from vllm.model_executor.models.registry import ModelRegistry
    from vllm.transformers_utils import config

    from glm4.backends.vllm.glm4v_config import Glm4vConfig

    if "chatglm" not in config._CONFIG_REGISTRY or ARCHITECTURE not in ModelRegistry.models:
        raise LookupError("it does not have the model, or the configuration, under the names of vLLM 0.32")
    ModelRegistry.register_model(ARCHITECTURE, "glm4.backends.vllm.glm4v:Glm4vForCausalLM")
    config._CONFIG_REGISTRY["chatglm"] = Glm4vConfig
