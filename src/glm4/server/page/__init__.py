"""The page for people: what it needs from the server beside the public API. Its files are in `server/pages/chat`."""
