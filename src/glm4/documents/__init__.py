"""Documents: read from files of many formats, cut to what a model can take, and cited by page."""
