"""`vllm_prompt`: a request's prompt in vLLM's form."""

from __future__ import annotations

from typing import Any

from glm4.engine.protocol import GenerationRequest


def vllm_prompt(request: GenerationRequest) -> dict[str, Any]:
    """The prompt of a request, as `LLMEngine.add_request` takes it."""
    prompt: dict[str, Any] = {"prompt_token_ids": list(request.prompt_ids)}
    if request.cache_salt:
        prompt["cache_salt"] = request.cache_salt
    return prompt
