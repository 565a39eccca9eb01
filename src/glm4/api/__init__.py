"""Request and response bodies of the HTTP APIs and of batch files: read strictly, written exactly. No web framework."""
