"""The chat template of an exported file: the model's own, made to read tools and calls as other programs pass them.

GLM-4's templates expect tools on a system message, each call as an assistant message with the tool's name in
`metadata`, and results under the role "observation": that is what this package's dialects pass. llama.cpp and Ollama
pass a variable `tools`, `message.tool_calls` and the role "tool", which such a template drops silently. A few lines
before it turn the one form into the other; messages that are already in GLM's form stay as they are. Ollama looks for
`tool_calls` and for the comparison of `message.role` literally.
"""

from __future__ import annotations

from glm4.chat.template.template import ChatTemplate

_CALLS = """\
{%- set turns = namespace(list=messages, foreign=false) -%}
{%- for message in messages -%}
  {%- if message.tool_calls or message.role == 'tool' -%}{%- set turns.foreign = true -%}{%- endif -%}
{%- endfor -%}
{%- if turns.foreign -%}
  {%- set turns.list = [] -%}
  {%- for message in messages -%}
    {%- if message.role == 'tool' -%}
      {%- set turns.list = turns.list + [{'role': 'observation', 'metadata': '', 'content': message.content}] -%}
    {%- elif message.tool_calls -%}
      {%- if message.content -%}
        {%- set turns.list = turns.list + [{'role': 'assistant', 'metadata': '', 'content': message.content}] -%}
      {%- endif -%}
      {%- for call in message.tool_calls -%}
        {%- set given = call.function.arguments -%}
        {%- set text = given if given is string else given | tojson -%}
        {%- set turns.list = turns.list + [{'role': 'assistant', 'metadata': call.function.name, 'content': text}] -%}
      {%- endfor -%}
    {%- else -%}
      {%- set turns.list = turns.list + [message] -%}
    {%- endif -%}
  {%- endfor -%}
{%- endif -%}
"""

_TOOLS = """\
{%- if tools -%}
  {%- set first = turns.list[0] if turns.list and turns.list[0].role == 'system' else none -%}
  {%- set rest = turns.list[1:] if first else turns.list -%}
  {%- set offer = {'role': 'system', 'metadata': '', 'content': first.content if first else '', 'tools': tools} -%}
  {%- set turns.list = [offer] + rest -%}
{%- endif -%}
"""

_REST = """\
{%- set messages = turns.list -%}
"""


def exported_template(template: ChatTemplate, *, on_message: bool) -> str:
    """The text for `tokenizer.chat_template`.

    A template that reads `tool_calls` itself, has no place for tools, or is not in GLM's form stays as it is.

    Args:
        template: the model's.
        on_message: it expects tools on a message, not in a variable.
    """
    source = template.source
    if "tool_calls" in source or "tools" not in source or "metadata" not in source:
        return source
    return _CALLS + (_TOOLS if on_message else "") + _REST + source
