"""Text processing of requests: messages to token ids on the way in, tokens to events and answers on the way out."""
