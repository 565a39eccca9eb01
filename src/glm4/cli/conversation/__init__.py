"""`glm4 chat` at a terminal: the loop, its editor, rendering, and saved conversations."""
