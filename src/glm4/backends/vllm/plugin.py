"""What vLLM loads from this package, in each of its processes (entry point of group `vllm.general_plugins`).

GLM-4V, which vLLM runs with wrong positions and only when told its architecture, becomes the class of `glm4v`, also for
a plain `vllm serve`. Nothing else of vLLM changes.
"""

from __future__ import annotations

import logging

ARCHITECTURE = "GLM4VForCausalLM"
"""vLLM's name of GLM-4V, for which its users override that in config.json, the text model's."""

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
        log.warning("GLM-4V stays as this vLLM has it, with positions it was not trained with: %s", error)
        return False
    return True


def _replace() -> None:
    from vllm.model_executor.models.registry import ModelRegistry
    from vllm.transformers_utils import config

    from glm4.backends.table import backend_row

    backend_row("vllm").check_installed()
    if "chatglm" not in config._CONFIG_REGISTRY or ARCHITECTURE not in ModelRegistry.models:
        raise LookupError("it has no model or no configuration of the names that vLLM 0.32 gives them")
    from glm4.backends.vllm.glm4v_config import Glm4vConfig

    config._CONFIG_REGISTRY["chatglm"] = Glm4vConfig
