"""Request and response bodies of the HTTP APIs and of batch files: strict parsing, exact output. No web framework."""
