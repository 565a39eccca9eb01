"""What the server keeps across requests."""
