"""An assistant that uses tools: the loop between model and tools, its events, its tools. Knows no web framework."""
