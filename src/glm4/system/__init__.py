"""The operating system: memory, processors, containers, folders that appear whole, event loops."""
