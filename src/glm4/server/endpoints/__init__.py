"""One file per endpoint; the route table is in glm4.server.app."""
