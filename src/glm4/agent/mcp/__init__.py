"""Tools of MCP servers: their configuration, the connections to them, and what models see of them."""

from glm4.agent.mcp.config import McpServer, load_servers, read_servers
from glm4.agent.mcp.tools import open_mcp

__all__ = ["McpServer", "load_servers", "open_mcp", "read_servers"]
