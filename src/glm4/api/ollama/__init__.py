"""Ollama's native bodies, for programs that speak nothing else: reading requests, writing answers as lines of JSON."""

from glm4.api.ollama.events import AnswerLines, durations, joined, now, opened
from glm4.api.ollama.request import OllamaRequest, parse_chat, parse_generate

__all__ = ["AnswerLines", "OllamaRequest", "durations", "joined", "now", "opened", "parse_chat", "parse_generate"]
