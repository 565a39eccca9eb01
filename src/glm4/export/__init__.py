"""Checkpoints written for other runtimes. Entry point: `gguf.export_gguf`."""
