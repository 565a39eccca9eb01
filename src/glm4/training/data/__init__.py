"""Training data: rows of many formats → examples → token ids and which of them carry loss. Needs no torch."""
