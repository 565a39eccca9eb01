"""Checkpoints written for other runtimes. Entry point: the table in `targets.py`."""
