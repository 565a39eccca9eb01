"""The assistant over HTTP: turns that outlive connections, saved conversations, their files."""
