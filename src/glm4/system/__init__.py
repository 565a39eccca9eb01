"""The operating system: memory, processors, containers, atomic folders, event loops."""
