"""One loader per format; they run in the sandbox, and what they make is checked outside (`loading.py`)."""
