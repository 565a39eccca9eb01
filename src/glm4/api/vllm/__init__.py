"""vLLM's token route, /inference/v1/generate: token ids in, token ids out, for programs with their own tokenizer."""

from glm4.api.vllm.answers import GenerateWriter
from glm4.api.vllm.request import PATH, GenerateRequest, parse_generate

__all__ = ["PATH", "GenerateRequest", "GenerateWriter", "parse_generate"]
