"""The formats of rows: a module per format, each a function from a row to an example."""
