"""Pages for people with a browser, and their files."""
