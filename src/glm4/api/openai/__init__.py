"""OpenAI's request and response bodies, strictly: the format of `glm4 batch` files and `glm4 serve`.

A request field is supported or refused by name, never ignored; `null` means "not given", as it does at OpenAI. Options
beyond OpenAI's (top_k, min_p …) use vLLM's names. `fields` is the table of request fields, and the source of the
server's OpenAPI document; `request` reads bodies, `answers` and `events` write them.
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
