"""`ChatTemplate`: a checkpoint's own Jinja chat template, compiled once and rendered in a sandbox."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jinja2

from glm4.chat.template.budget import budget_variables
from glm4.chat.template.sandbox import TemplateEnvironment
from glm4.errors import TemplateError

MAX_SOURCE_CHARS = 128 << 10


class ChatTemplate:
    """A compiled template. Safe to share between threads.

    Rendering follows Transformers' `apply_chat_template`: trim_blocks and lstrip_blocks on, lenient undefined values,
    `tojson` without HTML escaping, `raise_exception`, `strftime_now`, loop controls.

    Args:
        source: Jinja text.

    Raises:
        TemplateError: it is too long or does not compile.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE_CHARS:
            raise TemplateError(
                f"the chat template is {len(source)} characters long; more than {MAX_SOURCE_CHARS} is refused"
            )
        self.source = source
        try:
            self._template = TemplateEnvironment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"the chat template does not compile, line {error.lineno}: {error.message}") from None
        except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError) as error:
            raise TemplateError(f"the chat template does not compile ({type(error).__name__})") from None

    def render(self, variables: Mapping[str, Any]) -> str:
        """Render with the given variables.

        Raises:
            TemplateError: the template failed, rejected the conversation, took too long, grew too large, or tried to
                access something forbidden.
        """
        try:
            return self._template.render({**variables, **budget_variables(variables)})
        except Exception as error:  # any error an untrusted template causes is a template error
            raise TemplateError(f"the chat template failed{_where(error)}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it nests too deeply"
    if isinstance(error, MemoryError):
        return "it needs too much memory"
    if isinstance(error, jinja2.TemplateError) and error.message:
        return error.message
    return f"{type(error).__name__}: {str(error)[:500]}"


def _where(error: Exception) -> str:
    """The template line of an error, if it is known."""
    line = None
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == "<template>":
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return "" if line is None else f" at line {line}"


@lru_cache(maxsize=16)
def default_template(name: str) -> ChatTemplate:
    """One of our own templates, for checkpoints without one; `name` excludes `.jinja`."""
    from importlib import resources

    return ChatTemplate((resources.files("glm4.chat.template") / "jinja" / f"{name}.jinja").read_text(encoding="utf-8"))
