"""Dialects: how a family of checkpoints writes conversations and answers. One file each; the table is at the foot."""

from __future__ import annotations

from glm4.chat.dialects.base import TemplateDialect
from glm4.chat.dialects.chatml import ChatMLDialect
from glm4.chat.dialects.glm4 import GLM4Dialect
from glm4.chat.dialects.glm4_0414 import GLM40414Dialect
from glm4.chat.dialects.glm_z1 import GLMZ1Dialect
from glm4.errors import InvalidRequestError

Dialect = TemplateDialect


def dialect_for(name: str) -> Dialect:
    """The dialect with that name.

    Raises:
        InvalidRequestError: there is no such dialect.
    """
    try:
        return DIALECTS[name]
    except KeyError:
        raise InvalidRequestError(f"unknown chat dialect {name!r}; known: {', '.join(DIALECTS)}") from None


DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect for dialect in (GLM4Dialect(), GLM40414Dialect(), GLMZ1Dialect(), ChatMLDialect())
}
