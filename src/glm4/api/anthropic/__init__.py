"""Anthropic's Messages API, strictly: request and response bodies of /v1/messages and /v1/messages/count_tokens.

As in `api.openai`, a field is either supported or refused by name, and null means "not given". Fields with special
behavior:

- `cache_control` is a hint with no effect: whole prompts are cached, marked or not. `usage` reports what was reused.
- `thinking` asks for what a reasoning model does anyway; other models answer without it. `budget_tokens` and
  `output_config.effort` are hints with no effect. `disabled` leaves the thinking out of the response (a reasoning model
  still thinks, and its tokens count), `display: "omitted"` leaves its text out. Signatures are a constant.
- Thinking from earlier turns may be sent back; the chat template decides whether the model sees it again. So
  `context_management` may contain `clear_thinking_20251015`, and nothing else.
- Arguments of a call that are not a JSON object become the input `{"INVALID_JSON": text}`, as Anthropic recommends
  for sending them back; in a stream they are passed through unchanged.
- A text that fills the model's context ends with `model_context_window_exceeded`.

`fields` is the table of request fields, `content` reads messages, `request` the rest; `events` writes answers.
"""

from glm4.api.anthropic.events import MessageEvents
from glm4.api.anthropic.request import MessageRequest, parse_count, parse_message

__all__ = ["MessageEvents", "MessageRequest", "parse_count", "parse_message"]
