"""A dialect's renderings of a conversation as callers write it, for tests."""

from __future__ import annotations

from typing import Any

from glm4.chat.chat_request import ChatRequest, Conversation
from glm4.chat.dialects.base import TemplateDialect
from glm4.chat.template.template import ChatTemplate
from glm4.prompt import ImageLayout
from glm4.tokenizer import Tokenizer


def render(
    dialect: TemplateDialect,
    messages: Conversation,
    *,
    tokenizer: Tokenizer,
    template: ChatTemplate | None = None,
    image: ImageLayout | None = None,
    **options: Any,
) -> list[int]:
    """The ids of `TemplateDialect.render`; options are those of `ChatRequest.of`."""
    request = ChatRequest.of(messages, **options)
    return list(dialect.render(request, tokenizer=tokenizer, template=template, image=image).ids)


def render_text(
    dialect: TemplateDialect,
    messages: Conversation,
    *,
    tokenizer: Tokenizer,
    template: ChatTemplate | None = None,
    image: ImageLayout | None = None,
    **options: Any,
) -> str:
    """See `TemplateDialect.render_text`."""
    return dialect.render_text(ChatRequest.of(messages, **options), tokenizer=tokenizer, template=template, image=image)


def loss_mask(
    dialect: TemplateDialect,
    messages: Conversation,
    *,
    tokenizer: Tokenizer,
    template: ChatTemplate | None = None,
    image: ImageLayout | None = None,
    **options: Any,
) -> tuple[list[int], list[bool]]:
    """See `TemplateDialect.loss_mask`."""
    return dialect.loss_mask(ChatRequest.of(messages, **options), tokenizer=tokenizer, template=template, image=image)
