"""The HTTP server: OpenAI's and Anthropic's APIs over `AsyncLLM`. `app.create_app` puts it together."""
