"""llama.cpp's own completion body, for programs written for its server: reading requests, writing answers."""

from glm4.api.llama_cpp.answers import LlamaCppWriter
from glm4.api.llama_cpp.request import MEDIA_MARKER, LlamaCppRequest, parse_completion, pictures_of, prompt_ids

__all__ = ["MEDIA_MARKER", "LlamaCppRequest", "LlamaCppWriter", "parse_completion", "pictures_of", "prompt_ids"]
