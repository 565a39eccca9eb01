"""The python tool: code that a model writes, run in the sandbox, one interpreter per conversation."""

from __future__ import annotations

from glm4.agent.tools.python.tool import PythonTool, lacks

__all__ = ["PythonTool", "lacks"]
