"""Chooses the view for an answer: Markdown at a terminal that can redraw lines, plain text elsewhere."""

from __future__ import annotations

import sys

from glm4.cli import console as terminal
from glm4.cli.conversation.render import PlainView, View


def make_view(*, plain: bool) -> View:
    """Markdown at a terminal that can redraw lines, otherwise plain text."""
    if plain or not terminal.is_terminal(sys.stdout):
        return PlainView()
    console = terminal.stdout()
    if console.is_dumb_terminal:
        return PlainView()
    from glm4.cli.conversation.markdown import MarkdownView  # its parser and highlighter are a large part of startup

    return MarkdownView(console)
