"""The assistant's API: requests for turns, and what conversations look like."""
