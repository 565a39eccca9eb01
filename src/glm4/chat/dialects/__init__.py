"""Dialects: how a family of checkpoints writes conversations and answers. One file each; table.py lists them."""
