"""OpenAI's Responses API: requests, items, answers and events."""
