"""`vllm_prompt`: a request's prompt in vLLM's form."""

from __future__ import annotations

from typing import Any

from glm4.backends.vllm.media import prompt_inputs
from glm4.engine.protocol import GenerationRequest


def vllm_prompt(request: GenerationRequest) -> dict[str, Any]:
    """The prompt of a request, as `LLMEngine.add_request` takes it."""
    prompt = prompt_inputs(request.prompt)
    if request.cache_salt:
        prompt["cache_salt"] = request.cache_salt
    return prompt
