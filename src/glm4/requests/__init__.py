"""The text side of a request: messages to token ids on the way in, tokens to events and answers on the way out."""
