"""OpenAI's request and response bodies, strictly: what `glm4 batch` reads and writes and `glm4 serve` speaks.

A request field is honoured or refused by name, never ignored; `null` means "not given", as it does at OpenAI. Options
beyond OpenAI's (top_k, min_p …) have the names vLLM gives them. `fields` is the table of what is read, and the source
of the server's OpenAPI document; `requests` reads bodies, `objects` and `chunks` write them.
"""

from glm4.api.openai.answers import chat_completion, text_completion
from glm4.api.openai.request import ChatBody, CompletionRequest, parse_chat, parse_completion

__all__ = [
    "ChatBody",
    "CompletionRequest",
    "chat_completion",
    "parse_chat",
    "parse_completion",
    "text_completion",
]
