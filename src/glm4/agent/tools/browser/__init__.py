"""The browser: searches the web, opens pages and links, and numbers what it read for citations."""

from __future__ import annotations

from glm4.agent.tools.browser.tool import BrowserTool

__all__ = ["BrowserTool"]
