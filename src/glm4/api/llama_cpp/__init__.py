"""llama.cpp's own completion body, for programs written for its server: reading requests, writing answers."""

from glm4.api.llama_cpp.answers import LlamaCppWriter
from glm4.api.llama_cpp.request import LlamaCppRequest, parse_completion, prompt_ids

__all__ = ["LlamaCppRequest", "LlamaCppWriter", "parse_completion", "prompt_ids"]
