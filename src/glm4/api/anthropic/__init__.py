"""Anthropic's Messages API, strictly: the bodies of /v1/messages and /v1/messages/count_tokens, both ways.

As in `openai_format`, a field is honoured or refused by name, and null means "not given". What is honoured in a way
worth knowing:

- `cache_control` is a hint without effect: prompts are cached whole, whatever is marked. `usage` tells what was reused.
- `thinking` asks for what a reasoning model does anyway; other models answer without it. `budget_tokens` and
  `output_config.effort` are hints without effect. `disabled` leaves the thinking out of the response (a reasoning model
  thinks all the same, and its tokens count), `display: "omitted"` leaves its text out. Signatures are a constant.
- Thinking of earlier turns may be sent back; whether the model sees it again is its chat template's business. So
  `context_management` may say `clear_thinking_20251015`, and nothing else.
- Arguments of a call that are not a JSON object are the input `{"INVALID_JSON": text}`, as Anthropic recommends for
  handing them back; in a stream they come as they are.
- A text that fills the model's context ends with `model_context_window_exceeded`.

`fields` is the table of what is read, `content` reads messages, `request` the rest; `events` writes answers.
"""

from glm4.api.anthropic.events import MessageEvents
from glm4.api.anthropic.request import MessageRequest, parse_count, parse_message

__all__ = ["MessageEvents", "MessageRequest", "parse_count", "parse_message"]
