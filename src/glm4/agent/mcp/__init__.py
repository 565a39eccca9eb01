"""Tools of MCP servers: their configuration, the connections to them, and what models see of them."""
