"""Answering a file of OpenAI batch requests."""
